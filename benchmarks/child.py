"""``python -m benchmarks.child``: what a child process costs, and what it leaves behind.

How long it takes from its start to its first reply, from its death to the error, and to close it;
what becomes of it when its parent is killed; and which processes, descriptors, threads and tasks
are there afterwards that were not there before. README.md says more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import capnode_py as capnode

from .subject import ROOT, compile_library, run

LOOPS = ("asyncio", "uvloop", "trio", "blocking")

# One line there and back, by an interpreter that has what an event loop needs.
BARE = "import asyncio, sys; sys.stdout.write(sys.stdin.readline()); sys.stdout.flush()"

DEATHS = ("exit", "SIGKILL", "SIGSEGV", "held", "stdout")


class Target(NamedTuple):
    """What a row may show at the most, with what it is measured in."""

    most: float
    unit: str


TARGETS = {
    "import capnode_py, more than a bare interpreter": Target(60, "ms"),
    "spawn to first reply, to a bare interpreter": Target(1.6, "x"),
    "close of a healthy child": Target(150, "ms"),
    **{f"death to error ({how})": Target(100, "ms") for how in DEATHS},
    "parent killed: an idle child is gone": Target(500, "ms"),
    "parent killed: one that blocks is gone": Target(15_000, "ms"),
    "parent killed: one that refuses is gone": Target(15_000, "ms"),
    "left behind by each of these": Target(0, ""),
    "left behind by many spawns": Target(0, ""),
}


# The parent, on any driver.


def argv(serves: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / "mortal.py"), serves]


class Parent:
    """On an event loop."""

    async def spawn(self, serves: str = "loop") -> Any:
        return await capnode.spawn(argv(serves), cwd=ROOT, stderr="capture")

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await function(*args)

    async def close(self, peer: Any) -> None:
        await peer.aclose()


class BlockingParent(Parent):
    """Without one: nothing here waits for a loop, so a step runs from its start to its end."""

    async def spawn(self, serves: str = "loop") -> Any:
        return capnode.sync.spawn(argv(serves), cwd=ROOT, stderr="capture")

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    async def close(self, peer: Any) -> None:
        peer.close()


def run_on(loop: str, main: Callable[[Parent], Coroutine[Any, Any, Any]]) -> Any:
    if loop != "blocking":
        return run(loop, lambda: main(Parent()))
    step = main(BlockingParent())
    try:
        step.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("it waits for an event loop")


# What is measured.


Found = dict[str, list[float]]


def milliseconds(since: float) -> float:
    return (time.perf_counter() - since) * 1e3


async def measure(parent: Parent, runs: int, spawns: int) -> Found:
    """Milliseconds, ratios and counts, by row; what is compared takes turns."""
    found: Found = {}
    peer = await parent.spawn()  # what the first one loads and opens stays
    await parent.close(peer)
    before = left()
    for _ in range(runs):
        for row, value in (await lives(parent)).items():
            found.setdefault(row, []).append(value)
        for how in DEATHS:
            took = await death(parent, how)
            found.setdefault(f"death to error ({how})", []).append(took)
    found["left behind by each of these"] = [await more_than(before)]
    for _ in range(spawns):
        peer = await parent.spawn("blocking")
        await parent.call(peer.index.add, 1, 2)
        await parent.close(peer)
    found["left behind by many spawns"] = [await more_than(before)]
    return found


async def lives(parent: Parent) -> dict[str, float]:
    """One healthy life, and what it is compared with."""
    bare = one_line()
    since = time.perf_counter()
    peer = await parent.spawn()
    await parent.call(peer.index.add, 1, 2)
    reply = milliseconds(since)
    since = time.perf_counter()
    await parent.close(peer)
    closed = milliseconds(since)
    nothing = interpreter("pass")
    return {
        "import capnode_py, more than a bare interpreter": interpreter("import capnode_py")
        - nothing,
        "a bare interpreter answers one line": bare,
        "spawn to first reply": reply,
        "spawn to first reply, to a bare interpreter": reply / bare,
        "close of a healthy child": closed,
    }


def one_line() -> float:
    since = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"1 + 2\n")
        child.stdin.flush()
        child.stdout.readline()
        return milliseconds(since)


def interpreter(code: str) -> float:
    since = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return milliseconds(since)


async def death(parent: Parent, how: str) -> float:
    """From the call that is the last one to its error."""
    peer = await parent.spawn("blocking")
    await parent.call(peer.index.add, 1, 2)
    since = time.perf_counter()
    try:
        await parent.call(peer.index.die, how)
    except capnode.PeerLost:
        took = milliseconds(since)
    await parent.close(peer)
    return took


# What is left behind.


def left() -> dict[str, int]:
    """What there is of each kind."""
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "children": len(children),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": sum(not thread.name.startswith("Trio") for thread in threading.enumerate()),
        "tasks": tasks(),
    }


def tasks() -> int:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        living: int = trio.lowlevel.current_statistics().tasks_living
        return living
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


async def more_than(before: dict[str, int]) -> float:
    """How much of all kinds is there that was not. What has been told to end takes some turns."""
    more: dict[str, int] = {}
    for _ in range(1000):
        more = {kind: n - before[kind] for kind, n in left().items() if n > before[kind]}
        if not more or not tasks():
            break
        await turn()
    if more:
        print(f"left behind: {more}")
    return sum(more.values())


def turn() -> Awaitable[None]:
    import anyio.lowlevel

    return anyio.lowlevel.checkpoint()


# A parent that is killed.


def be_killed(loop: str, call: str) -> None:
    """Start a child, have it busy, say which it is, and wait to be killed."""

    async def main(parent: Parent) -> None:
        peer = await parent.spawn()
        await parent.call(peer.index.add, 1, 2)
        if call:
            peer.notify(peer.index[call])
            with contextlib.suppress(TimeoutError):  # until it has begun: it answers no more
                await parent.call(peer.with_options(peer.index.add, timeout=0.2), 1, 2)
        os.write(1, f"{peer.pid}\n".encode())
        os.read(0, 1)

    run_on(loop, main)


def orphaned(loops: Sequence[str]) -> dict[str, Found]:
    """How long children outlive their parents, which are killed; those that block side by side."""
    found: dict[str, Found] = {loop: {} for loop in loops}
    idle = [[(loop, "", "an idle child")] for loop in loops]
    busy = [(loop, "block", "one that blocks") for loop in loops]
    busy += [(loop, "refuse", "one that refuses") for loop in loops]
    for orphans in (*idle, busy):
        waiting = {
            orphan(loop, call): (loop, row, time.perf_counter()) for loop, call, row in orphans
        }
        while waiting:
            ready = select.select(list(waiting), [], [], 60)[0]
            for fd in ready or list(waiting):
                loop, row, killed = waiting.pop(fd)
                found[loop][f"parent killed: {row} is gone"] = [milliseconds(killed)]
                os.close(fd)
    return found


def orphan(loop: str, call: str) -> int:
    """A child whose parent has just been killed: a descriptor that is readable when it is gone."""
    command = [sys.executable, "-m", "benchmarks.child", "--be-killed", loop, call]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    return pidfd


# The table.


def is_met(row: str, values: Sequence[float]) -> bool:
    """Times are held to the median, as others have the machine too; what is left, to the most."""
    target = TARGETS.get(row)
    return target is None or statistics.median(values) <= target.most


def show(found: dict[str, Found]) -> bool:
    """Print a column a driver; are all targets met?"""
    print(f"{'':50}" + "".join(f"{loop:>12}" for loop in found) + f"{'target':>12}")
    met = True
    rows = list(dict.fromkeys(row for column in found.values() for row in column))
    for row in rows:
        cells = []
        for column in found.values():
            values = column.get(row)
            met &= values is None or is_met(row, values)
            missed = "" if values is None or is_met(row, values) else "!"
            cells.append("-" if values is None else f"{statistics.median(values):.4g}{missed}")
        target = TARGETS.get(row)
        bound = f"<= {target.most:g} {target.unit}" if target else "ms"
        print(f"{row:50}" + "".join(f"{cell:>12}" for cell in cells) + f"{bound:>12}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.child", description=__doc__)
    parser.add_argument("--be-killed", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--loop", action="append", choices=LOOPS, help="one of them, or several")
    parser.add_argument("--unpinned", action="store_true", help="leave the CPUs to the scheduler")
    parser.add_argument("--runs", type=int, default=11, help="of which the median is taken")
    parser.add_argument("--spawns", type=int, default=100, help="after which nothing is left")
    parser.add_argument("--quick", action="store_true", help="leave out parents that are killed")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    if options.be_killed:
        be_killed(*options.be_killed)
    if not options.unpinned:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    loops = options.loop or [loop for loop in LOOPS if loop == "blocking" or find_spec(loop)]
    found: dict[str, Found] = {}
    compile_library()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for loop in loops:
        found[loop] = run_on(loop, lambda parent: measure(parent, options.runs, options.spawns))
    if not options.quick:
        for loop, rows in orphaned(loops).items():
            found[loop] |= rows
    return 1 if not show(found) and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
