"""The engine of one connection: bytes in, what-to-start and bytes out. No I/O, no clock, no lock.

A driver carries it (`_driver.py` says what is asked of one): it feeds what it read to `receive`,
writes what `flush` gives, starts the calls that it is handed, in order, and tells their outcome by
`finish` or `fail`. The session never runs user code and never waits.

How a call goes. Here: `call` (a stub was called), `Outgoing.call` (it is encoded, and a question is
entered), `flush`. There: `receive`, `Incoming._call` (an answer is entered), `Router.route`, the
driver's `start`, `finish`, `answer`, `flush`. Here again: `receive`, `Incoming._resolve`, which
settles the cell.
``docs/architecture.md`` follows one with all its names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, cast

from ._cell import FULFILLED, NOT_YET, PENDING, PULLED, REJECTED, UNDECIDED, Answer, Call, Cell
from ._circles import Circles
from ._delegation import Delegation
from ._errors import (
    CannotPass,
    CapnodeError,
    LimitExceeded,
    PeerClosed,
    PeerDied,
    ProtocolError,
    RemoteProtocolError,
    again,
    during,
)
from ._exchange import Exchange
from ._holding import Holding
from ._incoming import Incoming
from ._limits import Limits
from ._log import get_logger
from ._long import Encoded
from ._messages import (
    ABORT,
    BYE,
    CANCEL,
    IN_RECORDING,
    PULL,
    UNNAMED,
    Codec,
    Hello,
    Path,
    Recording,
    Traits,
    agreed_version,
)
from ._outbox import WAITS_UP_TO, Outbox
from ._outcomes import Outcomes
from ._outgoing import Outgoing
from ._payload import Hole
from ._pings import Pings
from ._router import Router
from ._seam import Host, Seam, as_cell
from ._stub import CLOSING, GIVEN_UP, Promise, Stub
from ._tables import ExportTable, Import, ImportTable

if TYPE_CHECKING:
    from ._driver import Driver

logger = get_logger("capnode_py.session")

VERSIONS = (1,)
FEATURES = ("map",)
"""What this side can do beyond the first version; used if the other side's hello names it too."""


class Session:
    """See the module.

    Attributes:
        imports, exports: the two tables.
        index: the stub of the other side's index.
        error: why the session is over; None while it is not.
        ends_as: what those are told who wait when it ends; None: the cause itself.
        remote: the other side's hello, once it has come.
        application_version: see `agreed_version`.
        unsent: bytes that the driver has taken from `flush` and not yet written; it keeps this.
        said_bye: no more calls from us.
        bytes_received: since the beginning.
        noted: a finalizer has left a note that is yet to be looked at.
        kept: the calls of the other side that wait until the backlog shrinks.
        incoming: what comes from the other side; `outgoing`: what we say.
        holding: what those want to know who hold and are held.
        outcomes: what becomes of the calls that run on this side.
        delegation: cap_ids.
        circles: promises of the other side that calls go on through.
        pings: those that are under way.
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
        self._hello = hello
        self._notes: deque[Import] = deque()
        self.noted = False
        self.traits: Traits = codec.traits
        self.imports = ImportTable(self._note, gapless=self.traits.gapless)
        self.exports = ExportTable(self, limits.max_exports, reuse=self.traits.reuse_export_ids)
        self.index = Stub(self, 0)
        self.imports.pin(self.index)
        self.error: BaseException | None = None
        self.ends_as: Callable[[BaseException], BaseException] | None = None
        self.remote: Hello | None = None
        self.application_version: int | None = None
        self.said_bye = False
        self.unsent = 0
        self.bytes_received = 0
        self._outbox = Outbox(codec, wake=driver.wake, wake_later=driver.wake_later)
        self._seam = Seam(self, codec, self.imports, self.exports, get_index, host)
        self._router = Router(self, limits, start=driver.start, backlog=self.backlog)
        self.circles = Circles(self, limits)
        self.holding = Holding(self, driver, codec, self._outbox, host, get_index)
        self.outgoing: Outgoing = Outgoing(self, codec, self._outbox, self._seam, limits)
        self.outcomes = Outcomes(
            self,
            self.exports,
            self._seam,
            self._router,
            self.outgoing,
            self.holding,
            driver.stop,
        )
        self.pings = Pings(self, self._outbox, self.outgoing, self._router)
        self.ping = self.pings.ping
        self._is_here = driver.here
        self._waits_in_place = driver.waits_in_place
        self.delegation = Delegation(self, hello, self._seam, get_index)
        self.route = self._router.route
        self.control = self.outgoing.control
        self.finish = self.outcomes.finish
        self.fail = self.outcomes.fail
        self.in_full = self.outcomes.in_full
        self.redirect = self.outcomes.redirect
        self.keep = self.outcomes.keep
        self.answer = self.outcomes.answer
        self.withdraw = self.outcomes.withdraw
        self.cap_id = self.delegation.cap_id
        self.reconstruct = self.delegation.reconstruct
        self.on_broken = self.holding.on_broken
        self.release_plain: Callable[[int, int], None] = self._outbox.release_plain
        self.hurry = self._outbox.hurry
        self.kept = self._router.kept
        self.localize = self._seam.localize
        self.incoming = Incoming(self, codec, self._seam, self._router, driver, limits.high_water)
        self.exchange = Exchange(
            self, codec, self._outbox, self.outgoing, self.incoming, self._seam
        )
        self._call = self.exchange.begin if codec.lone is not None else self.outgoing.call
        self._handle_frame = self.incoming.frame
        if codec.traits.hello:
            self._outbox.add_raw(codec.hello(hello))

    # What stubs, promises and the peer ask.

    def call(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any) -> Promise:
        """One call (`args` None: a read); the promise of its answer.

        Raises:
            CannotPass, LimitExceeded, Released: nothing was sent.
            RuntimeError: from a foreign thread.
        """
        if not self._is_here():
            return self._driver.elsewhere(base, path, args, kwargs)
        if type(base) is Stub:
            return Promise(self, self._call(base._id, path, args, kwargs), ())
        return Promise(self, self._call_through(base, path, args, kwargs), ())

    def _call_through(self, base: Cell, path: Path, args: Any, kwargs: Any) -> Cell:
        """A call on a promise."""
        if base.state == PENDING and base.link is None and base.import_id:
            base.used = True
            return self._call(base.import_id, path, args, kwargs)

        if self.error is not None or self.said_bye:
            return self.ended_cell()
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
                plain = args if type(args) is Recording else list(args)
                (args, kwargs), holes = self.localize([plain, kwargs])
            except CannotPass as error:
                error.root = "argument"
                del error.path[0]
                if type(args) is Recording:
                    error.root, error.path = IN_RECORDING, []
                raise
        return Call(self, base, path, args, kwargs, None, holes)

    def notify(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any) -> None:
        """One way: takes no id, and nothing comes back."""
        if self.error is not None or self.said_bye:
            raise again(self.error or PeerClosed(CLOSING))
        if type(base) is Stub:
            self.outgoing.send(base._id, path, args, kwargs)
        else:
            self.route(self._local_call(base, path, args, kwargs))

    def wait(self, base: Stub | Cell, path: Path) -> Generator[Any, Any, Any]:
        """What awaiting a promise does: the value, when it is here."""
        cell = base if type(base) is Cell and not path else as_cell(base, path)
        if cell.state < FULFILLED:
            if cell.pulled == UNDECIDED and cell.import_id:  # as in nearly all waits
                cell.pulled = PULLED
                cell.awaiting += 1
            else:
                self._start_awaiting(cell)
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

    def _start_awaiting(self, cell: Cell) -> None:
        if cell.pulled == UNDECIDED and cell.import_id:
            cell.pulled = PULLED  # which the word of its call will say
        elif cell.pulled != PULLED:
            cell.pull()
        cell.awaiting += 1

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
            for id in self._seam.other_ids.pop(stub, ()):
                if id != stub._id and id in self.imports.entries:
                    self.release(id)
            stub._forget()
            stub._id = GIVEN_UP  # the same reference, if it comes again, is a new stub

    def plain(self, stub: Stub) -> Stub:
        """The stub that the import table knows, which a stub with options stands for."""
        return stub

    def holds(self, stub: Stub) -> bool:
        """Is it still a reference: neither given up, nor of a session that is over?"""
        entry = self.imports.entries.get(stub._id)
        return entry is not None and entry() is stub

    def describe(self, stub: Stub, path: str = "") -> str:
        """A stub, and a path on it, in few words for `repr`."""
        if stub._id == GIVEN_UP:
            return f"{path or 'of'} {self.where}, released"
        what = "index" if stub._id == 0 else f"#{-stub._id}" if stub._id < 0 else "by cap_id,"
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

    def ping_through(self, cell: Cell) -> None:
        """A liveness ping, whose pong fulfils `cell`."""
        self.pings.through(cell)

    def say_bye(self) -> None:
        """No more calls from us. Running answers finish."""
        if not self.said_bye and self.error is None:
            self.said_bye = True
            self.exchange.look()
            if self.traits.bye:
                self.control(BYE)

    def ended_cell(self) -> Cell:
        """The answer of a call that is made too late."""
        cell = Cell(self)
        cell.reject(self.error or PeerClosed(CLOSING))
        return cell

    # What the router and the cells ask.

    def forward_through(self, cell: Cell, call: Call) -> None:
        """A call that stands on a promise of ours to come goes down the wire."""
        cell.used = True
        try:
            if self._driver.here():
                self.circles.pass_by(call, cell)
        except LimitExceeded as error:
            cast(Session, call.session).fail(call, error)
        else:
            self.forward(call, cell.import_id)

    def forward(self, call: Call, target: int) -> None:
        """A call that stands on an import of ours goes down the wire; its reply follows."""
        caller = cast(Session, call.session)
        if not self._driver.here():
            elsewhere = "a stub of a connection in another thread or event loop"
            caller.fail(call, CapnodeError(elsewhere))
            return
        try:
            if call.reply is None:
                self.outgoing.send(target, call.path, call.args, call.kwargs)
                return
            question = self.outgoing.call(target, call.path, call.args, call.kwargs)
        except Exception as error:  # noqa: BLE001 - rule 8: every call is answered
            caller.fail(call, error)
            return
        if not call.reply.wanted:
            question.pulled = NOT_YET
        reply, call.reply = call.reply, None
        reply.follow(question)

    def promised(self, run: Callable[[], Promise]) -> Promise:
        """What `run()` gives, in which calls give promises, also where callers block."""
        return run()

    def bring_soon(self, run: Callable[[], object]) -> None:
        """Call `run()` where the session lives: now, if this is there."""
        if self._driver.here():
            run()
        else:
            self._driver.soon(run)

    # Releases.

    def _note(self, entry: Import) -> None:
        """A weakref callback (rule 3): leave a note; never send, lock or call."""
        self._notes.append(entry)
        if not self.noted:
            self.noted = True
            self._driver.wake_from_anywhere()

    def drain_notes(self) -> None:
        """Release what the collector has found dropped."""
        self.noted = False
        entries = self.imports.entries
        incoming = self.incoming
        plain = self.error is None and not (incoming.resolved or incoming.broken_ids)
        answers: list[int] = []
        while self._notes:
            entry = self._notes.popleft()
            id = entry.id
            if entries.get(id) is not entry:  # it is stale
                continue
            if not plain or not entry.received:
                self.release(id)
                continue
            del entries[id]  # what `release` does, in fewer steps
            if id < 0:
                self._outbox.release_reference(id, entry.received)
            else:
                answers.append(id)
        if answers:
            self._outbox.release_answers(answers)

    def release(self, id: int) -> None:
        """Take an import out of the table, and tell the other side."""
        incoming = self.incoming
        if incoming.resolved or incoming.broken_ids:
            incoming.forget(id)
        entry = self.imports.entries.pop(id, None)
        if self.error is not None or entry is None or not entry.received:
            return
        if id > 0:
            self._outbox.release_answers([id])
        else:
            self._outbox.release_reference(id, entry.received)

    # Bytes in and out.

    def backlog(self) -> int:
        """Bytes that wait to be sent."""
        return self.unsent + self._outbox.size

    def flush(self) -> list[Encoded]:
        """The frames to be written now. The driver keeps in `unsent` what of them is not yet."""
        if self.noted:
            self.drain_notes()
        return self._outbox.flush()

    def flush_turn(self) -> list[Encoded]:
        """The same at the end of a turn of reading: releases do not leave alone, and those of plain
        answers not before they are many."""
        if self.noted:
            self.drain_notes()
        return self._outbox.flush(due=WAITS_UP_TO) if self._outbox.size else _NO_FRAMES

    def leave(self) -> bytes | None:
        """The one frame to be written now; None if there is none, or if it is for `flush_turn`."""
        return None if self.noted else self._outbox.leave()

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

    def receive(self, data: bytes | memoryview) -> None:
        """Bytes have come. What they ask for is started, and answers are queued for `flush`. What
        comes after the end of the session is not looked at. A view is not looked at again later."""
        if self.error is not None:
            return
        self.bytes_received += len(data)
        try:
            items = self._codec.feed(data)
            last = items[-1] if self._waits_in_place and type(items) is list and items else None
            for item in items:
                if type(item) is not Hello:
                    self._handle_frame(item, item is last)
                else:
                    self._greet(item)
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
        if self.ends_as is not None:
            error = self.ends_as(error)
        self.error = error
        self.exchange.look()
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
        self.pings.end(error)
        self._outbox.clear()
        if last is not None:
            self._outbox.add(last)
        self._driver.ended()
        self.holding.let_go_of(list(self.holding.targets))

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
        self.application_version = agreed_version(self._hello, hello)
        self.remote = hello
        if self._codec.junk:
            logger.warning(
                "%s wrote to the stream before its hello: %r", self._codec.where, self.junk[:500]
            )
        if hello.application and self._codec.where == UNNAMED:
            self._codec.where = hello.application
        self.outgoing.max_message = hello.max_frame - _AROUND_MESSAGE
        self._outbox.limit(self.outgoing.max_message)
        self._codec.max_depth = min(self._codec.max_depth, hello.max_depth)
        self._codec.features = set(self._hello.features) & set(hello.features)
        self.holding.hold_index()
        self.exchange.look()
        self._driver.greeted()


# The heads of the frame and of its array, which stand around a message.
_AROUND_MESSAGE = 18

_NO_FRAMES: list[Encoded] = []
