"""What this side says of calls: each is encoded when it is made, and each answer when it is there.

A reference counts (rule 1) when the message that carries it is encoded whole, and not otherwise.
"""

from __future__ import annotations

from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from ._cell import FULFILLED, PULLED, Cell, Echo
from ._errors import LimitExceeded, Released
from ._limits import Limits
from ._log import get_logger
from ._long import Encoded
from ._messages import SEND, STREAM, At, Codec, Path
from ._outbox import Outbox
from ._seam import Seam
from ._stub import Stub, Target
from ._tables import Export

if TYPE_CHECKING:
    from ._session import Session

logger = get_logger("capnode_py.session")

_MAY_HOLD = (Target, MethodType, Stub)


class Outgoing:
    """The messages of one session that carry values.

    Args:
        session: whose tables they speak of.
        outbox: where they go.
        seam: makes references of what is no plain data.

    Attributes:
        max_message: how long a message may be, once the other side's hello has said so.
        max_unsent: how many bytes may wait, before a call raises.
    """

    def __init__(
        self, session: Session, codec: Codec, outbox: Outbox, seam: Seam, limits: Limits
    ) -> None:
        self._session = session
        self._codec = codec
        self._outbox = outbox
        self._seam = seam
        self._to_ref = seam.to_ref
        self._imports = session.imports
        self._held = session.imports.entries
        self._exports = session.exports
        self._uncommitted = session.exports.uncommitted
        self.max_unsent = limits.max_unsent
        self.max_message = min(limits.max_frame, session.traits.max_message)

    def call(self, target: At, path: Path, args: Any, kwargs: Any) -> Cell:
        """A call on an import, or on what a cap_id stands for: the cell of its question.

        Raises:
            CannotPass, LimitExceeded, Released: nothing was sent.
        """
        session = self._session
        if session.error is not None or session.said_bye:
            return session.ended_cell()

        mark = len(self._uncommitted)
        message = self.encode(mark, target, path, args, kwargs)
        return self.made(mark, message, path)

    def made(self, mark: int, message: Encoded, path: Path) -> Cell:
        """A call has been encoded: the cell of its question."""
        imports = self._imports
        imports.last_question = id = imports.last_question + 1
        cell = Cell(self._session, id, path)
        self._outbox.add(message, imports.enter_question(cell))
        if self._uncommitted:
            self._commit(mark)
        return cell

    def send(self, target: int, path: Path, args: Any, kwargs: Any) -> None:
        """A one-way call on an import.

        Raises:
            CannotPass, LimitExceeded, Released: nothing was sent.
        """
        session = self._session
        if session.error is not None or session.said_bye:  # it has waited for a promise until now
            logger.debug("a one-way call was made too late to be sent: %r", path)
            return
        if not session.traits.one_way:
            self.call(target, path, args, kwargs)  # dropped at once: a push and a release
            return
        mark = len(self._uncommitted)
        message = self.encode(mark, target, path, args, kwargs)
        self._outbox.add(self._codec.word(message, SEND))
        if self._uncommitted:
            self._commit(mark)

    def echo(self, promise: int | None) -> Cell:
        """Have the other side send back a value: that of a promise of theirs, by its id, or None.
        It keeps nothing of it, and nothing is to be released."""
        session = self._session
        if session.error is not None:
            return session.ended_cell()
        message: Encoded
        if promise is None:
            message = self._codec.value(None, self._to_ref)
        else:
            message = self._codec.call(promise, (), None, None, self._to_ref)
        cell = Echo(session)
        cell.pulled = PULLED
        self._imports.add_question(cell).received = 0
        self._outbox.add(self._codec.word(message, STREAM))
        return cell

    def control(self, word: int, *fields: Any) -> None:
        """A message without values."""
        self._outbox.add(self._codec.control(word, *fields))

    def outcome(self, id: int, cell: Cell) -> None:
        """What an answer or a promise of ours has come to."""
        if cell.state == FULFILLED:
            self.value(id, cell.value)
            return
        message = self._codec.reject(id, cell.value)
        if len(message) > self.max_message:
            message = self._codec.reject(id, self._too_long(message))
        self._outbox.add(message)

    def value(self, id: int, value: Any) -> None:
        """The value of an answer or a promise goes out, or why it cannot."""
        if self._seam.resolved_paths:
            value = self._seam.as_resolved(id, value)
        mark = len(self._uncommitted)
        try:
            message = self._codec.resolve(id, value, self._to_ref)
            if len(message) > self.max_message:
                raise self._too_long(message)
        except Exception as error:  # noqa: BLE001 - rule 8: every call is answered
            self._seam.reads.clear()
            self._exports.rollback(mark)
            message = self._codec.reject(id, error)
        self._outbox.add(message)
        if self._uncommitted:
            if self._seam.reads:
                self._exports.revise(id, self._seam.announced(value))
            self._commit(mark)

    def encode(self, mark: int, target: At, path: Path, args: Any, kwargs: Any) -> Encoded:
        """A call as a message; what it exports is not committed yet.

        Args:
            mark: how much was uncommitted before.

        Raises:
            CannotPass, LimitExceeded, Released: it was rolled back.
        """
        if target not in self._held and type(target) is int:
            raise Released(
                "this stub was given up here, by dealloc or by the end of its with block"
            )
        unsent = self._session.unsent + self._outbox.size
        if unsent > self.max_unsent:
            raise LimitExceeded(
                f"{unsent} bytes wait to be sent, over the limit of {self.max_unsent} "
                "(Limits.max_unsent): await peer.drain() between calls"
            )
        try:
            message = self._codec.call(target, path, args, kwargs, self._to_ref)
            if len(message) > self.max_message:
                raise self._too_long(message)
        except BaseException:
            self._exports.rollback(mark)
            self._seam.reads.clear()
            raise
        return message

    def _too_long(self, message: Encoded) -> LimitExceeded:
        return LimitExceeded(
            f"a message of {len(message)} bytes, where the other side takes at most "
            f"{self.max_message} (its Limits.max_frame): send it in parts"
        )

    def _commit(self, mark: int) -> None:
        """The message is out: promises that it announced are resolved behind it."""
        if not mark:  # else it is a read for the sake of another message
            self._seam.reads.clear()
        sent = self._uncommitted[mark:]
        del self._uncommitted[mark:]
        for export in sent:
            if export.announced:
                continue
            export.announced = True
            value = export.value
            if type(value) is FunctionType:  # a callback
                continue
            if isinstance(value, Cell):
                value.pull()
                value.watch(partial(self._resolve, export))
            elif isinstance(value, _MAY_HOLD):
                self._session.holding.hold(export.id, value)

    def _resolve(self, export: Export, cell: Cell) -> None:
        if self._exports.entries.get(export.id) is export:
            self._exports.told(export)
            self.outcome(export.id, cell)
