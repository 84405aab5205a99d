"""A subject is a column of the table: a parent and a child, and what each row asks of them."""

from __future__ import annotations

import asyncio
import compileall
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
"""Where children start, so that ``-m benchmarks.x`` finds this package."""


def compile_library(root: Path = ROOT) -> None:
    """As an installer does: children of a tree that is not compiled would do it each time, where
    PYTHONDONTWRITEBYTECODE is set, and what is compared with is installed."""
    for package in ("capnode_py", "benchmarks"):
        compileall.compile_dir(root / package, quiet=1)


class Subject:
    """Subclass it for a new column, and name it in ``__main__.SUBJECTS``.

    What is not offered returns False, and shows as "-". A subject that blocks is welcome too.

    Attributes:
        name: the head of the column.
        loops: the event loops that it runs on.
        imported: the module that a program imports to use it; none is the bare interpreter.
        pid: of the child, while it is open.
    """

    name: ClassVar[str]
    loops: ClassVar[frozenset[str]]
    imported: ClassVar[str | None] = None
    pid: int

    def __init__(self, loop: str) -> None:
        self.loop = loop

    @abstractmethod
    async def open(self) -> None:
        """Start the child, whose loop is `loop` as well."""

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def calls(self, n: int) -> None:
        """Call `add(1, 2)` in the child, `n` times, one after the other."""

    async def in_flight(self, n: int, window: int) -> bool:
        """The same, `window` at a time, each by a caller of its own."""
        return False

    async def callbacks(self, n: int) -> bool:
        """Call a function which calls back once before it answers, `n` times."""
        return False

    async def chains(self, n: int) -> bool:
        """Ten calls, each on the result of the one before it, `n` times."""
        return False

    async def references(self, n: int) -> tuple[float, float] | None:
        """The bytes that one far object costs here while it is held; and that one object of ours
        costs while the child holds it. Of `n`, on average."""
        return None

    async def hold(self, n: int) -> bool:
        """Have `n` different objects of the child's."""
        return False

    async def let_go(self) -> None:
        """Let go of them, and wait until the child has."""

    def messages(self) -> tuple[int, int] | None:
        """How many messages were sent and received so far."""
        return None


def loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop, by the name that the command line gives it."""
    if loop == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def run(loop: str, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run `main()` on that loop, or on trio."""
    if loop == "trio":
        import trio

        return trio.run(main)
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        return runner.run(main())
