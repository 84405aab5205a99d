"""The end of a connection: by us, by them, by accident; early, twice, in any order."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
import weakref
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Limits
from capnode_py._doors import opened
from capnode_py._messages import ABORT, BYE, RESOLVE, SEND, Hello
from capnode_py._peer import make_peer, make_settings
from capnode_py.codec.cbor import CborCodec
from capnode_py.driver.anyio import DescriptorStream

QUICK = Limits(close_timeout=0.02)
HELLO = CborCodec(Limits()).hello(Hello(versions=[1]))


class Waiter(capnode.Target):
    def __init__(self) -> None:
        self.started, self.go, self.ended = anyio.Event(), anyio.Event(), anyio.Event()
        self.cancelled = False

    async def wait(self) -> str:
        self.started.set()
        try:
            await self.go.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        finally:
            self.ended.set()
        return "answered"


async def _outcome(promise: Any, outcomes: list[Any]) -> None:
    try:
        outcomes.append(await promise)
    except Exception as error:
        outcomes.append(error)


async def raw_peer(**settings: Any) -> tuple[capnode.Peer, socket.socket]:
    """A peer whose other side is in our hands: a socket, on which a hello has been said."""
    ours, theirs = socket.socketpair()
    theirs.sendall(HELLO)
    return await capnode.attach(ours, **{"limits": QUICK, **settings}), theirs


# What closing does.


async def test_after_closing_every_use_says_that_we_closed(road):
    """D1."""
    near, far = await road.open(far_index={"one": lambda: 1, "f": lambda: print})
    stub, pending, kept = await near.index.f(), near.index.one(), near.index.one()
    assert await kept == 1
    await near.aclose()
    assert near.is_closed
    for use in (near.index.one(), stub(), near.index.one, near.request_index(), near.ping()):
        with pytest.raises(capnode.PeerClosed, match="closed"):
            await use
    with pytest.raises(capnode.PeerClosed):
        near.notify(near.index.one)
    assert await kept == 1  # what is here stays
    assert await _settled(pending) in (1, "PeerClosed")
    await near.wait_closed()
    await near.drain()
    stub.dealloc()
    await far.wait_closed()
    assert far.is_closed
    with pytest.raises((capnode.PeerLost, capnode.PeerClosed)):
        await far.index.x()


async def _settled(promise: Any) -> Any:
    try:
        return await promise
    except capnode.CapnodeError as error:
        return type(error).__name__


@pytest.mark.loop
async def test_the_other_side_hears_that_the_connection_was_closed(road):
    waiter = Waiter()
    outcomes: list[Any] = []
    near, far = await road.open(index=waiter, limits=QUICK, far_limits=QUICK)
    async with anyio.create_task_group() as group:
        group.start_soon(_outcome, far.index.wait(), outcomes)
        await waiter.started.wait()
        await near.aclose()
    assert isinstance(outcomes[0], capnode.PeerLost)
    assert isinstance(outcomes[0], ConnectionError)
    assert "bye" in str(outcomes[0]) or "closed" in str(outcomes[0])
    await waiter.ended.wait()  # the handler nobody waits for is cancelled


@pytest.mark.loop
async def test_closing_lets_running_answers_finish(road):
    waiter = Waiter()
    outcomes: list[Any] = []
    near, far = await road.open(far_index=waiter, limits=Limits(close_timeout=10))
    async with anyio.create_task_group() as group:
        group.start_soon(_outcome, near.index.wait(), outcomes)
        await waiter.started.wait()
        group.start_soon(far.aclose)
        await anyio.lowlevel.checkpoint()
        waiter.go.set()
    assert outcomes == ["answered"]


async def test_what_was_sent_before_closing_arrives(road):
    """F5: one-way calls and dropped calls too."""
    seen: list[int] = []
    near, far = await road.open(far_index={"see": seen.append})
    for n in range(100):
        near.notify(near.index.see, n)
    near.index.see(100)
    await near.aclose()
    await far.wait_closed()
    assert seen == list(range(101))


@pytest.mark.loop
async def test_no_call_leaves_after_our_bye(any_road):
    """Also none that was made before, and waits for a promise: it would be a fault of ours."""
    go = anyio.Event()
    near, far = await any_road.open(far_index={"echo": lambda value: value, "log": print})
    log = await near.index.log

    async def slow_log() -> Any:
        await go.wait()
        return {"write": log}

    promise = near.index.echo(slow_log)
    await promise
    waiting = promise()  # it runs here
    near.notify(waiting.write, "late")
    waiting.write("later")
    await near.ping()
    received = far.stats().messages_received
    async with anyio.create_task_group() as group:
        group.start_soon(near.aclose)
        while far.stats().messages_received == received:  # the bye
            await anyio.lowlevel.checkpoint()
        go.set()
    await far.wait_closed()
    with pytest.raises(capnode.PeerLost, match="bye"):
        await far.index.x()


@pytest.mark.loop
async def test_closing_during_a_call_is_bounded_and_fails_it(any_road):
    waiter = Waiter()
    outcomes: list[Any] = []
    near, _ = await any_road.open(far_index=waiter, limits=QUICK, far_limits=QUICK)
    async with anyio.create_task_group() as group:
        group.start_soon(_outcome, near.index.wait(), outcomes)
        await waiter.started.wait()
        await near.aclose()
    assert isinstance(outcomes[0], capnode.PeerClosed)
    await waiter.ended.wait()


@pytest.mark.loop
async def test_closing_twice_at_once_and_from_other_tasks(road):
    near, far = await road.open(far_index={"one": lambda: 1})
    assert await near.index.one() == 1
    async with anyio.create_task_group() as group:
        for peer in (near, far, near, far):
            group.start_soon(peer.aclose)
    await near.aclose()
    await far.aclose()
    assert near.is_closed
    assert far.is_closed


async def test_peers_close_in_any_order(any_road):
    peers = [await any_road.open(far_index={"n": lambda n=n: n}) for n in range(4)]
    for order in (2, 0, 3, 1):
        near, far = peers[order]
        assert await near.index.n() == order
        await (near if order % 2 else far).aclose()
    for near, far in peers:
        await far.aclose()
        await near.aclose()


async def test_a_handler_may_close_its_own_peer(any_road):
    async def close() -> str:
        await capnode.current_peer().aclose()
        return "unreachable"

    near, far = await any_road.open(far_index={"close": close}, limits=QUICK, far_limits=QUICK)
    with pytest.raises(capnode.PeerLost):
        await near.index.close()
    await near.wait_closed()
    await far.wait_closed()


@pytest.mark.loop
async def test_closing_in_a_cancelled_task_still_closes(any_road):
    near, far = await any_road.open()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await near.aclose()
    await near.wait_closed()
    await far.wait_closed()


async def test_a_door_opened_in_one_task_is_closed_in_another(driver):
    opened = anyio.Event()
    pair = None

    async def open_it() -> None:
        nonlocal pair
        pair = await capnode.pair(far_index={"one": lambda: 1})
        opened.set()

    async with anyio.create_task_group() as group:
        group.start_soon(open_it)
    assert pair is not None
    assert await pair[0].index.one() == 1
    async with anyio.create_task_group() as group:
        group.start_soon(pair.aclose)


async def test_a_closed_peer_is_freed(driver):
    """Nothing holds on to it: no timer, no task, no callback of the loop."""
    ours, theirs = socket.socketpair()
    near = await _opened_beside(ours, theirs)
    for _ in range(3):
        assert await near.index.size(bytes(3_000_000)) == 3_000_000  # more than one write takes
    driver_of_it = weakref.ref(near._driver)
    peer = weakref.ref(near)
    await near.aclose()
    del near
    give_up = time.monotonic() + 5
    while peer() or driver_of_it():
        assert time.monotonic() < give_up
        await anyio.lowlevel.checkpoint()
        gc.collect()


async def _opened_beside(ours: socket.socket, theirs: socket.socket) -> capnode.Peer:
    """A peer on `ours`, whose other end serves on `theirs` and closes when we do."""
    peers: list[capnode.Peer] = []

    async def serve() -> None:
        await capnode.attach(theirs, index={"size": len})

    async def call() -> None:
        peers.append(await capnode.attach(ours))

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        group.start_soon(call)
    return peers.pop()


async def test_doors_are_context_managers(driver):
    async with capnode.pair(far_index={"one": lambda: 1}) as (near, far):
        assert await near.index.one() == 1
    assert near.is_closed
    assert far.is_closed
    async with near:  # a peer as well
        pass
    with pytest.raises(LookupError, match="inner"):
        async with capnode.pair():
            raise LookupError("inner")


async def test_leaving_the_context_of_a_dead_peer_does_not_raise(driver):
    ours, theirs = socket.socketpair()
    theirs.sendall(HELLO)
    async with capnode.attach(ours) as peer:
        promise = peer.index.x()
        theirs.close()
        with pytest.raises(capnode.PeerLost):
            await promise
    assert peer.is_closed


# Peer death.


async def test_the_end_of_the_stream_fails_every_pending_call_at_once(driver):
    """D1, rule 10: one cause, a fresh exception for each waiter."""
    peer, theirs = await raw_peer()
    outcomes: list[Any] = []
    promise = peer.index.one()
    async with anyio.create_task_group() as group:
        for waited in (promise, promise, peer.index.two(), promise.three(), peer.index.four):
            group.start_soon(_outcome, waited, outcomes)
        group.start_soon(_ping_fails, peer)
        await anyio.lowlevel.checkpoint()
        theirs.close()
    assert len(outcomes) == 5
    assert {type(outcome) for outcome in outcomes} == {capnode.PeerLost}
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert len({id(outcome) for outcome in outcomes}) == 5
    with pytest.raises(capnode.PeerLost):
        await peer.index.later()
    with pytest.raises(ConnectionError):
        peer.notify(peer.index.later)
    stats = peer.stats()
    assert (stats.imports, stats.exports, stats.unsent_bytes) == (0, 0, 0)
    await peer.aclose()


async def _ping_fails(peer: capnode.Peer) -> None:
    with pytest.raises(capnode.PeerLost):
        await peer.ping()


@pytest.mark.loop
async def test_the_handlers_of_a_dead_peer_are_cancelled(any_road):
    """G9."""
    waiter = Waiter()
    near, far = await any_road.open(far_index=waiter, limits=QUICK, far_limits=QUICK)
    near.index.wait()
    await waiter.started.wait()
    await near.aclose()
    await far.wait_closed()
    await waiter.ended.wait()


async def test_a_reset_and_a_stream_cut_in_mid_frame_are_told_apart(driver):
    """D2, D4, F11: also writing that fails while reading would wait for ever."""
    peer, theirs = await raw_peer()
    theirs.sendall(b"\x58\x64\x81")  # the head of 100 bytes, and one of them
    theirs.close()
    with pytest.raises(capnode.ProtocolError, match=r"mid-frame, after 3 of 102 bytes") as caught:
        await peer.index.x()
    assert isinstance(caught.value.__cause__, capnode.PeerLost)
    await peer.aclose()

    peer, theirs = await raw_peer()
    theirs.shutdown(socket.SHUT_RD)  # it reads no more: our writing fails
    promise = peer.index.x("x" * 1000)
    with theirs, pytest.raises(capnode.PeerLost) as lost:
        await promise
    assert isinstance(lost.value, ConnectionError)
    await peer.aclose()


async def test_what_the_other_side_wrote_before_it_went_is_read(driver):
    """D5: it answers, and closes without reading on."""
    peer, theirs = await raw_peer()
    promises = [peer.index.one(), peer.index.two()]
    codec = CborCodec(Limits())
    answers = [codec.resolve(n + 1, n, lambda value: value) for n in range(2)]
    theirs.sendall(bytes(codec.frame(answers)))
    theirs.close()
    for n, promise in enumerate(promises):
        assert await _settled(promise) in (n, "PeerLost")
    assert await _settled(promises[0]) == 0
    await peer.aclose()


async def test_a_peer_that_reads_no_more_and_sends_on_does_not_stall_the_loop(driver):
    """Each call of its makes the next one: there is always something to read."""
    codec = CborCodec(Limits())
    frame = bytes(codec.frame([codec.word(codec.call(0, ("tick",), [], {}, _no_ref), SEND)]))
    turns = 0
    seen: list[int] = []

    def tick() -> None:
        seen.append(turns)
        if len(seen) < 1000:
            theirs.send(frame)

    peer, theirs = await raw_peer(index={"tick": tick})
    theirs.shutdown(socket.SHUT_RD)  # from now on, writing to it fails
    theirs.send(frame)
    peer.notify(peer.index.x)
    with theirs:
        while not peer.is_closed and len(seen) < 1000:
            turns += 1
            await anyio.lowlevel.checkpoint()
    await peer.aclose()
    assert len(seen) < 1000 or seen[-1] > seen[0]


def _no_ref(value: Any) -> Any:
    raise AssertionError(value)


async def test_a_peer_that_ends_its_half_is_answered_and_then_hears_the_end(driver):
    """D5: it says bye and ends its half, while a handler runs: our answer and bye, end of file."""
    waiter = Waiter()
    peer, theirs = await raw_peer(index=waiter, limits=Limits(close_timeout=10))
    codec = CborCodec(Limits())
    theirs.sendall(
        bytes(codec.frame([bytes(codec.call(0, ("wait",), [], {}, _no_ref)), codec.control(BYE)]))
    )
    theirs.shutdown(socket.SHUT_WR)
    await waiter.started.wait()
    with theirs:
        waiter.go.set()
        words = await _words_until_the_end(theirs, codec)
    assert sorted(words) == [RESOLVE, BYE]
    assert not waiter.cancelled
    await peer.wait_closed()
    with pytest.raises(capnode.PeerLost, match="bye"):
        await peer.index.x()


async def test_a_peer_that_ends_its_half_without_a_bye_is_lost(driver):
    """D5, G9: nobody says that it still reads; the handler is cancelled, and the stream closed."""
    waiter = Waiter()
    peer, theirs = await raw_peer(index=waiter)
    codec = CborCodec(Limits())
    theirs.sendall(bytes(codec.frame([bytes(codec.call(0, ("wait",), [], {}, _no_ref))])))
    await waiter.started.wait()
    theirs.shutdown(socket.SHUT_WR)
    await waiter.ended.wait()
    with theirs:
        assert await _words_until_the_end(theirs, codec) == []
    assert waiter.cancelled
    await peer.wait_closed()


async def _words_until_the_end(sock: socket.socket, codec: CborCodec) -> list[int]:
    """The words of all messages that come until the stream ends."""
    sock.setblocking(False)
    words: list[int] = []
    while True:
        await anyio.wait_readable(sock)
        data = sock.recv(65536)
        if not data:
            return words
        for item in codec.feed(data):
            if not isinstance(item, Hello):
                words += [message[0] for message in codec.decode(item)[0]]


# What is no peer, or a bad one.


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", r"does not open with a hello .* b'GET /"),
        (b"\xff" * 100, "does not open with a hello"),
        (b"", "closed the connection"),
        (HELLO[:10], "mid-frame"),
        (HELLO[:3] + b"\x43abc", "hello that cannot be read"),
        (b"\xd9\xd9\xf7\x5b\xff\xff\xff\xff\xff\xff\xff\xff", "over the limit"),
        (CborCodec(Limits()).hello(Hello(versions=[7, 8])), r"speaks \[1\], the other \[7, 8\]"),
    ],
    ids=["http", "garbage", "nothing", "cut", "no map", "huge", "versions"],
)
async def test_a_bad_start_is_raised_at_the_door_and_leaves_nothing(driver, sent, why):
    """D7."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(capnode.CapnodeError, match=why):
            await capnode.attach(ours, limits=QUICK)


async def test_no_hello_in_time_is_raised_at_the_door(driver):
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(capnode.PeerLost, match=r"no hello within 0\.01 s .*hello_timeout"):
        await capnode.attach(ours, limits=Limits(hello_timeout=0.01, close_timeout=0.01))


async def test_a_start_that_is_cancelled_leaves_nothing(driver):
    ours, theirs = socket.socketpair()
    with theirs, anyio.move_on_after(0.005):
        await capnode.attach(ours, limits=QUICK)
        pytest.fail("no hello was said")


FRAME = CborCodec(Limits()).frame


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"\x00", "out of step"),
        (b"\x82\x01\x41x", "chunk of an attachment"),
        (b"\x5f", "indefinite length"),
        (b"\x1a\x00\x00\x00\x00", "where a frame should start"),
        (b"\x5b\x00\x00\x00\x01\x00\x00\x00\x00", r"4294967296 bytes is over the limit"),
        (b"\x41\x00", "holds no array but int"),
        (b"\x42\xff\xff", "not valid"),
        (FRAME([b"\x81\x18\x63"]), r"an unknown word: \[99\]"),
        (FRAME([b"\x80"]), r"an unknown word: \[\]"),
        (FRAME([b"\x01"]), "an unknown word: 1"),
        (FRAME([b"\x83\x01\x05\x80"]), "id 5, which was never issued"),
        (FRAME([b"\x83\x05\x09\x00"]), "id 9, which was never issued"),
        (FRAME([b"\x83\x07\x81\x01\x80"]), "id 1, which was never issued"),
        (FRAME([b"\x83\x07\x80\x81\x82\x00\x01"]), "release"),
        (FRAME([b"\x82\x03\x00"]), "no answer"),
        (FRAME([b"\x82\x08\x01"]), "id 1, which was never issued"),
        (FRAME([b"\x82\x0a\x01"]), "answers no ping"),
        (FRAME([b"\x81\x01"]), "call"),
        (FRAME([b"\x84\x01\x00\x80\x01"]), "malformed call"),
        (FRAME([b"\x83\x01\x00\x81\xf5"]), "malformed call"),
        (FRAME([b"\x81\x0b", b"\x83\x01\x00\x80"]), "after its bye, the other side made a call"),
        (b"\x58\x80" + b"\x81" * 128, "not valid"),
    ],
)
async def test_what_no_correct_peer_sends_ends_the_session_and_says_which(driver, sent, why):
    """T4, F10, F11: pending calls fail, the other side is told, the process lives."""
    peer, theirs = await raw_peer()
    promise = peer.index.x()
    theirs.sendall(sent)
    with pytest.raises(capnode.RemoteProtocolError, match=why):
        await promise
    await peer.aclose()
    theirs.settimeout(5)
    said = b""
    while chunk := theirs.recv(65536):
        said += chunk
    assert b"RemoteProtocolError" in said  # the abort, the last thing we say
    theirs.close()


@pytest.mark.parametrize(
    ("name", "error"),
    [("RemoteProtocolError", capnode.LocalProtocolError), ("PeerClosed", capnode.PeerLost)],
)
async def test_the_abort_of_the_other_side_is_told(driver, name, error):
    """And whose fault it was: their *remote* protocol error is our local one."""
    peer, theirs = await raw_peer()
    promise = peer.index.x()
    codec = CborCodec(Limits())
    theirs.sendall(bytes(codec.frame([codec.control(ABORT, name, "that is why")])))
    with pytest.raises(error, match=f"{name}: that is why"):
        await promise
    theirs.close()
    await peer.aclose()


@pytest.mark.parametrize(
    "stream", [None, 3, "unix:/x", b"", object(), (1,), (1, 2), (1, 2, 3), open, os.devnull]
)
def test_attach_refuses_what_is_no_stream(stream):
    with pytest.raises(TypeError, match=r"attach\(\) takes an anyio ByteStream, a socket or"):
        _ = capnode.attach(stream)


def test_a_door_outside_of_a_loop_teaches():
    ours, theirs = socket.socketpair()
    with theirs, ours:
        door = capnode.attach(ours)
        with pytest.raises(capnode.CapnodeError, match="no event loop is running"):
            door.__await__().send(None)


@pytest.mark.parametrize(
    "bad",
    [
        {"dialect": "json"},
        {"index": {}, "host": capnode.Capnode()},
        {"index": 3},
        {"host": {}},
        {"host": "127.0.0.1"},
        {"limits": {"max_frame": 1}},
        {"limits": 3},
        {"surprise": 1},
    ],
    ids=repr,
)
def test_doors_check_their_options(bad):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for door in (
            lambda: capnode.attach(ours, **bad),
            lambda: capnode.connect("unix:/x", **bad),
            lambda: capnode.listen("unix:/x", **bad),
            lambda: capnode.spawn(["true"], **bad),
            lambda: capnode.stdio(**bad),
            lambda: capnode.serve_stdio(**bad),
        ):
            with pytest.raises((TypeError, ValueError)):
                door()


def test_limits_are_checked():
    for bad in ({"max_frame": 0}, {"hello_timeout": -1}, {"low_water": 3 << 20}):
        with pytest.raises(ValueError, match="Limits"):
            Limits(**bad)


@pytest.mark.loop
async def test_a_reference_that_is_dropped_is_released_though_nothing_else_happens(any_road):
    """What a turn drops wakes nobody, so its end must look."""
    near, _ = await any_road.open(far_index={"echo": lambda value: value})
    gone = anyio.Event()

    def passed() -> None: ...

    weakref.finalize(passed, gone.set)
    assert await near.index.echo(passed) is passed  # the answer holds it, until it is released
    del passed
    with anyio.fail_after(10):
        await gone.wait()


@pytest.mark.drivers("trio")
async def test_an_interrupt_in_a_handler_fails_its_call_and_not_the_loop(any_road):
    """On trio the handlers' tasks are the loop's own: what leaves one would end the program."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    near, _ = await any_road.open(far_index={"interrupt": interrupt, "add": lambda a, b: a + b})
    with pytest.raises(capnode.RemoteError, match="exited by KeyboardInterrupt"):
        await near.index.interrupt()
    assert await near.index.add(1, 2) == 3


@pytest.mark.drivers("trio")
async def test_what_trio_cannot_wait_for_breaks_the_connection_and_not_the_loop(driver, tmp_path):
    """A file, as in ``child < file``."""
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDWR)
    settings = make_settings(None, None, "cbor", QUICK, "", tracebacks=True)
    with pytest.raises(capnode.PeerLost, match=r"broke: .*not permitted"):
        await opened(make_peer(capnode.Peer, (fd, fd), settings))


async def test_the_names_of_keyword_arguments_are_all_free(any_road):
    near, _ = await any_road.open(far_index={"names": lambda **named: named})
    assert await near.index.names(self=1, target=2, args=3) == {"self": 1, "target": 2, "args": 3}
    names = await near.index.names
    near.notify(names, self=1, target=2)
    assert await names(self=1) == {"self": 1}


async def test_an_error_larger_than_the_others_limit_fails_one_call(any_road):
    def fail(size: int) -> None:
        raise ValueError("x" * size)

    near, far = await any_road.open(
        {"fail": fail}, far_index={"fail": fail}, limits=capnode.Limits(max_frame=10_000)
    )
    with pytest.raises(capnode.RemoteError, match=r"its Limits\.max_frame"):
        await near.index.fail(12_000)
    with pytest.raises(ValueError, match="xxx"):
        await near.index.fail(3)
    with pytest.raises(ValueError, match="xxx"):
        await far.index.fail(12_000)


async def test_releases_keep_to_the_others_limit(any_road):
    near, far = await any_road.open(
        far_index={"many": lambda n: [lambda i=i: i for i in range(n)]},
        far_limits=capnode.Limits(max_frame=3000),
    )
    stubs = await near.index.many(2000)
    assert far.stats().exports > 2000
    del stubs
    await near.ping()


async def test_a_promise_in_a_set_is_refused_at_the_call(any_road):
    near, _ = await any_road.open(far_index={"echo": lambda value: value})
    promise = near.index.echo(1)
    with pytest.raises(capnode.CannotPass, match="a promise in a set"):
        near.index.echo({promise})
    assert await promise == 1


# Streams that fail where they should only end.


class Faulty(anyio.abc.ByteStream):
    """One end of a pair of sockets, where one method raises what no stream should."""

    def __init__(self, sock: socket.socket, fails: str) -> None:
        self._inner = DescriptorStream(*[sock.detach()] * 2)
        self._fails = fails
        self.failed: list[str] = []

    def _maybe_fail(self, name: str) -> None:
        if name == self._fails:
            self.failed.append(name)
            raise RuntimeError(f"{name} is broken")

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._inner.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._inner.send(item)

    async def send_eof(self) -> None:
        self._maybe_fail("send_eof")
        await self._inner.send_eof()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:  # it is cancelled where it would wait
            self._maybe_fail("aclose")


class Slow(DescriptorStream):
    """It takes some turns of the loop to close."""

    closed = False

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            await super().aclose()
        self.closed = True


@pytest.mark.parametrize("ends", ["here", "there"])
async def test_closing_ends_with_the_stream_closed(driver, ends):
    """D1: all that belongs to the connection is gone, and the other side has its end."""
    ours, theirs = socket.socketpair()
    theirs.sendall(HELLO)
    stream = Slow(*[ours.detach()] * 2)
    peer = await capnode.attach(stream)
    if ends == "there":
        theirs.shutdown(socket.SHUT_WR)
        await peer.wait_closed()
    else:
        await peer.aclose()
    assert stream.closed
    theirs.close()


@pytest.mark.parametrize("fails", ["send_eof", "aclose"])
async def test_a_stream_that_fails_to_close_is_logged_and_closed_all_the_same(
    driver, caplog, fails
):
    """D3: closing does not raise, calls say that we closed, and the loop lives."""
    ours, theirs = socket.socketpair()
    theirs.sendall(HELLO)
    stream = Faulty(ours, fails)
    peer = await capnode.attach(stream, limits=QUICK)
    promise = peer.index.x()
    await peer.aclose()
    with pytest.raises(capnode.PeerClosed):
        await promise
    await peer.aclose()
    assert peer.is_closed
    with theirs:
        theirs.setblocking(False)
        await anyio.wait_readable(theirs)
        while theirs.recv(65536):  # it ends for the other side too
            await anyio.wait_readable(theirs)
    while not stream.failed:
        await anyio.lowlevel.checkpoint()
    assert f"{fails} is broken" in caplog.text
    await anyio.lowlevel.checkpoint()


def test_a_peer_that_outlives_its_event_loop_shows_it():
    async def main() -> Any:
        one, other = socket.socketpair()
        peers = await asyncio.gather(capnode.attach(one), capnode.attach(other))
        assert "1 imports, 1 exports" in repr(peers[0])
        return peers

    for peer in asyncio.run(main()):
        assert repr(peer).endswith(": never closed, and its event loop has ended>")
        for descriptor in {peer._driver._read_fd, peer._driver._write_fd}:
            os.close(descriptor)


def test_a_call_when_the_event_loop_is_gone_says_so():
    async def main() -> Any:
        one, other = socket.socketpair()
        near, far = await asyncio.gather(capnode.attach(one), capnode.attach(other, index=len))
        await near.aclose()
        await far.wait_closed()
        return near

    near = asyncio.run(main())
    stub = near.index
    for call in (lambda: stub([1]), lambda: near.notify(stub, [1]), lambda: near.reconstruct("")):
        with pytest.raises(capnode.PeerClosed, match="the event loop of this connection has ended"):
            call()
