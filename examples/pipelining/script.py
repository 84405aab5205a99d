"""One round trip where step by step it would be three or more."""

import asyncio
import sys
from pathlib import Path

import capnode_py as capnode

SERVER = Path(__file__).with_name("server.py")


async def main():
    async with capnode.spawn([sys.executable, SERVER]) as server:

        def answers():
            return server.stats().messages_received

        before = answers()
        folder = await server.index.folder("/tmp")
        file = await folder.open("a.txt")
        print(await file.line(7), "-", answers() - before, "round trips")

        # Call through the promises; only the last is awaited, and only its value crosses.
        before = answers()
        print(await server.index.folder("/tmp").open("a.txt").line(7), end=" - ")
        print(answers() - before, "round trip")

        # A promise is an argument like any other, and a property is read like a value.
        before = answers()
        folder = server.index.folder("/tmp")
        print(await folder.open(folder.newest()).name, "-", answers() - before, "round trip")


asyncio.run(main())
