"""Pyro5: a daemon on a unix socket, msgpack as its documentation recommends for speed."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any, ClassVar

import Pyro5.api

from .base import ROOT, Contender, Place, python

Pyro5.api.config.SERIALIZER = "msgpack"
Pyro5.api.config.MAX_MESSAGE_SIZE = 1 << 30


class ByPyro(Contender):
    imports = "import Pyro5.api"
    holds = 1000
    cannot: ClassVar = {"in_flight": "a call blocks its thread; a proxy belongs to one"}

    async def open(self) -> None:
        self._place = Place()
        self._child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs
            python("by_pyro", self._place.socket), stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.pid = self._child.pid
        assert self._child.stdout is not None
        self._plugin: Any = Pyro5.api.Proxy(self._child.stdout.readline().strip())
        self._daemon: Any = None
        self._held: list[Any] = []

    async def close(self) -> None:
        self._plugin._pyroRelease()
        if self._daemon is not None:
            self._daemon.shutdown()
        self._child.terminate()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._place.close()

    async def call(self, n: int) -> None:
        plugin = self._plugin
        for _ in range(n):
            plugin.add(1, 2)

    async def batch(self, n: int) -> None:
        for _ in range(n):
            batch = Pyro5.api.BatchProxy(self._plugin)
            for _ in range(1000):
                batch.add(1, 2)
            for _result in batch():
                pass

    async def callback(self, n: int, times: int) -> None:
        """With a daemon of the client's own, in a thread, as callbacks need it."""
        if self._daemon is None:
            self._daemon = Pyro5.api.Daemon(unixsocket=self._place.socket + "2")
            threading.Thread(target=self._daemon.requestLoop, daemon=True).start()
            self._callback = Callback()
            self._daemon.register(self._callback)
        plugin = self._plugin
        for _ in range(n):
            plugin.call_back(self._callback, times)

    async def chain(self, n: int) -> None:
        for _ in range(n):
            plugin = self._plugin
            proxies = []
            for _ in range(9):
                plugin = plugin.itself()
                proxies.append(plugin)
            plugin.add(1, 2)
            for proxy in proxies:
                proxy._pyroRelease()

    async def echo(self, n: int, data: bytes) -> None:
        plugin = self._plugin
        for _ in range(n):
            assert len(plugin.echo(data)) == len(data)

    async def hold(self, n: int) -> None:
        self._held = self._plugin.make(n)

    async def drop(self) -> None:
        self._held.clear()


@Pyro5.api.expose
class Callback:
    @Pyro5.api.callback
    def call(self, value: int) -> int:
        return value


@Pyro5.api.expose
class Held:
    """An object that the parent holds."""

    def name(self) -> str:
        return "held"


@Pyro5.api.expose
class Plugin:
    _pyroDaemon: Any  # noqa: N815 - so it is called there

    def add(self, a: int, b: int) -> int:
        return a + b

    def call_back(self, callback: Any, times: int) -> None:
        for _ in range(times):
            callback.call(1)

    def itself(self) -> Plugin:
        return self

    def echo(self, data: bytes) -> bytes:
        return data

    def make(self, n: int) -> list[Held]:
        made = [Held() for _ in range(n)]
        for held in made:
            self._pyroDaemon.register(held)
        return made


if __name__ == "__main__":
    daemon = Pyro5.api.Daemon(unixsocket=sys.argv[1])
    print(daemon.register(Plugin()), flush=True)
    daemon.requestLoop()
