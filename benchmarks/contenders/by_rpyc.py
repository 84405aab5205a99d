"""RPyC: a service behind a `ThreadedServer`, as in its tutorial; several calls by `rpyc.async_`."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any, ClassVar

import rpyc
from rpyc.utils.server import ThreadedServer

from .base import ROOT, Contender, python

_CONFIG = {"allow_public_attrs": True, "sync_request_timeout": None}


class ByRpyc(Contender):
    imports = "import rpyc"
    cannot: ClassVar = {"batch": "no batches"}

    async def open(self) -> None:
        self._child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs
            python("by_rpyc"), stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.pid = self._child.pid
        assert self._child.stdout is not None
        port = int(self._child.stdout.readline())
        self._connection = _connected(port)
        self._root: Any = self._connection.root
        self._held: list[Any] = []

    async def close(self) -> None:
        self._connection.close()
        self._child.terminate()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()

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


def _connected(port: int) -> Any:
    """It tells its port before it listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return rpyc.connect("localhost", port, config=_CONFIG)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise


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
    server = ThreadedServer(Plugin, hostname="localhost", port=0, protocol_config=_CONFIG)
    print(server.port, flush=True)
    sys.stdout = sys.stderr
    server.start()
