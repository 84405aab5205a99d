"""The benchmarks run: no speed is asserted here, that is what they are for."""

from __future__ import annotations

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


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_the_benchmarks_print_every_row(loop: str) -> None:
    if loop != "asyncio":
        pytest.importorskip(loop)
    command = [sys.executable, "-m", "benchmarks", "--loop", loop, "--runs", "1", "--calls", "10"]

    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=50
    )

    assert (done.returncode, done.stderr) == (0, "")
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
    assert head.split() == ["us", "floor", "capnode.sync", "Connection", "Manager"]
    assert len(call.split()) == 5
    assert callback.split()[0::4] == ["callback", "-"]
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
