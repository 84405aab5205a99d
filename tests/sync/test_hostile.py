"""The other side of a blocking peer says what no correct one says, or nothing, or reads nothing."""

from __future__ import annotations

import contextlib
import socket

import pytest

import capnode_py as capnode
from capnode_py import Limits, PeerLost, RemoteProtocolError

pytestmark = pytest.mark.usefixtures("nothing_left")
QUICK = Limits(hello_timeout=0.1, close_timeout=0.1, max_send_age=0.2)


@pytest.fixture(scope="module")
def hello() -> bytes:
    """What a peer says first."""
    one, other = socket.socketpair()
    with one, other:
        copy = socket.fromfd(one.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
        with pytest.raises(PeerLost):
            capnode.sync.attach(copy, limits=QUICK)
        return other.recv(4096)


@pytest.mark.parametrize(
    ("sent", "error", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", RemoteProtocolError, "does not open with a hello"),
        (b"\x5b" + b"\xff" * 8, RemoteProtocolError, "does not open with a hello"),
        (b"", PeerLost, "no hello within 0.1 s"),
        (None, PeerLost, "the other side closed the connection"),
    ],
)
def test_a_bad_start_is_raised_at_the_door(sent, error, why):
    near, far = socket.socketpair()
    with far:
        if sent is None:
            far.close()
        else:
            far.sendall(sent)
        with pytest.raises(error, match=why):
            capnode.sync.attach(near, limits=QUICK)


@pytest.mark.parametrize(
    ("sent", "error", "why"),
    [
        (b"\x43\x01\x02\x03", RemoteProtocolError, "holds no array"),
        (b"\x63abc", RemoteProtocolError, "where a frame should start"),
        (b"\x44\x81\x81\x18\x63", RemoteProtocolError, "an unknown word"),
        (b"\x59\x10\x00abc", RemoteProtocolError, "ended in mid-frame, after 6 of 4099 bytes"),
        (b"", PeerLost, "the other side closed the connection"),
    ],
)
def test_what_comes_in_the_place_of_an_answer_ends_the_call_and_says_why(hello, sent, error, why):
    near, far = socket.socketpair()
    with far:
        far.sendall(hello)
        peer = capnode.sync.attach(near, limits=QUICK)
        far.sendall(sent)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_WR)
        with pytest.raises(error, match=why):
            peer.index.add(1, 2)
        with pytest.raises(error):
            peer.index.add(1, 2)
        peer.close()


def test_a_call_that_nobody_reads_fails_in_time(hello):
    near, far = socket.socketpair()
    with far:
        far.sendall(hello)
        with capnode.sync.attach(near, limits=QUICK) as peer:
            with pytest.raises(PeerLost, match="max_send_age"):
                peer.index.add(b"x" * (4 << 20))
            assert peer.is_closed
