"""This library: a parent that spawns ``benchmarks/plugin.py``, over its stdin and stdout."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import capnode_py as capnode

from ..subject import ROOT
from .base import Contender


def _returned(value: int) -> int:
    return value


def _command(loop: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / "plugin.py"), loop]


class Capnode(Contender):
    imports = "from capnode_py import spawn"

    def __init__(self, loop: str) -> None:
        self.loop = loop
        self._held: list[Any] = []

    def fresh(self) -> Capnode:
        return Capnode(self.loop)

    async def open(self) -> None:
        self._peer = await capnode.spawn(_command(self.loop), cwd=ROOT)
        assert self._peer.pid is not None
        self.pid = self._peer.pid

    async def close(self) -> None:
        await self._peer.aclose()

    async def call(self, n: int) -> None:
        index = self._peer.index
        for _ in range(n):
            await index.add(1, 2)

    async def in_flight(self, n: int, window: int) -> None:
        index = self._peer.index
        together = _on_trio if self.loop == "trio" else asyncio.gather
        for _ in range(0, n, window):
            await together(*[index.add(1, 2) for _ in range(window)])

    async def batch(self, n: int) -> None:
        """What is called in one turn of the loop leaves together; the values are asked in order."""
        index = self._peer.index
        for _ in range(n):
            for promise in [index.add(1, 2) for _ in range(1000)]:
                await promise

    async def callback(self, n: int, times: int) -> None:
        index = self._peer.index
        for _ in range(n):
            await index.call_back_often(lambda value: value, times)  # a fresh one

    async def chain(self, n: int) -> None:
        index = self._peer.index
        for _ in range(n):
            promise = index
            for _ in range(9):
                promise = promise.itself()
            await promise.add(1, 2)

    async def echo(self, n: int, data: bytes) -> None:
        index = self._peer.index
        for _ in range(n):
            assert len(await index.echo(data)) == len(data)

    async def hold(self, n: int) -> None:
        await self._peer.index.make(n)
        self._held = await self._peer.index.give()

    async def drop(self) -> None:
        self._held.clear()
        while await self._peer.index.held():
            pass
        await self._peer.index.make(0)

    def messages(self) -> tuple[int, int]:
        stats = self._peer.stats()
        return stats.messages_sent, stats.messages_received


async def _on_trio(*promises: capnode.Promise) -> None:
    from ..peer import gather_on_trio

    await gather_on_trio(list(promises))


class BlockingCapnode(Contender):
    imports = "from capnode_py.sync import spawn"

    def __init__(self) -> None:
        self._held: list[Any] = []

    async def open(self) -> None:
        self._peer = capnode.sync.spawn(_command("blocking"), cwd=ROOT)
        assert self._peer.pid is not None
        self.pid = self._peer.pid

    async def close(self) -> None:
        self._peer.close()

    async def call(self, n: int) -> None:
        index = self._peer.index
        for _ in range(n):
            index.add(1, 2)

    async def in_flight(self, n: int, window: int) -> None:
        for _ in range(0, n, window):
            self._pipelined(window)

    async def batch(self, n: int) -> None:
        for _ in range(n):
            self._pipelined(1000)

    def _pipelined(self, n: int) -> None:
        with self._peer.pipeline() as pipeline:
            index = pipeline.index
            promises = [index.add(1, 2) for _ in range(n)]
        for promise in promises:
            self._peer.get(promise)

    async def callback(self, n: int, times: int) -> None:
        call: Callable[..., Any] = self._peer.index.call_back_often
        for _ in range(n):
            call(lambda value: value, times)

    async def chain(self, n: int) -> None:
        for _ in range(n):
            with self._peer.pipeline() as pipeline:
                promise = pipeline.index
                for _ in range(9):
                    promise = promise.itself()
                promise = promise.add(1, 2)
            self._peer.get(promise)

    async def echo(self, n: int, data: bytes) -> None:
        echo = self._peer.index.echo
        for _ in range(n):
            assert len(echo(data)) == len(data)

    async def hold(self, n: int) -> None:
        self._peer.index.make(n)
        self._held = self._peer.index.give()

    async def drop(self) -> None:
        self._held.clear()
        while self._peer.index.held():
            pass
        self._peer.index.make(0)

    def messages(self) -> tuple[int, int]:
        stats = self._peer.stats()
        return stats.messages_sent, stats.messages_received
