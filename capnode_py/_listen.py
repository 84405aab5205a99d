"""The door through which many come: `listen`, and the `Listener` that it gives."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any

import anyio

from ._addresses import Address, Bound, bind, parse, send_at_once
from ._capnode import Capnode, Index
from ._doors import Door, opened
from ._errors import CapnodeError, PeerClosed
from ._limits import Limits
from ._log import get_logger
from ._peer import Carrier, Peer, Settings, make_peer, make_settings, traits_of
from ._websocket import WebSocketStream, accept, check_installed, checked_origins
from .driver.anyio import DescriptorStream, start_background

logger = get_logger("capnode_py.doors")


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
    origins: Collection[str] = (),
) -> Door[Listener]:
    """Listen, and serve each who connects until the listener is closed.

    Args:
        url: ``unix:/path`` (made for this user only), ``tcp://host:port`` or
            ``ws://host:port/path``; port 0 takes a free one, which `Listener.url` tells.
        index: what we offer to all; or `index_for`, called with each new peer, gives its own.
        limits, tracebacks, application, versions, allow_remote: as for `capnode_py.connect`.
        origins: the web pages that may connect to a ``ws:`` url, by their origin, such as
            ``"https://my.site"``. By default none may: any page that a user of this machine opens
            could call what is served here. Programs, which name no origin, may.

    Raises:
        ValueError, TypeError: for the arguments.
        OSError: the address is taken.
    """
    address = parse(url, allow_remote=allow_remote)
    upgrade = _upgrade(url, address, origins)
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

    async def enter() -> Listener:
        listener = Listener(Bound(await _bound(address), address), settings, upgrade)
        start_background(listener._accept)
        return listener

    return Door(enter)


class Listener:
    """What `listen` gives.

    Attributes:
        url: where it listens; with the port that was taken for ``tcp://host:0``.
        peers: the connections that are open now.
    """

    def __init__(self, bound: Bound, settings: Settings, upgrade: Upgrade | None) -> None:
        self._bound = bound
        self._sock = bound.sock
        self._settings = settings
        self._upgrade = upgrade
        self._handshakes: set[anyio.CancelScope] = set()
        self._closed = anyio.Event()
        self._stopped = anyio.Event()
        self.peers: set[Peer] = set()
        self.url = bound.url

    def __repr__(self) -> str:
        return f"<Listener {self.url}: {len(self.peers)} peers>"

    async def _accept(self) -> None:
        try:
            while not self._closed.is_set():
                await anyio.wait_readable(self._sock)
                try:
                    accepted, _ = self._sock.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    logger.warning("%s: a connection could not be accepted: %s", self.url, error)
                    await anyio.sleep(0.1)  # out of descriptors: trying at once would spin
                    continue
                self._greet(accepted)
        except (anyio.ClosedResourceError, OSError, ValueError):
            pass  # closed by aclose
        finally:
            self._stopped.set()

    def _greet(self, accepted: socket.socket) -> None:
        send_at_once(accepted)
        fd = accepted.detach()
        if self._upgrade is None:
            self._serve((fd, fd))
        else:
            start_background(partial(self._shake_hands, self._upgrade, DescriptorStream(fd, fd)))

    async def _shake_hands(self, upgrade: Upgrade, carrier: DescriptorStream) -> None:
        """Make a WebSocket of the connection, or refuse it."""
        with anyio.CancelScope() as scope:
            self._handshakes.add(scope)
            refused = True
            try:
                self._serve(await upgrade(carrier, self._settings))
                refused = False
            except CapnodeError as error:
                logger.info("%s: a connection was refused: %s", self.url, error)
            except Exception:
                logger.exception("%s: a bug in capnode_py; please report it", self.url)
            finally:
                self._handshakes.discard(scope)
                if refused:
                    await anyio.aclose_forcefully(carrier)  # type: ignore[arg-type]

    def _serve(self, stream: Carrier) -> None:
        try:
            peer = make_peer(Peer, stream, self._settings)
        except Exception:
            logger.exception("%s: index_for raised", self.url)
            return

        async def serve() -> None:
            self.peers.add(peer)
            try:
                await opened(peer)
                await peer.wait_closed()
            except CapnodeError as error:
                logger.info("%s: a connection was refused: %s", self.url, error)
            finally:
                self.peers.discard(peer)

        start_background(serve)

    async def wait_closed(self) -> None:
        """Wait until the listener is closed: the last line of a server's main()."""
        await self._stopped.wait()

    async def aclose(self) -> None:
        """Stop listening, and close every connection."""
        if not self._closed.is_set():
            self._closed.set()
            anyio.notify_closing(self._sock)
            self._bound.close()
            for scope in self._handshakes:
                scope.cancel()
        peers = list(self.peers)
        for peer in peers:  # to all at once: each may take its time
            peer._driver.close(PeerClosed("the listener has been closed"))
        for peer in peers:
            await peer.aclose()
        await self._stopped.wait()


Upgrade = Callable[[DescriptorStream, Settings], Coroutine[Any, Any, WebSocketStream]]
"""Makes a WebSocket of a connection that has come."""


def _upgrade(url: str, address: Address, origins: Collection[str]) -> Upgrade | None:
    if not address.is_web:
        if origins:
            raise TypeError(f"origins= is for ws: urls, and {url} is none")
        return None
    if address.kind == "wss":
        raise ValueError(
            f"{url}: listen to ws: on this machine, and let a web server in front of it speak TLS"
        )
    check_installed(url)
    allowed = checked_origins(origins)

    async def upgrade(stream: DescriptorStream, settings: Settings) -> WebSocketStream:
        text = traits_of(settings.dialect).text
        return await accept(
            stream, path=address.path, origins=allowed, text=text, limits=settings.limits
        )

    return upgrade


async def _bound(address: Address) -> socket.socket:
    if address.kind == "unix":
        return bind(socket.AF_UNIX, address.host)
    found = await anyio.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return bind(found[0][0], found[0][4])
