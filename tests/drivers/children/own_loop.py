"""A child with an event loop of its own: `own_loop.py asyncio` or `own_loop.py trio`."""

import sys

import capnode_py as capnode


async def main() -> None:
    async def greet() -> str:
        return "hello " + await capnode.current_peer().index.name()

    async with capnode.stdio({"greet": greet}) as peer:
        assert await peer.index.name() == "Ann"
        await peer.wait_closed()
    print("served", file=sys.stderr)


if sys.argv[1] == "trio":
    import trio

    trio.run(main)
else:
    import asyncio

    asyncio.run(main())
