"""The driver for messages that the caller carries, on any loop that anyio knows.

It has no task and no descriptor: what comes in is handled in a callback of the loop, what goes out
is handed to listeners at the end of a turn. A connection that nobody holds any more is garbage.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio

from .._errors import PeerLost, ProtocolError, RemoteProtocolError
from .._long import Encoded
from .._messages import Codec
from ._base import RELEASE_DELAY
from .anyio import LoopDriver

Listener = Callable[[bytes], Awaitable[object] | object]


class MessageDriver(LoopDriver):
    """See the module. An empty message, in either direction, is the end of the stream.

    Attributes:
        whole: a message ends where an item ends; off, items may be cut anywhere.
    """

    def __init__(self, *, codec: Codec, **settings: Any) -> None:
        self.whole = True
        self._codec = codec
        self._inbox: deque[bytes | ProtocolError] = deque()
        self._reading = False
        self._listeners: dict[object, Listener] = {}
        self._unwritten: deque[bytes] = deque()
        self._unwritten_size = 0
        self._writing = self._write_ended = False
        self._all_written = anyio.Event()
        self._eof = anyio.Event()
        super().__init__(codec=codec, **settings)

    # Turns.

    def soon(self, run: Callable[[], object]) -> bool:
        try:
            self._call_soon(run)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def abandoned(self, run: Callable[[], object]) -> bool:
        return self.soon(run)

    def after(self, seconds: float, run: Callable[[], None]) -> None:
        self.background(partial(self._run_after, seconds, run))

    async def _run_after(self, seconds: float, run: Callable[[], None]) -> None:
        if not await self.within(seconds, self._closed.wait):
            run()

    def wake(self) -> None:
        if not self._flushing and not self._in_turn:
            self._flushing = True
            self._soon_or_never(self._flush)

    def wake_later(self) -> None:
        if not self._releasing:
            self._releasing = True
            self._soon_or_never(lambda: self.background(self._flush_releases))

    def _soon_or_never(self, run: Callable[[], object]) -> None:
        if not self.soon(run):
            self._closing = True  # there is no loop to do it in
            self.session.end(PeerLost("the event loop of this connection has ended"))
            self.release_stream()
            self._closed.set()

    async def _flush_releases(self) -> None:
        await anyio.sleep(RELEASE_DELAY)
        self._releasing = False
        self._flush()

    def _flush(self) -> None:
        self._flushing = False
        self._write(self.session.flush())

    def launch(self) -> None:
        self.background(self._run_oldest)

    # Messages in.

    def receive(self, message: bytes | ProtocolError) -> None:
        """A message has come, or what it was could not be read. From any thread."""
        self._inbox.append(message)
        if not self._reading:
            self._reading = True
            self.soon(self._read)

    def _read(self) -> None:
        self._reading = False  # first: what comes from now on calls for another turn
        for _ in range(len(self._inbox)):
            self._read_one(self._inbox.popleft())
        self._write(self.session.flush_turn())

    def _read_one(self, message: bytes | ProtocolError) -> None:
        if isinstance(message, ProtocolError):
            self.session.abort(message)
        elif not message:
            self._eof.set()
            self.lost()
        else:
            copy_context().run(self.received, message)
            if self.whole and self._codec.unfinished and self.session.error is None:
                self.session.abort(
                    RemoteProtocolError(
                        f"a message ended in mid-frame, {self._codec.unfinished} bytes into it: "
                        "its transport cuts messages, or loses some. Where what is carried is a "
                        "stream of bytes, write stream_from_remote(remote)"
                    )
                )

    # Messages out.

    def listen(self, key: object, listener: Listener) -> None:
        """Hand every message to `listener`, those that wait first."""
        self._listeners[key] = listener
        self.soon(self._hand_over)

    def unlisten(self, key: object) -> None:
        """No more of them. While nobody listens they are kept."""
        self._listeners.pop(key, None)

    def _write(self, frames: list[Encoded]) -> None:
        if frames and not self._write_ended:
            self._unwritten.extend(map(bytes, frames))
            self._unwritten_size += sum(map(len, frames))
            self.session.unsent = self._unwritten_size
            self._hand_over()

    def _hand_over(self) -> None:
        """Hand over what waits; one that makes us wait goes on in a task."""
        while self._unwritten and self._listeners and not self._writing:
            self._writing = True
            message = self._unwritten[0]
            waits: list[Awaitable[object]] = []
            try:
                for listener in tuple(self._listeners.values()):
                    result = listener(message)
                    if inspect.isawaitable(result):
                        waits.append(result)
            except Exception as error:  # noqa: BLE001 - whatever a transport raises
                self._broken(error)
            if waits:
                self.background(partial(self._await_listeners, waits))
            else:
                self._handed_over()

    async def _await_listeners(self, waits: list[Awaitable[object]]) -> None:
        try:
            for wait in waits:
                await wait
        except Exception as error:  # noqa: BLE001 - whatever a transport raises
            self._broken(error)
        finally:
            self._handed_over()
        self._hand_over()

    def _handed_over(self) -> None:
        self._writing = False
        if self._unwritten:
            self._unwritten_size -= len(self._unwritten.popleft())
            self.wrote(self._unwritten_size)
            self.session.drain_notes()  # those of that turn woke nobody
        if not self._unwritten:
            self._all_written.set()

    def _broken(self, error: Exception) -> None:
        """A listener has raised: its transport is gone."""
        self._write_ended = True
        self._forget_unwritten()
        self.lost(error)

    def _forget_unwritten(self) -> None:
        self._unwritten.clear()
        self._unwritten_size = self.session.unsent = 0
        self._all_written.set()

    # The end.

    async def finish_writing(self) -> None:
        self._flush()
        if self._write_ended or not self._listeners:  # nobody is there to take it
            return
        self._write_ended = True
        self._unwritten.append(b"")
        self._all_written = anyio.Event()
        self._hand_over()
        await self._all_written.wait()
        if not self._eof.is_set() and self.session.error is None:
            await self._eof.wait()

    def release_stream(self) -> None:
        self._write_ended = True
        self._listeners.clear()
        self._forget_unwritten()
        self._inbox.clear()
