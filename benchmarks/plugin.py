"""The child of `CapnodePeer`, and of this library in the table: ``plugin.py LOOP``."""

from __future__ import annotations

import sys
from typing import Any

import capnode_py as capnode


class Held(capnode.Target):
    """An object that the parent holds."""


class Plugin(capnode.Target):
    def __init__(self) -> None:
        self._made: list[Held] = []
        self._kept: list[Any] = []

    def add(self, a: int, b: int) -> int:
        return a + b

    async def call_back(self, function: Any) -> int:
        return await function(1)

    async def call_back_often(self, function: Any, times: int) -> None:
        for _ in range(times):
            await function(1)

    def echo(self, value: Any) -> Any:
        return value

    def itself(self) -> Plugin:
        return self

    def make(self, n: int) -> None:
        self._made = [Held() for _ in range(n)]

    def give(self) -> list[Held]:
        return self._made

    def keep(self, objects: list[Any]) -> None:
        self._kept = objects

    def held(self) -> int:
        """How many objects of ours the parent holds."""
        stats = capnode.current_peer().stats()
        return stats.exports - stats.answers - 1


class BlockingPlugin(Plugin):
    """The same for a child without a loop, where calls give values."""

    def call_back_often(self, function: Any, times: int) -> None:  # type: ignore[override]
        for _ in range(times):
            function(1)

    def itself(self) -> BlockingPlugin:
        return self


async def _serve_on_trio() -> None:
    async with capnode.stdio(Plugin()) as peer:
        await peer.wait_closed()


if __name__ == "__main__":
    loop = sys.argv[1]
    if loop == "trio":
        import trio

        trio.run(_serve_on_trio)
    elif loop == "blocking":
        capnode.sync.serve_stdio(BlockingPlugin())
    else:
        if loop == "asyncio":
            sys.modules["uvloop"] = None  # type: ignore[assignment]  # as if it were not installed
        capnode.serve_stdio(Plugin())
