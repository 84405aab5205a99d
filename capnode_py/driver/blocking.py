"""The blocking driver: no event loop, and no thread but those of its callers.

Whoever waits for an answer writes, reads, and runs the handlers of calls that arrive meanwhile
(`_pump.py` says how). A stub that is called blocks, and gives the value; inside an ``async def``
handler it gives a promise, as everywhere, and awaiting that blocks in place. So the coroutines that
drivers share, which wait by events, run here from their start to their end in one step.

The handlers of one connection run one at a time: another is started only when none runs, or the one
that runs waits for the other side.
"""

from __future__ import annotations

import select
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from os import read, write
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from .._cell import Call, Cell
from .._errors import LimitExceeded, PeerClosed
from .._incoming import TOLD
from .._log import get_logger
from .._messages import CALL, Path, Recording
from .._reach import FAR, IN_THREAD, callable_from_afar, reach
from .._stub import Promise, Stub
from .._tables import QUEUED, Running
from ._base import CLOSED_HERE, PLAIN, RELEASE_DELAY, is_to_await, start_map
from ._descriptor import SMALL_READ, STAYS, DescriptorDriver
from ._handlers import current
from ._interrupts import calls_out, edge, in_engine, polls
from ._locked import LockedSession, deadline, get
from ._pump import (
    NOWHERE,
    STOPPED,
    Elapsed,
    Event,
    Events,
    Place,
    Settling,
    Timer,
    complete,
    place,
    the_pump,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

logger = get_logger("capnode_py.driver")

T = TypeVar("T")

_RELEASE_DELAY = RELEASE_DELAY * 1000  # milliseconds
_LATE = 0.001  # seconds that an answer may wait for others, before a handler is started
_DEEP = 20  # handlers on one stack, below which nobody need look how much is left of it
_NO_LOOP = ("no running event loop", "Not currently running on any asynchronous event loop")
_SPARE = 200  # frames that a handler, and the engine below it, may need


class BlockingDriver(DescriptorDriver):
    """See the module."""

    session: LockedSession
    session_type = LockedSession
    waits_in_place = True

    def __init__(self, stream: tuple[int, int], **settings: Any) -> None:
        self._pump = the_pump()
        self._busy = 0  # how many handlers run, and do not wait
        self._held_back = False
        self._closing_in = 0
        self._woke = 0.0
        self._noted: deque[Callable[[], object]] = deque()
        self.heard = b""  # read, and not handled yet
        self.is_readable = [(stream[0], select.POLLIN)]  # as the poll says it
        with self._pump.lock:
            super().__init__(*stream, **settings)
            self._pump.guard.opened()

    @property
    def lock(self) -> Any:
        """That of all blocking connections; in a fork, one that raises."""
        return self._pump.lock

    @property
    def held(self) -> Any:
        """The same, as a context, for who waits, or does nothing that is to be sent."""
        return self._pump.held

    @property
    def forked(self) -> bool:
        """Is this another process than the one that opened the connection?"""
        return self._pump is not the_pump()

    def here(self) -> bool:
        return self.lock._is_owned()  # type: ignore[no-any-return]

    def ask(self, make: Callable[[], Promise]) -> Any:
        with self._pump.held:
            promise = make()
            return promise if place.get().awaits else get(promise)

    def bring(self, run: Callable[[], T]) -> T:
        if self.here():
            return run()
        with self._pump:
            return run()

    def say(self, run: Callable[[], object]) -> None:
        if self.here() and in_engine():
            self.from_anywhere(partial(_run_later, run))
        else:
            self.bring(run)

    def elsewhere(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any) -> Promise:
        """A call by what has interrupted the engine: it is made when that is done."""
        reply = Cell(self.session)

        def make() -> None:
            try:
                reply.follow(self.session.make(base, path, args, kwargs))
            except Exception as error:  # noqa: BLE001 - it belongs to who awaits the promise
                reply.reject(error)

        self.from_anywhere(make)
        return Promise(self.session, reply, ())

    def soon(self, run: Callable[[], object]) -> bool:
        self.bring(run)
        return True

    def from_anywhere(self, run: Callable[[], object]) -> None:
        self._noted.append(run)
        self._pump.note(self)

    def make_event(self) -> Event:
        return Event(self._pump)

    async def within(self, seconds: float, wait: Callable[[], Awaitable[Any]]) -> bool:
        try:
            with deadline(seconds):
                await wait()
        except Elapsed:
            outer = place.get().deadline
            if outer is not None and monotonic() >= outer:
                raise
            return False
        return True

    async def shielded(self, wait: Callable[[], Awaitable[Any]]) -> None:
        await wait()

    def background(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._pump.attend(run)

    # Waiting.

    def wait(self, cell: Cell) -> Iterable[Any]:
        raise NotImplementedError  # `LockedSession` waits in place

    def is_cancellation(self, error: BaseException) -> bool:
        raise NotImplementedError

    def block_on(self, promise: Promise, timeout: float | None) -> Any:
        """The value of a promise.

        Raises:
            TimeoutError: it took longer; the call is withdrawn.
        """
        self.check_may_wait()
        with self._pump.held:
            try:
                with deadline(timeout):
                    return get(promise)
            except Elapsed:
                raise _too_late(timeout) from None

    def may_wait(self) -> bool:
        """See `Pump.may_wait`."""
        return self._pump.may_wait()

    def check_may_wait(self) -> None:
        """Raises RuntimeError: this code is run by the engine."""
        if self.here():
            raise RuntimeError("this code runs inside of the library, which cannot wait for it")

    def wait_for(self, event: Event, timeout: float | None) -> None:
        """Wait for it.

        Raises:
            Elapsed: it took longer.
        """
        self.check_may_wait()
        with self._pump.held, deadline(timeout):
            self._pump.wait(event)

    def make_future(self) -> Future[Any]:
        from ._future import DrivenFuture

        return DrivenFuture(self)

    def _tell_future(self, future: Future[Any], cell: Cell) -> None:
        self._pump.do(partial(self.outside, partial(super()._tell_future, future, cell)))

    @edge
    def outside(self, run: Callable[[], object]) -> None:
        """Run what may be the user's own, without the lock."""
        self.lock.release()
        try:
            run()
        finally:
            self.lock.acquire()

    # Turns.

    def wake(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._woke = monotonic()
            self._pump.flush_soon(self)

    def received(self, data: bytes | memoryview) -> None:
        try:
            self.session.receive(data)
        except Exception as error:
            logger.exception("a bug in capnode_py ends the session; please report it")
            self._broke(error)
        except BaseException as error:
            self.interrupted(error)
            raise

    def interrupted(self, error: BaseException) -> None:
        """Ctrl-C came while the engine was at work, not in a wait: what is done is not known."""
        self._broke(error)

    @edge
    def wake_from_anywhere(self) -> None:
        self._pump.note(self)

    def drain_notes(self) -> None:
        """Release what the collector has found, and do what was asked for without the lock."""
        self.session.drain_notes()
        while self._noted:
            self._noted.popleft()()

    def flush(self) -> None:
        """Write what there is to write; what is released alone waits for company."""
        self._flushing = False
        frames = self.session.flush_turn()
        if frames:
            self._write(frames)

    def wake_later(self) -> None:
        if not self._releasing:
            self._releasing = True
            self._pump.releasing.append((monotonic() + RELEASE_DELAY, self))

    def flush_releases(self) -> None:
        """They have waited for company long enough, also if something is about to leave: what is
        flushed next would not take them along."""
        self._releasing = False
        self._flush()

    def release_stream(self) -> None:
        others = [each for each in self._pump.releasing if each[1] is not self]
        self._pump.releasing = deque(others)
        if self._read_fd >= 0:  # it is done but once
            self._pump.guard.closed()
        super().release_stream()

    def end_turn(self) -> None:
        pass  # whoever waits flushes, when what has come is handled

    # Handlers.

    def run(self, id: int, running: Running) -> Any:
        incoming = self.session.incoming
        pump = self._pump
        depth = place.get().depth
        if (
            running[2] is not incoming.last
            or pump.jobs
            or self._busy
            or self.starting
            or depth > _DEEP
        ):
            running[3] = QUEUED
            self.starting.append((running, id))
            self.launch()
            return TOLD

        # Nothing else is to be done before it, or behind it in what was read: so it may run here,
        # and wait here, as a job would.
        incoming.finish()
        if pump.unflushed:
            pump.flush()
        return self._run_at(id, running, depth + 1)

    def _run_at(self, id: int, running: Running, depth: int) -> Any:
        here = Place(self, None, None, False, depth, (id, running))
        tokens = place.set(here), current.set(self.peer)
        try:
            return self._run(id, running, here)
        finally:
            place.reset(tokens[0])
            current.reset(tokens[1])

    def _run_queued(self, id: int, running: Running) -> None:
        """A usual call is the oldest of those that wait for their start."""
        queued, depth = running[3], place.get().depth
        if queued is QUEUED and depth <= _DEEP:
            running[3] = None
            self._flush_late()
            result = self._run_at(id, running, depth + 1)
            if result is not TOLD:
                self.session.incoming.ran(id, running, result)
        elif queued is QUEUED or queued.task is not None:  # else it was cancelled
            # It has been named: others wait for it.
            self._call_handler(self.session.in_full(id, running))

    def _flush_late(self) -> None:
        """Answers do not wait for the next handler longer than that."""
        if self._pump.unflushed and monotonic() - self._woke > _LATE:
            self._pump.flush()

    @edge
    def serve(self, until: Settling, deadline: float | None) -> None:
        """There is something to read, or was heard. If it is one call, run it, write its answer,
        and wait for the next; if it is the answer to the last question, that ends this; whatever
        else it is goes the general way, and ends this.

        It stands in one piece for the same reason as `LockedSession._exchange`.
        """
        outer = place.get()
        if outer.depth > _DEEP:
            self._readable()
            return
        pump = self._pump
        lock = pump.lock
        exchange = self.session.exchange
        exports = self.session.exports
        asks = type(until) is Cell  # and is no host that waits for its end
        here: Place | None = None
        tokens: Any = None
        others: Events = ()
        data, self.heard = self.heard, b""
        try:
            # Another thread may have begun a handler, also while this one polled.
            while not self._busy and not self._reads_much and (pump.calm or pump.is_calm()):
                if not data:
                    try:
                        data = read(self._read_fd, SMALL_READ)
                    except OSError:
                        break
                if asks and (word := exchange.word(data)) != CALL:
                    if word is not None and exchange.settle(data, word):
                        return
                    break
                running = exchange.take(data)
                if running is None:
                    break
                data = b""
                id = exports.last_answer
                if here is None or here.call is not None or here.awaits:
                    here = Place(self, None, None, False, outer.depth + 1)
                    if tokens is None:  # once: those that are run here have the same peer
                        tokens = place.set(here), current.set(self.peer)
                    else:
                        place.set(here)
                here.entry = id, running
                result = self._run(id, running, here)
                if result is not TOLD:
                    frame = exchange.reply(id, running, result)
                    if frame is not None:
                        try:
                            written = write(self._write_fd, frame)
                        except OSError:  # it is tried again, and found out
                            written = 0
                        if written < len(frame):
                            self._write_behind([memoryview(frame)[written:]])

                if pump.noted:  # a callback was dropped, which `reply` has seen to
                    pump.drain_notes()
                if until.state or pump.polling:
                    return
                if deadline is not None or not (pump.calm or pump.is_calm()):
                    return
                if outer is not NOWHERE and not outer.is_plain:
                    return
                if pump.timers:
                    return
                # What is released leaves with the next answer, or else this late.
                timeout = _RELEASE_DELAY if pump.releasing else None
                pump.polling = True
                try:
                    if pump.noted:  # looked at behind the flag: later ones will wake the poll
                        return
                    try:
                        lock.release()
                        events = pump.descriptors.poll(timeout)
                    finally:
                        lock.acquire()
                finally:
                    pump.polling = False
                    if pump.sleeping:
                        pump.stir()
                if events != self.is_readable:
                    others = events
                    break
        finally:
            if tokens is not None:
                place.reset(tokens[0])
                current.reset(tokens[1])
        # This is another thing: it is handled in the general way.
        if others:
            pump.handle(others)
        else:
            self.heard = data
            self._readable()

    @edge
    def _run(self, id: int, running: Running, here: Place) -> Any:
        """Run the function of a usual call, in this place, without the lock."""
        pump = self._pump
        self._busy += 1
        pump.lock.release()
        try:
            try:
                result = running[0](*running[2][3])
                if type(result) not in PLAIN and is_to_await(result):
                    here.awaits = True
                    result = complete(_awaited(result))
            finally:
                pump.lock.acquire()
                self._busy -= 1
                if here.call or self._held_back or self._idle or pump.polling or pump.sleeping:
                    self._handled(here.call)
        except BaseException as error:  # noqa: BLE001 - rule 8: every call is answered
            self.session.fail(here.call or self.session.in_full(id, running), error)
            if isinstance(error, KeyboardInterrupt):
                pump.raise_soon(error)
            return TOLD
        return result

    def _in_full(self, here: Place) -> Call:
        """The call of the handler that runs there."""
        if here.call is None:
            here.call = self.session.in_full(*here.entry)
            self._running.add(here.call)
            if self.session.error is not None:
                self.stop(here.call)
        return here.call

    def _handled(self, call: Call | None) -> None:
        """A handler has returned: who waited for that goes on."""
        if call is not None:
            self._running.discard(call)
        if self._held_back and not self._busy:
            self._launch_held_back()
        if self._idle and not self.is_busy:
            self._tell(self._idle)
        if self._pump.is_shared:
            self._pump.stir()

    @property
    def is_busy(self) -> bool:
        return self._busy > 0 or bool(self._running)

    def start(self, call: Call) -> None:
        # Never at once: a handler may wait, and so read on, while the engine is in mid-frame.
        self.starting.append((call, None))
        self.launch()

    def launch(self) -> None:
        self._pump.do(self._run_oldest)

    def _run_oldest(self) -> None:
        if self._busy:
            self._held_back = True
        elif self.starting and type(self.starting[0][0]) is list:
            running, id = self.starting.popleft()
            self._run_queued(id, running)
        else:
            self.take_oldest()

    def pause(self, here: Place) -> None:
        """The handler that runs there begins to wait: another may run."""
        if here.call is None:
            self._in_full(here)
        self._busy -= 1
        if self._held_back and not self._busy:
            self._launch_held_back()

    def _launch_held_back(self) -> None:
        self._held_back = False
        for _ in self.starting:
            self.launch()
        self._pump.stir()

    def resume(self) -> None:
        """It goes on."""
        self._busy += 1

    @edge
    def _call_handler(self, call: Call) -> None:
        if call.cancelled:
            return
        here = place.get()
        if here.depth > _DEEP and _stack_is_low():
            self.session.fail(call, _too_deep(here.depth))
            return
        call.started = True
        self._running.add(call)
        pump = self._pump
        self._flush_late()
        here = Place(self, call, None, False, here.depth + 1)
        tokens = place.set(here), current.set(self.peer)
        self._busy += 1
        pump.lock.release()
        try:
            try:
                result, rest = _run(self, call, here)
            finally:
                pump.lock.acquire()
                place.reset(tokens[0])
                current.reset(tokens[1])
                self._busy -= 1
                self._handled(call)
        except BaseException as error:
            self.failed(call, error)
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            if rest is None:
                self.session.finish(call, result)
            else:
                self.session.redirect(call, result, rest)

    def tell(self, function: Callable[..., Any], *args: Any) -> None:
        self._telling += 1
        self._pump.do(partial(self._tell_user, partial(function, *args)))

    def _tell_user(self, function: Callable[[], Any]) -> None:
        here = Place(None, None, None, False, place.get().depth + 1)
        tokens = place.set(here), current.set(self.peer)
        try:
            self.outside(partial(_run_logged, function, here))
        finally:
            place.reset(tokens[0])
            current.reset(tokens[1])
            self._telling -= 1
            if not self._telling:
                self._tell(self._idle)

    def stop(self, call: Call) -> None:
        call.handle = STOPPED
        self._pump.stir()

    def launch_eagerly(self, call: Call, awaitable: Any) -> bool:
        raise NotImplementedError  # an awaitable is run in place

    def in_worker(self, run: Callable[[], Any]) -> Awaitable[Any]:
        raise NotImplementedError  # every thread may block here

    # Reading and writing.

    def write_behind(self, rest: memoryview) -> None:
        """Write what is left of a frame."""
        self._write_behind([rest])

    def _readable(self) -> None:
        heard, self.heard = self.heard, b""
        if heard:
            if len(heard) == SMALL_READ:
                self._reads_much = STAYS
            self.received(heard)
        else:
            super()._readable()

    def now(self) -> float:
        return monotonic()

    def later(self, seconds: float, run: Callable[[], object]) -> Timer:
        return self._pump.later(seconds, run)

    def watch_reading(self) -> None:
        self._pump.watch_reading(self._read_fd, self._readable, self)

    def unwatch_reading(self) -> None:
        self._pump.unwatch_reading(self._read_fd)

    def watch_writing(self) -> None:
        self._pump.watch_writing(self._write_fd, self._writable)

    def unwatch_writing(self) -> None:
        self._pump.unwatch_writing(self._write_fd)

    # The end.

    async def _close(self, error: BaseException | None) -> None:
        self._closing_in = threading.get_ident()
        try:
            await super()._close(error)
        finally:
            self._closing_in = 0

    def close_soon(self) -> None:
        """Begin to close; whoever waits next sees it through."""
        self.asked_to_close = True
        self.bring(partial(self.close, PeerClosed(CLOSED_HERE)))

    async def aclose(self) -> None:
        if self._closing_in != threading.get_ident():  # else a handler that it waits for calls this
            await super().aclose()


polls(BlockingDriver.serve)
calls_out(BlockingDriver._run)
calls_out(BlockingDriver._tell_future)
calls_out(BlockingDriver.outside)
calls_out(DescriptorDriver._tell_future)
calls_out(complete)


@calls_out
def _run(driver: BlockingDriver, call: Call, here: Place) -> tuple[Any, Path | None]:
    """Run a handler: its result and None, or a far reference and the path from there."""
    result, rest = reach(call.target, call.path)
    if isinstance(result, FAR):
        return result, rest
    if type(call.args) is Recording:
        result = start_map(driver, call.args, result)
    elif call.args is not None:
        function = callable_from_afar(result)
        # Written for a worker thread of an event loop: there too, calls give promises, for `wait`.
        here.awaits = getattr(function, IN_THREAD, False)
        result = function(*call.args, **call.kwargs)
    if is_to_await(result):
        here.awaits = True
        result = complete(_awaited(result))
    return result, None


def _run_later(run: Callable[[], object]) -> None:
    try:
        run()
    except Exception:
        logger.exception("%r raised, which was to be sent where the engine was interrupted", run)


@calls_out
def _run_logged(function: Callable[[], Any], here: Place) -> None:
    try:
        result = function()
        if is_to_await(result):
            here.awaits = True
            complete(_awaited(result))
    except Exception:
        logger.exception("%r raised", function)


@calls_out
async def _awaited(awaitable: Any) -> Any:
    try:
        return await awaitable
    except RuntimeError as error:
        if not str(error).startswith(_NO_LOOP):
            raise
        raise RuntimeError(
            f"an async handler asks for an event loop ({error}), and this peer is a blocking one: "
            "await only what it calls here, write a sync handler, or open the connection in an "
            "event loop with the doors of capnode_py"
        ) from error


def _stack_is_low() -> bool:
    try:
        sys._getframe(sys.getrecursionlimit() - _SPARE)
    except ValueError:
        return False
    return True


def _too_deep(depth: int) -> LimitExceeded:
    return LimitExceeded(
        f"{depth} handlers wait inside of each other, on the one stack of a blocking peer: let the "
        "caller have fewer calls in flight, raise sys.setrecursionlimit(), or serve in an event "
        "loop, where each has a task of its own"
    )


def _too_late(timeout: float | None) -> TimeoutError:
    return TimeoutError(f"no answer within {timeout:g} s; the call is withdrawn")
