"""The command line: ``capnode demo``, or ``python -m capnode_py demo``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import capnode_py as capnode


def main(argv: Sequence[str] | None = None) -> int:
    """The `capnode` command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="capnode", description="Two Python programs call each other over a byte stream."
    )
    parser.add_argument("--version", action="version", version=f"capnode {capnode.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser(
        "demo",
        help="a walk of a few seconds through what it does, with a real child process",
        description="Start a child process, and walk through a call, a callback, pipelining, "
        "a crash and the calls per second.",
    )
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 2

    from ._demo import run  # it loads the event loop, which --help does not need

    try:
        run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print()
        return 130  # as shells say it of a program that Ctrl-C has ended
    except NotImplementedError as error:  # spawn says where it runs
        print(f"capnode demo: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `capnode demo | head`
        # What Python would still flush at exit has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
