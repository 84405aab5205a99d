"""What the library stands on: the bytes of a call and its answer, on the same channel, no RPC."""

from __future__ import annotations

from typing import ClassVar

from .. import blocking
from ..floor import Floor
from .base import Contender

_NO_RPC = "raw frames, no RPC"
_CANNOT = dict.fromkeys(("in_flight", "batch", "callback", "chain", "echo", "hold"), _NO_RPC)


class LoopFloor(Contender):
    cannot: ClassVar = _CANNOT

    def __init__(self, loop: str) -> None:
        self.loop = loop
        self._floor = Floor(loop)

    def fresh(self) -> LoopFloor:
        return LoopFloor(self.loop)

    async def open(self) -> None:
        await self._floor.open()
        self.pid = self._floor.pid

    async def close(self) -> None:
        await self._floor.close()

    async def call(self, n: int) -> None:
        await self._floor.calls(n)

    async def in_flight(self, n: int, window: int) -> None:
        await self._floor.in_flight(-(-n // window) * window, window)


class BlockingFloor(Contender):
    cannot: ClassVar = _CANNOT

    async def open(self) -> None:
        self._floor = blocking.Floor()
        self.pid = self._floor.pid

    async def close(self) -> None:
        self._floor.close()

    async def call(self, n: int) -> None:
        call = self._floor.call
        for _ in range(n):
            call()
