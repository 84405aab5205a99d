"""Cancelling: a wait that is given up reaches the handler, once, if nobody else is waiting."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import pytest

import capnode_py as capnode
from capnode_py._messages import CANCEL, Hello
from capnode_py.codec.cbor import CborCodec


class Waiter(capnode.Target):
    """Handlers that wait, and count how often they were started and cancelled."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.go = anyio.Event()
        self.clean = anyio.Event()
        self.changed = anyio.Event()

    def _change(self, what: list[str], name: str) -> None:
        what.append(name)
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self.changed.wait()

    async def wait(self, name: str = "", *_values: Any) -> str:
        self._change(self.started, name)
        try:
            await self.go.wait()
        except anyio.get_cancelled_exc_class():
            self._change(self.cancelled, name)
            raise
        return f"{name} done"

    async def wait_for(self, call: Any, name: str = "") -> Any:
        """Waits for a call of its own."""
        self._change(self.started, name)
        try:
            return await call()
        except anyio.get_cancelled_exc_class():
            self._change(self.cancelled, name)
            raise

    async def stubborn(self, name: str = "", *values: Any) -> Any:
        """Suppresses its cancellation."""
        try:
            return await self.wait(name)
        except anyio.get_cancelled_exc_class():
            return ["late", Waiter(), self.now, *values]

    async def careful(self, name: str = "") -> None:
        """Finishes something that must not be cut short."""
        try:
            await self.wait(name)
        finally:
            with anyio.CancelScope(shield=True):
                await self.clean.wait()
                self._change(self.cancelled, f"{name} cleaned up")

    def now(self, name: str) -> str:
        self._change(self.started, name)
        return name


async def _give_up(promise: Any, waiter: Waiter, name: str = "") -> None:
    """Wait for a promise until its handler has started, then give up."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(_expect_cancel, promise)
            await waiter.until(lambda: name in waiter.started)
            scope.cancel()


async def _call(method: Any, *values: Any) -> None:
    """Holds neither the promise nor its value."""
    await method(*values)


async def _expect_cancel(promise: Any) -> None:
    await promise
    pytest.fail("the wait was not cancelled")


@pytest.mark.loop
async def test_a_cancelled_wait_cancels_the_handler_once(road):
    """K1."""
    waiter = Waiter()
    near, _ = await road.open(far_index=waiter)
    await _give_up(near.index.wait(), waiter)
    await waiter.until(lambda: bool(waiter.cancelled))
    await near.ping()
    assert waiter.cancelled == [""]
    assert await near.index.now("alive") == "alive"


@pytest.mark.loop
async def test_a_timeout_cancels_the_handler(any_road):
    """K1."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            await near.index.wait()
    await waiter.until(lambda: bool(waiter.cancelled))
    assert waiter.cancelled == [""]


@pytest.mark.drivers("asyncio", "uvloop")
async def test_asyncios_own_ways_to_cancel_reach_the_handler(any_road):
    """K1: task.cancel, wait_for, timeout, each as asyncio's own CancelledError, once."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)

    async def call(name: str) -> None:
        await near.index.wait(name)

    task = asyncio.create_task(call("task"))
    await waiter.until(lambda: "task" in waiter.started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(near.index.wait("wait_for"), 0.01)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.gather(near.index.wait("gather"), near.index.wait("gather too"))
    await waiter.until(lambda: len(waiter.cancelled) == 4)
    assert sorted(waiter.cancelled) == ["gather", "gather too", "task", "wait_for"]


@pytest.mark.drivers("trio")
async def test_trios_own_ways_to_cancel_reach_the_handler(any_road):
    """K1: a deadline, a scope, a nursery whose other task fails; each as trio's Cancelled, once."""
    import trio

    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(0.01):
            await near.index.wait("deadline")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_cancel, near.index.wait("scope"))
            await waiter.until(lambda: "scope" in waiter.started)
            scope.cancel()

    async def fail() -> None:
        await waiter.until(lambda: "nursery" in waiter.started)
        raise LookupError("the other task")

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_expect_cancel, near.index.wait("nursery"))
            nursery.start_soon(fail)
    assert caught.group_contains(LookupError)
    await waiter.until(lambda: len(waiter.cancelled) == 3)
    await near.ping()
    assert sorted(waiter.cancelled) == ["deadline", "nursery", "scope"]


@pytest.mark.drivers("asyncio", "uvloop")
async def test_a_shielded_call_goes_on(any_road):
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    shielded = asyncio.ensure_future(near.index.wait())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(shielded), 0.001)
    waiter.go.set()
    assert await shielded == " done"
    assert waiter.cancelled == []


@pytest.mark.loop
async def test_promise_cancel_withdraws_the_call(any_road):
    """K1."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    promise = near.index.wait()
    await waiter.until(lambda: bool(waiter.started))
    promise.cancel()
    promise.cancel()
    with pytest.raises(capnode.RemoteError, match="handler was cancelled"):
        await promise
    assert waiter.cancelled == [""]
    promise.cancel()  # it is over: nothing happens


async def test_a_call_cancelled_in_the_turn_it_was_made_is_not_started(any_road):
    """K7."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    await near.ping()
    promises = [near.index.wait("a"), near.index.now("b")]
    for promise in promises:
        promise.cancel()
    near.index.now("c")
    for promise in promises:
        with pytest.raises(capnode.RemoteError, match="handler was cancelled"):
            await promise
    await near.ping()
    assert waiter.started == ["c"]


@pytest.mark.loop
async def test_a_wait_cancelled_before_it_began_is_withdrawn_too(any_road):
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await near.index.wait()
    await near.ping()
    assert waiter.started == waiter.cancelled


@pytest.mark.loop
async def test_cancelling_one_of_several_waiters_does_not_cancel_the_call(any_road):
    waiter, got = Waiter(), []
    near, _ = await any_road.open(far_index=waiter)
    promise = near.index.wait("call")

    async def wait() -> None:
        got.append(await promise)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        group.start_soon(wait)
        await _give_up(promise, waiter, "call")
        await near.ping()
        assert waiter.cancelled == []
        waiter.go.set()
    assert got == ["call done"] * 2
    assert waiter.cancelled == []


@pytest.mark.loop
async def test_cancelling_the_last_waiter_cancels_the_call(any_road):
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    promise = near.index.wait("call")
    with anyio.CancelScope() as outer:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(_expect_cancel, promise)
            await waiter.until(lambda: bool(waiter.started))
            outer.cancel()
    await waiter.until(lambda: bool(waiter.cancelled))
    await near.ping()
    assert waiter.cancelled == ["call"]
    with pytest.raises(capnode.RemoteError, match="handler was cancelled"):
        await promise


@pytest.mark.loop
async def test_a_call_that_others_build_on_is_not_cancelled(any_road):
    """K8."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    promise = near.index.wait("call")
    dependent = near.index.now(promise)
    await _give_up(promise, waiter, "call")
    await near.ping()
    assert waiter.cancelled == []
    waiter.go.set()
    assert await dependent == "call done"


@pytest.mark.loop
async def test_a_call_that_others_are_made_through_is_cancelled_with_the_last_of_them(any_road):
    """K8: whichever of them is given up first; and then once."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    promise = near.index.wait("call")
    through, given, twice = promise.upper(), near.index.now(promise), promise.x.y
    await _give_up(promise, waiter, "call")
    for dependent in (given, twice(), through):
        await near.ping()
        assert waiter.cancelled == []
        with anyio.CancelScope() as scope:
            scope.cancel()
            await dependent
    await waiter.until(lambda: bool(waiter.cancelled))
    await near.ping()
    assert waiter.started == waiter.cancelled == ["call"]


@pytest.mark.loop
async def test_dropping_a_promise_does_not_cancel(any_road):
    """K2."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    near.index.wait("dropped")
    await waiter.until(lambda: bool(waiter.started))
    await near.ping()
    assert waiter.cancelled == []
    waiter.go.set()
    await near.ping()


@pytest.mark.loop
async def test_cancelling_goes_on_through_the_calls_of_the_handler(any_road):
    """A handler that waits for our own call: that one is cancelled as well, here."""
    there, here = Waiter(), Waiter()
    near, _ = await any_road.open(far_index=there)
    await _give_up(near.index.wait_for(here.wait, "outer"), there, "outer")
    await there.until(lambda: bool(there.cancelled))
    assert there.cancelled == ["outer"]
    if here.started:
        await here.until(lambda: bool(here.cancelled))
        assert here.cancelled == [""]


@pytest.mark.loop
async def test_cancelling_reaches_a_callback_two_hops_away(road):
    """K1."""
    there, here = Waiter(), Waiter()
    near, _ = await road.open(far_index=there)
    promise = near.index.wait_for(here.wait, "outer")
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(_expect_cancel, promise)
            await here.until(lambda: bool(here.started))
            scope.cancel()
    await here.until(lambda: bool(here.cancelled))
    assert (there.cancelled, here.cancelled) == (["outer"], [""])


@pytest.mark.loop
async def test_the_late_result_of_a_stubborn_handler_leaks_nothing(any_road):
    """K4, K5: though it holds references of both sides; and that does not take a collection."""
    waiter = Waiter()
    near, far = await any_road.open(far_index=waiter)
    gc.disable()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_call, near.index.stubborn, "s", lambda: None)
            await waiter.until(lambda: bool(waiter.started))
            group.cancel_scope.cancel()
        await waiter.until(lambda: bool(waiter.cancelled))
        for _ in range(10):
            await near.ping()
        assert waiter.cancelled == ["s"]
        assert [(s.imports, s.exports) for s in (near.stats(), far.stats())] == [(1, 1)] * 2
    finally:
        gc.enable()


@pytest.mark.loop
async def test_the_traceback_of_a_cancelled_wait_keeps_no_late_result(any_road):
    """K5."""
    waiter = Waiter()
    near, far = await any_road.open(far_index=waiter)
    kept: list[Any] = []

    async def call() -> None:
        try:
            await near.index.stubborn("s")
        except BaseException as error:
            kept.append(error.__traceback__)
            raise

    gc.disable()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await waiter.until(lambda: bool(waiter.started))
            group.cancel_scope.cancel()
        await waiter.until(lambda: bool(waiter.cancelled))
        for _ in range(10):
            await near.ping()
        assert [(s.imports, s.exports) for s in (near.stats(), far.stats())] == [(1, 1)] * 2
        assert kept
    finally:
        gc.enable()


@pytest.mark.loop
async def test_a_cancelled_call_gives_up_what_it_was_given(any_road):
    """K3: while its handler runs, while it waits for a promise, and before it has left."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    gone: list[weakref.ref[Any]] = []

    def callback() -> Any:
        def made() -> None: ...

        gone.append(weakref.ref(made))
        return made

    gc.disable()
    try:
        await _give_up(near.index.wait("a", callback()), waiter, "a")
        blocked = near.index.wait("b")
        waiting = near.index.wait("c", callback(), blocked)
        await waiter.until(lambda: "b" in waiter.started)
        waiting.cancel()
        near.index.wait("d", callback()).cancel()
        for _ in range(10):
            await near.ping()
        assert [ref() for ref in gone] == [None] * 3  # it did not take a collection
    finally:
        gc.enable()
    assert waiter.started == ["a", "b"]
    assert waiter.cancelled == ["a"]
    waiter.go.set()
    assert await blocked == "b done"


@pytest.mark.loop
async def test_a_handler_may_finish_a_shielded_cleanup(any_road):
    """K6: and its caller does not wait for it."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    await _give_up(near.index.careful("c"), waiter, "c")
    await waiter.until(lambda: waiter.cancelled == ["c"])
    await near.ping()
    assert waiter.cancelled == ["c"]  # its caller is here, and it is not through
    waiter.clean.set()
    await waiter.until(lambda: waiter.cancelled == ["c", "c cleaned up"])


@pytest.mark.loop
async def test_a_handler_that_cancels_itself_is_an_error_to_the_caller(any_road):
    async def cancel_myself() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    async def raise_cancelled() -> None:
        raise asyncio.CancelledError

    far_index: dict[str, Any] = {"cancel_myself": cancel_myself, "raise_it": raise_cancelled}
    near, _ = await any_road.open(far_index=far_index)
    assert await near.index.cancel_myself() is None
    with pytest.raises(capnode.RemoteError, match="handler was cancelled") as caught:
        await near.index.raise_it()
    assert not isinstance(caught.value, asyncio.CancelledError)
    await near.ping()


@pytest.mark.loop
async def test_a_threaded_handler_runs_on_and_its_caller_goes(any_road):
    started, go, finished = anyio.Event(), threading.Event(), threading.Event()

    @capnode.in_thread
    def work(tell: Any) -> None:
        capnode.wait(tell())
        go.wait(10)
        finished.set()

    near, _ = await any_road.open(far_index={"work": work})

    def tell() -> None:
        started.set()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(_expect_cancel, near.index.work(tell))
            await started.wait()
            scope.cancel()
    go.set()
    assert await anyio.to_thread.run_sync(finished.wait, 10)


@pytest.mark.loop
async def test_cancelling_a_kept_call_drops_it(any_road):
    """A call through a promise that is still waiting: nothing of it starts."""
    waiter = Waiter()
    near, _ = await any_road.open(far_index=waiter)
    first = near.index.wait("first")
    second = near.index.now(first)
    await waiter.until(lambda: bool(waiter.started))
    second.cancel()
    with pytest.raises(capnode.RemoteError, match="handler was cancelled"):
        await second
    waiter.go.set()
    assert await first == "first done"
    assert waiter.started == ["first"]


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_cancel_that_comes_right_behind_its_call_is_not_lost(driver, position):
    """In the next frame of the same read: where starting takes a task, that has not run yet."""
    waiter = Waiter()
    ours, theirs = socket.socketpair()
    codec = CborCodec(capnode.Limits())
    theirs.sendall(codec.hello(Hello(versions=[1])))
    peer = await capnode.attach(ours, index=waiter)
    calls = [
        bytes(codec.frame([bytes(codec.call(0, ("wait",), [str(n)], {}, _no_ref))]))
        for n in range(3)
    ]
    theirs.sendall(b"".join(calls) + bytes(codec.frame([codec.control(CANCEL, position + 1)])))
    others = {"0", "1", "2"} - {str(position)}
    await waiter.until(lambda: others <= set(waiter.started))
    while peer.stats().messages_received < 4:
        await anyio.lowlevel.checkpoint()
    waiter.go.set()
    while peer.stats().messages_sent < 3:  # each is answered
        await anyio.lowlevel.checkpoint()
    theirs.close()
    await peer.wait_closed()
    assert waiter.cancelled == [name for name in waiter.started if name == str(position)]


def _no_ref(value: Any) -> Any:
    raise AssertionError(value)
