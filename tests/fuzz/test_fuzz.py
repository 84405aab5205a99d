"""A short run of the fuzzer with fixed seeds; `python -m tests.fuzz` makes long ones."""

from __future__ import annotations

import pytest

from .world import Failure, Line, Thing, Truth, World


@pytest.mark.parametrize("hosts", [2, 3])
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost_reordered_freed_early_or_left(hosts: int, eager: bool, seed: int) -> None:
    """E18"""
    World(seed, hosts=hosts, eager=eager).run(1500)


@pytest.mark.parametrize("hosts", [2, 3])
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("seed", range(4, 8))
def test_the_same_where_what_is_alone_takes_the_short_way(
    hosts: int, eager: bool, seed: int
) -> None:
    World(seed, hosts=hosts, eager=eager, alone=True).run(1500)


@pytest.mark.parametrize("hosts", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_where_javascript_is_spoken(hosts: int, seed: int) -> None:
    World(seed, hosts=hosts, eager=seed % 2 == 0, dialect="capnweb").run(1500)


def test_the_oracle_notices_what_goes_wrong() -> None:
    world = World(1)
    here, there = world.hosts[0].things[:2]
    line = world.hosts[0].hold(here, Truth(here))
    with pytest.raises(Failure, match="came to a1, but it leads to a0"):
        there.hit(line.number, 0)
    with pytest.raises(Failure, match="call 1 arrived where 0 was next"):
        here.hit(line.number, 1)
    here.hit(line.number, 0)
    assert isinstance(line, Line)
    assert isinstance(line.ref, Thing)
    line.called = 2
    world.failure = None
    with pytest.raises(Failure, match="2 calls made, 1 arrived"):
        world.finish()
