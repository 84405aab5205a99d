"""The dialect of Cap'n Web without a network, and what the real package was recorded to say.

``tests/interop/record.mjs`` makes the files in ``recorded``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capnode_py.testing import FakeDriver, Fence, Wire

from ..interop.api import Api

HERE = Path(__file__).parent


def recorded(name: str) -> list[Any]:
    """The records of one file."""
    return [json.loads(line) for line in (HERE / "recorded" / name).read_text().splitlines()]


class FencedApi(Api):
    """The Api of the recordings, whose slow calls wait for a fence instead of a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.fence = Fence()

    async def later(self, x: Any) -> Any:
        await self.fence.wait()
        return x

    async def hang(self) -> None:
        await Fence().wait()


class Raw:
    """A peer of ours, spoken to in raw messages."""

    def __init__(self, wire: Wire, side: FakeDriver) -> None:
        self.wire = wire
        self.side = side

    def send(self, message: Any) -> list[Any]:
        """Let it receive a message, or a text; what it answers, until nothing moves."""
        text = message if isinstance(message, str) else json.dumps(message)
        self.side.feed(text.encode() + b"\n")
        return self.said()

    def said(self) -> list[Any]:
        """What it has to say."""
        while self.side.busy or self.side.settle():
            self.side.turn()
        self.side.flush()
        frames = b"".join(frame.data for frame in self.side.other.inbox)
        self.side.other.inbox.clear()
        return [json.loads(line) for line in frames.splitlines()]


@pytest.fixture
def web() -> Iterator[Wire]:
    """A wire of this dialect."""
    with Wire(dialect="capnweb") as wire:
        yield wire


@pytest.fixture
def raw() -> Raw:
    """A peer that offers a `FencedApi`, and may be ended by what it is told."""
    wire = Wire(dialect="capnweb")
    _, far = wire.link(far_index=FencedApi())
    return Raw(wire, far)
