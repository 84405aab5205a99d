"""RPyC: a service behind a `ThreadedServer`; several calls by `rpyc.async_`.

On a unix socket: over TCP, as in its tutorial, several calls and callbacks wait for delayed
acknowledgements, 40 ms each time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any, ClassVar

import rpyc
from rpyc.utils.factory import unix_connect
from rpyc.utils.server import ThreadedServer

from .base import ROOT, Contender, Place, python

_CONFIG = {"allow_public_attrs": True, "sync_request_timeout": None}


class ByRpyc(Contender):
    imports = "import rpyc"
    cannot: ClassVar = {"batch": "no batches"}

    async def open(self) -> None:
        self._place = Place()
        self._child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs
            python("by_rpyc", self._place.socket), cwd=ROOT
        )
        self.pid = self._child.pid
        self._connection = _connected(self._place.socket)
        self._root: Any = self._connection.root
        self._held: list[Any] = []

    async def close(self) -> None:
        self._connection.close()
        self._child.terminate()
        self._child.wait()
        self._place.close()

    async def call(self, n: int) -> None:
        add = self._root.add
        for _ in range(n):
            add(1, 2)

    async def in_flight(self, n: int, window: int) -> None:
        add = rpyc.async_(self._root.add)
        for _ in range(0, n, window):
            for result in [add(1, 2) for _ in range(window)]:
                result.wait()
                assert result.value == 3

    async def callback(self, n: int, times: int) -> None:
        for _ in range(n):
            self._root.call_back(lambda value: value, times)

    async def chain(self, n: int) -> None:
        for _ in range(n):
            plugin = self._root
            for _ in range(9):
                plugin = plugin.itself()
            plugin.add(1, 2)

    async def echo(self, n: int, data: bytes) -> None:
        echo = self._root.echo
        for _ in range(n):
            assert len(echo(data)) == len(data)

    async def hold(self, n: int) -> None:
        self._held = list(self._root.make(n))

    async def drop(self) -> None:
        self._held.clear()


def _connected(path: str) -> Any:
    """It does not tell when it listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return unix_connect(path, config=_CONFIG)
        except (ConnectionRefusedError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)  # noqa: TID251 - it does not tell when it listens


class Held:
    """An object that the parent holds."""


class Plugin(rpyc.Service):
    def exposed_add(self, a: int, b: int) -> int:
        return a + b

    def exposed_call_back(self, function: Any, times: int) -> None:
        for _ in range(times):
            function(1)

    def exposed_itself(self) -> Plugin:
        return self

    def exposed_echo(self, data: bytes) -> bytes:
        return data

    def exposed_make(self, n: int) -> tuple[Held, ...]:
        return tuple(Held() for _ in range(n))


if __name__ == "__main__":
    ThreadedServer(Plugin, socket_path=sys.argv[1], protocol_config=_CONFIG).start()
