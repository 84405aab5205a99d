"""``python -m benchmarks`` prints the table; README.md says how each figure is taken."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence

from .floor import Floor, JoinedFloor
from .peer import CapnodePeer
from .rows import Effort, Group, Row, groups
from .subject import ROOT, Subject, compile_library, run

FLOORS: Sequence[type[Subject]] = (Floor, JoinedFloor)
"""What we are compared with, a ratio for each. Targets are ratios to the first."""

OURS = CapnodePeer

SUBJECTS: Sequence[type[Subject]] = (*FLOORS, OURS)
"""The columns."""

LOOPS = ("uvloop", "asyncio", "trio")

Figures = dict[str, list[float]]
"""What the runs gave, by the name of the subject."""


def main() -> int:
    options = _options()
    if len(options.loop) > 1:
        # A process for each: what one leaves in the heap would hide what the next one takes.
        arguments = [arg for arg in sys.argv[1:] if arg not in LOOPS and arg != "--loop"]
        command = [sys.executable, "-m", "benchmarks", *arguments, "--loop"]
        codes = [subprocess.call([*command, loop], cwd=ROOT) for loop in options.loop]
        return 1 if any(codes) else 0

    (loop,) = options.loop
    if loop != "asyncio" and importlib.util.find_spec(loop) is None:
        print(f"{loop}: not installed")
        return 0
    if not options.unpinned:
        # The CPU that serves the fewest interrupts is mostly the last. Children inherit this.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    compile_library()
    effort = Effort(runs=options.runs, calls=options.calls)
    missed = run(loop, lambda: _measure_all(loop, effort, pinned=not options.unpinned))
    return 1 if missed and options.check else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--loop", nargs="+", choices=LOOPS, default=LOOPS, help="only these")
    parser.add_argument("--unpinned", action="store_true", help="leave the CPUs to the scheduler")
    parser.add_argument("--runs", type=int, default=15, help="of which the median is taken")
    parser.add_argument("--calls", type=int, default=3000, help="in one run")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    return parser.parse_args()


async def _measure_all(loop: str, effort: Effort, *, pinned: bool) -> int:
    """Print the table of one loop; how many targets were missed."""
    where = f"pinned to CPU {max(os.sched_getaffinity(0))}" if pinned else "unpinned"
    print(f"\n{loop}, {platform.python_implementation()} {platform.python_version()}, {where}")
    subjects = [subject(loop) for subject in SUBJECTS if loop in subject.loops]
    names = "".join(f"{subject.name:>16}" for subject in SUBJECTS)
    print(f"{'':40}{names}{'ratio':>7}{'joined':>8}  target")
    missed = 0
    for subject in subjects:
        await subject.open()
    try:
        for group in groups(effort):
            found = await _measure(group, subjects, effort)
            for row, figures in zip(group.rows, found, strict=True):
                missed += _show(row, figures, loop)
    finally:
        for subject in subjects:
            await subject.close()
    return missed


async def _measure(group: Group, subjects: Sequence[Subject], effort: Effort) -> list[Figures]:
    """The runs of the subjects alternate, so that a slow minute of the machine hits all."""
    found: list[Figures] = [{} for _ in group.rows]
    for _ in range(1 if group.once else effort.runs):
        for subject in subjects:
            for figures, figure in zip(found, await group.measure(subject, effort), strict=True):
                if figure is not None:
                    figures.setdefault(subject.name, []).append(figure)
    return found


def _show(row: Row, figures: Figures, loop: str) -> bool:
    """Print one row; True if its target was missed."""
    name = f"{row.name}, {row.unit}" if row.unit not in ("", "/s") else row.name
    columns = "".join(f"{_figure(row.unit, figures.get(subject.name)):>16}" for subject in SUBJECTS)
    ratio, joined = (_ratio(row, figures.get(floor.name), figures) for floor in FLOORS)
    ratios = f"{_shown(ratio):>7}{_shown(joined):>8}"
    line = f"{name:40}{columns}{ratios}"
    if row.target is None or loop not in row.target.loops:
        print(line.rstrip(), flush=True)
        return False

    met = row.target.met(statistics.median(figures[OURS.name]), ratio)
    print(f"{line}  {row.target.text}: {'ok' if met else 'MISSED'}", flush=True)
    return not met


def _ratio(row: Row, floor: list[float] | None, figures: Figures) -> float:
    """Our figures to a floor's; 0 if there are none, or if it says nothing.

    The median of the ratios of neighbours: a slow minute hits both of them, or is an exception.
    """
    ours = figures.get(OURS.name)
    if floor is None or ours is None or row.unit not in ("us", "/s", "ms"):
        return 0.0
    return statistics.median(mine / its for its, mine in zip(floor, ours, strict=True))


def _shown(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio else ""


def _figure(unit: str, runs: list[float] | None) -> str:
    """The median, and half the distance between the quartiles as a part of it."""
    if runs is None:
        return "-"
    median = statistics.median(runs)
    digits = {"/s": 0, "us": 1, "ms": 1}.get(unit, 2)
    text = f"{median:,.{digits}f}"
    if len(runs) < 3:
        return text
    low, _, high = statistics.quantiles(runs, n=4)
    return f"{text} ±{(high - low) / 2 / median:3.0%}"


if __name__ == "__main__":
    sys.exit(main())
