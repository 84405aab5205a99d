"""`spawn`: a child process, called over its stdio, and what it may do to its parent."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Limits
from capnode_py._messages import Hello
from capnode_py.codec.cbor import CborCodec

HELLO = CborCodec(Limits()).hello(Hello(versions=[1]))
CHILDREN = Path(__file__).parent / "children"
PLUGIN = [sys.executable, str(CHILDREN / "plugin.py")]
QUICK = Limits(hello_timeout=0.05, close_timeout=0.02)


# A child's start costs a fifth of a second, and on uvloop the same code of ours runs as on asyncio.
TWO_DRIVERS = pytest.mark.drivers("asyncio", "trio")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def _until_died(pid: int) -> None:
    """Wait for a process that is no child of ours. Gone, or a zombie that nobody reaps here."""
    while _lives(pid):
        await anyio.lowlevel.checkpoint()


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_a_child_is_called_and_calls_back(driver, tmp_path):
    progress: list[Any] = []

    def on_progress(done: int, total: int) -> None:
        progress.append((done, total))

    env = {"CAPNODE_TEST": "set"}
    async with capnode.spawn(PLUGIN, add_env=env, cwd=tmp_path) as peer:
        assert await peer.index.add(1, 2) == 3
        assert await peer.index.transform("beep", on_progress=on_progress) == "BEEP"
        assert progress == [(1, 2)]
        assert peer.pid == await peer.index.pid()
        assert peer.returncode is None
        assert await peer.index.getenv("CAPNODE_TEST") == "set"
        assert await peer.index.getenv("PATH") == os.environ["PATH"]
        assert await peer.index.cwd() == str(tmp_path)
        assert await peer.index.read_stdin() == ""
        assert await peer.index.interrupt() == "still here"
        with pytest.raises(LookupError, match="in the child") as caught:
            await peer.index.fail()
        note = "".join(caught.value.__notes__)
        assert "Raised in plugin.py" in note
        assert 'raise LookupError("in the child")' in note
        with pytest.raises(RuntimeError, match="claimed"):
            await peer.index.claim_again()
        stats = peer.stats()
    assert (stats.imports, stats.exports) <= (2, 2)
    assert peer.returncode == 0
    assert peer.nickname == "plugin.py"
    with pytest.raises(capnode.PeerClosed):
        await peer.index.add(1, 2)


async def test_nothing_that_a_child_prints_reaches_the_wire(driver, capsys):
    """D7."""
    async with capnode.spawn(PLUGIN) as peer:
        await peer.index.make_noise()
        assert await peer.index.add(1, 2) == 3
    out, err = capsys.readouterr()
    assert out == ""
    ways = ("print", "sys.stdout", "__stdout__", "os.write", "a subprocess", "C")
    for way in ways:
        assert f"by {way}\n" in err
    assert "at exit" in err


@TWO_DRIVERS
async def test_what_was_printed_before_serving_is_skipped(driver, capsys):
    buffered = {"PYTHONUNBUFFERED": ""}
    argv = [sys.executable, str(CHILDREN / "noisy.py"), "100"]
    async with capnode.spawn(argv, add_env=buffered) as peer:
        assert await peer.index.hello() == "hello"
    assert "printed at import" in capsys.readouterr().err


@pytest.mark.drivers("asyncio")
async def test_too_much_before_the_hello_is_refused_with_what_it_was(driver):
    """D7."""
    with pytest.raises(capnode.CapnodeError, match="raw at import") as caught:
        await capnode.spawn([sys.executable, CHILDREN / "noisy.py", "10000"])
    assert "print" in str(caught.value)


async def test_a_child_that_exits_fails_its_pending_calls_with_its_last_words(driver, capsys):
    outcomes: list[BaseException] = []

    async def pending(peer: capnode.Peer) -> None:
        try:
            await peer.index.wait()
        except capnode.PeerDied as error:
            outcomes.append(error)

    async with capnode.spawn(PLUGIN) as peer:
        async with anyio.create_task_group() as group:
            group.start_soon(pending, peer)
            group.start_soon(pending, peer)
            with pytest.raises(capnode.PeerDied, match="exited with code 3") as caught:
                await peer.index.leave_traces(3)
        died = caught.value
        assert isinstance(died, ConnectionError)
        assert (died.pid, died.returncode, died.signal) == (peer.pid, 3, None)
        assert died.command == PLUGIN
        assert died.stderr_tail.endswith("line 98\nline 99")
        assert "line 99" in "".join(died.__notes__)
        assert str(peer.pid) in str(died)
        assert len(outcomes) == 2
        assert len({id(died), *map(id, outcomes)}) == 3
        assert peer.returncode == 3
        with pytest.raises(capnode.PeerDied):
            await peer.index.add(1, 2)
    assert "line 0\n" in capsys.readouterr().err  # all of it was forwarded


@pytest.mark.drivers("asyncio")
async def test_a_killed_child_is_told_with_its_signal(driver):
    async with capnode.spawn(PLUGIN) as peer:
        with pytest.raises(capnode.PeerDied, match="was killed by SIGSEGV") as caught:
            await peer.index.kill("SIGSEGV")
        assert (caught.value.returncode, caught.value.signal) == (-signal.SIGSEGV, "SIGSEGV")


async def test_a_child_killed_from_outside_fails_its_calls(driver):
    """D1."""
    async with capnode.spawn(PLUGIN) as peer:
        promise = peer.index.wait()
        await peer.ping()
        assert peer.pid is not None
        os.kill(peer.pid, signal.SIGKILL)
        with pytest.raises(capnode.PeerDied, match="SIGKILL"):
            await promise


@TWO_DRIVERS
async def test_a_child_killed_in_mid_frame_has_died(driver):
    """D4, D1: it was killed, and did not break the protocol; that it was in mid-frame is a note."""
    code = (
        "import os, signal, sys\n"
        f"os.write(1, bytes.fromhex('{HELLO.hex()}'))\n"
        "os.read(0, 65536)\n"
        "os.write(1, bytes.fromhex('5864818301'))\n"  # the head of 100 bytes, and three of them
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    async with capnode.spawn(python(code)) as peer:
        outcomes: list[BaseException] = []

        async def outcome(promise: Any) -> None:
            try:
                await promise
            except capnode.PeerDied as error:
                outcomes.append(error)

        async with anyio.create_task_group() as group:
            promise = peer.index.one()
            for waited in (promise, promise.two(), peer.index.three):
                group.start_soon(outcome, waited)
        with pytest.raises(capnode.PeerDied):
            await peer.index.later()
    assert len({id(error) for error in outcomes}) == 3
    for error in outcomes:
        assert isinstance(error, capnode.PeerDied)
        assert error.signal == "SIGKILL"
        assert "mid-frame, after 5 of 102 bytes" in "".join(error.__notes__)


@TWO_DRIVERS
async def test_a_child_that_closes_its_stdout_is_told_apart(driver, soon_killed):
    async with capnode.spawn(PLUGIN) as peer:
        with pytest.raises(capnode.PeerLost, match="closed its stdout, and still runs"):
            await peer.index.close_stdout()


@TWO_DRIVERS
async def test_two_megabytes_of_stderr_do_not_deadlock(driver, capsys):
    size = 2 * 1024 * 1024
    async with capnode.spawn(PLUGIN) as peer:
        assert await peer.index.write_stderr(size) == size
    assert capsys.readouterr().err.count("x") == size - 1


@pytest.mark.parametrize("stderr", [None, "closed"])
@pytest.mark.drivers("asyncio")
async def test_a_parent_without_a_usable_stderr_still_spawns(driver, monkeypatch, stderr):
    replaced = io.StringIO()  # one without fileno()
    if stderr == "closed":
        replaced.close()
    monkeypatch.setattr(sys, "stderr", None if stderr is None else replaced)
    async with capnode.spawn(PLUGIN) as peer:
        assert await peer.index.write_stderr(10) == 10
        assert await peer.index.add(1, 2) == 3


@TWO_DRIVERS
async def test_what_a_child_has_started_does_not_hide_its_death_and_goes_with_it(driver):
    """It has inherited the child's stderr, at least."""
    async with capnode.spawn(PLUGIN) as peer:
        pid = await peer.index.start_grandchild()
        with pytest.raises(capnode.PeerDied, match="SIGKILL"):
            await peer.index.kill("SIGKILL")
    await _until_died(pid)


@TWO_DRIVERS
async def test_a_child_that_ignores_sigterm_and_end_of_input_is_ended(driver, soon_killed):
    async with capnode.spawn([sys.executable, CHILDREN / "stubborn.py"]) as peer:
        assert await peer.index.add(1, 2) == 3
    assert peer.returncode == -signal.SIGKILL


@TWO_DRIVERS
async def test_closing_twice_from_other_tasks_and_during_a_call(driver):
    peer = await capnode.spawn(PLUGIN, limits=Limits(close_timeout=0.05))
    outcomes: list[str] = []

    async def pending() -> None:
        try:
            await peer.index.wait()
        except capnode.CapnodeError as error:
            outcomes.append(type(error).__name__)

    async with anyio.create_task_group() as group:
        group.start_soon(pending)
        await peer.ping()
        group.start_soon(peer.aclose)
        group.start_soon(peer.aclose)
    await peer.aclose()
    assert outcomes == ["PeerClosed"]
    assert peer.returncode is not None


@pytest.mark.drivers("asyncio")
async def test_several_children_close_in_any_order(driver):
    peers: list[Any] = [None] * 3

    async def start(n: int) -> None:
        peers[n] = await capnode.spawn(PLUGIN)

    async with anyio.create_task_group() as group:
        for n in range(3):
            group.start_soon(start, n)
    for n in (1, 2, 0):
        assert await peers[n].index.add(n, 1) == n + 1
        await peers[n].aclose()
        assert peers[n].returncode == 0


# Starts that fail.


async def test_a_program_that_is_not_there(driver):
    with pytest.raises(FileNotFoundError) as caught:
        await capnode.spawn(["/no/such/program", "arg"])
    assert "spawn could not start /no/such/program arg" in "".join(caught.value.__notes__)
    with pytest.raises(PermissionError):
        await capnode.spawn([__file__])
    with pytest.raises(OSError, match="/no/such/folder"):
        await capnode.spawn(["true"], cwd="/no/such/folder")


@pytest.mark.parametrize("argv", ["python plugin.py", b"python plugin.py"], ids=["str", "bytes"])
def test_argv_as_one_string_teaches(argv):
    with pytest.raises(TypeError, match=r"write spawn\(\['python', 'plugin.py'\]\)"):
        _ = capnode.spawn(argv)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("python 'my plugin.py", r"write spawn\(\['python', \"'my\", 'plugin.py'\]\)"),
        (Path("my plugin.py"), r"write spawn\(\['my plugin.py'\]\)"),
        ([], "takes a program"),
        ([""], "takes a program"),
        (["true", 3], "3 is none: write '3'"),
        ([b"true"], "b'true' is none: write 'true'"),
        ([None], "of text, and None is none"),
        (None, "takes a list .*, not None"),
        (3, "takes a list .*, not 3"),
    ],
    ids=repr,
)
def test_argv_that_is_no_list_of_strings_teaches(argv, told):
    with pytest.raises((TypeError, ValueError), match=told):
        _ = capnode.spawn(argv)


async def test_a_program_that_ends_before_its_hello_says_why(driver):
    code = "import sys; sys.stderr.write('no config\\n'); sys.exit(5)"
    with pytest.raises(capnode.PeerDied, match="exited with code 5") as caught:
        await capnode.spawn(python(code))
    assert caught.value.returncode == 5
    assert caught.value.stderr_tail == "no config"
    assert "no config" in "".join(caught.value.__notes__)


@pytest.mark.drivers("asyncio")
async def test_a_program_with_a_syntax_error_says_so(driver):
    with pytest.raises(capnode.PeerDied, match="exited with code 1") as caught:
        await capnode.spawn(python("def"))
    assert "SyntaxError" in caught.value.stderr_tail


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["true"], "exited with code 0 before its hello"),
        (["echo", "usage: x"], "It wrote to its stdout, which is the wire:\nb'usage: x"),
        (["cat"], "no capnode peer, but an echo"),
        (["yes"], "not a capnode peer"),
    ],
    ids=["true", "echo", "cat", "yes"],
)
async def test_a_wrong_program_is_told_at_the_door(driver, soon_killed, argv, why):
    with pytest.raises(capnode.CapnodeError) as caught:
        await capnode.spawn(argv, limits=Limits(hello_timeout=5, close_timeout=0.05))
    told = "".join(traceback.format_exception(caught.value))
    assert why in told
    assert argv[0] in told


@TWO_DRIVERS
async def test_a_program_that_says_nothing_is_ended(driver, soon_killed):
    with pytest.raises(capnode.PeerLost, match=r"no hello within 0\.05 s"):
        await capnode.spawn(["sleep", "60"], limits=QUICK)


@pytest.mark.parametrize("turns", [0, 1, 5, 50])
async def test_a_cancelled_start_leaves_nothing(driver, soon_killed, turns):
    """Cancelled at the door, or a few turns of the loop later."""

    async def start() -> None:
        async with capnode.spawn(["sleep", "60"], limits=Limits(close_timeout=0.02)):
            pytest.fail("it said hello?")

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("first", ["_watch", "hold"])
def test_a_child_that_is_busy_goes_with_the_loop_that_was_left(tmp_path, first, soon_killed):
    """`asyncio.run` cancels what is still running, the task that watches the child too.

    It does so in any order: here one of them is `first`.
    """
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import signal, capnode_py as capnode\n"
        "async def block(started):\n"
        "    await started()\n"
        "    while True:\n"
        "        signal.pause()\n"
        "capnode.serve_stdio({'block': block})\n"
    )
    pids: list[int] = []

    async def hold(started: asyncio.Event) -> None:
        async with capnode.spawn([sys.executable, str(plugin)]) as peer:
            pids.append(peer.pid or 0)
            await peer.index.block(started.set)

    async def main() -> None:
        started = asyncio.Event()
        holding = asyncio.create_task(hold(started))
        await started.wait()
        assert not holding.done()

    with asyncio.Runner() as runner:
        runner.run(main())
        left = asyncio.all_tasks(runner.get_loop())
        [task] = [task for task in left if first in repr(task.get_coro())]
        for one in [task, *left - {task}]:
            one.cancel()
        runner.run(asyncio.wait(left))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.mark.parametrize("kind", ["asyncio", "uvloop", "trio"])
def test_a_child_whose_peer_nobody_has_closed_goes_with_the_loop(kind):
    """And what it has open here. A warning names the line that started it."""
    loop = pytest.importorskip(kind)

    async def forget() -> int:
        sites.append(sys._getframe().f_lineno + 1)
        peer = await capnode.spawn(PLUGIN, limits=Limits(close_timeout=0.05))
        await peer.ping()
        return peer.pid or 0

    def run(main: Callable[[], Any]) -> Any:
        return loop.run(main) if kind == "trio" else loop.run(main())

    sites: list[int] = []
    run(anyio.lowlevel.checkpoint)  # what the first loop opens stays
    before = set(os.listdir("/proc/self/fd"))
    told = r"plugin.py \(pid \d+\) was never closed, and its event loop has ended: write async with"
    with pytest.warns(ResourceWarning, match=told) as warned:
        pid = run(forget)
    assert [(one.filename, one.lineno) for one in warned] == [(__file__, sites[0])]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert set(os.listdir("/proc/self/fd")) == before
