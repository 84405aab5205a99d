"""The fast driver: asyncio or uvloop, on a descriptor of its own.

No stream or transport object stands between the descriptor and the engine: reading, decoding,
handling and answering are one callback of the loop. It needs no anyio, so that a child starts fast.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from .._cell import FULFILLED, Answer, Call, Cell
from .._errors import PeerClosed
from .._tables import Running
from ._descriptor import LaneDriver

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_EAGER = sys.version_info >= (3, 12)

_MOST_WORKERS = 1000  # threads of `in_thread` handlers, made as they are needed


class AsyncioDriver(LaneDriver):
    """See the module.

    Args:
        read_fd, write_fd: non-blocking; they may be the same. The driver owns them, and closes
            them.
    """

    def __init__(self, read_fd: int, write_fd: int, **settings: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._workers: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waker = self._wake  # one bound method for all who wait
        self._make_future = self._loop.create_future
        self._call_soon = self._loop.call_soon
        self.flush_behind = partial(self._call_soon, self.flush_said)
        super().__init__(read_fd, write_fd, **settings)

    def here(self) -> bool:
        return asyncio._get_running_loop() is self._loop

    def check_loop(self) -> None:
        if self._loop.is_closed():
            raise PeerClosed("the event loop of this connection has ended")

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

    # Turns.

    def wake(self) -> None:
        if not self._flushing and not self._in_turn:
            self._flushing = True
            self._call_soon(self._flush)

    def wait(self, cell: Cell) -> asyncio.Future[None]:
        future = self._make_future()
        watcher = partial(self._waker, future)
        if cell.watchers is None and cell.state < FULFILLED:
            cell.watchers = [watcher]
        else:
            cell.watch(watcher)
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

    def launch_usual(self, id: int, running: Running, awaitable: Any) -> bool:
        if not _EAGER:
            return False
        task = asyncio.Task(  # type: ignore[call-arg, unused-ignore]
            self.await_usual(id, running, awaitable), loop=self._loop, eager_start=True
        )
        if not task.done():
            self.launched_usual(id, running, task)
        return True

    def stop_usual(self, id: int) -> None:
        task = self._usual.get(id)
        if task is not None:
            self._usual[id] = None  # it is told once, and goes on until it ends
            self._keep(task)
            task.cancel()

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
        elif type(call.reply) is Answer:
            self.stop_usual(call.reply.id)

    def ended(self) -> None:
        for id in list(self._usual):
            self.stop_usual(id)
        super().ended()

    def in_worker(self, run: Callable[[], Any]) -> Awaitable[Any]:
        if self._workers is None:
            from concurrent.futures import ThreadPoolExecutor

            # Without a bound that matters: a handler that waits for a callback that waits for ...
            self._workers = ThreadPoolExecutor(_MOST_WORKERS, "capnode")
        return self._loop.run_in_executor(self._workers, copy_context().run, run)

    # Reading and writing.

    def now(self) -> float:
        return self._loop.time()

    def later(self, seconds: float, run: Callable[[], object]) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, run)

    def watch_reading(self) -> None:
        self._loop.add_reader(self._read_fd, self._readable)

    def unwatch_reading(self) -> None:
        self._loop.remove_reader(self._read_fd)

    def watch_writing(self) -> None:
        self._loop.add_writer(self._write_fd, self._writable)

    def unwatch_writing(self) -> None:
        self._loop.remove_writer(self._write_fd)

    def release_stream(self) -> None:
        if self._workers is not None:
            self._workers.shutdown(wait=False)
        super().release_stream()
