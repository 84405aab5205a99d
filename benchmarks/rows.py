"""The rows of the table: what is measured, how, and what it should come to."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .subject import ROOT, Subject


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is done: the runs of which the median is taken, and the calls of one run."""

    runs: int
    calls: int

    @property
    def few(self) -> int:
        """The calls before the memory is measured first: with `calls` at 3,000 these are 1,000."""
        return max(self.calls // 3, 1)

    @property
    def many(self) -> int:
        return self.few * 100


@dataclass(frozen=True)
class Target:
    """What a figure should come to, on some loops.

    Attributes:
        text: shown in the table.
        met: given the figure, and its ratio to the floor's, or 0.
    """

    text: str
    met: Callable[[float, float], bool]
    loops: frozenset[str] = frozenset(("uvloop", "asyncio", "trio"))


@dataclass(frozen=True)
class Row:
    """`unit` is "/s", "us", "ms", "MiB" or "B"; "" for a number of things."""

    name: str
    unit: str
    target: Target | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are measured together: `measure` gives a figure for each, None for "-"."""

    rows: Sequence[Row]
    measure: Callable[[Subject, Effort], Awaitable[Sequence[float | None]]]
    once: bool = False


# Memory is measured first, while the heap is as small as it will ever be: in a large one, full of
# holes, a leak would not show.
def groups(effort: Effort) -> Sequence[Group]:
    """All rows, in their order."""
    few, many = f"{effort.few:,}", f"{effort.many:,}"
    return [
        Group(
            rows=[
                Row(f"parent's RSS after {few} calls", "MiB"),
                Row(f"its growth until {many} calls", "MiB", _FLAT),
                Row(f"child's RSS after {few} calls", "MiB"),
                Row(f"its growth until {many} calls", "MiB", _FLAT),
            ],
            measure=_memory,
            once=True,
        ),
        Group(rows=[Row("a call", "us", _CALL)], measure=_sequential),
        Group(rows=[Row("calls/s, 1 in flight", "/s")], measure=partial(_rate, 1)),
        Group(rows=[Row("calls/s, 50 in flight", "/s")], measure=partial(_rate, 50)),
        Group(
            rows=[Row("calls/s, 1000 in flight", "/s", _RATE)],
            measure=partial(_rate, 1000),
        ),
        Group(
            rows=[
                Row("messages sent per call, 1000 in flight", "", _ONE),
                Row("messages received per call", "", _ONE),
            ],
            measure=_messages,
            once=True,
        ),
        Group(
            rows=[
                Row("a call with one callback", "us"),
                Row("the same, in plain calls", "", _CALLBACK),
            ],
            measure=_callbacks,
        ),
        Group(
            rows=[
                Row("a live stub", "B", _SMALL),
                Row("an object that the child holds", "B", _SMALL),
            ],
            measure=_references,
            once=True,
        ),
        Group(
            rows=[
                Row(f"{_MANY:,} stubs released", "ms", _IN_A_SECOND),
                Row("messages for that", "", _FEW_HUNDRED),
            ],
            measure=_releases,
            once=True,
        ),
        Group(
            rows=[
                Row("a pipelined chain ten deep", "us"),
                Row("the same, in plain calls", "", _CHAIN),
            ],
            measure=_chains,
        ),
        Group(rows=[Row("from spawn to the first reply", "ms")], measure=_first_reply),
        Group(rows=[Row("interpreter and import", "ms")], measure=_import),
    ]


_UVLOOP = frozenset(("uvloop",))
_CALL = Target("<= 2.0 x floor", lambda _us, ratio: ratio <= 2.0, _UVLOOP)
_CALLBACK = Target("<= 2.2 calls", lambda calls, _ratio: calls <= 2.2, _UVLOOP)
_CHAIN = Target("<= 2.5 calls", lambda calls, _ratio: calls <= 2.5, _UVLOOP)
_RATE = Target(">= 0.5 x floor", lambda _rate, ratio: ratio >= 0.5, _UVLOOP)
_ONE = Target("1.00", lambda messages, _ratio: round(messages, 2) == 1)
# Leaking one object of 56 bytes a call would show as 5 MiB.
_FLAT = Target("<= 0.5 MiB", lambda growth, _ratio: growth <= 0.5)


_SMALL = Target("<= 600 B", lambda size, _ratio: size <= 600)
_MANY = 100_000
_IN_A_SECOND = Target("< 1000 ms", lambda ms, _ratio: ms < 1000)
_FEW_HUNDRED = Target("<= 300", lambda messages, _ratio: messages <= 300)


async def _time(awaitable: Awaitable[Any]) -> float | None:
    """The seconds it takes; None if the subject does not offer it."""
    gc.collect()
    started = time.perf_counter()
    offered = await awaitable
    ended = time.perf_counter()
    return None if offered is False else ended - started


async def _sequential(subject: Subject, effort: Effort) -> Sequence[float | None]:
    return [_each(await _time(subject.calls(effort.calls)), effort.calls)]


async def _rate(window: int, subject: Subject, effort: Effort) -> Sequence[float | None]:
    calls = max(effort.calls, window)
    seconds = await _time(subject.in_flight(calls, window))
    return [None if seconds is None else calls / seconds]


async def _callbacks(subject: Subject, effort: Effort) -> Sequence[float | None]:
    return await _in_calls(subject, subject.callbacks, max(effort.calls // 4, 1))


async def _chains(subject: Subject, effort: Effort) -> Sequence[float | None]:
    return await _in_calls(subject, subject.chains, max(effort.calls // 10, 1))


async def _in_calls(
    subject: Subject, offer: Callable[[int], Awaitable[bool]], n: int
) -> Sequence[float | None]:
    """The time of one, and how many plain calls take as long, measured side by side."""
    seconds = await _time(offer(n))
    if seconds is None:
        return [None, None]
    plain = await _time(subject.calls(n))
    assert plain is not None
    return [_each(seconds, n), seconds / plain]


async def _references(subject: Subject, _effort: Effort) -> Sequence[float | None]:
    return await subject.references(10_000) or [None, None]


async def _releases(subject: Subject, _effort: Effort) -> Sequence[float | None]:
    if not await subject.hold(_MANY):
        return [None, None]
    before = subject.messages()
    seconds = await _time(subject.let_go())
    after = subject.messages()
    if seconds is None or before is None or after is None:
        return [None, None]
    return [seconds * 1e3, float(after[0] - before[0])]


def _each(seconds: float | None, n: int) -> float | None:
    return None if seconds is None else seconds / n * 1e6


async def _messages(subject: Subject, effort: Effort) -> Sequence[float | None]:
    """Releases count too: one message for up to 1000 calls, so they stay behind two decimals."""
    before = subject.messages()
    if before is None:
        return [None, None]
    calls = max(effort.calls, 1000)
    await subject.in_flight(calls, 1000)
    after = subject.messages()
    assert after is not None
    return [(late - early) / calls for early, late in zip(before, after, strict=True)]


async def _memory(subject: Subject, effort: Effort) -> Sequence[float | None]:
    window = min(effort.few, 100)
    if not await subject.in_flight(effort.few, window):
        return [None] * 4
    before = _rss(os.getpid()), _rss(subject.pid)
    await subject.in_flight(effort.many - effort.few, window)
    after = _rss(os.getpid()), _rss(subject.pid)
    return [before[0], after[0] - before[0], before[1], after[1] - before[1]]


def _rss(pid: int) -> float:
    """The resident memory of a process, in MiB."""
    gc.collect()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def _first_reply(subject: Subject, _effort: Effort) -> Sequence[float | None]:
    fresh = type(subject)(subject.loop)
    started = time.perf_counter()
    await fresh.open()
    await fresh.calls(1)
    ended = time.perf_counter()
    await fresh.close()
    return [(ended - started) * 1e3]


async def _import(subject: Subject, _effort: Effort) -> Sequence[float | None]:
    program = f"import {subject.imported}" if subject.imported else "pass"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)  # noqa: ASYNC221
    return [(time.perf_counter() - started) * 1e3]
