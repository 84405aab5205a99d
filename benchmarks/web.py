"""``python -m benchmarks.web``: the dialect of Cap'n Web, against ours and the real package.

Python at both ends, over a child's stdin and stdout, in either dialect; and a Node client, which
needs ``npm ci`` in ``tests/interop``, with a Python and with a Node server. Runs alternate; a ratio
is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import capnode_py as capnode

from .subject import ROOT, loop_factory

INTEROP = ROOT / "tests" / "interop"
CALL_AT_MOST = 2.0  # native calls
NODE_AT_LEAST = 0.4  # of the rate of Node with Node


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__)
    parser.add_argument("--unpinned", action="store_true", help="leave the CPUs to the scheduler")
    parser.add_argument("--runs", type=int, default=9, help="of which the median is taken")
    parser.add_argument("--calls", type=int, default=2000, help="in one run")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    if not options.unpinned:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    loop = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        missed = runner.run(_python(options.runs, options.calls))
    missed += _node(options.runs, options.calls)
    return 1 if missed and options.check else 0


def _show(name: str, figures: list[list[float]], target: Callable[[float], str]) -> int:
    """A line of the table; 1 if its target is missed."""
    ours, others = figures
    ratio = statistics.median(a / b for a, b in zip(ours, others, strict=True))
    verdict = target(ratio)
    print(f"{name:34}{statistics.median(ours):>12.1f}{statistics.median(others):>12.1f}", end="")
    print(f"{ratio:>8.2f}  {verdict}")
    return verdict.endswith("MISSED")


def _at_most(limit: float) -> Callable[[float], str]:
    return lambda ratio: f"<= {limit}: {'ok' if ratio <= limit else 'MISSED'}"


def _at_least(limit: float) -> Callable[[float], str]:
    return lambda ratio: f">= {limit}: {'ok' if ratio >= limit else 'MISSED'}"


def _no_target(_ratio: float) -> str:
    return ""


# Python at both ends.


async def _python(runs: int, calls: int) -> int:
    argv = [sys.executable, "-m", "benchmarks.web_plugin"]
    measures: list[tuple[str, Callable[[Any, int], Awaitable[float]], Callable[[float], str]]] = [
        ("a call, us", _sequential, _at_most(CALL_AT_MOST)),
        ("a call, 1000 in flight, us", _gathered, _no_target),
        ("a call with one callback, us", _callbacks, _no_target),
        ("a call with 1000 ints, us", _lists, _no_target),
        ("a call with 100 records, us", _records, _no_target),
    ]
    print(f"{'Python to Python':34}{'capnweb':>12}{'native':>12}{'ratio':>8}")
    missed = 0
    async with (
        capnode.spawn([*argv, "capnweb"], cwd=ROOT, dialect="capnweb") as web,
        capnode.spawn([*argv, "cbor"], cwd=ROOT) as native,
    ):
        for name, measure, target in measures:
            figures: list[list[float]] = [[], []]
            for _ in range(runs):
                for peer, found in zip((web, native), figures, strict=True):
                    found.append(await measure(peer.index, calls))
            missed += _show(name, figures, target)
    return missed


async def _each(calls: int, run: Callable[[int], Awaitable[Any]]) -> float:
    """Microseconds of one of so many."""
    await run(max(calls // 20, 1))
    began = time.perf_counter()
    await run(calls)
    return (time.perf_counter() - began) / calls * 1e6


async def _one_by_one(n: int, make: Callable[[], Any]) -> None:
    for _ in range(n):
        await make()


async def _sequential(index: Any, calls: int) -> float:
    return await _each(calls, lambda n: _one_by_one(n, lambda: index.add(1, 2)))


async def _gathered(index: Any, calls: int) -> float:
    async def run(n: int) -> None:
        for _ in range(max(n // 1000, 1)):
            await asyncio.gather(*[index.add(1, 2) for _ in range(min(n, 1000))])

    return await _each(calls, run)


async def _callbacks(index: Any, calls: int) -> float:
    make = lambda: index.call_back(lambda n: n)  # noqa: E731 - a fresh function a call
    return await _each(max(calls // 4, 1), lambda n: _one_by_one(n, make))


async def _lists(index: Any, calls: int) -> float:
    ints = list(range(1000))
    return await _each(max(calls // 20, 1), lambda n: _one_by_one(n, lambda: index.echo(ints)))


async def _records(index: Any, calls: int) -> float:
    records = [
        {"id": n, "name": f"name {n}", "tags": ["a", "b"], "score": n / 7} for n in range(100)
    ]
    return await _each(max(calls // 20, 1), lambda n: _one_by_one(n, lambda: index.echo(records)))


# A Node client.


def _node(runs: int, calls: int) -> int:
    node = shutil.which("node")
    if node is None or not (INTEROP / "node_modules" / "capnweb").is_dir():
        print("a Node client: Node, or npm ci in tests/interop, is missing")
        return 0
    servers: list[list[str | Path]] = [
        [sys.executable, INTEROP / "api.py"],
        [node, INTEROP / "server.mjs"],
    ]
    print(f"{'a Node client, calls/s':34}{'to Python':>12}{'to Node':>12}{'ratio':>8}")
    missed = 0
    for in_flight in (1, 100):
        figures: list[list[float]] = [[], []]
        for _ in range(min(runs, 5)):
            for server, found in zip(servers, figures, strict=True):
                found.append(_rate(node, calls, in_flight, server))
        missed += _show(f"{in_flight} in flight", figures, _at_least(NODE_AT_LEAST))
    return missed


def _rate(node: str, calls: int, in_flight: int, server: list[str | Path]) -> float:
    command = [node, INTEROP / "bench.mjs", str(calls), str(in_flight), *server]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
