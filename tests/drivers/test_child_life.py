"""What a child process may do to its parent, and the other way round, on every driver.

Its start is in `test_spawn.py`, its own side in `test_stdio.py`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import venv
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import cbor2
import pytest

import capnode_py as capnode
from capnode_py import Limits
from capnode_py._messages import Hello
from capnode_py._start import SpawnOptions, recipe
from capnode_py.codec.cbor import CborCodec
from capnode_py.driver._locked import deadline

CHILDREN = Path(__file__).parent / "children"
LIFE = [sys.executable, str(CHILDREN / "life.py")]
PACKAGE = Path(capnode.__file__).parent
HELLO = CborCodec(Limits()).hello(Hello(versions=[1]))

# Ten times what is aimed at, in seconds: `benchmarks.child` holds the figures.
DEATH = 1.0  # from the end of a child to the error of its calls
CLOSE = 1.5  # of a child that serves

# A child's start costs a tenth of a second, and on uvloop the same code of ours runs as on asyncio.
EACH_KIND = pytest.mark.drivers("asyncio", "trio", "blocking")


def lives(pid: int) -> bool:
    """Is there such a process, no child of ours? A zombie that nobody reaps here is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def at_most(seconds: float, driver: str) -> contextlib.AbstractContextManager[Any]:
    """What is waited for inside comes in that time."""
    return deadline(seconds) if driver == "blocking" else anyio.fail_after(seconds)


def until(holds: Any, seconds: float = 10) -> None:
    """Wait for what another process does."""
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, "it did not happen"
        os.sched_yield()


# Death.


@pytest.mark.parametrize(
    ("how", "told", "returncode", "name"),
    [
        ("exit", "exited with code 3", 3, None),
        ("SIGKILL", "was killed by SIGKILL", -9, "SIGKILL"),
        ("SIGSEGV", "was killed by SIGSEGV", -11, "SIGSEGV"),
        ("SIGTERM", "was killed by SIGTERM", -15, "SIGTERM"),
    ],
)
@EACH_KIND
async def test_a_death_fails_the_call_with_all_that_is_known(
    driver, start, how, told, returncode, name
):
    argv = [*LIFE, "loop"]
    async with start(argv, stderr="capture") as peer:
        pending = peer.index.wait()
        with at_most(DEATH, driver), pytest.raises(capnode.PeerDied, match=told) as caught:
            await peer.index.die(how)
        died = caught.value
        assert str(died).endswith("during die")
        assert (died.pid, died.returncode, died.signal) == (peer.pid, returncode, name)
        assert (died.command, died.call) == (argv, "die")
        assert died.stderr_tail.endswith("last words")
        with pytest.raises(capnode.PeerDied, match="during wait"):
            await pending
        with pytest.raises(capnode.PeerDied):
            await peer.index.add(1, 2)
    assert peer.returncode == returncode


@pytest.mark.drivers("asyncio")
async def test_an_exit_in_a_handler_is_the_answer_and_not_the_end(driver, start):
    """`sys.exit` in a handler is the caller's error; the child goes on."""
    async with start([*LIFE, "loop"], stderr="capture") as peer:
        with pytest.raises(capnode.RemoteError, match="exited"):
            await peer.index.die("system-exit")
        assert await peer.index.add(1, 2) == 3


@EACH_KIND
async def test_an_exception_that_ends_the_loop_is_a_death_as_well(driver, start):
    """Of a handler's, KeyboardInterrupt alone does that."""
    async with start([*LIFE, "loop"], stderr="capture") as peer:
        pending = peer.index.wait()
        with pytest.raises(capnode.CapnodeError):
            await peer.index.die("interrupt")
        with pytest.raises(capnode.CapnodeError):  # or it still says that it was cancelled
            await pending
        await peer.wait_closed()
        with pytest.raises(capnode.PeerDied) as caught:
            await peer.index.add(1, 2)
        assert caught.value.stderr_tail.endswith("KeyboardInterrupt")


@EACH_KIND
async def test_a_death_is_seen_though_a_grandchild_holds_the_wire(driver, start):
    """In a session of its own, so that it outlives the child, with all of its descriptors."""
    async with start([*LIFE, "loop"], stderr="capture") as peer:
        apart = await peer.index.start_grandchild(True)
        try:
            with pytest.raises(capnode.PeerDied, match="SIGKILL") as caught:
                await peer.index.die("SIGKILL")
            assert caught.value.stderr_tail.endswith("last words")
        finally:
            os.kill(apart, signal.SIGKILL)
    until(lambda: not lives(apart))


@EACH_KIND
async def test_closing_does_not_wait_for_a_pipe_that_a_grandchild_holds(driver, start):
    apart = 0
    try:
        async with start([*LIFE, "loop"]) as peer:
            apart = await peer.index.start_grandchild(True)
        assert peer.returncode == 0
        assert lives(apart)
    finally:
        os.kill(apart, signal.SIGKILL)


@EACH_KIND
async def test_what_a_child_has_started_goes_with_it(driver, start):
    async with start([*LIFE, "loop"]) as peer:
        pids = [await peer.index.start_grandchild(False), await peer.index.start_sleeper()]
        assert all(map(lives, pids))
    until(lambda: not any(map(lives, pids)))


@EACH_KIND
async def test_a_stopped_child_leaves_its_calls_pending_and_timeouts_and_pings_work(driver, start):
    async with start([*LIFE, "loop"]) as peer:
        assert await peer.index.add(1, 2) == 3
        os.kill(peer.pid, signal.SIGSTOP)
        pending = peer.index.add(2, 3)
        with pytest.raises(TimeoutError):
            await peer.with_options(peer.index.add, timeout=0.1)(3, 4)
        assert not peer.is_closed
        assert peer.returncode is None
        os.kill(peer.pid, signal.SIGCONT)
        assert await pending == 5
        await peer.ping()


@pytest.mark.drivers("asyncio", "trio")
async def test_a_ping_of_a_stopped_child_waits_and_can_be_given_up(driver, start):
    async with start([*LIFE, "loop"]) as peer:
        os.kill(peer.pid, signal.SIGSTOP)
        with anyio.move_on_after(0.1) as scope:
            await peer.ping()
        assert scope.cancelled_caught
        os.kill(peer.pid, signal.SIGCONT)
        await peer.ping()


@EACH_KIND
async def test_a_stopped_child_is_ended_by_the_close(driver, start, soon_terminated):
    """SIGTERM alone would wait for a SIGCONT."""
    peer = await start([*LIFE, "loop"], limits=Limits(close_timeout=0.05))
    os.kill(peer.pid, signal.SIGSTOP)
    await peer.aclose()
    assert peer.returncode == -signal.SIGTERM


@pytest.mark.drivers("asyncio", "trio")
async def test_a_ping_is_answered_below_busy_handlers_and_nobody_sends_one_unasked(
    driver, start, soon_terminated
):
    async with start([*LIFE, "loop"]) as peer:
        busy = [peer.index.wait(), peer.index.wait_stubbornly(), peer.index.block_in_thread()]
        await peer.ping()
        assert not any(promise is None for promise in busy)
        sent = peer.stats().messages_sent
        assert sent == 4
    assert peer.returncode is not None


@EACH_KIND
async def test_a_child_that_blocks_its_loop_does_not_make_the_close_hang(
    driver, start, soon_terminated
):
    async with start([*LIFE, "loop"], limits=Limits(close_timeout=0.05)) as peer:
        blocked = peer.index.block(60)
        peer.notify(peer.index.add, 1, 2)
    assert peer.returncode == -signal.SIGTERM
    with pytest.raises(capnode.PeerClosed):
        await blocked


@EACH_KIND
async def test_a_child_that_writes_without_end_is_read_while_it_is_seen_out(
    driver, start, soon_terminated
):
    """One that is stuck in a write would not exit by itself: here, when SIGTERM asks it to."""
    code = (
        "import os, signal, sys, threading\n"
        "def end(*_):\n"
        "    os.write(1, bytes(4_000_000))\n"
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"os.write(1, bytes.fromhex('{HELLO.hex()}'))\n"
        "threading.Event().wait()\n"
    )
    argv = [sys.executable, "-c", code]
    async with start(argv, limits=Limits(close_timeout=0.05)) as peer:
        assert peer.info is not None
    assert peer.returncode == 7


@EACH_KIND
async def test_a_healthy_child_is_closed_at_once(driver, start):
    peer = await start([*LIFE, "loop"])
    assert await peer.index.add(1, 2) == 3
    with at_most(CLOSE, driver):
        await peer.aclose()
    assert peer.returncode == 0


@EACH_KIND
async def test_what_was_sent_before_the_close_arrives(driver, start):
    async with start([*LIFE, "loop"], stderr="capture") as peer:
        peer.notify(peer.index.say, "x" * 100_000, "the last word")
    assert peer.stderr_tail.endswith("\nthe last word")


# Its stderr.


@EACH_KIND
async def test_stderr_goes_to_sys_stderr_by_default(driver, start, monkeypatch):
    heard = io.StringIO()  # as in a notebook: it has no fileno()
    monkeypatch.setattr(sys, "stderr", heard)
    async with start([*LIFE, "loop"]) as peer:
        await peer.index.say("one", "two")
    assert heard.getvalue() == "one\ntwo\n"
    assert peer.stderr_tail == "one\ntwo"


@EACH_KIND
async def test_stderr_can_be_captured(driver, start, capfd):
    async with start([*LIFE, "loop"], stderr="capture") as peer:
        await peer.index.say(*map(str, range(30)))
    assert peer.stderr_tail == "\n".join(map(str, range(10, 30)))
    assert capfd.readouterr() == ("", "")


@EACH_KIND
async def test_stderr_can_be_inherited(driver, start, capfd):
    async with start([*LIFE, "loop"], stderr="inherit") as peer:
        await peer.index.say("one")
        with pytest.raises(capnode.PeerDied, match="exited with code 3") as caught:
            await peer.index.die("exit")
    assert capfd.readouterr().err == "one\nlast words\n"
    assert caught.value.stderr_tail == peer.stderr_tail == ""


@EACH_KIND
async def test_stderr_can_be_logged(driver, start, caplog, capfd):
    with caplog.at_level(logging.INFO, "capnode_py.child"):
        async with start([*LIFE, "loop"], stderr="log", nickname="Ann") as peer:
            await peer.index.say("one", "50 % two")
    records = [record for record in caplog.records if record.name == "capnode_py.child"]
    assert [record.getMessage() for record in records] == ["one", "50 % two"]
    assert {record.__dict__["peer"] for record in records} == {"Ann"}
    assert capfd.readouterr().err == ""


@EACH_KIND
async def test_stderr_can_be_told_line_by_line_and_what_the_function_raises_is_logged(
    driver, start, caplog
):
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        if line == "bad":
            raise LookupError(line)

    async with start([*LIFE, "loop"], stderr=hear) as peer:
        await peer.index.say("one")
        await peer.index.say("bad")
        await peer.index.say_on(2, "no end of line")
    assert lines == ["one", "bad", "no end of line"]
    assert "the function that was given as stderr= raised" in caplog.text


@pytest.mark.parametrize("stderr", ["forward", "log"])
@EACH_KIND
async def test_a_stderr_or_a_logging_of_ours_that_raises_does_not_stop_the_reading(
    driver, start, monkeypatch, caplog, stderr
):
    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise LookupError("broken")

    def refuse(_record: logging.LogRecord) -> bool:
        raise LookupError("broken")

    heard = logging.getLogger("capnode_py.child")
    if stderr == "forward":
        monkeypatch.setattr(sys, "stderr", Broken())
    else:
        monkeypatch.setattr(heard, "filters", [refuse])
    with caplog.at_level(logging.INFO, "capnode_py"):
        async with start([*LIFE, "loop"], stderr=stderr) as peer:
            for _ in range(3):
                await peer.index.say("x" * 200_000)  # more than a pipe holds
            await peer.index.say("the end")
    assert peer.stderr_tail.endswith("the end")
    assert "LookupError: broken" in caplog.text


@pytest.mark.parametrize("stderr", ["devnull", None, 2])
def test_a_wrong_stderr_teaches(stderr):
    with pytest.raises(ValueError, match="'forward', 'inherit', 'log', 'capture', or a function"):
        _ = capnode.spawn(["true"], stderr=stderr)


def test_an_async_function_for_stderr_is_refused():
    async def hear(line: str) -> None: ...

    with pytest.raises(TypeError, match="a plain function of a line"):
        _ = capnode.spawn(["true"], stderr=hear)


# What it is started with.


@EACH_KIND
async def test_the_environment_is_ours_or_given_and_can_be_added_to(driver, start):
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "A": "1"}
    async with start([*LIFE, "loop"], env=given, add_env={"A": "2", "B": "3"}) as peer:
        seen = await peer.index.environment()
    assert {name: seen.get(name) for name in given} == {**given, "A": "2"}
    assert seen["B"] == "3"
    assert not set(seen) - {*given, "B", "LC_CTYPE"}
    async with start([*LIFE, "loop"], add_env={"B": "3"}) as peer:
        seen = await peer.index.environment()
    assert {**os.environ, "B": "3"}.items() <= seen.items()


@pytest.mark.drivers("asyncio", "trio")
async def test_a_supervised_child_takes_the_same_options(driver):
    lines: list[str] = []
    options: dict[str, Any] = {"application": "shop", "channel": "pipe", "add_env": {"B": "3"}}
    argv = [*LIFE, "loop", "application=shop"]
    async with capnode.supervise(argv, stderr=lines.append, **options) as peer:
        await peer.index.say("one")
        assert (await peer.index.environment())["B"] == "3"
        with pytest.raises(capnode.PeerRestarted):
            await peer.index.die("exit")
        await peer.wait_started()
        assert peer.application_version == 1
    assert lines == ["one", "last words"]


@EACH_KIND
async def test_the_logs_of_a_child_are_asked_for_by_any_parent(driver, start, caplog):
    with caplog.at_level(logging.INFO):
        async with start([*LIFE, "loop"], logs=True, nickname="Ann") as peer:
            await peer.index.log("from the child")
            await peer.ping()
    records = [record for record in caplog.records if record.name == "life"]
    assert [record.getMessage() for record in records] == ["from the child"]
    assert records[0].__dict__["peer"] == "Ann"


@pytest.mark.parametrize("name", ["env", "add_env"])
@pytest.mark.parametrize("value", [["A=1"], {"A": 1}, {1: "A"}])
def test_an_environment_that_is_none_teaches(name, value):
    with pytest.raises(TypeError, match=rf"^{name}= takes .*strings"):
        _ = capnode.spawn(["true"], **{name: value})


@pytest.mark.parametrize("channel", ["stdio", "pipe", "fd"])
@pytest.mark.parametrize("serves", ["loop", "blocking", "own"])
@EACH_KIND
async def test_every_channel_carries_a_child_of_any_kind(driver, start, channel, serves):
    async with start([*LIFE, serves], channel=channel) as peer:
        assert await peer.index.add(1, 2) == 3
        assert "CAPNODE_FD" not in await peer.index.environment()
    assert peer.returncode == 0


@EACH_KIND
async def test_a_private_channel_leaves_a_child_its_stdio(driver, start, capfd):
    async with start([*LIFE, "loop"], channel="fd") as peer:
        await peer.index.say_on(1, "on stdout\n")
        assert await peer.index.add(1, 2) == 3
        # What it starts gets neither the wire nor the word of it.
        sleeper = await peer.index.start_sleeper()
        links = os.listdir(f"/proc/{sleeper}/fd")
        assert set(links) <= {"0", "1", "2"}
    assert capfd.readouterr().out == "on stdout\n"


@EACH_KIND
async def test_a_death_under_a_dialect_without_hello_is_told_as_well(driver, start):
    argv = [sys.executable, "-c", "raise SystemExit(4)"]
    async with start(argv, dialect="capnweb") as peer:
        with pytest.raises(capnode.PeerDied, match=r"exited with code 4, during add$"):
            await peer.index.add(1, 2)


@EACH_KIND
async def test_elsewhere_than_on_linux_spawn_says_so(driver, start, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(NotImplementedError, match="on Linux only"):
        await start(LIFE)


def test_the_options_that_doors_hand_on_are_those_of_spawn():
    given = inspect.signature(capnode.spawn).parameters
    assert set(SpawnOptions.__annotations__) == set(given) - {"argv", "interface"}
    assert set(inspect.signature(recipe).parameters) == set(given) - {"interface"}


@pytest.mark.parametrize("closed", ["", "0", "1", "2", "01", "012"])
@pytest.mark.parametrize("channel", ["stdio", "pipe", "fd"])
def test_a_parent_whose_standard_descriptors_are_closed_spawns_as_well(tmp_path, channel, closed):
    """A daemon. What the parent or the child opens next would get their numbers."""
    code = (
        "import os, capnode_py as capnode\n"
        f"[os.close(int(fd)) for fd in {closed!r}]\n"
        "from capnode_py import _child\n"
        "_child._END_WAIT = 10\n"  # however busy this machine is, as in all tests
        f"with capnode.sync.spawn({[*LIFE, 'loop']!r}, channel={channel!r}) as peer:\n"
        "    result = peer.index.add(1, 2)\n"
        f"open({str(tmp_path / 'out')!r}, 'w').write(f'{{result}} {{peer.returncode}}')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20, capture_output=True)
    assert (tmp_path / "out").read_text() == "3 0"


@pytest.mark.parametrize("channel", ["tcp", None, ["fd"]])
def test_a_wrong_channel_teaches(channel):
    with pytest.raises(ValueError, match=r"channel=.*: one of 'stdio', 'pipe', 'fd'"):
        _ = capnode.spawn(["true"], channel=channel)


@pytest.mark.parametrize("door", ["spawn", "supervise"])
def test_an_unknown_option_is_told_with_the_name_of_the_door(door):
    for module in (capnode, capnode.sync):
        with pytest.raises(TypeError, match=r"^(spawn|supervise)\(\) .*argument 'shell'"):
            getattr(module, door)(["true"], shell=True)


# Applications and versions.


@pytest.mark.parametrize("serves", ["loop", "blocking"])
@EACH_KIND
async def test_the_highest_version_that_both_name_is_agreed_on(driver, start, serves):
    argv = [*LIFE, serves, "application=shop", "versions=1,3,4"]
    async with start(argv, application="shop", versions=[2, 3, 1]) as peer:
        assert peer.application_version == 3
        assert await peer.index.version() == 3
        assert peer.info.application == "shop"
        assert list(peer.info.application_versions) == [1, 3, 4]


SHOP, BANK = "'shop' in the versions [1]", "'bank' in the versions [1, 2]"
MISMATCHES: dict[str, tuple[list[str], dict[str, Any], str, str]] = {
    "versions": (
        ["application=shop", "versions=1,2"],
        {"application": "shop", "versions": [3]},
        "no common version of the application 'shop': this side has [3], the other [1, 2]",
        "no common version of the application 'shop': this side has [1, 2], the other [3]",
    ),
    "application": (
        ["application=shop"],
        {"application": "bank", "versions": [1, 2]},
        f"the other end is of another application, {SHOP}; this side is of {BANK}",
        f"the other end is of another application, {BANK}; this side is of {SHOP}",
    ),
    "child names none": (
        [],
        {"application": "bank", "versions": [1, 2]},
        (
            f"the other end, 'life.py', names no application, and this side is of {BANK}: it is "
            "another program, or its door was not given application='bank' and versions="
        ),
        (
            f"the other end speaks only to its own application, {BANK}: if "
            "this program is part of it, give this door application='bank' and versions="
        ),
    ),
    "parent names none": (
        ["application=shop"],
        {},
        f"the other end speaks only to its own application, {SHOP}: if this program is part",
        f"names no application, and this side is of {SHOP}",
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
@EACH_KIND
async def test_a_mismatch_names_both_lists_on_both_sides(driver, start, case):
    arguments, options, here, there = MISMATCHES[case]
    lines: list[str] = []
    with pytest.raises(capnode.RemoteProtocolError) as caught:
        await start([*LIFE, "loop", *arguments], stderr=lines.append, **options)
    assert here in str(caught.value)
    assert there in "\n".join(lines)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"versions": [1]}, "give its name as well"),
        ({"application": "a", "dialect": "capnweb"}, "does not have"),
        ({"application": 3}, "takes a name"),
        ({"application": "a\nb"}, "printable"),
        ({"application": "a" * 101}, "100"),
        ({"application": "a", "versions": "12"}, "takes a list"),
        ({"application": "a", "versions": 1}, "takes a list"),
        ({"application": "a", "versions": ["1"]}, "whole numbers"),
        ({"application": "a", "versions": [True]}, "whole numbers"),
    ],
)
def test_wrong_applications_and_versions_teach(options, told):
    with pytest.raises((TypeError, ValueError), match=told):
        _ = capnode.spawn(["true"], **options)


@pytest.mark.loop
async def test_every_door_agrees_on_versions(driver, tmp_path):
    shop: dict[str, Any] = {"application": "shop", "versions": [1, 2]}
    async with (
        capnode.listen(f"unix:{tmp_path}/s", index={"a": 1}, **shop) as listener,
        capnode.connect(listener.url, application="shop", versions=[2, 3]) as peer,
    ):
        assert peer.application_version == 2
        (far,) = listener.peers
        await far.ping()
        assert far.application_version == 2
        with pytest.raises(capnode.RemoteProtocolError, match=r"\[3\], the other \[1, 2\]"):
            await capnode.connect(listener.url, application="shop", versions=[3])


# A child elsewhere.


ELSEWHERE = """\
#!/bin/sh
# Stands for ssh, and for docker run -i: what it runs is no member of our group, and has pipes and
# nothing else, not even our environment. Its exit code is handed on.
place=$(mktemp -d "$0.XXXXXX")
mkfifo "$place/stdin"
exec 3<&0
cat <&3 >"$place/stdin" &
carrier=$!
{
    setsid env -i PATH="$PATH" "$@" <"$place/stdin" 3<&-
    echo $? >"$place/code"
} | cat
kill $carrier
exit $(cat "$place/code")
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> list[str]:
    """A wrapper, as the first part of an argv."""
    script = tmp_path / "there"
    script.write_text(ELSEWHERE)
    script.chmod(0o755)
    return [str(script)]


@pytest.fixture(scope="module")
def foreign_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that shares nothing of our Python environment, but has the package."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "capnode_py").symlink_to(PACKAGE)
    needed = Path(cbor2.__file__).parent
    for part in needed.parent.glob("*cbor2*"):
        (site / part.name).symlink_to(part)
    return str(folder / "bin" / "python")


@EACH_KIND
async def test_a_child_elsewhere_behind_a_wrapper(driver, start, elsewhere, foreign_python):
    script = str(CHILDREN / "life.py")
    async with start([*elsewhere, foreign_python, script, "loop"]) as peer:
        assert await peer.index.add(1, 2) == 3
        seen = await peer.index.environment()
        assert set(seen) <= {"PATH", "LC_CTYPE", "PWD", "SHLVL", "_"}
        far = await peer.index.pid()
        assert far != peer.pid
        assert os.getpgid(far) != peer.pid
    assert peer.returncode == 0
    until(lambda: not lives(far))


@EACH_KIND
async def test_a_child_elsewhere_goes_when_its_wrapper_is_killed(driver, start, elsewhere):
    argv = ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", *LIFE, "loop"]
    async with start([*elsewhere, *argv]) as peer:
        far = await peer.index.pid()
        pending = peer.index.wait()
        await peer.ping()
        os.kill(peer.pid, signal.SIGKILL)
        with pytest.raises(capnode.PeerDied, match="SIGKILL"):
            await pending
    until(lambda: not lives(far))


@EACH_KIND
async def test_a_program_that_is_not_found_elsewhere_is_told(driver, start, elsewhere):
    with pytest.raises(capnode.PeerDied) as caught:
        await start([*elsewhere, "no-such-plugin"])
    told = "".join(traceback.format_exception(caught.value))
    assert "exited with code 127 before its hello" in told
    assert "no-such-plugin" in caught.value.stderr_tail


@pytest.mark.drivers("asyncio")
async def test_what_a_shell_says_of_a_missing_program_is_explained(driver, start):
    with pytest.raises(capnode.PeerDied, match=r"code 127 .*finds no such program"):
        await start(["sh", "-c", "no-such-plugin"])


# The parent goes.


def orphaned(argv: list[str], *, call: str = "", channel: str = "stdio") -> tuple[list[int], str]:
    """A parent starts a child, which starts one of its own, makes a call, and is killed: the pids,
    and what was said on stderr until nobody had it open any more."""
    code = (
        "import os, signal, capnode_py as capnode\n"
        f"peer = capnode.sync.spawn({argv!r}, channel={channel!r}, stderr='inherit')\n"
        "pids = [peer.pid, peer.index.start_sleeper()]\n"
        f"if {call!r}:\n"
        f"    peer.notify(peer.index[{call!r}], *{[60] if call == 'block' else []!r})\n"
        "print(*pids, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return [int(pid) for pid in done.stdout.split()], done.stderr


@pytest.mark.parametrize("channel", ["stdio", "pipe", "fd"])
@pytest.mark.parametrize("serves", ["loop", "blocking", "own"])
def test_an_idle_child_goes_with_its_parent(serves, channel):
    pids, _ = orphaned([*LIFE, serves], channel=channel)
    until(lambda: not any(map(lives, pids)), 5)


@pytest.mark.parametrize(
    ("serves", "call", "told"),
    [
        ("loop", "block", "Life.block (life.py:"),
        ("own", "block", "Life.block (life.py:"),
        ("blocking", "block", "Life.block (life.py:"),
        ("loop", "block_quietly", "interrupted"),
        ("loop", "block_stubbornly", "not KeyboardInterrupt"),
        ("loop", "wait_stubbornly", "the parent is gone, and something ("),
        ("loop", "block_in_thread", ""),
    ],
    ids=lambda value: value if re.fullmatch(r"\w+", value) else "",
)
def test_a_busy_child_goes_with_its_parent(serves, call, told):
    pids, said = orphaned([*LIFE, serves, "hasty"], call=call)
    until(lambda: not any(map(lives, pids)))
    assert told in said


@pytest.mark.parametrize("how", ["asyncio", "trio", "blocking"])
def test_ctrl_c_at_the_terminal_ends_the_parent_which_ends_the_child(how):
    """All of the foreground group gets it; the child is in none of it."""
    if how == "trio":
        pytest.importorskip("trio")
    code = (
        "import sys, capnode_py as capnode\n"
        "async def main():\n"
        f"    async with capnode.spawn({[*LIFE, 'loop']!r}) as peer:\n"
        "        print(peer.pid, flush=True)\n"
        "        await peer.index.wait()\n"
        "if sys.argv[1] == 'asyncio':\n"
        "    import asyncio; asyncio.run(main())\n"
        "elif sys.argv[1] == 'trio':\n"
        "    import trio; trio.run(main)\n"
        f"with capnode.sync.spawn({[*LIFE, 'loop']!r}) as peer:\n"
        "    print(peer.pid, flush=True)\n"
        "    peer.index.wait()\n"
    )
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", code, how]
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, process_group=0) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.killpg(parent.pid, signal.SIGINT)
        _, told = parent.communicate(timeout=20)
    assert told.rstrip().endswith("KeyboardInterrupt")
    assert parent.returncode == -signal.SIGINT
    until(lambda: not lives(pid))


@EACH_KIND
async def test_a_handler_that_blocks_the_loop_is_named_on_stderr(driver, start):
    async with start([*LIFE, "loop", "hasty"], stderr="capture") as peer:
        said = await peer.index.block_until_it_is_said()
        assert re.match(
            r"Life\.block_until_it_is_said \(life\.py:\d+\) has blocked the event", said
        )
        assert "@capnode.in_thread" in said
    # Nobody has set up logging there: a warning goes to stderr.
    assert peer.stderr_tail.startswith("the event loop goes on, after ")


@pytest.mark.drivers("asyncio")
async def test_a_burst_of_calls_that_keeps_the_loop_busy_is_told_as_what_it_is(driver):
    async with capnode.spawn([*LIFE, "loop", "hasty"], stderr="capture") as peer:
        calls = [peer.index.work_until_it_is_said() for _ in range(2000)]  # in one frame
        said = [await call for call in calls][-1]
    told = r"the event loop has been busy with (\d+) messages for more than 0 s, now in (.*)\. None"
    found = re.match(told, said)
    assert found is not None, said
    assert 1 < int(found[1]) <= 2000
    assert re.match(r"Life\.work_until_it_is_said \(life\.py:\d+\)", found[2])


# Many.


@EACH_KIND
async def test_twenty_children_leave_nothing(driver, start):
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with start([*LIFE, "blocking"]) as peer:
            assert await peer.index.add(1, 2) == 3
        assert peer.returncode == 0
    assert set(os.listdir("/proc/self/fd")) == before


# Starts that are given up.


class _CutOff:
    """Awaits something, and has its scope cancelled when that waits for the `turn`th time."""

    def __init__(self, awaitable: Any, turn: int, scope: anyio.CancelScope) -> None:
        self._inner = awaitable
        self._turn = turn
        self._scope = scope
        self.waits = 0

    def __await__(self) -> Any:
        inner = self._inner.__await__()
        result: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = inner.send(result) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
            if self.waits == self._turn:
                self._scope.cancel()
            self.waits += 1
            result = error = None
            try:
                result = yield waits_for
            except BaseException as raised:
                error = raised


@pytest.mark.drivers("asyncio", "uvloop", "trio")
@pytest.mark.parametrize("logs", [False, True])
async def test_a_start_that_is_cancelled_at_any_await_leaves_nothing(driver, logs):
    """Each await in turn, until it has no more; the checks behind every test look for the rest."""
    turn = 0
    while True:
        with anyio.CancelScope() as scope:
            cut = _CutOff(capnode.spawn([*LIFE, "blocking"], logs=logs), turn, scope)
            peer = await cut
            await peer.aclose()
        if not scope.cancel_called:
            break
        turn += 1
        assert not _children()
    assert turn >= 1


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.mark.drivers("blocking")
async def test_a_start_that_is_interrupted_leaves_nothing(driver, start, monkeypatch):
    """Ctrl-C in any of its waits."""
    from capnode_py.driver import _pump

    poll = _pump.the_pump().descriptors

    class Poll:
        def __init__(self) -> None:
            self.left = 0
            self.register, self.unregister = poll.register, poll.unregister

        def poll(self, timeout: float | None) -> Any:
            if self.left == 0:
                self.left = -1
                raise KeyboardInterrupt
            self.left -= 1
            return poll.poll(timeout)

    cut = Poll()
    monkeypatch.setattr(_pump.the_pump(), "descriptors", cut)
    for waits in range(10):
        cut.left = waits
        try:
            peer = await start([*LIFE, "blocking"])
        except KeyboardInterrupt:
            assert not _children()
        else:
            cut.left = -1
            await peer.aclose()
            break
    assert waits >= 1
