"""What becomes of the calls that run on this side: what they gave, and that nobody wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ._cell import FULFILLED, Answer, Call, Cell
from ._errors import CannotPass, CapnodeError, Withdrawn, again, from_far, to_far
from ._log import get_logger
from ._messages import Path
from ._reach import ATOMS
from ._router import Router
from ._seam import Seam, as_cell
from ._stub import Promise
from ._tables import ExportTable, Running

if TYPE_CHECKING:
    from ._holding import Holding
    from ._outgoing import Outgoing
    from ._session import Session

logger = get_logger("capnode_py.session")


class Outcomes:
    """Those of one session.

    Args:
        stop: what `Driver.stop` is.
    """

    def __init__(
        self,
        session: Session,
        exports: ExportTable,
        seam: Seam,
        router: Router,
        outgoing: Outgoing,
        holding: Holding,
        stop: Callable[[Call], None],
    ) -> None:
        self._session = session
        self._exports = exports
        self._localize = seam.localize
        self._router = router
        self._outgoing = outgoing
        self._holding = holding
        self._stop = stop

    def finish(self, call: Call, result: Any) -> None:
        """The driver tells the outcome of a call: what the handler returned."""
        reply, call.reply = call.reply, None  # no cycle: what the call holds is let go at once
        if reply is None:
            return

        if type(result) is Promise:
            try:
                reply.follow(as_cell(result._base, result._path))
            except CapnodeError as error:
                reply.reject(error)
        elif type(reply) is Answer:
            if reply.state < FULFILLED:
                reply.settle(FULFILLED, result)
        elif type(result) in ATOMS:
            reply.fulfil(result)
        else:
            self._fulfil_locally(reply, result)

    def _fulfil_locally(self, reply: Cell, result: Any) -> None:
        """A call between two parts of this side: its result passes as on the wire."""

        def filled(error: BaseException | None, *, ours: bool) -> None:
            if error is None:
                reply.fulfil(copy[0])
            else:
                reply.reject(error)

        try:
            copy, holes = self._localize([result])
        except Exception as error:  # noqa: BLE001 - rule 8: every call is answered
            if isinstance(error, CannotPass):
                error.root = "the result"
                del error.path[0]
            reply.reject(error)
        else:
            self._router.fill(holes, filled, reply)

    def fail(self, call: Call, error: BaseException) -> None:
        """The driver tells the outcome of a call: what the handler raised."""
        reply, call.reply = call.reply, None  # the traceback holds the call
        if reply is None:
            logger.debug("a one-way call failed: %r", call, exc_info=error)
            return
        if isinstance(reply, Answer):
            reply.failed_here = call.started
            reply.reject(error)
            if not self._is_held(reply):
                self._router.forget_error(reply)
                if call.started and not call.cancelled:
                    logger.debug("a call failed, and nobody looked: %r", call, exc_info=error)
        else:
            reply.reject(self._as_from_afar(error) if call.started else error)

    def _is_held(self, answer: Answer) -> bool:
        return self._session.error is not None or self._exports.entries.get(answer.id) is answer

    def _as_from_afar(self, error: BaseException) -> BaseException:
        """The error of a handler of ours, as one who called it through a promise is to see it."""
        if self._session.error is not None and not isinstance(error, Exception):
            return again(self._session.error)  # it was stopped because the session is over
        return from_far(to_far(error, with_traceback=True), where="this process")

    def in_full(self, id: int, running: Running) -> Call:
        """A usual call that turns out to be none, as the general way knows it."""
        answer = self._exports.in_full(id, running)
        if self._exports.entries.get(id) is running:  # else released by now, or the session is over
            self._exports.entries[id] = answer
        return cast(Call, answer.task)

    def redirect(self, call: Call, target: Any, path: Path) -> None:
        """The driver followed the path of a call to a far reference."""
        if call.args is None and not path:  # a property that is a far reference: it is the value
            self.finish(call, target)
            return
        call.target, call.path = target, path
        self._router.route(call)

    def keep(self, answer: Answer) -> None:
        """The value of an answer is here, and was not asked for: calls go through it."""
        if self._is_held(answer):
            self._holding.hold(answer.id, answer.value)

    def answer(self, answer: Answer) -> None:
        """An answer that was asked for is settled."""
        id = answer.id
        if self._exports.entries.get(id) is answer:
            if answer.state == FULFILLED:
                self._outgoing.value(id, answer.value)
            else:
                self._outgoing.outcome(id, answer)
            if answer.once:
                self._session.incoming.released([id])

    def withdraw(self, cell: Cell, why: BaseException | None = None) -> None:
        """Nobody on the other side wants this value: cancel its call if nothing depends on it."""
        if cell.state >= FULFILLED:
            return
        if cell.has_dependents():
            cell.withdrawn = True
            return

        if cell.link is not None:
            link = cell.unlink()
            if not link.has_dependents():
                link.session.cancel(link)
            if why is None and not isinstance(cell, Answer):
                cell.follow(link)  # who awaits it gets what the handler then makes of it
            else:
                cell.reject(why or Withdrawn())
        elif cell.task is not None and not cell.task.cancelled:
            call = cell.task
            call.cancelled = True
            if call.started:
                self._stop(call)
            else:
                gone = why or Withdrawn()
                cell.reject(gone if isinstance(cell, Answer) else self._as_from_afar(gone))
                self._forget(call)

    def _forget(self, call: Call) -> None:
        """A call that will not be started depends on nothing any more, and holds nothing."""
        waited = [call.target]
        if call.waiting is not None:
            waited += self._router.forget(call.waiting)
        call.args = call.kwargs = call.holes = call.waiting = call.target = None
        for cell in waited:
            if isinstance(cell, Cell) and cell.withdrawn:
                self.withdraw(cell)
