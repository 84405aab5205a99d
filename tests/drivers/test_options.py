"""`peer.with_options(stub, timeout=)`: a time limit for each call, known to the far handler."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import capnode_py as capnode
from capnode_py import Limits, Stub, Target

SOON = 0.01
"""A limit that a call which never ends is to exceed; what must not exceed one has an hour."""
HOUR = 3600.0


class Api(Target):
    def __init__(self) -> None:
        self._cancelled: list[str] = []
        self._stopped = anyio.Event()
        self._kept: list[Any] = []

    def add(self, a: int, b: int) -> int:
        return a + b

    @property
    def name(self) -> str:
        return "api"

    async def never(self, name: str = "it") -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self._cancelled.append(name)
            self._stopped.set()
            raise

    async def later(self, fence: Any) -> str:
        await fence()
        return "late"

    def keep(self, value: Any) -> None:
        self._kept.append(value)

    def itself(self) -> Api:
        return self


async def test_a_call_in_time_is_a_call_like_any_other(any_road):
    near, _ = await any_road.open(far_index=Api())
    quick = near.with_options(near.index, timeout=HOUR)
    assert type(quick) is Stub
    assert await quick.add(1, 2) == 3
    assert await quick.name == "api"
    assert await quick.itself().add(3, 4) == 7
    assert await near.with_options(near.index.add, timeout=HOUR)(5, 6) == 11
    assert await near.with_options(near.index.name, timeout=HOUR) == "api"


@pytest.mark.loop
async def test_a_call_that_takes_too_long_fails_and_is_cancelled_once(any_road):
    """K1"""
    api = Api()
    near, _ = await any_road.open(far_index=api)
    quick = near.with_options(near.index, timeout=SOON)
    with pytest.raises(TimeoutError, match=r"^never: no answer within 0\.01 s; the call is"):
        await quick.never()
    await api._stopped.wait()
    await near.ping()
    assert api._cancelled == ["it"]
    assert await near.index.add(1, 2) == 3


@pytest.mark.loop
async def test_each_call_has_its_own_limit(any_road):
    api = Api()
    near, _ = await any_road.open(far_index=api)
    patient, quick = (near.with_options(near.index, timeout=limit) for limit in (HOUR, SOON))
    kept = patient.never("patient")
    promises = [quick.never("a"), quick.never("b"), near.index.never("unlimited")]
    for promise in promises[:2]:
        with pytest.raises(TimeoutError):
            await promise
    assert await patient.add(1, 2) == 3
    while len(api._cancelled) < 2:
        await near.ping()
    assert sorted(api._cancelled) == ["a", "b"]
    for promise in (kept, promises[2]):
        promise.cancel()


@pytest.mark.parametrize("limit", [1e8, 1e20, float("inf")])
async def test_a_limit_may_be_longer_than_the_system_can_sleep(any_road, limit):
    near, _ = await any_road.open(far_index=Api(), limits=Limits(max_send_age=limit))
    assert await near.with_options(near.index, timeout=limit).add(1, 2) == 3
    assert await near.index.add(3, 4) == 7
    await near.ping()


@pytest.mark.loop
async def test_a_promise_can_be_limited(any_road):
    api = Api()
    near, _ = await any_road.open(far_index=api)
    promise = near.index.never()
    with pytest.raises(TimeoutError):
        await near.with_options(promise, timeout=SOON)
    await api._stopped.wait()


@pytest.mark.loop
async def test_a_late_answer_with_references_in_it_leaks_nothing(any_road):
    """K4: the leak check is the test's own."""
    opened, gate = anyio.Event(), anyio.Event()

    async def late() -> list[Any]:
        opened.set()
        with anyio.CancelScope(shield=True):
            await gate.wait()
        return [Api(), print]

    near, _ = await any_road.open(far_index={"late": late})
    with pytest.raises(TimeoutError):
        await near.with_options(near.index, timeout=SOON).late()
    await opened.wait()
    gate.set()


@pytest.mark.loop
async def test_what_depends_on_the_answer_keeps_the_call_alive(any_road):
    """K8: the awaiter gets its error, and what was pipelined goes on."""
    gate = anyio.Event()
    near, _ = await any_road.open(far_index={"open": _opener(gate)})
    promise = near.with_options(near.index, timeout=SOON).open()
    pipelined = promise.add(1, 2)
    with pytest.raises(TimeoutError):
        await promise
    gate.set()
    assert await pipelined == 3


def _opener(gate):
    async def opened() -> Api:
        await gate.wait()
        return Api()

    return opened


async def test_passed_on_it_is_the_plain_stub(any_road):
    api = Api()
    near, _ = await any_road.open(far_index=api)
    stub = await near.index.itself()
    quick = near.with_options(stub, timeout=HOUR)
    await near.index.keep(quick)
    await near.index.keep(near.with_options(quick, timeout=HOUR).itself)
    assert api._kept[0] is api
    assert api._kept[1]() is api
    assert quick.cap_id == stub.cap_id
    near.notify(quick.keep, 1)
    await near.ping()
    assert api._kept[2:] == [1]
    api._kept.clear()


async def test_given_up_it_is_given_up(any_road):
    near, _ = await any_road.open(far_index=lambda: Api())
    stub = await near.index()
    near.with_options(stub, timeout=HOUR).dealloc()
    with pytest.raises(capnode.Released):
        stub.add(1, 2)
    with pytest.raises(capnode.Released):
        near.with_options(stub, timeout=HOUR).add(1, 2)


async def test_bad_options_say_what_to_write(any_road):
    near, _ = await any_road.open(far_index=Api())
    with pytest.raises(ValueError, match="above 0"):
        near.with_options(near.index, timeout=0)
    with pytest.raises(TypeError, match="number of seconds"):
        near.with_options(near.index, timeout="5")
    with pytest.raises(TypeError, match="takes something far"):
        near.with_options(print, timeout=5)
    assert "within 5 s" in repr(near.with_options(near.index, timeout=5))


@pytest.mark.loop
async def test_no_timer_is_left_when_the_connection_ends(any_road):
    near, _ = await any_road.open(far_index=Api())
    promise = near.with_options(near.index, timeout=HOUR).never()
    await near.aclose()
    with pytest.raises(capnode.PeerClosed):
        await promise
