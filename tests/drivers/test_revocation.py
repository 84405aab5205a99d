"""Lending on real event loops: what runs is cancelled, holders are told, in whatever thread."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import capnode_py as capnode
from capnode_py import RemoteError, Revoked, Target


class Worker(Target):
    """Handlers that wait, and tell how they ended."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.running = 0
        self.ended: list[str] = []
        self.go = anyio.Event()
        self._log: list[int] = []

    async def work(self) -> str:
        self.running += 1
        self.started.set()
        try:
            await self.go.wait()
        except anyio.get_cancelled_exc_class():
            self.ended.append("cancelled")
            raise
        self.ended.append("done")
        return "done"

    async def stubborn(self) -> str:
        """Suppresses its cancellation."""
        try:
            return await self.work()
        except anyio.get_cancelled_exc_class():
            return "all the same"

    async def careful(self) -> None:
        """Cleans up before it ends."""
        try:
            await self.work()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                self.ended.append("cleaned up")

    async def failing(self) -> None:
        """Fails as it is cancelled."""
        try:
            await self.work()
        finally:
            raise KeyError("while it was cancelled")

    async def worker(self) -> Worker:
        await anyio.lowlevel.checkpoint()
        return self

    async def call_back(self, function: Any) -> Any:
        return await function("called")

    def log(self, number: int) -> None:
        self._log.append(number)

    async def log_later(self, number: int) -> None:
        self._log.append(number)
        await anyio.lowlevel.checkpoint()

    @property
    def logged(self) -> list[int]:
        return self._log

    @capnode.in_thread
    def in_a_thread(self, function: Any) -> Any:
        return threading.current_thread() is threading.main_thread(), capnode.wait(function(), 5)


async def lend_here(_road: Any, worker: Worker, **options: Any) -> Any:
    facade, revoke = capnode.revocable(worker, **options)
    return facade, revoke, Revoked


async def lend_afar(road: Any, worker: Worker, **options: Any) -> Any:
    facade, revoke = capnode.revocable(worker, **options)
    near, _ = await road.open(far_index={"get": [facade].pop})
    return await near.index.get(), revoke, RemoteError


async def lend_a_stub(road: Any, worker: Worker, **options: Any) -> Any:
    near, _ = await road.open(far_index=worker)
    facade, revoke = capnode.revocable(near.index, **options)
    return facade, revoke, Revoked


Lend = Callable[..., Awaitable[tuple[Any, Any, type[Exception]]]]
LENT = pytest.mark.parametrize("lend", [lend_here, lend_afar, lend_a_stub])


async def failure(call: Callable[[], Awaitable[Any]], caught: list[BaseException]) -> None:
    try:
        await call()
    except Exception as error:
        caught.append(error)


@pytest.mark.loop
@LENT
@pytest.mark.parametrize("derived", [True, False])
async def test_running_calls_are_cancelled_and_fail_with_the_reason(
    any_road: Any, lend: Lend, derived: bool
):
    """M8, M10"""
    worker = Worker()
    handle, revoke, kind = await lend(any_road, worker, derived=derived)
    caught: list[BaseException] = []
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(failure, handle.work, caught)
        await until(lambda: worker.running == 3)
        revoke("enough")
        await failure(lambda: handle.work(), caught)
    assert [type(error) for error in caught] == [kind] * 4
    assert {error.args for error in caught} == {("enough",)}
    await until(lambda: len(worker.ended) == 3)
    assert worker.ended == ["cancelled"] * 3


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop turn until it holds; a test that waits for ever is ended from outside."""
    while not holds():
        await anyio.lowlevel.checkpoint()


@pytest.mark.loop
@LENT
@pytest.mark.parametrize("name", ["stubborn", "careful", "failing"])
async def test_whatever_a_cancelled_handler_makes_of_it_the_reason_is_told(
    any_road: Any, lend: Lend, name: str
):
    worker = Worker()
    handle, revoke, kind = await lend(any_road, worker)
    caught: list[BaseException] = []
    async with anyio.create_task_group() as group:
        group.start_soon(failure, getattr(handle, name), caught)
        await worker.started.wait()
        revoke("enough")
    (error,) = caught
    assert type(error) is kind
    assert error.args == ("enough",)
    await until(lambda: len(worker.ended) == (2 if name == "careful" else 1))
    assert worker.ended == ["cancelled", "cleaned up"][: len(worker.ended)]


@pytest.mark.loop
@LENT
async def test_a_cancelled_call_is_cancelled_behind_the_facade(any_road: Any, lend: Lend):
    worker = Worker()
    handle, _revoke, _ = await lend(any_road, worker)
    async with anyio.create_task_group() as group:
        group.start_soon(failure, handle.work, [])
        await worker.started.wait()
        group.cancel_scope.cancel()
    await until(lambda: len(worker.ended) == 1)
    assert worker.ended == ["cancelled"]


@pytest.mark.loop
@pytest.mark.parametrize("lend", [lend_afar, lend_a_stub])
async def test_calls_through_a_facade_start_in_their_order(any_road: Any, lend: Lend):
    worker = Worker()
    handle, _revoke, _ = await lend(any_road, worker)
    calls = [(handle.log_later if n % 3 else handle.log)(n) for n in range(50)]
    for call in calls:
        await call
    assert worker._log == list(range(50))


@pytest.mark.loop
@LENT
async def test_what_a_coroutine_gives_is_lent_as_well(any_road: Any, lend: Lend):
    """M8"""
    handle, revoke, kind = await lend(any_road, Worker())
    derived = await handle.worker()
    assert derived is handle or lend is lend_a_stub
    revoke("enough")
    with pytest.raises(kind, match="enough"):
        await derived.worker()


@pytest.mark.loop
@pytest.mark.parametrize("lend", [lend_here, lend_afar])
async def test_the_object_is_let_go_when_its_calls_have_ended(any_road: Any, lend: Lend):
    """M11"""
    worker = Worker()
    alive = weakref.ref(worker)
    started = worker.started
    handle, revoke, _ = await lend(any_road, worker)
    del worker
    caught: list[BaseException] = []
    async with anyio.create_task_group() as group:
        group.start_soon(failure, handle.work, caught)
        await started.wait()
        revoke("enough")
    for error in caught:
        error.__traceback__ = error.__context__ = error.__cause__ = None
    assert len(caught) == 1
    while alive() is not None:  # the traceback of a cancellation is for the collector
        await anyio.lowlevel.checkpoint()
        gc.collect()


async def test_a_coroutine_that_was_not_begun_is_not_begun_any_more(any_road: Any):
    worker = Worker()
    facade, revoke = capnode.revocable(worker)
    waiting = facade.work()
    revoke("enough")
    with pytest.raises(Revoked, match="enough"):
        await waiting
    assert not worker.started.is_set()


@pytest.mark.loop
async def test_a_callback_works_through_a_membrane(any_road: Any):
    facade, revoke = capnode.revocable(Worker())
    near, _ = await any_road.open(far_index=facade)

    async def answer(text: str) -> str:
        await anyio.lowlevel.checkpoint()
        return f"{text} back"

    assert await near.index.call_back(answer) == "called back"
    assert await near.index.call_back(lambda text: text.upper()) == "CALLED"
    waits = anyio.Event()

    async def wait(_text: str) -> None:
        waits.set()
        await anyio.sleep_forever()

    caught: list[BaseException] = []
    async with anyio.create_task_group() as group:
        group.start_soon(failure, lambda: near.index.call_back(wait), caught)
        await waits.wait()
        revoke("enough")
    assert caught[0].args == ("enough",)


@pytest.mark.loop
async def test_an_in_thread_handler_runs_in_its_thread_through_a_facade(any_road: Any):
    facade, revoke = capnode.revocable(Worker())
    near, _ = await any_road.open(far_index=facade)
    assert await near.index.in_a_thread(lambda: 5) == [False, 5]

    def take_back() -> None:
        revoke("enough")

    with pytest.raises(RemoteError, match="enough"):
        await near.index.in_a_thread(take_back)


@pytest.mark.loop
async def test_it_may_be_taken_back_in_another_thread(any_road: Any):
    worker = Worker()
    facade, revoke = capnode.revocable(worker)
    near, _ = await any_road.open(far_index={"get": [facade].pop})
    stub = await near.index.get()
    told = anyio.Event()
    near.on_broken(stub, lambda _error: told.set())
    caught: list[BaseException] = []
    async with anyio.create_task_group() as group:
        group.start_soon(failure, stub.work, caught)
        group.start_soon(failure, facade.work, caught)
        await until(lambda: worker.running == 2)
        await anyio.to_thread.run_sync(revoke, "enough")
        await told.wait()
    assert sorted(type(error).__name__ for error in caught) == ["RemoteError", "Revoked"]
    assert worker.ended == ["cancelled"] * 2


@pytest.mark.loop
async def test_who_asked_is_told_in_the_loop_of_the_peer(any_road: Any):
    """M12: by a plain function or an async one, with no call made."""
    facade, revoke = capnode.revocable(Worker())
    given = [facade]
    near, far = await any_road.open(far_index={"get": given.pop})
    stub = await near.index.get()
    told: list[Any] = []
    both = anyio.Event()

    def plain(error: BaseException) -> None:
        told.append((capnode.current_peer(), str(error), threading.get_ident()))

    async def later(error: BaseException) -> None:
        await anyio.lowlevel.checkpoint()
        plain(error)
        both.set()

    near.on_broken(stub, plain)
    near.on_broken(stub, later)
    await near.ping()  # the release of the answer leaves with it
    received = far.stats().messages_received
    revoke("enough")
    await both.wait()
    assert told == [(near, "Revoked: enough", threading.get_ident())] * 2
    assert far.stats().messages_received == received
    with pytest.raises(RemoteError, match="enough"):
        await stub.work()


@pytest.mark.loop
async def test_who_asked_is_told_of_the_end_of_the_connection(any_road: Any):
    near, far = await any_road.open(far_index=Worker())
    told: list[BaseException] = []
    event = anyio.Event()

    def tell(error: BaseException) -> None:
        told.append(error)
        event.set()

    near.on_broken(near.index, tell)
    await far.aclose()
    await event.wait()
    assert [type(error) for error in told] == [capnode.PeerLost]
    await near.aclose()
    late = anyio.Event()
    near.on_broken(near.index, lambda _error: late.set())
    await late.wait()
    assert len(told) == 1


async def test_who_asked_is_told_that_a_child_has_died(driver: str):
    code = "import capnode_py, os; capnode_py.serve_stdio({'crash': lambda: os._exit(3)})"
    async with capnode.spawn([sys.executable, "-c", code]) as peer:
        told: list[BaseException] = []
        event = anyio.Event()

        async def tell(error: BaseException) -> None:
            told.append(error)
            event.set()

        peer.on_broken(peer.index, tell)
        peer.notify(peer.index.crash)
        await event.wait()
        (error,) = told
        assert isinstance(error, capnode.PeerDied)
        assert error.returncode == 3


async def test_what_a_told_function_raises_is_logged(
    any_road: Any, caplog: pytest.LogCaptureFixture
):
    near, far = await any_road.open(far_index=Worker())

    def fail(_error: BaseException) -> None:
        raise KeyError("a bug of the user's")

    near.on_broken(near.index, fail)
    with caplog.at_level(logging.ERROR, "capnode_py.driver"):
        await far.aclose()
        await near.wait_closed()
        while not caplog.records:
            await anyio.lowlevel.checkpoint()
    assert "fail" in caplog.records[0].getMessage()
    assert "a bug of the user's" in (caplog.records[0].exc_text or "")


@pytest.mark.loop
async def test_another_thread_may_not_ask(any_road: Any):
    near, _ = await any_road.open()
    with pytest.raises(RuntimeError, match="another thread"):
        await anyio.to_thread.run_sync(near.on_broken, near.index, print)


@pytest.mark.loop
async def test_each_holder_is_told_whatever_thread_his_connection_lives_in(any_road: Any):
    """M12: the lender's side of one connection lives in another event loop."""
    worker = Worker()
    facade, revoke = capnode.revocable(worker)
    near, _ = await any_road.open(far_index={"get": [facade].pop})
    stub = await near.index.get()
    told = anyio.Event()
    near.on_broken(stub, lambda _error: told.set())
    ready = threading.Event()
    elsewhere: list[str] = []

    async def other_loop() -> None:
        async with capnode.pair(far_index={"get": [facade].pop}) as (mine, _lender):
            theirs = await mine.index.get()
            done = asyncio.Event()

            def tell(error: BaseException) -> None:
                elsewhere.append(str(error))
                done.set()

            mine.on_broken(theirs, tell)
            call = asyncio.ensure_future(theirs.worker().worker())
            await call
            ready.set()
            await done.wait()
            with pytest.raises(RemoteError, match="enough"):
                await theirs.worker()
            del theirs, call

    thread = threading.Thread(target=lambda: asyncio.run(other_loop()))
    thread.start()
    await anyio.to_thread.run_sync(ready.wait)
    revoke("enough")
    await told.wait()
    await anyio.to_thread.run_sync(thread.join)
    assert elsewhere == ["Revoked: enough"]


@pytest.mark.loop
async def test_a_facade_keeps_the_time_limit_of_a_stub(any_road: Any):
    near, _ = await any_road.open(far_index=Worker())
    limited = near.with_options(near.index, timeout=0.01)
    facade, _revoke = capnode.revocable(limited)
    with pytest.raises(TimeoutError, match="within"):
        await facade.work()
    assert await facade.logged == []
    told = anyio.Event()
    near.on_broken(limited, lambda _error: told.set())
    await near.aclose()
    await told.wait()


async def test_an_attenuated_facade_gives_promises_as_they_are(any_road: Any):
    """Nothing is awaited on the way: a chain through it is one round trip."""
    middle, _ = await any_road.open(far_index=Worker())
    facade = capnode.attenuate(middle.index, allow={"worker"})
    near, _ = await any_road.open(far_index=facade)
    stub = await near.index.worker().worker()
    assert await stub.logged == []  # the result of a call is not attenuated
    with pytest.raises(AttributeError):
        await near.index.logged
