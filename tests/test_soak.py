"""A short run of the soak with a fixed seed; `python -m tests.soak` makes a million calls."""

from __future__ import annotations

import pytest

from . import soak

CALLS = 4000


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_calls_with_a_callback_each_leave_nothing_behind(loop: str) -> None:
    """G10: both tables hold the indexes alone, and the process has hardly grown."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    outcome = soak.run(CALLS, seed=1, loop=loop)
    assert outcome.calls == outcome.called == CALLS
    assert outcome.tables == (1, 1, 1, 1)
    assert outcome.grown < 512 * 1024
