"""Writes the expressions of the JavaScript dialect, and knows what JavaScript has no value for."""

from __future__ import annotations

import contextlib
import json
from array import array
from binascii import b2a_base64
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from json.encoder import encode_basestring
from math import isfinite
from typing import Any
from uuid import UUID

from .._errors import CannotPass, RemoteError, to_far
from .._javascript import URL, BigInt, Bytes, Headers, undefined
from .._messages import Inline, Mine, Promised, Recording, Slot, Yours
from .capnweb_json import (
    BASE,
    BASES,
    BIG_ENDIAN,
    DIGITS_AT_ONCE,
    DROPPED,
    EPOCH,
    LONG,
    MAX_DIGITS,
    MAX_SAFE,
    TYPE,
    is_flat,
)
from .walk import Walk, no_key, no_zone, step_to, too_deep

_MAX_CAUSES = 8  # of an error, behind each other
_MICROSECOND = timedelta(microseconds=1)
_dumps = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")
).encode
string: Callable[[str], str] = encode_basestring
"""A text in quotes."""


def _int(value: int) -> str:
    if -MAX_SAFE <= value <= MAX_SAFE:
        return int.__repr__(value)
    return f'["bigint","{_digits(value)}"]'


def _digits(value: int) -> str:
    """In decimals, also where Python asks for leave: such an int is quadratic to convert."""
    if value.bit_length() <= 3 * DIGITS_AT_ONCE:
        return int.__repr__(value)
    if value.bit_length() > 3.4 * MAX_DIGITS:
        raise _too_many_digits()
    left, parts = abs(value), []
    while left:
        left, some = divmod(left, 10**DIGITS_AT_ONCE)
        parts.append(f"{some:0{DIGITS_AT_ONCE}}" if left else f"{some}")
    digits = "-" * (value < 0) + "".join(reversed(parts))
    if len(digits) > MAX_DIGITS:
        raise _too_many_digits()
    return digits


def _too_many_digits() -> CannotPass:
    return CannotPass(f"an int of more than {MAX_DIGITS} digits; write hex(value)")


def _float(value: float) -> str:
    if isfinite(value):
        return float.__repr__(value)
    return f'["{value}"]'  # inf, -inf, nan


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _none(_value: None) -> str:
    return "null"


LEAVES: Mapping[type, Callable[[Any], str]] = {
    str: string,
    int: _int,
    type(None): _none,
    bool: _bool,
    float: _float,
}
"""The types that make up most messages, found by exact type."""


def path_text(path: Sequence[str | int]) -> str:
    """A path of names and numbers."""
    return f"[{','.join([LEAVES[type(step)](step) for step in path])}]"


def no_kwargs(kwargs: Mapping[str, Any]) -> CannotPass:
    """The error for keyword arguments, which names the first."""
    names = ", ".join(f'"{name}": ...' for name in list(kwargs)[:3])
    error = CannotPass(
        "Cap'n Web has no keyword arguments: pass it by position, or, as JavaScript does, all of "
        f"them as one dict: f({{{names}}})"
    )
    error.root = "argument"
    error.path = [next(iter(kwargs))]
    return error


def error_text(error: BaseException, *, tracebacks: bool, causes: int = _MAX_CAUSES) -> str:
    """An exception. Its class has a name that JavaScript knows, if it has one; else the name of
    its own, and in any case what brings it back here."""
    far = to_far(error, with_traceback=tracebacks)
    name = far.name
    props: dict[str, str] = {}
    if name not in BASES or BASES[name] != far.base:
        props[TYPE] = string(far.name)
        props[BASE] = "null" if far.base is None else string(far.base)
        if far.base == "TypeError":
            name = far.base
    if isinstance(error, RemoteError):
        props |= _error_props(error)
    cause = error.__cause__
    # What lies behind an error of ours is told to those who are told tracebacks.
    if cause is not None and causes and (tracebacks or isinstance(error, RemoteError)):
        props["cause"] = error_text(cause, tracebacks=tracebacks, causes=causes - 1)
    fields = [string("error"), string(name), string(far.text)]
    if far.traceback or props:
        fields.append(string(far.traceback) if far.traceback else "null")
    if props:
        fields.append(f"{{{','.join(f'{string(key)}:{text}' for key, text in props.items())}}}")
    return f"[{','.join(fields)}]"


def _error_props(error: RemoteError) -> dict[str, str]:
    """The properties of an error that came from afar, as far as they pass."""
    props = {}
    for key, value in error.props.items():
        parts: list[str] = []
        try:
            Writer(parts, _no_references, False).write(value, 16)
        except CannotPass:
            continue
        if key not in DROPPED and key not in (TYPE, BASE, "name", "message", "stack"):
            props[key] = "".join(parts)
    return props


def _no_references(_value: Any) -> Any:
    raise CannotPass("a reference in an exception")


class Writer(Walk[str]):
    """Writes values as JSON."""

    __slots__ = ()

    leaves = LEAVES

    def _list(self, value: Sequence[Any], depth: int) -> None:
        if not depth:
            raise too_deep()
        parts = self._parts
        if len(value) > LONG and is_flat(value):
            with contextlib.suppress(ValueError):  # infinity or none
                parts.append(f"[{_dumps(value)}]")
                return
        parts.append("[[")
        step = 0
        try:
            for step, item in enumerate(value):
                if step:
                    parts.append(",")
                leaf = LEAVES.get(type(item))
                if leaf is not None:
                    parts.append(leaf(item))
                else:
                    self.write(item, depth - 1)
        except CannotPass as error:
            error.path.insert(0, step)
            raise
        parts.append("]]")

    def _dict(self, value: Mapping[Any, Any], depth: int) -> None:
        if not depth:
            raise too_deep()
        parts = self._parts
        separator = "{"
        key = None
        try:
            for key, item in value.items():
                if not isinstance(key, str):
                    raise no_key(key)
                if key in DROPPED:
                    raise CannotPass("JavaScript drops this key; use another one")
                parts.append(f"{separator}{string(key)}:")
                separator = ","
                self.write(item, depth - 1)
        except CannotPass as error:
            error.path.insert(0, step_to(key))
            raise
        parts.append("}" if value else "{}")

    def _bytes(self, value: Any, container: str = "Uint8Array") -> None:
        text = b2a_base64(value, newline=False).rstrip(b"=").decode()
        kind = "" if container == "Uint8Array" else f',"{container}"'
        self._parts.append(f'["bytes","{text}"{kind}]')

    def _other(self, value: Any, depth: int) -> None:
        """What JavaScript knows, subclasses as their base type, and what the engine knows."""
        kind = type(value)
        special = _special(value, self._tracebacks)
        if special is not None:
            self._parts.append(special)
        elif isinstance(value, Bytes):
            self._bytes(value, value.container)
        elif isinstance(value, array):
            self._array(value)
        elif isinstance(value, (bytes, bytearray, memoryview)):
            self._bytes(bytes(value))
        elif kind is Slot:
            self._slot(value, depth)
        elif kind is Recording:
            self._parts.append('["remap",0,[],')
            self.recording(value, depth)
            self._parts.append("]")
        elif isinstance(value, (list, tuple)):
            self._list(list(value), depth)
        elif isinstance(value, dict):
            self._dict(dict(value), depth)
        else:
            self._ref(value, depth)

    def recording(self, recording: Recording, depth: int) -> None:
        """Append its captures and its instructions."""
        captures = [self._captured(value) for value in recording.captures]
        self._parts.append(f"[{','.join(captures)}],")
        self._bare(recording.instructions, depth)

    def _captured(self, value: Any) -> str:
        if type(value) is int:  # a slot of the function around this one
            return f'["import",{value}]'
        match self._to_ref(value):
            case Mine(id):
                return f'["export",{id}]'
            case Yours(id, ()):
                return f'["import",{id}]'
        raise CannotPass("a promise of another connection, or of this side: await it before")

    def _slot(self, slot: Slot, depth: int) -> None:
        parts = self._parts
        if type(slot.args) is Recording:
            parts.append(f'["remap",{slot.id},{path_text(slot.path)},')
            self.recording(slot.args, depth - 1)
        elif slot.args is None:
            parts.append(f'["pipeline",{slot.id}')
            if slot.path:
                parts.append(f",{path_text(slot.path)}")
        else:
            if slot.kwargs:
                raise no_kwargs(slot.kwargs)
            parts.append(f'["pipeline",{slot.id},{path_text(slot.path)},')
            self._bare(slot.args, depth - 1)
        parts.append("]")

    def _bare(self, values: Sequence[Any], depth: int) -> None:
        """Values as arguments and instructions stand."""
        if depth < 1:
            raise too_deep()
        separator = "["
        for value in values:
            self._parts.append(separator)
            separator = ","
            self.write(value, depth - 1)
        self._parts.append("]" if values else "[]")

    def _array(self, value: array[Any]) -> None:
        size, code = value.itemsize, value.typecode
        if code in "fd":
            kind = f"Float{8 * size}Array"
        elif code in "bhilqBHILQ":
            kind = (
                f"{'Big' if size == 8 else ''}{'Uint' if code.isupper() else 'Int'}{8 * size}Array"
            )
        else:
            raise CannotPass(f"an array of type code {code!r}; write its text or list(value)")
        if BIG_ENDIAN:
            value = array(code, value)
            value.byteswap()
        self._bytes(value.tobytes(), kind)

    def _ref(self, value: Any, depth: int) -> None:
        ref = self._to_ref(value)
        match ref:
            case Mine(id):
                text = f'["export",{id}]'
            case Promised(id):
                text = f'["promise",{id}]'
            case Yours(id, (), _, True):
                text = f'["import",{id}]'
            case Yours(id, ()):
                text = f'["pipeline",{id}]'
            case Yours(id, path):
                text = f'["pipeline",{id},{path_text(path)}]'
            case Inline(inner):
                if not depth:
                    raise too_deep()
                self.write(inner, depth - 1)
                return
        self._parts.append(text)


def _special(value: Any, tracebacks: bool) -> str | None:
    """A leaf that is an array on the wire, or a subclass of another leaf; None if it is none."""
    if isinstance(value, URL):
        return f'["url",{string(str.__str__(value))}]'
    if isinstance(value, str):
        return string(str.__str__(value))
    if isinstance(value, BigInt):
        return f'["bigint","{_digits(int(value))}"]'
    if isinstance(value, int):
        return _int(int(value))
    if isinstance(value, float):
        return _float(float(value))
    if isinstance(value, datetime):
        return _written_date(value)
    if value is undefined:
        return '["undefined"]'
    if isinstance(value, BaseException):
        return error_text(value, tracebacks=tracebacks)
    if isinstance(value, Headers):
        pairs = ",".join([f"[{string(name)},{string(text)}]" for name, text in value.pairs])
        return f'["headers",[{pairs}]]'
    if isinstance(value, (Decimal, UUID)):
        raise CannotPass(f"JavaScript has no {type(value).__name__}; write str(value)")
    if isinstance(value, (set, frozenset)):
        raise CannotPass("Cap'n Web has no sets; write list(value)")
    return None


def _written_date(value: datetime) -> str:
    if value.tzinfo is None:
        raise no_zone()
    microseconds = (value - EPOCH) // _MICROSECOND
    whole, rest = divmod(microseconds, 1000)
    return f'["date",{microseconds / 1000 if rest else whole}]'
