"""What the engine asks of what carries it. For type checkers: at run time, nobody looks here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from ._cell import Call, Cell
from ._messages import Path
from ._stub import Promise, Stub
from ._tables import Running


class Driver(Protocol):
    """See the module.

    Attributes:
        waits_in_place: a handler may wait, and so have more read, while the engine runs it.
    """

    waits_in_place: bool

    def here(self) -> bool:
        """Is the caller where the session lives: its loop, its thread?"""

    def elsewhere(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any, /) -> Promise:
        """A call from another thread: bring it here, or raise and name `submit`."""

    def wake(self) -> None:
        """There is something to flush at the end of this turn."""

    def wake_later(self) -> None:
        """There are releases, which may wait for a frame that leaves anyway, but not for long."""

    def wake_from_anywhere(self) -> None:
        """A finalizer left a note, in any thread, at any moment: call `drain_notes` here soon."""

    def soon(self, run: Callable[[], object], /) -> bool:
        """Call `run()` here, from any thread; False if the loop is gone."""

    def start(self, call: Call, /) -> None:
        """Run it, in the order of these requests."""

    def run(self, id: int, running: Running, /) -> Any:
        """Run the function of a usual call at once. Returns what it returned; or TOLD: its outcome
        was or will be told, as that of the call which `Session.in_full` gives."""

    @property
    def starting(self) -> Collection[Any]:
        """The calls that wait for their task."""

    def fence(self, cell: Cell, /) -> None:
        """Fulfil `cell` once the calls that wait now are started."""

    def stop(self, call: Call, /) -> None:
        """Cancel it, once, if it runs; its outcome will be told as usual."""

    def tell(self, function: Callable[..., Any], /, *args: Any) -> None:
        """Call a function of this side that no peer has asked for, soon."""

    def wait(self, cell: Cell, /) -> Iterable[Any]:
        """Wait, as a task of this driver does by yielding from it, until the cell is settled."""

    def stop_waiting(self, cell: Cell, waiter: Any, /) -> None:
        """What `wait` gave has raised: the cell is not to wake it any more."""

    def is_cancellation(self, error: BaseException, /) -> bool:
        """Is this how the loop cancels a task?"""

    def greeted(self) -> None:
        """The other side's hello has come."""

    def abandoned(self, run: Callable[[], object], /) -> bool:
        """Nobody holds the connection any more: call `run()` soon. From a finalizer; False if
        there is no way."""

    def ended(self) -> None:
        """The session is over; `Session.error` says why."""
