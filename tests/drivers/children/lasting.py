"""A host whose registered counter outlives it: argv is where to listen, and the secret."""

from __future__ import annotations

import asyncio
import sys

import capnode_py as capnode


class Counter(capnode.Target):
    def __init__(self) -> None:
        self._count = 0

    def add(self, n: int) -> int:
        self._count += n
        return self._count


async def main(url: str, secret: str) -> None:
    counter = Counter()
    registry = capnode.MethodRegistry(secret=secret.encode())
    registry.register(counter, "counter")
    host = capnode.Capnode({"counter": lambda: counter}, registry=registry)
    async with (
        capnode.listen(url, host=host) as listener,
        capnode.stdio({"url": lambda: listener.url}) as parent,
    ):
        await parent.wait_closed()


asyncio.run(main(*sys.argv[1:]))
