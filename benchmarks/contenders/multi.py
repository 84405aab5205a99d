"""The standard library: `multiprocessing`, as its documentation shows it."""

from __future__ import annotations

import os
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from typing import Any, ClassVar

from .base import Contender


class ByConnection(Contender):
    """A dispatch by hand: one call after the other. Bytes go as `send_bytes` sends them, which is
    what the documentation says for bytes."""

    imports = "from multiprocessing import Pipe, Process"
    cannot: ClassVar = {
        "in_flight": "a dispatcher by hand, one call at a time",
        "batch": "a dispatcher by hand, one call at a time",
        "chain": "no references",
        "hold": "no references",
    }

    async def open(self) -> None:
        self._connection, theirs = Pipe()
        self._child = Process(target=_dispatch, args=(theirs,))
        self._child.start()
        theirs.close()
        assert self._child.pid is not None
        self.pid = self._child.pid

    async def close(self) -> None:
        self._connection.send(None)
        self._child.join()
        self._connection.close()

    async def call(self, n: int) -> None:
        send, receive = self._connection.send, self._connection.recv
        for _ in range(n):
            send(("add", (1, 2)))
            receive()

    async def callback(self, n: int, times: int) -> None:
        send, receive = self._connection.send, self._connection.recv
        for _ in range(n):
            send(("call_back", (times,)))
            for _ in range(times):
                _, value = receive()
                send(value)
            receive()

    async def echo(self, n: int, data: bytes) -> None:
        self._connection.send(("echo", (n,)))
        send, receive = self._connection.send_bytes, self._connection.recv_bytes
        for _ in range(n):
            send(data)
            assert len(receive()) == len(data)
        self._connection.recv()


def _dispatch(connection: Connection) -> None:
    def call_back(times: int) -> Any:
        for _ in range(times):
            connection.send(("call", 1))
            connection.recv()

    def echo(n: int) -> None:
        for _ in range(n):
            connection.send_bytes(connection.recv_bytes())

    methods: dict[str, Any] = {
        "add": lambda a, b: a + b,
        "call_back": call_back,
        "echo": echo,
    }
    while (call := connection.recv()) is not None:
        name, args = call
        connection.send(methods[name](*args))


class Plugin:
    def add(self, a: int, b: int) -> int:
        return a + b

    def itself(self) -> Plugin:
        return self

    def echo(self, data: bytes) -> bytes:
        return data

    def pid(self) -> int:
        return os.getpid()


class Manager(BaseManager): ...


_METHODS = ("add", "itself", "echo", "pid")
_SAME = {"itself": "Itself"}
Manager.register("Plugin", Plugin, method_to_typeid=_SAME)
Manager.register("Itself", exposed=_METHODS, method_to_typeid=_SAME, create_method=False)


class ByManager(Contender):
    imports = "import multiprocessing.managers"
    holds = 1000
    cannot: ClassVar = {
        "in_flight": "a call blocks its thread",
        "batch": "no batches",
        "callback": "the server cannot call its client",
    }

    async def open(self) -> None:
        self._manager = Manager()
        self._manager.start()
        self._plugin: Any = self._manager.Plugin()  # type: ignore[attr-defined]
        self.pid = self._plugin.pid()
        self._held: list[Any] = []

    async def close(self) -> None:
        self._manager.shutdown()

    async def call(self, n: int) -> None:
        plugin = self._plugin
        for _ in range(n):
            plugin.add(1, 2)

    async def chain(self, n: int) -> None:
        for _ in range(n):
            plugin = self._plugin
            for _ in range(9):
                plugin = plugin.itself()
            plugin.add(1, 2)

    async def echo(self, n: int, data: bytes) -> None:
        plugin = self._plugin
        for _ in range(n):
            assert len(plugin.echo(data)) == len(data)

    async def hold(self, n: int) -> None:
        self._held = [self._manager.Plugin() for _ in range(n)]  # type: ignore[attr-defined]

    async def drop(self) -> None:
        self._held.clear()
