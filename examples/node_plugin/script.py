"""Calls a plugin that is written in JavaScript, and is called back by it: `python script.py`."""

import asyncio
from pathlib import Path

import capnode_py as capnode

PLUGIN = Path(__file__).with_name("plugin.mjs")


async def main():
    async with capnode.spawn(["node", PLUGIN], dialect="capnweb") as plugin:
        print(await plugin.index.shout("hello", print))


asyncio.run(main())
