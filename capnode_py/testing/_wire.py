"""Sessions joined by a fake wire, and fences.

No event loop, no descriptor and no thread, so that a test decides what happens when::

    wire = Wire()
    near, far = wire.link(far_index={"add": lambda a, b: a + b})
    promise = near.index.add(1, 2)          # made, and not sent yet
    near.flush()                            # on the wire
    far.deliver("call")                     # that frame, and it holds one call; it is answered
    near.deliver("resolve")
    assert near.get(promise) == 3           # or only this: `get` runs the wire until it is quiet
    wire.check_quiet()                      # nothing is left behind, on either side

Handlers may be coroutines, but nothing here knows asyncio or trio: they can await promises, and
`Fence`, the event that a test sets when a handler is to go on.
"""

from __future__ import annotations

import gc
from asyncio import CancelledError
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import copy_context
from types import FunctionType
from typing import Any, NamedTuple, NoReturn, Self

from .._capnode import Capnode, Index
from .._cell import Answer, Call, Cell
from .._incoming import TOLD
from .._leaks import leak_report
from .._limits import Limits
from .._long import Encoded
from .._messages import CALL, WORDS, Hello
from .._peer import Peer, codec_of
from .._session import FEATURES, VERSIONS
from .._tables import Running
from ..driver._base import Driver
from ._tasks import Fence, Task


class Message(NamedTuple):
    """A message as it went over the wire; references in its fields are inert (`Mine`, ...)."""

    word: str
    fields: Sequence[Any]


class Frame(NamedTuple):
    """A frame on the wire. Without data it is the end of the stream."""

    data: bytes
    messages: list[Message]


class FakeDriver(Driver):
    """One side of a connection: a session, and the driver that carries it over a `Wire`.

    Attributes:
        peer: what user code holds of a connection.
        index: the stub of the other side's index.
        inbox: the frames on their way to this side, oldest first.
        blocked: `Wire.run` delivers nothing to this side.
        sent: each message that this side has put on the wire.
        holding: calls are not run, but put into `held`, for the test to tell their outcome by
            ``session.finish(call, value)`` and ``session.fail(call, error)``.
        held: see `holding`.
        started: the names of all calls that the engine has started here, in order.
        stopped: those that it has cancelled.
        eager: a coroutine handler starts inline, as on asyncio from 3.12 on. If not, it has a new
            task, which runs only when nothing else moves.
        alone: calls and answers that have a frame to themselves take the short way, as on asyncio.
        tasks: those that have begun and wait for something.
        ready: those that can go on.
        alarms: what is to be called later, and in how many seconds; nothing here calls it.
    """

    other: FakeDriver

    def __init__(
        self,
        wire: Wire,
        name: str,
        index: Index | Capnode,
        limits: Limits,
        hello: Hello | None,
    ) -> None:
        self.wire = wire
        self.name = name
        self.inbox: deque[Frame] = deque()
        self.blocked = False
        self.sent: list[Message] = []
        self.holding = False
        self.held: list[Call] = []
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.eager = True
        self.alone = False
        self.tasks: set[Task] = set()
        self.ready: deque[Task] = deque()
        self.alarms: list[tuple[float, Callable[[], None]]] = []
        self._stalled: list[Frame] | None = None
        self.awake = self._releases = False
        self._errands: deque[Callable[[], object]] = deque()
        self._new_tasks: list[Task] = []
        self._eof = Fence()
        make_codec = codec_of(wire.dialect)
        self._spy = make_codec(Limits(max_frame=1 << 62, max_depth=500))
        hello = hello or Hello(
            versions=VERSIONS,
            features=FEATURES,
            max_frame=limits.max_frame,
            max_depth=limits.max_depth,
            session_id=f"{name} {len(wire.sides)}".encode().ljust(16),
            secret=f"the secret of {name}".encode(),
            application=name,
        )
        host = index if isinstance(index, Capnode) else Capnode(index)
        super().__init__(
            make_codec(limits), limits=limits, hello=hello, host=host, get_index=host.get_index
        )
        host.sessions[hello.session_id] = self.session
        if not self.session.traits.hello:
            self.session.holding.hold_index()
        Peer(self, nickname=name)

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self.inbox)} frames to come>"

    @property
    def index(self) -> Any:
        return self.session.index

    # What a test asks.

    def spawn(self, awaitable: Awaitable[Any]) -> Task:
        """A task that awaits it; it has run until its first wait."""
        task = Task(_awaiting(awaitable), self)
        task.step()
        return task

    def get(self, awaitable: Awaitable[Any]) -> Any:
        """Run the whole wire until nothing moves; the outcome of `awaitable`."""
        task = self.spawn(awaitable)
        self.wire.run()
        return task.result()

    def flush(self) -> None:
        """End a turn: what this side has to say goes on the wire, releases too."""
        frame = self.session.leave() if self.alone and not self._releases else None
        self._releases = False
        self._send(self.session.flush() if frame is None else [frame])

    def flush_turn(self) -> None:
        """The same as a driver does it when it has read: releases that may wait stay here."""
        frame = self.session.leave() if self.alone else None
        self._send(self.session.flush_turn() if frame is None else [frame])

    def _send(self, frames: list[Encoded]) -> None:
        self.awake = False
        for data in map(bytes, frames):
            messages = self._read(data)
            self.sent += messages
            self._put(Frame(data, messages))
        if frames and self._stalled is None:
            self.wrote(0)

    def _read(self, data: bytes) -> list[Message]:
        messages = []
        for item in self._spy.feed(data):
            if not isinstance(item, Hello):
                decoded, _ = self._spy.decode(item)
                messages += [Message(WORDS[word], fields) for word, *fields in decoded]
        return messages

    def _put(self, frame: Frame) -> None:
        if self._stalled is None:
            self.other.inbox.append(frame)
        else:
            self._stalled.append(frame)
            self.session.unsent += len(frame.data)

    def words(self) -> list[str]:
        """The words of all that this side has sent."""
        return [message.word for message in self.sent]

    def counts(self) -> Counter[str]:
        """How many messages of each word this side has sent."""
        return Counter(self.words())

    def coming(self) -> list[Message]:
        """The messages of the next frame on its way to this side; [] if there is none."""
        return self.inbox[0].messages if self.inbox else []

    def deliver(self, *words: str) -> list[Message]:
        """Deliver the next frame to this side, which is one turn here: then it flushes.

        Args:
            words: if given, the frame must hold messages of just these.
        """
        messages = self.coming()
        if words:
            found = [message.word for message in messages]
            if found != list(words):
                raise AssertionError(f"to {self.name}: expected {list(words)}, but {found} came")
        self.feed(self.inbox.popleft().data)
        return messages

    def feed(self, data: bytes) -> None:
        """Let this side receive these bytes, whoever made them; b"" ends the stream."""
        size = self.wire.chop or len(data)
        for start in range(0, len(data), size or 1):
            self.received(data[start : start + size])
        if not data:
            self._eof.set()
            self.lost()
        self.turn()

    def received(self, data: bytes | memoryview) -> None:
        copy_context().run(self._received, data)

    def _received(self, data: bytes | memoryview) -> None:
        exchange = self.session.exchange
        word = exchange.word(bytes(data)) if self.alone and exchange.open else None
        if word is not None:
            self._in_turn = True
            try:
                if word == CALL and self.serve_alone(bytes(data)):
                    return
                if word != CALL and exchange.settle(bytes(data), word):
                    return
            finally:
                self._in_turn = False
        super().received(data)

    def turn(self) -> None:
        """Let all run that can, and flush."""
        while self.busy:
            if self._errands:
                self._errands.popleft()()
            elif self.ready:
                self.ready.popleft().step()
            elif self.eager and self._new_tasks:
                self._start_tasks()
            else:
                self.flush()

    @property
    def busy(self) -> bool:
        """Has a turn anything to do?"""
        tasks = self.ready or (self.eager and self._new_tasks)
        return bool(self._errands or tasks or self.awake)

    def _start_tasks(self) -> None:
        """Start those that are new, the last one first: no order of theirs may matter."""
        tasks, self._new_tasks = self._new_tasks, []
        for task in reversed(tasks):
            task.step()

    def settle(self) -> bool:
        """What a loop does when nothing has come: new tasks, and releases that have waited."""
        if self._new_tasks:
            self._start_tasks()
        elif self._releases:
            self.flush()
        else:
            return False
        self.turn()
        return True

    def stall(self) -> None:
        """The other side takes no bytes any more: what this side flushes stays unsent."""
        if self._stalled is None:
            self._stalled = []

    @property
    def stalled(self) -> bool:
        """Does the other side take no bytes?"""
        return self._stalled is not None

    def unstall(self, frames: int | None = None) -> None:
        """It takes them again; or, of those that wait, so many frames."""
        if self._stalled is not None:
            taken = self._stalled[:frames]
            self._stalled = None if frames is None else self._stalled[frames:]
            self.other.inbox.extend(taken)
            self.wrote(sum(len(frame.data) for frame in self._stalled or ()))
            self.turn()

    def hang_up(self, cause: BaseException | None = None) -> None:
        """The connection breaks: what is on the wire is lost, on both sides."""
        for side in (self, self.other):
            side.inbox.clear()
            side._stalled = None
            side.session.unsent = 0
            side._eof.set()
            side.lost(cause)
            side.turn()

    def leaks(self) -> list[str]:
        """What is left on this side that a quiet session does not hold."""
        session = self.session
        left = {
            "uncommitted exports": session.exports.uncommitted,
            "keys of exports": session.exports._by_key,
            "kept calls": session.kept,
            "bytes of kept calls": session._router._kept_bytes,
            "payloads that wait": session._router._waiting,
            "paths that promises came to": session._seam.resolved_paths,
            "pings": session.pings.pending,
            "notes": session._notes,
            "unsent bytes": session.backlog(),
            "frames to come": self.inbox,
            "held calls": self.held,
            "running calls": self._running,
            "calls to start": self.starting,
            "tasks that wait": self.tasks,
        }
        found = [f"{what}: {value!r}" for what, value in left.items() if value]
        return [f"{self.name}: {what}" for what in [*leak_report(session), *found]]

    # What the engine and the shared half of drivers ask.

    def here(self) -> bool:
        return True

    def make_event(self) -> Fence:
        return Fence()

    async def within(self, seconds: float, wait: Callable[[], Awaitable[Any]]) -> bool:
        await wait()  # there is no clock
        return True

    async def shielded(self, wait: Callable[[], Awaitable[Any]]) -> None:
        await wait()

    def background(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.ready.append(Task(run(), self))

    def soon(self, run: Callable[[], object]) -> bool:
        self._errands.append(run)
        return True

    def after(self, seconds: float, run: Callable[[], None]) -> None:
        self.alarms.append((seconds, run))

    def wake(self) -> None:
        self.awake = True

    def wake_later(self) -> None:
        self._releases = True

    def wake_from_anywhere(self) -> None:
        self.soon(self.session.drain_notes)

    def wait(self, cell: Cell) -> Generator[Any, Any, Any]:
        task = self.wire.current
        try:
            yield cell
        except BaseException:
            if task is not None:
                cell.unwatch(task.go_on)
                task = None  # the traceback holds this frame, and the task the traceback
            raise

    def is_cancellation(self, error: BaseException) -> bool:
        return isinstance(error, CancelledError)

    def start(self, call: Call) -> None:
        self.started.append(_name(call))
        if self.holding:
            call.started = True
            self.held.append(call)
        else:
            super().start(call)

    def run(self, id: int, running: Running) -> Any:
        function, _, (_, _, path, _), _ = running
        self.started.append(".".join(map(str, path)) or function.__name__)
        if self.holding:
            self.held.append(self.session.in_full(id, running))
            return TOLD
        return super().run(id, running)

    def stop(self, call: Call) -> None:
        self.stopped.append(_name(call))
        if call.handle is not None:
            task, call.handle = call.handle, None
            task.cancel()
        elif type(call.reply) is Answer:
            self.stop_usual(call.reply.id)

    def stop_usual(self, id: int) -> None:
        task = self._usual.get(id)
        if task is not None:
            self._usual[id] = None
            task.cancel()

    def ended(self) -> None:
        for id in list(self._usual):
            self.stop_usual(id)
        super().ended()

    def launch(self) -> None:
        self._new_tasks.append(Task(self._run_oldest(), self))

    def launch_usual(self, id: int, running: Running, awaitable: Any) -> bool:
        if not (self.eager and self.alone):
            return False
        task = Task(self.await_usual(id, running, awaitable), self)
        task.step()
        if not task.done:
            self.launched_usual(id, running, task)
        return True

    def write_frame(self, frame: bytes) -> None:
        self._send([frame])

    def launch_eagerly(self, call: Call, awaitable: Any) -> bool:
        if not self.eager:
            return False
        task = Task(self.await_handler(call, awaitable), self)
        call.handle = task
        task.step()
        return True

    async def _run_oldest(self) -> None:
        oldest = self.take_oldest()
        if oldest is not None:
            call, awaitable = oldest
            call.handle = self.wire.current
            await self.await_handler(call, awaitable)

    def in_worker(self, run: Callable[[], Any]) -> NoReturn:
        raise NotImplementedError("in_thread handlers need a real driver")

    async def finish_writing(self) -> None:
        self.flush()
        self._put(Frame(b"", []))
        if self.session.error is None:
            await self._eof.wait()

    def release_stream(self) -> None:
        self.inbox.clear()


class Wire:
    """Connections between sessions in one test, and what moves their frames.

    Args:
        chop: deliver frames in pieces of so many bytes; 0 delivers them whole.
        dialect: what they speak: see `capnode_py.connect`.

    Attributes:
        sides: both sides of each connection.
        current: the task that runs now.
    """

    def __init__(self, *, chop: int = 0, dialect: str = "cbor") -> None:
        self.chop = chop
        self.dialect = dialect
        self.sides: list[FakeDriver] = []
        self.current: Task | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        if exc_type is None:
            self.check_quiet()

    def link(
        self,
        index: Index | Capnode = None,
        far_index: Index | Capnode = None,
        *,
        limits: Limits | None = None,
        far_limits: Limits | None = None,
        far_hello: Hello | None = None,
        names: tuple[str, str] = ("near", "far"),
        greet: bool = True,
    ) -> tuple[FakeDriver, FakeDriver]:
        """A connection: its two sides, which have exchanged their hellos.

        Args:
            index: what the near side offers, or whose connection it is; `far_index` the far one.
            limits, far_limits: of either side.
            far_hello: what the far side says of itself, if that is to be something special.
            names: of the two sides; each its own.
            greet: False leaves the hellos on the wire.
        """
        near = FakeDriver(self, names[0], index, limits or Limits(), None)
        far = FakeDriver(self, names[1], far_index, far_limits or Limits(), far_hello)
        self.sides += [near, far]
        near.other, far.other = far, near
        near.flush()
        far.flush()
        if greet:
            self.run()
        return near, far

    def run(self) -> None:
        """Move frames, and run what can, until nothing moves."""
        moved = True
        while moved:
            moved = False
            for side in self.sides:
                if side.busy:
                    side.turn()
                    moved = True  # it may have given another side something to do
            for side in self.sides:
                if side.inbox and not side.blocked:
                    side.deliver()
                    moved = True
            if not moved:
                moved = any(side.settle() for side in self.sides)

    def leaks(self) -> list[str]:
        """What is left on any side, once nothing moves."""
        self.run()
        return [leak for side in self.sides for leak in side.leaks()]

    def check_quiet(self) -> None:
        """Assert that every side holds its index alone, and nothing waits, runs or is unsent."""
        if self.leaks():
            gc.collect()  # only now: it is slow, and dropped cycles are rare
        leaks = self.leaks()
        if leaks:
            raise AssertionError("left behind:\n  " + "\n  ".join(leaks))


async def _awaiting(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _name(call: Call) -> str:
    if not call.path and isinstance(call.target, FunctionType):
        return call.target.__name__
    return ".".join(map(str, call.path))
