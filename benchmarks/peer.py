"""This library: a parent that spawns ``plugin.py``."""

from __future__ import annotations

import asyncio
import sys

import capnode_py as capnode

from .subject import ROOT, Subject


class CapnodePeer(Subject):
    name = "capnode"
    loops = frozenset(("uvloop", "asyncio", "trio"))
    imported = "capnode_py"

    async def open(self) -> None:
        self._peer = await capnode.spawn(
            [sys.executable, "-m", "benchmarks.plugin", self.loop], cwd=ROOT
        )
        assert self._peer.pid is not None
        self.pid = self._peer.pid

    async def close(self) -> None:
        await self._peer.aclose()

    async def calls(self, n: int) -> None:
        index = self._peer.index
        for _ in range(n):
            await index.add(1, 2)

    async def in_flight(self, n: int, window: int) -> bool:
        index = self._peer.index
        for _ in range(n // window):
            if self.loop == "trio":
                await _gather_on_trio([index.add(1, 2) for _ in range(window)])
            else:
                await asyncio.gather(*[index.add(1, 2) for _ in range(window)])
        return True

    async def callbacks(self, n: int) -> bool:
        index = self._peer.index
        for _ in range(n):
            await index.call_back(_called_back)
        return True

    async def chains(self, n: int) -> bool:
        index = self._peer.index
        for _ in range(n):
            promise = index
            for _ in range(9):
                promise = promise.itself()
            await promise.add(1, 2)
        return True

    def messages(self) -> tuple[int, int]:
        stats = self._peer.stats()
        return stats.messages_sent, stats.messages_received


def _called_back(value: int) -> int:
    return value


async def _gather_on_trio(promises: list[capnode.Promise]) -> None:
    import trio

    async def settled(promise: capnode.Promise) -> None:
        await promise

    async with trio.open_nursery() as nursery:
        for promise in promises:
            nursery.start_soon(settled, promise)
