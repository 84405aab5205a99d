"""The general driver: any `anyio.abc.ByteStream`, on any loop.

Reader, writer and handlers are tasks of the connection's own, so that a door can be opened in one
task and closed in another. They are in no task group: trio raises a KeyboardInterrupt in any task
of a group, in the midst of the engine, where it would end the program with an internal error. In
tasks of its own it does not, and Ctrl-C reaches the program's main task.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import cache, partial
from types import FunctionType
from typing import Any, Protocol

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread

from .._cell import Call, Cell
from .._delegation import Delegation
from .._errors import PeerLost
from .._holding import Holding
from .._log import get_logger
from .._long import flat
from .._session import Session
from ._base import LOOP_ENDED, RELEASE_DELAY, Driver, end_writing, in_trio

logger = get_logger("capnode_py.driver")

_READ_SIZE = 256 * 1024
_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Stream(Protocol):
    """What this driver needs of a byte stream; anyio's are such."""

    async def receive(self, max_bytes: int = ..., /) -> bytes: ...
    async def send(self, item: bytes, /) -> None: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


class LoopDriver(Driver):
    """What is the same for every anyio loop, whatever carries the bytes."""

    passes_interrupts = False  # its tasks belong to no caller, and on trio to the loop itself

    def __init__(self, **settings: Any) -> None:
        self._thread = threading.get_ident()
        self._call_soon = call_soon()
        self._workers = anyio.CapacityLimiter(math.inf)
        if in_trio():
            _protect()
        super().__init__(**settings)

    def here(self) -> bool:
        return threading.get_ident() == self._thread

    def make_event(self) -> anyio.Event:
        return anyio.Event()

    async def within(self, seconds: float, wait: Callable[[], Awaitable[Any]]) -> bool:
        with anyio.move_on_after(seconds):
            await wait()
            return True
        return False

    async def shielded(self, wait: Callable[[], Awaitable[Any]]) -> None:
        with anyio.CancelScope(shield=True):
            await wait()
        await anyio.lowlevel.checkpoint_if_cancelled()

    def background(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        start_background(run)

    def wait(self, cell: Cell) -> Generator[Any, Any, Any]:
        event = anyio.Event()
        watcher = partial(_set, event)
        cell.watch(watcher)
        try:
            yield from event.wait().__await__()
        except BaseException:
            cell.unwatch(watcher)
            del cell  # the traceback holds this frame
            raise

    def is_cancellation(self, error: BaseException) -> bool:
        return isinstance(error, anyio.get_cancelled_exc_class())

    def launch_eagerly(self, call: Call, awaitable: Any) -> bool:
        return False

    async def _run_oldest(self) -> None:
        oldest = self.take_oldest()
        if oldest is None:
            return
        call, awaitable = oldest
        with anyio.CancelScope() as scope:
            call.handle = scope
            await self.await_handler(call, awaitable)

    def stop(self, call: Call) -> None:
        if call.handle is not None:
            call.handle.cancel()

    def in_worker(self, run: Callable[[], Any]) -> Awaitable[Any]:
        # Without a bound: a handler may wait for a callback that waits for a handler ...
        return anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._workers)


class TaskDriver(LoopDriver):
    """One that has tasks, which end with its stream."""

    def __init__(self, **settings: Any) -> None:
        self._over = anyio.Event()
        self._stream_closed = anyio.Event()
        self._scopes: set[anyio.CancelScope] = set()
        self._tasks_ended = anyio.Event()
        super().__init__(**settings)
        self.background(self._serve)

    @abstractmethod
    async def _close_stream(self) -> None:
        """Close it, for good. What it raises here must not leave this task: on trio it would end
        the program."""

    def served(self) -> None:
        """Nothing is left of this connection."""

    def after(self, seconds: float, run: Callable[[], None]) -> None:
        self._start(partial(self._run_after, seconds, run))

    async def _run_after(self, seconds: float, run: Callable[[], object]) -> None:
        await anyio.sleep(seconds)
        run()

    def launch(self) -> None:
        self._start(self._run_oldest)

    def _start(self, run: Callable[[], Coroutine[Any, Any, None]]) -> anyio.CancelScope:
        """Run a task that ends with the stream, or when what this gives is cancelled."""
        scope = anyio.CancelScope()
        if not self._over.is_set():
            self._scopes.add(scope)
            self.background(partial(self._run_in, scope, run))
        return scope

    async def _run_in(
        self, scope: anyio.CancelScope, run: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        try:
            with scope:
                await run()
        except Exception:
            logger.exception("a bug in capnode_py ends the session; please report it")
            self._over.set()
        finally:
            self._scopes.discard(scope)
            if not self._scopes:
                self._tasks_ended.set()

    async def _serve(self) -> None:
        try:
            await self._over.wait()
        finally:
            self._over.set()  # the loop itself may be ending
            for scope in tuple(self._scopes):
                scope.cancel()
            with anyio.CancelScope(shield=True):
                if self._scopes:
                    self._tasks_ended = anyio.Event()
                    await self._tasks_ended.wait()
                await self._close_stream()
            if self.session.error is None:  # the loop itself is ending
                self.session.end(PeerLost(LOOP_ENDED))
            self._stream_closed.set()
            self.served()

    def release_stream(self) -> None:
        self._over.set()

    async def stream_closed(self) -> None:
        await self._stream_closed.wait()


class AnyioDriver(TaskDriver):
    """See the module. The driver owns `stream`, and closes it."""

    def __init__(self, stream: Stream, **settings: Any) -> None:
        self._stream = stream
        self._errands: deque[Callable[[], object]] = deque()
        self._errand = anyio.Event()
        self._release = anyio.Event()
        self._something = anyio.Event()
        self._written = anyio.Event()
        self._eof = anyio.Event()
        self._progress = 0
        self._write_ended = self._served = False
        super().__init__(**settings)
        for run in (
            self._read,
            self._write,
            self._watch_age,
            self._flush_releases,
            self._run_errands,
        ):
            self._start(run)

    def soon(self, run: Callable[[], object]) -> bool:
        self._errands.append(run)
        try:
            self._call_soon(self._new_errand)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _new_errand(self) -> None:
        self._errand.set()
        if self._served:  # nobody is left to run it in a task, and none is needed any more
            self._do_errands()

    def _do_errands(self) -> None:
        while self._errands:
            self._errands.popleft()()

    async def _run_errands(self) -> None:
        """What other threads and the collector ask for, done in a task."""
        while True:
            await self._errand.wait()
            self._errand = anyio.Event()
            self._do_errands()

    # Turns.

    def wake(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._something.set()

    def wake_later(self) -> None:
        if not self._releasing:
            self._releasing = True
            self._release.set()

    async def _flush_releases(self) -> None:
        while True:
            await self._release.wait()
            self._release = anyio.Event()
            await anyio.sleep(RELEASE_DELAY)
            self._releasing = False
            self.wake()

    async def _close_stream(self) -> None:
        try:
            with contextlib.suppress(*_BROKEN):  # it is gone already
                await anyio.aclose_forcefully(self._stream)  # type: ignore[arg-type]
        except Exception:
            logger.exception("closing the stream failed")

    def served(self) -> None:
        self._served = True
        self._do_errands()

    async def _read(self) -> None:
        cause: BaseException | None = None
        try:
            while True:
                data = await self._stream.receive(_READ_SIZE)
                if not data:
                    break
                self.received(data)
                self.session.drain_notes()  # those of this turn woke nobody
        except anyio.EndOfStream:
            pass
        except _BROKEN as error:
            cause = error.__cause__ or error
        self._eof.set()
        self.lost(cause)

    async def _write(self) -> None:
        while True:
            await self._something.wait()
            self._something = anyio.Event()
            self._flushing = False
            frames = self.session.flush()
            if self._write_ended:
                continue
            unsent = self.session.unsent = sum(map(len, frames))
            try:
                for piece in flat(frames):
                    await self._stream.send(bytes(piece))
                    unsent -= len(piece)
                    self._progress += 1
                    self.wrote(unsent)
                self.session.drain_notes()
            except _BROKEN as error:
                self.session.unsent = 0
                self._write_ended = True
                self._written.set()
                # What the other side wrote before it went is still to be read.
                await self.within(self.limits.close_timeout, self._eof.wait)
                self.lost(error.__cause__ or error)
                return
            if not self.session.backlog():
                self._written.set()
                self._written = anyio.Event()

    async def _watch_age(self) -> None:
        """End a session whose bytes nobody takes."""
        while True:
            before = self._progress, self.session.unsent
            await anyio.sleep(self.limits.max_send_age)
            if self.session.unsent and before == (self._progress, self.session.unsent):
                self.session.end(
                    PeerLost(
                        f"the other side did not take {self.session.unsent} bytes for "
                        f"{self.limits.max_send_age:g} s (Limits.max_send_age)"
                    )
                )

    async def finish_writing(self) -> None:
        while self.session.backlog() and not self._write_ended:
            await self._written.wait()
        await self.cut_writing()
        if not self._eof.is_set() and self.session.error is None:
            await self._eof.wait()

    async def cut_writing(self) -> None:
        self._write_ended = True
        with contextlib.suppress(*_BROKEN, NotImplementedError):  # gone, or knows no half-close
            await self._stream.send_eof()


def _set(event: anyio.Event, _cell: Cell) -> None:
    event.set()


@cache
def _protect() -> None:
    """Have Ctrl-C wait until the engine is done: trio raises it between any two steps of the main
    task, which would leave a session half changed."""
    import trio

    for part in (Session, Delegation, Holding):  # what peers, stubs and promises ask of a session
        for function in vars(part).values():
            if isinstance(function, FunctionType):
                trio.lowlevel.enable_ki_protection(function)


_background: set[asyncio.Task[Any]] = set()


def start_background(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a task of no caller's: its cancel scopes are its own. It must not raise."""
    if in_trio():
        import trio

        trio.lowlevel.spawn_system_task(run)
    else:
        task = asyncio.get_running_loop().create_task(run())
        _background.add(task)
        task.add_done_callback(_background.discard)


def call_soon() -> Callable[[Callable[[], object]], object]:
    """A function that calls another in this loop, from any thread."""
    if in_trio():
        import trio

        token = trio.lowlevel.current_trio_token()
        return token.run_sync_soon
    return asyncio.get_running_loop().call_soon_threadsafe


class DescriptorStream:
    """A byte stream on non-blocking descriptors of one's own: a socket, or two ends of pipes."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._read_fd = read_fd
        self._write_fd = write_fd

    async def receive(self, max_bytes: int = _READ_SIZE) -> bytes:
        while True:
            await anyio.wait_readable(self._read_fd)
            try:
                data = os.read(self._read_fd, max_bytes)
            except BlockingIOError:
                continue
            if not data:
                raise anyio.EndOfStream
            return data

    async def send(self, item: bytes) -> None:
        view = memoryview(item)
        while view:
            try:
                view = view[os.write(self._write_fd, view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._write_fd)
        await anyio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        if end_writing(self._write_fd) and self._write_fd != self._read_fd:
            anyio.notify_closing(self._write_fd)
            os.close(self._write_fd)
            self._write_fd = -1

    async def aclose(self) -> None:
        for fd in {self._read_fd, self._write_fd}:
            if fd >= 0:
                anyio.notify_closing(fd)
                os.close(fd)
        self._read_fd = self._write_fd = -1
        await anyio.lowlevel.checkpoint()
