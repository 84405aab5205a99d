"""`supervise`: a child that is started again, and what its callers are told meanwhile."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Limits, PeerDied, PeerRestarted
from capnode_py._lives import Policy

CHILDREN = Path(__file__).parent / "children"
PLUGIN = [sys.executable, str(CHILDREN / "plugin.py")]
QUICK = Limits(hello_timeout=5, close_timeout=0.05)

# A child's start costs a fifth of a second, and on uvloop the same code of ours runs as on asyncio.
TWO_DRIVERS = pytest.mark.drivers("asyncio", "trio")


class Clock:
    """Time stands still. A backoff is over when the test says so: `free`, or at once."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.asleep = anyio.Event()
        self.free = anyio.Event()

    def now(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.asleep.set()
        await self.free.wait()


@pytest.fixture
def clocks(monkeypatch):
    """Makes the clock of a test, in its event loop."""

    def make(*, free: bool = True) -> Clock:
        clock = Clock()
        if free:
            clock.free.set()
        monkeypatch.setattr("capnode_py._lives._now", clock.now)
        monkeypatch.setattr("capnode_py._supervise._sleep", clock.sleep)
        return clock

    return make


async def die(peer: Any, how: str = "SIGKILL") -> PeerRestarted:
    with pytest.raises(PeerRestarted) as caught:
        await peer.index.kill(how)
    return caught.value


async def raised(promise: Awaitable[Any], errors: list[BaseException]) -> None:
    try:
        await promise
    except capnode.CapnodeError as error:
        errors.append(error)


async def test_a_child_that_dies_is_started_again_at_the_same_place(driver, clocks, caplog):
    clock = clocks(free=False)
    errors: list[BaseException] = []
    async with capnode.supervise(PLUGIN) as peer:
        first, index = peer.pid, peer.index
        assert await index.pid() == first
        async with anyio.create_task_group() as group:
            group.start_soon(raised, index.wait(), errors)
            group.start_soon(raised, index.wait(), errors)
            await anyio.lowlevel.checkpoint()
            died = await die(peer)
        assert isinstance(died, capnode.PeerLost)
        assert isinstance(died.death, PeerDied)
        assert (died.death.pid, died.death.signal) == (first, "SIGKILL")
        assert "was killed by SIGKILL, during kill; it is started again" in str(died)
        assert [type(error) for error in errors] == [PeerRestarted, PeerRestarted]
        assert len({id(died), *map(id, errors)}) == 3
        assert peer.last_death is died.__cause__

        # Between two lives nothing waits.
        await clock.asleep.wait()
        with pytest.raises(PeerRestarted, match="wait_started"):
            await peer.index.add(1, 2)
        with pytest.raises(PeerRestarted):
            peer.notify(peer.index.add, 1, 2)
        assert not peer.is_closed
        assert peer.restarts == 0

        clock.free.set()
        await peer.wait_started()
        assert await peer.index.add(1, 2) == 3
        assert await peer.index.pid() == peer.pid != first
        assert (peer.restarts, peer.returncode, clock.slept) == (1, None, [0.1])

        # What was of the old life is void.
        assert peer.index is not index
        with pytest.raises(PeerRestarted):
            await index.add(1, 2)
        for use in (
            lambda: peer.notify(index.add, 1, 2),
            lambda: peer.with_options(index, timeout=1),
            lambda: index.cap_id,
        ):
            with pytest.raises(PeerRestarted):
                use()
    assert peer.is_closed
    assert peer.returncode == 0
    with pytest.raises(capnode.PeerClosed):
        await peer.index.add(1, 2)
    with pytest.raises(capnode.PeerClosed):
        await peer.wait_started()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [text for text in warnings if "starting it again in 0.1 s" in text]


@TWO_DRIVERS
async def test_each_life_is_set_up_before_others_reach_it_and_each_death_is_told(driver, clocks):
    clocks()
    events: list[Any] = []

    async def on_start(life: capnode.Peer) -> None:
        events.append(("start", await life.index.pid()))

    async def on_death(error: BaseException) -> None:
        assert isinstance(error, PeerDied)
        await anyio.lowlevel.checkpoint()
        events.append(("death", error.pid))

    async with capnode.supervise(PLUGIN, on_start=on_start, on_death=on_death) as peer:
        assert events == [("start", peer.pid)]
        first = peer.pid
        await die(peer)
        await peer.wait_started()
        assert events == [("start", first), ("death", first), ("start", peer.pid)]
    assert len(events) == 3


@TWO_DRIVERS
async def test_it_is_given_up_with_the_last_death_when_the_bound_is_reached(driver, clocks, caplog):
    clock = clocks()
    deaths: list[BaseException] = []
    async with capnode.supervise(PLUGIN, max_restarts=2, on_death=deaths.append) as peer:
        for _ in range(2):
            await die(peer)
            await peer.wait_started()
        with pytest.raises(PeerDied, match="given up after 2 restarts within 180 s") as caught:
            await peer.index.leave_traces(3)
        assert not isinstance(caught.value, PeerRestarted)
        assert (caught.value.returncode, caught.value.call) == (3, "leave_traces")
        assert caught.value.stderr_tail.endswith("line 99")
        await peer.wait_closed()
        assert peer.is_closed
        for late in (peer.wait_started, peer.index.add, peer.ping):
            with pytest.raises(PeerDied, match="exited with code 3; it is given up"):
                await late()
    assert clock.slept == [0.1, 0.2]
    assert [error.returncode for error in deaths if isinstance(error, PeerDied)] == [-9, -9, 3]
    assert "is given up after 2 restarts" in caplog.text


def flaky(tmp_path: Path) -> tuple[list[str], Path]:
    """A plugin that exits with 4 at its start, once the file is there."""
    broken = tmp_path / "broken"
    code = (
        "import os, signal, sys, capnode_py as capnode\n"
        f"if os.path.exists({str(broken)!r}): sys.exit('no config')\n"
        "def kill(name): os.kill(os.getpid(), getattr(signal, name))\n"
        "capnode.serve_stdio({'kill': kill, 'add': lambda a, b: a + b})\n"
    )
    return [sys.executable, "-c", code], broken


@TWO_DRIVERS
async def test_a_restart_that_fails_counts_and_is_repeated(driver, clocks, tmp_path, caplog):
    clock = clocks()
    argv, broken = flaky(tmp_path)
    deaths: list[BaseException] = []

    def on_death(error: BaseException) -> None:
        deaths.append(error)
        if len(deaths) == 3:
            broken.unlink()

    async with capnode.supervise(argv, on_death=on_death) as peer:
        broken.touch()
        await die(peer)
        await peer.wait_started()
        assert await peer.index.add(1, 2) == 3
        assert (len(deaths), peer.restarts, clock.slept) == (3, 1, [0.1, 0.2, 0.4])
        assert "before its hello" in str(peer.last_death)

        broken.touch()
        await die(peer)
        with pytest.raises(PeerDied, match="before its hello; it is given up after 5 restarts"):
            await peer.wait_started()
        with pytest.raises(PeerDied, match="before its hello; it is given up"):
            await peer.index.add(1, 2)
    assert len(deaths) == 6


@TWO_DRIVERS
async def test_a_first_start_that_fails_is_raised_at_the_door_and_not_repeated(
    driver, clocks, tmp_path
):
    clock = clocks()
    argv, broken = flaky(tmp_path)
    broken.touch()
    with pytest.raises(PeerDied, match="exited with code 1 before its hello"):
        await capnode.supervise(argv)
    with pytest.raises(FileNotFoundError):
        await capnode.supervise(["/no/such/program"])

    async def on_start(life: capnode.Peer) -> None:
        await life.index.fail()

    with pytest.raises(LookupError, match="in the child"):
        await capnode.supervise(PLUGIN, on_start=on_start)

    async def die_at_once(life: capnode.Peer) -> None:
        await life.index.kill("SIGKILL")

    with pytest.raises(PeerDied, match="SIGKILL"):
        await capnode.supervise(PLUGIN, on_start=die_at_once)
    assert clock.slept == []


@TWO_DRIVERS
async def test_a_callback_that_raises_is_logged_or_fails_the_start(driver, clocks, caplog):
    clock = clocks()
    starts: list[Any] = []

    def on_start(life: capnode.Peer) -> None:
        starts.append(life)
        if len(starts) == 2:
            raise ValueError("not today")

    def on_death(error: BaseException) -> None:
        raise ValueError("not at all")

    async with capnode.supervise(PLUGIN, on_start=on_start, on_death=on_death) as peer:
        await die(peer)
        await peer.wait_started()
        assert await peer.index.add(1, 2) == 3
        assert [life.returncode for life in starts] == [-9, 0, None]
        assert str(peer.last_death) == "not today"
        assert len(clock.slept) == 2
        starts.clear()
    assert caplog.text.count("on_death raised") == 2


@pytest.mark.drivers("asyncio")
@pytest.mark.parametrize(
    ("restart", "kill", "again"),
    [
        ("on-failure", "SIGTERM", True),
        ("on-failure", "exit", False),
        ("always", "exit", True),
        ("never", "SIGKILL", False),
    ],
)
async def test_what_is_started_again_is_a_choice(driver, clocks, restart, kill, again):
    clocks()
    async with capnode.supervise(PLUGIN, restart=restart) as peer:
        with pytest.raises(capnode.PeerLost) as caught:
            await (peer.index.leave_traces(0) if kill == "exit" else peer.index.kill(kill))
        assert isinstance(caught.value, PeerRestarted) == again
        if again:
            await peer.wait_started()
        else:
            assert type(caught.value) is PeerDied
            await peer.wait_closed()
            with pytest.raises(PeerDied):
                await peer.index.add(1, 2)


@TWO_DRIVERS
async def test_a_goodbye_is_orderly_and_a_broken_protocol_is_not(
    driver, clocks, tmp_path, soon_terminated
):
    clocks()
    code = (
        "import asyncio, os, capnode_py as capnode\n"
        "async def main():\n"
        "    async with capnode.stdio({'bye': lambda: asked.set(), 'junk': junk}) as peer:\n"
        "        await asked.wait()\n"
        "def junk(): os.write(peer_fd, b'junk' * 100)\n"
        "asked = asyncio.Event()\n"
        "import capnode_py._stdio as s; claim = s.claim\n"
        "def claimed():\n"
        "    global peer_fd\n"
        "    wire = claim(); peer_fd = wire.fds[1]; return wire\n"
        "s.claim = claimed\n"
        "asyncio.run(main())\n"
    )
    argv = [sys.executable, "-c", code]
    async with capnode.supervise(argv, limits=QUICK) as peer:
        with pytest.raises(PeerRestarted) as caught:
            await peer.index.junk()
        assert isinstance(caught.value.death, capnode.RemoteProtocolError)
        await peer.wait_started()
        await peer.index.bye()
        await peer.wait_closed()
        assert peer.restarts == 1
        with pytest.raises(capnode.PeerLost, match="said bye"):
            await peer.wait_started()


# Closing, and being cancelled.


async def _while_restarting(clock: Clock, act: Callable[[Any], Awaitable[Any]]) -> Any:
    async with capnode.supervise(PLUGIN) as peer:
        await die(peer)
        await clock.asleep.wait()
        await act(peer)
        return peer


@TWO_DRIVERS
async def test_closing_between_two_lives_ends_the_restart(driver, clocks):
    clock = clocks(free=False)
    waiting: list[BaseException] = []

    async def close(peer: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(raised, peer.wait_started(), waiting)
            await anyio.lowlevel.checkpoint()
            group.start_soon(peer.aclose)
            group.start_soon(peer.aclose)

    peer = await _while_restarting(clock, close)
    assert [type(error) for error in waiting] == [capnode.PeerClosed]
    with pytest.raises(capnode.PeerClosed):
        await peer.index.add(1, 2)
    assert peer.restarts == 0


@pytest.mark.parametrize("turns", [0, 5, 100])
@TWO_DRIVERS
async def test_closing_while_the_next_life_begins_leaves_nothing(driver, clocks, turns):
    clock = clocks(free=False)

    async def close(peer: Any) -> None:
        clock.free.set()
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        await peer.aclose()

    peer = await _while_restarting(clock, close)
    assert peer.is_closed


@TWO_DRIVERS
async def test_closing_while_a_life_is_set_up_ends_it(driver, clocks):
    clocks()
    second = anyio.Event()
    lives: list[Any] = []

    async def on_start(life: capnode.Peer) -> None:
        lives.append(life)
        if len(lives) == 2:
            second.set()
            await life.index.wait()

    async with capnode.supervise(PLUGIN, on_start=on_start, limits=QUICK) as peer:
        await die(peer)
        await second.wait()
    assert [life.returncode is None for life in lives] == [False, False]
    lives.clear()


@TWO_DRIVERS
async def test_a_cancelled_close_closes_all_the_same(driver, clocks):
    clocks()
    peer = await capnode.supervise(PLUGIN)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await peer.aclose()
    assert scope.cancelled_caught
    assert peer.returncode == 0


@TWO_DRIVERS
async def test_it_can_be_closed_from_its_own_callbacks(driver, clocks):
    clocks()
    peers: list[Any] = []

    async def on_death(error: BaseException) -> None:
        await peers[0].aclose()

    peer = await capnode.supervise(PLUGIN, on_death=on_death)
    peers.append(peer)
    await die(peer)
    await peer.wait_closed()
    with pytest.raises(capnode.PeerClosed):
        await peer.wait_started()
    assert peer.restarts == 0
    peers.clear()


@pytest.mark.parametrize("turns", [1, 50])
@TWO_DRIVERS
async def test_a_cancelled_start_or_use_leaves_no_child(driver, clocks, turns):
    clock = clocks(free=False)

    async def use() -> None:
        async with capnode.supervise(PLUGIN, limits=QUICK) as peer:
            os.kill(peer.pid or 0, signal.SIGKILL)
            await clock.asleep.wait()
            clock.free.set()
            await peer.wait_started()

    for until in (None, clock.asleep):
        async with anyio.create_task_group() as group:
            group.start_soon(use)
            if until is not None:
                await until.wait()
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()


def test_a_supervised_child_goes_with_the_loop_that_was_left(clocks):
    import asyncio

    pids: list[int] = []

    async def hold(started: asyncio.Event) -> None:
        async with capnode.supervise(PLUGIN, limits=QUICK) as peer:
            pids.append(peer.pid or 0)
            started.set()
            await peer.index.wait()

    async def main() -> None:
        started = asyncio.Event()
        holding = asyncio.create_task(hold(started))
        await started.wait()
        assert not holding.done()

    asyncio.run(main())
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


# The policy, and misuse.


def test_the_backoff_doubles_up_to_its_bound_and_starts_anew_after_the_window():
    policy = Policy(restart="always", max_restarts=4, window=10, backoff=1, max_backoff=3)
    assert [policy.delay(now) for now in (0, 1, 2, 3, 4)] == [1, 2, 3, 3, None]
    assert policy.delay(10.5) == 3  # the first has left the window
    assert policy.delay(10.6) is None
    assert policy.delay(100) == 1
    assert policy.fresh().delay(100) == 1
    none = Policy(restart="always", max_restarts=0, window=10, backoff=1, max_backoff=3)
    assert none.delay(0) is None
    many = Policy(restart="always", max_restarts=5000, window=9, backoff=1, max_backoff=3)
    assert [many.delay(0) for _ in range(5000)][-1] == 3


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"restart": "sometimes"}, ValueError),
        ({"max_restarts": -1}, ValueError),
        ({"max_restarts": True}, ValueError),
        ({"window": "180"}, ValueError),
        ({"backoff": -1}, ValueError),
        ({"max_backoff": float("nan")}, ValueError),
        ({"on_start": 1}, TypeError),
        ({"on_death": "log"}, TypeError),
    ],
)
def test_wrong_options_are_refused_at_once(wrong, error):
    with pytest.raises(error, match=next(iter(wrong))):
        _ = capnode.supervise(PLUGIN, **wrong)
    with pytest.raises(TypeError, match="takes a list"):
        _ = capnode.supervise("plugin.py")
