"""The fast driver: asyncio or uvloop, on a descriptor of its own.

No stream or transport object stands between the descriptor and the engine: reading, decoding,
handling and answering are one callback of the loop. It needs no anyio, so that a child starts fast.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

from .._cell import Call, Cell
from .._errors import PeerLost
from ._base import RELEASE_DELAY, Driver, end_writing

_EAGER = sys.version_info >= (3, 12)

_SMALL_READ = 64 * 1024
_LARGE_READ = 1024 * 1024
_MOST_WORKERS = 1000  # threads of `in_thread` handlers, made as they are needed
_WRITE_AT_ONCE = 1024 * 1024  # then the loop gets its turn, and reading too


class AsyncioDriver(Driver):
    """See the module.

    Args:
        read_fd, write_fd: non-blocking; they may be the same. The driver owns them, and closes
            them.
    """

    def __init__(self, read_fd: int, write_fd: int, **settings: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._read_size = _SMALL_READ
        self._write_ended = False
        self._unwritten: deque[bytes | memoryview] = deque()
        self._all_written: asyncio.Event | None = None
        self._eof = asyncio.Event()
        self._progress = 0.0
        self._release_timer: asyncio.TimerHandle | None = None
        self._age_timer: asyncio.TimerHandle | None = None
        self._last_words: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._woke = False  # a task, in this turn
        self._waker = self._wake  # one bound method for all who wait
        super().__init__(**settings)
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self._loop.add_reader(read_fd, self._readable)

    def here(self) -> bool:
        return asyncio._get_running_loop() is self._loop

    def make_event(self) -> asyncio.Event:
        return asyncio.Event()

    async def within(self, seconds: float, wait: Callable[[], Awaitable[Any]]) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await wait()
        except TimeoutError:
            return False
        return True

    async def shielded(self, wait: Callable[[], Awaitable[Any]]) -> None:
        inner = asyncio.ensure_future(wait())
        cancelled: asyncio.CancelledError | None = None
        while not inner.done():
            try:
                await asyncio.shield(inner)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def background(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._keep(self._loop.create_task(run()))

    def soon(self, run: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(run)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def after(self, seconds: float, run: Callable[[], None]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_later(seconds, run)

    # Turns.

    def wake(self) -> None:
        if not self._flushing and not self._turns:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def wake_later(self) -> None:
        if not self._releasing:
            self._releasing = True
            self._release_timer = self._loop.call_later(RELEASE_DELAY, self._flush_releases)

    def _flush_releases(self) -> None:
        self._releasing = False
        if not self._flushing:  # else they ride with what is about to leave
            self._flush()

    def _flush(self) -> None:
        self._flushing = False
        frames = self.session.flush()
        if frames:
            self._write(frames)

    def _flush_said(self) -> None:
        """What tasks have said since they woke; releases alone still wait for company."""
        self._flushing = False
        frames = self.session.flush_turn()
        if frames:
            self._write(frames)

    def wait(self, cell: Cell) -> asyncio.Future[None]:
        future = self._loop.create_future()
        cell.watch(partial(self._waker, future))
        return future

    def stop_waiting(self, cell: Cell, waiter: Any) -> None:
        for watcher in cell.watchers or ():
            if type(watcher) is partial and watcher.args == (waiter,):
                cell.unwatch(watcher)
                return

    def _wake(self, future: asyncio.Future[None], _cell: Cell) -> None:
        if not future.done():
            future.set_result(None)
            self._woke = True

    def is_cancellation(self, error: BaseException) -> bool:
        return isinstance(error, asyncio.CancelledError)

    # Handlers.

    def launch(self) -> None:
        # The loop holds the task until it runs, and then its call does, which is in `_running`.
        _ = self._loop.create_task(self._run_oldest())

    def launch_eagerly(self, call: Call, awaitable: Any) -> bool:
        if not _EAGER:
            return False
        task = asyncio.Task(  # type: ignore[call-arg, unused-ignore]
            self.await_handler(call, awaitable), loop=self._loop, eager_start=True
        )
        if not task.done():
            call.handle = task
            if call.cancelled:  # in its own first step
                self.stop(call)
        return True

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)  # which costs a round of the loop

    async def _run_oldest(self) -> None:
        oldest = self.take_oldest()
        if oldest is not None:
            oldest[0].handle = asyncio.current_task()
            await self.await_handler(*oldest)

    def stop(self, call: Call) -> None:
        if call.handle is not None:
            task, call.handle = call.handle, None
            if isinstance(task, asyncio.Task):  # else what stands for a far call
                self._keep(task)
            task.cancel()

    def in_worker(self, run: Callable[[], Any]) -> Awaitable[Any]:
        if self._workers is None:
            # Without a bound that matters: a handler that waits for a callback that waits for ...
            self._workers = ThreadPoolExecutor(_MOST_WORKERS, "capnode")
        return self._loop.run_in_executor(self._workers, copy_context().run, run)

    # Reading and writing.

    def _readable(self) -> None:
        try:
            data = os.read(self._read_fd, self._read_size)
        except BlockingIOError:
            return
        except OSError as error:
            self._end_of_stream(error)
            return

        if not data:
            self._end_of_stream(None)
            return
        self._read_size = _LARGE_READ if len(data) == self._read_size else _SMALL_READ
        self.received(data)
        frames = self.session.flush_turn()
        if frames:
            self._write(frames)
        if self._woke:
            self._woke = False
            if not self._flushing:
                # Behind the tasks that wake now: what they say leaves in the loop's same round,
                # where a flush that they ask for would take one more, and one more poll.
                self._flushing = True
                self._loop.call_soon(self._flush_said)

    def _end_of_stream(self, cause: OSError | None) -> None:
        self._stop_reading()
        self._eof.set()
        self.lost(cause)

    def _stop_reading(self) -> None:
        if self._read_fd >= 0:
            self._loop.remove_reader(self._read_fd)

    def _write(self, frames: list[bytes]) -> None:
        if self._write_ended or self._unwritten or len(frames) > 1:
            self._write_behind(frames)
            return
        (data,) = frames  # and mostly taken whole: then nothing else is to be done
        try:
            written = os.write(self._write_fd, data)
        except BlockingIOError:
            written = 0
        except OSError as error:
            self._write_failed(error)
            return
        if written < len(data):
            self._write_behind([memoryview(data)[written:]])
        elif self._drained or self.session.kept:
            self.wrote(0)

    def _write_behind(self, frames: Sequence[bytes | memoryview]) -> None:
        """Write what waits, and then these."""
        if self._write_ended:
            return
        idle = not self._unwritten
        self._unwritten.extend(frames)
        if not idle:
            self.session.unsent += sum(map(len, frames))
        elif self._write_some() is None:
            return
        elif self._unwritten:
            self.session.unsent = sum(map(len, self._unwritten))
            self._watch_age()
            self._loop.add_writer(self._write_fd, self._writable)
        elif self._drained or self.session.kept:
            self.wrote(0)

    def _write_some(self) -> int | None:
        """Write what the descriptor takes, within a turn's measure. Returns how much; None if the
        descriptor is broken."""
        unwritten = self._unwritten
        total = 0
        try:
            while unwritten and total < _WRITE_AT_ONCE:
                data = unwritten[0]
                written = os.write(self._write_fd, data)
                total += written
                if written == len(data):
                    unwritten.popleft()
                else:
                    unwritten[0] = memoryview(data)[written:]
        except BlockingIOError:
            pass
        except OSError as error:
            self._write_failed(error)
            return None
        if unwritten:
            self._progress = self._loop.time()
        return total

    def _writable(self) -> None:
        written = self._write_some()
        if written is None:
            return
        unsent = self.session.unsent - written
        if not self._unwritten:
            self._stop_writing()
        self.wrote(unsent)
        frames = self.session.flush_turn()
        if frames:
            self._write(frames)

    def _stop_writing(self) -> None:
        self._loop.remove_writer(self._write_fd)
        self._unwritten.clear()
        if self._all_written is not None:
            self._all_written.set()

    def _write_failed(self, error: OSError) -> None:
        """The other side reads no more. What it wrote before it went is still to be read."""
        self._write_ended = True
        self._stop_writing()
        self.session.unsent = 0
        self._last_words = self._loop.call_later(
            self.limits.close_timeout, self._end_of_stream, error
        )

    def _watch_age(self) -> None:
        """Have an eye on bytes that nobody takes: one timer a driver."""
        if self._age_timer is None:
            self._age_timer = self._loop.call_later(self.limits.max_send_age, self._check_age)

    def _check_age(self) -> None:
        self._age_timer = None
        if not self._unwritten or self.session.error is not None:
            return
        left = self._progress + self.limits.max_send_age - self._loop.time()
        if left <= 0:
            self.session.end(
                PeerLost(
                    f"the other side took none of {self.session.unsent} bytes for "
                    f"{self.limits.max_send_age:g} s (Limits.max_send_age)"
                )
            )
            return
        self._age_timer = self._loop.call_later(left, self._check_age)

    async def finish_writing(self) -> None:
        self._flush()
        if self._unwritten:
            self._all_written = asyncio.Event()
            await self._all_written.wait()
        self._end_writing()
        if not self._eof.is_set() and self.session.error is None:
            await self._eof.wait()

    def _end_writing(self) -> None:
        """Our half of the stream ends; the other side sees end of file."""
        if self._write_fd < 0 or self._write_ended:
            return
        self._write_ended = True
        if end_writing(self._write_fd) and self._write_fd != self._read_fd:
            self._loop.remove_writer(self._write_fd)
            os.close(self._write_fd)
            self._write_fd = -1

    def release_stream(self) -> None:
        for timer in (self._release_timer, self._age_timer, self._last_words, self._alarm):
            if timer is not None:
                timer.cancel()
        if self._workers is not None:
            self._workers.shutdown(wait=False)
        self._stop_reading()
        if self._write_fd >= 0:
            self._loop.remove_writer(self._write_fd)
        for fd in {self._read_fd, self._write_fd}:
            if fd >= 0:
                os.close(fd)
        self._read_fd = self._write_fd = -1
        self._write_ended = True
