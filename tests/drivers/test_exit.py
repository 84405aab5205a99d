"""The end of a process that holds references: nothing is sent, nothing is printed, exit code 0."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import capnode_py as capnode
from capnode_py import Limits

LEAVES = str(Path(__file__).parent / "children" / "leaves.py")
QUICK = Limits(close_timeout=0.02)
LOOPS = ["asyncio", "uvloop", "trio"]
WAYS = ["return", "exit", "close", "thread"]
CASES = [*((loop, way) for loop in LOOPS for way in WAYS), ("abandoned", "return")]


class Giver(capnode.Target):
    """What the child calls."""

    def __init__(self) -> None:
        self.ready_ = anyio.Event()
        self.received: int | None = None

    def things(self, n: int) -> list[Any]:
        return [Thing() for _ in range(n)]

    async def wait(self, _thing: Any) -> None:
        await anyio.sleep_forever()

    def ready(self, _thing: Any) -> None:
        self.received = capnode.current_peer().stats().messages_received


class Thing(capnode.Target):
    pass


def start(descriptor: int, loop: str, way: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, LEAVES, str(descriptor), loop, way],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(("loop", "way"), CASES)
@pytest.mark.drivers("asyncio")
async def test_stubs_that_die_with_the_interpreter_do_nothing(driver, loop, way):
    """G5: held in globals, in circles, by finalizers and calls; collected when the loop is gone."""
    if loop in ("uvloop", "trio"):
        pytest.importorskip(loop)
    giver = Giver()
    ours, theirs = socket.socketpair()
    with theirs:
        child = start(theirs.fileno(), loop, way)
    peer = await capnode.attach(ours, index=giver, limits=QUICK)
    out, err = await anyio.to_thread.run_sync(child.communicate)
    await peer.wait_closed()
    assert (out, err) == (b"", b"")
    assert child.returncode == 0
    assert giver.received is not None
    after = peer.stats().messages_received - giver.received
    # The release of the last answer, and a ping; a bye, with what was to be released by then.
    assert after in ((3, 4) if way == "close" else (2,))
    assert peer.stats().exports == 0
