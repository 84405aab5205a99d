"""What drivers on descriptors of their own share: reading, writing, and what is yet unwritten."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from os import read, write
from threading import local
from typing import Any, Protocol, cast

from .._errors import PeerLost
from .._long import Encoded, Piece, flat
from .._messages import CALL
from ._base import RELEASE_DELAY, Driver, Event, end_writing, logger

SMALL_READ = 64 * 1024
_LARGE_READ = 256 * 1024  # a socket holds no more, by default
STAYS = 16  # small reads, until it is expected no more that much has come
_AT_ONCE = 16  # pieces in one write
_local = local()  # `buffer` for reading: only looked at while a read is being handled
_WRITE_AT_ONCE = 1024 * 1024  # then others get their turn, and reading too


class Timer(Protocol):
    """What `DescriptorDriver.later` gives."""

    def cancel(self) -> None: ...


class DescriptorDriver(Driver):
    """The shared half; a subclass says when a descriptor is ready, and keeps the time.

    Args:
        read_fd, write_fd: they may be the same. The driver owns them, and closes them.
    """

    def __init__(self, read_fd: int, write_fd: int, **settings: Any) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._write_ended = False
        self._reads_much = 0  # for how many more reads
        self._unwritten: deque[Piece] = deque()
        self._all_written: Event | None = None
        self._eof = self.make_event()
        self._progress = 0.0
        self._release_timer: Timer | None = None
        self._age_timer: Timer | None = None
        self._last_words: Timer | None = None
        self._alarm: Timer | None = None
        super().__init__(**settings)
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self.watch_reading()

    # What a subclass gives.

    @abstractmethod
    def now(self) -> float:
        """The time, in seconds."""

    @abstractmethod
    def later(self, seconds: float, run: Callable[[], object]) -> Timer:
        """Call `run()` then."""

    @abstractmethod
    def watch_reading(self) -> None:
        """Call `_readable` whenever there is something to read."""

    @abstractmethod
    def unwatch_reading(self) -> None: ...

    @abstractmethod
    def watch_writing(self) -> None:
        """Call `_writable` whenever there is room to write."""

    @abstractmethod
    def unwatch_writing(self) -> None: ...

    # Turns.

    def after(self, seconds: float, run: Callable[[], None]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.later(seconds, run)

    def wake_later(self) -> None:
        if not self._releasing:
            self._releasing = True
            self._release_timer = self.later(RELEASE_DELAY, self._flush_releases)

    def _flush_releases(self) -> None:
        self._releasing = False
        if self._flushing:
            self.session.hurry()  # they ride with what is about to leave
        else:
            self._flush()

    def _flush(self) -> None:
        self._flushing = False
        frames = self.session.flush()
        if frames:
            self._write(frames)

    def _readable(self) -> None:
        try:
            data = self._read_much() if self._reads_much else os.read(self._read_fd, SMALL_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._end_of_stream(error)
        else:
            self._was_read(data)

    def _was_read(self, data: bytes | memoryview) -> None:
        if not data:
            self._end_of_stream(None)
            return
        if len(data) == SMALL_READ:
            self._reads_much = STAYS
        self.received(data)
        self.end_turn()

    def _read_much(self) -> bytes | memoryview:
        """Read into a buffer of this thread, which the next read overwrites: memory that is new
        with each read costs more than to copy out of this what stays."""
        try:
            buffer: memoryview = _local.buffer
        except AttributeError:
            buffer = _local.buffer = memoryview(bytearray(_LARGE_READ))
        size = os.readv(self._read_fd, [buffer])
        if size < SMALL_READ:
            self._reads_much -= 1
            return bytes(buffer[:size])
        self._reads_much = STAYS
        return buffer[:size]

    def end_turn(self) -> None:
        """What was read is handled: write what it gave."""
        frames = self.session.flush_turn()
        if frames:
            self._write(frames)

    def _end_of_stream(self, cause: OSError | None) -> None:
        self._stop_reading()
        self._eof.set()
        self.lost(cause)

    def _stop_reading(self) -> None:
        if self._read_fd >= 0:
            self.unwatch_reading()

    def _write(self, frames: list[Encoded]) -> None:
        if self._write_ended or self._unwritten or len(frames) > 1:
            self._write_behind(flat(frames))
            return
        (data,) = frames  # and mostly taken whole: then nothing else is to be done
        try:
            written = os.write(self._write_fd, data)  # type: ignore[arg-type]
        except BlockingIOError:
            written = 0
        except TypeError:  # it is in pieces: to ask before would cost all the others
            self._write_behind(flat(frames))
            return
        except OSError as error:
            self._write_failed(error)
            return
        if written < len(data):
            self._write_behind([memoryview(cast(bytes, data))[written:]])
        elif self._drained or self.session.kept:
            self.wrote(0)

    def _write_behind(self, pieces: Iterable[Piece]) -> None:
        """Write what waits, and then these."""
        if self._write_ended:
            return
        idle = not self._unwritten
        pieces = list(pieces)
        self._unwritten.extend(pieces)
        if not idle:
            self.session.unsent += sum(map(len, pieces))
        elif self._write_some() is not None:
            unsent = 0
            if self._unwritten:
                unsent = self.session.unsent = sum(map(len, self._unwritten))
                self._watch_age()
                self.watch_writing()
            if self._drained or self.session.kept:
                self.wrote(unsent)

    def _write_some(self) -> int | None:
        """Write what the descriptor takes, within a turn's measure. Returns how much; None if the
        descriptor is broken."""
        unwritten = self._unwritten
        total = 0
        try:
            while unwritten and total < _WRITE_AT_ONCE:
                written = os.writev(self._write_fd, list(islice(unwritten, _AT_ONCE)))
                total += written
                while unwritten and written >= len(unwritten[0]):
                    written -= len(unwritten.popleft())
                if written:
                    unwritten[0] = memoryview(unwritten[0])[written:]
        except BlockingIOError:
            pass
        except OSError as error:
            self._write_failed(error)
            return None
        if unwritten:
            self._progress = self.now()
        return total

    def _writable(self) -> None:
        written = self._write_some()
        if written is None:
            return
        unsent = self.session.unsent - written
        if not self._unwritten:
            self._stop_writing()
        self.wrote(unsent)
        self.end_turn()

    def _stop_writing(self) -> None:
        self.unwatch_writing()
        self._unwritten.clear()
        if self._all_written is not None:
            self._all_written.set()

    def _write_failed(self, error: OSError) -> None:
        """The other side reads no more. What it wrote before it went is still to be read."""
        self._write_ended = True
        self._stop_writing()
        self.session.unsent = 0
        self._last_words = self.later(
            self.limits.close_timeout, partial(self._end_of_stream, error)
        )

    def _watch_age(self) -> None:
        """Have an eye on bytes that nobody takes: one timer a driver."""
        if self._age_timer is None:
            self._age_timer = self.later(self.limits.max_send_age, self._check_age)

    def _check_age(self) -> None:
        self._age_timer = None
        if not self._unwritten or self.session.error is not None:
            return
        left = self._progress + self.limits.max_send_age - self.now()
        if left <= 0:
            self.session.end(
                PeerLost(
                    f"the other side took none of {self.session.unsent} bytes for "
                    f"{self.limits.max_send_age:g} s (Limits.max_send_age)"
                )
            )
            return
        self._age_timer = self.later(left, self._check_age)

    async def finish_writing(self) -> None:
        self._flush()
        if self._unwritten:
            self._all_written = self.make_event()
            await self._all_written.wait()
        self._end_writing()
        if self.session.error is None:
            await self._eof.wait()

    def _end_writing(self) -> None:
        """Our half of the stream ends; the other side sees end of file."""
        if self._write_fd < 0 or self._write_ended:
            return
        self._write_ended = True
        if end_writing(self._write_fd) and self._write_fd != self._read_fd:
            self.unwatch_writing()
            os.close(self._write_fd)
            self._write_fd = -1

    async def cut_writing(self) -> None:
        if self._write_fd >= 0:
            self._stop_writing()
            self._end_writing()

    def release_stream(self) -> None:
        for timer in (self._release_timer, self._age_timer, self._last_words, self._alarm):
            if timer is not None:
                timer.cancel()
        self._stop_reading()
        if self._write_fd >= 0:
            self.unwatch_writing()
        for fd in {self._read_fd, self._write_fd}:
            if fd >= 0:
                os.close(fd)
        self._read_fd = self._write_fd = -1
        self._write_ended = True


class LaneDriver(DescriptorDriver):
    """That of an event loop. What comes alone, a call or an answer, is handled where it is read,
    and what leaves alone is a frame already.

    Attributes:
        flush_behind: where a loop runs tasks in the order in which they wake: has `flush_said`
            called behind those that wake in this turn.
    """

    flush_behind: Callable[[], object]

    def __init__(self, read_fd: int, write_fd: int, **settings: Any) -> None:
        self._woke = False  # a task, in this turn, which is to be flushed behind
        super().__init__(read_fd, write_fd, **settings)
        self._exchange = self.session.exchange

    def flush_said(self) -> None:
        """What tasks have said since they woke; releases alone still wait for company."""
        self._flushing = False
        frame = self.session.leave()
        if frame is not None:
            self.write_frame(frame)
            return
        # If the time of the releases has come meanwhile, no other flush will take them along.
        frames = self.session.flush_turn() if self._releasing else self.session.flush()
        if frames:
            self._write(frames)

    def _readable(self) -> None:
        """What this saves, of a call that is awaited alone, and of its answer, is a third."""
        exchange = self._exchange
        data: Any
        try:
            data = self._read_much() if self._reads_much else read(self._read_fd, SMALL_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._end_of_stream(error)
            return

        word = exchange.word(data) if exchange.open and type(data) is bytes else None
        if word is None:
            self._was_read(data)
            return
        self._in_turn = True
        try:
            handled = self.serve_alone(data) if word == CALL else exchange.settle(data, word)
        except Exception as error:  # noqa: BLE001 - it is told
            logger.exception("a bug in capnode_py ends the session; please report it")
            self._broke(error)
            handled = True
        finally:
            self._in_turn = False
        if not handled:
            self._was_read(data)
        else:
            self.end_turn()

    def end_turn(self) -> None:
        session = self.session
        if self._exchange.outbox.size or session.noted:
            frame = session.leave()
            if frame is not None:
                self.write_frame(frame)
            elif frames := session.flush_turn():
                self._write(frames)
        if self._woke:
            self._woke = False
            if not self._flushing:
                # What they say leaves in the loop's same round, where a flush that they ask for
                # would take one more, and one more poll.
                self._flushing = True
                self.flush_behind()

    def write_frame(self, frame: bytes) -> None:
        """`_write`, for what nearly all turns write."""
        if self._unwritten or self._write_ended:
            self._write_behind([frame])
            return
        try:
            written = write(self._write_fd, frame)
        except OSError:  # it is tried again, and found out
            written = 0
        if written < len(frame):
            self._write_behind([memoryview(frame)[written:]])
        elif self._drained or self.session.kept:
            self.wrote(0)
