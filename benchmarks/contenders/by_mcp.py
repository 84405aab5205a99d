"""The MCP SDK over stdio: a tool is a function; bytes go as base64 text, since JSON has none."""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from typing import Any, ClassVar

from mcp import Client, StdioServerParameters
from mcp.server import MCPServer

from .base import ROOT, Contender, python


class ByMcp(Contender):
    loop = "asyncio"
    imports = "import mcp"
    cannot: ClassVar = {
        "batch": "no batches",
        "callback": "its protocol of 2026 has no way back: what a tool asks for ends its call",
        "chain": "no references",
        "hold": "no references",
    }

    async def open(self) -> None:
        command, *args = python("by_mcp")
        server = StdioServerParameters(command=command, args=args, cwd=ROOT)
        self._client = Client(server)
        await self._client.__aenter__()
        self.pid = int(await self._tool("pid"))

    async def close(self) -> None:
        await self._client.__aexit__(None, None, None)

    async def _tool(self, name: str, **arguments: Any) -> Any:
        result: Any = await self._client.call_tool(name, arguments)
        if result.is_error:
            raise RuntimeError(result.content[0].text)
        return result.content[0].text

    async def call(self, n: int) -> None:
        for _ in range(n):
            assert await self._tool("add", a=1, b=2) == "3"

    async def in_flight(self, n: int, window: int) -> None:
        for _ in range(0, n, window):
            await asyncio.gather(*[self._tool("add", a=1, b=2) for _ in range(window)])

    async def echo(self, n: int, data: bytes) -> None:
        for _ in range(n):
            text = base64.b64encode(data).decode()
            assert len(base64.b64decode(await self._tool("echo", data=text))) == len(data)


def _serve() -> None:
    import os

    logging.disable()
    server = MCPServer("plugin")

    @server.tool(structured_output=False)
    def add(a: int, b: int) -> int:
        return a + b

    @server.tool(structured_output=False)
    def pid() -> int:
        return os.getpid()

    @server.tool(structured_output=False)
    def echo(data: str) -> str:
        return data

    server.run("stdio")


if __name__ == "__main__":
    sys.stderr.flush()
    _serve()
