"""The harness itself: a leak check that cannot fail would hold nothing."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from typing import Any

import pytest

from capnode_py import PeerLost
from capnode_py.testing import Fence, Wire, check_peers_quiet


def test_a_reference_that_is_still_held_is_a_leak() -> None:
    """G6: it is named, on both sides."""
    wire = Wire()
    kept: list[Any] = []
    near, _far = wire.link(far_index=kept.append)
    near.get(near.index(print))
    with pytest.raises(AssertionError, match=r"near: export -1: builtin.* print") as told:
        wire.check_quiet()
    assert "far: import -1: <Stub #1 of near>" in str(told.value)
    kept.clear()
    wire.check_quiet()


def test_a_call_that_is_not_answered_is_a_leak() -> None:
    """H2"""
    fence = Fence()
    wire = Wire()
    near, _far = wire.link(far_index=fence.wait)
    task = near.spawn(near.index())
    for what in ("near: question 1", "far: answer 1", "far: running", "near: tasks that wait"):
        with pytest.raises(AssertionError, match=what):
            wire.check_quiet()
    fence.set()
    wire.check_quiet()
    assert task.done


def test_a_held_call_is_finished_by_hand() -> None:
    """H3"""
    wire = Wire()
    near, far = wire.link(far_index={"f": lambda: 1})
    far.holding = True
    first, second = near.spawn(near.index.f()), near.spawn(near.index.f())
    wire.run()
    with pytest.raises(AssertionError, match="held calls"):
        wire.check_quiet()
    one, other = far.held
    far.held.clear()
    far.session.finish(other, "by hand")
    far.session.fail(one, ValueError("also"))
    wire.run()
    assert second.result() == "by hand"
    with pytest.raises(ValueError, match="also"):
        first.result()


def test_a_frame_can_be_expected_to_hold_certain_messages() -> None:
    """H1"""
    wire = Wire()
    near, far = wire.link(far_index=lambda x: x)
    near.index(1)
    task = near.spawn(near.index(2))
    near.flush()
    assert [m.word for m in far.coming()] == ["push", "call", "release"]
    assert far.coming()[1].fields == [0, [], [2]]
    with pytest.raises(AssertionError, match=r"to far: expected .*resolve.* but .*push"):
        far.deliver("resolve")
    far.deliver("push", "call", "release")
    assert near.coming()[0].fields == [2, 2]
    near.deliver("resolve")
    assert near.counts() == {"push": 1, "call": 1, "release": 1}
    assert near.coming() == []
    assert task.result() == 2


def test_a_side_can_be_blocked() -> None:
    """H3"""
    wire = Wire()
    near, far = wire.link(far_index=lambda: 1)
    far.blocked = True
    task = near.spawn(near.index())
    wire.run()
    assert len(far.inbox) == 1
    with pytest.raises(AssertionError, match="still waiting"):
        task.result()
    far.blocked = False
    wire.run()
    assert task.result() == 1


def test_a_task_can_be_cancelled_where_it_waits() -> None:
    """K1"""

    async def wait() -> str:
        try:
            await Fence().wait()
        except CancelledError:
            await fence.wait()
        return "cleaned up"

    fence = Fence()
    wire = Wire()
    near, _far = wire.link()
    task = near.spawn(wait())
    task.cancel()
    fence.set()  # the cancellation comes first
    wire.run()
    assert task.result() == "cleaned up"
    task.cancel()
    assert task.result() == "cleaned up"


def test_a_wire_that_is_left_in_an_error_is_not_checked() -> None:
    """H2: the error says more."""

    def leave_something(error: Exception | None) -> None:
        with Wire() as wire:
            near, _far = wire.link(far_index=lambda: [print])
            held.append(near.get(near.index()))
            if error is not None:
                raise error

    held: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        leave_something(ZeroDivisionError())
    with pytest.raises(AssertionError, match="left behind"):
        leave_something(None)
    assert len(held) == 2


def test_a_broken_wire_loses_what_is_on_it() -> None:
    """D1"""
    with Wire() as wire:
        near, far = wire.link(far_index=lambda: 1)
        task = near.spawn(near.index())
        near.flush()
        near.hang_up()
        with pytest.raises(PeerLost):
            task.result()
        assert far.started == []


async def test_real_peers_are_checked_too(any_road: Any) -> None:
    """H2, G6"""
    kept: list[Any] = []
    near, far = await any_road.open(far_index={"keep": kept.append})
    await near.index.keep(print)
    with pytest.raises(AssertionError, match="export -1: builtin_function_or_method print"):
        await check_peers_quiet(near, far, rounds=3)
    kept.clear()
    await check_peers_quiet(near, far)
    await near.aclose()
    await check_peers_quiet(near, far)


def test_nothing_here_needs_a_loop() -> None:
    """H1"""
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()
    with Wire() as wire:
        near, _far = wire.link(far_index=lambda: 1)
        assert near.get(near.index()) == 1
