"""Subscribes to the events of `emitter.py`, with a plain function and with a list's append."""

import asyncio
import sys
from pathlib import Path

import capnode_py as capnode

EMITTER = Path(__file__).with_name("emitter.py")


async def main():
    async with capnode.spawn([sys.executable, EMITTER]) as emitter:
        events = emitter.index
        print("version", await events.version)

        log: list = []
        await events.subscribe("weather", log.append)
        stop_printing = await events.subscribe("weather", lambda event: print("now:", event))

        print(await events.publish("weather", {"sky": "clear", "wind": 3}), "listeners")
        await stop_printing()
        print(await events.publish("weather", {"sky": "grey", "wind": 7}), "listener")
        print("log:", [event["sky"] for event in log])


asyncio.run(main())
