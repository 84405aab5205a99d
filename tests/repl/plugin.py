"""A child for notebooks and the interactive prompt."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import capnode_py as capnode


class Shelf(capnode.Target):
    def find(self, word: str) -> str:
        """Look it up."""
        return f"{word} on the shelf"


class Library(capnode.Target):
    """What there is to read."""

    def __init__(self) -> None:
        self._cancelled = 0

    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b

    async def each(self, items: list[Any], function: Any) -> list[Any]:
        return [await function(item) for item in items]

    async def hang(self) -> None:
        try:
            # Forwarded, so that the caller is in its wait when it is shown, and in no callback.
            print("it hangs", file=sys.stderr, flush=True)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._cancelled += 1
            raise

    def how_many_cancelled(self) -> int:
        return self._cancelled

    def complain(self) -> None:
        print("said on stderr", file=sys.stderr, flush=True)

    def shelf(self) -> Shelf:
        return Shelf()


capnode.serve_stdio(Library())
