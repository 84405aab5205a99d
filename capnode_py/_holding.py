"""What holders and the held want to know: that nobody holds it any more, and that it is broken."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from ._cell import REJECTED, Cell
from ._errors import PeerClosed, Released
from ._messages import Codec
from ._outbox import Outbox
from ._reach import held_targets
from ._seam import Host
from ._stub import GIVEN_UP, Breakable, Stub, Target, Tell
from ._tables import Export

if TYPE_CHECKING:
    from ._driver import Driver
    from ._session import Session


class Holding:
    """Of one session: targets of ours with a `_released`, exports that may break, stubs that do.

    Attributes:
        targets: those with a `_released`, by the entry that holds them.
    """

    def __init__(
        self,
        session: Session,
        driver: Driver,
        codec: Codec,
        outbox: Outbox,
        host: Host,
        get_index: Callable[[], Any],
    ) -> None:
        self._session = session
        self._driver = driver
        self._codec = codec
        self._outbox = outbox
        self._host = host
        self._get_index = get_index
        self._key = object()  # holds nothing: a connection that nobody holds is garbage
        self.targets: dict[int, list[Target]] = {}

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Nobody has closed the connection, or else it would hold nothing any more. It is ended
        where it lived; if that is gone too, it just lets go, and no hook runs."""
        if self.targets and not _finalizing() and not self._driver.abandoned(self._abandoned):
            self._host.gone(
                [(target, (self._key, id)) for id in self.targets for target in self.targets[id]]
            )

    def _abandoned(self) -> None:
        self._session.abort(PeerClosed("nobody holds this connection any more"))

    def hold_index(self) -> None:
        """The connection is there: the other side holds our index."""
        self.hold(0, self._get_index())

    def hold(self, id: int, value: Any) -> None:
        """The other side holds what is in `value`, by the entry `id`."""
        if id <= 0 and isinstance(value, Breakable) and self._session.traits.breaks:
            value._watch(self, partial(_tell_broken, id))
        targets = held_targets(value)
        if targets:
            self.targets[id] = targets
            for target in targets:
                self._host.hold(target, (self._key, id))

    def let_go(self, id: int) -> None:
        """The entry `id` is gone."""
        for target in self.targets.pop(id, ()):
            if self._host.let_go(target, (self._key, id)):
                self._driver.tell(target._released)  # type: ignore[attr-defined]

    def let_go_of(self, ids: Iterable[int]) -> None:
        """These entries are gone."""
        for id in ids:
            self.let_go(id)

    def break_soon(self, id: int, error: BaseException) -> None:
        """An object of ours is broken; this may be another thread."""
        self._session.bring_soon(partial(self._break_export, id, error))

    def _break_export(self, id: int, error: BaseException) -> None:
        """Who holds it is told, without a call."""
        exports = self._session.exports
        entry = exports.entries.get(id)
        if self._session.error is not None or type(entry) is not Export:
            return
        value = self._get_index() if id == 0 else entry.value
        if isinstance(value, Breakable) and value._broken is not None:  # else another index
            exports.told(entry)
            self._outbox.add(self._codec.reject(id, error))

    def on_broken(self, stub: Stub, owner: object, tell: Tell) -> None:
        """Call ``tell(owner, error)`` once, when `stub` is broken or the session is over.

        Raises:
            Released: it was given up here.
        """
        if stub._id == GIVEN_UP:
            raise Released("this stub was given up here, and cannot break any more")
        cell = None
        if stub._id > 0 and stub._broken is None:
            # It stands on a question, of which no break is told: watch the object itself.
            cell = self._session.outgoing.call(stub._id, (), None, None)
            cell.pull()
            cell.watch(partial(_watch_answer, weakref.ref(stub)))
        stub._keep(owner, cell)
        stub._watch(owner, tell)


def _tell_broken(id: int, holding: Holding, error: BaseException) -> None:
    holding.break_soon(id, error)


def _watch_answer(waiting: weakref.ref[Stub], cell: Cell) -> None:
    """What a reconstructed stub stands for is known: they break together."""
    stub = waiting()
    if stub is None:
        return
    if cell.state == REJECTED:
        stub._break(cell.value)
    elif isinstance(cell.value, Breakable):
        cell.value._watch(stub, Breakable._break)
