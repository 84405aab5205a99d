"""For scripts, the REPL and notebooks: calls that block and give their value, no event loop.

    with capnode.sync.spawn([sys.executable, "plugin.py"]) as peer:
        peer.index.add(1, 2)

The doors are those of `capnode_py`, without ``await``. A thread that waits reads, and runs what the
other side calls meanwhile; see `Peer`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar, Unpack

from ._capnode import Capnode, Index
from ._errors import CapnodeError, PeerClosed
from ._limits import Limits
from ._log import get_logger
from ._peer import I_co, Interface, Settings, check_interface, make_settings
from ._peer_sync import Peer as Peer  # noqa: PLC0414 - these, too, are names of this module
from ._peer_sync import Pipeline as Pipeline  # noqa: PLC0414
from ._peer_sync import SpawnedPeer as SpawnedPeer  # noqa: PLC0414
from ._peer_sync import Stub as Stub  # noqa: PLC0414
from ._peer_sync import make, opened
from .driver._pump import the_pump
from .driver.blocking import BlockingDriver

logger = get_logger("capnode_py.sync")

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultingTypeVar

    from ._addresses import Bound
    from ._start import Command, SpawnOptions

    # See __getattr__.
    from ._supervise_sync import SupervisedPeer as SupervisedPeer  # noqa: PLC0414
    from ._supervise_sync import supervise as supervise  # noqa: PLC0414

    J_co = DefaultingTypeVar("J_co", covariant=True, default=Any)
else:
    J_co = TypeVar("J_co", covariant=True)  # see _stub.py


if not TYPE_CHECKING:  # to whom it would mean that any name is one of this module

    def __getattr__(name: str) -> Any:
        """`supervise`, which stands on what is here, is loaded when it is asked for."""
        if name not in ("supervise", "SupervisedPeer"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module("capnode_py._supervise_sync"), name)
        return value


def spawn(
    argv: Command, *, interface: Interface[I_co] = None, **options: Unpack[SpawnOptions]
) -> SpawnedPeer[I_co]:
    """`capnode_py.spawn`, for callers that block: ``with spawn([...]) as peer:``.

    What the child writes to stderr is handed on while a thread waits, or serves.

    Args:
        argv: the program and its arguments.
        interface: what `Peer.index` is to type checkers and editors: a Protocol, or the child's
            `Target` class if its methods are plain ones.
        options: as for `capnode_py.spawn`.
    """
    from ._spawn_sync import spawned
    from ._start import recipe_of

    check_interface(interface)
    peer: SpawnedPeer[I_co] = spawned(SpawnedPeer, recipe_of("spawn", argv, options))
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
) -> Peer[I_co]:
    """`capnode_py.connect`, for callers that block: ``with connect("unix:/path") as peer:``."""
    from ._addresses import check_no_web, connected, parse

    check_interface(interface)
    address = parse(url, allow_remote=allow_remote)
    check_no_web(address)
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        nickname,
        default_name=url,
        tracebacks=tracebacks,
        application=application,
        versions=versions,
    )
    fd = connected(address).detach()
    peer: Peer[I_co] = make(Peer, (fd, fd), settings)
    return opened(peer)


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
) -> Peer[I_co]:
    """A peer on a stream that is there already; it is the peer's from then on.

    Args:
        stream: a connected `socket.socket`, or a pair of unbuffered files to read and to write,
            such as ``(process.stdout, process.stdin)``.
        index, host, limits, nickname, tracebacks, application, versions, interface: as for
            `connect`.

    Raises:
        TypeError: it is neither.
        PeerLost, ProtocolError: there was no hello.
    """
    from socket import socket

    from ._addresses import check_stream_socket

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
    if isinstance(stream, socket):
        check_stream_socket(stream)
        fd = stream.detach()
        fds = fd, fd
    else:
        read_fd, write_fd = _files(stream)
        fds = os.dup(read_fd), os.dup(write_fd)
        for file in stream:
            file.close()
    peer: Peer[I_co] = make(Peer, fds, settings)
    return opened(peer)


def _files(pair: Any) -> tuple[int, int]:
    """The descriptors of a pair of files.

    Raises:
        TypeError, ValueError: it is none, or one of them has none.
    """
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(
            "attach() takes a socket, or a pair of files such as (process.stdout, process.stdin), "
            f"not a {type(pair).__name__}"
        )
    for file in pair:
        if not hasattr(file, "fileno"):
            raise TypeError(
                f"attach() takes a pair of files with descriptors, and {file!r} is none; an "
                "asyncio (reader, writer) is for capnode_py.attach, in its event loop"
            )
    try:
        return pair[0].fileno(), pair[1].fileno()
    except (OSError, ValueError) as error:
        raise ValueError(f"attach() takes two open files with descriptors: {error}") from error


def pair(
    index: Index = None,
    far_index: Index = None,
    *,
    limits: Limits | None = None,
    far_limits: Limits | None = None,
    interface: Interface[I_co] = None,
    far_interface: Interface[J_co] = None,
) -> Pair[I_co, J_co]:
    """Two peers joined in this process, for tests: whoever waits for one drives both.

    Args:
        index: what the first one offers, `far_index` the second.
        limits, far_limits: likewise.
        interface: what the first one's `Peer.index` is to type checkers, `far_interface` the
            second's.

    Returns:
        A `Pair`, which unpacks: ``with pair(far_index=api) as (near, far):``
    """
    from socket import socketpair

    check_interface(interface)
    check_interface(far_interface)
    near_settings = make_settings(index, None, "cbor", limits, "far", tracebacks=True)
    far_settings = make_settings(far_index, None, "cbor", far_limits, "near", tracebacks=True)
    one, other = (end.detach() for end in socketpair())
    near: Peer[I_co] = make(Peer, (one, one), near_settings)
    far: Peer[J_co] = make(Peer, (other, other), far_settings)
    return Pair(opened(near), opened(far))


class Pair(tuple[Peer[I_co], Peer[J_co]], Generic[I_co, J_co]):
    """The two ends of `pair`."""

    __slots__ = ()

    def __new__(cls, near: Peer[I_co], far: Peer[J_co]) -> Pair[I_co, J_co]:
        return tuple.__new__(cls, (near, far))

    def close(self) -> None:
        """Close both."""
        for peer in self:
            peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def listen(
    url: str,
    *,
    index: Index = None,
    index_for: Callable[[Peer], Any] | None = None,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    tracebacks: bool = False,
    application: str = "",
    versions: Sequence[int] = (),
    allow_remote: bool = False,
) -> Listener:
    """`capnode_py.listen`, for callers that block. Who connects is served while a thread waits:
    here in `Listener.serve_forever`, or for anything else."""
    from ._addresses import Bound, bound, check_no_web, parse

    address = parse(url, allow_remote=allow_remote)
    check_no_web(address)
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        "",
        tracebacks=tracebacks,
        index_for=index_for,
        application=application,
        versions=versions,
    )
    return Listener(Bound(bound(address), address), settings)


def serve(
    url: str,
    *,
    index: Index = None,
    index_for: Callable[[Peer], Any] | None = None,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    tracebacks: bool = False,
    application: str = "",
    versions: Sequence[int] = (),
    allow_remote: bool = False,
) -> NoReturn:
    """Listen, and serve each who connects, until Ctrl-C: the last line of a server."""
    with listen(
        url,
        index=index,
        index_for=index_for,
        host=host,
        dialect=dialect,
        limits=limits,
        tracebacks=tracebacks,
        application=application,
        versions=versions,
        allow_remote=allow_remote,
    ) as listener:
        listener.serve_forever()
    raise RuntimeError("the listener was closed by another thread")


class Listener:
    """What `listen` gives.

    Attributes:
        url: where it listens; with the port that was taken for ``tcp://host:0``.
        peers: the connections that are open now.
    """

    def __init__(self, bound: Bound, settings: Settings) -> None:
        self._bound = bound
        self._settings = settings
        self._pump = the_pump()
        self.url = bound.url
        self.peers: set[Peer] = set()
        with self._pump:
            self._closed = self._pump.event()
            self._pump.watch_reading(bound.sock.fileno(), self._accept)

    def __repr__(self) -> str:
        return f"<Listener {self.url}: {len(self.peers)} peers>"

    def _accept(self) -> None:
        try:
            accepted, _ = self._bound.sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("%s: a connection could not be accepted: %s", self.url, error)
            self._pump.unwatch_reading(self._bound.sock.fileno())
            self._pump.later(0.1, self._accept_again)  # out of descriptors
            return
        from ._addresses import send_at_once

        send_at_once(accepted)
        fd = accepted.detach()
        try:
            peer = make(Peer, (fd, fd), self._settings)
        except Exception:
            logger.exception("%s: index_for raised", self.url)
            return
        self.peers.add(peer)
        driver = peer._driver
        driver.finalize = partial(self._forget, peer)
        driver.later(driver.limits.hello_timeout, driver.miss_hello)

    def _accept_again(self) -> None:
        if not self._closed.state:
            self._pump.watch_reading(self._bound.sock.fileno(), self._accept)

    async def _forget(self, peer: Peer) -> None:
        self.peers.discard(peer)
        if peer.info is None:
            logger.info("%s: a connection was refused: %s", self.url, peer._session.error)

    def serve_forever(self) -> None:
        """Serve until the listener is closed, by a handler or another thread; or until Ctrl-C."""
        self._pump.wait(self._closed)

    wait_closed = serve_forever

    def serve_background(self) -> None:
        """Serve in a daemon thread. Called again, in one more: handlers of different connections
        then run side by side."""
        threading.Thread(target=self.serve_forever, name=f"capnode {self.url}", daemon=True).start()

    def close(self) -> None:
        """Stop listening, and close every connection."""
        with self._pump:
            if not self._closed.state:
                self._pump.unwatch_reading(self._bound.sock.fileno())
                self._bound.close()
                self._closed.set()
            peers = list(self.peers)
            for peer in peers:  # to all at once: each may take its time
                peer._driver.close(PeerClosed("the listener has been closed"))
        for peer in peers:
            peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def serve_stdio(
    index: Index = None,
    *,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    nickname: str = "",
    tracebacks: bool = True,
    application: str = "",
    versions: Sequence[int] = (),
) -> None:
    """`capnode_py.serve_stdio` without an event loop: it starts faster, and its handlers may block.

    Handlers that wait for other things than the parent's answers belong into an event loop.
    """
    from ._stdio import Service, check_not_by_hand, forward_logs

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
    check_not_by_hand()
    service = Service()
    with service:
        with the_pump().held:
            peer = service.make_peer(Peer, settings, make_driver=BlockingDriver)
        with contextlib.suppress(CapnodeError):  # which `Service.end` tells
            forward_logs(peer)
            opened(peer)
            peer.serve_forever()
    service.end()
