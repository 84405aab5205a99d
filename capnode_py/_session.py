"""The engine of one connection: bytes in, what-to-start and bytes out. No I/O, no clock, no lock.

A driver carries it (`Driver` says what the engine asks of one): it feeds what it read to `receive`,
writes what `flush` gives, starts the calls that it is handed, in order, and tells their outcome by
`finish` or `fail`. The session never runs user code and never waits.

How a call goes. Here: `call` (a stub was called), `_call_import` (it is encoded, and a question is
entered), `flush`. There: `receive`, `Incoming._call` (an answer is entered), `Router.route`, the
driver's `start`, `finish`, `answer`, `flush`. Here again: `receive`, `Incoming._resolve`, which
settles the cell.
``docs/architecture.md`` follows one with all its names.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable
from functools import partial
from types import MethodType
from typing import Any, Protocol, cast

from ._cap_ids import CapId, Parts, Unknown, of_export, parse, proof_of_export
from ._cell import FULFILLED, NOT_YET, PENDING, PULLED, REJECTED, UNDECIDED, Answer, Call, Cell
from ._errors import (
    CannotPass,
    CapnodeError,
    LimitExceeded,
    PeerClosed,
    PeerDied,
    ProtocolError,
    Released,
    RemoteProtocolError,
    Withdrawn,
    again,
    during,
    from_far,
    to_far,
)
from ._incoming import Incoming
from ._limits import Limits
from ._messages import ABORT, BYE, CANCEL, PING, PULL, SEND, UNNAMED, At, Codec, Hello, Path, Traits
from ._outbox import Outbox
from ._payload import Hole
from ._reach import held_targets
from ._router import Router
from ._seam import Host, Seam, as_cell
from ._stub import Breakable, Promise, Stub, Target, Tell
from ._tables import Export, ExportTable, Import, ImportTable, Running

logger = logging.getLogger("capnode_py.session")

VERSIONS = (1,)


class Driver(Protocol):
    """What the engine asks of what carries it."""

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

    def ended(self) -> None:
        """The session is over; `Session.error` says why."""


class Session:
    """See the module.

    Attributes:
        imports, exports: the two tables.
        index: the stub of the other side's index.
        error: why the session is over; None while it is not.
        remote: the other side's hello, once it has come.
        unsent: bytes that the driver has taken from `flush` and not yet written; it keeps this.
        said_bye: no more calls from us.
        bytes_received: since the beginning.
        kept: the calls of the other side that wait until the backlog shrinks.
        kept_alive: the targets that want to know who holds them, by the entry that does.
        incoming: what has come from the other side.
    """

    def __init__(
        self,
        codec: Codec,
        driver: Driver,
        *,
        limits: Limits,
        hello: Hello,
        host: Host,
        get_index: Callable[[], Any],
    ) -> None:
        self._codec = codec
        self._driver = driver
        self._limits = limits
        self._hello = hello
        self._host = host
        self._get_index = get_index
        self.kept_alive: dict[int, list[Target]] = {}
        self._max_message = limits.max_frame
        self._notes: deque[Import] = deque()
        self._noted = False
        self._pings: dict[int, Callable[[], None]] = {}
        self._last_nonce = 0
        self._pinging: set[Cell] = set()
        self.imports = ImportTable(self._note)
        self.exports = ExportTable(self, limits.max_exports)
        self.index = Stub(self, 0)
        self.imports.pin(self.index)
        self.error: BaseException | None = None
        self.remote: Hello | None = None
        self.said_bye = False
        self.unsent = 0
        self.bytes_received = 0
        self.traits: Traits = codec.traits
        self._outbox = Outbox(codec, wake=driver.wake, wake_later=driver.wake_later)
        self._seam = Seam(self, codec, self.imports, self.exports, get_index, host)
        self._router = Router(self, limits, start=driver.start, backlog=self.backlog)
        self.route = self._router.route
        self.release_answer = self._outbox.release_answer
        self.kept = self._router.kept
        self.localize = self._seam.localize
        self.incoming = Incoming(self, self._seam, self._router, driver)
        if codec.traits.hello:
            self._outbox.add_raw(codec.hello(hello))

    # What stubs, promises and the peer ask.

    def call(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any) -> Promise:
        """One call (`args` None: a read); the promise of its answer.

        Raises:
            CannotPass, LimitExceeded, Released: nothing was sent.
            RuntimeError: from a foreign thread.
        """
        if not self._driver.here():
            return self._driver.elsewhere(base, path, args, kwargs)
        if type(base) is Stub:
            return Promise(self, self._call_import(base._id, path, args, kwargs), ())
        return Promise(self, self._call_through(base, path, args, kwargs), ())

    def _call_through(self, base: Cell, path: Path, args: Any, kwargs: Any) -> Cell:
        """A call on a promise."""
        if base.state == PENDING and base.link is None and base.import_id:
            base.used = True
            return self._call_import(base.import_id, path, args, kwargs)

        if self.error is not None or self.said_bye:
            return self._ended_cell()
        call = self._local_call(base, path, args, kwargs)
        call.reply = reply = Cell(self)
        reply.task = call
        self.route(call)
        return reply

    def _local_call(self, base: Cell, path: Path, args: Any, kwargs: Any) -> Call:
        """A call on a promise that is not, or may not be, on the other side."""
        holes: list[Hole] = []
        if args is not None:
            try:
                (args, kwargs), holes = self.localize([list(args), kwargs])
            except CannotPass as error:
                error.root = "argument"
                del error.path[0]
                raise
        return Call(self, base, path, args, kwargs, None, holes)

    def notify(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any) -> None:
        """One way: takes no id, and nothing comes back."""
        if self.error is not None or self.said_bye:
            raise again(self.error or PeerClosed(_CLOSING))
        if type(base) is Stub:
            self._send_import(base._id, path, args, kwargs)
        else:
            self.route(self._local_call(base, path, args, kwargs))

    def wait(self, base: Stub | Cell, path: Path) -> Generator[Any, Any, Any]:
        """What awaiting a promise does: the value, when it is here."""
        cell = base if type(base) is Cell and not path else as_cell(base, path)
        if cell.state < FULFILLED:
            if cell.pulled == UNDECIDED and cell.import_id:
                cell.pulled = PULLED  # which the word of its call will say
            elif cell.pulled != PULLED:
                cell.pull()
            cell.awaiting += 1
            waiter = self._driver.wait(cell)
            try:
                yield from waiter
            except BaseException as error:
                self._driver.stop_waiting(cell, waiter)
                cell.awaiting -= 1
                if self._driver.is_cancellation(error):
                    self._stopped_awaiting(cell)
                del base, cell  # the traceback holds this frame: a late result would stay with it
                raise
            cell.awaiting -= 1
        if self._driver.starting and (cell.ours or not cell.import_id):
            # It may be an object of ours, and calls made through the promise are yet to start.
            fence = Cell(self)
            self._driver.fence(fence)
            yield from self._driver.wait(fence)
        if cell.state == REJECTED:
            raise again(cell.value)
        return cell.value

    def _stopped_awaiting(self, cell: Cell) -> None:
        """When the last task that waited is cancelled, so is the call (rule 9)."""
        if not cell.settled and not cell.awaiting and not cell.has_dependents():
            self.cancel(cell)

    def is_here(self) -> bool:
        """Is the caller in the thread and event loop of this connection?"""
        return self._driver.here()

    def after_starts(self, run: Callable[[], None]) -> None:
        """Call `run()` once the calls that have come and wait for their task are started."""
        if self._driver.starting:
            fence = Cell(self)
            fence.watch(lambda _: run())
            self._driver.fence(fence)
        else:
            run()

    def dealloc(self, stub: Stub) -> None:
        """Give a stub up now. The index is pinned."""
        if stub._id and self.holds(stub):
            self.release(stub._id)
            if stub._cap_id is not None:  # reconstructed, it may have come as a reference since
                for id in [id for id, entry in self.imports.entries.items() if entry() is stub]:
                    self.release(id)
            stub._id = _GIVEN_UP  # the same reference, if it comes again, is a new stub

    def plain(self, stub: Stub) -> Stub:
        """The stub that the import table knows, which a stub with options stands for."""
        return stub

    def holds(self, stub: Stub) -> bool:
        """Is it still a reference: neither given up, nor of a session that is over?"""
        entry = self.imports.entries.get(stub._id)
        return entry is not None and entry() is stub

    def cap_id(self, stub: Stub) -> str:
        """The text that stands for a stub: see `Stub.cap_id`."""
        if stub._id == _GIVEN_UP:
            raise Released("this stub was given up here, and its cap_id with it")
        if stub._cap_id is not None:
            return stub._cap_id
        if self.error is not None:
            raise again(self.error)
        if self.remote is None:  # on a Remote, whose transport is still to come
            raise CapnodeError(
                f"a cap_id needs the hello of {self.where}, which has not come: await peer.ping()"
            )
        if not self.remote.secret:
            raise CapnodeError(f"{self.where} has no cap_ids")
        return of_export(self.remote.session_id, self.remote.secret, stub._id)

    def reconstruct(self, cap_id: str) -> Stub:
        """A stub of what a cap_id stands for over there. It is the stub of a question, which reads
        that object, and whose answer is never asked for; calls on it are calls on that answer.

        Raises:
            CapnodeError: there are no cap_ids here, or the connection is over.
        """
        if self.error is not None or self.said_bye:
            raise again(self.error or PeerClosed(_CLOSING))
        if not self.traits.cap_ids:
            raise CapnodeError(f"{self.where} has no cap_ids")
        held = self._seam.named(cap_id) or self._held_by(cap_id)
        if held is None:
            held = Stub(self, self._call_import(cap_id, (), None, None).import_id)
            self.imports.adopt(held)
            self._seam.name(held, CapId(cap_id))
        return held

    def _held_by(self, cap_id: str) -> Stub | None:
        """The stub that we hold on this very connection, if the cap_id is of one."""
        try:
            parts = parse(cap_id)
        except Unknown:
            return None
        if self.remote is None:  # nothing has come
            return None
        entry = self.imports.entries.get(parts.id)
        stub = None if entry is None else entry()
        if type(stub) is Stub and stub._cap_id is None and stub.cap_id == cap_id:
            return stub
        return None

    def find_export(self, parts: Parts) -> Any:
        """What a cap_id that was made of this connection stands for.

        Raises:
            Unknown: it was not, or it stands for nothing any more.
        """
        entry = self.exports.entries.get(parts.id)
        proof = proof_of_export(self._hello.session_id, self._hello.secret, parts.id)
        if parts.proves(proof) and self.error is None and type(entry) is Export:
            value = self._get_index() if parts.id == 0 else entry.value
            if not isinstance(value, Cell):
                return value
        raise Unknown

    def describe(self, stub: Stub, path: str = "") -> str:
        """A stub, and a path on it, in few words for `repr`."""
        if stub._id == _GIVEN_UP:
            return f"{path or 'of'} {self.where}, released"
        what = "index" if stub._id == 0 else f"#{-stub._id}"
        return f"{what}{path} of {self.where}" + ("" if self.error is None else ", which is gone")

    @property
    def where(self) -> str:
        """How errors and reprs name the other side."""
        return self._codec.where

    def cancel(self, cell: Cell) -> None:
        """Withdraw this side's interest in a value (rule 9)."""
        if cell.state != PENDING:
            return
        if cell.import_id > 0 and self.error is None and self.traits.cancel:
            if cell.session is not self:
                cell.session.cancel(cell)
            else:
                self.control(CANCEL, cell.import_id)
        elif not cell.import_id:
            self.withdraw(cell)

    def give_up(self, cell: Cell, error: BaseException) -> None:
        """Withdraw this side's interest, and let who awaits the value have this error now."""
        if cell.import_id:
            self.cancel(cell)
        else:
            self.withdraw(cell, error)
        cell.reject(error)

    def pull(self, cell: Cell) -> None:
        """The value of a question is wanted, whose call has left as a push."""
        if self.error is None:
            self.control(PULL, cell.import_id)

    def ping(self, passed: Callable[[], None], target: Cell | None = None) -> None:
        """Call `passed` when the pong comes; with a target, a position on that promise."""
        self._last_nonce += 1
        where: tuple[int, ...] = ()
        if target is not None:
            where = (target.import_id,)
            passed = partial(self._router.behind, passed)  # the calls before the pong may be kept
        self._pings[self._last_nonce] = passed
        self.control(PING, self._last_nonce, *where)

    def ponged(self, nonce: Any) -> bool:
        """The answer of a ping has come; False if there was no such ping."""
        passed = self._pings.pop(nonce, None) if type(nonce) is int else None
        if passed is not None:
            passed()
        return passed is not None

    def ping_through(self, cell: Cell) -> None:
        """A liveness ping, whose pong fulfils `cell`."""
        self.ping(partial(cell.fulfil, None))
        self._pinging.add(cell)
        cell.watch(self._pinging.discard)

    def say_bye(self) -> None:
        """No more calls from us. Running answers finish."""
        if not self.said_bye and self.error is None:
            self.said_bye = True
            if self.traits.hello:
                self.control(BYE)

    def _ended_cell(self) -> Cell:
        cell = Cell(self)
        cell.reject(self.error or PeerClosed(_CLOSING))
        return cell

    # Calls out.

    def _call_import(self, target: At, path: Path, args: Any, kwargs: Any) -> Cell:
        """A call on an import, or on what a cap_id stands for, encoded now: the cell of its
        question."""
        if self.error is not None or self.said_bye:
            return self._ended_cell()

        mark = len(self.exports.uncommitted)
        message = self._encode_call(mark, target, path, args, kwargs)
        cell = Cell(self, 0, path)
        self._outbox.add(message, self.imports.add_question(cell))
        if self.exports.uncommitted:
            self._commit(mark)
        return cell

    def _send_import(self, target: int, path: Path, args: Any, kwargs: Any) -> None:
        """A one-way call on an import."""
        if self.error is not None or self.said_bye:  # it has waited for a promise until now
            logger.debug("a one-way call was made too late to be sent: %r", path)
            return
        if not self.traits.one_way:
            self._call_import(target, path, args, kwargs)  # dropped at once: a push and a release
            return
        mark = len(self.exports.uncommitted)
        message = self._encode_call(mark, target, path, args, kwargs)
        self._outbox.add(self._codec.word(message, SEND))
        if self.exports.uncommitted:
            self._commit(mark)

    def _encode_call(self, mark: int, target: At, path: Path, args: Any, kwargs: Any) -> bytes:
        if target not in self.imports.entries and type(target) is int:
            raise Released(
                "this stub was given up here, by dealloc or by the end of its with block"
            )
        if self.unsent + self._outbox.size > self._limits.max_unsent:
            raise LimitExceeded(
                f"{self.unsent + self._outbox.size} bytes wait to be sent, over the limit of "
                f"{self._limits.max_unsent} (Limits.max_unsent): await peer.drain() between calls"
            )
        try:
            message = self._codec.call(target, path, args, kwargs, self._seam.to_ref)
            if len(message) > self._max_message:
                raise self._too_long(message)
        except BaseException:
            self.exports.rollback(mark)
            raise
        return message

    def _too_long(self, message: bytes) -> LimitExceeded:
        return LimitExceeded(
            f"a message of {len(message)} bytes, where the other side takes at most "
            f"{self._max_message} (its Limits.max_frame): send it in parts"
        )

    def _commit(self, mark: int) -> None:
        """The message is out: promises that it announced are resolved behind it."""
        for export in self.exports.commit(mark):
            if isinstance(export.value, Cell):
                export.value.pull()
                export.value.watch(partial(self._resolve_export, export))
            elif isinstance(export.value, _MAY_HOLD):
                self.hold(export.id, export.value)

    def control(self, word: int, *fields: Any) -> None:
        message = self._codec.control(word, *fields)
        self._outbox.add(message)

    # What the router and the cells ask.

    def forward(self, call: Call, target: int) -> None:
        """A call that stands on an import of ours goes down the wire; its reply follows."""
        if not self._driver.here():
            self.fail(call, CapnodeError("a stub of a connection in another thread or event loop"))
            return
        try:
            if call.reply is None:
                self._send_import(target, call.path, call.args, call.kwargs)
                return
            question = self._call_import(target, call.path, call.args, call.kwargs)
        except Exception as error:  # noqa: BLE001 - rule 8: every call is answered
            self.fail(call, error)
            return
        if not call.reply.wanted:
            question.pulled = NOT_YET
        reply, call.reply = call.reply, None
        reply.follow(question)

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
            copy, holes = self.localize([result])
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
                reply.value = Withdrawn()  # the traceback may hold a frame that holds the answer
                if call.started and not call.cancelled:
                    logger.debug("a call failed, and nobody looked: %r", call, exc_info=error)
        else:
            reply.reject(self._as_from_afar(error) if call.started else error)

    def _is_held(self, answer: Answer) -> bool:
        return self.error is not None or self.exports.entries.get(answer.id) is answer

    def _as_from_afar(self, error: BaseException) -> BaseException:
        """The error of a handler of ours, as one who called it through a promise is to see it."""
        if self.error is not None and not isinstance(error, Exception):
            return again(self.error)  # it was stopped because the session is over
        return from_far(to_far(error, with_traceback=True), where="this process")

    def in_full(self, id: int, running: Running) -> Call:
        """A usual call that turns out to be none, as the general way knows it."""
        entry = self.exports.entries.get(id)
        if entry is None:  # released by now, or the session is over
            answer = self.exports.in_full(id, running)
        else:
            answer = cast(Answer, self.exports.find(id))
        return cast(Call, answer.task)

    def redirect(self, call: Call, target: Any, path: Path) -> None:
        """The driver followed the path of a call to a far reference."""
        if call.args is None and not path:  # a property that is a far reference: it is the value
            self.finish(call, target)
            return
        call.target, call.path = target, path
        self.route(call)

    # Targets that want to know when nobody holds them any more: those with a `_released`.

    def hold(self, id: int, value: Any) -> None:
        """The other side holds what is in `value`, by the entry `id`."""
        if isinstance(value, Breakable) and id <= 0 and self.traits.breaks:
            value._watch(self, partial(_tell_broken, id))
        targets = held_targets(value)
        if targets:
            self.kept_alive[id] = targets
            for target in targets:
                self._host.hold(target, self, id)

    def _break_export(self, id: int, error: BaseException) -> None:
        """An object of ours is broken: who holds it is told, without a call."""
        entry = self.exports.entries.get(id)
        if self.error is not None or type(entry) is not Export:
            return
        value = self._get_index() if id == 0 else entry.value
        if isinstance(value, Breakable) and value._broken is not None:  # else another index
            self.exports.told(entry)
            self._outbox.add(self._codec.reject(id, error))

    def on_broken(self, stub: Stub, owner: object, tell: Tell) -> None:
        """Call ``tell(owner, error)`` once, when `stub` is broken or the session is over.

        Raises:
            Released: it was given up here.
        """
        if stub._id == _GIVEN_UP:
            raise Released("this stub was given up here, and cannot break any more")
        if stub._id > 0 and stub._broken is None:
            # It stands on a question, of which no break is told: watch the object itself.
            cell = self._call_import(stub._id, (), None, None)
            stub._keep(cell)
            cell.pull()
            cell.watch(partial(_watch_answer, weakref.ref(stub)))
        stub._keep(owner)
        stub._watch(owner, tell)

    def bring_soon(self, run: Callable[[], object]) -> None:
        """Call `run()` where the session lives: now, if this is there."""
        if self._driver.here():
            run()
        else:
            self._driver.soon(run)

    def let_go(self, id: int) -> None:
        """The entry `id` is gone."""
        for target in self.kept_alive.pop(id, ()):
            if self._host.let_go(target, self, id):
                self._driver.tell(target._released)  # type: ignore[attr-defined]

    def let_go_of(self, answers: list[int]) -> None:
        """These entries are gone."""
        for id in answers:
            self.let_go(id)

    def keep(self, answer: Answer) -> None:
        """The value of an answer is here, and was not asked for: calls go through it."""
        if self._is_held(answer):
            self.hold(answer.id, answer.value)

    def answer(self, answer: Answer) -> None:
        """An answer that was asked for is settled."""
        if self.exports.entries.get(answer.id) is answer:
            self._send_outcome(answer.id, answer)

    def _resolve_export(self, export: Export, cell: Cell) -> None:
        if self.exports.entries.get(export.id) is export:
            self.exports.told(export)
            self._send_outcome(export.id, cell)

    def _send_outcome(self, id: int, cell: Cell) -> None:
        if cell.state == FULFILLED:
            self.send_value(id, cell.value)
            return
        message = self._codec.reject(id, cell.value)
        if len(message) > self._max_message:
            message = self._codec.reject(id, self._too_long(message))
        self._outbox.add(message)

    def send_value(self, id: int, value: Any) -> None:
        """The value of an answer or a promise goes out, or why it cannot."""
        exports = self.exports
        mark = len(exports.uncommitted)
        try:
            message = self._codec.resolve(id, value, self._seam.to_ref)
            if len(message) > self._max_message:
                raise self._too_long(message)
        except Exception as error:  # noqa: BLE001 - rule 8: every call is answered
            exports.rollback(mark)
            message = self._codec.reject(id, error)
        self._outbox.add(message)
        if exports.uncommitted:
            self._commit(mark)

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
            cell.reject(why or Withdrawn())
        elif cell.task is not None and not cell.task.cancelled:
            call = cell.task
            call.cancelled = True
            if call.started:
                self._driver.stop(call)
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

    # Releases.

    def _note(self, entry: Import) -> None:
        """A weakref callback (rule 3): leave a note; never send, lock or call."""
        self._notes.append(entry)
        if not self._noted:
            self._noted = True
            self._driver.wake_from_anywhere()

    def drain_notes(self) -> None:
        """Release what the collector has found dropped."""
        self._noted = False
        while self._notes:
            entry = self._notes.popleft()
            if self.imports.entries.get(entry.id) is entry:  # else it is stale
                self.release(entry.id)

    def release(self, id: int) -> None:
        """Take an import out of the table, and tell the other side."""
        self.incoming.forget(id)
        received = self.imports.drop(id)
        if self.error is not None:
            return
        if id > 0:
            self._outbox.release_answer(id)
        elif received:
            self._outbox.release_reference(id, received)

    # Bytes in and out.

    def backlog(self) -> int:
        """Bytes that wait to be sent."""
        return self.unsent + self._outbox.size

    def flush(self) -> list[bytes]:
        """The frames to be written now. The driver keeps in `unsent` what of them is not yet."""
        if self._notes:
            self.drain_notes()
        return self._outbox.flush()

    def flush_turn(self) -> list[bytes]:
        """The same at the end of a turn of reading: releases alone wait for company."""
        if self._notes:
            self.drain_notes()
        return self._outbox.flush() if self._outbox.size else []

    def written(self, unsent: int) -> None:
        """The driver tells how much is left to write."""
        self.unsent = unsent
        if self.kept:
            self._router.relieve()

    @property
    def messages_sent(self) -> int:
        return self._outbox.messages

    @property
    def bytes_sent(self) -> int:
        return self._outbox.bytes

    @property
    def junk(self) -> bytes:
        """What stood in the stream before the other side's hello."""
        return self._codec.junk

    @property
    def wants_hello(self) -> bool:
        """Is the other side's hello still to come?"""
        return self.traits.hello and self.remote is None

    def receive(self, data: bytes) -> None:
        """Bytes have come. What they ask for is started, and answers are queued for `flush`. What
        comes after the end of the session is not looked at."""
        if self.error is not None:
            return
        self.bytes_received += len(data)
        try:
            for item in self._codec.feed(data):
                if type(item) is bytes:
                    messages, marked = self._codec.decode(item)
                    self.incoming.frame(messages, marked, len(item))
                else:
                    self._greet(cast(Hello, item))
                if self.error is not None:
                    return
        except ProtocolError as error:
            self.abort(error)

    def end_of_stream(self, lost: BaseException) -> None:
        """Nothing more will come. `lost` is the cause, unless the stream broke off in mid-frame,
        for which a child that died needs no other."""
        try:
            if self.error is None:
                self._codec.end()
        except ProtocolError as error:
            if isinstance(lost, PeerDied):
                lost.add_note(str(error))
            else:
                error.__cause__ = lost
                lost = error
        self.end(lost)

    def abort(self, error: BaseException) -> None:
        """End the session, and tell the other side why."""
        word = self._codec.control(ABORT, type(error).__name__, str(error)[:1000])
        self.end(error, last=word)

    def end(self, error: BaseException, *, last: bytes | None = None) -> None:
        """End the session: one cause for everything that was pending. Nothing is sent (rule 10) but
        the `last` message, if there is one."""
        if self.error is not None:
            return
        self.error = error
        self.unsent = 0
        for held in self.imports.clear():
            if isinstance(held, Cell):
                held.reject(during(error, held.path))
            elif held is not None:
                held._break(error)
        for entry in list(self.exports.entries.values()):
            if isinstance(entry, Answer) and entry.link is not None:
                link = entry.unlink()
                if not link.has_dependents():
                    link.session.cancel(link)
        self.exports.clear()
        self._router.clear()
        self._seam.clear()
        for cell in list(self._pinging):
            cell.reject(error)
        self._pings.clear()
        self._outbox.clear()
        if last is not None:
            self._outbox.add(last)
        self._driver.ended()
        for id in list(self.kept_alive):
            self.let_go(id)

    def _greet(self, hello: Hello) -> None:
        if not set(VERSIONS) & set(hello.versions):
            raise RemoteProtocolError(
                f"no common version of the protocol: this side speaks {list(VERSIONS)}, "
                f"the other {list(hello.versions)}"
            )
        if hello.session_id == self._hello.session_id:
            raise RemoteProtocolError(
                "the other end sends back what we send: it is no capnode peer, but an echo"
            )
        self.remote = hello
        if self._codec.junk:
            logger.warning(
                "%s wrote to the stream before its hello: %r", self._codec.where, self.junk[:500]
            )
        if hello.application and self._codec.where == UNNAMED:
            self._codec.where = hello.application
        self._max_message = hello.max_frame - _AROUND_MESSAGE
        self._outbox.limit(self._max_message)
        self._codec.max_depth = min(self._codec.max_depth, hello.max_depth)
        self.hold(0, self._get_index())
        self._driver.greeted()


def _tell_broken(id: int, session: Session, error: BaseException) -> None:
    """An export of `session` is broken; this may be another thread."""
    session.bring_soon(partial(session._break_export, id, error))


def _watch_answer(waiting: weakref.ref[Stub], cell: Cell) -> None:
    """What a reconstructed stub stands for is known: they break together."""
    stub = waiting()
    if stub is None:
        return
    if cell.state == REJECTED:
        stub._break(cell.value)
    elif isinstance(cell.value, Breakable):
        cell.value._watch(stub, Breakable._break)


_GIVEN_UP = 1 << 80  # no id of any table
_MAY_HOLD = (Target, MethodType, Stub)
_CLOSING = "this peer is closing, and makes no new calls"

# The heads of the frame and of its array, which stand around a message.
_AROUND_MESSAGE = 18
