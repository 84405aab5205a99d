"""Promises that lead to each other over the wire: what keeps calls from going round for ever.

If a host's promise becomes one of another host, and that becomes the first again, neither sees the
whole. What is called through it goes round, and if nobody waits for an answer, nothing counts how
often. So who passes on very many calls by one promise that is not settled sends a probe that way: a
ping, whose nonce is random and large. A host hands it on under the same nonce for as long as the
promise that it names leads on. If it comes back, to a promise that leads to where it was sent, the
two are a circle, and are rejected.

A promise that depends on a call through itself is no circle: each call that comes back is a new
one, for which the one before waits. Of those that are sent back where they came from, only so many
may wait.

The idea of the probe is that of Chandy, Misra and Haas for deadlocks.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from ._cell import PENDING, Answer, Call, Cell
from ._errors import CapnodeError, LimitExceeded
from ._limits import Limits

if TYPE_CHECKING:
    from ._session import Session

PROBE: Final = 1 << 62
"""Nonces from here on are probes."""

MANY: Final = 1000
"""Calls through one promise, each so many of which send a probe."""

_MOST_SEEN: Final = 100  # probes that one promise hands on

_probes: WeakValueDictionary[int, Cell] = WeakValueDictionary()
"""Those of this process that are under way, and the promise that each was sent to: it may come back
over another connection."""


class Circles:
    """The promises of the other side through which calls of others go on to it.

    Args:
        session: that of the connection over which they go on.
    """

    def __init__(self, session: Session, limits: Limits) -> None:
        self._session = session
        self._most = limits.max_sent_back
        self._counts: WeakKeyDictionary[Cell, int] = WeakKeyDictionary()
        self._seen: WeakKeyDictionary[Cell, set[int]] = WeakKeyDictionary()
        self._sent_back: WeakSet[Answer] = WeakSet()

    def pass_by(self, call: Call, cell: Cell) -> None:
        """A call goes on through a promise of the other side.

        Raises:
            LimitExceeded: it came from there, as did too many others that wait.
        """
        count = self._counts[cell] = self._counts.get(cell, 0) + 1
        if count % MANY == 0:
            nonce = PROBE + int.from_bytes(os.urandom(7), "big")
            _probes[nonce] = cell
            self._send(nonce, cell)
        reply = call.reply
        if type(reply) is Answer and reply.session is self._session:
            if len(self._sent_back) >= self._most:
                self._sent_back = WeakSet(a for a in self._sent_back if not a.settled)
            if len(self._sent_back) >= self._most:
                raise LimitExceeded(
                    f"{self._most} calls of the other side wait for promises of its own, to which "
                    "they were sent back (Limits.max_sent_back): does a promise depend on a call "
                    "through itself?"
                )
            self._sent_back.add(reply)

    def probed(self, nonce: int, value: Any) -> None:
        """A probe has come by way of `value`, which is an entry of ours."""
        while isinstance(value, Cell) and value.state == PENDING and value.link is not None:
            value = value.link
        if not isinstance(value, Cell) or value.state != PENDING or not value.import_id:
            return
        session: Any = value.session
        if _probes.get(nonce) is value:
            session.give_up(value, CapnodeError("a promise that waits for itself"))
        elif session.is_here():
            session.circles.hand_on(nonce, value)

    def hand_on(self, nonce: int, cell: Cell) -> None:
        """Let a probe go the way of the calls, once."""
        seen = self._seen.setdefault(cell, set())
        if nonce not in seen and len(seen) < _MOST_SEEN:
            seen.add(nonce)
            self._send(nonce, cell)

    def _send(self, nonce: int, cell: Cell) -> None:
        if self._session.error is None and self._session.traits.ping:
            self._session.ping(_nothing, cell.import_id, nonce)


def _nothing() -> None:
    pass
