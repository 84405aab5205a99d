"""What is no usual call, or does not stay alone, falls from the fast lane to the general way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import select
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py.driver import _descriptor, blocking
from capnode_py.sync import SpawnedPeer

pytestmark = pytest.mark.usefixtures("nothing_left")
PLUGIN = [sys.executable, str(Path(__file__).parent / "plugin.py")]


def _twice(n: int) -> int:
    return 2 * n


@pytest.fixture(params=["sync", "loop"])
def peer(request: pytest.FixtureRequest, nothing_left: None) -> Iterator[SpawnedPeer]:
    with capnode.sync.spawn([*PLUGIN, request.param], index={"twice": _twice}) as peer:
        peer.ping()
        yield peer
        while (peer.stats().imports, peer.stats().exports) != (1, 1):
            peer.ping()  # releases that wait for company come soon
    assert peer.returncode == 0


def test_a_call_alone_is_one_message_each_way(peer, monkeypatch):
    # However slow this machine is, no release has waited long enough to leave alone.
    monkeypatch.setattr(blocking, "RELEASE_DELAY", 60)
    peer.index.add(1, 2)
    peer.ping()
    before = peer.stats()
    for n in range(20):
        assert peer.index.add(n, n) == 2 * n
    after = peer.stats()
    assert after.messages_sent - before.messages_sent in (20, 21)  # releases ride with one of them
    assert after.messages_received - before.messages_received == 20
    assert 200 < after.bytes_sent - before.bytes_sent < 400
    assert 100 < after.bytes_received - before.bytes_received < 300


def test_a_callback_is_released_with_the_answer(peer):
    for n in range(300):  # the ids of callbacks grow
        assert peer.index.relay(lambda n=n: n) == n
        assert peer.stats().exports == 1
    before = peer.stats()
    assert peer.index.relay(lambda: 5) == 5
    after = peer.stats()
    # A call, a resolve, and a release; and maybe one that has waited for company long enough.
    assert after.messages_received - before.messages_received in (3, 4)


def test_a_callback_may_call_back_before_the_answer(peer):
    for _ in range(3):
        assert peer.index.relay(lambda: peer.index.add(1, 2)) == 3
        assert peer.index.nest(peer.index.nest, 3) == 3


@pytest.mark.parametrize(
    "value",
    [None, True, -1, 24, 70_000, 2.5, "x" * 300, b"bytes", [1, [2]], {"a": None}, 10**30],
    ids=str,
)
def test_values_of_each_kind_come_back_as_they_went(peer, value):
    for _ in range(2):
        back = peer.index.echo(value)
        assert (back, type(back)) == (value, type(value))


def test_values_of_each_size_come_back_as_they_went(peer):
    for size in (200, 300, 1024, 30_000, *range(65_500, 65_540), 70_000):
        data = random.randbytes(size)
        for value in (data, bytearray(data), memoryview(data)[::-1]):
            back = peer.index.echo(value)
            assert back == bytes(value)
            assert type(back) is bytes
        text = "x" * (size - 2) + "\N{DEGREE SIGN}"
        assert peer.index.echo(text) == text


def test_a_call_that_is_not_written_at_once_is_written_behind(peer):
    text = "x" * 5_000_000
    assert peer.index.echo(text) == text
    assert peer.index.add(1, 2) == 3


def test_calls_that_a_value_makes_while_it_is_copied_go_first():
    @capnode.by_copy
    @dataclasses.dataclass
    class Copied:
        n: int

        def __getattribute__(self, name: str) -> Any:
            if name == "n":
                promises.append(near.index.log("first"))
            return super().__getattribute__(name)

    promises: list[Any] = []
    seen: list[Any] = []
    with capnode.sync.pair(far_index={"log": seen.append}) as (near, _far):
        near.index.log("zeroth")
        near.index.log(Copied(1))
        assert seen == ["zeroth", "first", {"n": 1}]
        for promise in promises:
            assert near.wait(promise) is None


def test_errors_of_the_call_itself_are_raised_and_nothing_is_sent(peer):
    peer.index.add(1, 2)
    sent = peer.stats().messages_sent
    with pytest.raises(capnode.CannotPass, match="argument 1"):
        peer.index.add(1, object())
    with pytest.raises(capnode.CannotPass, match="Unicode"):
        peer.index.add(1, "\udc00")
    assert peer.stats().messages_sent == sent
    stub = peer.index.relay(lambda: peer.index)
    assert stub is peer.index
    with pytest.raises(TypeError):
        peer.index.add(1)
    with pytest.raises(AttributeError):
        peer.index.missing(1)
    assert peer.index.add(1, 2) == 3


def test_a_stub_that_was_given_up_is_released_in_the_lane_too(peer):
    session = peer.index.open_session()
    assert session.name() == "session"
    session.dealloc()
    with pytest.raises(capnode.Released):
        session.name()


def test_a_call_that_comes_in_the_place_of_the_answer_is_served_meanwhile(peer):
    for n in range(3):
        assert peer.index.ask_parent(n) == 2 * n
        assert peer.index.add(n, 1) == n + 1


def test_the_answer_may_come_while_a_callback_still_runs(looped):
    inside = []

    def callback() -> None:
        inside.append(looped.index.add(1, 2))  # by now the outer answer is here
        inside.append(looped.index.add(3, 4))

    assert looped.index.start_and_answer(callback) == "answered"
    looped.ping()
    assert inside == [3, 7]


@pytest.fixture
def looped(nothing_left: None) -> Iterator[SpawnedPeer]:
    with capnode.sync.spawn([*PLUGIN, "loop"]) as peer:
        yield peer


@pytest.mark.parametrize("kind", ["sync", "loop"])
def test_a_handler_that_closes_its_connection_ends_the_serving(kind):
    with capnode.sync.spawn([*PLUGIN, kind]) as peer:
        assert peer.index.add(1, 2) == 3
        with pytest.raises(capnode.PeerLost):
            peer.index.close_from_inside()
    assert peer.returncode == 0


def test_a_handler_that_blocks_keeps_nobody_from_being_answered_elsewhere(looped):
    entered, leave = threading.Event(), threading.Event()

    def block(_n: int) -> None:
        entered.set()
        assert leave.wait(10)

    thread = threading.Thread(target=lambda: looped.index.call(block, 1))
    thread.start()
    assert entered.wait(10)
    for n in range(20):
        assert looped.index.add(n, 1) == n + 1
    leave.set()
    thread.join()


def test_threads_that_come_and_go_lose_no_call(peer):
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for i in range(200):
                assert peer.index.echo([n, i]) == [n, i]
        except BaseException as error:
            failures.append(error)

    for _ in range(5):
        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for i in range(100):
            assert peer.index.add(i, 1) == i + 1
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_note_that_comes_before_the_poll_is_not_slept_over():
    from capnode_py.driver._pump import the_pump

    pump = the_pump()
    with capnode.sync.pair() as (near, _far), pump.held:
        pump.noted.append(near._driver)
        assert pump.poll(None) == ()


class Far(capnode.Target):
    def __init__(self) -> None:
        self.go = threading.Event()
        self.ran: list[Any] = []

    def block(self) -> None:
        assert self.go.wait(20)

    def add(self, n: int, more: int = 1) -> int:
        self.ran.append(n)
        return n + more

    def fail(self) -> None:
        raise ValueError("as it was to")


def test_what_waits_behind_a_handler_may_be_cancelled_named_and_dropped():
    """While one thread runs the handler, this one has what comes meanwhile read."""
    far = Far()
    with capnode.sync.pair(far_index=far) as (near, _):
        blocked = threading.Thread(target=near.index.block)
        blocked.start()
        while near.stats().questions == 0:
            near.ping()
        with near.pipeline() as p:
            first, second, third = p.index.add(1), p.index.add(2), p.index.add(3)
            dropped, failed = p.index.add(4), p.index.fail()
        del dropped
        second.cancel()
        near.ping()  # both have come
        with near.pipeline() as p:
            named = p.index.add(third, first)
            after_failed = p.index.add(failed)
            last = p.index.add(7)
        near.ping()
        assert far.ran == []

        far.go.set()
        assert (near.wait(last), near.wait(named), near.wait(first)) == (8, 6, 2)
        for promise in (failed, after_failed):
            with pytest.raises(ValueError, match="as it was to"):
                near.wait(promise)
        with pytest.raises(capnode.CapnodeError):
            near.wait(second)
        blocked.join()
    assert far.ran == [1, 3, 4, 7, 4]


@contextlib.contextmanager
def _on_a_loop(index: Any, near_index: Any = None) -> Iterator[tuple[capnode.sync.Peer, Any]]:
    """A peer, and one on an event loop in another thread at the far end."""
    near_end, far_end = socket.socketpair()
    opened: Future[tuple[Any, asyncio.AbstractEventLoop]] = Future()

    async def serve() -> None:
        async with capnode.attach(far_end, index=index) as far:
            opened.set_result((far, asyncio.get_running_loop()))
            await far.wait_closed()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    with capnode.sync.attach(near_end, index=near_index) as near:
        yield near, opened.result(10)
    thread.join()


def test_what_another_thread_has_polled_before_is_left_to_the_one_that_polls_now():
    """It reads the answer of a call that no table knows of, since nothing else could come."""
    asked, answered = threading.Event(), threading.Event()

    async def ask() -> str:
        asked.set()
        await asyncio.get_running_loop().run_in_executor(None, answered.wait)
        return "the answer"

    with _on_a_loop({"ask": ask}) as (near, _):
        near.ping()
        got: list[Any] = []
        caller = threading.Thread(target=lambda: got.append(near.index.ask()), daemon=True)
        caller.start()
        assert asked.wait(10)
        pump, fd = near._driver._pump, near._driver._read_fd
        with pump.lock:
            # As if it had handled another descriptor first, whose handler let go of the lock.
            answered.set()
            select.select([fd], [], [])
            pump.handle([(fd, select.POLLIN)])
        caller.join(10)
        assert got == ["the answer"]


def test_no_call_starts_beside_a_handler_that_another_thread_has_begun(
    monkeypatch,
):
    monkeypatch.setattr(_descriptor, "RELEASE_DELAY", 60)  # a release would end that poll,
    monkeypatch.setattr(blocking, "RELEASE_DELAY", 60)  # sent there or here
    monkeypatch.setattr(blocking, "_RELEASE_DELAY", 60_000)
    entered, leave = threading.Event(), threading.Event()
    running: list[str] = []

    def handle(name: str) -> int:
        running.append(name)
        if name == "blocks":
            entered.set()
            assert leave.wait(10)
        together = len(running)
        running.remove(name)
        return together

    async def find() -> Any:
        return far.index["handle"]

    async def call_while_it_blocks() -> Any:
        before = near.stats().messages_received
        call = far.index.handle("comes alone")
        far._driver.flush_said()  # without the releases that wait
        while near.stats().messages_received == before:
            pass  # nothing else is said until it is read
        await far.ping()
        leave.set()
        return await call

    async def call_often() -> Any:
        return [await far.index.handle(name) for name in ("first", "second", "third")]

    with _on_a_loop({"find": find}, {"handle": handle}) as (near, (far, loop)):
        with near.pipeline() as p:
            own = p.index.find()
        assert near.wait(own) is handle
        near.serve_background()
        # Behind these the thread that serves polls for the next, without a look at more.
        asyncio.run_coroutine_threadsafe(call_often(), loop).result(10)
        blocks = threading.Thread(target=lambda: near.wait(own("blocks")))
        blocks.start()
        assert entered.wait(10)
        alone = asyncio.run_coroutine_threadsafe(call_while_it_blocks(), loop).result(10)
        blocks.join()
    assert alone == 1


@pytest.mark.parametrize("n", range(2))
def test_a_promise_that_a_handler_returns_is_answered_when_it_has_its_value(n):
    """It takes the general way: the answer is no promise itself."""

    def theme() -> Any:
        return capnode.current_peer().index.settings.theme

    with capnode.sync.pair({"settings": {"theme": "dark"}}, {"theme": theme}) as (near, _):
        for _ in range(n):
            near.index.theme()
        before = near.stats().messages_received
        assert near.index.theme() == "dark"
        assert near.stats().messages_received - before == 2  # it was read, and then answered
