"""Uses the tool whose command line it is given, by default `tool.py` beside it."""

import asyncio
import sys
from pathlib import Path

import capnode_py as capnode

COMMAND = sys.argv[1:] or [sys.executable, str(Path(__file__).with_name("tool.py"))]
TEXT = "the cat saw the dog. it ran."


def ask(question):
    print("the tool asks:", question)
    return True


async def main():
    async with capnode.spawn(COMMAND) as tool:
        index = await tool.request_index()  # data by copy, functions as stubs
        for name, about in index["about"].items():
            print(f"{name}({', '.join(about['takes'])}): {about['does']}")

        print(await index["tools"]["count_words"](TEXT))
        print(await tool.index.tools.summarize(TEXT, ask=ask))

        try:
            await tool.index.tools.count_words(17)
        except AttributeError as error:  # what the tool raised, as the same builtin class
            print("refused:", error)


asyncio.run(main())
