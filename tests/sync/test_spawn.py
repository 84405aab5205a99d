"""`capnode.sync.spawn`: a child, Ctrl-C, time limits, death, forks, and threads that share it."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py.sync import SpawnedPeer

pytestmark = pytest.mark.usefixtures("nothing_left")
PLUGIN = [sys.executable, str(Path(__file__).parent / "plugin.py")]


@pytest.fixture(params=["sync", "loop"])
def peer(request: pytest.FixtureRequest, nothing_left: None) -> Iterator[SpawnedPeer]:
    """A child that blocks, or runs a loop."""
    with capnode.sync.spawn([*PLUGIN, request.param]) as peer:
        yield peer
    assert peer.returncode == 0


@pytest.fixture
def looped(nothing_left: None) -> Iterator[SpawnedPeer]:
    with capnode.sync.spawn([*PLUGIN, "loop"]) as peer:
        yield peer
    assert peer.returncode == 0


def test_a_child_is_called_and_calls_back(peer):
    assert peer.index.add(1, 2) == 3
    assert peer.index.call(lambda n: n * n, 4) == [0, 1, 4, 9]
    assert peer.returncode is None


def test_calls_nest_fifty_deep(peer):
    def again(far_nest: Any, depth: int) -> int:
        result: int = far_nest(again, depth)
        return result

    assert peer.index.nest(again, 50) == 50


def test_an_error_crosses_and_calls_go_on_where_no_descriptor_is_left(tmp_path):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        """
import os, resource, capnode_py

class Plugin(capnode_py.Target):
    def exhaust(self):
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
        os.open(os.devnull, os.O_RDONLY)

    def add(self, a, b):
        return a + b

capnode_py.sync.serve_stdio(Plugin())
"""
    )
    with capnode.sync.spawn([sys.executable, str(plugin)]) as peer:
        with pytest.raises(OSError, match="Too many open files") as raised:
            peer.index.exhaust()
        assert raised.value.errno == errno.EMFILE
        peer.notify(peer.index.exhaust)  # which is logged there
        assert peer.index.add(1, 2) == 3
    assert peer.returncode == 0


def test_what_a_child_says_on_stderr_is_forwarded_and_never_blocks_it(peer, monkeypatch):
    heard = io.StringIO()  # as in a notebook: it has no fileno
    monkeypatch.setattr(sys, "stderr", heard)
    assert peer.index.write_stderr(2_000_000) == 2_000_000
    peer.ping()
    while len(heard.getvalue()) < 2_000_000:
        peer.ping()


@pytest.mark.parametrize("kind", ["sync", "loop"])
def test_a_child_that_dies_fails_the_call_with_its_last_words(kind, capsys):
    with capnode.sync.spawn([*PLUGIN, kind]) as peer:
        with pytest.raises(capnode.PeerDied, match="during die") as caught:
            peer.index.die(3)
        assert (caught.value.returncode, caught.value.pid) == (3, peer.pid)
        assert "last words" in caught.value.stderr_tail
        with pytest.raises(capnode.PeerDied):
            peer.index.add(1, 2)
    assert peer.returncode == 3


def test_a_start_that_fails_leaves_nothing():
    with pytest.raises(FileNotFoundError):
        capnode.sync.spawn(["/no/such/program"])
    with pytest.raises(capnode.PeerDied, match="before its hello"):
        capnode.sync.spawn([sys.executable, "-c", "raise SystemExit(4)"])
    with pytest.raises(TypeError, match="takes a list"):
        capnode.sync.spawn("python plugin.py")


FORGETS = """
import sys, capnode_py as capnode

def start(n):
    argv = [sys.executable, sys.argv[1], "sync"]
    return capnode.sync.spawn(argv, stderr="capture", nickname=f"number {n}")

forgotten, closed, died = map(start, range(3))
closed.close()
try:
    died.index.die(3)
except capnode.PeerDied:
    pass
"""


def test_a_child_whose_peer_nobody_has_closed_is_told_when_the_program_ends(tmp_path):
    script = tmp_path / "forgets.py"
    script.write_text(FORGETS)
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", script, PLUGIN[1]],
        capture_output=True,
        text=True,
        check=True,
    )
    warning, line = done.stderr.splitlines()
    assert warning.startswith(f"{script}:6: ResourceWarning: the child {shlex.join(PLUGIN)} sync")
    assert "was never closed, and the program ends: write with capnode.sync.spawn" in warning
    assert "return capnode.sync.spawn(" in line


def test_a_time_limit_withdraws_the_call_and_leaves_a_usable_peer(looped):
    started: list[int] = []

    def start() -> None:
        started.append(1)

    with pytest.raises(TimeoutError):
        looped.with_options(looped.index.hang_after, timeout=0.1)(start)
    with looped.pipeline() as p:
        promise = p.index.hang_after(start)
    with pytest.raises(TimeoutError, match="no answer within"):
        looped.wait(promise, timeout=0.1)
    while looped.index.how_many_cancelled() < len(started):
        pass
    assert looped.index.add(1, 2) == 3


def test_an_interrupt_while_waiting_withdraws_the_call_and_leaves_a_usable_peer(looped):
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        looped.index.hang_after(interrupt)
    assert looped.index.add(1, 2) == 3

    def interrupted_from_outside() -> None:
        looped.notify(looped.index.interrupt_parent)
        looped.index.hang()

    with pytest.raises(KeyboardInterrupt):
        interrupted_from_outside()
    assert looped.index.add(1, 2) == 3


def test_the_other_threads_go_on_when_the_one_that_reads_leaves(peer):
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for i in range(100):
                assert peer.index.add(n, i) == n + i
                assert peer.index.call(lambda k: k + n, 2) == [n, n + 1]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_handlers_of_one_connection_run_one_at_a_time(looped):
    inside, together = [0], [0]

    def handler(_n: int) -> None:
        inside[0] += 1
        together[0] = max(together[0], inside[0])
        threading.Event().wait(0.0001)
        inside[0] -= 1

    futures = [looped.submit(looped.index.call, handler, 5) for _ in range(4)]
    looped.index.call(handler, 5)
    for future in futures:
        future.result(10)
    assert together == [1]


def test_a_thread_that_is_killed_while_it_reads_hands_over(looped):
    started, ended = threading.Event(), threading.Event()

    class Killed(Exception):
        pass

    def wait() -> None:
        try:
            looped.index.hang_after(started.set)
        except Killed:
            ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    started.wait(10)
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Killed)
    )
    while not ended.is_set():  # what is read wakes its poll
        assert looped.index.add(1, 2) == 3
    thread.join()
    assert looped.index.add(1, 2) == 3


def test_a_future_comes_to_its_result_by_itself_and_can_be_cancelled(looped):
    assert looped.submit(looped.index.add, 1, 2).result(10) == 3
    started = threading.Event()
    future = looped.submit(looped.index.hang_after, started.set)
    assert started.wait(10)
    assert future.cancel()
    while looped.index.how_many_cancelled() < 1:
        pass
    with pytest.raises(TypeError, match="add"):
        looped.submit(looped.index.add, 1).result(10)


def test_stubs_are_collected_in_any_thread(looped):
    stubs = [looped.index.relay(lambda: looped.index) for _ in range(3)]
    thread = threading.Thread(target=stubs.clear)
    thread.start()
    thread.join()
    looped.ping()
    assert looped.index.add(1, 2) == 3


def test_a_fork_is_refused_with_the_reason_and_the_parent_goes_on(peer):
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            peer.index.add(1, 2)
        except capnode.CapnodeError as error:
            peer.close()  # does nothing
            with capnode.sync.pair(far_index={"one": lambda: 1}) as (near, _far):
                os.write(write, f"{near.index.one()} {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    with open(read) as said:
        assert "1 this connection belongs to the process that" in said.read()
    assert status == 0
    assert peer.index.add(1, 2) == 3


def test_a_callback_that_raises_or_calls_after_the_close_harms_nobody(looped):
    def fail(_n: int) -> None:
        raise LookupError("in the callback")

    with pytest.raises(LookupError, match="in the callback"):
        looped.index.call(fail, 1)

    def close(_n: int) -> Any:
        looped.close()
        return looped.index.add(1, 2)

    with pytest.raises(capnode.PeerClosed):
        looped.index.call(close, 1)


def test_in_a_running_loop_it_blocks_as_a_notebook_cell_wants():
    import asyncio

    async def cell() -> int:
        with capnode.sync.pair(far_index={"add": lambda a, b: a + b}) as (near, _far):
            result: int = near.index.add(1, 2)
            return result

    assert asyncio.run(cell()) == 3


def test_who_connects_is_served(tmp_path):
    url = f"unix:{tmp_path}/socket"
    with capnode.sync.listen(url, index={"add": lambda a, b: a + b}) as listener:
        with capnode.sync.connect(listener.url) as one, capnode.sync.connect(url) as other:
            assert (one.index.add(1, 2), other.index.add(3, 4)) == (3, 7)
            assert len(listener.peers) == 2
        listener.serve_background()
        with capnode.sync.connect(url) as one:
            assert one.index.add(1, 2) == 3
    assert not os.path.exists(f"{tmp_path}/socket")
