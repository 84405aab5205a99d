"""``python -m benchmarks.table``: this library beside its peers, in one table and a picture.

Each contender has a process of its own (`worker.py`), which has started a child; both are new in
each run. They take turns, row by row, and only the one whose turn it is runs. README.md says more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contenders import ENTRIES, Entry
from .show import markdown, picture, text
from .subject import ROOT, compile_library

KIB, MIB = 1024, 1024 * 1024
PATIENCE = 20.0  # seconds for one run of one row


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is asked of each contender.

    Attributes:
        key: of the figures.
        name, unit: as they are shown; units are "us", "ms", "/s", "MB/s", "B" and "".
        method, arguments: of the contender.
        unpinned: the scheduler may use all CPUs.
        most: runs, at the most.
    """

    key: str
    name: str
    unit: str
    method: str = "call"
    arguments: dict[str, Any] = field(default_factory=dict)
    unpinned: bool = False
    most: int = 100


ROWS = [
    Row(key="call", name="a call", unit="us"),
    Row(
        key="flight1",
        name="calls/s, 1 in flight",
        unit="/s",
        method="in_flight",
        arguments={"window": 1},
    ),
    Row(
        key="flight50",
        name="calls/s, 50 in flight",
        unit="/s",
        method="in_flight",
        arguments={"window": 50},
    ),
    Row(
        key="flight1000",
        name="calls/s, 1000 in flight",
        unit="/s",
        method="in_flight",
        arguments={"window": 1000},
    ),
    Row(key="batch", name="1000 calls as one batch", unit="ms", method="batch"),
    Row(
        key="callback",
        name="a call with one callback",
        unit="us",
        method="callback",
        arguments={"times": 1},
    ),
    Row(
        key="callbacks",
        name="a call with ten callbacks",
        unit="us",
        method="callback",
        arguments={"times": 10},
    ),
    Row(key="chain", name="a chain ten deep", unit="us", method="chain"),
    Row(
        key="echo1k", name="1 KiB there and back", unit="us", method="echo", arguments={"size": KIB}
    ),
    Row(
        key="echo1m",
        name="1 MiB there and back",
        unit="MB/s",
        method="echo",
        arguments={"size": MIB},
    ),
    Row(
        key="echo64m",
        name="64 MiB there and back",
        unit="MB/s",
        method="echo",
        arguments={"size": 64 * MIB},
        most=3,
    ),
    Row(key="call_unpinned", name="a call, unpinned", unit="us", unpinned=True),
    Row(
        key="flight1000_unpinned",
        name="calls/s, 1000 in flight, unpinned",
        unit="/s",
        method="in_flight",
        arguments={"window": 1000},
        unpinned=True,
    ),
    Row(
        key="echo1m_unpinned",
        name="1 MiB there and back, unpinned",
        unit="MB/s",
        method="echo",
        arguments={"size": MIB},
        unpinned=True,
    ),
]
"""What is timed."""

OTHERS = [
    Row(key="first", name="from spawn to the first reply", unit="ms"),
    Row(key="import", name="interpreter and import", unit="ms"),
    Row(key="cpu_here", name="CPU of a call, caller", unit="us"),
    Row(key="cpu_there", name="CPU of a call, callee", unit="us"),
    Row(key="writes", name="writes for a call, both sides", unit=""),
    Row(key="bytes", name="bytes of a call, both ways", unit="B"),
    Row(key="messages", name="messages for a call, both ways", unit=""),
    Row(key="ref_here", name="a live reference, holder", unit="B"),
    Row(key="ref_there", name="a live reference, owner", unit="B"),
    Row(key="peak_here", name="peak memory of a 64 MiB echo, caller", unit="MiB"),
    Row(key="peak_there", name="peak memory of a 64 MiB echo, callee", unit="MiB"),
]
"""What is found out otherwise."""

ALL = {row.key: row for row in [*ROWS, *OTHERS]}


class Failed(Exception):
    """A contender did not answer, or ended."""


class Column:
    """A contender, and what was found of it.

    Args:
        root: where its program starts: this tree, or another with another version of the library.

    Attributes:
        figures: the runs of each row.
        cannot: why there are none.
    """

    def __init__(self, entry: Entry, root: Path = ROOT) -> None:
        self.entry = entry
        self.name = entry.name
        self.root = root
        self.figures: dict[str, list[float]] = {}
        self.cannot: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", self.name, str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": str(self.root)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL if not os.environ.get("BENCH_STDERR") else None,
                cwd=self.root,
                start_new_session=True,
            )
        self._socket = ours
        self._control = ours.makefile("rw")
        self._answer(PATIENCE)
        self.pids = tuple(self.ask("pids").values())

    def reopen(self) -> None:
        """In new processes: where their code and data lie decides what a call costs, too."""
        self.close()
        self.open()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Raises `Failed` for what is not offered, or takes too long."""
        if self._process is None:
            self.open()
        self._control.write(json.dumps({"do": do, **request}) + "\n")
        self._control.flush()
        return self._answer(PATIENCE)

    def _answer(self, patience: float) -> dict[str, Any]:
        if not select.select([self._socket], [], [], patience)[0]:
            self.kill()
            raise Failed(f"more than {patience:.0f} s, or it hangs")
        line = self._control.readline()
        if not line:
            self.kill()
            raise Failed("it ended")
        answer: dict[str, Any] = json.loads(line)
        if "broken" in answer:  # who knows what state it is in
            self.kill()
        if "cannot" in answer:
            raise Failed(answer["cannot"])
        return answer

    def pin(self, cpus: set[int]) -> None:
        for pid in self.pids if self._process else ():
            for task in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(task), cpus)

    def kill(self) -> None:
        """End it and its child, by their ids."""
        if self._process is None:
            return
        for pid in (*getattr(self, "pids", ())[1:], self._process.pid):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self._process.wait()
        self._control.close()
        self._socket.close()
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(Failed, OSError):
                self.ask("close")
            self.kill()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as they are kept in the file of results."""
    compile_library()
    one = {min(os.sched_getaffinity(0))} if options.cpu is None else {options.cpu}
    everything = set(range(os.cpu_count() or 1))
    columns = [Column(entry) for entry in ENTRIES if wanted(entry.name, options.only)]
    os.sched_setaffinity(0, one)
    try:
        for run in range(options.runs):
            for column in columns:
                start(column)
            for row in ROWS:
                if not wanted(row.key, options.rows) or run >= row.most:
                    continue
                print(f"{run + 1}: {row.name} ...", file=sys.stderr, flush=True)
                for column in columns:
                    _run(column, row, options.seconds, everything if row.unpinned else one)
        for find in (_first, _import, _traffic, _references, _peak):
            for _ in range(min(options.runs, 5) if find in (_first, _import) else 1):
                for column in columns:
                    _find(column, find, options)
    finally:
        for column in columns:
            column.close()
    return {
        "machine": machine(),
        "runs": options.runs,
        "columns": [
            {
                "name": column.name,
                "ours": column.entry.ours,
                "figures": column.figures,
                "cannot": column.cannot,
            }
            for column in columns
        ],
    }


def wanted(name: str, asked: Sequence[str]) -> bool:
    return not asked or any(part.lower() in name.lower() for part in asked)


def start(column: Column) -> None:
    why = column.entry.missing()
    if not why:
        try:
            column.reopen()
        except Failed as error:
            why = f"does not start: {error}"
    if why:
        column.cannot = dict.fromkeys(ALL, why)


def _run(column: Column, row: Row, seconds: float, cpus: set[int]) -> None:
    if row.key in column.cannot:
        return
    try:
        column.pin(cpus)
        found = column.ask("time", method=row.method, arguments=row.arguments, seconds=seconds)
        column.pin({min(cpus)} if not row.unpinned else {min(os.sched_getaffinity(0))})
    except (Failed, OSError) as error:
        column.cannot[row.key] = str(error)
        column.figures.pop(row.key, None)
        return
    column.figures.setdefault(row.key, []).append(figure(row, found["seconds"]))
    if row.key == "call":
        column.figures.setdefault("cpu_here", []).append(found["here"] * 1e6)
        column.figures.setdefault("cpu_there", []).append(found["there"] * 1e6)


def figure(row: Row, seconds: float) -> float:
    if row.unit == "MB/s":
        return float(2 * row.arguments["size"] / seconds / 1e6)
    return {"/s": 1 / seconds, "us": seconds * 1e6, "ms": seconds * 1e3}[row.unit]


def _find(column: Column, find: Any, options: argparse.Namespace) -> None:
    keys = {
        _first: ["first"],
        _import: ["import"],
        _traffic: ["writes", "bytes", "messages"],
        _references: ["ref_here", "ref_there"],
        _peak: ["peak_here", "peak_there"],
    }[find]
    if keys[0] in column.cannot or not any(wanted(key, options.rows) for key in keys):
        return
    if column.name.startswith("floor") and find in (_first, _import):
        column.cannot.update(dict.fromkeys(keys, "no program that anybody would write"))
        return
    try:
        for values in find(column, options):
            for key, value in zip(keys, values, strict=False):
                if value is not None:
                    column.figures.setdefault(key, []).append(value)
    except (Failed, OSError) as error:
        column.cannot.update(dict.fromkeys(keys, str(error)))


def _first(column: Column, _options: argparse.Namespace) -> Iterator[list[float]]:
    yield [column.ask("first")["seconds"] * 1e3]


def _import(column: Column, _options: argparse.Namespace) -> Iterator[list[float]]:
    program = column.entry.make().imports
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], cwd=column.root, check=True)
    yield [(time.perf_counter() - started) * 1e3]


def _references(column: Column, _options: argparse.Namespace) -> Iterator[list[float]]:
    """In a new process: a heap with holes would hide what they take."""
    found = _fresh(column, "references")
    yield [found["here"], found["there"]]


def _peak(column: Column, _options: argparse.Namespace) -> Iterator[list[float]]:
    """In a new process, whose peak this then is."""
    if "echo64m" in column.cannot:
        raise Failed(column.cannot["echo64m"])
    found = _fresh(column, "peak", size=64 * MIB)
    yield [found["here"] / MIB, found["there"] / MIB]


def _fresh(column: Column, do: str, **request: Any) -> dict[str, Any]:
    fresh = Column(column.entry)
    try:
        fresh.open()
        return fresh.ask(do, **request)
    finally:
        fresh.close()


_CALL = re.compile(r"^(\d+) +\w+\(\d+<(?:socket|UNIX|TCP|pipe)[^>]*>.* = (\d+)$")


def _traffic(column: Column, _options: argparse.Namespace) -> Iterator[list[float | None]]:
    """What the kernel sees: each write of either side to a stream, and its bytes."""
    n = 200
    if shutil.which("strace") is None:
        raise Failed("strace is not installed")
    with tempfile.NamedTemporaryFile("r") as seen:
        watch = subprocess.Popen(
            ["strace", "-f", "-y", "-s", "0", "-o", seen.name]
            + ["-e", "trace=write,writev,sendto,sendmsg"]
            + [f"--attach={pid}" for pid in column.pids],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watch.stderr is not None
        attached = 0
        while attached < len(column.pids):
            line = watch.stderr.readline()
            if not line:
                raise Failed("strace cannot attach")
            attached += "attached" in line
        counted = column.ask("counted", n=n)
        watch.terminate()
        watch.wait()
        watch.stderr.close()
        sizes = [int(match[2]) for line in seen if (match := _CALL.match(line))]
    control = 1  # the worker's answer to us
    large = [size for size in sizes if size > 1]  # a byte only wakes somebody
    messages = counted["sent"] + counted["received"] if counted else None
    yield [(len(large) - control) / n, sum(large) / n, messages]


def machine() -> dict[str, str]:
    """What it ran on, as a reader wants to know it."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "CPU": f"{model}, {os.cpu_count()} CPUs",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--seconds", type=float, default=0.1, help="that one run takes")
    parser.add_argument("--only", nargs="+", default=[], help="contenders, by a part of their name")
    parser.add_argument("--rows", nargs="+", default=[], help="rows, by a part of their key")
    parser.add_argument("--cpu", type=int, help="to pin to; the first by default")
    parser.add_argument("--save", type=Path, help="keep the figures in this file")
    parser.add_argument("--load", type=Path, help="measure nothing, show that file")
    parser.add_argument("--svg", type=Path, help="draw the picture into this file")
    parser.add_argument("--markdown", action="store_true", help="print it as it stands in the docs")
    return parser.parse_args()


def main() -> int:
    options = _options()
    results = json.loads(options.load.read_text()) if options.load else measure(options)
    if options.save:
        options.save.write_text(json.dumps(results, indent=1) + "\n")
    if options.svg:
        options.svg.write_text(picture(results, ALL))
    print(markdown(results, ALL) if options.markdown else text(results, ALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
