"""What reader and writer of the JavaScript dialect share: lines of JSON, and what JavaScript
makes of numbers, keys and errors."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, Final

from .._errors import RemoteProtocolError
from .._frames import MAGIC

MAX_SAFE: Final = 2**53 - 1
"""The largest int that a number of JavaScript holds exactly, and all below it."""
MAX_DIGITS = 16384  # of a bigint
DIGITS_AT_ONCE = 4000  # which Python converts without being told to

DROPPED: Final = frozenset(
    (
        "__proto__",
        "constructor",
        "hasOwnProperty",
        "isPrototypeOf",
        "propertyIsEnumerable",
        "toLocaleString",
        "toString",
        "valueOf",
        "__defineGetter__",
        "__defineSetter__",
        "__lookupGetter__",
        "__lookupSetter__",
        "toJSON",
    )
)
"""Keys that JavaScript drops from what it receives, since each object has them there."""

BASES: Mapping[str, str | None] = {
    "Error": None,
    "EvalError": None,
    "RangeError": "ValueError",
    "ReferenceError": "NameError",
    "SyntaxError": "ValueError",
    "TypeError": "TypeError",
    "URIError": "ValueError",
    "AggregateError": None,
}
"""The errors of JavaScript that cross as themselves, and what they are in Python."""
TYPE, BASE = "py_type", "py_base"
"""Properties of an error that keep the name of its class in Python, and of the builtin one."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BIG_ENDIAN = array("H", [1]).tobytes() != b"\x01\x00"
LONG = 16  # items of a list, from which on it pays to ask `is_flat`
_FLAT = frozenset((str, float, bool, type(None)))
_MAX_BRACKETS = 600  # containers of JSON inside each other in one message
_FEW_BRACKETS = 400  # which cannot be too deep


def is_flat(items: Sequence[Any]) -> bool:
    """Do all stand for themselves in JSON? For long lists, to ask saves most of the walk."""
    kinds = set(map(type, items))
    if int in kinds:
        return len(kinds) == 1 and min(items) >= -MAX_SAFE and max(items) <= MAX_SAFE
    return kinds <= _FLAT


def short(form: Any) -> str:
    """A form as errors show it."""
    text = repr(form)
    return text if len(text) <= 100 else text[:100] + "..."


# Lines.


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_scan = json.JSONDecoder(parse_constant=_refuse_constant).scan_once  # type: ignore[attr-defined]
# One that does not end as well: it would be looked for anew from each quote in it.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LEVELS = [0] * 256
for _open, _close in (b"[]", b"{}"):
    _LEVELS[_open], _LEVELS[_close] = 1, -1


def parsed(line: bytes) -> Any:
    """A line of JSON.

    Raises:
        RemoteProtocolError: it is none, or a bomb.
    """
    many = len(line) > _FEW_BRACKETS and line.count(b"[") + line.count(b"{") > _FEW_BRACKETS
    if many and levels(line) > _MAX_BRACKETS:
        raise RemoteProtocolError("a message nested too deep to be one")
    try:
        text = line.decode().strip(" \t\r\n")
        value, end = _scan(text, 0)
        if end == len(text):
            return value
        reason = "something stands behind it"
    except StopIteration:
        reason = "it breaks off"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise no_json(line, reason)


def no_json(line: bytes, reason: str) -> RemoteProtocolError:
    """The error that says who may have written it."""
    if line.startswith(MAGIC):
        return RemoteProtocolError(
            "the program at the other end speaks the native dialect: leave dialect= out here, or "
            'give dialect="capnweb" there'
        )
    return RemoteProtocolError(
        f"a line that is not JSON ({reason}): {line[:60]!r}. The program at the other end does not "
        "speak Cap'n Web, or something else (a print?) writes to its stream"
    )


def levels(line: bytes) -> int:
    """How many containers stand inside each other, found without building them."""
    brackets = _STRINGS.sub(b"", line).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_LEVELS.__getitem__, brackets)), default=0)


def encoded(text: str) -> bytes:
    """A line of JSON as it goes onto the stream."""
    try:
        return text.encode()
    except UnicodeEncodeError:  # JavaScript's strings may hold half of a pair
        return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text).encode()


_SURROGATE = re.compile("[\ud800-\udfff]")
