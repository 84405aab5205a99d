"""Raw messages, answered as the real package answers them, but for what is named here.

Answers are compared by class: a value by what it is, an error as an error. What the package sends
and when it releases is its own affair where the value is the same.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from .conftest import Raw, recorded

PROBES = {record["probe"]: record["exchange"] for record in recorded("probes.jsonl")}

ABORT = '["abort"]'
REJECT = '["reject", 1]'

NO_NAME = "a name that is not there is an error, also where it is read"
ONE_CALL = "a value that cannot be read rejects its call, and the session goes on"
STRICT = "both sides count ids and references, and there is no going on from a doubt"

OTHERWISE: dict[str, tuple[str, list[str]]] = {
    # probe: why, and all of our answers.
    "an unknown expression": (ONE_CALL, [REJECT]),
    "an unknown expression by itself": (ONE_CALL, [REJECT]),
    "an array that is not escaped": (ONE_CALL, [REJECT]),
    "an empty array that is not escaped": (ONE_CALL, [REJECT]),
    "an array of one number": (ONE_CALL, [REJECT]),
    "undefined with more": (ONE_CALL, [REJECT]),
    "a date of a text": (ONE_CALL, [REJECT]),
    "a date beyond the years": ("datetime ends with the year 9999", [REJECT]),
    "a bigint of letters": (ONE_CALL, [REJECT]),
    "a bigint of a number": (ONE_CALL, [REJECT]),
    "a bigint of too many digits": (ONE_CALL, [REJECT]),
    "bytes of an unknown container": (ONE_CALL, [REJECT]),
    "bytes that are no whole items": (ONE_CALL, [REJECT]),
    "bytes that are no base64": ("bytes are not guessed", [REJECT]),
    "a url that is none": (ONE_CALL, [REJECT]),
    "headers that are none": (ONE_CALL, [REJECT]),
    "a header with a line break": (ONE_CALL, [REJECT]),
    "an error of a number": (ONE_CALL, [REJECT]),
    "arguments that are no array": (ONE_CALL, [REJECT]),
    "a path that is no array": (ONE_CALL, [REJECT]),
    "a path of objects": (ONE_CALL, [REJECT]),
    "push a call in an array": (
        "a result is sent when it is there",
        ["['resolve', 1, [['x', 9]]]"],
    ),
    "pull the main object": (STRICT, [ABORT]),
    "release by nothing": (STRICT, [ABORT]),
    "release by less than nothing": (STRICT, [ABORT]),
    "an object by a positive id": (STRICT, [ABORT]),
    "the same promise twice": (
        "it is counted as often as it comes",
        ["['release', -1, 2]", "['resolve', 1, 10]"],
    ),
    "the same object twice": (
        "what was passed may be given back, and is counted",
        ["['resolve', 1, [[['import', -1], ['import', -1]]]]"],
    ),
    "ids with a gap": (
        "what was passed is held until the call ends",
        ["['push', ['pipeline', -5, ['increment'], [1]]]", "['pull', 1]"],
    ),
    "names of objects": (NO_NAME, [f'["reject", {id}]' for id in (1, 2, 3, 4)]),
    "private names": (NO_NAME, [REJECT, '["reject", 2]']),
    "a writable": ("streams do not cross yet", ["['release', -1, 1]", REJECT]),
    "an invalid date": ("a datetime is valid", ["['resolve', 1, None]"]),
    "200 levels": ("Limits.max_depth", [REJECT]),
    "300 levels": ("Limits.max_depth, and the session goes on", [REJECT]),
}


@pytest.mark.parametrize("probe", PROBES)
def test_a_raw_message_is_answered_as_by_the_real_package(raw, probe):
    theirs: list[Any] = []
    ours: list[Any] = []
    for step in PROBES[probe]:
        theirs += step["answers"]
        ours += raw.send(step["send"])
    found = [_class_of(answer) for answer in ours]
    if probe in OTHERWISE:
        assert Counter(found) == Counter(OTHERWISE[probe][1])
    else:
        assert Counter(found) == Counter(_class_of(answer) for answer in theirs)


def test_what_is_named_as_otherwise_is_otherwise():
    for probe, (_, ours) in OTHERWISE.items():
        theirs = [_class_of(answer) for step in PROBES[probe] for answer in step["answers"]]
        assert Counter(theirs) != Counter(ours), f"{probe} is no exception any more"


def _class_of(answer: list[Any]) -> str:
    """What is compared of an answer."""
    match answer:
        case ["abort", *_]:
            return '["abort"]'
        case ["reject", id, *_]:
            return f'["reject", {id}]'
        case _:
            return repr(_plain(answer))


def _plain(value: Any) -> Any:
    """A value in which all errors are equal, and 1.0 is 1."""
    if isinstance(value, list):
        if value[:1] == ["error"]:
            return ["error"]
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def test_a_session_that_has_not_been_ended_still_answers():
    for probe, (why, _) in OTHERWISE.items():
        if why != ONE_CALL:
            continue
        raw = _fresh()
        for step in PROBES[probe]:
            raw.send(step["send"])
        raw.send(["push", ["pipeline", 0, ["square"], [3]]])
        assert ["resolve", 2, 9] in raw.send(["pull", 2]), probe


def _fresh() -> Raw:
    from capnode_py.testing import Wire

    from .conftest import FencedApi

    wire = Wire(dialect="capnweb")
    return Raw(wire, wire.link(far_index=FencedApi())[1])
