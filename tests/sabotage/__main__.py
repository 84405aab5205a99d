"""Apply each break to a copy of the package, run its tests, and expect each of them to fail.

::

    python -m tests.sabotage                  # all of them
    python -m tests.sabotage barrier release  # those with such a word in their name

A break whose text is no longer in the source fails loudly: move it along with the code.

Each run is a fork of this process, which has imported what all of them need and does not change;
so it costs half a second instead of two.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - for the forks, as are the next three
import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import anyio._backends._asyncio  # noqa: F401
import cbor2  # noqa: F401
import hypothesis.strategies  # noqa: F401
import pytest

from .breaks import BREAKS, Break

ROOT = Path(__file__).parents[2]
PACKAGE = "capnode_py"
AT_ONCE = 2  # the machines that run this have two cores
SECONDS_A_TEST = 15  # a broken engine may well hang
SECONDS_A_RUN = 60  # and not even come to its end when a test has failed
PR_SET_CHILD_SUBREAPER = 36  # prctl(2): who has lost its parent is a child of ours

ARGUMENTS = [
    "-q",
    "--no-header",
    "--tb=short",
    "-pno:cacheprovider",
    "-Wignore:Module already imported so cannot be rewritten",
    f"--timeout={SECONDS_A_TEST}",
]


def main(words: Sequence[str]) -> int:
    """Run them; the exit code."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    chosen = [b for b in BREAKS if not words or any(word in b.name for word in words)]
    if not can_be_applied(chosen):
        return 2

    with tempfile.TemporaryDirectory(prefix="sabotage-") as scratch:
        intact = Run(Path(scratch, "intact"), {test for b in chosen for test in b.tests})
        finish([intact])
        skipped = set(intact.tests) - set(intact.passed) - set(intact.failed)
        if intact.failed or skipped - set(intact.skipped):
            print(f"{intact.output()}\nwith nothing broken, all of these must pass")
            return 2

        for b in chosen:
            if skipped & set(map(node_id, b.tests)):
                print(f"{'NOT RUN':8}  {b.rule:6}  {b.name}: its test is skipped here")
        chosen = [b for b in chosen if not skipped & set(map(node_id, b.tests))]
        runs = [Run(Path(scratch, str(n)), b.tests, b) for n, b in enumerate(chosen)]
        finish(runs)
        return 1 if report(runs) else 0


def can_be_applied(chosen: Sequence[Break]) -> bool:
    """Does the text of each still stand in the source? If not, it is printed."""
    stale = [b for b in chosen if (ROOT / PACKAGE / b.file).read_text().count(b.old) != 1]
    for b in stale:
        print(f"{b.name}: this text does not stand once in {b.file}:\n{b.old}\n")
    if stale or not chosen:
        print("nothing was run: repair tests/sabotage/breaks.py")
    return bool(chosen) and not stale


def report(runs: Sequence[Run]) -> int:
    """Print the table; how many breaks went unnoticed."""
    unnoticed = 0
    for run in runs:
        if run.broken is None:
            continue
        missed = [test for test in run.tests if test not in run.failed]
        print(f"{'NOT HELD' if missed else 'held':8}  {run.broken.rule:6}  {run.broken.name}")
        if missed:
            unnoticed += 1
            print(f"did not fail: {', '.join(missed)}\n{run.output()}")
    print(f"{len(runs) - unnoticed} of {len(runs)} breaks were noticed by their tests")
    return unnoticed


class Run:
    """One run of tests on a copy of the package.

    Attributes:
        broken: what is changed in the copy.
        passed, failed, skipped: the node ids, once it is finished.
    """

    def __init__(self, path: Path, tests: Iterable[str], broken: Break | None = None) -> None:
        self.tests = [node_id(test) for test in tests]
        self.broken = broken
        self.passed: list[str] = []
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self._path = path

    def start(self) -> int:
        """Fork; the process id."""
        copy = self._path / PACKAGE
        shutil.copytree(ROOT / PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if self.broken is not None:
            file = copy / self.broken.file
            file.write_text(file.read_text().replace(self.broken.old, self.broken.new))
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._be_the_child()
        return pid

    def _be_the_child(self) -> None:
        output = os.open(self._path / "output", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            os.chdir(ROOT)
            sys.path[0] = str(self._path)  # where the directory of the intact package stood
            os.environ["PYTHONPATH"] = str(self._path)  # for the children of the tests
            outcome = self.work()
            where = sys.modules[PACKAGE].__file__ or ""
            if not where.startswith(str(self._path)):
                raise RuntimeError(f"{where} was imported instead of the copy")
            self._tell(outcome)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def work(self) -> Any:
        """What the child does. Returns what it tells its parent."""
        outcomes = Outcomes()
        told = outcomes.passed, outcomes.failed, outcomes.skipped

        def give_up() -> None:
            self._tell(told)
            os._exit(0)

        if self.broken is not None:
            timer = threading.Timer(SECONDS_A_RUN, give_up)
            timer.daemon = True
            timer.start()
        try:
            pytest.main([*ARGUMENTS, *self.tests], plugins=[outcomes])
        except BaseException:  # what a hung test left behind ends pytest itself
            traceback.print_exc()
        return told

    def _tell(self, outcome: Any) -> None:
        (self._path / "outcome").write_text(json.dumps(outcome))

    def read(self) -> Any:
        """What the child has told; None if it did not come to that."""
        told = self._path / "outcome"
        return json.loads(told.read_text()) if told.exists() else None

    def finished(self) -> None:
        """The child has ended."""
        self.passed, self.failed, self.skipped = self.read() or ([], [], [])

    def output(self) -> str:
        """The end of what it printed."""
        return (self._path / "output").read_text()[-4000:]


class Outcomes:
    """A plugin of pytest, which notes what passed, what failed and what was skipped."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)
        elif report.skipped:
            self.skipped.append(report.nodeid)


def finish(runs: Sequence[Run]) -> None:
    """Run them all, some at once."""
    waiting = list(reversed(runs))
    running: dict[int, Run] = {}
    while waiting or running:
        if waiting and len(running) < AT_ONCE:
            run = waiting.pop()
            running[run.start()] = run
        else:
            pid, _ = os.wait()
            if pid in running:  # else it was the child of a test, and is gone
                running.pop(pid).finished()
    for left in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(left), signal.SIGKILL)  # a broken child may outlive its parent for good


def node_id(test: str) -> str:
    file, name = test.split("::", 1)
    folder, _, module = file.rpartition("/")
    path = PurePath("tests", folder or "engine", f"test_{module}.py")
    return f"{path}::test_{name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
