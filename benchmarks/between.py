"""``python -m benchmarks.between OLD [NEW]``: what has become slower from one commit to another.

The library of each commit is put beside these benchmarks in a directory of its own; the two take
turns, row by row, in processes that are new in each run. NEW is by default the tree as it stands.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from .contenders import ENTRIES
from .subject import ROOT, compile_library
from .table import OTHERS, ROWS, Column, Failed, Row, figure, wanted

SLOWER = 1.05
"""What a row must take, beyond what two runs of one commit differ by, to be called slower."""

_TIMED = [row for row in ROWS if not row.unpinned]
_FIRST = next(row for row in OTHERS if row.key == "first")


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="between") as scratch:
        roots = [Path(scratch, "old"), Path(scratch, "new")]
        for root, commit in zip(roots, (options.old, options.new), strict=True):
            lay_out(root, commit)
            compile_library(root)
        slower = 0
        print(f"{'':20}{'':32}{'old':>12}{'new':>12}  new to old")
        for entry in ENTRIES:
            if entry.ours and not entry.missing() and wanted(entry.name, options.only):
                slower += compare([Column(entry, root) for root in roots], options)
    return 1 if slower and options.check else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.between", description=__doc__)
    parser.add_argument("old", help="a commit")
    parser.add_argument("new", nargs="?", default="", help="another; the working tree by default")
    parser.add_argument("--runs", type=int, default=9, help="of which the median is taken")
    parser.add_argument("--seconds", type=float, default=0.1, help="that one run takes")
    parser.add_argument("--only", nargs="+", default=["uvloop", "blocking"], help="on these")
    parser.add_argument("--rows", nargs="+", default=[], help="rows, by a part of their key")
    parser.add_argument("--check", action="store_true", help="exit 1 if something is slower")
    return parser.parse_args()


def lay_out(root: Path, commit: str) -> None:
    """These benchmarks, and the library of that commit."""
    clean = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "benchmarks", root / "benchmarks", ignore=clean)
    if not commit:
        shutil.copytree(ROOT / "capnode_py", root / "capnode_py", ignore=clean)
        return
    archive = root / "library.tar"
    command = ["git", "archive", "--output", str(archive), commit, "capnode_py"]
    subprocess.run(command, cwd=ROOT, check=True)
    shutil.unpack_archive(archive, root)


def compare(pair: list[Column], options: argparse.Namespace) -> int:
    """Print a line for each row; how many are slower."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [row for row in [*_TIMED, _FIRST] if wanted(row.key, options.rows)]
    found: dict[str, list[list[float]]] = {row.key: [] for row in rows}
    try:
        for _ in range(options.runs):
            for column in pair:
                column.reopen()
            for row in rows:
                if both := _measured(pair, row, options.seconds):
                    found[row.key].append(both)
    finally:
        for column in pair:
            column.close()
    return sum(_show(pair[0].name, row, found[row.key]) for row in rows)


def _measured(pair: list[Column], row: Row, seconds: float) -> list[float]:
    """The seconds of one, with each; [] if one of them does not offer it."""
    request = {"method": row.method, "arguments": row.arguments, "seconds": seconds}
    try:
        if row is _FIRST:
            return [column.ask("first")["seconds"] for column in pair]
        return [column.ask("time", **request)["seconds"] for column in pair]
    except Failed:
        return []


def _show(name: str, row: Row, runs: list[list[float]]) -> bool:
    if not runs:
        print(f"{name:20}{row.name:32}{'-':>12}{'-':>12}")
        return False
    old, new = (statistics.median(figures) for figures in zip(*runs, strict=True))
    ratios = sorted(mine / its for its, mine in runs)
    ratio = statistics.median(ratios)
    low = ratios[len(ratios) // 4]  # three of four runs say so
    verdict = "slower" if ratio > SLOWER and low > 1 else ""
    if ratio < 1 / SLOWER and ratios[-1 - len(ratios) // 4] < 1:
        verdict = "faster"
    cells = "".join(f"{figure(row, seconds):>12,.1f}" for seconds in (old, new))
    print(f"{name:20}{row.name:32}{cells}  {ratio:.2f} {verdict}".rstrip(), flush=True)
    return verdict == "slower"


if __name__ == "__main__":
    sys.exit(main())
