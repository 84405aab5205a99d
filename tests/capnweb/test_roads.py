"""This dialect on every driver and every road, with Python at both ends."""

from __future__ import annotations

from array import array
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

import capnode_py as capnode

from ..interop.api import Api, Counter

pytestmark = pytest.mark.dialect("capnweb")


async def test_calls_reads_and_pipelines(road):
    near, _ = await road.open(far_index=Api())
    assert await near.index.square(5) == 25
    assert await near.index.greeting == "hello"
    assert await near.index.config().nested.n == 5
    assert await near.index.config().list[1][0] == 2
    assert await near.index.nothing() is capnode.undefined
    assert await near.index.nothingAtAll() is None
    counter = near.index.makeCounter(4)
    assert await counter.increment() == 5
    assert await counter.value == 5


async def test_callbacks_and_objects_both_ways(road):
    near, far = await road.open(Api(), far_index=Api())
    assert await near.index.callTimes(lambda n: 2 * n, 3) == [0, 2, 4]
    counter = Counter(1)
    assert await near.index.incrementCounter(counter, 2) == 3
    assert await near.index.giveBackInside(counter) == {"it": counter}
    assert await near.index.giveBack(counter) is counter
    theirs = await near.index.makeCounter(5)
    assert await near.index.incrementCounter(theirs, 1) == 6
    assert await near.index.callYou("square", 6) == 36
    assert await far.index.add("a", "b") == "ab"


async def test_a_list_is_mapped_over_there(road):
    near, _ = await road.open(far_index=Api())
    api = near.index
    assert await api.fibonacci(6).map(lambda n: api.square(n)) == [0, 1, 1, 4, 9, 25]
    called = api.fibonacci(3).map(lambda n: api.callFunction(lambda x: x + 1, n))
    assert await called == [{"result": 1}, {"result": 2}, {"result": 2}]


async def test_values_that_only_javascript_has(any_road):
    near, _ = await any_road.open(far_index=Api())
    for value in [
        capnode.undefined,
        capnode.BigInt(5),
        2**53,
        -(10**16000),
        capnode.Bytes(b"abc", "DataView"),
        array("h", [1, -1]),
        capnode.URL("https://example.org/"),
        capnode.Headers({"A": "b"}),
        datetime(2026, 11, 28, 1, 2, 3, 456789, UTC),
        [[], {}, [[1]], "half \udc00 a pair"],
    ]:
        back = await near.index.echo(value)
        assert back == value
        assert type(back) is (capnode.BigInt if isinstance(value, int) else type(value))


async def test_errors_keep_their_class_cause_and_properties(any_road):
    near, _ = await any_road.open(far_index=Api())
    with pytest.raises(IndexError, match="far") as caught:
        await near.index.fail("RangeError", "far")
    assert isinstance(caught.value.__cause__, TypeError)
    assert "fail" in caught.value.__notes__[0]  # the traceback
    del caught
    with pytest.raises(ValueError, match="BankruptError: no money"):
        await near.index.bankrupt()
    back: Any = await near.index.echo(KeyError("k"))
    assert isinstance(back, KeyError)


async def test_a_promise_that_comes_home_keeps_the_order(any_road):
    near, _ = await any_road.open(far_index=Api())
    for _ in range(20):
        heard: list[int] = []
        promise = near.index.giveBack(heard.append)
        calls = [promise(n) for n in range(5)]
        ours = await promise
        ours(5)
        for call in calls:
            await call
        assert heard == [0, 1, 2, 3, 4, 5]
        del promise, calls, call, ours


async def test_what_the_dialect_has_no_word_for_says_so(any_road):
    near, _ = await any_road.open(far_index=Api())
    with pytest.raises(capnode.CannotPass, match=r"argument x: Cap'n Web has no keyword"):
        near.index.square(x=1)
    with pytest.raises(capnode.CannotPass, match=r"argument 0, at \['a'\]\[1\]: .* no sets"):
        near.index.echo({"a": [1, {2}]})
    counter = await near.index.makeCounter(1)
    with pytest.raises(capnode.CapnodeError, match="no cap_ids"):
        _ = counter.cap_id
    with pytest.raises(capnode.CapnodeError, match="no cap_ids"):
        near.reconstruct("cap:nothing")
    near.notify(near.index.log, "one way")
    assert await near.index.logged() == ["one way"]
    await near.ping()
    assert near.info is None


@pytest.mark.loop
async def test_a_cancelled_call_is_given_up_and_leaves_nothing(any_road):
    started, go_on = anyio.Event(), anyio.Event()

    async def slow() -> str:
        started.set()
        await go_on.wait()
        return "late"

    near, _ = await any_road.open(far_index={"slow": slow})
    async with anyio.create_task_group() as group:

        async def call() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await near.index.slow()

        scopes: list[anyio.CancelScope] = []
        group.start_soon(call)
        await started.wait()
        scopes[0].cancel()
    go_on.set()


@pytest.mark.loop
async def test_closing_ends_what_waits_on_both_sides(any_road):
    near, far = await any_road.open(Api(), far_index=Api())
    counter = await near.index.makeCounter(1)
    hanging = near.index.hang()
    await near.ping()
    await near.aclose()
    with pytest.raises(capnode.PeerClosed):
        await hanging
    with pytest.raises(capnode.PeerClosed):
        await counter.increment()
    await far.wait_closed()
    with pytest.raises(capnode.PeerLost):
        await far.index.square(1)


@pytest.mark.loop
async def test_two_thousand_calls_at_once(any_road):
    near, _ = await any_road.open(far_index=Api())
    calls = [near.index.square(n) for n in range(2000)]
    assert [await call for call in calls] == [n * n for n in range(2000)]
