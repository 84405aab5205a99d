"""Capnode's own face: connections over messages that the caller carries.

The names and the idea are those of Capnode (github.com/danfinlay/capnode): a host makes a `Remote`
for each connection, hands it what comes in, and is handed what is to go out. So any transport of
messages carries a connection: a queue, a web socket, a message bus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from ._capnode import Capnode
from ._errors import CannotPass, RemoteProtocolError
from ._limits import Limits
from ._peer import Peer, make_peer, make_settings
from .driver.messages import MessageDriver


class Serializer(Protocol):
    """For a transport whose messages are not bytes: what it carries in their place.

    A base64 codec, say, for one that carries text. It must give the same bytes back, none for none.
    Capnode's serializers write the values themselves; here that is the dialect's part.
    """

    def serialize(self, data: bytes, /) -> Any:
        """A message of the transport that stands for `data`."""

    def deserialize(self, message: Any, /) -> bytes:
        """The `data` that it stands for. Whatever it raises ends the connection."""


MessageListener = Callable[[Any], Awaitable[object] | object]
"""Takes a message, as bytes or as the serializer makes it. It may be async: then the next message
waits until it is done."""


class Remote(Peer):
    """One connection of a host over messages that the caller carries. `Capnode.create_remote`
    makes it::

        remote = host.create_remote()
        remote.add_remote_message_listener(transport.send)
        transport.on_message = remote.receive_message

    A message is `bytes`: one or more whole items of the stream (a frame each), in order, with
    nothing lost. An empty message is the end of the stream, and has to be carried too; a transport
    that breaks says ``remote.receive_message(b"")`` to its own side.

    All else is as on any `Peer`, and nothing waits for the other side's hello: a call that is made
    before there is a transport is sent once there is one.
    """

    _driver: MessageDriver
    _serializer: Serializer | None = None

    def __repr__(self) -> str:
        return super().__repr__().replace("Peer", "Remote", 1)

    def receive_message(self, message: Any) -> None:
        """A message of the other side has come. From any thread; it is handled in the event loop.

        What cannot be understood ends the connection with a `ProtocolError`. What comes after its
        end is dropped.

        Raises:
            TypeError: it is not bytes, and there is no serializer that makes bytes of it.
        """
        data = message
        if self._serializer is not None:
            try:
                data = self._serializer.deserialize(message)
            except Exception as error:  # noqa: BLE001 - the serializer's way to say that it is garbage
                broken = RemoteProtocolError(f"the serializer cannot read a message: {error!r}")
                broken.__cause__ = error
                self._driver.receive(broken)
                return
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"a message is bytes, not {type(data).__name__}: for a transport that carries "
                "something else write Capnode(serializer=...)"
            )
        self._driver.receive(bytes(data))

    def add_remote_message_listener(self, listener: MessageListener) -> None:
        """Have `listener(message)` called with each message for the other side.

        What was to be sent while nobody listened comes first (`Limits.max_unsent` bounds it). A
        listener that raises has lost its transport, and ends the connection with `PeerLost`. There
        may be several, and each gets everything; the same one is called once.
        """
        if not callable(listener):
            raise TypeError(
                f"a listener is a function of the message, not {listener!r}: write queue.put, say"
            )
        self._driver.listen(listener, self._serialized(listener))

    def remove_remote_message_listener(self, listener: MessageListener) -> None:
        """Call it no more. While nobody listens messages are kept, for one that is added later."""
        self._driver.unlisten(listener)

    def _serialized(self, listener: MessageListener) -> MessageListener:
        serializer = self._serializer
        if serializer is None:
            return listener
        return lambda data: listener(serializer.serialize(data))


def create_remote(
    host: Capnode, *, limits: Limits | None, nickname: str, tracebacks: bool
) -> Remote:
    """See `Capnode.create_remote`."""
    settings = make_settings(None, host, "cbor", limits, nickname, tracebacks=tracebacks)
    remote = make_peer(Remote, None, settings)
    remote._serializer = host.serializer
    return remote


def join(one: Remote, other: Remote) -> None:
    """Carry messages between two remotes of one program."""
    one.add_remote_message_listener(other.receive_message)
    other.add_remote_message_listener(one.receive_message)


async def cap_wrap(value: Any) -> Any:
    """A copy of `value` as it would arrive elsewhere: data copied, functions and objects as stubs.

    So that you can see what the other side of a connection will, or hand something out that can
    only be called: calls are async, arguments and results are copies, errors are `RemoteError`s.
    Nothing has to be closed: it is gone with its last stub. (Capnode's capWrap.)

    Raises:
        CannotPass: something in it passes neither by copy nor by reference.
    """
    received: list[Any] = []
    near = Capnode().create_remote(nickname="cap_wrap", tracebacks=True)
    far = Capnode(received.append).create_remote(nickname="cap_wrap", tracebacks=True)
    join(near, far)
    try:
        await near.index(value)
    except CannotPass as error:
        error.root = "the value"
        del error.path[0]
        raise
    return received.pop()


_ENOUGH = 256 * 1024


class RemoteStream(anyio.abc.ByteStream):
    """A remote as a byte stream: what is sent to it, the remote receives. See
    `stream_from_remote`."""

    def __init__(self, remote: Remote) -> None:
        self._driver = remote._driver
        self._driver.whole = False  # a stream may be cut anywhere
        self._chunks: deque[bytes | memoryview] = deque()
        self._size = 0
        self._changed = anyio.Event()
        self._closed = self._sent_eof = False
        self._driver.listen(self, self._take)

    def _take(self, data: bytes) -> Awaitable[object] | None:
        """A message for the other side. Where nobody receives, the next one waits."""
        self._chunks.append(data)
        self._size += len(data)
        self._change()
        return self._room() if self._size > _ENOUGH else None

    async def _room(self) -> None:
        while self._size > _ENOUGH and not self._closed:
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes for the other side.

        Raises:
            anyio.EndOfStream: the remote has ended the stream.
        """
        await anyio.lowlevel.checkpoint()
        while not self._chunks and not self._closed:
            await self._changed.wait()
        if self._closed:
            raise anyio.ClosedResourceError
        chunk = self._chunks[0]
        if not chunk:  # it stays there, for who asks again
            raise anyio.EndOfStream
        if len(chunk) > max_bytes:
            self._chunks[0] = memoryview(chunk)[max_bytes:]
        else:
            self._chunks.popleft()
        data = bytes(chunk[:max_bytes])
        self._size -= len(data)
        self._change()
        return data

    async def send(self, item: bytes) -> None:
        """Bytes from the other side, cut anywhere."""
        await anyio.lowlevel.checkpoint()
        if self._closed:
            raise anyio.ClosedResourceError
        if self._driver.session.error is not None:
            raise anyio.BrokenResourceError
        if item:
            self._driver.receive(bytes(item))

    async def send_eof(self) -> None:
        """The other side has ended the stream."""
        if not self._sent_eof:
            self._sent_eof = True
            self._driver.receive(b"")
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Break the connection off, if it has not ended."""
        if not self._closed:
            self._closed = True
            self._driver.unlisten(self)
            self._change()
        await self.send_eof()

    async def pump(self, other: anyio.abc.ByteStream) -> None:
        """Carry bytes both ways between this stream and `other`, until both have ended. Then both
        are closed. (``remote.pipe(other).pipe(remote)`` in Capnode.)
        """
        async with self, other, anyio.create_task_group() as group:
            group.start_soon(_copy, self, other, group.cancel_scope)
            group.start_soon(_copy, other, self, group.cancel_scope)


async def _copy(
    source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream, both: anyio.CancelScope
) -> None:
    try:
        async for data in source:
            await sink.send(data)
        await sink.send_eof()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        both.cancel()  # one way alone is no connection


def stream_from_remote(remote: Remote) -> RemoteStream:
    """A byte stream that speaks for `remote`, for a transport that is a stream.

    What is sent to it the remote receives, and what is received from it is for the other side. So
    it can be given to `attach`, or joined to another stream: ``await
    stream_from_remote(remote).pump(stream)``. No serializer has a part in it.
    """
    return RemoteStream(remote)
