"""`capnode_py.testing` without pytest's help: `nothing_left`, `check_peers_quiet`, `argv_of`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import testing
from capnode_py.testing import argv_of, check_peers_quiet, nothing_left


class Session(capnode.Target):
    pass


class Api(capnode.Target):
    def pid(self) -> int:
        return os.getpid()

    def open(self) -> Session:
        return Session()

    class Inner(capnode.Target):
        def name(self) -> str:
            return "inner"


def make_index() -> dict[str, Any]:
    return {"answer": 42}


@pytest.fixture(autouse=True)
def _little_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left here is left for good."""
    monkeypatch.setattr(testing._leaks, "GRACE", 0.1)


async def test_a_clean_block_leaves_nothing(driver):
    async with (
        nothing_left(),
        capnode.spawn(argv_of(Api)) as peer,
        capnode.pair(far_index=Api()) as (near, _far),
    ):
        assert await peer.index.pid() == peer.pid
        assert await near.index.open()


async def test_a_stub_of_a_peer_from_before_is_left_until_it_is_given_up(driver):
    async with capnode.pair(far_index=Api()) as (near, far):
        kept = [await near.index.open()]
        async with nothing_left():  # what was there before is not counted
            await near.index.open()
        more = []
        with pytest.raises(AssertionError, match=r"import -\d: .*in test_a_stub_of_a_peer"):
            async with nothing_left():
                more.append(await near.index.open())
        with pytest.raises(AssertionError, match="import -1"):
            await check_peers_quiet(near, far)
        del kept[:], more[:]
        await check_peers_quiet(near, far)


async def test_what_is_allowed_may_be_left(driver):
    async with (
        capnode.pair(far_index=Api()) as (near, _far),
        nothing_left(allow={"references"}),
    ):
        _kept = await near.index.open()


@pytest.mark.drivers("asyncio")
async def test_a_task_is_left_until_it_has_ended(driver):
    async def forever() -> None:
        await anyio.sleep_forever()

    check = nothing_left()
    check.begin()
    task = asyncio.create_task(forever())
    await anyio.lowlevel.checkpoint()
    check.end()
    with pytest.raises(AssertionError, match=r"task '.*' of .*forever, made at .*, waits at"):
        await check.acheck()
    task.cancel()
    await check.acheck()


def test_a_block_that_raises_is_not_looked_at():
    def block() -> None:
        with nothing_left():
            pipe.extend(os.pipe())
            raise ValueError("the news")

    pipe: list[int] = []
    with pytest.raises(ValueError, match="the news"):
        block()
    for fd in pipe:
        os.close(fd)


def test_an_open_peer_is_told_with_what_belongs_to_it_and_not_its_descriptors():
    check = nothing_left()
    check.begin()
    with capnode.sync.spawn(argv_of(Api)) as peer:
        check.end()
        with pytest.raises(AssertionError) as caught:
            check.check()
        first, *more = str(caught.value).splitlines()
        assert (first, len(more)) == ("left behind:", 1)
        assert f"with the child process {peer.pid}, opened at {__file__}:" in more[0]
    check.check()


def test_a_thread_that_waits_in_a_pool_is_not_left():
    async def main() -> None:
        async with nothing_left():
            await asyncio.to_thread(lambda: None)

    asyncio.run(main())


def test_a_thread_in_a_handler_of_a_pool_is_left():
    fence = threading.Event()

    async def main() -> None:
        check = nothing_left()
        check.begin()
        task = asyncio.ensure_future(asyncio.to_thread(lambda: fence.wait()))
        await asyncio.sleep(0)
        check.end()
        with pytest.raises(AssertionError, match=r"thread 'asyncio_0', started in "):
            await check.acheck()
        fence.set()
        await task
        await check.acheck()

    asyncio.run(main())


def test_a_zombie_is_left():
    check = nothing_left()
    check.begin()
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(AssertionError, match=r"child process \d+: .*, which nobody has waited for"):
        check.check()
    child.wait()
    check.check()


def test_kinds_are_named():
    with pytest.raises(ValueError, match=r"allow=\['stubs'\]: kinds are tasks, threads"):
        nothing_left(allow={"stubs"})


@pytest.mark.parametrize("make", [Api, make_index, Api.Inner], ids=["class", "function", "inner"])
def test_a_child_serves_what_stands_at_the_top_of_a_module(make):
    with nothing_left(), capnode.sync.spawn(argv_of(make)) as peer:
        if make is make_index:
            assert peer.get(peer.index.answer) == 42
        elif make is Api:
            assert peer.index.pid() == peer.pid
        else:
            assert peer.index.name() == "inner"


def test_a_script_can_have_a_child_serve_its_own_class(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import capnode_py as capnode\n"
        "from capnode_py.testing import argv_of\n"
        "class Mine(capnode.Target):\n"
        "    def hello(self): return __name__\n"
        "if __name__ == '__main__':\n"
        "    with capnode.sync.spawn(argv_of(Mine)) as peer: print(peer.index.hello())\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(capnode.__file__).parents[1])}
    command = [sys.executable, str(script)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=30)
    assert out.stdout == "__mp_main__\n"


def test_what_a_child_cannot_find_by_its_name_is_refused():
    class Local(capnode.Target):
        pass

    for wrong in (Local, lambda: None, Api(), "plugin.py", print):
        with pytest.raises(TypeError, match="takes a class or a function from the top level"):
            argv_of(wrong)  # type: ignore[arg-type]
