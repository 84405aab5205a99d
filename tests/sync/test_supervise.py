"""`capnode.sync.supervise`: a child that is started again by whoever waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import Limits, PeerDied, PeerRestarted
from capnode_py.sync import supervise

PLUGIN = [sys.executable, str(Path(__file__).parents[1] / "drivers/children/plugin.py")]
QUICK = Limits(hello_timeout=5, close_timeout=0.05)

pytestmark = pytest.mark.usefixtures("nothing_left")


def die(peer: Any, how: str = "SIGKILL") -> PeerRestarted:
    with pytest.raises(PeerRestarted) as caught:
        peer.index.kill(how)
    return caught.value


def test_a_child_that_dies_is_started_again_at_the_same_place_by_who_waits_for_it():
    with supervise(PLUGIN, backoff=0) as peer:
        first, index = peer.pid, peer.index
        assert index.pid() == first
        died = die(peer)
        assert isinstance(died.death, PeerDied)
        assert (died.death.pid, died.death.signal) == (first, "SIGKILL")
        assert "was killed by SIGKILL, during kill; it is started again" in str(died)

        # Between two lives nothing waits.
        with pytest.raises(PeerRestarted, match="wait_started"):
            peer.index.add(1, 2)
        with pytest.raises(PeerRestarted):
            peer.notify(peer.index.add, 1, 2)
        assert (peer.is_closed, peer.restarts) == (False, 0)

        peer.wait_started(timeout=20)
        peer.wait_started()
        assert peer.index.pid() == peer.pid != first
        assert (peer.restarts, peer.returncode) == (1, None)

        # What was of the old life is void.
        assert peer.index is not index
        for use in (
            lambda: index.add(1, 2),
            lambda: peer.notify(index.add, 1, 2),
            lambda: peer.with_options(index, timeout=1),
            lambda: peer.get(index.add),
        ):
            with pytest.raises(PeerRestarted):
                use()
    assert (peer.is_closed, peer.returncode) == (True, 0)
    for late in (peer.index.add, peer.wait_started):
        with pytest.raises(capnode.PeerClosed):
            late()


@pytest.mark.parametrize("style", ["def", "async def"])
def test_each_life_is_set_up_before_others_reach_it_and_each_death_is_told(style):
    events: list[Any] = []

    def on_start(life: Any) -> None:
        events.append(("start", life.index.pid()))

    async def on_start_later(life: Any) -> None:
        events.append(("start", await life.index.pid()))

    def on_death(error: Any) -> None:
        events.append(("death", error.pid))

    async def on_death_later(error: Any) -> None:
        events.append(("death", error.pid))

    plain = style == "def"
    with supervise(
        PLUGIN,
        backoff=0,
        on_start=on_start if plain else on_start_later,
        on_death=on_death if plain else on_death_later,
    ) as peer:
        assert events == [("start", peer.pid)]
        first = peer.pid
        die(peer)
        peer.wait_started()
        assert events == [("start", first), ("death", first), ("start", peer.pid)]
    assert len(events) == 3


def test_it_is_given_up_with_the_last_death_when_the_bound_is_reached():
    deaths: list[Any] = []
    logs = _Errors()
    with logs, supervise(PLUGIN, max_restarts=2, backoff=0, on_death=deaths.append) as peer:
        for _ in range(2):
            die(peer)
            peer.wait_started()
        with pytest.raises(PeerDied, match="given up after 2 restarts within 180 s") as caught:
            peer.index.leave_traces(3)
        assert not isinstance(caught.value, PeerRestarted)
        assert caught.value.stderr_tail.endswith("line 99")
        peer.wait_closed()
        assert peer.is_closed
        for late in (peer.wait_started, peer.index.add, peer.ping):
            with pytest.raises(PeerDied, match="exited with code 3; it is given up"):
                late()
    assert [error.returncode for error in deaths] == [-9, -9, 3]
    assert "is given up after 2 restarts" in logs.said[0]


def test_a_start_that_fails_counts_and_is_repeated_but_not_the_first(tmp_path):
    broken = tmp_path / "broken"
    code = (
        "import os, signal, sys, capnode_py as capnode\n"
        f"if os.path.exists({str(broken)!r}): sys.exit('no config')\n"
        "def kill(name): os.kill(os.getpid(), getattr(signal, name))\n"
        "capnode.serve_stdio({'kill': kill, 'add': lambda a, b: a + b})\n"
    )
    deaths: list[Any] = []

    def on_death(error: Any) -> None:
        deaths.append(error)
        if len(deaths) == 3:
            broken.unlink()
            raise ValueError("is logged")

    broken.touch()
    with pytest.raises(PeerDied, match="exited with code 1 before its hello"):
        supervise([sys.executable, "-c", code])
    broken.unlink()
    with supervise([sys.executable, "-c", code], backoff=0, on_death=on_death) as peer:
        broken.touch()
        die(peer)
        logs = _Errors()
        with logs:
            peer.wait_started()
        assert logs.said == ["on_death raised"]
        assert peer.index.add(1, 2) == 3
        assert (len(deaths), peer.restarts) == (3, 1)
        assert "before its hello" in str(peer.last_death)


class _Errors:
    """Takes what is logged in its block, which the leak check of these tests would fail for."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __enter__(self) -> None:
        import logging

        self._logger = logging.getLogger("capnode_py.supervise")
        self._logger.addFilter(self._take)

    def __exit__(self, *exc_info: object) -> None:
        self._logger.removeFilter(self._take)

    def _take(self, record: Any) -> bool:
        if record.levelname == "ERROR":
            self.said.append(record.getMessage())
        return record.levelname != "ERROR"


def test_a_life_that_cannot_be_set_up_is_ended_and_tried_again():
    lives: list[Any] = []

    def on_start(life: Any) -> None:
        lives.append(life)
        if len(lives) == 2:
            raise ValueError("not today")

    with supervise(PLUGIN, backoff=0, on_start=on_start) as peer:
        die(peer)
        peer.wait_started()
        assert peer.index.add(1, 2) == 3
        assert [life.returncode for life in lives] == [-9, 0, None]
        assert str(peer.last_death) == "not today"


def test_a_time_limit_ends_the_wait_and_not_the_restart():
    with supervise(PLUGIN, backoff=60, max_backoff=60) as peer:
        die(peer)
        with pytest.raises(TimeoutError, match=r"no new life within 0\.05 s"):
            peer.wait_started(timeout=0.05)
        assert not peer.is_closed


def test_an_orderly_end_is_the_last_one():
    with supervise(PLUGIN, backoff=0) as peer:
        with pytest.raises(PeerDied) as caught:
            peer.index.leave_traces(0)
        assert type(caught.value) is PeerDied
        peer.wait_closed()
        assert peer.is_closed
        with pytest.raises(PeerDied):
            peer.index.add(1, 2)


def test_a_thread_in_the_background_starts_it_again_by_itself():
    again = threading.Event()

    def on_start(life: Any) -> None:
        if life.pid != first:
            again.set()

    first: Any = None
    with supervise(PLUGIN, backoff=0, on_start=on_start) as peer:
        first = peer.pid
        again.clear()
        peer.serve_background()
        os.kill(peer.pid or 0, signal.SIGKILL)
        assert again.wait(20)
        peer.wait_started()
        assert peer.submit(peer.index.add, 1, 2).result(20) == 3


def test_several_threads_wait_for_one_restart():
    with supervise(PLUGIN, backoff=0) as peer:
        die(peer)
        threads = [threading.Thread(target=peer.wait_started) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert peer.restarts == 1
        assert peer.index.add(1, 2) == 3


def test_it_can_be_closed_by_another_thread_while_it_waits():
    waiting = threading.Event()
    errors: list[BaseException] = []

    def wait() -> None:
        waiting.set()
        try:
            peer.wait_started()
        except capnode.PeerClosed as error:
            errors.append(error)

    peer = supervise(PLUGIN, backoff=60, max_backoff=60)
    die(peer)
    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    peer.close()
    thread.join(20)
    assert len(errors) == 1
    assert peer.restarts == 0


def test_it_can_be_closed_from_its_own_callbacks():
    peers: list[Any] = []

    def on_death(_error: Any) -> None:
        peers[0].close()

    peer = supervise(PLUGIN, on_death=on_death, limits=QUICK)
    peers.append(peer)
    die(peer)
    with pytest.raises(capnode.PeerClosed):
        peer.wait_started()
    peer.close()


def test_a_restart_cannot_be_waited_for_from_within():
    told: list[BaseException] = []

    def on_start(_life: Any) -> None:
        if peers:
            try:
                peers[0].wait_started()
            except RuntimeError as error:
                told.append(error)

    peers: list[Any] = []
    with supervise(PLUGIN, backoff=0, on_start=on_start) as peer:
        peers.append(peer)
        die(peer)
        peer.wait_started()
    assert "further down its stack" in str(told[0])


def test_what_is_wrong_is_refused_at_once():
    for wrong, error in (
        ({"restart": "sometimes"}, ValueError),
        ({"max_restarts": -1}, ValueError),
        ({"on_start": 1}, TypeError),
        ({"interface": 1}, TypeError),
    ):
        with pytest.raises(error, match=next(iter(wrong))):
            supervise(PLUGIN, **wrong)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = capnode.sync.nothing  # type: ignore[attr-defined]


def test_it_is_loaded_without_an_event_loop():
    code = (
        "import capnode_py, sys; capnode_py.sync.supervise;"
        "print({'asyncio', 'anyio'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"
