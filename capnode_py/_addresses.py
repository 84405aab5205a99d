"""Where one connects and listens: the urls of the doors, and the sockets behind them."""

# Annotations are no text here: NamedTuple would have the compiler read each, and load it for that.

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from ._arguments import check_flag, check_for_system

_URLS = "write 'unix:/path/to/socket', 'tcp://127.0.0.1:port' or 'ws://127.0.0.1:port/path'"
_WEB = {"ws": 80, "wss": 443}
_LONGEST_PATH = 107 if sys.platform == "linux" else 103  # of a unix socket


class Address(NamedTuple):
    """`kind` is "unix", with a path as the host, "tcp", or "ws" or "wss", with a `path`."""

    kind: str
    host: str
    port: int
    path: str = ""

    @property
    def is_web(self) -> bool:
        return self.kind in _WEB

    def where(self) -> str:
        """The url, without a password or a query, which may be secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}{self.path}"


def parse(url: str, *, allow_remote: bool) -> Address:
    """The address that a url names.

    Raises:
        TypeError, ValueError: it names none, or one that is not on this machine.
    """
    if not isinstance(url, str):
        raise TypeError(f"a url is text, not {url!r}: {_URLS}")
    check_flag("allow_remote", allow_remote)
    kind, _, path = url.partition(":")
    if kind.lower() == "unix":  # the path is one of the file system: with "?", "#" and all
        return Address("unix", _checked_path(path, url), 0)
    from urllib.parse import urlsplit  # with what stands on it, a tenth of a script's imports

    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # as the resolver will
    except ValueError as error:
        raise ValueError(f"{url!r}: {error}; {_URLS}") from None

    if parts.scheme == "tcp" and parts.hostname and port is not None:
        if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(f"{url!r}: a tcp: url has a host and a port, and nothing else")
        if not allow_remote and not _is_loopback(parts.hostname):
            raise ValueError(
                f"{url}: not on this machine, and nothing is encrypted or authenticated. Use "
                "127.0.0.1 or a unix: socket (through ssh, say), or say allow_remote=True"
            )
        return Address("tcp", parts.hostname, port)
    if parts.scheme in _WEB and parts.hostname and not parts.fragment:
        if parts.scheme == "ws" and not allow_remote and not _is_loopback(parts.hostname):
            raise ValueError(
                f"{url}: not on this machine, and nothing is encrypted or authenticated. Use "
                "wss:, or 127.0.0.1, or say allow_remote=True"
            )
        port = _WEB[parts.scheme] if port is None else port
        return Address(parts.scheme, parts.hostname, port, parts.path or "/")
    raise ValueError(f"{url!r}: {_URLS}")


def _checked_path(path: str, url: str) -> str:
    if path.startswith("///"):  # as a url with an empty host
        path = path[2:]
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError(f"{url!r}: {_URLS}")
    check_for_system(repr(url), path)
    size = len(os.fsencode(path))
    if size > _LONGEST_PATH:
        raise ValueError(
            f"{url!r}: the path of a socket has {_LONGEST_PATH} bytes at the most, and this one "
            f"has {size}: take a shorter folder, such as one of tempfile.mkdtemp()"
        )
    return path


def check_stream_socket(sock: socket.socket) -> None:
    """Can a peer be made on it?

    Raises:
        TypeError, ValueError: it is no stream, or none any more.
    """
    # It has no names yet while another thread imports it; then this is none of its sockets.
    tls = getattr(sys.modules.get("ssl"), "SSLSocket", None)
    if tls is not None and isinstance(sock, tls):
        raise TypeError(
            "attach() would send past the TLS of an ssl.SSLSocket: in an event loop, attach an "
            "anyio.streams.tls.TLSStream"
        )
    if sock.fileno() < 0:
        raise ValueError("attach() takes an open socket, and this one is closed")
    if sock.type == socket.SOCK_DGRAM:
        raise ValueError("attach() takes a connection, and this socket carries datagrams")
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(
            "attach() takes a connection, and this socket listens: attach what its accept() gives"
        )


def check_no_web(address: Address) -> None:
    """Raises NotImplementedError: callers that block have no WebSockets."""
    if address.is_web:
        raise NotImplementedError(
            "capnode_py.sync speaks no WebSocket: open it in an event loop, by "
            "capnode_py.connect or listen, or use tcp: or unix:"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def new_socket(family: int, note: str) -> Iterator[socket.socket]:
    """A non-blocking stream socket, which is closed if the block fails; `note` says at what."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        yield sock
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            error.add_note(note)
        raise


def send_at_once(sock: socket.socket) -> None:
    """A small frame is not to wait for more to come."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def bind(family: int, where: Any) -> socket.socket:
    """A socket that listens there."""
    if family == socket.AF_UNIX:
        _remove_stale(where)
    with new_socket(family, f"listening on {where!r}") as sock:
        if family == socket.AF_UNIX:
            os.fchmod(sock.fileno(), stat.S_IRUSR | stat.S_IWUSR)  # the file takes this mode
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(128)
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass


def connected(address: Address) -> socket.socket:
    """A socket that is connected there, for callers that block.

    Raises:
        OSError: it cannot be.
    """
    if address.kind == "unix":
        return _try_connect(socket.AF_UNIX, address.host)
    failure = OSError(f"{address.host} has no address")
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, _, _, _, where in found:
        try:
            sock = _try_connect(family, where)
        except OSError as error:
            failure = error
        else:
            send_at_once(sock)
            return sock
    raise failure


def _try_connect(family: int, where: Any) -> socket.socket:
    with new_socket(family, f"connecting to {where!r}: does the other side listen there?") as sock:
        sock.setblocking(True)
        sock.connect(where)
    return sock


def bound(address: Address) -> socket.socket:
    """A socket that listens there, for callers that block.

    Raises:
        OSError: it cannot be.
    """
    if address.kind == "unix":
        return bind(socket.AF_UNIX, address.host)
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return bind(found[0][0], found[0][4])


class Bound:
    """A socket that listens, with its url, until it is closed.

    Attributes:
        sock: non-blocking.
        url: where it listens; with the port that was taken for ``tcp://host:0``.
    """

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self.sock = sock
        self._path = sock.getsockname() if sock.family == socket.AF_UNIX else None
        self._inode = os.stat(self._path).st_ino if self._path else 0
        self.url = f"unix:{self._path}" if self._path else _url(sock, address)

    def close(self) -> None:
        """Stop listening; the socket file goes, if it is still ours."""
        self.sock.close()
        if self._path:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)


def _url(sock: socket.socket, address: Address) -> str:
    host, port = sock.getsockname()[:2]
    return address._replace(host=host, port=port).where()
