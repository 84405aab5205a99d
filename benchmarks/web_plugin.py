"""The Python child of ``benchmarks.web``: ``python -m benchmarks.web_plugin DIALECT``."""

from __future__ import annotations

import sys
from typing import Any

import capnode_py as capnode


class Plugin(capnode.Target):
    def add(self, a: int, b: int) -> int:
        return a + b

    def echo(self, value: Any) -> Any:
        return value

    async def call_back(self, function: Any) -> int:
        return await function(1)


if __name__ == "__main__":
    capnode.serve_stdio(Plugin(), dialect=sys.argv[1])
