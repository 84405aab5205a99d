"""execnet: a gateway and a channel; what is sent over it is a protocol of one's own."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import execnet

from .base import Contender

CHILD = """
def call_back(to, times):
    for _ in range(times):
        to.send(1)
        to.receive()

methods = {
    "add": lambda a, b: a + b,
    "call_back": call_back,
    "echo": lambda data: data,
}
for name, args in channel:
    channel.send(methods[name](*args))
"""


class ByExecnet(Contender):
    imports = "import execnet"
    cannot: ClassVar = {
        "batch": "no batches",
        "chain": "no references",
        "hold": "no references but channels",
    }

    async def open(self) -> None:
        self._gateway = execnet.makegateway(f"popen//python={sys.executable}")
        self.pid = self._gateway.remote_exec("import os; channel.send(os.getpid())").receive()
        self._channel: Any = self._gateway.remote_exec(CHILD)

    async def close(self) -> None:
        self._gateway.exit()

    async def call(self, n: int) -> None:
        send, receive = self._channel.send, self._channel.receive
        for _ in range(n):
            send(("add", (1, 2)))
            receive()

    async def in_flight(self, n: int, window: int) -> None:
        send, receive = self._channel.send, self._channel.receive
        for _ in range(0, n, window):
            for _ in range(window):
                send(("add", (1, 2)))
            for _ in range(window):
                receive()

    async def callback(self, n: int, times: int) -> None:
        """By hand: a channel of its own goes with the call."""
        for _ in range(n):
            to = self._gateway.newchannel()
            self._channel.send(("call_back", (to, times)))
            for _ in range(times):
                to.send(to.receive())
            self._channel.receive()

    async def echo(self, n: int, data: bytes) -> None:
        for _ in range(n):
            self._channel.send(("echo", (data,)))
            assert len(self._channel.receive()) == len(data)
