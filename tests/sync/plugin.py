"""A child that hangs, dies, prints and calls back, on a driver of its parent's choice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import capnode_py as capnode


class Session(capnode.Target):
    def name(self) -> str:
        return "session"


class Plugin(capnode.Target):
    def __init__(self) -> None:
        self.cancelled = 0

    def add(self, a: int, b: int) -> int:
        """Give the sum of two numbers."""
        return a + b

    def loops(self) -> bool:
        return "asyncio" in sys.modules

    def write_stderr(self, size: int) -> int:
        sys.stderr.write("x" * (size - 1) + "\n")
        return size

    def die(self, code: int) -> None:
        print("last words", file=sys.stderr, flush=True)
        os._exit(code)

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def hang_after(self, started: Any) -> None:
        try:
            await started()
            await self.hang()
        except asyncio.CancelledError:  # wherever it has come to
            self.cancelled += 1
            raise

    def how_many_cancelled(self) -> int:
        return self.cancelled

    async def call(self, function: Any, times: int) -> list[Any]:
        return [await function(n) for n in range(times)]

    async def relay(self, function: Any) -> Any:
        return await function()

    async def nest(self, function: Any, depth: int) -> int:
        return await function(self.nest, depth - 1) + 1 if depth else 0

    def echo(self, value: Any) -> Any:
        return value

    def open_session(self) -> Session:
        return Session()

    def start_and_answer(self, function: Any) -> str:
        self.task = asyncio.ensure_future(function())
        return "answered"

    async def ask_parent(self, n: int) -> Any:
        return await capnode.current_peer().index.twice(n)

    async def close_from_inside(self) -> None:
        peer = capnode.current_peer()
        if isinstance(peer, capnode.sync.Peer):
            peer.close()
        else:
            await peer.aclose()

    def interrupt_parent(self) -> None:
        os.kill(os.getppid(), signal.SIGINT)


if __name__ == "__main__":
    if sys.argv[1:] == ["sync"]:
        capnode.sync.serve_stdio(Plugin())
    else:
        capnode.serve_stdio(Plugin())
