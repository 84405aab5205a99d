"""`Peer.with_options`: a stub whose calls have a time limit."""

from __future__ import annotations

import heapq
import itertools
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from ._cell import Call, Cell
from ._messages import Path
from ._stub import Promise, Stub

if TYPE_CHECKING:
    from ._session import Session
    from .driver._base import Driver


class Deadlines:
    """The deadlines of one connection's calls: one timer, however many there are.

    Args:
        session: whose calls they are.
        now: the clock, in seconds.
        after: ``after(seconds, run)`` calls `run()`, unless the connection ends before.
    """

    def __init__(
        self,
        session: Session,
        *,
        now: Callable[[], float],
        after: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._session = session
        self._now = now
        self._after = after
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, weakref.ref[Cell], float]] = []
        self._wakes_at = float("inf")

    def add(self, cell: Cell, seconds: float) -> None:
        """Let `cell` have its outcome within `seconds` from now."""
        self._forget_settled()
        at = self._now() + seconds
        heapq.heappush(self._waiting, (at, next(self._order), weakref.ref(cell), seconds))
        self._set_timer()

    def _forget_settled(self) -> None:
        while self._waiting:
            cell = self._waiting[0][2]()
            if cell is not None and not cell.settled:
                return
            heapq.heappop(self._waiting)

    def _set_timer(self) -> None:
        at = self._waiting[0][0]
        if at < self._wakes_at:
            self._wakes_at = at
            self._after(max(at - self._now(), 0.0), self._time_is_up)

    def _time_is_up(self) -> None:
        self._wakes_at = float("inf")
        now = self._now()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, found, seconds = heapq.heappop(self._waiting)
            cell = found()
            if cell is not None and not cell.settled:
                path = ".".join(map(str, cell.path)) or "the call"
                self._session.give_up(
                    cell,
                    TimeoutError(f"{path}: no answer within {seconds:g} s; the call is cancelled"),
                )
        self._forget_settled()
        if self._waiting:
            self._set_timer()


class Timed:
    """The engine of a stub with a time limit: that of its connection, and a deadline a call."""

    def __init__(self, driver: Driver, deadlines: Deadlines, seconds: float) -> None:
        self._driver: Final = driver
        self._session: Final = driver.session
        self._deadlines: Final = deadlines
        self.seconds: Final = seconds
        self._stub: Stub | None = None

    def limited(self, target: Stub | Promise) -> Stub | Promise:
        """`target` with this limit."""
        if isinstance(target, Promise):
            return Promise(self, target._base, target._path)
        self._stub = target
        timed = Stub(self, target._id)
        timed._cap_id = target._cap_id
        return timed

    def plain(self, stub: Stub) -> Stub:
        """The stub itself."""
        return self._stub or stub

    def call(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any) -> Any:
        if not self._session.is_here():
            return self._driver.ask(lambda: self.call(base, path, args, kwargs))
        base = self.plain(base) if isinstance(base, Stub) else base
        promise = self._session.call(base, path, args, kwargs)
        if isinstance(promise._base, Cell):
            self._deadlines.add(promise._base, self.seconds)
        return promise

    def wait(self, base: Stub | Cell, path: Path) -> Generator[Any, Any, Any]:
        if isinstance(base, Cell) and not path:
            self._deadlines.add(base, self.seconds)
            return self._session.wait(base, path)
        promise: Promise = self.call(base, path, None, None)
        return promise.__await__()

    def forward(self, call: Call, _id: int) -> None:
        self._session.forward(call, _id)

    def dealloc(self, stub: Stub) -> None:
        self._session.dealloc(self.plain(stub))

    def cap_id(self, stub: Stub) -> str:
        return self._session.cap_id(self.plain(stub))

    def cancel(self, cell: Cell) -> None:
        self._session.cancel(cell)

    def is_here(self) -> bool:
        return self._session.is_here()

    def describe(self, stub: Stub, path: str = "") -> str:
        return f"{self._session.describe(self.plain(stub), path)}, within {self.seconds:g} s"

    @property
    def where(self) -> str:
        return self._session.where
