"""No promise loses its test unnoticed.

What implementations of this kind are known to have got wrong is a list of lines, each with a key.
A test names in its docstring the keys of the lines that it holds us to (``E5``, ``K1 to K3``), and
this list says what they mean. A line whose last test goes must be taken from this list by hand.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

LINES = {
    # Tables and ids.
    "T2": "one object, one id",
    "T4": "impossible ids end the session",
    "T5": "moot messages are only counted",
    "T6": "failed encoding leaves nothing behind",
    "T7": "unknown words end the session",
    "T8": "idle means two indexes only",
    "T9": "nothing outlives the last message",
    # Calls.
    "C1": "calls, reads, and unknown names",
    "C2": "errors arrive as they were",
    "C3": "callbacks run inside their call",
    "C4": "what is ours stays here",
    "C5": "oversize messages fail one call",
    "C6": "no handler inside its calling",
    "C7": "a running call holds its target",
    "C8": "raising values fail one call",
    # Pipelining and promises.
    "P1": "pipelines outlive their first promise",
    "P2": "same path, same object",
    "P3": "a chain, one round trip",
    "P4": "a kept promise still works",
    "P5": "dependents get the first error",
    "P6": "a path to nowhere fails",
    "P7": "promises are passed as arguments",
    "P8": "passed promises may be rejected",
    "P9": "broken promises break their holders",
    "P10": "pipelined arguments arrive as originals",
    "P11": "chains of promises are skipped",
    "P12": "promises in circles are rejected",
    "P13": "pipelines need no first answer",
    "P14": "unwanted answers do not cross",
    # Order.
    "E1": "no overtaking across an answer",
    "E2": "no overtaking across a resolution",
    "E3": "the same through promised answers",
    "E4": "the same from promise to promise",
    "E5": "no ping without a pipeline",
    "E6": "no ping for plain data",
    "E7": "rejected while the ping travels",
    "E8": "order holds across two hops",
    "E9": "order holds for reflected promises",
    "E10": "several barriers, one after another",
    "E12": "unwrapping waits, and then happens",
    "E13": "built before, sent after resolving",
    "E14": "first resolution stays for ever",
    "E16": "connection lost during a barrier",
    "E17": "one queue for every kind",
    "E18": "random runs against an oracle",
    # Cancelling.
    "K1": "a cancelled wait cancels once",
    "K2": "dropping a promise never cancels",
    "K3": "cancelled calls free their arguments",
    "K4": "cancels that cross answers leak nothing",
    "K5": "late results are not kept",
    "K6": "cleanup goes on, callers do not",
    "K7": "cancelled before its start: never started",
    "K8": "dependents keep a call alive",
    # Counting and collecting.
    "G1": "the last holder frees it",
    "G2": "going home costs no message",
    "G3": "many occurrences, a single release",
    "G4": "releases cross the same reference",
    "G5": "finalizers never send or print",
    "G6": "leaks are told by name",
    "G7": "given up twice, used never",
    "G8": "resolving gives up the promise",
    "G9": "the end frees all, once",
    "G10": "a million callbacks leave nothing",
    # Identity.
    "I1": "sent home, it is itself",
    "I2": "two routes lead to one stub",
    "I3": "nothing else is unwrapped",
    # Lending.
    "M2": "promises inside are wrapped",
    "M4": "in and out again unwraps",
    "M6": "wrapped inside lists and maps",
    "M7": "all get the same wrapper",
    "M8": "revoked: running, new, derived calls",
    "M9": "loans nest, and never double",
    "M10": "the plain caretaker",
    "M11": "let go of at once",
    "M12": "holders are told without calling",
    # The end of a connection.
    "D1": "all pending calls fail alike",
    "D2": "failing to write is noticed",
    "D3": "failing to close is survived",
    "D4": "killed in the midst of writing",
    "D5": "half-closed, still answered",
    "D7": "printing does not reach the wire",
}

ROOT = Path(__file__).parent
KEY = re.compile(r"\b([A-Z])(\d{1,2})(?: to \1(\d{1,2}))?\b")


def keys_in(text: str) -> Iterator[str]:
    """The keys that a docstring names; ``E1 to E4`` are four of them."""
    for letter, first, last in KEY.findall(text):
        for number in range(int(first), int(last or first) + 1):
            yield f"{letter}{number}"


def find_tests() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(ROOT.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if node.name.startswith("test_"):
                for key in keys_in(ast.get_docstring(node) or ""):
                    found.setdefault(key, []).append(f"{path.relative_to(ROOT)}::{node.name}")
    return found


BY_KEY = find_tests()


@pytest.mark.parametrize("key", LINES, ids=lambda key: f"{key}: {LINES[key]}")
def test_each_line_has_a_test(key: str) -> None:
    assert BY_KEY.get(key), f"no test names {key} ({LINES[key]}) in its docstring"


def test_a_docstring_names_keys_one_by_one_and_in_rows() -> None:
    assert [*keys_in("E1, E3 to E5: as P14 says. Not X, UTF8 or Q4a; T7")] == [
        *("E1", "E3", "E4", "E5", "P14", "T7")
    ]
