"""Bounds: what is sent and not read, what is kept, what is too large. And two floods that meet."""

from __future__ import annotations

import socket
import sys
from collections import deque
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import LimitExceeded, Limits
from capnode_py._messages import Hello
from capnode_py.codec.cbor import CborCodec

KIB = 1024
GIB = 1024 * KIB * KIB


async def raw_peer(limits: Limits, **settings: Any) -> tuple[capnode.Peer, socket.socket]:
    """A peer whose other side is in our hands: a socket, on which a hello has been said."""
    ours, theirs = socket.socketpair()
    theirs.sendall(CborCodec(Limits()).hello(Hello(versions=[1])))
    theirs.setblocking(False)
    return await capnode.attach(ours, limits=limits, **settings), theirs


async def read(theirs: socket.socket) -> int:
    """Read what is there now."""
    await anyio.wait_readable(theirs)
    return len(theirs.recv(1 << 20))


async def read_on(theirs: socket.socket) -> None:
    while True:
        await read(theirs)


async def test_a_call_beyond_max_unsent_raises_and_drain_waits(driver):
    """F12, rule 13."""
    limits = Limits(max_unsent=2000 * KIB, high_water=600 * KIB, low_water=100 * KIB)
    peer, theirs = await raw_peer(limits)
    while peer.stats().unsent_bytes <= 2000 * KIB:
        peer.notify(peer.index.take, bytes(100 * KIB))
    with pytest.raises(LimitExceeded, match=r"Limits.max_unsent\): await peer.drain\(\)"):
        peer.notify(peer.index.take, 1)
    with pytest.raises(LimitExceeded):
        peer.index.take(1)
    drained = anyio.Event()

    async def drain() -> None:
        await peer.drain()
        drained.set()

    async with anyio.create_task_group() as group:
        group.start_soon(drain)
        await anyio.lowlevel.checkpoint()
        assert not drained.is_set()
        group.start_soon(read_on, theirs)
        await drained.wait()
        group.cancel_scope.cancel()
    assert peer.stats().unsent_bytes <= 100 * KIB
    peer.notify(peer.index.take, 1)
    theirs.close()
    await peer.aclose()


async def test_drain_returns_when_what_the_stream_has_not_taken_is_little(driver):
    """Nobody reads, and what was called is not written when it begins to wait."""
    limits = Limits(close_timeout=0.05)
    peer, theirs = await raw_peer(limits)
    with theirs:
        peer.notify(peer.index.take, bytes(400 * KIB))
        assert peer.stats().unsent_bytes > limits.low_water
        with anyio.fail_after(10):
            await peer.drain()
        assert 0 < peer.stats().unsent_bytes <= limits.low_water
        await peer.aclose()


async def test_drain_returns_at_once_when_nothing_waits_and_when_it_is_over(any_road):
    near, _ = await any_road.open()
    await near.drain()
    await near.aclose()
    await near.drain()


async def test_a_message_over_the_others_max_frame_fails_one_call(road):
    """C5: a request, and a response."""
    small = Limits(max_frame=3_000)
    near, _ = await road.open(
        far_index={"size": len, "make": lambda n: "x" * n}, limits=small, far_limits=small
    )
    assert await near.index.size("x" * 2_900) == 2_900
    with pytest.raises(LimitExceeded, match=r"at most \d+ \(its Limits.max_frame\)"):
        near.index.size("x" * 3_000)
    with pytest.raises(LimitExceeded):
        near.notify(near.index.size, "x" * 3_000)
    assert len(await near.index.make(2_900)) == 2_900
    with pytest.raises(capnode.RemoteError, match=r"LimitExceeded: .*max_frame"):
        await near.index.make(3_000)
    # Many that fit take as many frames as they need.
    for promise in [near.index.make(900) for _ in range(20)]:
        assert len(await promise) == 900


async def test_references_held_are_bounded(any_road):
    near, _ = await any_road.open(
        far_index={"keep": lambda values: None}, limits=Limits(max_exports=10)
    )
    with pytest.raises(LimitExceeded, match=r"Limits.max_exports"):
        near.index.keep([lambda n=n: n for n in range(10)])
    await near.index.keep([lambda n=n: n for n in range(9)])
    assert near.stats().exports <= 10


async def test_a_peer_that_calls_and_never_releases_is_ended(driver):
    peer, theirs = await raw_peer(Limits(max_exports=10), index={"f": lambda: 1})
    codec = CborCodec(Limits())
    theirs.send(codec.frame([codec.call(0, ("f",), [], {}, None)] * 12))  # type: ignore[arg-type]
    with pytest.raises(capnode.RemoteProtocolError, match=r"Limits.max_exports"):
        await peer.index.x()
    theirs.close()
    await peer.aclose()


async def test_nothing_new_is_started_for_a_peer_that_does_not_read(driver):
    """Rule 13: its calls are kept, in order; reading goes on; when it reads they start."""
    started: list[int] = []

    def make(n: int) -> bytes:
        started.append(n)
        return bytes(200 * KIB)

    limits = Limits(high_water=500 * KIB, low_water=100 * KIB)
    peer, theirs = await raw_peer(limits, index={"make": make, "ping": lambda: None})
    codec = CborCodec(Limits())
    for n in range(30):
        theirs.send(codec.frame([codec.call(0, ("make",), [n], {}, None)]))  # type: ignore[arg-type]
        await anyio.lowlevel.checkpoint()
    while peer.stats().messages_received < 30:
        await anyio.lowlevel.checkpoint()
    assert 2 <= len(started) <= 10
    total = 0
    while total < 30 * 200 * KIB:
        total += await read(theirs)
    assert started == list(range(30))
    theirs.close()
    await peer.aclose()


async def test_a_peer_that_calls_on_and_never_reads_is_ended(driver):
    limits = Limits(high_water=100 * KIB, low_water=50 * KIB, max_kept=500 * KIB)
    peer, theirs = await raw_peer(limits, index={"echo": lambda value: value})
    codec = CborCodec(Limits())
    frame = bytes(codec.frame([bytes(codec.call(0, ("echo",), [bytes(50 * KIB)], {}, None))]))  # type: ignore[arg-type]
    with anyio.move_on_after(10):
        while not peer.is_closed:
            await anyio.wait_writable(theirs)
            try:
                theirs.send(frame)  # in parts or whole: what counts is that it goes on
            except OSError:
                break
            await anyio.lowlevel.checkpoint()
    with pytest.raises(capnode.RemoteProtocolError, match=r"Limits.max_kept"):
        await peer.index.x()
    theirs.close()
    await peer.aclose()


async def test_bytes_that_nobody_takes_end_the_session(driver):
    """F12: the send-age limit."""
    peer, theirs = await raw_peer(Limits(max_send_age=0.05, close_timeout=0.01))
    with theirs, pytest.raises(capnode.PeerLost, match=r"Limits.max_send_age"):
        await peer.index.take(bytes(2000 * KIB))
    await peer.aclose()


async def _flood(near: Any, far: Any, calls: int) -> None:
    """Both ends send all their calls at once, and then look at the answers."""
    payload = bytes(100 * KIB)
    promises = deque(peer.index.echo(payload) for _ in range(calls) for peer in (near, far))
    while promises:
        assert len(await promises.popleft()) == len(payload)


ROOMY = Limits(max_unsent=4 * GIB, max_kept=4 * GIB)


@pytest.mark.roads("memory", "socket", "pipes", "tcp", "anyio-stream", "asyncio-streams")
async def test_two_floods_that_meet_do_not_deadlock(road):
    """Rule 13: both ends send echoes of 100 KiB at once, more than any buffer between them."""
    echo = {"echo": lambda value: value}
    near, far = await road.open(echo, far_index=echo, limits=ROOMY, far_limits=ROOMY)
    await _flood(near, far, 500 if road.name == "socket" else 100)


def _has_room() -> bool:
    """Both ends are in this process, and each keeps a GiB unsent."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return any(
        line.startswith("MemAvailable") and int(line.split()[1]) > 4 * KIB * KIB for line in lines
    )


@pytest.mark.drivers("asyncio")
@pytest.mark.roads("socket")
@pytest.mark.skipif(sys.version_info < (3, 13), reason="once, on the newest Python")
@pytest.mark.skipif(not _has_room(), reason="needs 4 GiB of memory")
@pytest.mark.hangs_after(100)  # 4 GB go through a socket
@pytest.mark.timeout(120)
async def test_two_floods_of_ten_thousand_calls_do_not_deadlock(road):
    """Rule 13, at the size that other implementations stop at."""
    echo = {"echo": lambda value: value}
    near, far = await road.open(echo, far_index=echo, limits=ROOMY, far_limits=ROOMY)
    await _flood(near, far, 10_000)
