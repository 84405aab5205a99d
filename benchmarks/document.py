"""``python -m benchmarks.document``: puts the last figures into README.md and docs/performance.md.

``--measure`` takes them first, which is some minutes: the table and the curves, saved in
``benchmarks/results`` and drawn in ``docs``. In the documents they stand between two comments,
``<!-- figures: NAME -->`` and ``<!-- end -->``; a test holds them equal to what is saved.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from . import curves
from .show import (
    CONDENSED_COLUMNS,
    CONDENSED_ROWS,
    is_better,
    markdown,
    median,
    number,
    reasons,
    titled,
)
from .subject import ROOT
from .table import ALL

RESULTS = ROOT / "benchmarks" / "results"
TABLE, CURVES = RESULTS / "table.json", RESULTS / "curves.json"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")

_FIGURES = re.compile(r"<!-- figures: (\w+) -->\n.*?<!-- end -->", re.DOTALL)

Results = Mapping[str, Any]


def condensed(results: Results) -> str:
    return markdown(results, ALL, CONDENSED_ROWS, CONDENSED_COLUMNS)


def machine(results: Results) -> str:
    told = results["machine"]
    return f"{told['CPU']}; {told['kernel']}; {told['Python']}. Both processes on one CPU."


def faster(results: Results) -> str:
    """The rows on which a peer is ahead of the best of ours."""
    lines = []
    for row in ALL.values():
        ours = [
            (value, column["name"])
            for column in results["columns"]
            if column["ours"] and (value := median(column, row.key)) is not None
        ]
        if not ours:
            continue
        best = sorted(ours, reverse=is_better(2, 1, row))[0]
        ahead = [
            f"{column['name']} {number(value, row.unit)}"
            for column in results["columns"]
            if not column["ours"]
            and not column["name"].startswith("floor")
            and (value := median(column, row.key)) is not None
            and is_better(value, best[0], row)
        ]
        if ahead:
            own = f"{number(best[0], row.unit)} ({best[1]})"
            lines.append(f"| {titled(row)} | {own} | {', '.join(ahead)} |")
    return "\n".join(["| | the best of ours | ahead of it |", "| --- | --- | --- |", *lines])


SECTIONS: Mapping[str, Callable[[], str]] = {
    "condensed": lambda: condensed(_load(TABLE)),
    "whole": lambda: markdown(_load(TABLE), ALL),
    "reasons": lambda: "\n".join(f"- {line}" for line in reasons(_load(TABLE), ALL)),
    "faster": lambda: faster(_load(TABLE)),
    "machine": lambda: machine(_load(TABLE)),
    "curves": lambda: curves.tables(dict(_load(CURVES))),
}


def _load(path: Any) -> Results:
    results: Results = json.loads(path.read_text())
    return results


def filled(text: str) -> str:
    """A document with the figures that are saved."""
    return _FIGURES.sub(
        lambda found: f"<!-- figures: {found[1]} -->\n\n{SECTIONS[found[1]]()}\n\n<!-- end -->",
        text,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.document", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="take the figures first")
    options = parser.parse_args()
    if options.measure:
        RESULTS.mkdir(exist_ok=True)
        docs = ROOT / "docs"
        for module, saved, drawn in (
            ("table", TABLE, docs / "performance.svg"),
            ("curves", CURVES, docs / "curves.svg"),
        ):
            command = [sys.executable, "-m", f"benchmarks.{module}"]
            command += ["--save", str(saved), "--svg", str(drawn)]
            subprocess.run(command, cwd=ROOT, check=True)
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
