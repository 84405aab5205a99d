"""The child of `CapnodePeer`: ``python -m benchmarks.plugin LOOP``."""

from __future__ import annotations

import sys
from typing import Any

import capnode_py as capnode


class Plugin(capnode.Target):
    def add(self, a: int, b: int) -> int:
        return a + b

    async def call_back(self, function: Any) -> int:
        return await function(1)

    def itself(self) -> Plugin:
        return self


async def _serve_on_trio() -> None:
    async with capnode.stdio(Plugin()) as peer:
        await peer.wait_closed()


if __name__ == "__main__":
    loop = sys.argv[1]
    if loop == "trio":
        import trio

        trio.run(_serve_on_trio)
    else:
        if loop == "asyncio":
            sys.modules["uvloop"] = None  # type: ignore[assignment]  # as if it were not installed
        capnode.serve_stdio(Plugin())
