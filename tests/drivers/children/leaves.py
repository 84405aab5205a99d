"""Holds stubs of the process that started it, in every way, and leaves without giving them up.

Arguments: the descriptor of a socket, the driver, and how to leave.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import weakref
from typing import Any

import capnode_py as capnode

held: list[Any] = []
pending: dict[str, Any] = {}  # what died with `main` would be given up in a loop that still runs


class Late:
    """Its finalizer runs when hardly anything is left."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub

    def __del__(self) -> None:
        self.stub = None


async def main() -> None:
    peer = await capnode.attach(socket.socket(fileno=int(sys.argv[1])), index={"callback": print})
    stubs = await peer.index.things(8)
    circle: list[Any] = [stubs.pop()]
    circle.append(circle)
    held.extend([peer, stubs.pop(), Late(stubs.pop())])
    setattr(sys, "_held_to_the_end", stubs.pop())  # noqa: B010 - the module has no such name
    weakref.finalize(stubs[0], held.clear)
    thread_local = threading.local()
    thread_local.stub = stubs.pop()
    held.append(thread_local)
    pending["call"] = peer.index.wait(stubs.pop())
    pending["path"] = peer.index.things
    pending["rest"] = stubs
    await peer.index.ready(circle[0])
    await peer.ping()  # with it leaves the release of that answer, which else may leave or not
    if sys.argv[3] == "exit":
        sys.exit(0)
    if sys.argv[3] == "close":
        await peer.aclose()


def collect() -> None:
    """Give all up."""
    held.clear()
    pending.clear()
    gc.collect()


if __name__ == "__main__":
    driver = sys.argv[2]
    if driver == "trio":
        import trio

        trio.run(main)
    elif driver == "abandoned":  # a loop that nobody closes
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        held.append(loop)
    elif driver == "uvloop":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
    if sys.argv[3] == "thread":
        collector = threading.Thread(target=collect)
        collector.start()
        collector.join()
