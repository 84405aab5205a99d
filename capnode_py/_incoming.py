"""What each word of the other side does: one method a word, one message at a time.

Everything that comes is checked here, and what no correct peer sends is a `RemoteProtocolError`,
which ends the session: ids are counted on both sides, so there is no going on from a doubt.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from . import _tables
from ._cap_ids import redacted
from ._cell import FULFILLED, PULLED, UNDECIDED, Answer, Call, Cell, Position
from ._circles import PROBE
from ._errors import LocalProtocolError, PeerLost, RemoteError, RemoteProtocolError
from ._log import get_logger
from ._long import Frame
from ._messages import (
    ABORT,
    BYE,
    CALL,
    CANCEL,
    PING,
    PONG,
    PULL,
    PUSH,
    REJECT,
    RELEASE,
    RESOLVE,
    SEND,
    STREAM,
    VALUE,
    WORDS,
    Codec,
    Mine,
    Recording,
)
from ._payload import Holes, Payload, bad_payload
from ._reach import ATOMS, plain_function
from ._router import Router
from ._seam import Seam
from ._stub import Promise, Stub
from ._tables import Export, Running

if TYPE_CHECKING:
    from ._driver import Driver
    from ._session import Session

logger = get_logger("capnode_py.session")

_LEAVES = frozenset((int, str, type(None), bool, float, bytes))
_NONE: frozenset[int] = frozenset()
_word_of = itemgetter(0)

TOLD = object()
"""In place of what a handler returned: its outcome is told in the general way."""
_ITS_OWN_FAULT = ("LocalProtocolError", "PeerClosed")
"""The names of errors that abort a session without a fault of the one who is told."""


class Incoming:
    """The messages that come to one session.

    Args:
        session: whose tables they speak of.
        codec: makes messages of frames.
        seam: swaps the references in their payloads.
        router: takes the calls among them.
        driver: runs the usual ones at once.
        high_water: while more bytes than these wait to be sent, nothing is started.

    Attributes:
        last: while it is handled, the last message of a read, but for a release behind it
            (`finish` handles that before its turn). Then nothing is left to do here, and a handler
            that it starts may wait, and have more read, under this.
        messages: how many have come.
        resolved: imports that have an outcome and are not released yet, with what still waits in
            its value.
        broken_ids: those that are broken.
        heard_bye: the other side makes no more calls.
    """

    def __init__(
        self,
        session: Session,
        codec: Codec,
        seam: Seam,
        router: Router,
        driver: Driver,
        high_water: int,
    ) -> None:
        self._session = session
        self._decode = codec.decode
        self.imports = self._imports = session.imports
        self._held = session.imports.entries
        self._release_plain = session.release_plain
        self._exports = session.exports
        self._seam = seam
        self._router = router
        self._get_index = seam.get_index
        self._driver = driver
        self._run = driver.run
        # Where handlers wait in place, usual calls queue behind those that wait for their start.
        self._starting = () if driver.waits_in_place else driver.starting
        self._kept = router.kept
        self._backlog = session.backlog
        self._high_water = high_water
        self._make_stub = partial(Stub, session)
        self._answer_with = session.outgoing.value
        self._marked = False  # the frame in hand holds references
        self._share = 0  # its bytes, for each of its messages
        self._cancelled = _NONE  # the ids that it cancels
        self.resolved: dict[int, Holes | None] = {}
        self.broken_ids: set[int] = set()
        self.last: list[Any] | None = None
        self._behind: list[Any] | None = None
        self.messages = 0
        self.heard_bye = False
        self._words: dict[int, Callable[[list[Any]], None]] = {
            CALL: self._usual_call,
            PUSH: self._usual_call,
            PULL: self._pull,
            SEND: self._send,
            RESOLVE: self._resolve,
            REJECT: self._reject,
            RELEASE: self.release,
            CANCEL: self._cancel,
            PING: self._ping,
            PONG: self._pong,
            BYE: self._bye,
            ABORT: self._abort,
        }
        if session.traits.values:
            self._words[VALUE] = self._value
        if session.traits.streams:
            self._words[STREAM] = self._stream

    def frame(self, frame: Frame, last: bool) -> None:  # noqa: FBT001 - the session's
        """Handle the messages of a frame, strictly one by one; `last`: it ends what was read.

        Raises:
            RemoteProtocolError: no correct peer sends this.
        """
        messages, self._marked = self._decode(frame)
        count = len(messages)
        self.messages += count
        self._share = len(frame)
        if last or count != 1:
            self._look_ahead(messages, last)
        session = self._session
        for message in messages:
            try:
                word = message[0]
                handle = self._words[word]
            except (LookupError, TypeError):
                raise RemoteProtocolError(f"an unknown word: {_shorten(message)}") from None
            if type(word) is not int:  # True and 1.0 equal 1
                raise RemoteProtocolError(f"a word that is no integer: {_shorten(message)}")
            handle(message)
            if session.error is not None:
                return
        if last or count != 1:
            self.finish()
            self._cancelled = _NONE

    def _look_ahead(self, messages: list[list[Any]], last: bool) -> None:  # noqa: FBT001 - as above
        """What is to be known of a frame before its first message is handled."""
        if len(messages) != 1:
            self._share //= len(messages) or 1
            self._cancelled = _cancelled(messages)
        if last and messages:
            if len(messages) > 1 and _is_release(messages[-1]):
                self._behind = messages.pop()
            self.last = messages[-1]

    def finish(self) -> None:
        """The last message of a read is handled, or its function is found and may be run."""
        self.last = None
        if self._behind is not None:
            behind, self._behind = self._behind, None
            self.release(behind)

    def _usual_call(self, message: list[Any]) -> None:
        """A call of a plain function that is here, with all its arguments, while nothing is kept
        or waits for its start: it is run and answered without a `Call`, an `Answer` and a way
        between them, which saves two thirds of the work. All else goes the general way, `_call`."""
        if self._cancelled or len(message) != 4 or self.heard_bye:
            return self._call(message)
        _, target, path, args = message
        exports = self._exports
        entries = exports.entries
        entry = entries.get(target) if type(target) is int else None
        if type(entry) is Export:
            value = entry.value if target else self._get_index()
        elif type(entry) is tuple:
            value = entry[0]
        else:
            return self._call(message)
        if type(path) is not list or type(args) is not list or self._starting or self._kept:
            return self._call(message)
        function = plain_function(value, path)
        if function is None or len(entries) >= exports.max or self._backlog() > self._high_water:
            return self._call(message)
        if self._marked:
            payload = self.taken(args)
            if payload is not None and (payload.holes or payload.bad is not None):
                return self._call(message, payload)

        exports.last_answer = id = exports.last_answer + 1
        entries[id] = running = [function, value, message, None]
        if _tables.trace is not None:
            _tables.trace(exports, id)
        result = self._run(id, running)
        if result is not TOLD:
            self.ran(id, running, result)
        return None

    def ran(self, id: int, running: Running, result: Any) -> None:
        """The function of a usual call has returned this, or what it returned was awaited."""
        entries = self._exports.entries
        if entries.get(id) is not running or type(result) is Promise:
            self._session.finish(self._session.in_full(id, running), result)
        elif running[2][0] == CALL:
            entries[id] = (result, PULLED)
            self._answer_with(id, result)
        else:
            entries[id] = (result, UNDECIDED)
            if type(result) not in ATOMS:
                self._session.holding.hold(id, result)

    def taken(self, args: list[Any]) -> Payload | None:
        """Swap the references in the arguments of a usual call. None: there were but objects, right
        among them, as callbacks are; then it costs a fifth of a `Payload`."""
        for position, value in enumerate(args):
            kind = type(value)
            if kind is Mine and value[1] is None and value[0]:
                args[position] = self._imports.receive(value[0], self._make_stub, Stub)
            elif kind not in _LEAVES:
                return self._payload([args])
        return None

    def _call(self, message: list[Any], payload: Payload | None = None) -> None:
        """The same in the general way. `payload`: its arguments have been walked."""
        answer = self._exports.add_answer()
        call = self._read_call(message, answer)
        answer.task = call
        if message[0] == CALL:
            answer.pulled = PULLED
        if answer.id in self._cancelled:
            self._payload([call.args, call.kwargs])  # its references count all the same
            self._session.withdraw(answer)
        else:
            self._start(call, payload)

    def _stream(self, message: list[Any]) -> None:
        """A call whose answer is asked for, and given up in advance."""
        answer = self._exports.add_answer()
        answer.task = call = self._read_call(message, answer)
        answer.pulled = PULLED
        answer.once = True
        if call.args is not None or call.path:
            self._start(call)
        else:  # a promise is read back, as one of ours does for a ping: behind the calls on it
            behind = partial(self._router.route, call)
            self._router.arrive(Position(self._session, call.target, behind), self._share)

    def _value(self, message: list[Any]) -> None:
        """An id for a value. Calls may go through it before the promises in it are there."""
        _, value, *asked = message
        root = [value]
        answer = self._exports.add_answer()
        if asked:
            answer.pulled = PULLED
            answer.once = True
        payload = self._payload(root) if self._marked else None
        if payload is None or not (payload.holes or payload.bad):
            answer.fulfil(root[0])
        elif payload.bad is not None:
            answer.reject(bad_payload(payload.bad))
        else:
            self._router.fill(payload.holes, partial(_provided, answer, root), answer)

    def _send(self, message: list[Any]) -> None:
        self._start(self._read_call(message, None))

    def _read_call(self, message: list[Any], answer: Answer | None) -> Call:
        session = self._session
        args: Any
        kwargs: Any = {}
        if len(message) == 4:
            _, target, path, args = message
        elif len(message) == 5:
            _, target, path, args, kwargs = message
        else:
            _, target, path, args = *_padded(message), None

        if type(path) is not list or type(kwargs) is not dict or self.heard_bye:
            raise _malformed_call(message, after_bye=self.heard_bye)
        if type(args) is Recording:
            if len(message) > 4:
                raise _malformed_call(message)
        elif type(args) is not list and (args is not None or len(message) > 3):
            raise _malformed_call(message)
        for step in path:
            if type(step) is not str and type(step) is not int:
                raise _malformed_call(message)
        for name in kwargs:
            if type(name) is not str:
                raise _malformed_call(message)
        path = tuple(path)
        if type(target) is str and session.traits.cap_ids:
            base = self._seam.reconstructed(target)
        else:
            base, path = self._seam.found(target, path)
        return Call(session, base, path, args, kwargs, answer)

    def _start(self, call: Call, payload: Payload | None = None) -> None:
        if self._marked:
            if payload is None:
                payload = self._payload([call.args, call.kwargs])
            if payload.bad is not None:
                self._session.fail(call, bad_payload(payload.bad))
                return
            call.holes = payload.holes
        self._router.arrive(call, self._share)

    def _payload(self, root: list[Any]) -> Payload:
        payload = Payload(root, self._seam.from_ref)
        if payload.bad is None:
            for read in payload.reads:
                self._router.arrive(read, self._share // len(payload.reads))
        return payload

    def _pull(self, message: list[Any]) -> None:
        (id,) = _fields(message, 1)
        entries = self._exports.entries
        entry = entries.get(id) if type(id) is int else None
        if type(entry) is tuple and len(entry) == 2:  # of a usual call, and need be no more now
            if entry[1] == UNDECIDED:
                self._router.check_reading()
                entries[id] = (entry[0], PULLED)
                self._session.outgoing.value(id, entry[0])
            return
        answer = self._answer(id, "pull")
        self._router.check_reading()
        if answer.pulled != PULLED:
            answer.pulled = PULLED
            answer.pull()
            if answer.state >= FULFILLED:
                self._session.answer(answer)

    def _answer(self, id: Any, word: str) -> Answer:
        answer = self._exports.find(id)
        if not isinstance(answer, Answer):
            raise RemoteProtocolError(f"{word} of id {redacted(id)!r}, which is no answer")
        return answer

    def _resolve(self, message: list[Any]) -> None:
        if len(message) != 3:
            raise _malformed(message)
        _, id, value = message
        if not (self._marked or self.resolved) and type(id) is int and id > 0:
            # As nearly all are: plain data, for a question that nobody has dropped.
            entry = self._held.get(id)
            held = None if entry is None else entry()
            if type(held) is Cell:
                del self._held[id]
                self._release_plain(id, self._share)
                if held.state < FULFILLED:  # else it was given up here
                    held.settle(FULFILLED, value)
                return
        cell = self._outcome_of(id)
        payload = self._payload([value])
        if cell is None:  # rule 2: moot. Its references were counted, and are dropped here
            return
        if payload.bad is not None:
            self._settle_rejected(cell, bad_payload(payload.bad))
            return
        if payload.paths:
            self._seam.resolved_paths.add(id, payload.paths, self._seam.is_promise)
        if payload.holes:
            # Weakly: a promise that is dropped meanwhile is released at once.
            filled = partial(self._filled, weakref.ref(cell), payload)
            waiting = self._router.fill(payload.holes, filled, cell)
            if waiting is not None:
                self.resolved[id] = waiting
        else:
            self._settle(cell, payload.root[0], ours=payload.ours)

    def _reject(self, message: list[Any]) -> None:
        id, error = _fields(message, 2)
        stub = self._broken(id) if type(id) is int and id <= 0 else None
        cell = None if stub is not None else self._outcome_of(id)
        if self._marked:
            self._payload([error])
        if not isinstance(error, RemoteError):
            error = bad_payload("a reject without an exception")
        if stub is not None:
            stub._break(error)
        elif cell is not None:
            self._settle_rejected(cell, error)

    def _broken(self, id: int) -> Stub | None:
        """The stub that a reject is for; None if it is for something else."""
        entry = self._imports.entries.get(id)
        stub = None if entry is None else entry()
        if type(stub) is not Stub or not self._session.traits.breaks:
            return None
        if id in self.broken_ids:
            raise RemoteProtocolError(f"id {id}, which is broken, was broken again")
        self.broken_ids.add(id)
        return stub

    def _outcome_of(self, id: Any) -> Cell | None:
        """The cell that a resolve or reject is for; None if it was released, or dropped."""
        entry = self._imports.entries.get(id) if type(id) is int else None
        if entry is None:
            # With gaps it may be of a promise in a message that was then not sent.
            if type(id) is not int or (self._imports.gapless and not self._imports.was_issued(id)):
                raise RemoteProtocolError(
                    f"an outcome for id {redacted(id)!r}, which was never issued"
                )
            return None
        cell = entry()
        if (cell is not None and not isinstance(cell, Cell)) or id in self.resolved:
            raise RemoteProtocolError(f"an outcome for id {id}, which is no promise, or has one")
        if cell is not None:
            self.resolved[id] = None
        return cell

    def forget(self, id: int) -> None:
        """An import is released."""
        self.broken_ids.discard(id)
        if id in self._seam.resolved_paths:
            self._forget_paths(id)
        waiting = self.resolved.pop(id, None)
        if waiting is not None:
            self._router.forget(waiting)

    def _forget_paths(self, id: int) -> None:
        """A promise is given up before it had its value. Calls through it may still be under way,
        and those that come by the same path go the same way: a ping tells when none is left."""
        session = self._session
        if session.error is None:
            session.ping(partial(self._seam.resolved_paths.forget, id), id)
        else:
            self._seam.resolved_paths.forget(id)

    def _filled(
        self,
        waiting: weakref.ref[Cell],
        payload: Payload,
        error: BaseException | None,
        *,
        ours: bool,
    ) -> None:
        """The promises inside the value of a promise have settled."""
        cell = waiting()
        if cell is None:
            return
        if error is None:
            self._settle(cell, payload.root[0], ours=payload.ours or ours)
        else:
            self._settle_rejected(cell, error)

    def _settle(self, cell: Cell, value: Any, *, ours: bool) -> None:
        """The value of an import is here. Rule 5: behind it, if need be, a ping on the old path."""
        session = self._session
        if session.error is not None:
            return
        if cell.settled:  # given up meanwhile
            session.release(cell.import_id)
            return
        cell.ours = ours
        if ours and cell.used:
            cell.hold(value)
            unhold = partial(session.after_starts, partial(self._unhold, cell))
            session.ping(unhold, cell.import_id)
        elif ours and (session.kept or self._driver.starting):  # it may be what a path was read as
            cell.hold(value)
            self._router.behind(partial(session.after_starts, partial(self._unhold, cell)))
        else:
            self._fulfil(cell, value)

    def _settle_rejected(self, cell: Cell, error: BaseException) -> None:
        if self._session.error is None:
            if not cell.used:
                self._seam.resolved_paths.forget(cell.import_id)
            self._session.release(cell.import_id)
        cell.reject(error)

    def _unhold(self, cell: Cell) -> None:
        """Everything that went the old path has arrived, and is started: so says the pong."""
        if cell.state < FULFILLED:
            self._fulfil(cell, cell.value)

    def _fulfil(self, cell: Cell, value: Any) -> None:
        self._seam.resolved_paths.forget(cell.import_id)
        self._session.release(cell.import_id)
        cell.fulfil(value)

    def release(self, message: list[Any]) -> None:
        """A release has come."""
        if len(message) != 3:
            raise _malformed(message)
        _, answers, references = message
        if type(answers) is not list or type(references) is not list:
            raise _malformed(message)
        holding = self._session.holding
        if answers:
            self.released(answers)
        for pair in references:
            if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not int or pair[0] > -1:
                raise RemoteProtocolError(f"release of {pair!r} as a reference")
            if self._exports.release(*pair) is not None:
                self._seam.resolved_paths.drop(pair[0])
                if holding.targets:
                    holding.let_go(pair[0])

    def released(self, answers: list[Any]) -> None:
        """The other side has given answers up."""
        for answer in self._exports.release_answers(answers):
            self._freed_rejected(answer)
        if self._seam.resolved_paths:
            for id in answers:
                self._seam.resolved_paths.drop(id)
        if self._session.holding.targets:
            self._session.holding.let_go_of(answers)

    def _freed_rejected(self, answer: Answer) -> None:
        if answer.failed_here and answer.pulled != PULLED:
            logger.debug("a call failed, and nobody looked", exc_info=answer.value)
        self._router.forget_error(answer)

    def _cancel(self, message: list[Any]) -> None:
        (id,) = _fields(message, 1)
        self._session.withdraw(self._answer(id, "cancel"))

    def _ping(self, message: list[Any]) -> None:
        nonce, *where = message[1:] or (None,)
        if type(nonce) is not int or nonce.bit_length() > 64 or len(where) > 1:
            raise RemoteProtocolError(f"a malformed ping: {_shorten(message)}")
        pong = partial(self._session.control, PONG, nonce)
        if where:
            target = self._seam.exported(where[0])
            self._router.arrive(Position(self._session, target, pong), self._share)
            if nonce >= PROBE:
                self._session.circles.probed(nonce, target)
        else:
            self._router.check_reading()
            pong()

    def _pong(self, message: list[Any]) -> None:
        (nonce,) = _fields(message, 1)
        if not self._session.pings.ponged(nonce):
            raise RemoteProtocolError(f"a pong that answers no ping: {_shorten(message)}")

    def _bye(self, message: list[Any]) -> None:
        _fields(message, 0)
        self.heard_bye = True
        self._session.exchange.look()

    def _abort(self, message: list[Any]) -> None:
        name, text = _fields(message, 2)
        if self._session.said_bye and not self._session.traits.bye:
            return  # how it says that it has heard
        kind = PeerLost if name in _ITS_OWN_FAULT else LocalProtocolError
        self._session.end(kind(f"the other side ended the session: {name}: {text}"))


def _provided(answer: Answer, root: list[Any], error: BaseException | None, *, ours: bool) -> None:
    """The promises in a value have settled. That it names `ours` matters to results only."""
    if error is None:
        answer.fulfil(root[0])
    else:
        answer.reject(error)


def _is_release(message: Any) -> bool:
    return type(message) is list and message[:1] == [RELEASE] and type(message[0]) is int


def _padded(message: list[Any]) -> list[Any]:
    """A property read: word, target and path."""
    if len(message) != 3:
        raise _malformed_call(message)
    return message


def _malformed_call(message: list[Any], *, after_bye: bool = False) -> RemoteProtocolError:
    what = "after its bye, the other side made a" if after_bye else "a malformed"
    return RemoteProtocolError(f"{what} {WORDS[message[0]]}: {_shorten(message)}")


def _cancelled(messages: list[Any]) -> frozenset[int]:
    """The ids that this frame cancels: a call in the same frame is not started (rule 9)."""
    try:
        if CANCEL not in map(_word_of, messages):
            return _NONE
        cancels = [message[-1] for message in messages if message[0] == CANCEL]
    except (LookupError, TypeError):  # malformed: which message it is will be found in its turn
        return _NONE
    return frozenset(id for id in cancels if type(id) is int)


def _fields(message: list[Any], count: int) -> list[Any]:
    """The fields of a message that has so many."""
    if len(message) != count + 1:
        raise _malformed(message)
    return message[1:]


def _malformed(message: list[Any]) -> RemoteProtocolError:
    return RemoteProtocolError(f"a malformed {WORDS[message[0]]}: {_shorten(message)}")


def _shorten(message: Any) -> str:
    text = repr(redacted(message))
    return text if len(text) <= 100 else text[:100] + "..."
