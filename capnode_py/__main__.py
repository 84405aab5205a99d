"""The command line: ``capnode demo``, ``capnode stubs``; or ``python -m capnode_py demo``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

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
    stubs = commands.add_parser(
        "stubs",
        help="write the far face of a Target class as Protocols, for interface=",
        description="Write a Python module with the far face of Target classes as Protocols: "
        "what peer.index is to type checkers with spawn(..., interface=Class).",
    )
    stubs.add_argument(
        "--sync", action="store_true", help="for capnode_py.sync, where calls give their values"
    )
    stubs.add_argument("classes", nargs="+", metavar="MODULE:CLASS")
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 2
    if options.command == "stubs":
        return _stubs(options.classes, blocking=options.sync)
    return _demo()


def _stubs(names: list[str], *, blocking: bool) -> int:
    from . import _claim

    sys.path.insert(0, os.getcwd())
    _claim._claimed.append(True)  # so that a plugin cannot begin to serve when it is imported
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what is printed by importing it
            text = capnode.interface_of(*map(_named, names), blocking=blocking)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        print(f"capnode stubs: {error}", file=sys.stderr)
        if "claimed" in str(error):
            print(
                "It serves when it is imported: write if __name__ == '__main__': before its "
                "serve_stdio()",
                file=sys.stderr,
            )
        return 1
    finally:
        _claim._claimed.pop()
    print(text, end="")
    return 0


def _named(name: str) -> Any:
    module, _, path = name.partition(":")
    if not path:
        raise ValueError(f"{name!r}: write module:Class, as in capnode stubs plugin:Notes")
    found: Any = import_module(module)
    for step in path.split("."):
        found = getattr(found, step)
    return found


def _demo() -> int:
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
