"""``python -m benchmarks.blocking``: `capnode_py.sync` beside raw frames and multiprocessing.

Parent and child share one CPU, and the subjects take turns, as in the table of the drivers with a
loop; each run is in new processes. The floor writes the bytes of a call and reads those of its
answer, with `os.write` and `os.read` on blocking descriptors, and no RPC. README.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe, Process, get_context
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from typing import Any

import capnode_py as capnode

from .floor import call_and_answer
from .subject import ROOT, compile_library


class Floor:
    name = "floor"

    def __init__(self) -> None:
        self._call, answer = call_and_answer()
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "benchmarks.blocking", "--serve", answer.hex()]
            self._child = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=theirs.fileno(), cwd=ROOT
            )
        self.pid = self._child.pid
        self._fd = ours.detach()

    def call(self) -> None:
        os.write(self._fd, self._call)
        os.read(self._fd, 65536)

    def close(self) -> None:
        os.close(self._fd)
        self._child.wait()


class Blocking:
    name = "capnode.sync"

    def __init__(self) -> None:
        self._peer = capnode.sync.spawn(
            [sys.executable, "-m", "benchmarks.blocking", "--serve"], cwd=ROOT
        )

    def call(self) -> None:
        self._peer.index.add(1, 2)

    def callback(self) -> None:
        self._peer.index.call_back(_called_back)

    def close(self) -> None:
        self._peer.close()


class WithConnection:
    """A dispatch by hand over `multiprocessing.connection`."""

    name = "Connection"

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self._child = Process(target=_dispatch, args=(theirs,))
        self._child.start()
        theirs.close()

    def call(self) -> None:
        self._connection.send(("add", (1, 2)))
        self._connection.recv()

    def callback(self) -> None:
        self._connection.send(("call_back", ()))
        self._connection.send(_called_back(self._connection.recv()[1]))
        self._connection.recv()

    def close(self) -> None:
        self._connection.send(None)
        self._child.join()
        self._connection.close()


class WithManager:
    name = "Manager"
    start: str | None = None  # the method: that of the platform

    def __init__(self) -> None:
        self._manager = _Manager(ctx=get_context(self.start))
        self._manager.start()
        self._plugin: Any = self._manager.Plugin()  # type: ignore[attr-defined]

    def call(self) -> None:
        self._plugin.add(1, 2)

    def close(self) -> None:
        self._manager.shutdown()


class WithSpawnedManager(WithManager):
    """In an interpreter of its own, as a child of ours is, and not in a fork, which has its code
    and data where they are here: the caches of the CPU hold them but once."""

    name = "Manager, spawn"
    start = "spawn"


class Plugin(capnode.Target):
    def add(self, a: int, b: int) -> int:
        return a + b

    def call_back(self, function: Any) -> Any:
        return function(1)


class _Manager(BaseManager): ...


_Manager.register("Plugin", Plugin)


def _called_back(value: int) -> int:
    return value


def _dispatch(connection: Connection) -> None:
    def call_back() -> Any:
        connection.send(("call", 1))
        return connection.recv()

    methods: dict[str, Callable[..., Any]] = {"add": Plugin().add, "call_back": call_back}
    while (call := connection.recv()) is not None:
        name, args = call
        connection.send(methods[name](*args))


def _serve(answer: str) -> None:
    if not answer:
        capnode.sync.serve_stdio(Plugin())
        return
    data = bytes.fromhex(answer)
    while os.read(0, 65536):
        os.write(1, data)


SUBJECTS: Sequence[type[Any]] = (
    Floor,
    Blocking,
    WithConnection,
    WithManager,
    WithSpawnedManager,
)
ROWS = ("call", "callback")
_TURNS = 3


def measure(runs: int, calls: int) -> dict[tuple[str, str], list[float]]:
    """Microseconds of a call and of one with a callback, by subject. Each run is in new processes,
    where code and data lie elsewhere: that alone may change a figure by two thirds."""
    compile_library()
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        command = [sys.executable, "-m", "benchmarks.blocking", "--once", "--calls", str(calls)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        for name, row, figure in json.loads(done.stdout):
            found.setdefault((name, row), []).append(figure)
    return found


def _once(calls: int) -> list[tuple[str, str, float]]:
    """One run, in which the subjects take turns."""
    subjects = [subject() for subject in SUBJECTS]
    found: dict[tuple[str, str], list[float]] = {}
    try:
        for _ in range(_TURNS):
            for subject in subjects:
                for row in ROWS:
                    function = getattr(subject, row, None)
                    if function is not None:
                        took = _time(function, max(calls // _TURNS, 1))
                        found.setdefault((subject.name, row), []).append(took)
    finally:
        for subject in reversed(subjects):  # each fork has inherited what was open before
            subject.close()
    return [(name, row, statistics.median(figures)) for (name, row), figures in found.items()]


def _time(function: Callable[[], None], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocking", description=__doc__)
    parser.add_argument("--serve", nargs="?", const="", help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--unpinned", action="store_true", help="leave the CPUs to the scheduler")
    parser.add_argument("--runs", type=int, default=15, help="of which the median is taken")
    parser.add_argument("--calls", type=int, default=3000, help="in one run")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    if options.serve is not None:
        _serve(options.serve)
        return 0
    if options.once:
        print(json.dumps(_once(options.calls)))
        return 0
    if not options.unpinned:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = measure(options.runs, options.calls)
    print(f"{'us':12}" + "".join(f"{subject.name:>16}" for subject in SUBJECTS))
    for row in ROWS:
        cells = [found.get((subject.name, row)) for subject in SUBJECTS]
        print(f"{row:12}" + "".join(f"{_shown(cell):>16}" for cell in cells))
    ours = found[Blocking.name, "call"]
    to_floor = _ratio(ours, found[Floor.name, "call"])
    to_call = _ratio(found[Blocking.name, "callback"], ours)
    met = to_floor <= 2.0 and to_call <= 2.2
    print(f"call to floor {to_floor:.2f} (<= 2.0), callback to call {to_call:.2f} (<= 2.2)")
    return 1 if options.check and not met else 0


def _shown(figures: Sequence[float] | None) -> str:
    """The median, and between what the middle half of them lie."""
    if not figures:
        return "-"
    ordered = sorted(figures)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return f"{statistics.median(ordered):.1f} ({low:.0f}-{high:.0f})"


def _ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """Of neighbours."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


if __name__ == "__main__":
    sys.exit(main())
