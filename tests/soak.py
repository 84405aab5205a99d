"""Many calls, each with a callback of its own: `python -m tests.soak --calls 1000000`.

Two peers in one process, joined by a pair of sockets. Each call passes a function that was made for
it, and which is called once by the other side. At the end both tables must hold the two indexes
alone, and the process must be no larger than it was after a tenth of the calls.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import random
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import capnode_py as capnode

MOST_AT_ONCE = 64  # calls that are under way together


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run has shown.

    Attributes:
        calls: how many were made.
        called: how many callbacks were called.
        tables: imports and exports of both sides at the end.
        early, late: the process's resident memory in bytes, after a tenth and at the end.
        seconds: how long it took.
    """

    calls: int
    called: int
    tables: tuple[int, int, int, int]
    early: int
    late: int
    seconds: float

    @property
    def grown(self) -> int:
        """Bytes, in the last nine tenths."""
        return self.late - self.early


class Caller(capnode.Target):
    """Calls back, in the ways that there are: in a task, in the answer, and one way."""

    async def call(self, callback: Any, n: int) -> Any:
        return await callback(n)

    def relay(self, callback: Any, n: int) -> Any:
        return callback(n)

    def tell(self, callback: Any, n: int) -> None:
        capnode.current_peer().notify(callback, n)


async def soak(calls: int, seed: int) -> Outcome:
    """Make so many calls."""
    choose = random.Random(seed)
    ours, theirs = socket.socketpair()
    near, far = await asyncio.gather(capnode.attach(ours), capnode.attach(theirs, index=Caller()))
    index = near.index
    ways: list[Any] = [index.call, index.call, index.relay, index.tell]
    called = 0

    def fresh(n: int) -> Callable[[int], int]:
        def callback(got: int) -> int:
            nonlocal called
            called += 1
            if got != n:
                raise AssertionError(f"called with {got} instead of {n}")
            return -n

        return callback

    started = time.monotonic()
    made = early = 0
    async with near, far:
        while made < calls:
            batch = range(made, min(calls, made + choose.randint(1, MOST_AT_ONCE)))
            promises = [(n, choose.choice(ways)(fresh(n), n)) for n in batch]
            for n, promise in promises:
                if await promise not in (-n, None):
                    raise AssertionError(f"call {n} was answered with {await promise}")
            made += len(batch)
            if not early and made >= calls // 10:
                early = await settled_memory(near, far)
        late = await settled_memory(near, far)
        tables = [
            n for stats in (near.stats(), far.stats()) for n in (stats.imports, stats.exports)
        ]
        seconds = time.monotonic() - started
    one, two, three, four = tables
    return Outcome(
        calls=made,
        called=called,
        tables=(one, two, three, four),
        early=early,
        late=late,
        seconds=seconds,
    )


async def settled_memory(*peers: capnode.Peer) -> int:
    """The memory of this process, once what was dropped has been released."""
    gc.collect()
    for _ in range(5):
        for peer in peers:
            await peer.ping()
    return resident()


def resident() -> int:
    """Resident bytes; where the system does not tell, the most there ever were."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(calls: int, seed: int, *, loop: str) -> Outcome:
    """A run on a loop of its own, ``"asyncio"`` or ``"uvloop"``."""
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(soak(calls, seed))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--may-grow", type=int, default=1 << 20, help="bytes")
    options = parser.parse_args()

    outcome = run(options.calls, options.seed, loop=options.loop)
    print(
        f"{outcome.calls} calls, {outcome.called} callbacks, {outcome.seconds:.0f} s on "
        f"{options.loop}: tables {outcome.tables}, {outcome.early >> 10} KiB after a tenth, "
        f"{outcome.late >> 10} KiB at the end"
    )
    if outcome.called != outcome.calls or outcome.tables != (1, 1, 1, 1):
        raise SystemExit("something was lost, or left behind")
    if outcome.grown > options.may_grow:
        raise SystemExit(f"it has grown by {outcome.grown} bytes")


if __name__ == "__main__":
    main()
