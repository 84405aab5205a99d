"""The breaks of `tests.sabotage` fit the source that they break; `tox -e sabotage` applies them."""

from __future__ import annotations

from collections import Counter

from tests.sabotage.__main__ import can_be_applied
from tests.sabotage.breaks import BREAKS


def test_the_text_of_each_break_stands_once_in_its_file() -> None:
    assert can_be_applied(BREAKS)
    assert max(Counter(b.name for b in BREAKS).values()) == 1
