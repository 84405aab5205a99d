"""One test body for every driver and every road, and a leak check behind each.

An ``async def test_...`` runs once on each driver: asyncio, uvloop and trio (skipped where it is
not installed). A test that asks for `road` runs over every road as well; one that asks for
`any_road` over as many as it takes to meet each driver of the package. Both, and one that asks for
`start` (`spawn` on any driver), also run on the blocking driver: there is no loop, every ``await``
blocks in place, and one thread drives both ends. A test that needs a loop of its own, for several
tasks or for events, says so by a marker.

``near, far = await road.open(index=..., far_index=...)`` gives two connected peers. When the test
has returned, and what it held is gone, both must hold nothing but the two indexes; they are closed,
and no task, thread, descriptor or child may be left.

Markers: ``drivers("asyncio")`` names the only drivers to run on, ``roads("socket")`` the roads,
``loop`` keeps a test off the blocking driver, ``hangs_after(120)`` gives it more time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias, cast

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Limits, Peer, Remote, testing
from capnode_py._doors import Door, opened
from capnode_py._peer import Settings, make_peer, make_settings
from capnode_py._spawn import SpawnedPeer
from capnode_py._spawn_sync import spawned
from capnode_py._start import recipe
from capnode_py.driver._locked import deadline
from capnode_py.driver._pump import Place, complete, place
from capnode_py.driver.blocking import BlockingDriver

DRIVERS = ("asyncio", "uvloop", "trio")
BLOCKING = "blocking"
ROADS = (
    "memory",
    "socket",
    "bytewise",
    "pipes",
    "tcp",
    "anyio-stream",
    "asyncio-streams",
    "messages",
    "websocket",
)
Start: TypeAlias = Callable[..., Door[SpawnedPeer]]
"""`capnode.spawn`, on any driver."""

HANGS_AFTER = 20.0
"""Seconds after which a test is ended from inside, with the line where it waits."""


def pytest_configure(config: pytest.Config) -> None:
    # In the background of a shell it may be ignored, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "drivers(*names): run on these drivers only")
    config.addinivalue_line("markers", "loop: needs an event loop, and several tasks in it")
    config.addinivalue_line("markers", "roads(*names): run over these roads only")
    config.addinivalue_line("markers", "hangs_after(seconds): end it from inside only then")
    config.addinivalue_line("markers", "dialect(name): what the peers of the roads speak")


def pytest_collection_finish() -> None:
    # What is there now stays: each gc.collect() of a leak check then looks at one test's objects.
    import hypothesis  # noqa: F401 - whose plugin would otherwise look for what is frozen

    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not inspect.iscoroutinefunction(metafunc.function):
        return
    if "driver" not in metafunc.fixturenames:
        metafunc.fixturenames.append("driver")
    asked = next((name for name in ("road", "any_road") if name in metafunc.fixturenames), None)
    cases = [
        pytest.param(
            *(driver, road)[: 2 if asked else 1],
            id=f"{driver}-{road}" if asked else driver,
            marks=_skipped(driver),
        )
        for driver in _drivers(metafunc, asked)
        for road in (_roads(metafunc, asked, driver) if asked else [""])
    ]
    metafunc.parametrize(["driver", asked] if asked else ["driver"], cases, indirect=True)


def _named(metafunc: pytest.Metafunc, marker: str, default: tuple[str, ...]) -> tuple[str, ...]:
    mark = metafunc.definition.get_closest_marker(marker)
    return mark.args if mark else default


def _drivers(metafunc: pytest.Metafunc, asked: str | None) -> tuple[str, ...]:
    on_all = asked or "start" in metafunc.fixturenames
    drivers = _named(metafunc, "drivers", (*DRIVERS, BLOCKING) if on_all else DRIVERS)
    if metafunc.definition.get_closest_marker("loop"):
        return tuple(driver for driver in drivers if driver != BLOCKING)
    return drivers


def _roads(metafunc: pytest.Metafunc, asked: str, driver: str) -> list[str]:
    if driver == BLOCKING:
        roads = tuple(_BLOCKING_ROADS) if asked == "road" else ("socket",)
        return [road for road in roads if road in _named(metafunc, "roads", ROADS)]
    if asked == "road":
        roads = _named(metafunc, "roads", ROADS)
    else:  # loops have a driver of their own for descriptors, and the general one for other streams
        more = {"asyncio": ("memory", "messages"), "trio": ("memory",)}
        roads = ("socket", *more.get(driver, ()))
    missing = {"asyncio-streams"} if driver == "trio" else set()
    if not find_spec("websockets"):
        missing.add("websocket")
    return [road for road in roads if road not in missing]


def _skipped(driver: str) -> list[pytest.MarkDecorator]:
    if driver == BLOCKING or find_spec(driver):
        return []
    return [pytest.mark.skip(reason=f"{driver} is not installed")]


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    """The name of the driver that this test runs on."""
    name: str = request.param
    return name


@pytest.fixture
def road(request: pytest.FixtureRequest) -> Road:
    """Opens pairs of peers, over every road."""
    return _road(request)


@pytest.fixture
def any_road(request: pytest.FixtureRequest) -> Road:
    """Opens pairs of peers, where it does not matter what lies between them."""
    return _road(request)


def _road(request: pytest.FixtureRequest) -> Road:
    mark = request.node.get_closest_marker("dialect")
    return Road(request.param, *(mark.args if mark else ()))


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Start:
    """``async with start(argv, ...) as peer:``, which is `spawn` on every driver, the blocking one
    too."""
    return _start_blocking if request.node.callspec.params["driver"] == BLOCKING else capnode.spawn


@pytest.fixture(autouse=True)
def _no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ends when it is asked to has the time for it, however busy this machine is."""
    monkeypatch.setattr("capnode_py._child._END_WAIT", 10)
    monkeypatch.setattr("capnode_py._child._TERM_WAIT", 10)


@pytest.fixture
def soon_terminated(_no_haste: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that does not end with its stdin gets SIGTERM sooner."""
    monkeypatch.setattr("capnode_py._child._END_WAIT", 0.05)


@pytest.fixture
def soon_killed(soon_terminated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is deaf to that, SIGKILL."""
    monkeypatch.setattr("capnode_py._child._TERM_WAIT", 0.05)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No thread, descriptor or child of a test that blocks is left, and no error was logged."""
    with testing.nothing_left(trace=False), _no_error_logged(allowed=False):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test on its driver, and look what it left behind."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None

    values: dict[str, Any] = pyfuncitem.funcargs
    names = inspect.signature(pyfuncitem.obj).parameters
    road: Any = values.get("road") or values.get("any_road")
    driver: Any = pyfuncitem.callspec.params["driver"]
    if driver == BLOCKING:
        arguments = {name: values[name] for name in names}
        with testing.nothing_left(trace=False), _no_error_logged(allowed="caplog" in values):
            _run_blocking(pyfuncitem.obj, arguments, road)
        return True

    run = _RUNNERS[driver]
    _warm_up(run)
    mark = pyfuncitem.get_closest_marker("hangs_after")
    hangs_after = mark.args[0] if mark else HANGS_AFTER
    test = _Test(pyfuncitem.obj, {name: values[name] for name in names}, road, hangs_after)
    with testing.nothing_left(trace=False), _no_error_logged(allowed="caplog" in values):
        run(test.run)
    return True


@functools.cache
def _warm_up(run: Callable[..., None]) -> None:
    """A loop's first run opens descriptors for the rest of the process."""
    run(anyio.lowlevel.checkpoint)


class _Test:
    """One async test, from its first line to the leak check."""

    def __init__(
        self,
        body: Callable[..., Any],
        arguments: dict[str, Any],
        road: Road | None,
        hangs_after: float,
    ):
        self._body = body
        self._arguments = arguments
        self._road = road
        self._hangs_after = hangs_after

    async def run(self) -> None:
        nothing_left = testing.nothing_left(allow={"descriptors"}, trace=False)  # see outside
        nothing_left.begin()
        failure: BaseException | None = None
        async with anyio.create_task_group() as helpers:  # of the road, such as a relay
            if self._road is not None:
                self._road.helpers = helpers
            try:
                with anyio.fail_after(self._hangs_after):
                    await self._body(**self._arguments)
                    if self._road is not None:
                        await self._road.check_tables()
            except (KeyboardInterrupt, anyio.get_cancelled_exc_class()):
                raise
            except BaseException as error:  # also pytest's own; outside of an exception group
                failure = error
            if self._road is not None:
                with anyio.move_on_after(HANGS_AFTER):
                    await self._road.close()
            helpers.cancel_scope.cancel()
        nothing_left.end()
        if failure is not None:
            raise failure
        await nothing_left.acheck()


class _Settings(NamedTuple):
    """What one end is opened with."""

    index: Any
    limits: Limits | None
    nickname: str
    dialect: str

    def of_door(self) -> dict[str, Any]:
        return {**self._asdict(), "tracebacks": True}

    def of_peer(self) -> Settings:
        return make_settings(
            self.index, None, self.dialect, self.limits, self.nickname, tracebacks=True
        )


class Road:
    """See the module. `name` is one of ROADS."""

    def __init__(self, name: str, dialect: str = "cbor") -> None:
        self.name = name
        self.dialect = dialect
        self.blocking = False
        self.helpers: anyio.abc.TaskGroup
        self._pairs: list[tuple[Peer, Peer]] = []

    async def open(
        self,
        index: Any = None,
        *,
        far_index: Any = None,
        limits: Limits | None = None,
        far_limits: Limits | None = None,
    ) -> tuple[Peer, Peer]:
        """Two connected peers. They are closed by the fixture, if not by the test."""
        make: Any = getattr(self, "_" + self.name.replace("-", "_"))
        if self.blocking:
            make = self._blocking
        near_settings = _Settings(index, limits, "far", self.dialect)
        far_settings = _Settings(far_index, far_limits, "near", self.dialect)
        near, far = await make(near_settings, far_settings)
        self._pairs.append((near, far))
        return near, far

    async def check_tables(self) -> None:
        """Both ends of each pair hold the two indexes and no more; a closed one nothing."""
        await testing.check_peers_quiet(*(peer for pair in self._pairs for peer in pair))

    async def close(self) -> None:
        for pair in self._pairs:
            for peer in pair:
                await peer.aclose()
        self._pairs.clear()

    async def _blocking(self, near: _Settings, far: _Settings) -> tuple[Peer, Peer]:
        """On the blocking driver; the peer is the one for coroutines, as the test is one."""
        near_fds, far_fds = _BLOCKING_ROADS[self.name]()
        peers = [
            make_peer(Peer, fds, settings.of_peer(), make_driver=BlockingDriver)
            for fds, settings in ((near_fds, near), (far_fds, far))
        ]
        return await opened(peers[0]), await opened(peers[1])

    # One method a road.

    async def _memory(self, near: _Settings, far: _Settings) -> tuple[Peer, Peer]:
        return await capnode.pair(
            near.index,
            far.index,
            dialect=self.dialect,
            limits=near.limits,
            far_limits=far.limits,
        )

    async def _socket(self, near: _Settings, far: _Settings) -> tuple[Peer, Peer]:
        one, other = socket.socketpair()
        return await _both(
            capnode.attach(one, **near.of_door()), capnode.attach(other, **far.of_door())
        )

    async def _bytewise(self, near: _Settings, far: _Settings) -> tuple[Peer, Peer]:
        # Of this kind each read gives what one write took, so one byte at a time is certain.
        one, one_relayed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other, other_relayed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.helpers.start_soon(_relay, one_relayed, other_relayed)
        return await _both(
            capnode.attach(one, **near.of_door()), capnode.attach(other, **far.of_door())
        )

    async def _pipes(self, near: _Settings, far: _Settings) -> tuple[Peer, Peer]:
        (near_read, far_write), (far_read, near_write) = os.pipe(), os.pipe()
        return await _both(
            opened(make_peer(Peer, (near_read, near_write), near.of_peer())),
            opened(make_peer(Peer, (far_read, far_write), far.of_peer())),
        )

    async def _tcp(
        self, near: _Settings, far: _Settings, url: str = "tcp://127.0.0.1:0"
    ) -> tuple[Peer, Peer]:
        listener = await capnode.listen(
            url, index=far.index, dialect=self.dialect, limits=far.limits, tracebacks=True
        )
        peer = await capnode.connect(listener.url, **near.of_door())
        await peer.ping()  # where there is no hello, it may not be accepted yet
        (far_peer,) = listener.peers
        await far_peer.ping()  # it is served before it has heard our hello
        self.helpers.start_soon(_close_with, far_peer, listener)
        return peer, far_peer

    async def _websocket(self, near: _Settings, far: _Settings) -> tuple[Peer, Peer]:
        return await self._tcp(near, far, "ws://127.0.0.1:0/api")

    async def _anyio_stream(self, near: _Settings, far: _Settings) -> tuple[Peer, Peer]:
        streams: list[anyio.abc.ByteStream] = []
        accepted = anyio.Event()

        async def accept(stream: anyio.abc.ByteStream) -> None:
            streams.append(stream)
            accepted.set()
            await anyio.sleep_forever()  # its listener closes the stream on return

        async def serve() -> None:
            async with listener:
                await listener.serve(accept)

        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        self.helpers.start_soon(serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        stream = await anyio.connect_tcp("127.0.0.1", port)
        await accepted.wait()
        return await _both(
            capnode.attach(stream, **near.of_door()), capnode.attach(streams[0], **far.of_door())
        )

    async def _asyncio_streams(self, near: _Settings, far: _Settings) -> tuple[Peer, Peer]:
        one, other = socket.socketpair()
        one_streams = await asyncio.open_connection(sock=one)
        other_streams = await asyncio.open_connection(sock=other)
        return await _both(
            capnode.attach(one_streams, **near.of_door()),
            capnode.attach(other_streams, **far.of_door()),
        )

    async def _messages(self, near: _Settings, far: _Settings) -> tuple[Peer, Peer]:
        one = make_peer(Remote, None, near.of_peer())
        other = make_peer(Remote, None, far.of_peer())
        one.add_remote_message_listener(other.receive_message)
        other.add_remote_message_listener(one.receive_message)
        return await _both(opened(one), opened(other))


async def _both(one: Awaitable[Peer], other: Awaitable[Peer]) -> tuple[Peer, Peer]:
    """Open both ends at once: each waits for the other's hello."""
    peers: dict[str, Peer] = {}

    async def enter(name: str, door: Awaitable[Peer]) -> None:
        peers[name] = await door

    async with anyio.create_task_group() as group:
        group.start_soon(enter, "one", one)
        group.start_soon(enter, "other", other)
    return peers["one"], peers["other"]


async def _close_with(peer: Peer, listener: capnode.Listener) -> None:
    try:
        await peer.wait_closed()
    finally:
        with anyio.CancelScope(shield=True):
            await listener.aclose()


async def _relay(one: socket.socket, other: socket.socket) -> None:
    """Carry what is written at either end to the other, byte by byte."""
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        async with anyio.create_task_group() as group:
            group.start_soon(_relay_one_way, one, other)
            group.start_soon(_relay_one_way, other, one)


async def _relay_one_way(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            await anyio.wait_readable(source)
            data = source.recv(1 << 20)
            if not data:
                break
            for byte in data:
                await _send_byte(sink, bytes((byte,)))
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


async def _send_byte(sink: socket.socket, byte: bytes) -> None:
    while True:
        try:
            sink.send(byte)
            return
        except BlockingIOError:
            await anyio.wait_writable(sink)


# The blocking driver, and its roads: two descriptors for each end.

Fds = tuple[int, int]


def _start_blocking(argv: Any, **options: Any) -> Door[SpawnedPeer]:
    async def enter() -> SpawnedPeer:
        peer: Any = spawned(cast(Any, SpawnedPeer), how)
        return cast(SpawnedPeer, peer)

    how = recipe(argv, **options)
    return Door(enter)


def _run_blocking(body: Callable[..., Any], arguments: dict[str, Any], road: Road | None) -> None:
    """Run an async test without a loop, from its start to its end: each await blocks in place."""

    async def run() -> None:
        try:
            with deadline(HANGS_AFTER):
                await body(**arguments)
                if road is not None:
                    await road.check_tables()
        finally:
            if road is not None:
                with deadline(HANGS_AFTER):
                    await road.close()

    if road is not None:
        road.blocking = True
    token = place.set(Place(awaits=True))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(anyio.lowlevel, "checkpoint", _no_checkpoint)
            complete(run())
    finally:
        place.reset(token)


async def _no_checkpoint() -> None:
    """There is no other task whose turn it could be."""


def _socket_fds() -> tuple[Fds, Fds]:
    one, other = socket.socketpair()
    return _both_ways(one), _both_ways(other)


def _both_ways(sock: socket.socket) -> Fds:
    fd = sock.detach()
    return fd, fd


def _pipe_fds() -> tuple[Fds, Fds]:
    (near_read, far_write), (far_read, near_write) = os.pipe(), os.pipe()
    return (near_read, near_write), (far_read, far_write)


def _tcp_fds() -> tuple[Fds, Fds]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return _both_ways(near), _both_ways(far)


def _bytewise_fds() -> tuple[Fds, Fds]:
    one, one_relayed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other, other_relayed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    threading.Thread(target=_relay_in_threads, args=(one_relayed, other_relayed)).start()
    return _both_ways(one), _both_ways(other)


def _relay_in_threads(one: socket.socket, other: socket.socket) -> None:
    with one, other:
        back = threading.Thread(target=_relay_in_thread, args=(other, one))
        back.start()
        _relay_in_thread(one, other)
        back.join()


def _relay_in_thread(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            for byte in data:
                sink.send(bytes((byte,)))
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


_BLOCKING_ROADS = {
    "socket": _socket_fds,
    "bytewise": _bytewise_fds,
    "pipes": _pipe_fds,
    "tcp": _tcp_fds,
}


# Running, and what must not be left.


def _run_asyncio(main: Callable[[], Any]) -> None:
    with asyncio.Runner() as runner:
        runner.run(main())


def _run_uvloop(main: Callable[[], Any]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _run_trio(main: Callable[[], Any]) -> None:
    import trio

    trio.run(main)


_RUNNERS = {"asyncio": _run_asyncio, "uvloop": _run_uvloop, "trio": _run_trio}


@contextlib.contextmanager
def _no_error_logged(*, allowed: bool) -> Iterator[None]:
    """A logged error is a failure: of a callback, of a task nobody awaited, of the engine."""
    records = _Records()
    root = logging.getLogger()
    root.addHandler(records)
    try:
        yield
    finally:
        root.removeHandler(records)
    if records.lines and not allowed:
        pytest.fail("logged as errors:\n" + "\n".join(records.lines), pytrace=False)


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))
