"""trio, on descriptors of its own: what they give and take is handled as on asyncio.

One task reads, handles and answers; one writes what other tasks have said, once they have all had
their turn. Of what is long, nothing is copied, and what a full descriptor does not take is written
by a task that lives for so long.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import anyio
import trio
from trio.lowlevel import Abort, Task

from .._cell import Cell
from ._base import logger
from ._descriptor import LaneDriver
from .anyio import TaskDriver


class TrioDriver(TaskDriver, LaneDriver):
    """See the module.

    Args:
        read_fd, write_fd: they may be the same. The driver owns them, and closes them.
    """

    def __init__(self, read_fd: int, write_fd: int, **settings: Any) -> None:
        self._reader: anyio.CancelScope | None = None
        self._writer: anyio.CancelScope | None = None
        self._flusher: Task | None = None  # while it waits
        super().__init__(read_fd=read_fd, write_fd=write_fd, **settings)
        self._start(self._flush_turns)

    def soon(self, run: Callable[[], object]) -> bool:
        try:
            self._call_soon(partial(self._do, run))
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _do(self, run: Callable[[], object]) -> None:
        """What it raised would end the program."""
        try:
            run()
        except Exception as error:  # noqa: BLE001 - it is told
            logger.exception("a bug in capnode_py ends the session; please report it")
            self._broke(error)

    # Turns.

    def wake(self) -> None:
        if not self._flushing and not self._in_turn:
            self._flushing = True
            if self._flusher is not None:
                flusher, self._flusher = self._flusher, None
                trio.lowlevel.reschedule(flusher)

    async def _flush_turns(self) -> None:
        while True:
            if not self._flushing:
                self._flusher = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_flushing)
            self.flush_said()

    def _stop_flushing(self, _raise: object) -> Abort:
        self._flusher = None
        return Abort.SUCCEEDED

    def wait(self, cell: Cell) -> Generator[Any, Any, Any]:
        watcher = partial(_resume, trio.lowlevel.current_task())
        cell.watch(watcher)
        stop = partial(_stop_waiting, [cell], watcher)
        del cell  # a traceback may hold this frame: a late result would stay with it
        yield from trio.lowlevel.wait_task_rescheduled(stop).__await__()  # noqa: ASYNC105

    # Descriptors and time.

    def now(self) -> float:
        return trio.current_time()

    def later(self, seconds: float, run: Callable[[], object]) -> anyio.CancelScope:
        return self._start(partial(self._run_after, seconds, run))

    def watch_reading(self) -> None:
        self._reader = self._start(self._read)

    def unwatch_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def _read(self) -> None:
        reader = self._reader
        while reader is self._reader:
            try:
                await trio.lowlevel.wait_readable(self._read_fd)
            except OSError as error:  # a file, which is always ready
                self._end_of_stream(error)
            else:
                self._readable()

    def watch_writing(self) -> None:
        self._writer = self._start(self._write_on)

    def unwatch_writing(self) -> None:
        if self._writer is not None:
            self._writer.cancel()
            self._writer = None

    async def _write_on(self) -> None:
        writer = self._writer
        while writer is self._writer:
            try:
                await trio.lowlevel.wait_writable(self._write_fd)
            except OSError as error:
                self._write_failed(error)
            else:
                self._writable()

    # The end.

    def release_stream(self) -> None:
        self._write_ended = True
        super().release_stream()

    async def _close_stream(self) -> None:
        for fd in {self._read_fd, self._write_fd}:
            if fd >= 0:
                trio.lowlevel.notify_closing(fd)
        LaneDriver.release_stream(self)


def _resume(task: Task, _cell: Cell) -> None:
    trio.lowlevel.reschedule(task)


def _stop_waiting(held: list[Cell], watcher: Callable[[Cell], None], _raise: object) -> Abort:
    held.pop().unwatch(watcher)
    return Abort.SUCCEEDED
