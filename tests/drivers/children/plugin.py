"""A child that serves its stdio and does all that a child may do to its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import capnode_py as capnode


class Plugin(capnode.Target):
    def add(self, a: int, b: int) -> int:
        return a + b

    async def transform(self, text: str, on_progress: Any) -> str:
        await on_progress(1, 2)
        return text.upper()

    def pid(self) -> int:
        return os.getpid()

    def getenv(self, name: str) -> str | None:
        return os.environ.get(name)

    def cwd(self) -> str:
        return os.getcwd()

    def read_stdin(self) -> str:
        return sys.stdin.read()

    def fail(self) -> None:
        raise LookupError("in the child")

    def make_noise(self) -> None:
        """Write to stdout in every way there is."""
        print("by print")
        sys.stdout.write("by sys.stdout\n")
        print("by __stdout__", file=sys.__stdout__, flush=True)
        os.write(1, b"by os.write\n")
        subprocess.run(["echo", "by a subprocess"], check=True)
        libc = ctypes.CDLL(None)
        libc.puts(b"by C")
        libc.fflush(None)
        print("at exit", end="")  # stays in the buffer until then

    def write_stderr(self, size: int) -> int:
        sys.stderr.write("x" * (size - 1) + "\n")
        return size

    def leave_traces(self, code: int) -> None:
        for n in range(100):
            print(f"line {n}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)

    def kill(self, name: str) -> None:
        os.kill(os.getpid(), getattr(signal, name))

    def interrupt(self) -> str:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C at the terminal would
        return "still here"

    def close_stdout(self) -> None:
        """Close the wire by hand."""
        for fd in range(3, 100):
            with contextlib.suppress(OSError):
                os.close(fd)
        threading.Event().wait(60)

    def start_grandchild(self) -> int:
        return subprocess.Popen(["sleep", "60"]).pid

    async def wait(self) -> None:
        import asyncio

        await asyncio.Event().wait()

    def claim_again(self) -> None:
        from capnode_py._claim import claim

        claim()


if __name__ == "__main__":
    capnode.serve_stdio(Plugin())
