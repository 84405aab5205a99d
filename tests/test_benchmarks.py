"""The benchmarks run: no speed is asserted here, that is what they are for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ROWS = [
    "parent's RSS",
    "a call, us",
    "calls/s, 1 in flight",
    "calls/s, 50 in flight",
    "calls/s, 1000 in flight",
    "messages sent per call",
    "messages received per call",
    "a call with one callback",
    "a pipelined chain ten deep",
    "from spawn to the first reply",
    "interpreter and import",
]


def _complaints(stderr: str) -> list[str]:
    """What is wrong; not that this machine is slow, which blocks a loop with 100,000 references."""
    return [line for line in stderr.splitlines() if "event loop" not in line]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_the_benchmarks_print_every_row(loop: str) -> None:
    if loop != "asyncio":
        pytest.importorskip(loop)
    command = [sys.executable, "-m", "benchmarks", "--loop", loop, "--runs", "1", "--calls", "10"]

    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=50
    )

    assert (done.returncode, _complaints(done.stderr)) == (0, [])
    lines = done.stdout.splitlines()
    for row in ROWS:
        assert [line for line in lines if line.startswith(row)], row
    (messages,) = [line for line in lines if line.startswith("messages sent per call")]
    assert messages.split()[-3:] == ["1.00", "1.00:", "ok"]


def test_the_benchmark_of_the_other_dialect_prints_its_rows() -> None:
    command = [sys.executable, "-m", "benchmarks.web", "--runs", "1", "--calls", "100"]

    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=50
    )

    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["Python", "to", "Python", "capnweb", "native", "ratio"]
    assert [row.split(",")[0] for row in rows[:3]] == [
        "a call",
        "a call",
        "a call with one callback",
    ]
    assert any(row.startswith("a Node client") for row in rows)  # or what is missing for it


def test_the_blocking_benchmark_prints_its_rows() -> None:
    command = [sys.executable, "-m", "benchmarks.blocking", "--runs", "1", "--calls", "10"]

    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=50
    )

    assert (done.returncode, done.stderr) == (0, "")
    head, call, callback, ratios = done.stdout.splitlines()
    names = ["floor", "capnode.sync", "Connection", "Manager", "Manager,", "spawn"]
    assert head.split() == ["us", *names]
    assert call.count("(") == 5
    assert (callback.count("("), callback.split()[-2:]) == (2, ["-", "-"])
    assert "call to floor" in ratios


def test_the_benchmark_of_a_child_prints_its_rows_and_leaves_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks.child", "--loop", "asyncio", "--loop", "blocking"]

    done = subprocess.run(
        [*command, "--runs", "1", "--spawns", "2", "--quick"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert (done.returncode, done.stderr) == (0, "")
    rows = done.stdout.splitlines()
    assert rows[0].split() == ["asyncio", "blocking", "target"]
    left = [row for row in rows if row.startswith("left behind")]
    assert [row.split()[-4:] for row in left] == [["0", "0", "<=", "0"]] * 2
    for row in ("spawn to first reply", "death to error (held)", "close of a healthy child"):
        assert [line for line in rows if line.startswith(row)], row


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks can be imported. The package has been already: the one that is installed."""
    import capnode_py  # noqa: F401

    monkeypatch.syspath_prepend(ROOT)


def run(module: str, *arguments: str) -> str:
    """What it prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_big_table_has_a_figure_or_a_reason_in_each_cell(tmp_path: Path) -> None:
    """Of ourselves and the standard library, which are always installed."""
    results, svg = tmp_path / "results.json", tmp_path / "picture.svg"
    tiny = ["--runs", "1", "--seconds", "0.001", "--cpu", str(max(os.sched_getaffinity(0)))]
    shown = run(
        "table", *tiny, "--only", "blocking", "Connection",
        "--save", str(results), "--svg", str(svg),
    )  # fmt: skip

    found = json.loads(results.read_text())
    columns = {column["name"]: column for column in found["columns"]}
    assert list(columns) == ["capnode, blocking", "floor, blocking", "Connection"]
    keys = {key for column in columns.values() for key in column["figures"]}
    assert {"call", "flight1000", "batch", "callbacks", "chain", "echo64m", "first"} < keys
    for name, column in columns.items():
        for key in keys - {"messages", "writes", "bytes"}:
            assert (key in column["figures"]) != (key in column["cannot"]), (name, key)
        if name.startswith("capnode"):
            assert set(column["cannot"]) <= {"messages", "writes", "bytes"}  # without strace
    assert "Connection: a dispatcher by hand" in shown
    assert svg.read_text().count("<circle") > 10
    again = run("table", "--load", str(results), "--markdown")
    assert "| a call, us |" in again


@pytest.mark.usefixtures("here")
def test_a_contender_that_is_not_installed_is_a_column_of_reasons() -> None:
    from benchmarks.contenders import Entry
    from benchmarks.table import ALL, Column, start

    column = Column(Entry("peer", ("nothing", "Nothing"), ("no_such_module", "no-such-package")))
    start(column)
    assert column.cannot == dict.fromkeys(ALL, "no-such-package is not installed")


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    svg = tmp_path / "curves.svg"
    tiny = ["--runs", "1", "--seconds", "0.001", "--points", "2", "--curves", "size"]
    shown = run("curves", *tiny, "--svg", str(svg))
    assert "| capnode, blocking |" in shown
    assert svg.read_text().count("<polyline") >= 2


def test_a_commit_compared_with_itself_shows_a_ratio_for_each_row() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a working tree of git")
    shown = run(
        "between", "HEAD", "HEAD", "--runs", "1", "--seconds", "0.001",
        "--only", "asyncio", "--rows", "call", "first",
    )  # fmt: skip
    rows = shown.splitlines()[1:]
    assert len(rows) == 4  # the call, one and ten callbacks, and the first reply
    for row in rows:
        assert row.startswith("capnode, asyncio")
        assert float(row.removesuffix("slower").removesuffix("faster").split()[-1]) > 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_the_documents_show_the_figures_that_are_saved(name: str) -> None:
    from benchmarks.document import filled

    text = (ROOT / name).read_text()
    assert filled(text) == text, "write: python -m benchmarks.document"
    assert text.count("<!-- figures: ") == text.count("<!-- end -->") > 0
