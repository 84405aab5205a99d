"""``python -m benchmarks.curves``: how the figures grow with calls in flight, size and references.

One table and one panel of the picture for each. The contenders take turns, as in `table.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contenders import entry
from .show import lines
from .table import Column, Failed, machine

Points = dict[str, list[tuple[float, float]]]
"""What was found, by the name of the contender: pairs of x and y."""

BOTH = ("capnode, uvloop", "capnode, blocking")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One panel.

    Attributes:
        x, y: what they are, with their units.
        at: the values of x.
        names: of the contenders.
    """

    key: str
    title: str
    x: str
    y: str
    at: Sequence[int]
    names: Sequence[str]


CURVES = [
    Curve(
        key="flight",
        title="Calls in flight",
        x="in flight",
        y="calls/s",
        at=[1, 3, 10, 30, 100, 300, 1000, 3000],
        names=[*BOTH, "floor, uvloop", "execnet", "RPyC", "pycapnp"],
    ),
    Curve(
        key="size",
        title="A value there and back",
        x="bytes",
        y="us, by its size",
        at=[16, 256, 4096, 16384, 65536, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26],
        names=[*BOTH, "Connection", "Pyro5", "pycapnp"],
    ),
    Curve(
        key="references",
        title="A held reference",
        x="references",
        y="bytes, both sides together",
        at=[3000, 10_000, 30_000, 100_000],
        names=[*BOTH, "RPyC", "pycapnp"],
    ),
]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = {}
    for curve in CURVES:
        if not options.curves or curve.key in options.curves:
            print(f"{curve.title} ...", file=sys.stderr, flush=True)
            found[curve.key] = _curve(curve, options)
    return {"machine": machine(), "curves": found}


def _curve(curve: Curve, options: argparse.Namespace) -> Points:
    columns = [Column(entry(name)) for name in curve.names]
    points: Points = {}
    gone: set[str] = {column.name for column in columns if column.entry.missing()}
    try:
        for x in curve.at[: options.points]:
            runs: dict[str, list[float]] = {}
            for _ in range(1 if curve.key == "references" else options.runs):
                for column in columns:
                    if column.name in gone:
                        continue
                    try:
                        runs.setdefault(column.name, []).append(_point(curve, column, x, options))
                    except Failed as error:
                        print(f"{column.name}, {x}: {error}", file=sys.stderr)
                        gone.add(column.name)
            for name, values in runs.items():
                if name not in gone:
                    points.setdefault(name, []).append((x, statistics.median(values)))
    finally:
        for column in columns:
            column.close()
    return points


def _point(curve: Curve, column: Column, x: int, options: argparse.Namespace) -> float:
    if curve.key == "references":
        column.close()  # in a new process: a heap with holes would hide what they take
        found = column.ask("references", n=x)
        return float(found["here"] + found["there"])
    method, argument = {"flight": ("in_flight", "window"), "size": ("echo", "size")}[curve.key]
    found = column.ask("time", method=method, arguments={argument: x}, seconds=options.seconds)
    seconds: float = found["seconds"]
    return 1 / seconds if curve.key == "flight" else seconds * 1e6


def tables(results: dict[str, Any]) -> str:
    """Each curve as a table in Markdown."""
    shown = []
    for curve in CURVES:
        points: Points = results["curves"].get(curve.key, {})
        xs = sorted({x for pairs in points.values() for x, _ in pairs})
        if not xs:
            continue
        rows = [f"| {curve.x} | " + " | ".join(f"{x:,.0f}" for x in xs) + " |"]
        rows.append("| --- |" + " ---: |" * len(xs))
        for name, pairs in points.items():
            by_x = dict(pairs)
            cells = [_rounded(by_x[x]) if x in by_x else "-" for x in xs]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
        shown.append(f"{curve.title} ({curve.y}):\n\n" + "\n".join(rows))
    return "\n\n".join(shown)


def _rounded(value: float) -> str:
    if value <= 0:  # less than the holes in a heap
        return "-"
    digits = 3 - len(str(int(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--seconds", type=float, default=0.1, help="that one run takes")
    parser.add_argument("--points", type=int, help="no more than these of each curve")
    parser.add_argument("--curves", nargs="+", choices=[curve.key for curve in CURVES])
    parser.add_argument("--save", type=Path, help="keep the figures in this file")
    parser.add_argument("--load", type=Path, help="measure nothing, show that file")
    parser.add_argument("--svg", type=Path, help="draw the picture into this file")
    return parser.parse_args()


def main() -> int:
    options = _options()
    results = json.loads(options.load.read_text()) if options.load else measure(options)
    if options.save:
        options.save.write_text(json.dumps(results, indent=1) + "\n")
    if options.svg:
        panels = [
            (curve.title, curve.x, curve.y, results["curves"][curve.key])
            for curve in CURVES
            if curve.key in results["curves"]
        ]
        options.svg.write_text(lines(panels, results["machine"]))
    print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
