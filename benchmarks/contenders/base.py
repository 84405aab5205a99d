"""What a contender does: each row of the table asks for one of these, `n` times."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..subject import ROOT, run


class Cannot(Exception):
    """A contender does not do this. The text says why, in a few words."""


class Contender:
    """A parent and its child. What is not offered raises `Cannot`; a blocking one blocks.

    Attributes:
        loop: "uvloop", "asyncio" or "trio"; "" if it blocks.
        imports: what a program imports to use it.
        cannot: why it does not do a row, by the name of the method.
        holds: how many references to make, to see what one takes.
        pid: of the child, while it is open.
    """

    loop = ""
    imports: ClassVar[str] = "pass"
    cannot: ClassVar[Mapping[str, str]] = {}
    holds = 10_000
    pid: int

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `main()` as programs that use this are run."""
        if self.loop:
            run(self.loop, main)
            return
        try:
            main().send(None)
        except StopIteration:
            return
        raise RuntimeError("a blocking contender has awaited something")

    def fresh(self) -> Contender:
        """Another of its kind, not open yet."""
        return type(self)()

    async def open(self) -> None:
        """Start the child."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def call(self, n: int) -> None:
        """`add(1, 2)` in the child, one after the other."""
        raise NotImplementedError

    async def in_flight(self, n: int, window: int) -> None:
        """The same, `window` at a time."""
        self._no("in_flight")

    async def batch(self, n: int) -> None:
        """A thousand calls, sent as one."""
        self._no("batch")

    async def callback(self, n: int, times: int) -> None:
        """A call with a function, which calls that so often, each after the other."""
        self._no("callback")

    async def chain(self, n: int) -> None:
        """Ten calls, each on the result of the one before."""
        self._no("chain")

    async def echo(self, n: int, data: bytes) -> None:
        """Send the data there, and get it back."""
        self._no("echo")

    async def hold(self, n: int) -> None:
        """Hold `n` different objects of the child's."""
        self._no("hold")

    async def drop(self) -> None:
        """Let go of them."""

    def messages(self) -> tuple[int, int] | None:
        """How many messages have been sent and received, where that is counted."""
        return None

    def _no(self, method: str) -> None:
        raise Cannot(self.cannot.get(method, "not offered"))


def python(module: str, *arguments: str) -> list[str]:
    """The command line of a child that is a module of this package."""
    return [sys.executable, "-m", f"{__package__}.{module}", *arguments]


class Place:
    """A directory for a socket."""

    def __init__(self) -> None:
        self._path = Path(tempfile.mkdtemp(prefix="bench"))

    @property
    def socket(self) -> str:
        return str(self._path / "socket")

    def close(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


__all__ = ["ROOT", "Cannot", "Contender", "Place", "python"]
