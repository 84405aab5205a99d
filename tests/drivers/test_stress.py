"""Many things at once: whatever is called, cancelled, passed on and dropped, nothing is left."""

from __future__ import annotations

import random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Limits

SEEDS = range(10)
QUICK = Limits(close_timeout=0.02)


class Node(capnode.Target):
    """Both ends serve one of these, and call each other's."""

    def __init__(self, choose: random.Random, go: anyio.Event) -> None:
        self._choose = choose
        self._go = go

    def echo(self, value: Any) -> Any:
        return value

    async def slow_echo(self, value: Any) -> Any:
        for _ in range(self._choose.randrange(4)):
            await anyio.lowlevel.checkpoint()
        return value

    def child(self) -> Node:
        return Node(self._choose, self._go)

    async def slow_child(self) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        return {"node": Node(self._choose, self._go), "list": [Node(self._choose, self._go), 1]}

    def fail(self, *values: Any) -> None:
        raise LookupError("as asked")

    async def call(self, function: Any, value: Any) -> Any:
        return await function(value)

    def relay(self, function: Any, value: Any) -> Any:
        return function(value)

    def all(self, *values: Any) -> list[Any]:
        return list(values)

    async def wait(self, *values: Any) -> None:
        """Until the storm is over."""
        await self._go.wait()


class Chaos:
    """One task's random walk."""

    def __init__(self, choose: random.Random, peers: list[Any], node: Node) -> None:
        self._choose = choose
        self._peers = peers
        self._held: list[Any] = [1, "text", node, node.echo]

    def _value(self) -> Any:
        value = self._choose.choice(self._held)
        return [value, {"in": value}] if self._choose.random() < 0.2 else value

    def _promise(self, index: Any) -> Any:
        kind = self._choose.randrange(11)
        if kind == 0:
            return index.echo(self._value())
        if kind == 1:
            return index.slow_echo(self._value())
        if kind == 2:
            return index.child().child().echo(self._value())
        if kind == 3:
            return index.slow_child().node.slow_echo(self._value())
        if kind == 4:
            return index.slow_child().list[0].child()
        if kind == 5:
            return index.fail(self._value()).more(self._value())
        if kind == 6:
            return index.call(self._held[3], self._value())
        if kind == 7:
            return index.relay(self._held[3], self._value())
        if kind == 8:
            return index.all(self._value(), index.echo(self._value()), index.child())
        if kind == 9:
            return index.relay(index.slow_echo, self._value())
        return index.wait(self._value())

    async def walk(self, steps: int) -> None:
        """So many steps, or until the connection is over."""
        try:
            for _ in range(steps):
                await self._step()
        except (capnode.PeerClosed, capnode.PeerLost):
            pass

    async def _step(self) -> None:
        peer = self._choose.choice(self._peers)
        promise = self._promise(peer.index)
        what = self._choose.randrange(6)
        if what == 0:
            promise.cancel()
        elif what == 1:
            self._held.append(promise)
        elif what == 2:
            peer.notify(promise.echo, self._value())
        elif what == 3:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._await, promise)
                    for _ in range(self._choose.randrange(6)):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
        else:
            with anyio.move_on_after(0.005):
                await self._await(promise)
        if len(self._held) > 12:
            del self._held[4 : self._choose.randrange(5, 12)]

    async def _await(self, promise: Any) -> None:
        try:
            value = await promise
        except (LookupError, capnode.CapnodeError, AttributeError, TypeError):
            return
        if self._choose.random() < 0.3:
            self._held.append(value)


async def _storm(road: Any, seed: int, *, steps: int, dies: bool = False) -> None:
    choose, go = random.Random(seed), anyio.Event()
    node = Node(choose, go)
    near, far = await road.open(
        Node(choose, go), far_index=Node(choose, go), limits=QUICK, far_limits=QUICK
    )
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(Chaos(choose, [near, far], node).walk, steps)
        if dies:
            for _ in range(choose.randrange(30)):
                await anyio.lowlevel.checkpoint()
            await choose.choice([near, far]).aclose()
            await near.wait_closed()
            await far.wait_closed()
    go.set()
    assert near.is_closed is far.is_closed is dies


@pytest.mark.loop
async def test_nothing_is_left_after_a_storm_of_calls(road):
    await _storm(road, seed=1, steps=30)


@pytest.mark.loop
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_wait_ends_when_a_peer_is_closed_in_a_storm(any_road, seed):
    await _storm(any_road, seed, steps=60, dies=True)
