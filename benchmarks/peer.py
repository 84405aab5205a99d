"""This library: a parent that spawns ``plugin.py``."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import capnode_py as capnode

from .subject import ROOT, Subject


class CapnodePeer(Subject):
    name = "capnode"
    loops = frozenset(("uvloop", "asyncio", "trio"))
    imported = "capnode_py"

    async def open(self) -> None:
        self._held: list[Any] = []
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
                await gather_on_trio([index.add(1, 2) for _ in range(window)])
            else:
                await asyncio.gather(*[index.add(1, 2) for _ in range(window)])
        return True

    async def callbacks(self, n: int) -> bool:
        index = self._peer.index
        for _ in range(n):
            await index.call_back(lambda value: value)  # a fresh one
        return True

    async def chains(self, n: int) -> bool:
        index = self._peer.index
        for _ in range(n):
            promise = index
            for _ in range(9):
                promise = promise.itself()
            await promise.add(1, 2)
        return True

    async def references(self, n: int) -> tuple[float, float]:
        index = self._peer.index
        await index.make(n)
        await self._peer.ping()
        with _traced() as size:
            self._held = await index.give()
            stub = size() / n
        await self.let_go()

        ours = [_Held() for _ in range(n)]
        with _traced() as size:
            await index.keep(ours)
            await self._peer.ping()
            export = size() / n
        await index.keep([])
        return stub, export

    async def hold(self, n: int) -> bool:
        await self._peer.index.make(n)
        self._held = await self._peer.index.give()
        return True

    async def let_go(self) -> None:
        self._held.clear()
        while await self._peer.index.held():
            pass

    def messages(self) -> tuple[int, int]:
        stats = self._peer.stats()
        return stats.messages_sent, stats.messages_received


class _Held(capnode.Target):
    """An object of ours."""


@contextlib.contextmanager
def _traced() -> Iterator[Callable[[], int]]:
    """What the allocations inside hold, in bytes, when it is asked."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()

    def size() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    try:
        yield size
    finally:
        tracemalloc.stop()


async def gather_on_trio(promises: list[capnode.Promise]) -> None:
    import trio

    async def settled(promise: capnode.Promise) -> None:
        await promise

    async with trio.open_nursery() as nursery:
        for promise in promises:
            nursery.start_soon(settled, promise)
