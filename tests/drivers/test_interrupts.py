"""Ctrl-C in trio, which raises it between any two steps of the main task: it ends what that runs,
and leaves a usable peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import capnode_py as capnode
from tests.interrupts import interrupted_at, needs_monitoring


class Api(capnode.Target):
    def add(self, a: int, b: int) -> int:
        return a + b

    async def call(self, function: Any, n: int) -> Any:
        return await function(n)


shared: list[str] = []


@pytest.fixture(autouse=True)
def _share() -> Iterator[None]:
    shared.append(capnode.share(Api()))
    yield
    capnode.unshare(shared.pop())


async def _call(peer: Any) -> None:
    assert await peer.index.add(1, 2) == 3


async def _callback(peer: Any) -> None:
    assert await peer.index.call(lambda n: n, 1) == 1


async def _pipeline(peer: Any) -> None:
    assert await peer.index.add(peer.index.add(1, 2), 3) == 6


async def _ping(peer: Any) -> None:
    await peer.ping()


async def _reconstruct(peer: Any) -> None:
    assert await peer.reconstruct(shared[0]).add(1, 2) == 3


@needs_monitoring
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("run", [_call, _callback, _pipeline, _ping, _reconstruct])
def test_an_interrupt_at_any_line_in_trio_leaves_a_usable_peer(run: Callable[[Any], Any]) -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        async with capnode.pair(far_index=Api()) as (near, _far):
            await run(near)
            for step in range(1, 10_000):
                raised = False
                try:
                    with interrupted_at(step) as count:
                        await run(near)
                    await trio.lowlevel.checkpoint()  # it is raised at the next one, at the latest
                except KeyboardInterrupt:
                    raised = True
                if count[0] < step:
                    assert step > 100
                    break
                assert raised
                assert await near.index.add(step, 1) == step + 1
            else:
                raise AssertionError("it does not end")

    trio.run(main)
