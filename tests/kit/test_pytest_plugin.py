"""`capnode_py.testing.pytest_plugin`: what it says of tests, those that leave something
and clean ones.

Each framework that runs async tests runs the same file, in a pytest of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

CONFTEST = """
import capnode_py.testing._leaks

pytest_plugins = ["capnode_py.testing.pytest_plugin"]

capnode_py.testing._leaks.GRACE = 0.1  # many of these do leave something
"""
COMMON = """
import os
import socket
import subprocess
import sys
import threading

import pytest

import capnode_py as capnode
from capnode_py.testing import argv_of

KEPT = []
STOP = threading.Event()


class Session(capnode.Target):
    pass


class Api(capnode.Target):
    def add(self, a, b):
        return a + b

    def open(self):
        return Session()

    def subscribe(self, callback):
        KEPT.append(callback)


def on_event():
    pass


def wait_for_it():
    STOP.wait()
"""

PLAIN = """
def test_leaves_a_thread(capnode_leaks):
    threading.Thread(target=wait_for_it, name="mine", daemon=True).start()


def test_leaves_a_child(capnode_leaks):
    command = [sys.executable, "-c", "input()", "the child"]
    KEPT.append(subprocess.Popen(command, stdin=subprocess.PIPE))


def test_leaves_a_socket(capnode_leaks):
    KEPT.append(socket.socket())


def test_leaves_a_descriptor(capnode_leaks):
    KEPT.append(os.pipe())


@pytest.mark.capnode_may_leave("descriptors")
def test_may_leave_a_descriptor(capnode_leaks):
    KEPT.append(os.pipe())


@pytest.mark.capnode_may_leave
def test_may_leave_anything(capnode_leaks):
    KEPT.append(os.pipe())


def test_is_not_checked():
    KEPT.append(os.pipe())


def test_raises_and_leaves(capnode_leaks):
    KEPT.append(os.pipe())
    raise ValueError("the news")


def test_clean_pair(capnode_sync_pair):
    near, far = capnode_sync_pair(far_index=Api())
    assert near.index.add(1, 2) == 3
    assert near.index.open()


def test_clean_child(capnode_sync_child):
    assert capnode_sync_child(Api).index.add(1, 2) == 3


def test_leaves_a_stub(capnode_sync_pair):
    near, far = capnode_sync_pair(far_index=Api())
    KEPT.append(near.index.open())


def test_leaves_a_callback(capnode_sync_pair):
    near, far = capnode_sync_pair(far_index=Api())
    near.index.subscribe(on_event)


def test_leaves_a_peer(capnode_leaks):
    KEPT.append(capnode.sync.spawn(argv_of(Api)))


@pytest.fixture(scope="module")
def wide():
    with capnode.sync.spawn(argv_of(Api)) as peer:
        yield peer


def test_clean_with_a_wide_fixture(wide, capnode_leaks):
    assert wide.index.add(1, 2) == 3


def test_leaves_a_stub_of_a_wide_fixture(wide, capnode_leaks):
    KEPT.append(wide.index.open())


def test_clean_again_with_a_wide_fixture(wide, capnode_leaks):
    assert wide.index.open()
"""

ASYNC = """
async def test_clean_pair(capnode_pair):
    near, far = await capnode_pair(far_index=Api())
    assert await near.index.add(1, 2) == 3
    assert await near.index.open()


async def test_clean_child(capnode_child):
    peer = await capnode_child(Api)
    assert await peer.index.add(1, 2) == 3


async def test_clean_by_hand(capnode_leaks):
    async with capnode.pair(far_index=Api()) as (near, far):
        assert await near.index.add(1, 2) == 3


async def test_leaves_a_stub(capnode_pair):
    near, far = await capnode_pair(far_index=Api())
    KEPT.append(await near.index.open())


async def test_leaves_a_callback(capnode_pair):
    near, far = await capnode_pair(far_index=Api())
    await near.index.subscribe(on_event)


async def test_leaves_a_peer(capnode_leaks):
    KEPT.append(await capnode.spawn(argv_of(Api)))


async def wait_for_nothing():
    await anyio.sleep_forever()


async def test_leaves_a_task(capnode_leaks):
    start(wait_for_nothing)
    await anyio.lowlevel.checkpoint()
"""

ON_ASYNCIO = """
import asyncio
import anyio
import anyio.lowlevel

def start(function):
    KEPT.append(asyncio.create_task(function()))
"""
ON_TRIO = """
import anyio
import anyio.lowlevel
import trio

def start(function):
    trio.lowlevel.spawn_system_task(function)
"""
BACKEND = """
@pytest.fixture
def anyio_backend():
    return {!r}
"""

FRAMEWORKS = {
    "plain": ("", PLAIN),
    "anyio-asyncio": ("pytestmark = pytest.mark.anyio", ON_ASYNCIO + BACKEND.format("asyncio")),
    "anyio-trio": ("pytestmark = pytest.mark.anyio", ON_TRIO + BACKEND.format("trio")),
    "pytest-asyncio": ("", ON_ASYNCIO),
    "pytest-trio": ("", ON_TRIO),
}
OPTIONS = {
    "pytest-asyncio": (
        *("-p", "no:trio", "-o", "asyncio_mode=auto"),
        *("-o", "asyncio_default_fixture_loop_scope=function"),
    ),
    "pytest-trio": ("-p", "no:asyncio", "-o", "trio_mode=true"),
}
PYTEST = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-W", "error"]
PYTEST += ["-W", "ignore:the child :ResourceWarning"]  # "was never closed", as is told here
NEEDS = {"anyio-trio": "trio", "pytest-asyncio": "pytest_asyncio", "pytest-trio": "pytest_trio"}


class Report:
    """What pytest printed: the outcome of each test, and what it was told."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.outcomes: dict[str, set[str]] = {}
        for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\w+)", text, re.MULTILINE):
            self.outcomes.setdefault(name, set()).add(outcome)
        parts = re.split(r"^_+ (?:ERROR at \w+ of )?(\w+) _+$", text, flags=re.MULTILINE)
        self.told: dict[str, str] = {}
        for name, told in zip(parts[1::2], parts[2::2], strict=True):
            self.told[name] = self.told.get(name, "") + told.partition("\n=====")[0]


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    needed = NEEDS.get(request.param, "pytest")
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    return str(request.param)


@pytest.fixture(scope="module")
def report(framework: str, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """All tests of one framework, run once."""
    mark, more = FRAMEWORKS[framework]
    folder = tmp_path_factory.mktemp(framework)
    (folder / "conftest.py").write_text(CONFTEST)
    body = more if framework == "plain" else more + ASYNC
    (folder / "test_it.py").write_text(COMMON + mark + "\n" + body)
    (folder / "pytest.ini").write_text("[pytest]\n")
    options = OPTIONS.get(framework, ("-p", "no:asyncio", "-p", "no:trio"))
    done = subprocess.run(
        [*PYTEST, *options],
        cwd=folder,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
    )
    return Report(done.stdout)


def left(report: Report, outcomes: str, name: str, *said: str) -> None:
    """This test had these outcomes, and was told of what it left in words that match all these."""
    assert report.outcomes[name] == set(outcomes.split()), report.text
    for text in ("left behind", *said):
        assert re.search(text, report.told[name]), (text, report.told[name])
    assert "site-packages" not in report.told[name]


def test_clean_tests_pass(report):
    clean = [name for name in report.outcomes if "clean" in name or "may" in name]
    assert len(clean) >= 3
    assert all(report.outcomes[name] == {"PASSED"} for name in clean), report.text


def test_a_stub_that_is_kept_is_named_with_its_place(report):
    place = r"made at .*test_it.py:\d+, in test_leaves_a_stub"
    left(report, "FAILED", "test_leaves_a_stub", "import -1: <Stub #1 of .*>", place)
    place = r"made at .*test_it.py:\d+, in test_leaves_a_callback"
    told = "export -1: function on_event, sent 1 x"
    left(report, "FAILED", "test_leaves_a_callback", told, place)


def test_an_open_peer_is_named_with_its_child_and_its_place(report):
    told = r"peer <Peer .*>, with the child process \d+, opened at "
    place = r"opened at .*test_it.py:\d+, in test_leaves_a_peer, was not closed"
    left(report, "PASSED ERROR", "test_leaves_a_peer", told, place)


def test_a_task_is_named_with_its_place(report, framework):
    if framework == "plain":
        return
    left(
        report,
        "FAILED",
        "test_leaves_a_task",
        "task '.*' of wait_for_nothing, made at ",
        r"made at .*test_it.py:\d+, in (start|test_leaves_a_task), waits at .*test_it.py:\d+",
    )


def test_threads_children_and_descriptors_are_named(report, framework):
    if framework != "plain":
        return
    started = r"thread 'mine', started in wait_for_it at .*test_it.py:\d+, "
    error = "PASSED ERROR"
    left(report, error, "test_leaves_a_thread", started, r"now at .*test_it.py:\d+")
    left(report, error, "test_leaves_a_child", r"child process \d+: .*input\(\) the child")
    left(report, error, "test_leaves_a_descriptor", r"descriptor \d+: pipe:\[\d+\]")
    socket = r"descriptor \d+: socket:.*, of <socket.socket fd="
    left(report, error, "test_leaves_a_socket", socket)


def test_what_is_not_to_be_told_is_not(report, framework):
    if framework != "plain":
        return
    assert report.outcomes["test_raises_and_leaves"] == {"FAILED"}
    assert "left behind" not in report.told["test_raises_and_leaves"]
    assert report.outcomes["test_is_not_checked"] == {"PASSED"}
    left(report, "FAILED", "test_leaves_a_stub_of_a_wide_fixture", "import -1: <Stub")


def test_the_check_is_for_every_test_if_the_project_says_so(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\ncapnode_leaks = true\n")
    (tmp_path / "test_it.py").write_text(COMMON + "def test_it():\n    KEPT.append(os.pipe())\n")
    command = [*PYTEST, "-p", "no:asyncio"]
    out = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    left(Report(out.stdout), "PASSED ERROR", "test_it", r"descriptor \d+: pipe")
