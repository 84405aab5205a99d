"""Reads the expressions of the JavaScript dialect: what JSON gives becomes values, in place.

What is wrong with one value marks the message and becomes a `Bad`, with the references in it.
"""

from __future__ import annotations

import re
from array import array
from binascii import a2b_base64
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, cast

from .._errors import FarError, RemoteProtocolError, from_far
from .._javascript import CONTAINERS, URL, BigInt, Bytes, Headers, Undefined, undefined
from .._messages import UNNAMED, Bad, Mine, Promised, Recording, Slot, Yours
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
    short,
)

CALLS = ("pipeline", "import")
STREAMS = "streams do not cross yet: send what they hold in pieces, by calls"
_TOO_DEEP = "nested deeper than the limit (Limits.max_depth)"
_TEXT_OF_BASE64 = str.maketrans("-_", "+/")


class Reader:
    """Reads values, of which nothing is kept from one message to the next.

    Attributes:
        where: the other side, as its errors name it.
        marked: whether anything read since this was cleared holds a reference or a `Bad`.
        marked_args: the same of the arguments of the call that was read last.
    """

    __slots__ = ("_in_error", "_in_map", "marked", "marked_args", "where")

    def __init__(self) -> None:
        self.where = UNNAMED
        self.marked = self.marked_args = False
        self._in_map = self._in_error = False

    def value(self, form: Any, depth: int) -> Any:
        """What stands behind a form. Lists and dicts are changed in place."""
        kind = type(form)
        if kind is list:
            if len(form) == 1 and type(form[0]) is list:
                return self.items(form[0], depth)
            return self._special(form, depth)
        if kind is dict:
            return self._object(form, depth)
        if kind is int and not -MAX_SAFE <= form <= MAX_SAFE:
            return _double(form)
        return form

    def items(self, items: list[Any], depth: int) -> Any:
        """The same list with its values, or a `Bad`."""
        if depth < 1:
            return self.bad(_TOO_DEEP, items)
        if len(items) > LONG and is_flat(items):
            return items
        for position, item in enumerate(items):
            kind = type(item)
            if kind is list or kind is dict:
                items[position] = self.value(item, depth - 1)
            elif kind is int and not -MAX_SAFE <= item <= MAX_SAFE:
                items[position] = _double(item)
        return items

    def _object(self, members: dict[str, Any], depth: int) -> Any:
        if depth < 1:
            return self.bad(_TOO_DEEP, members)
        if not DROPPED.isdisjoint(members):
            dropped = {key: members.pop(key) for key in DROPPED.intersection(members)}
            if _references(dropped):  # which no honest peer hides there
                return self.bad("a reference under a key that JavaScript drops", dropped | members)
        for key, item in members.items():
            kind = type(item)
            if kind is list or kind is dict:
                members[key] = self.value(item, depth - 1)
            elif kind is int and not -MAX_SAFE <= item <= MAX_SAFE:
                members[key] = _double(item)
        return members

    def _special(self, form: list[Any], depth: int) -> Any:
        tag = form[0] if form else None
        read = _FORMS.get(tag) if type(tag) is str else None
        if read is None:
            return self.bad(f"an unknown expression: {short(form)}", form)
        try:
            return read(self, form, depth)
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            return self.bad(f"a malformed {tag} ({error}): {short(form)}", form)

    def bad(self, reason: str, form: Any = None) -> Bad:
        """What stands in the place of a form that cannot be read."""
        self.marked = True
        return Bad(reason, _references(form))

    def _import(self, form: list[Any], depth: int) -> Any:
        """An object, promise or answer of ours, a path on it, or a call."""
        id, path, args = cast(Any, (*form[1:], *([], None)[len(form) - 2 :]))
        if type(id) is not int or type(path) is not list:
            raise ValueError("an id, a path, and arguments")
        for step in path:
            if type(step) is not str and type(step) is not int:
                raise ValueError("a path is of names and numbers")
        self.marked = False
        if args is not None:
            if type(args) is not list:
                raise ValueError("arguments are an array")
            found = self.items(args, depth)
            if type(found) is Bad:
                return found
        self.marked_args = self.marked
        self.marked = True
        if self._in_map:
            return Slot(id, tuple(path), args)
        return Yours(id, tuple(path), args)

    def _remap(self, form: list[Any], depth: int) -> Any:
        """A function for map, with what it is for; in another one, a slot."""
        _, id, path, captures, instructions = form
        if type(id) is not int or type(path) is not list or not instructions:
            raise ValueError("an id, a path, captures, and instructions")
        if not all(type(step) in (str, int) for step in path):
            raise ValueError("a path is of names and numbers")
        outer = self._in_map
        captured = [_captured(capture, inner=outer) for capture in captures]
        self._in_map = True
        try:
            found = self.items(instructions, depth)
        finally:
            self._in_map = outer
        if type(found) is Bad:
            return found._replace(content=_references(form))
        self.marked = self.marked_args = True
        recording = Recording(captured, found)
        kind = Slot if outer else Yours
        return kind(id, tuple(path), recording)

    def _export(self, form: list[Any], _depth: int) -> Any:
        self.marked = True
        return Mine(_export_id(form))

    def _promise(self, form: list[Any], _depth: int) -> Any:
        self.marked = True
        return Promised(_export_id(form))

    def _no_stream(self, form: list[Any], _depth: int) -> Any:
        return self.bad(STREAMS, form)

    def _no_fetch(self, form: list[Any], _depth: int) -> Any:
        return self.bad(f"a {form[0]}: send its url, headers and content by themselves", form)

    def _error(self, form: list[Any], depth: int) -> Any:
        _, name, text, stack, props = (*form, *(None, {})[len(form) - 3 :])[:5]
        if type(name) is not str or type(text) is not str or type(props) is not dict:
            raise ValueError("a name, a text, a stack and properties")
        outer = self._in_error
        if not outer and _references(props):  # nor are there any in the errors in it
            return self.bad("an exception with references in its properties", props)
        marked = self.marked
        self._in_error = True
        try:
            members = self._object(props, depth)
        finally:
            self._in_error = outer
        if type(members) is Bad:
            return members
        self.marked = marked  # what cannot be read of it is left out, as the sender does
        members = {key: item for key, item in members.items() if not _is_bad(item)}
        py_type, base = members.pop(TYPE, name), members.pop(BASE, BASES.get(name))
        if type(py_type) is not str or not (base is None or type(base) is str):
            raise ValueError(f"{TYPE} and {BASE} are names")
        far = FarError(py_type, text, base, stack if type(stack) is str else None)
        error = from_far(far, where=self.where)
        cause = members.get("cause")
        if isinstance(cause, BaseException):
            error.__cause__ = cause
            del members["cause"]
        error.props = members
        return error


# The forms of values.


def _export_id(form: list[Any]) -> int:
    _, id = form
    if type(id) is not int or id >= 0:
        raise RemoteProtocolError(f"a reference by an id that is not its sender's: {short(form)}")
    return id


def _captured(form: Any, *, inner: bool) -> Any:
    """What a function for map uses: a reference; in an inner one, a slot of the outer one."""
    match form:
        case ["import", int(id)] if type(id) is int:
            return id if inner else Yours(id, settled=True)
        case ["export", int()] if not inner:
            return Mine(_export_id(form))
    raise ValueError("captures are imports and exports")


def _undefined(_reader: Reader, form: list[Any], _depth: int) -> Undefined:
    (_,) = form
    return undefined


def _infinity(_reader: Reader, form: list[Any], _depth: int) -> float:
    (sign,) = form
    return float(sign)


def _bigint(_reader: Reader, form: list[Any], _depth: int) -> BigInt:
    _, digits = form
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"over {MAX_DIGITS} digits")
    if not re.fullmatch(r"-?[0-9]+", digits):
        raise ValueError("not decimal digits")
    value = 0
    plain = digits.lstrip("-")
    for start in range(0, len(plain), DIGITS_AT_ONCE):
        some = plain[start : start + DIGITS_AT_ONCE]
        value = value * 10 ** len(some) + int(some)
    return BigInt(-value if digits[0] == "-" else value)


def _date(_reader: Reader, form: list[Any], _depth: int) -> datetime | None:
    _, ms = form
    if ms is None:  # an invalid Date
        return None
    if type(ms) is not int and type(ms) is not float:
        raise ValueError("milliseconds are a number")
    return EPOCH + timedelta(milliseconds=ms)


def _bytes(_reader: Reader, form: list[Any], _depth: int) -> Any:
    _, text, kind = (*form, "Uint8Array")[:3] if len(form) < 4 else form
    raw = text.translate(_TEXT_OF_BASE64).rstrip("=").encode("ascii")
    data = a2b_base64(raw + b"=" * (-len(raw) % 4), strict_mode=True)
    if kind == "Uint8Array":
        return data
    if kind in CONTAINERS:
        items = array(CONTAINERS[kind])
        items.frombytes(data)  # raises ValueError for bytes that are no whole items
        if BIG_ENDIAN:
            items.byteswap()
        return items
    return Bytes(data, kind)


def _url(_reader: Reader, form: list[Any], _depth: int) -> URL:
    _, text = form
    return URL(text)


def _headers(_reader: Reader, form: list[Any], _depth: int) -> Headers:
    _, pairs = form
    if type(pairs) is not list:
        raise ValueError("pairs of a name and a value")
    return Headers(pairs)


_FORMS: Mapping[str, Callable[[Reader, list[Any], int], Any]] = {
    "pipeline": Reader._import,
    "import": Reader._import,
    "remap": Reader._remap,
    "export": Reader._export,
    "promise": Reader._promise,
    "undefined": _undefined,
    "inf": _infinity,
    "-inf": _infinity,
    "nan": _infinity,
    "bigint": _bigint,
    "date": _date,
    "bytes": _bytes,
    "error": Reader._error,
    "url": _url,
    "headers": _headers,
    "writable": Reader._no_stream,
    "readable": Reader._no_stream,
    "blob": Reader._no_stream,
    "request": Reader._no_fetch,
    "response": Reader._no_fetch,
}


def _references(form: Any) -> list[Any]:
    """The references of the sender's in a form that cannot be decoded: they count all the same."""
    found: list[Any] = []
    todo = [form]
    while todo:
        item = todo.pop()
        if type(item) is dict:
            todo.extend(item.values())
        elif type(item) is list and item:
            if len(item) == 1 and type(item[0]) is list:
                todo.extend(item[0])
            elif item[0] in ("export", "promise", "writable"):
                if len(item) > 1 and type(item[1]) is int and item[1] < 0:
                    found.append((Promised if item[0] == "promise" else Mine)(item[1]))
            elif item[0] in CALLS and len(item) == 4 and type(item[3]) is list:
                todo.extend(item[3])
            elif item[0] == "remap":
                todo.extend(part for parts in item[3:] if type(parts) is list for part in parts)
            elif item[0] != "headers":
                todo.extend(item[1:] if type(item[0]) is str else item)
        elif type(item) in (Mine, Promised):  # decoded already
            found.append(item)
        elif type(item) is Bad:
            found.extend(item.content)
        elif type(item) in (Yours, Slot) and item.args is not None:
            todo.extend(item.args)
    return found


def _is_bad(value: Any) -> bool:
    """Is there, anywhere in it, what could not be decoded?"""
    kind = type(value)
    if kind is list:
        return any(map(_is_bad, value))
    if kind is dict:
        return any(map(_is_bad, value.values()))
    return kind in (Bad, Yours, Slot)


def _double(value: int) -> float:
    """What a number beyond the exact ones is to JavaScript."""
    try:
        return float(value)
    except OverflowError:
        return float("inf" if value > 0 else "-inf")
