"""Calling: the index, paths and names, stubs and promises in the hand, handlers, threads."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import capnode_py as capnode
from capnode_py._cell import Cell


class Account(capnode.Target):
    """What a peer may reach of a Target, and what not."""

    kind = "class attribute"
    nested = type("Nested", (), {})

    def __init__(self) -> None:
        self.balance = 100  # an instance attribute
        self.action = lambda: "stored in the instance"
        self._opened = True

    def deposit(self, amount: int, *, note: str = "") -> str:
        return f"{amount}{note}"

    @property
    def owner(self) -> str:
        return "Ann"

    @property
    def broken(self) -> str:
        raise LookupError("no owner")

    @property
    def history(self) -> list[dict[str, Any]]:
        return [{"amount": 1}, {"amount": 2, "undo": lambda: "undone"}]

    def _private(self) -> None: ...


# The index.


async def test_a_dict_index_is_live(any_road):
    far_index: dict[str, Any] = {"one": 1}
    near, _ = await any_road.open(far_index=far_index)
    with pytest.raises(LookupError, match="later"):
        await near.index.later
    far_index["later"] = lambda: "here"
    assert await near.index.later() == "here"
    del far_index["later"]
    with pytest.raises(KeyError):
        await near.index.later()


async def test_an_index_can_be_an_object(any_road):
    near, _ = await any_road.open(far_index=Account())
    assert await near.index.deposit(5, note="!") == "5!"
    assert await near.index.owner == "Ann"
    assert isinstance(await near.request_index(), capnode.Stub)


async def test_an_index_can_be_a_function_and_is_not_called_by_the_door(any_road):
    calls: list[int] = []

    def called(n: int) -> None:
        calls.append(n)

    near, _ = await any_road.open(far_index=called)
    assert calls == []
    await near.index(1)
    assert calls == [1]


async def test_every_kind_of_function_can_be_an_index(any_road):
    kept: list[int] = []
    for index in (len, kept.append, functools.partial(len), Account().deposit):
        near, _ = await any_road.open(far_index=index)
        with pytest.raises(TypeError):
            await near.index(1, 2, 3)


@pytest.mark.parametrize("index", [Account, object(), [1], "text", 3])
def test_a_door_refuses_what_is_no_index(index):
    with pytest.raises(TypeError, match="an index is"):
        _ = capnode.pair(index)


# Names and paths.


async def test_paths_of_names_and_integers_reach_into_data(road):
    far_index = {
        "config": {"theme": "dark", "list": [10, {"deep": lambda: "called"}], "_x": 1, "": 2},
        "dealloc": "a far name",
    }
    near, _ = await road.open(far_index=far_index)
    config = near.index.config
    assert await config.theme == "dark"
    assert await config["theme"] == "dark"
    assert await config.list[0] == 10
    assert await config.list[-2] == 10
    assert await config.list[1].deep() == "called"
    assert await config.list[1]["deep"]() == "called"
    assert await near.index["config"]["_x"] == 1
    assert await config[""] == 2
    assert await near.index["dealloc"] == "a far name"


async def test_awaiting_a_path_reads_anew_and_an_answer_is_kept(any_road):
    far_index: dict[str, Any] = {"n": 1}
    near, _ = await any_road.open(far_index={"data": far_index, "n": lambda: far_index["n"]})
    path, answer = near.index.data.n, near.index.n()
    assert (await path, await answer) == (1, 1)
    far_index["n"] = 2
    assert (await path, await answer) == (2, 1)


async def test_properties_are_read_and_reached_through(any_road):
    near, _ = await any_road.open(far_index=Account())
    assert await near.index.owner == "Ann"
    assert await near.index.history[1].amount == 2
    assert await near.index.history[1].undo() == "undone"
    with pytest.raises(LookupError, match="no owner"):
        await near.index.broken
    with pytest.raises(LookupError, match="no owner"):
        await near.index.broken.and_more()


UNREACHABLE = (
    *("balance", "action", "kind", "nested", "missing", "__init__", "__class__", "__dict__"),
    *("_private", "_opened", "__reduce__", "__call__", "", "owner.upper"),
)


async def test_only_public_methods_and_properties_of_a_class_are_reached(any_road, subtests):
    near, _ = await any_road.open(far_index={"account": Account()})
    account = await near.index.account
    for name in UNREACHABLE:
        with subtests.test(name):
            for reach in (
                account[name],
                account[name](),
                account[name].x,
                near.index.account[name],
            ):
                with pytest.raises(AttributeError) as caught:
                    await reach
                assert "deposit" not in str(caught.value)  # an error lists nothing that exists


ELSEWHERE: list[tuple[tuple[str | int, ...], type[Exception]]] = [
    (("function", "__globals__"), AttributeError),
    (("function", "__call__"), AttributeError),
    (("function", "x"), AttributeError),
    (("text", "upper"), AttributeError),
    (("text", 0), AttributeError),
    (("none", "x"), AttributeError),
    (("data", "missing"), KeyError),
    (("data", "keys"), KeyError),
    (("data", 0), KeyError),
    (("list", "append"), TypeError),
    (("list", 5), IndexError),
    (("list", "0"), TypeError),
    (("account", 0), TypeError),
]


async def test_nothing_else_is_reached(any_road, subtests):
    far_index: dict[str, Any] = {"function": lambda: 1, "text": "t", "data": {}, "list": [1]}
    far_index |= {"account": Account(), "none": None}
    near, _ = await any_road.open(far_index=far_index)
    for path, error in ELSEWHERE:
        with subtests.test(str(path)):
            promise = functools.reduce(lambda at, step: at[step], path, near.index)
            for use in (promise, promise(1), promise.more(2)):
                with pytest.raises(error) as caught:
                    await use
                assert isinstance(caught.value, capnode.RemoteError)


async def test_wrong_arguments_are_the_callers_type_error(any_road):
    near, _ = await any_road.open(far_index=Account())
    with pytest.raises(TypeError, match="amount"):
        await near.index.deposit()
    with pytest.raises(TypeError, match="speed"):
        await near.index.deposit(1, speed=2)
    with pytest.raises(TypeError, match="cannot be called"):
        await near.index.owner()


# Stubs and promises in the hand.


async def test_underscore_attributes_raise_here_and_cross_as_a_step(any_road):
    near, _ = await any_road.open(far_index={"_x": 1, "account": Account()})
    sent = near.stats().messages_sent
    for far in (near.index, near.index.account, near.index.account.owner()):
        with pytest.raises(AttributeError, match=r"write \['_x'\]"):
            far._x  # noqa: B018
        assert not hasattr(far, "__len__")
        assert not hasattr(far, "_repr_html_")
    assert near.stats().messages_sent - sent <= 1  # the call of owner, if it has left already
    assert await near.index["_x"] == 1
    with pytest.raises(AttributeError, match="private"):
        await near.index.account["_opened"]


async def test_misuse_of_a_promise_teaches(any_road):
    near, _ = await any_road.open(far_index=Account())
    promise = near.index.deposit(1)
    with pytest.raises(TypeError, match="did you forget await"):
        bool(promise)
    with pytest.raises(TypeError, match="did you forget await"):
        assert not near.index.owner
    for far in (near.index, promise, near.index.owner):
        with pytest.raises(TypeError):
            list(far)
        with pytest.raises(TypeError):
            "x" in far  # noqa: B015
        with pytest.raises(TypeError, match="slices and tuples do not cross"):
            far[0:1]
        with pytest.raises(TypeError, match="str or an int, not bool"):
            far[True]
        with pytest.raises(TypeError):
            len(far)
        with pytest.raises(AttributeError):
            far._private = 1
    with pytest.raises(TypeError, match="await"):
        await near.index


async def test_reprs_tell_what_it_is(any_road):
    near, _ = await any_road.open(far_index={"account": Account()})
    account = await near.index.account
    read, failing = near.index.account.owner, near.index.account.missing()
    answer = account.deposit(1)

    def told(far: Any, *words: str) -> bool:
        text = repr(far)
        return text.startswith(f"<{type(far).__name__}") and all(word in text for word in words)

    assert told(near.index, "index", "far")
    assert told(account, "#1", "far")
    assert told(read[0], "index", "account.owner[0]", "far")
    assert told(answer, "pending")
    assert told(answer.more[1], "pending", ".more[1]")
    await answer
    assert told(answer, "fulfilled")
    with pytest.raises(AttributeError):
        await failing
    assert told(failing, "rejected")
    assert told(near, "far", "2 imports", "1 exports")
    account.dealloc()
    assert told(account, "far", "released")
    await near.aclose()
    assert told(near.index, "gone")
    assert told(near, "closed")


async def test_dealloc_ends_a_stub_for_all_its_holders(any_road):
    """G7."""
    account = Account()
    near, far = await any_road.open(far_index={"account": account})
    stub = await near.index.account
    same = await near.index.account
    pending = stub.deposit(1)
    stub.dealloc()
    stub.dealloc()
    assert await pending == "1"  # what was called before is still delivered
    for use in (lambda: stub.deposit(1), lambda: same.owner(), lambda: near.index.x(same)):
        with pytest.raises(capnode.Released, match="given up here"):
            use()
    with pytest.raises(capnode.Released):
        near.notify(stub)
    with pytest.raises(capnode.Released):
        await stub.owner
    await near.ping()
    assert far.stats().exports == 1
    again = await near.index.account
    assert again is not stub
    assert await again.owner == "Ann"


async def test_a_stub_is_given_up_at_the_end_of_its_with_block(any_road):
    near, far = await any_road.open(far_index={"account": Account()})
    with await near.index.account as account:
        assert await account.owner == "Ann"
    with pytest.raises(capnode.Released):
        account.deposit(1)
    await near.ping()
    assert far.stats().exports == 1


async def test_the_index_cannot_be_given_up(any_road):
    near, _ = await any_road.open(far_index=Account())
    near.index.dealloc()
    assert await near.index.owner == "Ann"


# One way.


async def test_notify_calls_and_nothing_comes_back(road):
    seen: list[Any] = []
    near, far = await road.open(far_index={"see": seen.append, "api": {"see": seen.extend}})
    await near.ping()
    sent = far.stats().messages_sent
    near.notify(near.index.see, 1)
    near.notify(near.index.api.see, [2, 3])
    near.notify(near.index.missing, 1)  # not even an error
    await near.ping()
    assert seen == [1, 2, 3]
    assert far.stats().messages_sent - sent == 1  # the pong
    assert (near.stats().imports, far.stats().exports) == (1, 1)


@pytest.mark.loop
async def test_notify_carries_keywords_references_and_promises(any_road):
    seen: list[Any] = []

    async def take(value: Any, *, then: Any) -> None:
        seen.append(value)
        await then("taken")

    near, _ = await any_road.open(far_index={"take": take, "one": lambda: 1})
    done = anyio.Event()

    def then(word: str) -> None:
        seen.append(word)
        done.set()

    near.notify(near.index.take, near.index.one(), then=then)
    await done.wait()
    assert seen == [1, "taken"]


async def test_notify_on_a_promise_waits_for_it(any_road):
    seen: list[int] = []
    near, _ = await any_road.open(far_index={"log": lambda: {"add": seen.append}})
    near.notify(near.index.log().add, 7)
    await near.ping()
    assert seen == [7]


async def test_notify_teaches_what_it_takes(any_road):
    near, _ = await any_road.open()
    for method in (near.notify, near.submit):
        with pytest.raises(TypeError, match=r"takes something far, as in"):
            method(print, "text")


# Callbacks and handlers.


async def test_callbacks_in_callbacks_fifty_deep(road):
    """C3, rule 11."""

    async def down(depth: int, other: Any) -> int:
        return 0 if depth == 0 else 1 + await other(depth - 1, down)

    near, _ = await road.open(far_index={"down": down})
    assert await near.index.down(50, down) == 50


async def test_a_callback_is_called_while_its_call_runs(road):
    seen: list[tuple[int, int]] = []

    async def work(text: str, on_progress: Any) -> str:
        for step in range(3):
            await on_progress(step, 3)
        return text.upper()

    near, _ = await road.open(far_index={"work": work})

    def on_progress(done: int, total: int) -> None:
        seen.append((done, total))

    assert await near.index.work("beep", on_progress=on_progress) == "BEEP"
    assert seen == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.loop
async def test_handlers_can_be_sync_async_threaded_or_awaitable(road):
    threads: list[Any] = []

    @capnode.in_thread
    def threaded(n: int) -> int:
        threads.append(threading.current_thread())
        return n + 2

    class Awaitable:
        def __await__(self) -> Any:
            return asynchronous(10).__await__()

    async def asynchronous(n: int) -> int:
        await anyio.lowlevel.checkpoint()
        return n + 1

    near, _ = await road.open(
        far_index={
            "sync": lambda n: n,
            "async": asynchronous,
            "partial": functools.partial(asynchronous, 5),
            "thread": threaded,
            "awaitable": lambda: Awaitable(),
        }
    )
    assert await near.index.sync(1) == 1
    assert await near.index["async"](1) == 2
    assert await near.index.partial() == 6
    assert await near.index.thread(1) == 3
    assert await near.index.awaitable() == 11
    assert threads[0] is not threading.current_thread()


@pytest.mark.loop
async def test_in_thread_marks_methods_too(any_road):
    class Slow(capnode.Target):
        @capnode.in_thread
        def name(self) -> str:
            return threading.current_thread().name

    near, _ = await any_road.open(far_index=Slow())
    assert await near.index.name() != threading.current_thread().name


async def test_what_an_in_thread_handler_gives_to_await_is_awaited(any_road):
    """In the loop, where one is: as for a handler that is not in a thread."""
    threads: list[str] = []

    async def rest(value: int) -> int:
        threads.append(threading.current_thread().name)
        return value

    @capnode.in_thread
    def begin(value: int) -> Any:
        threads.append(threading.current_thread().name)
        return rest(value)

    near, _ = await any_road.open(far_index={"begin": begin})
    assert await near.index.begin(5) == 5
    assert threads[1] == threading.current_thread().name


def test_in_thread_is_for_sync_handlers():
    with pytest.raises(TypeError, match="sync"):

        @capnode.in_thread
        async def handler() -> None: ...


async def test_a_method_that_is_read_and_not_called_is_a_stub(any_road):
    near, _ = await any_road.open(far_index=Account())
    deposit = await near.index.deposit
    assert isinstance(deposit, capnode.Stub)
    assert await deposit(5) == "5"


async def test_current_peer_is_the_caller_in_every_kind_of_handler(any_road):
    seen: dict[str, Any] = {}

    def see(name: str) -> None:
        seen[name] = capnode.current_peer()

    async def see_async(name: str, call: Any) -> None:
        see(name)
        await call()
        see(name + " after")

    class Api(capnode.Target):
        sync = staticmethod(see)
        threaded = staticmethod(capnode.in_thread(lambda name: see(name)))
        asynchronous = staticmethod(see_async)

        @property
        def read(self) -> None:
            see("property")

    near, far = await any_road.open(far_index=Api())
    await near.index.sync("sync")
    await near.index.threaded("thread")
    await near.index.asynchronous("async", lambda: see("callback"))
    await near.index.read
    assert {name: peer is far for name, peer in seen.items()} == {
        "sync": True,
        "thread": True,
        "async": True,
        "async after": True,
        "property": True,
        "callback": False,
    }
    assert seen["callback"] is near
    with pytest.raises(RuntimeError, match="no call is being handled here"):
        capnode.current_peer()


async def test_a_handler_can_call_its_caller_by_current_peer(any_road):
    async def greet() -> str:
        return "hello " + await capnode.current_peer().index.name()

    near, _ = await any_road.open(index={"name": lambda: "Ann"}, far_index={"greet": greet})
    assert await near.index.greet() == "hello Ann"


# Threads.


async def test_wait_blocks_in_a_threaded_handler(road):
    @capnode.in_thread
    def work(call: Any) -> list[Any]:
        first = capnode.wait(call(1))
        both = [call(2), call(3)]
        return [first, *map(capnode.wait, both), capnode.wait(capnode.current_peer().index.name)]

    near, _ = await road.open(index={"name": "near"}, far_index={"work": work})
    assert await near.index.work(lambda n: n * 10) == [10, 20, 30, "near"]


@pytest.mark.loop
async def test_threaded_callbacks_fifty_deep(any_road):
    """Rule 11: each level holds a thread while it waits for the next."""

    @capnode.in_thread
    def down(depth: int, other: Any) -> int:
        return 0 if depth == 0 else 1 + capnode.wait(other(depth - 1, down))

    near, _ = await any_road.open(far_index={"down": down})
    with anyio.fail_after(10):
        assert await near.index.down(50, down) == 50


@pytest.mark.loop
async def test_a_threaded_handler_that_calls_after_the_end_gets_an_error(any_road):
    started, go, ended = anyio.Event(), threading.Event(), threading.Event()
    outcomes: list[str] = []

    @capnode.in_thread
    def work(tell: Any) -> None:
        capnode.wait(tell())
        go.wait(10)
        try:
            capnode.wait(tell())
        except capnode.CapnodeError as error:
            outcomes.append(type(error).__name__)
        ended.set()

    def tell() -> None:
        started.set()

    quick = capnode.Limits(close_timeout=0.02)
    near, far = await any_road.open(far_index={"work": work}, limits=quick, far_limits=quick)
    near.index.work(tell)
    await started.wait()
    await near.aclose()
    await far.aclose()
    go.set()
    assert await anyio.to_thread.run_sync(ended.wait, 5)
    assert outcomes in (["PeerLost"], ["PeerClosed"])


@pytest.mark.loop
async def test_wait_raises_what_the_call_raised_and_a_timeout_cancels_it(any_road):
    cancelled = anyio.Event()

    async def for_ever() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    def fail() -> None:
        raise LookupError("no")

    @capnode.in_thread
    def work(fail: Any, for_ever: Any) -> str:
        with pytest.raises(LookupError, match="no"):
            capnode.wait(fail())
        with pytest.raises(TimeoutError):
            capnode.wait(for_ever(), timeout=0.001)
        return "done"

    near, _ = await any_road.open(far_index={"work": work})
    assert await near.index.work(fail, for_ever) == "done"
    await cancelled.wait()


@pytest.mark.loop
async def test_wait_refuses_to_block_the_loop(any_road):
    near, _ = await any_road.open(far_index={"one": lambda: 1})
    promise = near.index.one()
    with pytest.raises(RuntimeError, match="write await promise"):
        capnode.wait(promise)
    assert await promise == 1


@pytest.mark.loop
async def test_submit_calls_from_any_thread(any_road):
    async def add(a: int, b: int = 0) -> int:
        return a + b

    near, _ = await any_road.open(far_index={"add": add, "data": {"n": 5}, "fail": lambda: 1 // 0})

    def in_thread() -> list[Any]:
        future = near.submit(near.index.add, 1, b=2)
        assert isinstance(future, Future)
        with pytest.raises(ZeroDivisionError):
            near.submit(near.index.fail).result()
        with pytest.raises(capnode.CannotPass):
            near.submit(near.index.add, object()).result()
        return [future.result(), near.submit(near.index["add"], 3).result()]

    assert await anyio.to_thread.run_sync(in_thread) == [3, 3]


@pytest.mark.loop
async def test_cancelling_a_submitted_future_withdraws_the_call(any_road):
    started, cancelled = anyio.Event(), anyio.Event()

    async def for_ever() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    near, _ = await any_road.open(far_index={"for_ever": for_ever})
    future = near.submit(near.index.for_ever)
    await started.wait()
    assert future.cancel()
    await cancelled.wait()


@pytest.mark.loop
async def test_submit_fails_when_the_peer_is_closed(any_road):
    near, _ = await any_road.open(far_index={"one": lambda: 1})
    one = near.index.one
    await near.aclose()
    with pytest.raises(capnode.PeerClosed):
        await anyio.to_thread.run_sync(lambda: near.submit(one).result())


async def test_a_submitted_call_that_the_end_hits_has_an_error_of_its_own(any_road):
    """Its traceback would otherwise grow on the connection's own error, and hold its frames."""

    near, _ = await any_road.open()
    error = capnode.PeerLost("the connection broke")
    future: Future[Any] = Future()
    cell = Cell(near._session)
    cell.watch(functools.partial(near._driver._tell_future, future))
    cell.reject(error)  # as all that pend are at the end
    await near.ping()
    told = future.exception(0)
    assert told is not error
    assert repr(told) == repr(error)


@pytest.mark.loop
async def test_a_call_from_a_foreign_thread_raises_and_names_submit(any_road):
    near, _ = await any_road.open(far_index={"one": lambda: 1})
    stub, errors = near.index, []

    def foreign() -> None:
        for use in (stub, stub.one, lambda: near.notify(stub.one)):
            try:
                use()
            except RuntimeError as error:
                errors.append(str(error))

    thread = threading.Thread(target=foreign)
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert len(errors) == 3
    assert all("peer.submit(" in error for error in errors)
    assert await stub.one() == 1


@pytest.mark.drivers("asyncio")
async def test_a_call_from_another_loop_raises_and_names_submit(any_road):
    near, _ = await any_road.open(far_index={"one": lambda: 1})
    stub = near.index

    async def call() -> None:
        await stub.one()

    with pytest.raises(RuntimeError, match=r"peer.submit\("):
        await anyio.to_thread.run_sync(asyncio.run, call())


@contextlib.asynccontextmanager
async def elsewhere(index: Any) -> AsyncIterator[tuple[capnode.Peer, Any]]:
    """A peer that lives in another thread, with a loop of its own, and a promise that it made."""
    opened: Future[Any] = Future()

    async def live() -> None:
        close = asyncio.Event()
        async with capnode.pair(far_index=index) as (near, _):
            opened.set_result((near, near.index.one(), asyncio.get_running_loop(), close))
            await close.wait()

    thread = threading.Thread(target=asyncio.run, args=[live()])
    thread.start()
    near, promise, loop, close = await anyio.to_thread.run_sync(opened.result)
    try:
        yield near, promise
    finally:
        loop.call_soon_threadsafe(close.set)
        await anyio.to_thread.run_sync(thread.join)


@pytest.mark.loop
async def test_references_of_another_loop_are_refused_at_the_call(any_road):
    near, _ = await any_road.open(far_index={"see": lambda value: None})
    async with elsewhere({"one": lambda: 1}) as (other, promise):
        for value in (other.index, other.index.one, promise):
            with pytest.raises((capnode.CannotPass, RuntimeError), match="another thread"):
                near.index.see([value])
            with pytest.raises((capnode.CannotPass, RuntimeError), match="another thread"):
                near.notify(near.index.see, it=value)
        assert await anyio.to_thread.run_sync(other.submit(other.index.one).result) == 1


@pytest.mark.loop
async def test_stubs_can_be_dropped_in_any_thread(any_road):
    """G5."""
    near, far = await any_road.open(far_index={"things": lambda: [Account() for _ in range(50)]})
    things = await near.index.things()
    await near.ping()
    assert far.stats().exports == 51
    await anyio.to_thread.run_sync(things.clear)
    while far.stats().exports > 1:
        await near.ping()


@pytest.mark.loop
async def test_stubs_can_be_collected_in_any_thread(any_road):
    """G5: where the collector finds them in circles; a promise too."""
    near, far = await any_road.open(far_index={"things": lambda: [Account() for _ in range(50)]})
    things = [*await near.index.things(), near.index.things()]
    await near.ping()
    assert far.stats().exports > 100
    gc.disable()
    try:
        for circle in [[thing] for thing in things]:
            circle.append(circle)
        things.clear()
        del circle
        await near.ping()
        assert far.stats().exports > 100
        await anyio.to_thread.run_sync(gc.collect)
    finally:
        gc.enable()
    while far.stats().exports > 1:
        await near.ping()


# The peer.


@pytest.mark.parametrize("far_driver", ["asyncio", "uvloop", "trio"])
async def test_peers_on_different_loops_understand_each_other(driver, far_driver):
    if not find_spec(far_driver):
        pytest.skip(f"{far_driver} is not installed")
    ours, theirs = socket.socketpair()

    async def greet(call: Any) -> str:
        return "hello " + await call()

    async def serve() -> None:
        async with capnode.attach(theirs, index={"greet": greet}) as peer:
            await peer.wait_closed()

    def run() -> None:
        if far_driver == "asyncio":
            asyncio.run(serve())
        else:
            import_module(far_driver).run(serve() if far_driver == "uvloop" else serve)

    thread = threading.Thread(target=run)
    thread.start()
    async with capnode.attach(ours) as peer:
        assert await peer.index.greet(lambda: "Ann") == "hello Ann"
    await anyio.to_thread.run_sync(thread.join)


async def test_peers_know_each_other_by_their_hellos(any_road):
    near, far = await any_road.open()
    assert near.nickname == "far"
    assert near.info is not None
    assert near.info.versions == [1]
    assert near.info.application
    assert near.info.max_frame == capnode.Limits().max_frame
    assert "secret" not in repr(near.info)
    assert near.info.session_id != far.info.session_id
    assert (near.pid, near.returncode, near.is_closed) == (None, None, False)


async def test_a_quiet_connection_shows_the_two_indexes(road):
    near, far = await road.open(far_index={"add": lambda a, b: a + b})
    for _ in range(20):
        assert await near.index.add(1, 2) == 3
    await near.ping()
    stats = near.stats()
    assert (stats.imports, stats.exports, stats.unsent_bytes) == (1, 1, 0)
    assert far.stats().exports == 1


@pytest.mark.loop
async def test_a_plain_call_is_one_message_each_way(any_road):
    near, far = await any_road.open(far_index={"add": lambda a, b: a + b})
    await near.ping()
    sent, answered = near.stats().messages_sent, far.stats().messages_sent
    async with anyio.create_task_group() as group:
        for n in range(100):
            group.start_soon(_expect, near, n)
    # Releases ride along: at most one more a frame.
    assert 100 <= near.stats().messages_sent - sent <= 105
    assert 100 <= far.stats().messages_sent - answered <= 105


async def _expect(peer: Any, n: int) -> None:
    assert await peer.index.add(n, 1) == n + 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="3.11 has no eager tasks")
@pytest.mark.drivers("asyncio")
async def test_peers_work_in_a_loop_with_eager_tasks(any_road):
    factory: Any = vars(asyncio)["eager_task_factory"]
    asyncio.get_running_loop().set_task_factory(factory)
    near, _ = await any_road.open(far_index={"add": lambda a, b: a + b})
    assert await asyncio.gather(*(near.index.add(n, 1) for n in range(50))) == list(range(1, 51))


@contextlib.asynccontextmanager
async def _socket_pair(far_index: Any) -> AsyncIterator[tuple[capnode.Peer, capnode.Peer]]:
    """Two peers of the fast driver, on a socket."""
    one, other = socket.socketpair()
    async with (
        asyncio.TaskGroup() as group,
        contextlib.AsyncExitStack() as stack,
    ):
        opening = group.create_task(stack.enter_async_context(capnode.attach(one)))
        far = await stack.enter_async_context(capnode.attach(other, index=far_index))
        yield await opening, far


@pytest.mark.drivers("asyncio", "uvloop")
async def test_a_call_that_comes_alone_waits_behind_those_that_have_not_begun(driver):
    """It is told apart where it is read, and is run there; what waits for its task goes first."""
    order: list[str] = []
    async with _socket_pair({"late": lambda: order.append("late")}) as (near, far):
        first = Cell(far._session)
        first.watch(lambda _: order.append("first"))
        far._driver.fence(first)
        call = near.index.late()  # the first: with a later one a release would come
        here: Any = near._driver
        there: Any = far._driver
        here._flush()
        there._readable()
        assert order == []
        await call
        assert order == ["first", "late"]


@pytest.mark.drivers("asyncio", "uvloop")
async def test_a_call_that_comes_alone_and_fails_is_answered_once(driver):
    def fail() -> None:
        raise ValueError("no")

    async with _socket_pair({"fail": fail, "add": lambda a, b: a + b}) as (near, _far):
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                await near.index.fail()
            assert await near.index.add(1, 2) == 3
            assert await near.index.add(3, 4) == 7


@pytest.mark.drivers("asyncio", "uvloop")
async def test_releases_whose_time_comes_as_a_task_wakes_leave_all_the_same(driver):
    """They wait for what that task may say; nothing else would take them along."""

    async with _socket_pair({"echo": lambda value: value}) as (near, far):
        here: Any = near._driver
        call = asyncio.ensure_future(_awaited(near.index.echo(1)))
        while not here._woke:  # in the turn that has read the answer
            await anyio.lowlevel.checkpoint()
            here._in_turn = True
            with contextlib.suppress(BlockingIOError):
                here.received(os.read(here._read_fd, 1000))
            here._in_turn = False
        here.end_turn()
        here._release_timer.cancel()
        here._flush_releases()  # as the loop does, if its time has come in the same round
        assert await call == 1
        for _ in range(100):  # rounds of the loop, of which it takes two
            await anyio.lowlevel.checkpoint()
        assert far.stats().exports == 1


async def _awaited(promise: Any) -> Any:
    return await promise


@pytest.mark.drivers("asyncio")
async def test_a_connection_opens_while_another_thread_imports_trio_and_ssl(driver, monkeypatch):
    for name in ("trio", "ssl"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # which has no names yet
    async with _socket_pair({"echo": lambda value: value}) as (near, _):
        assert await near.index.echo(1) == 1
