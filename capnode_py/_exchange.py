"""A call and its answer, alone on their wire: most of what there is where callers block.

Here, such a call needs no cell and no entry of the import table: only its id is taken. If what
comes next is its answer and no more, the value is all that there ever was of it. If anything else
comes first, or the wait is given up, the question is entered after all, and goes the general way.
There, it is found, run and answered without a queue in between.

This saves both sides three quarters of the work. It is no second way of doing it: whatever is not
just this falls to the general way before anything has happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _tables
from ._cell import FULFILLED, PULLED, Cell
from ._errors import ProtocolError, during
from ._incoming import Incoming
from ._messages import CALL, RELEASE, UNUSUAL, Codec, Path
from ._outbox import WAITS_UP_TO, Outbox
from ._outgoing import Outgoing
from ._reach import ATOMS, plain_function
from ._seam import Seam
from ._stub import Promise
from ._tables import Export, Import, Running

if TYPE_CHECKING:
    from ._session import Session


LEAST = 256
"""The other side takes a frame of so many bytes, at least, if it is to get one here."""


class Exchange:
    """Those of one session.

    Attributes:
        word: whose frame `data` seems to be: CALL, RESOLVE, RELEASE for an answer with something
            behind it, or None. Only a look, which says what is worth to be tried.
        open: both sides have said hello, neither has said bye, and the dialect writes and reads
            messages that are alone. What is to be sent must fit the other side's limits.
        outbox: what waits to leave.
    """

    def __init__(
        self,
        session: Session,
        codec: Codec,
        outbox: Outbox,
        outgoing: Outgoing,
        incoming: Incoming,
        seam: Seam,
    ) -> None:
        self._session = session
        self.open = False
        self._lone: Any = codec.lone
        self.word: Callable[[bytes], int | None] = (
            _no_word if codec.lone is None else codec.lone.word
        )
        self.outbox = outbox
        self._outgoing = outgoing
        self._incoming = incoming
        self._imports = session.imports
        self._exports = session.exports
        self._max_unsent = outgoing.max_unsent
        self._note = session._note
        self._resolved_paths = seam.resolved_paths
        self._get_index = seam.get_index
        self._to_ref = seam.to_ref

    def look(self) -> None:
        """Something has changed: may it be used?"""
        session = self._session
        self.open = (
            self._lone is not None
            and session.remote is not None
            and session.error is None
            and not session.said_bye
            and not self._incoming.heard_bye
            and self._outgoing.max_message >= LEAST
        )
        if self.open:
            self._lone.limit(self._outgoing.max_message)

    # The side that calls.

    def begin(self, target: int, path: Path, args: Any, kwargs: Any) -> Cell:
        """A call on an import, where callers do not block: the cell of its question. If it is
        alone when the turn ends, its frame is written already; if not, it saves the others a third.

        Raises:
            CannotPass, LimitExceeded, Released: nothing was sent.
        """
        outbox = self.outbox
        exports = self._exports
        session = self._session
        behind = outbox.size
        if (
            kwargs
            or not self.open
            or behind > self._max_unsent
            or session.unsent
            or exports.uncommitted
            or type(args) is not tuple
            or _tables.trace is not None
        ):
            return self._outgoing.call(target, path, args, kwargs)
        frame: bytes | None = self._lone.write_call(target, path, args, self._to_ref, behind)
        if exports.uncommitted:
            self._commit(frame is not None)
        if frame is None:
            return self._outgoing.call(target, path, args, kwargs)
        imports = self._imports
        imports.last_question = id = imports.last_question + 1
        cell = Cell(session, id, path)
        imports.entries[id] = question = Import(cell, self._note)
        question.id = id
        question.received = 1
        if behind:
            outbox.add(frame, question)
        else:
            outbox.add_lone(frame, question)
        return cell

    def ask(self, target: int, path: Path, args: Any, kwargs: Any) -> Any:
        """A call on an import, when nothing waits to be sent: the bytes that are to be written now,
        where the last question is its own; or the cell of its question, if it is none for this.

        Raises:
            CannotPass, LimitExceeded, Released: nothing was sent.
        """
        outbox = self.outbox
        if not self.open or self._session.unsent or _tables.trace is not None:
            return self._outgoing.call(target, path, args, kwargs)
        if type(args) is tuple and not kwargs and outbox.due < WAITS_UP_TO:
            frame: bytes | None = self._lone.write_call(target, path, args, self._to_ref)
            if self._exports.uncommitted:
                self._commit(frame is not None)
            if frame is not None:
                outbox.messages += 1
                outbox.bytes += len(frame)
                self._imports.last_question += 1
                return frame

        message = self._outgoing.encode(0, target, path, args, kwargs)
        # There are references in it; or a value that was copied has made calls, which go first; or
        # it is long.
        if self._exports.uncommitted or outbox.size or type(message) is not bytes:
            return self._outgoing.made(0, message, path)
        self._imports.last_question += 1
        return outbox.alone(message)

    def _commit(self, sent: bool) -> None:  # noqa: FBT001 - its two callers pass what they see
        """Functions were exported: they have gone out, or the general way will do it again."""
        exports = self._exports
        if sent:
            for export in exports.uncommitted:
                export.announced = True
            exports.uncommitted.clear()
        else:
            exports.rollback(0)

    def hear(self, id: int, data: bytes) -> Any:
        """The value of the answer, if that is all that has come; else UNUSUAL."""
        value = self._lone.read_answer(data, id)
        if value is UNUSUAL:
            return self._hear_freeing(id, data) if self.word(data) == RELEASE else UNUSUAL
        size = len(data)
        self._session.bytes_received += size
        self._incoming.messages += 1
        self.outbox.release_plain(id, size)
        return value

    def _hear_freeing(self, id: int, data: bytes) -> Any:
        """The value of an answer behind which callbacks are released that the call has brought.

        Mostly it is the last one that was lent, which has been called once. What this saves is to
        read, and to doubt, what is known.
        """
        exports = self._exports
        entries = exports.entries
        answer, lent = exports.last_answer, exports.last_export
        export = entries.get(lent)
        if (
            type(export) is not Export
            or export.sent != 1
            or type(entries.get(answer)) is not tuple
            or self._resolved_paths
            or self._session.holding.targets
        ):
            return self._hear_both(id, data)
        value = self._lone.read_answer_freeing(data, id, answer, lent)
        if value is UNUSUAL:
            return self._hear_both(id, data)
        size = len(data)
        self._session.bytes_received += size
        self._incoming.messages += 2
        self.outbox.release_plain(id, size // 2)
        del entries[answer]
        exports.give_up(export)
        return value

    def _hear_both(self, id: int, data: bytes) -> Any:
        """The same, whatever is released; UNUSUAL, if the other side cannot release this, which the
        general way will say, or if it is something else."""
        both = self._lone.read_answer_and(data, id)
        if both is None:
            return UNUSUAL
        value, answers, reference = both
        entries = self._exports.entries
        export = entries.get(reference[0])
        if type(export) is not Export or not reference[0] < 0 < reference[1] <= export.sent:
            return UNUSUAL
        for answer in answers:
            if answer < 1 or answer not in entries:
                return UNUSUAL
        if len(answers) > 1 and len(set(answers)) < len(answers):
            return UNUSUAL
        size = len(data)
        self._session.bytes_received += size
        self._incoming.messages += 2
        self.outbox.release_plain(id, size // 2)
        self._incoming.release([RELEASE, answers, [reference]])
        return value

    def settle(self, data: bytes, word: int | None = None) -> bool:
        """Settle the last question, if it is still held, and `data` is its answer and no more; else
        nothing has happened. `word`: what was seen of `data`, if it was looked at."""
        imports = self._imports
        id = imports.last_question
        entry = imports.entries.get(id)
        cell = None if entry is None else entry()
        if type(cell) is not Cell or self._incoming.resolved or not self.open:
            return False
        value = self.hear(id, data) if word != RELEASE else self._hear_freeing(id, data)
        if value is UNUSUAL:
            return False
        del imports.entries[id]
        if cell.state < FULFILLED:  # else it was given up here
            cell.settle(FULFILLED, value)
        return True

    def enter(self, id: int, path: Path) -> Cell:
        """Enter its question after all."""
        session = self._session
        cell = Cell(session, id, path)
        cell.pulled = PULLED
        if session.error is None:
            self._imports.enter_question(cell)
        else:
            cell.import_id = 0
            cell.reject(during(session.error, path))
        return cell

    # The side that is called.

    def take(self, data: bytes) -> Running | None:
        """What is to be run, if `data` is one usual call (`Incoming._usual_call`) on an object, and
        nothing is under way that its answer would have to wait for; it is entered as the last
        answer. None: nothing has happened."""
        session = self._session
        exports = self._exports
        entries = exports.entries
        if not self.open or session.unsent or self.outbox.size or len(entries) >= exports.max:
            return None
        if _tables.trace is not None:  # leaks are hunted, and that takes more steps
            return None
        read = self._lone.read_call(data)
        if read is None:
            return None
        target, path, args, objects = read
        entry = entries.get(target)
        if type(entry) is not Export:
            return None
        value = entry.value if target else self._get_index()
        function = plain_function(value, path)
        if function is None:
            return None
        if objects:
            try:
                self._incoming.taken(args)
            except ProtocolError:  # as the general way will find, and say
                return None

        session.bytes_received += len(data)
        self._incoming.messages += 1
        exports.last_answer = id = exports.last_answer + 1
        entries[id] = running = [function, value, [CALL, target, path, args], None]
        return running

    def reply(self, id: int, running: Running, result: Any) -> bytes | None:
        """The function has returned: what is to be written now; None if that waits for a flush."""
        entries = self._exports.entries
        if entries.get(id) is not running or type(result) is Promise:
            self._session.finish(self._session.in_full(id, running), result)
            return None
        entries[id] = (result, PULLED)
        running[2][3] = ()  # callbacks among them, which it does not keep, are released with this
        session = self._session
        if session.noted:
            session.drain_notes()
        outbox = self.outbox
        if not outbox.size and not session.unsent:
            frame: bytes | None
            if outbox.due >= WAITS_UP_TO:
                frame = self._lone.write_answer_and(id, result, *outbox.riding())
                if frame is not None:
                    outbox.rode()
                    outbox.messages += 2
                    outbox.bytes += len(frame)
                    return frame
            frame = self._lone.write_answer(id, result)
            if frame is not None:
                if outbox.due >= WAITS_UP_TO:
                    message = self._lone.message(frame)
                    return outbox.alone(message)
                outbox.messages += 1
                outbox.bytes += len(frame)
                return frame
        self._outgoing.value(id, result)
        return None

    def finish(self, id: int, running: Running, result: Any) -> None:
        """What the function has returned was awaited, and gave this. It leaves as the turn ends."""
        entries = self._exports.entries
        session = self._session
        outbox = self.outbox
        if (
            outbox.size
            or not self.open
            or session.unsent
            or running[2][0] != CALL
            or type(result) not in ATOMS
            or entries.get(id) is not running
        ):
            self._incoming.ran(id, running, result)
            return
        entries[id] = (result, PULLED)
        running[2][3] = ()  # callbacks among them, which it does not keep, are released with this
        if session.noted:
            session.drain_notes()
        frame: bytes | None
        if outbox.due >= WAITS_UP_TO:
            frame = self._lone.write_answer_and(id, result, *outbox.riding())
            if frame is not None:
                outbox.rode()
                outbox.add_lone(frame, None, 2)
                return
        else:
            frame = self._lone.write_answer(id, result)
            if frame is not None:
                outbox.add_lone(frame)
                return
        self._outgoing.value(id, result)


def _no_word(_data: bytes) -> None:
    """Of a dialect in which nothing comes alone."""
