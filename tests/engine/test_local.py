"""Calls through a promise that turns out to be an object of the caller's own side.

The caller cannot know that, so all is as if it had gone over the wire.
"""

from __future__ import annotations

from asyncio import CancelledError
from typing import Any

import pytest

from capnode_py import CannotPass, PeerClosed, PeerLost, RemoteError, Target
from capnode_py.testing import FakeDriver, Fence, Wire


class Mine(Target):
    def __init__(self) -> None:
        self.fence = Fence()
        self.log: list[Any] = []

    def echo(self, *values: Any, **named: Any) -> Any:
        self.log.append((values, named))
        return [*values, *named.values()]

    def itself(self) -> Mine:
        return self

    def fail(self, error: str) -> None:
        raise {"ValueError": ValueError, "SystemExit": SystemExit, "Cancelled": CancelledError}[
            error
        ]("text")

    def bad(self) -> Any:
        return {"a": [object()]}

    async def wait(self, *_values: Any) -> str:
        self.log.append("started")
        try:
            await self.fence.wait()
        except CancelledError:
            self.log.append("cancelled")
            raise
        return "done"

    @property
    def value(self) -> dict[str, int]:
        return {"x": 1}


@pytest.fixture
def mine(wire: Wire) -> tuple[Mine, FakeDriver, Any]:
    """The object, this side, and a settled promise of the object."""
    mine = Mine()
    near, _far = wire.link(far_index={"echo": lambda x: x, "list": lambda: [1, 2]})
    promise = near.index.echo(mine)
    assert near.get(promise) is mine
    return mine, near, promise


def test_values_pass_as_on_the_wire(mine: tuple[Mine, FakeDriver, Any]) -> None:
    """I1, C1: tuples as lists, containers as copies, references as themselves."""
    obj, near, promise = mine
    given: list[Any] = [1, (2, 3), print, obj]
    result = near.get(promise.echo(given, name={"k": given}))
    assert result == [[1, [2, 3], print, obj], {"k": [1, [2, 3], print, obj]}]
    assert result[0] is not given
    given.append("later")
    assert len(obj.log[0][0][0]) == 4
    assert near.get(promise.value.x) == 1
    assert near.get(promise.value) == {"x": 1}
    assert near.get(promise.itself().itself()) is obj


def test_what_cannot_pass_does_not_pass_here_either(mine: tuple[Mine, FakeDriver, Any]) -> None:
    """T6: the same error as from afar, at the call."""
    _, near, promise = mine
    with pytest.raises(CannotPass, match="argument 1"):
        promise.echo(1, object())
    with pytest.raises(TypeError, match=r"result.*\['a'\]\[0\]"):
        near.get(promise.bad())


def test_what_cannot_be_reached_from_afar_cannot_be_here(
    mine: tuple[Mine, FakeDriver, Any],
) -> None:
    """P6"""
    _, near, promise = mine
    for path in (promise.log, promise["__init__"], promise.missing, promise[0], promise.echo.x):
        for use in (path, path()):
            with pytest.raises((AttributeError, TypeError)):
                near.get(use)
    assert near.session.error is None


def test_an_error_is_as_one_from_afar(mine: tuple[Mine, FakeDriver, Any]) -> None:
    """C2: a RemoteError that is also what was raised; an exit or a cancellation is words."""
    _, near, promise = mine
    with pytest.raises(ValueError, match="text") as raised:
        near.get(promise.fail("ValueError"))
    assert isinstance(raised.value, RemoteError)
    with pytest.raises(RemoteError, match="exited by SystemExit"):
        near.get(promise.fail("SystemExit"))
    with pytest.raises(RemoteError, match="cancelled"):
        near.get(promise.fail("Cancelled"))


def test_promises_in_arguments_are_waited_for(mine: tuple[Mine, FakeDriver, Any]) -> None:
    """P7, P8: of the other side, of this side, settled or not."""
    obj, near, promise = mine
    waiting = promise.wait()
    task = near.spawn(promise.echo(near.index.list(), [waiting], promise.value.x))
    near.wire.run()
    assert obj.log == ["started"]
    obj.fence.set()
    near.wire.run()
    assert task.result() == [[1, 2], ["done"], 1]
    with pytest.raises(ValueError, match="text"):
        near.get(promise.echo(promise.fail("ValueError")))
    with pytest.raises(KeyError, match="missing"):
        near.get(promise.echo(near.index.missing))


def test_a_call_can_be_cancelled(mine: tuple[Mine, FakeDriver, Any]) -> None:
    """K1, K7"""
    obj, near, promise = mine
    call = promise.wait()
    task = near.spawn(call)
    near.wire.run()
    call.cancel()
    near.wire.run()
    assert obj.log == ["started", "cancelled"]
    with pytest.raises(RemoteError, match="cancelled"):
        task.result()

    unborn = promise.wait()
    unborn.cancel()
    with pytest.raises(RemoteError, match="cancelled"):
        near.get(unborn)
    waiting = near.spawn(promise.echo(promise.wait(), print))
    near.wire.run()
    waiting.cancel()
    obj.fence.set()
    near.wire.run()
    assert obj.log == ["started", "cancelled", "started"]


def test_the_last_awaiter_that_is_cancelled_cancels_it(mine: tuple[Mine, FakeDriver, Any]) -> None:
    """K1"""
    obj, near, promise = mine
    task = near.spawn(promise.wait())
    near.wire.run()
    task.cancel()
    near.wire.run()
    assert obj.log == ["started", "cancelled"]
    assert near.stopped == ["wait"]


def test_one_way_calls(mine: tuple[Mine, FakeDriver, Any]) -> None:
    """C1"""
    obj, near, promise = mine
    near.peer.notify(promise.echo, 1, [near.index.list()])
    near.peer.notify(promise.fail, "ValueError")
    near.wire.run()
    assert obj.log == [((1, [[1, 2]]), {})]


def test_calls_end_with_the_connection(mine: tuple[Mine, FakeDriver, Any]) -> None:
    """D1: as those on the wire do, with its cause."""
    obj, near, promise = mine
    running = near.spawn(promise.wait())
    waiting = near.spawn(promise.echo(promise.wait()))
    behind = near.spawn(promise.echo(near.index.list()))
    near.turn()
    near.hang_up()
    near.wire.run()
    assert obj.log.count("cancelled") == obj.log.count("started")
    for task in (running, waiting, behind):
        with pytest.raises((PeerLost, PeerClosed)):
            task.result()
    with pytest.raises(PeerLost):
        near.get(promise.echo(1))
