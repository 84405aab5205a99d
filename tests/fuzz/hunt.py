"""Break the rules of order and counting on purpose: the fuzzer must find each of them.

Each break of `tests.sabotage` is applied to a copy of the package, in a fork of its own, and random
worlds are run on that until one of them fails. A run is at most `STEPS` long. The rarest races come
about once in some 5,000 steps, so that one run in five would miss them: what a run does not find,
the next seed's looks for, up to `RUNS` of them. The table says which seed found it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.sabotage.__main__ import Run, can_be_applied, finish
from tests.sabotage.breaks import BREAKS, Break

STEPS = 10_000
RUNS = 4
PIECE = 500  # steps of one world
SECONDS = 60  # what takes longer hangs
RULES = {"1", "2", "3", "5", "6", "7"}

UNSEEN = {
    # What only a peer sends that is no capnode.
    "a release of 0 or less is accepted",
    "a release of more than was sent is accepted",
    "references beside and in a value that cannot be decoded are not counted",
    "an answer may release more behind it than was sent",
    "an answer may release an answer twice behind it",
    # What costs messages or time, and breaks no promise of order or count.
    "each finalizer wakes the driver",
    "a flush leaves the notes",
    "a settled promise is passed on as a promise",
    "what holds objects is released as late as plain data",
    "plain answers are released one by one",
    "a read of a promise goes by its barrier",
    "a barrier although nothing went through the promise",
    "a barrier although the object is the other side's",
    # Counted over 729,000 steps: 40 positions queued, 3,426 met a promise inside a value that was
    # not settled, and none had a next hop. With these broken, 40,000 steps found nothing wrong.
    "a position does not wait for the answer that it names",
    "a position does not go on to the next hop",
    "a position passes by the promises inside a value",
    # What is no order of one reference: of two holders of a promise, of a call and a read.
    "a promise that was passed on has no barrier",
    "a path as argument is read before the calls that are kept",
    # What takes one thing more than the worlds come to in 40,000 steps, and was seen once in some
    # 500,000: a path to which another promise has come is announced, or kept, or dropped; what is
    # read by one is used by a third host while calls by it are kept, or wait for their task.
    "a path that was resolved to is forgotten with the promise",
    "a value is announced as something else than its paths are read as",
    "a value is announced as a read that is kept",
    "what is read by a path does not wait for the calls that are kept",
    "what is read by a path does not wait for the calls that are not started",
    "a path on an answer is forgotten with the promise that came to it",
    "a path on an answer is kept when the answer is given up",
    "a path on a promise is kept when the promise is given up",
    "a read that comes to a stub is sent on",
    # What takes an extra ping.
    "a path that was resolved to is not forgotten with its pong",
    # What needs a second thread, a caller that holds a lock, or the blocking driver.
    "a finalizer releases by itself",
    "a call through a promise runs a handler of this side in the calling",
    "a call returns before what was called earlier is started",
    "a poll begins behind a note of the collector",
    "a note that was drained before it had said so keeps the next from waking anybody",
    "a call that comes alone starts beside the handler of another thread",
    # What takes trio, whose tracebacks keep what a wait was given.
    "in trio, the traceback of a cancelled wait keeps a late result",
    # What is alone in its frame, as hardly anything is in these worlds: tests/engine/test_alone.py
    # runs the same scripts by both ways.
    "a call that comes alone is begun ahead of one that waits for its task",
    "what a call exports that cannot pass alone stays",
    "a release behind an answer frees what was lent again",
    "a release behind an answer may name an answer that was released",
    "who wants to know of a release is not told of one behind an answer",
    "releases that ride behind an answer are sent once more",
}
"""Breaks of these rules that no random run can see, by name."""


class Hunt(Run):
    """The search for one break.

    Attributes:
        seed: of the run that found it, or of the last.
        steps: of that run, after which it was found; None if it was not.
        how: what was seen.
    """

    def __init__(self, path: Path, broken: Break | None, seed: int) -> None:
        super().__init__(path, (), broken)
        self.seed = seed
        self.steps: int | None = None
        self.how = ""

    def work(self) -> Any:
        """See `Run.work`: the seed and the steps after which it was found, and how."""
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            for seed in range(self.seed, self.seed + RUNS):
                signal.alarm(SECONDS)
                for number in range(STEPS // PIECE):
                    failure = play(seed, number)
                    if failure is not None:
                        return seed, (number + 1) * PIECE, failure
        return seed, None, ""

    def finished(self) -> None:
        """See `Run.finished`."""
        self.seed, self.steps, self.how = self.read() or (self.seed, 0, "it hung, or crashed")


def play(seed: int, number: int) -> str | None:
    """One of the worlds of a run. Returns how it failed, None if it did not."""
    from .world import World

    hosts = 3 - (number % 4 == 3)
    try:
        World(seed * 1_000_003 + number, hosts=hosts, eager=number % 2 == 0).run(PIECE)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


def hunt(seed: int, words: Sequence[str]) -> int:
    """Look for each; the exit code."""
    chosen = [b for b in BREAKS if RULES & {*b.rule.split(", ")} and b.name not in UNSEEN]
    unknown = UNSEEN - {b.name for b in BREAKS}
    if unknown:
        print(f"no such breaks: {unknown}")
        return 2

    if words:
        chosen = [b for b in chosen if any(word in b.name for word in words)]
    if not can_be_applied(chosen):
        return 2

    with tempfile.TemporaryDirectory(prefix="hunt-") as scratch:
        intact = Hunt(Path(scratch, "intact"), None, seed)
        hunts = [Hunt(Path(scratch, str(n)), b, seed) for n, b in enumerate(chosen)]
        finish([intact, *hunts])
        if intact.steps is not None:
            print(f"with nothing broken, nothing must be found: {intact.how}")
            return 2

        missed = 0
        for b, each in zip(chosen, hunts, strict=True):
            missed += each.steps is None
            found = "NOT FOUND" if each.steps is None else f"{each.steps:>6} steps"
            how = each.how.splitlines()[0][:100] if each.how else ""
            print(f"{found:12}  seed {each.seed}  {b.rule:6}  {b.name}: {how}")
    print(f"{len(hunts) - missed} of {len(hunts)} breaks were found within {STEPS} steps of a seed")
    return 1 if missed else 0
