"""Starts `plugin.py`, shows its progress, and stops it half-way the second time."""

import asyncio
import sys
from pathlib import Path

import capnode_py as capnode

PLUGIN = Path(__file__).with_name("plugin.py")


async def main():
    async with capnode.spawn([sys.executable, PLUGIN]) as plugin:
        names = ["ant.png", "bee.png", "cat.png", "dog.png"]

        def show(done, of):
            print(f"{done} of {of}")

        print(await plugin.index.make(names, on_progress=show))

        def stop_half_way(done, of):
            show(done, of)
            if done == of // 2:
                work.cancel()  # the plugin sees a CancelledError where it awaits

        work = asyncio.ensure_future(plugin.index.make(names, on_progress=stop_half_way))
        try:
            await work
        except asyncio.CancelledError:
            print("stopped")


asyncio.run(main())
