"""Short runs of the stress with fixed seeds; `python -m tests.stress` goes on for as long as asked.

Each pair of drivers meets: on one connection or two, over a relay or none, with one walker or more.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from capnode_py import testing

from . import stress

STEPS = 40


@pytest.mark.parametrize("far", stress.KINDS)
@pytest.mark.parametrize("near", stress.KINDS)
@pytest.mark.parametrize("dies", [False, True], ids=["to the end", "dies"])
def test_calls_of_all_kinds_arrive_in_order_and_leave_nothing_behind(
    near: str, far: str, dies: bool
) -> None:
    for kind in (near, far):
        if kind != "blocking" and not find_spec(kind):
            pytest.skip(f"{kind} is not installed")
    stress.run(near, far, 1, 1)  # a loop's first run opens descriptors for the rest of the process
    with testing.nothing_left(trace=False):
        assert stress.run(near, far, 2, STEPS, dies=dies) == []
