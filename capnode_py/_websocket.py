"""WebSockets: a byte stream on either side of one, for any event loop.

The protocol itself is that of the `websockets` library, without its I/O, which is an extra. A
message of the native dialect is binary and holds a frame, and an empty one is the end of the
stream, as ``docs/protocol.md`` has it for messages; one of Cap'n Web is text and holds a line.

Nothing is compressed: a small message could otherwise become a large one here. Pings are answered;
none are sent, as `Limits.max_send_age` ends what does not read.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import deque
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Any

import anyio

from ._errors import PeerLost, RemoteProtocolError
from ._limits import Limits
from .driver.anyio import Stream, start_background

SUBPROTOCOL = "capnode"
"""What both sides name in the handshake if they speak the native dialect."""

_READ_SIZE = 256 * 1024
_MOST_OWED = 64 * 1024  # bytes of pongs for a peer that pings and does not read
_AROUND_FRAME = 1024  # bytes that may stand around one in a message: the hello, heads
_GOING = (1000, 1001, 1005)  # the codes of a close that is none of an error
_TEXT, _BINARY, _CONTINUED, _CLOSE = 0x01, 0x02, 0x00, 0x08
_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


def check_installed(url: str) -> None:
    """Raises ImportError, with what to install."""
    if find_spec("websockets") is None:
        raise ImportError(
            f"{url} needs the websockets library: pip install 'capnode_py[web]'", name="websockets"
        )


def checked_origins(origins: Any) -> list[Any]:
    """The origins of web pages that may connect, beside clients that are no pages.

    Raises:
        TypeError, ValueError: they are no origins.
    """
    if isinstance(origins, str) or not isinstance(origins, Collection):
        raise TypeError(
            f"origins= takes a list, as in origins=['https://my.site'], not {origins!r}"
        )
    for origin in origins:
        if not isinstance(origin, str) or not re.fullmatch(r"\*|[a-z][a-z+.-]*://[^/\s*]+", origin):
            raise ValueError(
                f"origins={origins!r}: {origin!r} is no origin, which is a scheme and a host, and "
                "a port if it has one: 'https://my.site', 'http://localhost:8000'. '*' lets every "
                "page connect that a user of this machine opens, whoever wrote it"
            )
    return [None, *(re.compile(".*") if origin == "*" else origin for origin in origins)]


async def connect(
    stream: Stream, url: str, *, where: str, text: bool, limits: Limits
) -> WebSocketStream:
    """Ask the server at the other end of `stream` for a WebSocket.

    Args:
        where: the url for errors, without what may be secret in it.

    Raises:
        PeerLost: it gives none.
        RemoteProtocolError: it speaks something else.
    """
    from websockets.client import ClientProtocol
    from websockets.exceptions import InvalidStatus
    from websockets.uri import parse_uri

    protocol = ClientProtocol(
        parse_uri(url),
        subprotocols=None if text else [SUBPROTOCOL],  # type: ignore[list-item]
        **_settings(limits),
    )
    protocol.send_request(protocol.connect())
    socket = WebSocketStream(stream, protocol, text=text, limits=limits)
    await _within(limits, socket.handshake())
    failed = protocol.handshake_exc
    if isinstance(failed, InvalidStatus):
        response = failed.response
        said = (response.body or b"")[:200].decode(errors="replace").strip()
        raise PeerLost(
            f"{where}: the server gives no WebSocket here: {response.status_code} "
            f"{response.reason_phrase}{f' ({said})' if said else ''}"
        )
    if failed is not None:
        raise RemoteProtocolError(f"{where}: what is there is no WebSocket server: {failed}")
    if not text and protocol.subprotocol != SUBPROTOCOL:
        await socket.send_eof()
        raise RemoteProtocolError(
            f"{where}: the server does not speak the native dialect (it does not choose the "
            f"subprotocol {SUBPROTOCOL!r}). If it speaks Cap'n Web, write dialect='capnweb'"
        )
    return socket


async def accept(
    stream: Stream, *, path: str, origins: Sequence[Any], text: bool, limits: Limits
) -> WebSocketStream:
    """Give the client at the other end of `stream` the WebSocket that it asks for.

    Raises:
        PeerLost: it may not have one, or asks for something else; it has been told.
    """
    from websockets.server import ServerProtocol

    protocol = ServerProtocol(
        origins=origins,
        subprotocols=None if text else [SUBPROTOCOL],  # type: ignore[list-item]
        **_settings(limits),
    )
    socket = WebSocketStream(stream, protocol, text=text, limits=limits)
    request = await _within(limits, socket.handshake())
    if request is not None:
        asked = request.path.partition("?")[0]
        if asked == path:
            protocol.send_response(protocol.accept(request))
        else:
            protocol.send_response(protocol.reject(404, "Nothing is served here.\n"))
            protocol.handshake_exc = LookupError(f"it asks for {asked[:100]!r}")
        await _within(limits, socket.flush())
    if protocol.handshake_exc is not None:
        raise PeerLost(f"no WebSocket for this client: {protocol.handshake_exc}")
    return socket


async def _within(limits: Limits, wait: Any) -> Any:
    try:
        with anyio.fail_after(limits.hello_timeout):
            return await wait
    except TimeoutError:
        raise PeerLost(
            f"no handshake of a WebSocket within {limits.hello_timeout:g} s (Limits.hello_timeout)"
        ) from None
    except (*_BROKEN, anyio.EndOfStream) as error:
        raise PeerLost("the connection ended in the handshake of the WebSocket") from error


def _settings(limits: Limits) -> dict[str, Any]:
    # What the library logs of each handshake, of each client that sends garbage, and of each
    # message with its content, is nothing for the log of a user of this one.
    silent = logging.Logger("websockets", logging.CRITICAL + 1)  # noqa: LOG001 - it has no parent
    return {"max_size": limits.max_frame + _AROUND_FRAME, "logger": silent}


class WebSocketStream:
    """A byte stream over a WebSocket.

    Args:
        stream: what carries the WebSocket. It is owned, and closed.
        protocol: of the `websockets` library: this end of the WebSocket.
        text: what is sent and received are lines, each a message of text.
    """

    def __init__(self, stream: Stream, protocol: Any, *, text: bool, limits: Limits) -> None:
        self._stream = stream
        self._protocol = protocol
        self._text = text
        self._limits = limits
        self._head = self._hasty = b""
        self._incoming: deque[bytes] = deque()
        self._outgoing: deque[bytes] = deque()
        self._writing = anyio.Lock(fast_acquire=True)
        self._is_empty = True  # the message in hand has had no bytes yet
        self._sent_end = False
        self._end: Exception | None = None

    async def handshake(self) -> Any:
        """Send what the protocol has to say; what the other side says first. None: it is not HTTP,
        and `Protocol.handshake_exc` says why."""
        await self.flush()
        while True:
            try:
                self._feed_head(await self._stream.receive(_READ_SIZE))
            except anyio.EndOfStream:
                self._protocol.receive_eof()
            events = self._protocol.events_received()
            if events:
                self._take(events[1:])
                return events[0]
            if self._protocol.handshake_exc is not None:
                await self.flush()
                return None

    def _feed_head(self, data: bytes) -> None:
        """Bytes of a handshake. What a hasty client says behind its own is for later: the protocol
        reads messages only when it has answered."""
        if self._protocol.side:  # the client's
            self._protocol.receive_data(data)
            return
        head, end, self._hasty = (self._head + data).partition(b"\r\n\r\n")
        self._protocol.receive_data((head + end)[len(self._head) :])
        self._head = head

    async def receive(self, max_bytes: int = _READ_SIZE) -> bytes:
        """The next bytes of what messages hold.

        Raises:
            anyio.EndOfStream: the other side has ended the stream, or closed the WebSocket.
            anyio.BrokenResourceError: it has gone, or sent what it may not.
        """
        while not self._incoming:
            if self._end is not None:
                raise self._end
            try:
                data, self._hasty = self._hasty or await self._stream.receive(_READ_SIZE), b""
                self._protocol.receive_data(data)
            except anyio.EndOfStream:
                self._protocol.receive_eof()
            self._take(self._protocol.events_received())
            await self._answer()
        data = b"".join(self._incoming)
        self._incoming.clear()
        return data

    def _take(self, frames: Sequence[Any]) -> None:
        for frame in frames:
            if self._end is not None:
                return
            if frame.opcode in (_TEXT, _BINARY):
                self._is_empty = True
                if (frame.opcode == _TEXT) != self._text:
                    self._fail(
                        1003,
                        "a message of text where this dialect has binary ones"
                        if frame.opcode == _TEXT
                        else "a binary message where this dialect has text",
                    )
                    return
            if frame.opcode in (_TEXT, _BINARY, _CONTINUED):
                self._take_data(frame.data, last=frame.fin)
            elif frame.opcode == _CLOSE:
                closed = self._protocol.close_rcvd
                self._ended(None if closed.code in _GOING else f"it was closed with {closed}")
        if self._end is None and self._protocol.parser_exc is not None:
            self._ended(_in_words(self._protocol.parser_exc, self._limits))

    def _take_data(self, data: bytes, *, last: bool) -> None:
        self._is_empty = self._is_empty and not data
        if not self._text:
            if data:
                self._incoming.append(bytes(data))
            elif last and self._is_empty:
                self._ended(None)
        else:  # a line break in JSON is white space
            self._incoming.append(data.replace(b"\n", b" ") + (b"\n" if last else b""))

    def _ended(self, why: str | None) -> None:
        """There is no more to come; `why` it is no orderly end."""
        if why is None:
            self._end = anyio.EndOfStream()
            if self._sent_end and not self._text:
                self._close()
        else:
            self._end = anyio.BrokenResourceError()
            self._end.__cause__ = RemoteProtocolError(why)

    def _fail(self, code: int, why: str) -> None:
        self._protocol.fail(code, why)
        self._ended(why)

    def _close(self) -> None:
        from websockets.exceptions import InvalidState

        with contextlib.suppress(InvalidState):
            self._protocol.send_close(1000)

    async def _answer(self) -> None:
        """What the protocol has to say to what has come: pongs, a close. Reading does not wait for
        writing, unless there is no more to read."""
        self._collect()
        if not self._outgoing:
            return
        if self._end is not None:
            with anyio.move_on_after(self._limits.close_timeout), contextlib.suppress(*_BROKEN):
                await self.flush()
        elif not self._writing.locked():
            start_background(self._flush_quietly)
        elif sum(map(len, self._outgoing)) > _MOST_OWED:
            self._fail(1008, "it pings, and does not read the pongs")

    async def _flush_quietly(self) -> None:
        with contextlib.suppress(*_BROKEN):  # which reading finds as well
            await self.flush()

    def _collect(self) -> None:
        self._outgoing.extend(self._protocol.data_to_send())

    async def flush(self) -> None:
        """Write what the protocol has to say."""
        self._collect()
        async with self._writing:
            while self._outgoing:
                data = self._outgoing.popleft()
                if data:
                    await self._stream.send(data)
                else:
                    with contextlib.suppress(NotImplementedError):  # TLS knows no half-close
                        await self._stream.send_eof()

    async def send(self, item: bytes) -> None:
        """Send a frame, or lines.

        Raises:
            anyio.BrokenResourceError: the WebSocket is closed.
        """
        from websockets.exceptions import InvalidState

        try:
            if self._text:
                for line in item.split(b"\n"):
                    if line:
                        self._protocol.send_text(line)
            else:
                self._protocol.send_binary(item)
        except InvalidState as error:
            raise anyio.BrokenResourceError from error
        await self.flush()

    async def send_eof(self) -> None:
        """End the stream: of messages of text by a close, since who speaks that knows no other way.
        What the other side still says can be received."""
        if self._sent_end:
            return
        self._sent_end = True
        if not self._text:
            await self.send(b"")
        if self._text or self._end is not None:
            self._close()
        await self.flush()

    async def aclose(self) -> None:
        """Close what carries it, at once."""
        await self._stream.aclose()


def _in_words(error: Exception, limits: Limits) -> str:
    from websockets.exceptions import PayloadTooBig

    if isinstance(error, EOFError):
        return "it ended without being closed"
    if isinstance(error, PayloadTooBig):
        return f"a message over the limit of {limits.max_frame} bytes (Limits.max_frame)"
    return f"what came is no WebSocket: {error}"
