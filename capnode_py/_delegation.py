"""The cap_ids of one connection: of what is held there, and of what is reconstructed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._cap_ids import PLACE_SIZE, CapId, Parts, Unknown, of_export, parse, proof_of_export
from ._cell import Cell
from ._errors import CapnodeError, PeerClosed, Released, again
from ._messages import Hello
from ._seam import Seam
from ._stub import CLOSING, GIVEN_UP, Stub
from ._tables import Export

if TYPE_CHECKING:
    from ._session import Session


class Delegation:
    """See the module.

    Args:
        session: whose references they name.
        hello: ours, whose secret the other side makes cap_ids with.
        seam: knows which stub a lasting cap_id stands for.
        get_index: what is offered on this connection, live.
    """

    def __init__(
        self, session: Session, hello: Hello, seam: Seam, get_index: Callable[[], Any]
    ) -> None:
        self._session = session
        self._hello = hello
        self._seam = seam
        self._get_index = get_index

    def cap_id(self, stub: Stub) -> str:
        """The text that stands for a stub: see `Stub.cap_id`."""
        session = self._session
        if stub._id == GIVEN_UP:
            raise Released("this stub was given up here, and its cap_id with it")
        if stub._cap_id is not None:
            return stub._cap_id
        if session.error is not None:
            raise again(session.error)
        if not session.traits.cap_ids:
            raise CapnodeError(f"{session.where} has no cap_ids: its dialect has no word for them")
        if session.remote is None:  # on a Remote, whose transport is still to come
            raise CapnodeError(
                f"a cap_id needs the hello of {session.where}, which has not come: "
                "await peer.ping()"
            )
        if len(session.remote.session_id) != PLACE_SIZE or not session.remote.secret:
            raise CapnodeError(f"{session.where} has no cap_ids")
        return of_export(session.remote.session_id, session.remote.secret, stub._id)

    def reconstruct(self, cap_id: str) -> Stub:
        """A stub of what a cap_id stands for over there. It is the stub of a question, which reads
        that object, and whose answer is never asked for; calls on it are calls on that answer.

        Raises:
            CapnodeError: there are no cap_ids here, or the connection is over.
        """
        session = self._session
        if session.error is not None or session.said_bye:
            raise again(session.error or PeerClosed(CLOSING))
        if not session.traits.cap_ids:
            raise CapnodeError(f"{session.where} has no cap_ids: its dialect has no word for them")
        held = self._seam.named(cap_id) or self._held_by(cap_id)
        if held is None:
            held = Stub(session, session.outgoing.call(cap_id, (), None, None).import_id)
            session.imports.adopt(held)
            self._seam.name(held, CapId(cap_id))
        return held

    def _held_by(self, cap_id: str) -> Stub | None:
        """The stub that we hold on this very connection, if the cap_id is of one."""
        try:
            parts = parse(cap_id)
        except Unknown:
            return None
        if self._session.remote is None:  # nothing has come
            return None
        entry = self._session.imports.entries.get(parts.id)
        stub = None if entry is None else entry()
        if type(stub) is Stub and stub._cap_id is None and stub.cap_id == cap_id:
            return stub
        return None

    def find(self, parts: Parts) -> Any:
        """What a cap_id that was made of this connection stands for.

        Raises:
            Unknown: it was not, or it stands for nothing any more.
        """
        entry = self._session.exports.entries.get(parts.id)
        proof = proof_of_export(self._hello.session_id, self._hello.secret, parts.id)
        if parts.proves(proof) and self._session.error is None and type(entry) is Export:
            value = self._get_index() if parts.id == 0 else entry.value
            if not isinstance(value, Cell):
                return value
        raise Unknown
