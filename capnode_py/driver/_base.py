"""What drivers share: starting calls in order, the end of a connection, threads.

A driver owns one session. It is the only place where user code runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from types import CoroutineType, MethodType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .._cell import REJECTED, Call, Cell
from .._errors import LocalProtocolError, PeerClosed, PeerLost, Withdrawn, again
from .._incoming import TOLD
from .._limits import Limits
from .._log import get_logger
from .._messages import Codec, Hello, Recording
from .._reach import FAR, IN_THREAD, AskedToDescribe, callable_from_afar, reach
from .._seam import Host, as_cell
from .._session import Session
from .._stub import Promise, Stub
from .._tables import Running
from ._handlers import current, work, worker

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .._options import Deadlines

logger = get_logger("capnode_py.driver")

LOOP_ENDED = "the event loop has ended"
CLOSED_HERE = "this side has closed the connection"

RELEASE_DELAY = 0.01
"""Seconds that a release may wait for a frame that leaves anyway."""

PLAIN = frozenset((type(None), bool, int, float, str, bytes, list, dict, tuple))

Explain = Callable[[PeerLost], Coroutine[Any, Any, BaseException]]

T = TypeVar("T")


class Event(Protocol):
    """asyncio's, or anyio's."""

    def set(self) -> Any: ...
    async def wait(self) -> Any: ...


class Driver:
    """The shared half; a subclass adds the loop and the stream.

    Attributes:
        session: the engine.
        peer: what handlers see as `current_peer()`.
        asked_to_close: somebody has closed it, and not its end.
        explain: finds out why the stream ended (a child died); None: `PeerLost` as it stands.
        finalize: a step of closing, before the stream is released (a child is seen out).
        starting: the calls that wait for their task, and what each is to await, if it has begun.
    """

    passes_interrupts = True
    """A KeyboardInterrupt in a handler ends the loop as well, after it was answered."""

    waits_in_place = False

    session_type: type[Session] = Session

    def __init__(
        self,
        codec: Codec,
        *,
        limits: Limits,
        hello: Hello,
        host: Host,
        get_index: Callable[[], Any],
    ) -> None:
        self.limits = limits
        self._host = host
        self.peer: Any = None
        self.explain: Explain | None = None
        self.finalize: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.starting: deque[tuple[Any, Any]] = deque()
        self._running: set[Call] = set()
        # The tasks of usual calls; None for one that has been stopped, and has not ended.
        self._usual: dict[int, Any] = {}
        self._telling = 0
        self._in_turn = False
        self._flushing = False
        self._releasing = False
        self._closing = False
        self.asked_to_close = False
        self._opened = self.make_event()
        self._closed = self.make_event()
        self._idle: list[Event] = []
        self._drained: list[Event] = []
        self.session = self.session_type(
            codec, self, limits=limits, hello=hello, host=host, get_index=get_index
        )

    @functools.cached_property
    def deadlines(self) -> Deadlines:
        """Those of calls with a time limit."""
        from .._options import Deadlines

        return Deadlines(self.session, now=time.monotonic, after=self.after)

    # What a subclass gives.

    @abstractmethod
    def here(self) -> bool: ...

    @abstractmethod
    def make_event(self) -> Event: ...

    @abstractmethod
    async def within(self, seconds: float, wait: Callable[[], Awaitable[Any]]) -> bool:
        """Await `wait()` for so long at the most; False if that was too short."""

    @abstractmethod
    async def shielded(self, wait: Callable[[], Awaitable[Any]]) -> None:
        """Await `wait()` to its end, also if the caller is cancelled; then be cancelled."""

    @abstractmethod
    def background(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task that belongs to the connection, not to its caller."""

    @abstractmethod
    def soon(self, run: Callable[[], object]) -> bool:
        """Call `run()` in the loop, from any thread, at any moment; False if the loop is gone."""

    def from_anywhere(self, run: Callable[[], object]) -> None:
        """As `soon`, and takes no lock: for one who may hold any."""
        self.soon(run)

    @abstractmethod
    def after(self, seconds: float, run: Callable[[], None]) -> None:
        """Call `run()` in so many seconds, unless the stream is closed before."""

    @abstractmethod
    def wake(self) -> None: ...

    @abstractmethod
    def wake_later(self) -> None: ...

    @abstractmethod
    def wait(self, cell: Cell) -> Iterable[Any]: ...

    def stop_waiting(self, cell: Cell, waiter: Any) -> None:
        """`waiter` does that by itself."""

    @abstractmethod
    def is_cancellation(self, error: BaseException) -> bool: ...

    @abstractmethod
    def stop(self, call: Call) -> None: ...

    @abstractmethod
    def launch(self) -> None:
        """Start a task that takes the oldest of `starting` when it first runs."""

    @abstractmethod
    def launch_eagerly(self, call: Call, awaitable: Any) -> bool:
        """Start `call` at once, in a task of its own; False if this loop cannot."""

    def launch_usual(self, id: int, running: Running, awaitable: Any) -> bool:
        """The same for a usual call, which need not become a `Call` for that; False if this driver
        has no shorter way for it."""
        return False

    @abstractmethod
    def in_worker(self, run: Callable[[], Any]) -> Awaitable[Any]:
        """Run it in a worker thread of this loop."""

    @abstractmethod
    async def finish_writing(self) -> None:
        """Write what waits, then end our half of the stream."""

    async def cut_writing(self) -> None:
        """End our half of the stream, now, if it is not ended; what waits is not written."""

    @abstractmethod
    def release_stream(self) -> None:
        """Close the stream, now."""

    async def stream_closed(self) -> None:
        """Wait until it is closed, where that takes a while."""

    # Starting calls (rule 6).

    def start(self, call: Call) -> None:
        """Start a call behind those that wait for their task; at once if there are none.

        Outside of a turn somebody's code is on the stack, which has called a promise and does not
        expect handlers to run under it: a task is needed then as well.
        """
        if self.starting or not self._in_turn:
            self.starting.append((call, None))
            self.launch()
        else:
            self._begin(call)

    def fence(self, cell: Cell) -> None:
        self.starting.append((cell, None))
        self.launch()

    def _begin(self, call: Call) -> None:
        awaitable = self._call_handler(call)
        if awaitable is not None:
            self._go_on(call, awaitable)

    def _go_on(self, call: Call, awaitable: Any) -> None:
        if not self.launch_eagerly(call, awaitable):
            self.starting.append((call, awaitable))
            self.launch()

    def run(self, id: int, running: Running) -> Any:
        """See `session.Driver`: what `_call_handler` does, for a function that is found already."""
        if current.get(None) is not self.peer:
            current.set(self.peer)  # once: see `received`
        try:
            result = running[0](*running[2][3])
        except BaseException as error:
            self.session.fail(self.session.in_full(id, running), error)
            if self.passes_interrupts and isinstance(error, KeyboardInterrupt):
                raise
            return TOLD

        kind = type(result)
        if kind not in PLAIN and (kind is CoroutineType or hasattr(kind, "__await__")):
            if isinstance(result, FAR):
                self.session.finish(self.session.in_full(id, running), result)
            elif not self.launch_usual(id, running, result):
                self._go_on(self.session.in_full(id, running), result)
            return TOLD
        return result

    def take_oldest(self) -> tuple[Call, Any] | None:
        """For a new task: the call that has waited longest, and what to await, or None."""
        if not self.starting:  # the session has ended meanwhile
            return None
        call, awaitable = self.starting.popleft()
        if isinstance(call, Cell):
            call.fulfil(None)
            return None
        if call.cancelled and awaitable is not None:  # made, and not begun: it sees nothing
            if isinstance(awaitable, CoroutineType):
                awaitable.close()
            self.session.fail(call, Withdrawn())
            return None
        if awaitable is None:
            awaitable = self._call_handler(call)
        return None if awaitable is None else (call, awaitable)

    def _call_handler(self, call: Call) -> Any:
        """The synchronous part of a call. Returns what is to be awaited, or None: it is done."""
        if call.cancelled:
            return None
        call.started = True
        token = current.set(self.peer)
        try:
            result, rest = reach(call.target, call.path)
            if isinstance(result, FAR):
                self.session.redirect(call, result, rest)
                return None
            if type(call.args) is Recording:
                return start_map(self, call.args, result)
            if call.args is not None:
                function = callable_from_afar(result)
                # Asked of a bound method, a missing attribute costs 300 ns; of its function, 30.
                inner = function.__func__ if type(function) is MethodType else function
                if getattr(inner, IN_THREAD, False):
                    run = functools.partial(work, function, call.args, call.kwargs)
                    return self._in_thread(run)
                result = function(*call.args, **call.kwargs)
        except BaseException as error:
            self.failed(call, error)
            if self.passes_interrupts and isinstance(error, KeyboardInterrupt):
                raise
            return None
        finally:
            current.reset(token)

        if is_to_await(result):
            return result
        self.session.finish(call, result)
        return None

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """What a handler gives in a thread. If that is to be awaited, it is, in the loop."""
        (result,) = await self.in_worker(work)
        return await result if is_to_await(result) else result

    def failed(self, call: Call, error: BaseException) -> None:
        """A handler raised; or it was no call, but the question what can be called."""
        if isinstance(error, AskedToDescribe) and self._host.describe:
            from .._describe import describe

            self.session.finish(call, describe(error.value))
        else:
            self.session.fail(call, error)

    async def await_handler(self, call: Call, awaitable: Any) -> None:
        """The rest of a call: a task's whole life."""
        self._running.add(call)
        if current.get(None) is not self.peer:
            current.set(self.peer)
        try:
            result = await awaitable
        except BaseException as error:
            self.session.fail(call, error)
            if self.passes_interrupts and isinstance(error, KeyboardInterrupt):
                raise  # the rest, a cancellation too, ends here with the task
        else:
            self.session.finish(call, result)
        finally:
            call.handle = None
            self._running.discard(call)
            if self._idle and not self.is_busy:
                self._tell(self._idle)

    async def await_usual(self, id: int, running: Running, awaitable: Any) -> None:
        """What `await_handler` does, for a call that need not be a `Call`."""
        try:
            result = await awaitable
        except BaseException as error:
            self.session.fail(self.session.in_full(id, running), error)
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            self.session.exchange.finish(id, running, result)
        finally:
            self._usual.pop(id, None)
            if self._idle and not self.is_busy:
                self._tell(self._idle)

    def launched_usual(self, id: int, running: Running, task: Any) -> None:
        """Its first step has been made, in this task, which waits."""
        self._usual[id] = task
        if self.session.exports.entries.get(id) is not running:  # in that step
            call = self.session.in_full(id, running)
            if call.cancelled or self.session.error is not None:
                self.stop_usual(id)

    def stop_usual(self, id: int) -> None:
        """Cancel such a task, once, if it is there."""

    def tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function of this side that no peer has asked for: `_released`, or a callback of
        `on_broken`. It runs in a task of its own, and closing waits for it (bounded)."""
        self._telling += 1
        self.background(functools.partial(self._tell_it, function, args))

    async def _tell_it(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        current.set(self.peer)
        try:
            result = function(*args)
            if hasattr(type(result), "__await__"):
                await result
        except Exception:
            logger.exception("%r raised", function)
        finally:
            self._telling -= 1
            if not self._telling:
                self._tell(self._idle)

    # Threads.

    def wake_from_anywhere(self) -> None:
        # A flush is coming, and it drains the notes: both flags fall before it does.
        if not self._flushing and not self._in_turn:
            self.soon(self._drain_notes)

    def _drain_notes(self) -> None:
        self.session.drain_notes()

    def elsewhere(self, base: Stub | Cell, path: Any, args: Any, kwargs: Any) -> Promise:
        """A call from another thread than the session's."""
        return self.bring(lambda: self.session.call(base, path, args, kwargs))

    def bring(self, run: Callable[[], T]) -> T:
        """Run `run()` in the loop: here, or from a worker thread of a handler.

        Raises:
            RuntimeError: from any other thread.
        """
        if self.here():
            return run()
        if not getattr(worker, "active", False):
            self.check_loop()
            raise RuntimeError(
                "this stub belongs to a connection in another thread or event loop: write "
                "peer.submit(stub.method, *args).result(), or @capnode.in_thread on the handler"
            )
        return self.across(run).result()

    def say(self, run: Callable[[], object]) -> None:
        """Run `run()`, for which nobody waits, as `bring` does."""
        self.bring(run)

    def check_loop(self) -> None:
        """Raises `PeerClosed` if the loop is gone."""

    def ask(self, make: Callable[[], Promise]) -> Any:
        """A call that a user makes; `make()` makes it here. Gives what the caller is to get: a
        promise, or, where callers block, the value."""
        return self.bring(make)

    def across(self, run: Callable[[], T]) -> Future[T]:
        """Run `run()` in the loop, from any thread."""
        from concurrent.futures import Future

        future: Future[T] = Future()

        def go() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(run())
                except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                    future.set_exception(error)

        if not self.soon(go):
            future.set_exception(PeerClosed("the event loop of this connection has ended"))
        return future

    def make_future(self) -> Future[Any]:
        """One to be waited for in any thread."""
        from concurrent.futures import Future

        return Future()

    def outcome(self, make: Callable[[], Promise]) -> Future[Any]:
        """The outcome of the promise that `make()`, run in the loop, gives. From any thread."""
        future = self.make_future()

        def go() -> None:
            try:
                promise = make()
                cell = as_cell(promise._base, promise._path)
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                future.set_exception(error)
                return
            cell.pull()
            cell.watch(functools.partial(self._tell_future, future))
            future.add_done_callback(functools.partial(self._cancel_with, cell))

        if self.session.error is not None:
            future.set_exception(again(self.session.error))
        elif not self.soon(go):
            future.set_exception(PeerClosed("the event loop of this connection has ended"))
        return future

    def _tell_future(self, future: Future[Any], cell: Cell) -> None:
        if future.set_running_or_notify_cancel():
            if cell.state == REJECTED:
                future.set_exception(again(cell.value))
            else:
                future.set_result(cell.value)

    def block_on(self, promise: Promise, timeout: float | None) -> Any:
        """See `wait`, in a thread where that is allowed."""
        future = self.outcome(lambda: promise)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise

    def _cancel_with(self, cell: Cell, future: Future[Any]) -> None:
        if future.cancelled():
            self.soon(lambda: self.session.cancel(cell))

    # The life of the connection.

    async def open(self) -> None:
        """Wait for the other side's hello.

        Raises:
            PeerLost, ProtocolError: it did not come.
        """
        if not self.session.wants_hello:
            return
        if not await self.within(self.limits.hello_timeout, self._opened.wait):
            self.miss_hello()
        if self.session.error is not None:
            raise self.session.error

    def miss_hello(self) -> None:
        """The time for the other side's hello is over."""
        if self.session.wants_hello:
            self.session.end(
                PeerLost(
                    f"no hello within {self.limits.hello_timeout:g} s (Limits.hello_timeout): "
                    "is the program at the other end a capnode peer?"
                )
            )

    def greeted(self) -> None:
        self._opened.set()

    def received(self, data: bytes | memoryview) -> None:
        """Bytes have come: one turn.

        The caller sees to it that it has a context of its own, where `current` may stay our peer.
        """
        outer = self._in_turn
        self._in_turn = True
        try:
            self.session.receive(data)
        except Exception as error:
            logger.exception("a bug in capnode_py ends the session; please report it")
            self._broke(error)
        finally:
            self._in_turn = outer

    def serve_alone(self, data: bytes) -> bool:
        """If what was read is one usual call, run it and answer; else nothing has happened. This
        is part of a turn, in whose place there may be nothing else."""
        session = self.session
        if self.starting or session.kept:
            return False
        exchange = session.exchange
        running = exchange.take(data)
        if running is None:
            return False
        id = session.exports.last_answer
        result = self.run(id, running)
        if result is not TOLD:
            frame = exchange.reply(id, running, result)
            if frame is not None:
                self.write_frame(frame)
        return True

    def write_frame(self, frame: bytes) -> None:
        """Write what `serve_alone` gives, now, where nothing waits to be written."""
        raise NotImplementedError

    def as_turn(self, run: Callable[[], T]) -> T:
        """Run `run()`, in a context of its own and with no code of a user's on the stack: what it
        starts may run at once."""
        outer = self._in_turn
        self._in_turn = True
        try:
            return run()
        finally:
            self._in_turn = outer
            self.session.drain_notes()  # those of a turn wake nobody
            if self.session.backlog():
                self.wake()

    def wrote(self, unsent: int) -> None:
        """So much is left to write."""
        outer = self._in_turn
        self._in_turn = True
        try:
            self.session.written(unsent)
        finally:
            self._in_turn = outer
        if self.session.backlog() > unsent:  # what was kept is answered now
            self.wake()
        if self._drained and self.session.backlog() <= self.limits.low_water:
            self._tell(self._drained)

    def _broke(self, error: BaseException) -> None:
        """The engine itself raised: a bug. The process lives, and the peer is told."""
        wrapped = LocalProtocolError(f"internal error: {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        self.session.abort(wrapped)

    def lost(self, cause: BaseException | None = None) -> None:
        """The stream has ended, or broke."""
        if self.session.error is not None:
            return
        if self._closing:
            self._tell(self._idle)  # nobody is there for whom the handlers could finish
            return
        if self.session.incoming.heard_bye:
            self.close(PeerLost("the other side has closed the connection (it said bye)"))
            return
        error = PeerLost(
            f"the connection broke: {cause}" if cause else "the other side closed the connection"
        )
        error.__cause__ = cause
        if self.explain is None:
            self.session.end_of_stream(error)
        else:
            self.background(functools.partial(self._explain, self.explain, error))

    async def _explain(self, explain: Explain, error: PeerLost) -> None:
        self.session.end_of_stream(await explain(error))

    def abandoned(self, run: Callable[[], object]) -> bool:
        """See `session.Driver`. Where a loop or a pump runs, it holds what it serves."""
        return False

    def ended(self) -> None:
        """The session is over: stop what runs for it, and let go of the stream."""
        for call in list(self._running):
            self.stop(call)
        while self.starting:
            item, awaitable = self.starting.popleft()
            if isinstance(awaitable, CoroutineType):
                awaitable.close()
            elif isinstance(item, Cell):
                item.fulfil(None)
        self._opened.set()
        self._tell(self._drained)
        self.close(None)

    @property
    def is_busy(self) -> bool:
        """Does a handler run, or wait?"""
        return bool(self._running or self._usual)

    @property
    def is_closing(self) -> bool:
        """Has the end begun?"""
        return self._closing

    def close(self, error: BaseException | None) -> None:
        """Begin to close; `error` is what then still pends gets. Only the first call counts."""
        if not self._closing:
            self._closing = True
            self.background(functools.partial(self._close, error))

    async def _close(self, error: BaseException | None) -> None:
        """Say bye, let running answers finish, write what waits, end the stream. All bounded."""
        try:
            self.session.say_bye()
            if self.starting:  # what has come runs as well, though its task has not begun
                started = Cell(self.session)
                begun = self.make_event()
                started.watch(lambda _: begun.set())
                self.fence(started)
                await self.within(self.limits.close_timeout, begun.wait)
            if self.is_busy and self.session.error is None:
                await self._until_idle()
            await self.within(self.limits.close_timeout, self.finish_writing)
            self.session.end(error or PeerClosed(CLOSED_HERE))
        except Exception:
            logger.exception("closing failed")
        finally:
            self.session.end(PeerClosed(CLOSED_HERE))
            if self._telling:
                await self._until_idle()
            try:
                if self.finalize is not None:  # while it lasts, what comes is read and dropped
                    await self.cut_writing()
                    await self.finalize()
                self.release_stream()
                await self.within(self.limits.close_timeout, self.stream_closed)
            finally:
                self.release_stream()
                self._closed.set()

    async def _until_idle(self) -> None:
        idle = self.make_event()
        self._idle.append(idle)
        await self.within(self.limits.close_timeout, idle.wait)

    async def aclose(self) -> None:
        """Close, and wait until that is done. Never raises for a peer that died."""
        self.asked_to_close = True
        self.close(PeerClosed(CLOSED_HERE))
        await self.shielded(self._closed.wait)

    async def abandon(self) -> None:
        """Give a connection up that did not open."""
        self.session.end(PeerClosed("the connection was given up while it was opened"))
        await self.shielded(self._closed.wait)

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def drain(self) -> None:
        """Wait until what is to be sent is below low water."""
        while self.session.error is None and self.session.backlog() > self.limits.low_water:
            drained = self.make_event()
            self._drained.append(drained)
            await drained.wait()

    @staticmethod
    def _tell(events: list[Event]) -> None:
        told = events[:]
        events.clear()
        for event in told:
            event.set()


def is_to_await(result: Any) -> bool:
    """Has a handler given what is to be awaited? A promise is none such: it is the answer."""
    return type(result) is CoroutineType or (
        hasattr(type(result), "__await__") and not isinstance(result, FAR)
    )


def start_map(driver: Driver, recorded: Recording, value: Any) -> Coroutine[Any, Any, Any]:
    """What does a map, as a handler would."""
    from .._replay import replay

    return replay(driver, recorded, value)


def in_trio() -> bool:
    """Is the caller in a task of trio's? Another thread may be about to import it."""
    lowlevel = getattr(sys.modules.get("trio"), "lowlevel", None)
    return lowlevel is not None and bool(lowlevel.in_trio_task())


def end_writing(fd: int) -> bool:
    """End our half of the stream behind `fd`; True if the caller is to close it for that."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return True
    from socket import SHUT_WR, socket

    gone = contextlib.suppress(OSError)  # the other side has left already
    with socket(fileno=os.dup(fd)) as end, gone:
        end.shutdown(SHUT_WR)
    return False
