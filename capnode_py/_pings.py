"""Pings: positions in the stream. What was sent before one, the other side has handled when its
pong is here; and one that names a promise stands behind the calls on it, at every hop (rule 5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ._cell import Cell
from ._messages import PING
from ._outbox import Outbox
from ._router import Router

if TYPE_CHECKING:
    from ._outgoing import Outgoing
    from ._session import Session


class Pings:
    """Those of one session.

    Attributes:
        pending: by nonce, what to call when the pong comes.
    """

    def __init__(
        self, session: Session, outbox: Outbox, outgoing: Outgoing, router: Router
    ) -> None:
        self._session = session
        self._outbox = outbox
        self._outgoing = outgoing
        self._router = router
        self._last_nonce = 0
        self._reading_back: set[Cell] = set()
        self._of_peers: set[Cell] = set()
        self.pending: dict[int, Callable[[], None]] = {}

    def ping(
        self, passed: Callable[[], None], target: int | None = None, nonce: int | None = None
    ) -> None:
        """Call `passed` when the pong comes; with an id, a position on that promise."""
        where: tuple[int, ...] = ()
        if target is not None:
            where = (target,)
            passed = partial(self._router.behind, passed)  # the calls before the pong may be kept
        self._outbox.hurry()  # what was given up before the ping is gone when its pong comes
        if not self._session.traits.ping:
            self._read_back(passed, target)
            return
        if nonce is None:
            self._last_nonce = nonce = self._last_nonce + 1
        self.pending[nonce] = passed
        self._outgoing.control(PING, nonce, *where)

    def _read_back(self, passed: Callable[[], None], target: int | None) -> None:
        """A ping where there is no such word: what comes back stands behind all that the other side
        has sent on before."""
        cell = self._outgoing.echo(target)
        self._reading_back.add(cell)

        def read(cell: Cell) -> None:
            self._reading_back.discard(cell)
            if self._session.error is None:
                passed()

        cell.watch(read)

    def ponged(self, nonce: Any) -> bool:
        """The answer of a ping has come; False if there was no such ping."""
        passed = self.pending.pop(nonce, None) if type(nonce) is int else None
        if passed is not None:
            passed()
        return passed is not None

    def through(self, cell: Cell) -> None:
        """A liveness ping, whose pong fulfils `cell`."""
        self.ping(partial(cell.fulfil, None))
        self._of_peers.add(cell)
        cell.watch(self._of_peers.discard)

    def end(self, error: BaseException) -> None:
        """The session is over: no pong comes."""
        for cell in list(self._of_peers):
            cell.reject(error)
        self.pending.clear()
