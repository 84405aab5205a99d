"""Tests of the engine alone: no loop, no descriptor. Each ends with both tables empty."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from capnode_py.testing import Wire

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_failed] = report.failed
    return report


@pytest.fixture
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    """A wire that must be quiet once the test has returned and dropped what it held."""
    wire = Wire()
    yield wire
    if not request.node.stash.get(_failed, False):
        wire.check_quiet()
