"""What a user who hunts a leak sees: numbers, types, places."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import capnode_py as capnode
from capnode_py import Target
from capnode_py.testing import check_peers_quiet


class Session(Target):
    def hello(self) -> None:
        pass


class Api(Target):
    def __init__(self) -> None:
        self._kept: list[Any] = []

    def open(self) -> Session:
        return Session()

    async def open_later(self) -> Session:
        await anyio.lowlevel.checkpoint()
        return Session()

    def subscribe(self, callback: Any) -> None:
        self._kept.append(callback)

    def clear(self) -> None:
        self._kept.clear()


def on_event() -> None:
    """A callback."""


async def test_the_report_names_type_and_place(any_road):
    """G6"""
    with capnode.trace_references():
        near, far = await any_road.open(far_index=Api())
        opened = await near.index.open()
        later = await near.index.open_later()
        await near.index.subscribe(on_event)
        await check_peers_quiet_but(near, far)
        ours, theirs = near.leak_report().splitlines(), far.leak_report().splitlines()

    here = f"made at {__file__}:"
    assert len(ours) == 3
    assert ours[0].startswith("import -1: <Stub #1 of ")
    assert f"in the answer of open, {here}" in ours[0]
    assert f"in the answer of open_later, {here}" in ours[1]
    assert ours[2].startswith("export -1: function on_event, sent 1 x, made at ")
    assert ours[2].endswith(", in test_the_report_names_type_and_place")
    assert [line.partition(", ")[0] for line in theirs] == [
        theirs[0].partition(", ")[0],
        "export -1: Session",
        "export -2: Session",
    ]
    assert theirs[0].startswith("import -1: <Stub #1 of ")
    assert theirs[0].endswith("in the call of subscribe")
    assert theirs[1].endswith("in the result of <Call open on Api>")
    assert theirs[2].endswith("in the result of <Call open_later on Api>")
    del opened, later
    await near.index.clear()


async def check_peers_quiet_but(near, far):
    """Until answers are released; references stay."""
    while near.stats().questions or far.stats().answers:
        await near.ping()


async def test_without_tracing_it_names_the_type(any_road):
    near, far = await any_road.open(far_index=Api())
    await near.index.subscribe(on_event)
    await check_peers_quiet_but(near, far)
    assert near.leak_report() == "export -1: function on_event, sent 1 x"
    await near.index.clear()
    await check_peers_quiet(near, far)
    assert near.leak_report() == far.leak_report() == ""


async def test_a_leak_check_that_fails_shows_the_report(any_road):
    near, far = await any_road.open(far_index=Api())
    await near.index.subscribe(on_event)
    with pytest.raises(AssertionError, match="export -1: function on_event"):
        await check_peers_quiet(near, far)
    await near.index.clear()


@pytest.mark.loop
async def test_the_numbers_of_a_connection(any_road):
    fence = anyio.Event()
    near, far = await any_road.open(far_index={"wait": fence.wait, "add": lambda a, b: a + b})
    quiet = near.stats()
    assert (quiet.imports, quiet.exports, quiet.questions, quiet.answers) == (1, 1, 0, 0)
    assert quiet.bytes_sent == far.stats().bytes_received > 0

    promise = near.index.wait()
    await near.index.add(1, 2)
    assert (near.stats().questions, near.stats().imports) == (1, 2)
    assert far.stats().answers >= 1
    assert far.stats().exports == far.stats().answers + 1
    fence.set()
    await promise
    await near.ping()
    sent, received = near.stats(), far.stats()
    assert (sent.bytes_sent, sent.messages_sent) == (
        received.bytes_received,
        received.messages_received,
    )
    assert sent.messages_sent - quiet.messages_sent >= 4
