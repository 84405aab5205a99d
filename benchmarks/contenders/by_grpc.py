"""gRPC, its asyncio API, on a unix socket. The messages are made from ``calls.proto``."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any, ClassVar

import grpc
import grpc.aio

from .base import ROOT, Contender, Place, python

protos: Any
services: Any
protos, services = grpc.protos_and_services("benchmarks/contenders/calls.proto")
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class ByGrpc(Contender):
    loop = "asyncio"
    imports = "import grpc.aio"
    cannot: ClassVar = {
        "batch": "no batches",
        "callback": "no callbacks but a stream by hand",
        "chain": "no references",
        "hold": "no references",
    }

    async def open(self) -> None:
        self._place = Place()
        self._child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs
            python("by_grpc", self._place.socket), stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.pid = self._child.pid
        assert self._child.stdout is not None
        self._child.stdout.readline()
        self._channel = grpc.aio.insecure_channel(f"unix:{self._place.socket}", options=_OPTIONS)
        self._stub: Any = services.CallsStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()
        self._child.terminate()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._place.close()

    async def call(self, n: int) -> None:
        add = self._stub.Add
        for _ in range(n):
            assert (await add(protos.Two(a=1, b=2))).value == 3

    async def in_flight(self, n: int, window: int) -> None:
        add = self._stub.Add
        for _ in range(0, n, window):
            await asyncio.gather(*[add(protos.Two(a=1, b=2)) for _ in range(window)])

    async def echo(self, n: int, data: bytes) -> None:
        for _ in range(n):
            assert len((await self._stub.Echo(protos.Blob(data=data))).data) == len(data)


class Calls(services.CallsServicer):
    async def Add(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return protos.One(value=request.a + request.b)

    async def Echo(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return protos.Blob(data=request.data)


async def _serve() -> None:
    server = grpc.aio.server(options=_OPTIONS)
    services.add_CallsServicer_to_server(Calls(), server)
    server.add_insecure_port(f"unix:{sys.argv[1]}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve())
