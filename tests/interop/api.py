"""What both sides offer in these tests, and, as a program, a server of it: api.mjs is the same in
JavaScript."""

from __future__ import annotations

import sys
import time
from typing import Any

import anyio

import capnode_py as capnode

QUIET_WITHIN = 2.0
ERRORS = {"Error": Exception, "RangeError": IndexError, "TypeError": TypeError}


class Counter(capnode.Target):
    def __init__(self, value: int) -> None:
        self._value = value

    def increment(self, by: int = 1) -> int:
        self._value += by
        return self._value

    @property
    def value(self) -> int:
        return self._value


class BankruptError(ValueError):
    """A class that JavaScript has never heard of."""


class Api(capnode.Target):
    """The names are JavaScript's, since both sides have them."""

    def __init__(self) -> None:
        self._kept: Any = None
        self._log: list[Any] = []

    def square(self, x: float) -> float:
        return x * x

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def echo(self, x: Any) -> Any:
        return x

    def giveBack(self, x: Any) -> Any:  # noqa: N802
        return x

    def giveBackInside(self, x: Any) -> dict:  # noqa: N802
        return {"it": x}

    def kind(self, x: Any) -> str:
        return type(x).__name__

    def nothing(self) -> Any:
        return capnode.undefined

    def nothingAtAll(self) -> None:  # noqa: N802
        return None

    @property
    def greeting(self) -> str:
        return "hello"

    def config(self) -> dict:
        return {"nested": {"n": 5}, "list": [1, [2, []], 3]}

    def fibonacci(self, n: int) -> list[int]:
        found = [0, 1]
        while len(found) < n:
            found.append(found[-1] + found[-2])
        return found[:n]

    def fail(self, kind: str, text: str) -> None:
        raise ERRORS[kind](text) from TypeError("because")

    def bankrupt(self) -> None:
        raise BankruptError("no money")

    def describeError(self, error: Exception) -> dict:  # noqa: N802
        return {
            "type": getattr(error, "remote_type", type(error).__name__),
            "message": str(error),
            "isValueError": isinstance(error, ValueError),
            "cause": None if error.__cause__ is None else str(error.__cause__),
        }

    def makeCounter(self, value: int) -> Counter:  # noqa: N802
        return Counter(value)

    async def incrementCounter(self, counter: Any, by: int) -> int:  # noqa: N802
        return (
            counter.increment(by) if isinstance(counter, Counter) else await counter.increment(by)
        )

    async def callFunction(self, f: Any, x: Any) -> dict:  # noqa: N802
        return {"result": await f(x)}

    async def callTimes(self, f: Any, n: int) -> list:  # noqa: N802
        return [await f(i) for i in range(n)]

    def keep(self, f: Any) -> Any:
        self._kept = f
        return capnode.undefined

    async def fire(self, x: Any) -> Any:
        return await self._kept(x)

    def drop(self) -> Any:
        self._kept = None
        return capnode.undefined

    def promises(self, f: Any) -> dict:
        return {"far": f(20), "near": 5}

    async def later(self, x: Any) -> Any:
        await anyio.sleep(0.005)
        return x

    def log(self, x: Any) -> Any:
        self._log.append(x)
        return capnode.undefined

    def logged(self) -> list:
        return self._log

    async def hang(self) -> None:
        await anyio.sleep_forever()

    async def callYou(self, name: str, *args: Any) -> Any:  # noqa: N802
        return await capnode.current_peer().index[name](*args)

    async def quiet(self) -> dict:
        """The tables of this side, once they are quiet, or as they are when that takes too long."""
        give_up = time.monotonic() + QUIET_WITHIN
        while True:
            stats = capnode.current_peer().stats()
            # The answer of this call is held until it is sent.
            found = {"imports": stats.imports, "exports": stats.exports - 1}
            if found == {"imports": 1, "exports": 1} or time.monotonic() > give_up:
                return found
            await anyio.sleep(0.002)


async def serve_one() -> None:
    """Listen to a web socket, print its url, and serve one who connects."""
    came = anyio.Event()
    api = Api()

    def index_for(peer: capnode.Peer) -> Api:
        peers.append(peer)
        came.set()
        return api

    peers: list[capnode.Peer] = []
    async with capnode.listen(
        "ws://127.0.0.1:0/api", index_for=index_for, dialect="capnweb", tracebacks=True
    ) as listener:
        print(listener.url, flush=True)
        await came.wait()
        await peers[0].wait_closed()


if __name__ == "__main__":
    if sys.argv[1:] == ["websocket"]:
        anyio.run(serve_one)
    else:
        capnode.serve_stdio(Api(), dialect="capnweb")
