"""Sum what pytest reported, and say whether it ran at all: `python .ci/report.py FOLDER STAGE...`.

tox succeeds also when it skipped a stage for want of an interpreter. Each STAGE named here must
have left its JUnit file in FOLDER, with at least one test that passed.
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def main(folder: Path, stages: list[str]) -> int:
    total: Counter[str] = Counter(passed=0, failed=0, skipped=0)
    silent = []

    for stage in stages:
        counts = _read(folder / f"{stage}.xml")
        total.update(counts)
        print(f"{stage}: {_line(counts)}" if counts else f"{stage}: no report")
        if not counts["passed"]:
            silent.append(stage)

    print(_line(total))
    if silent:
        print(f"report: no test passed in {', '.join(silent)}", file=sys.stderr)

    return 1 if silent or total["failed"] else 0


def _read(path: Path) -> Counter[str]:
    """Counts of one file; empty when pytest did not live to write it."""
    if not path.exists():
        return Counter()

    counts: Counter[str] = Counter()
    for suite in ElementTree.parse(path).iter("testsuite"):  # noqa: S314 - pytest wrote it, just now
        tests, failures, errors, skipped = (
            int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
        )
        counts["failed"] += failures + errors
        counts["skipped"] += skipped
        counts["passed"] += tests - failures - errors - skipped

    return counts


def _line(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[word]} {word}" for word in ("passed", "failed", "skipped"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
