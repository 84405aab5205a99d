"""The doors: `connect`, `attach`, `pair`. Each is awaitable, and a context manager.

A door returns when the other side's hello has come, and raises what prevented it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

import anyio
import anyio.abc

from ._addresses import Address, check_stream_socket, new_socket, parse, send_at_once
from ._capnode import Capnode, Index
from ._limits import Limits
from ._peer import (
    I_co,
    Interface,
    Peer,
    Settings,
    check_interface,
    make_peer,
    make_settings,
    traits_of,
)
from ._websocket import WebSocketStream, check_installed
from ._websocket import connect as websocket_connect
from .driver.anyio import DescriptorStream


class Closable(Protocol):
    async def aclose(self) -> None: ...


C = TypeVar("C", bound=Closable)
P = TypeVar("P", bound=Peer)
if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultingTypeVar

    J_co = DefaultingTypeVar("J_co", covariant=True, default=Any)
else:  # see _stub.py
    J_co = TypeVar("J_co", covariant=True)


class Door(Generic[C]):
    """``peer = await door``, closed by hand; or ``async with door as peer:``."""

    def __init__(self, enter: Callable[[], Coroutine[Any, Any, C]]) -> None:
        self._open = enter
        self._opened: C | None = None

    def __await__(self) -> Generator[Any, Any, C]:
        return self._open().__await__()

    if not TYPE_CHECKING:  # who say it in words of their own

        def __enter__(self) -> NoReturn:
            raise TypeError(
                "this is a door of the event loop: write async with, in an async def main(); or, "
                "without an event loop, with capnode.sync.spawn(...)"
            )

        def __exit__(self, *exc_info: object) -> None: ...

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(
                f"a door has no {name!r}, and is no peer yet: write peer = await capnode.spawn(...)"
                ", or async with capnode.spawn(...) as peer",
                name=name,
                obj=self,
            )

    async def __aenter__(self) -> C:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._opened is not None:
            await self._opened.aclose()


async def opened(peer: P) -> P:
    """Wait for the hello; if it does not come, or this is cancelled, leave nothing behind."""
    try:
        await peer._driver.open()
    except BaseException:
        await peer._driver.abandon()
        raise
    return peer


def connect(
    url: str,
    *,
    index: Index = None,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    nickname: str = "",
    tracebacks: bool = False,
    application: str = "",
    versions: Sequence[int] = (),
    allow_remote: bool = False,
    interface: Interface[I_co] = None,
) -> Door[Peer[I_co]]:
    """Connect to a peer that listens.

    Args:
        url: ``unix:/path``, ``tcp://host:port``, or ``ws://host:port/path``, a WebSocket (the extra
            ``capnode_py[web]``); ``wss:`` is one through TLS.
        index: what we offer; or `host`, whose connection it is.
        dialect: ``"cbor"``, which Python speaks to Python, or ``"capnweb"``, which JavaScript
            speaks.
        limits: see `Limits`.
        nickname: names the other side in errors and logs.
        tracebacks: send the tracebacks of our handlers' errors to the other side.
        application: the name of what both sides are part of: the other door must be given the
            same.
        versions: those of the application that this side speaks, ``[1]`` by default. The highest
            that both sides name is `Peer.application_version`.
        allow_remote: let ``tcp:`` and ``ws:`` leave this machine. Nothing is encrypted or
            authenticated.
        interface: what `Peer.index` is to type checkers and editors: a Protocol, or the `Target`
            class of the other side.

    Raises:
        ValueError, TypeError: for the arguments.
        OSError: nobody listens there.
        PeerLost, ProtocolError: there was no hello.
    """
    address = parse(url, allow_remote=allow_remote)
    if address.is_web:
        check_installed(url)
    check_interface(interface)
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        nickname,
        default_name=address.where() if address.is_web else url,
        tracebacks=tracebacks,
        application=application,
        versions=versions,
    )

    async def enter() -> Peer[I_co]:
        sock = await _connected(address)
        fd = sock.detach()
        if address.is_web:
            stream = await _web_stream(fd, url, address, settings)
            return await opened(make_peer(Peer, stream, settings))
        return await opened(make_peer(Peer, (fd, fd), settings))

    return Door(enter)


async def _web_stream(fd: int, url: str, address: Address, settings: Settings) -> WebSocketStream:
    stream: Any = DescriptorStream(fd, fd)
    try:
        if address.kind == "wss":
            from anyio.streams.tls import TLSStream

            with anyio.fail_after(settings.limits.hello_timeout):
                stream = await TLSStream.wrap(
                    stream, hostname=address.host, standard_compatible=False
                )
        text = traits_of(settings.dialect).text
        return await websocket_connect(
            stream, url, where=address.where(), text=text, limits=settings.limits
        )
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise


def attach(
    stream: Any,
    *,
    index: Index = None,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    nickname: str = "",
    tracebacks: bool = False,
    application: str = "",
    versions: Sequence[int] = (),
    interface: Interface[I_co] = None,
) -> Door[Peer[I_co]]:
    """A peer on a stream that is there already; it is the peer's from then on.

    Args:
        stream: an `anyio.abc.ByteStream`, a connected `socket.socket`, or a pair of
            `asyncio.StreamReader` and `asyncio.StreamWriter`.
        index, host, limits, nickname, tracebacks, application, versions, interface: as for
            `connect`.

    Raises:
        TypeError: it is none of these.
        PeerLost, ProtocolError: there was no hello.
    """
    check_interface(interface)
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        nickname,
        tracebacks=tracebacks,
        application=application,
        versions=versions,
    )
    if isinstance(stream, socket.socket):
        check_stream_socket(stream)
    elif not _is_byte_stream(stream) and not _is_pair(stream):
        raise TypeError(
            f"attach() takes an anyio ByteStream, a socket or (reader, writer), not a "
            f"{type(stream).__name__}"
        )

    async def enter() -> Peer[I_co]:
        if isinstance(stream, socket.socket):
            fd = stream.detach()
            return await opened(make_peer(Peer, (fd, fd), settings))
        return await opened(
            make_peer(Peer, _StreamPair(*stream) if isinstance(stream, tuple) else stream, settings)
        )

    return Door(enter)


def pair(
    index: Index = None,
    far_index: Index = None,
    *,
    dialect: str = "cbor",
    limits: Limits | None = None,
    far_limits: Limits | None = None,
    interface: Interface[I_co] = None,
    far_interface: Interface[J_co] = None,
) -> Door[Pair[I_co, J_co]]:
    """Two peers joined in memory, for tests and for parts of one program.

    Args:
        index: what the first one offers, `far_index` the second.
        dialect: what they speak: see `connect`.
        limits, far_limits: likewise.
        interface: what the first one's `Peer.index` is to type checkers, `far_interface` the
            second's; see `connect`.

    Returns:
        A `Pair`, which unpacks: ``async with pair(far_index=api) as (near, far):``
    """
    check_interface(interface)
    check_interface(far_interface)
    near_settings = make_settings(index, None, dialect, limits, "far", tracebacks=True)
    far_settings = make_settings(far_index, None, dialect, far_limits, "near", tracebacks=True)

    async def enter() -> Pair[I_co, J_co]:
        one, other = memory_streams()
        near: Peer[I_co] = make_peer(Peer, one, near_settings)
        far: Peer[J_co] = make_peer(Peer, other, far_settings)
        try:
            await opened(near)
            await opened(far)
        except BaseException:
            await near._driver.abandon()
            await far._driver.abandon()
            raise
        return Pair(near, far)

    return Door(enter)


class Pair(tuple[Peer[I_co], Peer[J_co]], Generic[I_co, J_co]):
    """The two ends of `pair`."""

    __slots__ = ()

    def __new__(cls, near: Peer[I_co], far: Peer[J_co]) -> Pair[I_co, J_co]:
        return tuple.__new__(cls, (near, far))

    async def aclose(self) -> None:
        """Close both."""
        for peer in self:
            await peer.aclose()


async def _connected(address: Address) -> socket.socket:
    if address.kind == "unix":
        return await _try_connect(socket.AF_UNIX, address.host)
    failure = OSError(f"{address.host} has no address")
    found = await anyio.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, _, _, _, where in found:
        try:
            sock = await _try_connect(family, where)
        except OSError as error:
            failure = error
        else:
            send_at_once(sock)
            return sock
    raise failure


async def _try_connect(family: int, where: Any) -> socket.socket:
    with new_socket(family, f"connecting to {where!r}: does the other side listen there?") as sock:
        try:
            sock.connect(where)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    return sock


def _is_pair(stream: Any) -> bool:
    return (
        isinstance(stream, tuple)
        and len(stream) == 2
        and _has(stream[0], "read", "at_eof")
        and _has(stream[1], "write", "drain", "wait_closed")
    )


def _is_byte_stream(stream: Any) -> bool:
    return _has(stream, "receive", "send", "send_eof", "aclose")


def _has(value: Any, *names: str) -> bool:
    return all(hasattr(value, name) for name in names)


class _StreamPair:
    """asyncio's reader and writer as one byte stream."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._reader.read(max_bytes)  # type: ignore[no-any-return]

    async def send(self, item: bytes) -> None:
        self._writer.write(item)
        await self._writer.drain()

    async def send_eof(self) -> None:
        if self._writer.can_write_eof():
            self._writer.write_eof()

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class _MemoryStream:
    """One end of a byte stream in memory."""

    def __init__(
        self,
        send: anyio.abc.ObjectSendStream[bytes],
        receive: anyio.abc.ObjectReceiveStream[bytes],
    ) -> None:
        self._send = send
        self._receive = receive

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._receive.receive()

    async def send(self, item: bytes) -> None:
        await self._send.send(item)

    async def send_eof(self) -> None:
        await self._send.aclose()

    async def aclose(self) -> None:
        await self._send.aclose()
        await self._receive.aclose()


def memory_streams() -> tuple[_MemoryStream, _MemoryStream]:
    """Two ends of a byte stream in memory."""
    send_a, receive_b = anyio.create_memory_object_stream[bytes](8)
    send_b, receive_a = anyio.create_memory_object_stream[bytes](8)
    return _MemoryStream(send_a, receive_a), _MemoryStream(send_b, receive_b)
