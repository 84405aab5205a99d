"""Where a call goes: down the wire, into the queue of a promise, or to the driver.

Also what waits on the way: calls of a peer that does not read its answers (rule 13), and calls
with promises in their arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ._cell import FULFILLED, HELD, REJECTED, Answer, Call, Cell, Position
from ._errors import RemoteProtocolError, Withdrawn, again
from ._limits import Limits
from ._payload import Hole, Holes, unsettled
from ._reach import DATA, copied, step_into
from ._stub import Promise, Stub, Target

if TYPE_CHECKING:
    from ._session import Session


class Filled(Protocol):
    """Called when the promises of a payload have settled, or one has failed with `error`."""

    def __call__(self, error: BaseException | None, /, *, ours: bool) -> None: ...


class Router:
    """The ways of one session.

    Args:
        session: whose calls these are.
        start: gives a call to the driver, in order.
        backlog: how many bytes are waiting to be sent to the peer.

    Attributes:
        kept: the calls and positions that wait until less is unsent.
    """

    def __init__(
        self,
        session: Session,
        limits: Limits,
        *,
        start: Callable[[Call], None],
        backlog: Callable[[], int],
    ) -> None:
        self._session = session
        self._limits = limits
        self._high_water = limits.high_water
        self._start = start
        self._backlog = backlog
        self.kept: deque[Call | Position] = deque()
        self._kept_bytes = 0
        self._waiting: set[Holes] = set()

    def arrive(self, item: Call | Position, size: int) -> None:
        """A call or a position has come in. Above high water it is kept, in order.

        Raises:
            RemoteProtocolError: the peer calls and does not read.
        """
        if self.is_open():
            self.route(item)
            return

        item.size = size
        self.kept.append(item)
        self._kept_bytes += size
        if self._kept_bytes > self._limits.max_kept:
            raise RemoteProtocolError(
                f"{self._kept_bytes} bytes of calls are kept (Limits.max_kept) behind "
                f"{self._backlog()} unsent bytes: the other side calls and does not read"
            )

    def check_reading(self) -> None:
        """Something is to be answered at once, whatever is kept: a plain ping, or a pull.

        Raises:
            RemoteProtocolError: the peer asks for ever and does not read.
        """
        if self._backlog() > self._limits.max_kept:
            raise RemoteProtocolError(
                f"{self._backlog()} bytes are unsent (Limits.max_kept): the other side asks and "
                "does not read"
            )

    def is_open(self) -> bool:
        """May what comes now go on at once?"""
        return not self.kept and self._backlog() <= self._high_water

    def behind(self, passed: Callable[[], None]) -> None:
        """Call `passed` once all that has come until now is let in."""
        if self.kept:
            self.kept.append(Position(self._session, None, passed))
        else:
            passed()

    def relieve(self) -> None:
        """The backlog has shrunk: go on with what was kept, while it stays low."""
        if not self.kept or self._backlog() > self._limits.low_water:
            return
        while self.kept and self._backlog() <= self._limits.high_water:
            item = self.kept.popleft()
            self._kept_bytes -= item.size
            self.route(item)

    def forget_error(self, answer: Answer) -> None:
        """Nobody can ask for the error of `answer` any more, whose traceback holds the frames that
        hold what the handler was given. Calls that are kept have asked already."""
        if self.kept:
            failed = Cell(self._session)
            failed.reject(answer.value)
            for item in self.kept:
                if item.target is answer:
                    item.target = failed
                if isinstance(item, Call) and item.holes:
                    item.holes = [(c, k, failed if x is answer else x) for c, k, x in item.holes]
        answer.value = Withdrawn()

    def clear(self) -> None:
        """The session is over."""
        self.kept.clear()
        self._kept_bytes = 0
        self._waiting.clear()

    def route(self, item: Call | Position) -> None:
        """Bring it to where it runs, or to where it waits."""
        if isinstance(item, Position):
            self._pass(item)
            return
        if item.cancelled:
            return

        target: Any = item.target
        path = item.path
        while True:
            if isinstance(target, Target):
                break
            if isinstance(target, Cell):
                if target.state == FULFILLED:
                    target = target.value
                elif target.state == REJECTED:
                    self._session.fail(item, target.value)
                    return
                elif target.state != HELD and target.link is not None:
                    target = target.link
                elif item.args is None and not path and item.reply is not None:
                    # Nothing is left to read: the promise is the value, with its barrier (rule 5).
                    reply, item.reply = item.reply, None
                    reply.follow(target)
                    return
                else:
                    item.target, item.path = target, path
                    if target.state != HELD and target.import_id:
                        target.session.forward_through(target, item)
                    else:
                        target.enqueue(item)
                    return
            elif type(target) is Stub:
                if item.args is None and not path and item.reply is not None:
                    self._session.finish(item, target)  # it is what is read
                    return
                item.target, item.path = target, path
                target._session.forward(item, target._id)
                return
            elif type(target) is Promise:
                target, path = target._base, target._path + path
            elif path and isinstance(target := copied(target), DATA):
                try:
                    target = step_into(target, path[0])
                except (LookupError, TypeError) as error:
                    self._session.fail(item, error)
                    return
                path = path[1:]
            else:
                break
        item.target, item.path = target, path
        if item.holes:  # it starts in the step that settles the last of its promises
            holes, item.holes = item.holes, None
            item.waiting = self.fill(holes, partial(self._filled, item), item.reply)
        else:
            self._begin(item)

    def _filled(self, call: Call, error: BaseException | None, *, ours: bool) -> None:
        """Whether the values name `ours` matters to results only."""
        call.waiting = None
        if error is not None:
            self._session.fail(call, error)
        elif not call.cancelled:
            self._begin(call)

    def _begin(self, call: Call) -> None:
        """It has all that it needs. A handler that goes on after the end of the session may bring
        the value that it has waited for: then it is too late."""
        error = self._session.error
        if error is None:
            self._start(call)
        else:
            self._session.fail(call, again(error))

    def fill(self, holes: list[Hole], done: Filled, cell: Cell | None) -> Holes | None:
        """Wait for the promises of a payload, for the sake of `cell`. Returns what waits, None if
        none has to."""

        def finished(error: BaseException | None) -> None:
            self._waiting.discard(waiting)
            done(error, ours=waiting.ours)

        waiting = Holes(self._session.localize, finished, cell)
        self._waiting.add(waiting)
        waiting.wait(holes)
        return waiting if waiting in self._waiting else None

    def forget(self, waiting: Holes) -> list[Cell]:
        """Nobody is interested any more. Returns what was waited for."""
        self._waiting.discard(waiting)
        return waiting.abandon()

    def _pass(self, position: Position) -> None:
        """Move a position on, behind the calls that went before it, and say when it is through."""
        target = position.target
        while isinstance(target, Cell) and target.state != HELD and target.link is not None:
            target = target.link
        if not isinstance(target, Cell) or target.state == REJECTED:
            position.passed()
        elif target.state == FULFILLED:
            self._pass_value(position, target.value)
        elif target.state != HELD and target.import_id:
            if target.session is self._session:
                position.passed()  # the same wire keeps the order
            else:
                target.session.ping(position.passed, target.import_id)
        else:
            position.target = target
            target.enqueue(position)

    def _pass_value(self, position: Position, value: Any) -> None:
        cells = unsettled(value, _promise_cell)
        left = len(cells)
        if not left:
            position.passed()
            return

        def one_passed() -> None:
            nonlocal left
            left -= 1
            if not left:
                position.passed()

        for cell in cells:
            self._pass(Position(self._session, cell, one_passed))


def _promise_cell(value: Any) -> Cell | None:
    """The cell that a promise in a value rests on."""
    if type(value) is Promise and isinstance(value._base, Cell):
        return value._base
    return None
