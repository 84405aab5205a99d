"""pycapnp: a two-party server on a unix socket; promises are pipelined, as here."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

import capnp

from .base import ROOT, Contender, Place, python

capnp.remove_import_hook()
calls: Any = capnp.load(str(Path(__file__).with_name("calls.capnp")))
_WORDS = 1 << 40  # which may be looked at in one message: by default 64 MiB


class ByCapnp(Contender):
    loop = "asyncio"
    imports = "import capnp"
    cannot: ClassVar = {"batch": "no batches"}

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run(capnp.run(main()))

    async def open(self) -> None:
        self._place = Place()
        self._child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs
            python("by_capnp", self._place.socket), stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.pid = self._child.pid
        assert self._child.stdout is not None
        self._child.stdout.readline()
        stream = await capnp.AsyncIoStream.create_unix_connection(self._place.socket)
        self._client = capnp.TwoPartyClient(stream, traversal_limit_in_words=_WORDS)
        self._plugin = self._client.bootstrap().cast_as(calls.Plugin)
        self._held: list[Any] = []

    async def close(self) -> None:
        self._client.close()
        self._child.terminate()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._place.close()

    async def call(self, n: int) -> None:
        plugin = self._plugin
        for _ in range(n):
            assert (await plugin.add(1, 2)).value == 3

    async def in_flight(self, n: int, window: int) -> None:
        plugin = self._plugin
        for _ in range(0, n, window):
            await asyncio.gather(*[plugin.add(1, 2) for _ in range(window)])

    async def callback(self, n: int, times: int) -> None:
        for _ in range(n):
            await self._plugin.callBack(Callback(), times)

    async def chain(self, n: int) -> None:
        for _ in range(n):
            plugin: Any = self._plugin
            for _ in range(9):
                plugin = plugin.itself().plugin
            await plugin.add(1, 2)

    async def echo(self, n: int, data: bytes) -> None:
        for _ in range(n):
            assert len((await self._plugin.echo(data)).data) == len(data)

    async def hold(self, n: int) -> None:
        self._held = list((await self._plugin.make(n)).held)

    async def drop(self) -> None:
        self._held.clear()


class Callback(calls.Callback.Server):
    async def call(self, value: int, **_: Any) -> int:
        return value


class Held(calls.Held.Server):
    """An object that the parent holds."""


class Plugin(calls.Plugin.Server):
    async def add(self, a: int, b: int, **_: Any) -> int:
        return a + b

    async def callBack(self, function: Any, times: int, **_: Any) -> None:  # noqa: N802
        for _time in range(times):
            await function.call(1)

    async def itself(self, **_: Any) -> Plugin:
        return self

    async def echo(self, data: bytes, **_: Any) -> bytes:
        return data

    async def make(self, n: int, **_: Any) -> list[Held]:
        return [Held() for _ in range(n)]


async def _connected(stream: Any) -> None:
    server = capnp.TwoPartyServer(stream, bootstrap=Plugin(), traversal_limit_in_words=_WORDS)
    await server.on_disconnect()


async def _serve() -> None:
    server = await capnp.AsyncIoStream.create_unix_server(_connected, sys.argv[1])
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(capnp.run(_serve()))
