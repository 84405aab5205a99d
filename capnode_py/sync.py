"""For scripts, the REPL and notebooks: calls that block and give their value, no event loop.

    with capnode.sync.spawn([sys.executable, "plugin.py"]) as peer:
        peer.index.add(1, 2)

The doors are those of `capnode_py`, without ``await``. A thread that waits reads, and runs what the
other side calls meanwhile; see `Peer`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NoReturn,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
    cast,
    final,
    overload,
)
from weakref import WeakSet

from ._arguments import checked_timeout
from ._capnode import Capnode, Index
from ._cell import Cell
from ._errors import CapnodeError, PeerClosed
from ._limits import Limits
from ._log import get_logger
from ._messages import Path, Step
from ._peer import (
    AnyPeer,
    I_co,
    Interface,
    Settings,
    check_interface,
    make_peer,
    make_settings,
    place_of,
)
from ._session import Session
from ._stub import Promise
from ._stub import Stub as AnyStub
from .driver._pump import Pump, complete, the_pump
from .driver.blocking import BlockingDriver

logger = get_logger("capnode_py.sync")

Q = ParamSpec("Q")
T = TypeVar("T")

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import TypeVar as DefaultingTypeVar

    from ._addresses import Bound
    from ._child import Child
    from ._start import Command, Recipe, SpawnOptions, Started

    # Names of this module: see __getattr__.
    from ._supervise_sync import SupervisedPeer as SupervisedPeer  # noqa: PLC0414
    from ._supervise_sync import supervise as supervise  # noqa: PLC0414

    J_co = DefaultingTypeVar("J_co", covariant=True, default=Any)

    @final
    class Stub:
        """`capnode_py.Stub`, as type checkers see it where callers block: its calls give values,
        and its paths are what `Peer.get` reads. At run time it is that class itself.
        """

        def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...
        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, step: Step) -> Any: ...
        def __enter__(self) -> Self: ...
        def __exit__(self, *exc_info: object) -> None: ...
        @property
        def cap_id(self) -> str: ...
        def dealloc(self) -> None: ...

else:
    J_co = TypeVar("J_co", covariant=True)  # see _stub.py
    Stub = AnyStub


if not TYPE_CHECKING:  # to whom it would mean that any name is one of this module

    def __getattr__(name: str) -> Any:
        """`supervise`, which stands on what is here, is loaded when it is asked for."""
        if name not in ("supervise", "SupervisedPeer"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module("capnode_py._supervise_sync"), name)
        return value


class Peer(AnyPeer[I_co]):
    """One connection, for callers that block: ``peer.index.add(1, 2)`` gives 3.

    What the other side calls is run while a thread waits here: by that thread, in order, one call
    at a time, also fifty deep. It may be used from several threads; with `serve_background` the
    other side is answered while none of them waits.

    ``Peer[Api]`` is for annotations: its `index` looks like an ``Api``, whose methods give values.

    Attributes:
        nickname: names the other side in errors and logs.
        pid: the process id of a spawned child, else None.
    """

    _driver: BlockingDriver

    def __init__(self, driver: BlockingDriver, *, nickname: str = "") -> None:
        super().__init__(driver, nickname=nickname)
        self._server: threading.Thread | None = None

    if TYPE_CHECKING:

        def reconstruct(self, cap_id: str) -> Stub: ...

    @overload
    def get(self, far: Awaitable[T], *, timeout: float | None = None) -> T: ...
    @overload
    def get(self, far: T, *, timeout: float | None = None) -> T: ...

    def get(self, far: Any, *, timeout: float | None = None) -> Any:
        """Read a path: ``peer.get(peer.index.settings.theme)``; or wait for a promise.

        Args:
            far: a path on a stub, or a promise of a `pipeline`.
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: it took longer; the call is withdrawn.
            CapnodeError: what the far side raised, or that it is gone.
        """
        place_of(self._session, far, "get")
        timeout = checked_timeout(timeout)
        if isinstance(far, AnyStub):
            far = Promise(far._session, far, ())
        return self._driver.block_on(far, timeout)

    wait = get

    def request_index(self) -> Any:
        """The other side's index as a value: data copied, functions as stubs.

        An index that is an object gives `index` itself.
        """
        return self.get(self._session.index)

    @overload
    def pipeline(self, interface: None = None) -> Pipeline[I_co]: ...
    @overload
    def pipeline(self, interface: Callable[..., T]) -> Pipeline[T]: ...

    def pipeline(self, interface: Any = None) -> Pipeline[Any]:
        """Calls that do not wait: see `Pipeline`.

        Args:
            interface: what `Pipeline.index` is to type checkers: the far face of the other side
                whose methods give promises. Without it, the face that `index` has, as if they gave
                values.
        """
        check_interface(interface)
        return Pipeline(self._session)

    def submit(self, target: Callable[Q, T], /, *args: Q.args, **kwargs: Q.kwargs) -> Future[T]:
        """Call `target`, and go on: ``peer.submit(peer.index.slow, 10).result()``.

        The other side is served in the background from then on (`serve_background`), so that the
        future comes to its result by itself. Cancelling it, before that, withdraws the call.
        """
        future = super().submit(target, *args, **kwargs)
        self.serve_background()
        return future

    def ping(self) -> None:
        """Return when the other side has answered.

        Raises:
            PeerClosed, PeerLost: it did not.
        """
        self._driver.block_on(self._driver.bring(self._ping), None)

    def drain(self) -> None:
        """Wait until what is to be sent has fallen below low water (`Limits.low_water`)."""
        self._complete(self._driver.drain)

    def serve_forever(self) -> None:
        """Answer the other side until the connection ends: the last line of a worker."""
        self._complete(self._driver.wait_closed)

    wait_closed = serve_forever

    def serve_background(self) -> None:
        """Answer the other side from a daemon thread, whether or not another thread waits."""
        with self._driver.held:
            if self._server is None and not self.is_closed:
                self._server = threading.Thread(
                    target=self.serve_forever, name=f"capnode {self.nickname}", daemon=True
                )
                self._server.start()

    def close(self) -> None:
        """Close: no new calls from us, running handlers finish, the stream ends. All bounded.

        From any thread, in any order, twice. It does not raise for a peer that died. In a fork it
        does nothing: the connection goes on in the process that opened it.
        """
        if self._driver.forked:
            return
        self._complete(self._driver.aclose)
        if self._server is not None and self._server is not threading.current_thread():
            self._server.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _complete(self, run: Callable[[], Any]) -> None:
        with self._driver.held:
            complete(run())


class SpawnedPeer(Peer[I_co]):
    """The peer of a child process."""

    _child: Child

    @property
    def returncode(self) -> int | None:
        return self._child.process.returncode

    @property
    def stderr_tail(self) -> str:
        """Its last lines on stderr."""
        return self._child.stderr_tail


class Pipeline(Generic[I_co]):
    """Calls that give promises at once, and leave together: one round trip for the lot.

        with peer.pipeline() as p:
            rows = p.index.open("bob").query("x")
        peer.wait(rows)

    Only calls on what `p` gives do so: `p.index`, and ``p(stub)``. A promise can be called through,
    passed to a call, and waited for, before and after the end of the block, at which all is sent.
    """

    def __init__(self, session: Session) -> None:
        self._view = _View(session)

    @property
    def index(self) -> I_co:
        """The other side's index."""
        index: Any = self._view.session.index
        return self(index)  # type: ignore[no-any-return]

    def __call__(self, far: T) -> T:
        """A stub or a path, on which calls give promises."""
        base, path = place_of(self._view.session, far, "pipeline")
        return cast(T, Promise(self._view, base, path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with the_pump():
            pass


class _View:
    """A session, as the promises of a pipeline see it: calls give promises of the same kind."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.wait = session.wait
        self.plain = session.plain
        self.forward = session.forward
        self.dealloc = session.dealloc
        self.cap_id = session.cap_id
        self.cancel = session.cancel
        self.is_here = session.is_here
        self.describe = session.describe
        asked: Any = session  # see LockedSession
        self.far_names, self.far_doc = asked.far_names, asked.far_doc
        self.far_signature = asked.far_signature

    @property
    def where(self) -> str:
        return self.session.where

    @property
    def _driver(self) -> BlockingDriver:
        return self.session._driver  # type: ignore[return-value]

    def call(self, base: AnyStub | Cell, path: Path, args: Any, kwargs: Any) -> Promise:
        if self.session.is_here():
            return self.session.call(base, path, args, kwargs)
        with self._driver.held:  # nothing is sent yet
            return Promise(self, self.session.call(base, path, args, kwargs)._base, ())


P = TypeVar("P", bound=Peer)
S = TypeVar("S", bound=SpawnedPeer)


# The doors.


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
    from ._start import recipe_of

    check_interface(interface)
    peer: SpawnedPeer[I_co] = _spawned(SpawnedPeer, recipe_of("spawn", argv, options))
    return peer


def _spawned(kind: type[S], how: Recipe) -> S:
    from ._start import request_logs, start

    asked, withdraw = request_logs(how)
    try:
        started = start(how, asked)
    except BaseException:
        withdraw()
        raise
    try:
        pump = the_pump()
        with pump.held:
            peer = _make(kind, started.fds, how.settings)
            peer.pid = started.process.pid
            peer._child = _watched(started, how, peer._driver, pump, withdraw)
        _spawned_here.add(peer)
    except BaseException:
        withdraw()
        started.undo()
        raise
    try:
        return _opened(peer)
    except CapnodeError as error:
        peer._child.sign(error)
        raise


def _watched(
    started: Started,
    how: Recipe,
    driver: BlockingDriver,
    pump: Pump,
    withdraw: Callable[[], object],
) -> Child:
    """A child, whose stderr and whose exit whoever waits sees."""
    from ._child import Child

    def outside(run: Callable[[], object]) -> None:
        pump.do(partial(driver.outside, run))

    def hear() -> None:
        if not child.hear():
            stop_hearing()

    def stop_hearing() -> None:
        pump.unwatch_reading(started.stderr)
        os.close(started.stderr)
        child.silent()

    def look() -> None:
        if child.reap():
            pump.unwatch_reading(started.pidfd)
            os.close(started.pidfd)
            pump.do(withdraw)
            pump.attend(child.lose_peer)

    child = Child(started, how, driver, outside=outside, stop_hearing=stop_hearing)
    if started.stderr >= 0:
        pump.watch_reading(started.stderr, hear)
    pump.watch_reading(started.pidfd, look)
    return child


_spawned_here: WeakSet[SpawnedPeer] = WeakSet()


@atexit.register
def _warn_of_children() -> None:
    """The program ends: which children has nobody closed?"""
    for peer in list(_spawned_here):
        if not peer._driver.forked:
            peer._child.warn_if_left(
                "the program ends", "with capnode.sync.spawn(...) as peer, or peer.close()"
            )


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
    peer: Peer[I_co] = _make(Peer, (fd, fd), settings)
    return _opened(peer)


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
    peer: Peer[I_co] = _make(Peer, fds, settings)
    return _opened(peer)


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
    near: Peer[I_co] = _make(Peer, (one, one), near_settings)
    far: Peer[J_co] = _make(Peer, (other, other), far_settings)
    return Pair(_opened(near), _opened(far))


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
            peer = _make(Peer, (fd, fd), self._settings)
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
            _opened(peer)
            peer.serve_forever()
    service.end()


def _make(kind: type[P], fds: tuple[int, int], settings: Settings) -> P:
    with the_pump().held:  # another thread may poll, and hear of it
        return make_peer(kind, fds, settings, make_driver=BlockingDriver)


def _opened(peer: P) -> P:
    """Wait for the hello; if it does not come, or Ctrl-C does, leave nothing behind."""
    driver = peer._driver
    with driver.held:
        try:
            complete(driver.open())
        except BaseException:
            complete(driver.abandon())
            raise
    return peer
