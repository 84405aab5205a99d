"""The dialect of Cap'n Web: a message is a line of JSON, and JavaScript speaks it.

Each message is an array. Of values, JSON's own stand for themselves; all else is an array whose
first item says what it is, so that an array of data stands inside another one: ``[[1, 2]]``.
``docs/javascript.md`` has the table of values. The protocol, and the JavaScript package of it, are
Cloudflare's: https://github.com/cloudflare/capnweb

Where that package ends the session for a value that it does not know, one call is rejected here.
"""

from __future__ import annotations

import contextlib
import json
import re
from array import array
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from json.encoder import encode_basestring
from math import isfinite
from types import FunctionType, MethodType
from typing import Any, Final, cast
from uuid import UUID

from .._errors import CannotPass, FarError, RemoteError, RemoteProtocolError, from_far, to_far
from .._frames import MAGIC
from .._javascript import CONTAINERS, URL, BigInt, Bytes, Headers, Undefined, undefined
from .._limits import MIB, Limits
from .._long import Encoded, Frame
from .._messages import (
    ABORT,
    IN_RECORDING,
    PULL,
    PUSH,
    REJECT,
    RELEASE,
    RESOLVE,
    STREAM,
    UNNAMED,
    VALUE,
    At,
    Bad,
    Hello,
    Inline,
    Mine,
    Path,
    Promised,
    Recording,
    Slot,
    ToRef,
    Traits,
    Yours,
)

_TRAITS = Traits(
    reuse_export_ids=False,  # its importer counts no more than one, and would keep the rest
    gapless=False,
    hello=False,
    bye=False,
    calls=False,
    values=True,
    streams=True,
    one_way=False,
    cancel=False,
    ping=False,
    kwargs=False,
    cap_ids=False,
    breaks=False,
    text=True,
    max_message=32 * MIB,  # in UTF-16 units, of which no text has more than bytes
)

MAX_SAFE: Final = 2**53 - 1
"""The largest int that a number of JavaScript holds exactly, and all below it."""
_MAX_DIGITS = 16384  # of a bigint
_DIGITS_AT_ONCE = 4000  # which Python converts without being told to
_MAX_BRACKETS = 600  # containers of JSON inside each other in one message
_MOST_LEVELS = 240  # of a value; the package takes 256 in a message, and ends the session for more
_FEW_BRACKETS = 400  # which cannot be too deep
_PATHS = 4096  # noted, of calls made
_SHORT_PATH = 100  # letters of one
_MAX_CAUSES = 8  # of an error, behind each other

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

_BASES: Mapping[str, str | None] = {
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
_TYPE, _BASE = "py_type", "py_base"
"""Properties of an error that keep the name of its class in Python, and of the builtin one."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TEXT_OF_BASE64 = str.maketrans("-_", "+/")


class CapnwebCodec:
    """See `Codec` for the interface."""

    traits = _TRAITS
    features: Collection[str] = ()
    junk = b""
    lone = None

    def __init__(self, limits: Limits, *, max_junk: int = 0, tracebacks: bool = True) -> None:
        self.max_depth = min(limits.max_depth, _MOST_LEVELS)
        self.tracebacks = tracebacks
        self.where = UNNAMED
        self._max_line = limits.max_frame
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._marked = self._marked_args = False
        self._in_map = self._in_error = False
        self._paths: dict[Path, str] = {}

    # Writing.

    def hello(self, hello: Hello) -> bytes:
        raise NotImplementedError("this dialect has no such word")

    def call(self, target: At, path: Path, args: Any, kwargs: Any, to_ref: ToRef, /) -> bytes:
        if kwargs:
            raise _no_kwargs(kwargs)
        steps = self._paths.get(path) or self._path(path)
        head = f'["push",["pipeline",{target},{steps}'
        if args is None:
            return _encoded(head + "]]")
        if type(args) is Recording:
            return self._map(target, path, args, to_ref)
        parts: list[str] = []
        step = 0
        try:
            for step, value in enumerate(args):  # noqa: B007 - the error names it
                leaf = _LEAVES.get(type(value))
                if leaf is not None:
                    parts.append(leaf(value))
                else:
                    parts.append(self._text(value, to_ref))
        except CannotPass as error:
            error.root = "argument"
            error.path.insert(0, step)
            raise
        return _encoded(f"{head},[{','.join(parts)}]]]")

    def _map(self, target: At, path: Path, recording: Recording, to_ref: ToRef) -> bytes:
        parts = [f'["push",["remap",{target},{_path(path)},']
        try:
            _Writer(parts, to_ref, self.tracebacks).recording(recording, self.max_depth)
        except CannotPass as error:
            error.root = IN_RECORDING
            error.path.clear()
            raise
        return _encoded("".join(parts) + "]]")

    def word(self, call: Encoded, word: int, /) -> Encoded:
        # A push asks for nothing: a pull does.
        return b'["stream"' + cast(bytes, call)[7:] if word == STREAM else call

    def value(self, value: Any, to_ref: ToRef, /) -> bytes:
        return _encoded(f'["push",{self._text(value, to_ref)}]')

    def resolve(self, id: int, value: Any, to_ref: ToRef, /) -> bytes:
        leaf = _LEAVES.get(type(value))
        try:
            text = self._text(value, to_ref) if leaf is None else leaf(value)
        except CannotPass as error:
            error.root = "the result"
            raise
        return _encoded(f'["resolve",{id},{text}]')

    def reject(self, id: int, error: BaseException, /) -> bytes:
        return _encoded(f'["reject",{id},{_error(error, tracebacks=self.tracebacks)}]')

    def release(self, answers: list[int], references: list[tuple[int, int]], /) -> bytes:
        lines = [f'["release",{id},1]' for id in answers]
        lines += [f'["release",{id},{n}]' for id, n in references]
        return "\n".join(lines).encode()

    def control(self, word: int, /, *fields: Any) -> bytes:
        if word == PULL:
            return b'["pull",%d]' % fields[0]
        if word == ABORT:
            name, text = fields
            return _encoded(f'["abort",["error",{_string(name)},{_string(text)}]]')
        raise NotImplementedError("this dialect has no such word")

    def frame(self, messages: list[Encoded], /) -> bytes:
        return b"\n".join((*map(bytes, messages), b""))

    def copy(self, values: list[Any], to_ref: ToRef, /) -> tuple[list[Any], bool]:
        parts: list[str] = []
        # The list itself and the one of a call's arguments stand around the values.
        _Writer(parts, to_ref, self.tracebacks).write(values, self.max_depth + 2)
        self._marked = False
        copy = self._value(_parsed(_encoded("".join(parts))), self.max_depth + 2)
        if type(copy[0]) is Yours:  # where a recording stood
            copy[0] = copy[0].args
        return copy, self._marked

    def _path(self, path: Path) -> str:
        """Programs call the same few names over and over, so short paths are noted."""
        steps = _path(path)
        if len(steps) < _SHORT_PATH:
            if len(self._paths) == _PATHS:  # a peer that we forward for may choose them
                self._paths.clear()
            self._paths[path] = steps
        return steps

    def _text(self, value: Any, to_ref: ToRef) -> str:
        parts: list[str] = []
        _Writer(parts, to_ref, self.tracebacks).write(value, self.max_depth)
        return "".join(parts)

    # Reading.

    def feed(self, data: bytes | memoryview, /) -> Iterable[bytes | Hello]:
        lines = bytes(data).split(b"\n")
        last = lines.pop()
        if self._rest and lines:
            lines[0] = b"".join((*self._rest, lines[0]))
            self._rest.clear()
            self._rest_size = 0
        if last:
            if not self._rest and last[0] not in _OPENING:
                raise _no_json(last, "it begins otherwise")
            self._rest.append(last)
            self._rest_size += len(last)
        if self._rest_size > self._max_line or max(map(len, lines), default=0) > self._max_line:
            raise RemoteProtocolError(
                f"a message over the limit of {self._max_line} bytes (Limits.max_frame)"
            )
        return lines

    @property
    def unfinished(self) -> int:
        return self._rest_size

    def end(self) -> None:
        if b"".join(self._rest).strip():
            raise RemoteProtocolError(
                f"the stream ended in the middle of a line, after {self._rest_size} bytes"
            )

    def decode(self, frame: Frame, /) -> tuple[list[list[Any]], bool]:
        frame = cast(bytes, frame)  # as `feed` gives them
        self._marked = False
        if frame[:1] != b"[" and not frame.strip():
            return [], False
        message = _parsed(frame)
        if type(message) is not list or not message:
            raise RemoteProtocolError(f"a message that is no array with a word: {_short(message)}")
        word = message[0]
        read = _WORDS.get(word) if type(word) is str else None
        if read is None:
            raise RemoteProtocolError(f"an unknown word: {_short(message)}")
        return [read(self, message)], self._marked

    # The words.

    def _push(self, message: list[Any]) -> list[Any]:
        return self._evaluated(PUSH, _items(message, 2)[1])

    def _stream(self, message: list[Any]) -> list[Any]:
        found = self._evaluated(STREAM, _items(message, 2)[1])
        return [*found, True] if found[0] == VALUE else found

    def _pipe(self, message: list[Any]) -> list[Any]:
        return [VALUE, self._bad(_STREAMS)]

    def _evaluated(self, word: int, form: Any) -> list[Any]:
        """What a push is of: mostly a call or a read, which is a message; or else any value."""
        if type(form) is list and len(form) == 4 and form[0] == "pipeline":  # as nearly all are
            _, id, path, args = form
            plain = type(id) is int and type(args) is list and type(path) is list
            if plain and len(path) == 1 and type(path[0]) is str:
                found = self._items(args, self.max_depth + 1)
                return [word, id, path, args] if found is args else [VALUE, found]
        if type(form) is list and len(form) > 1 and form[0] in (*_CALLS, "remap"):
            ref = self._value(form, self.max_depth + 1)
            if type(ref) is Yours:
                self._marked = self._marked_args
                head = [word, ref.id, list(ref.path)]
                return head if ref.args is None else [*head, ref.args]
            return [VALUE, ref]
        return [VALUE, self._value(form, self.max_depth)]

    def _pull(self, message: list[Any]) -> list[Any]:
        return [PULL, _items(message, 2)[1]]

    def _resolve(self, message: list[Any]) -> list[Any]:
        _, id, form = _items(message, 3)
        return [RESOLVE, id, self._value(form, self.max_depth)]

    def _reject(self, message: list[Any]) -> list[Any]:
        _, id, form = _items(message, 3)
        error = self._value(form, self.max_depth)
        if not self._marked and not isinstance(error, RemoteError):  # anything can be thrown there
            error = from_far(FarError("thrown", _words(error), None, None), where=self.where)
        return [REJECT, id, error]

    def _release(self, message: list[Any]) -> list[Any]:
        _, id, n = _items(message, 3)
        if type(id) is int and id > 0:
            if type(n) is not int or n != 1:
                raise RemoteProtocolError(f"release of id {id} by {_short(n)}, which was sent once")
            return [RELEASE, [id], []]
        return [RELEASE, [], [[id, n]]]

    def _abort(self, message: list[Any]) -> list[Any]:
        error = self._value(_items(message, 2)[1], self.max_depth)
        if isinstance(error, RemoteError):
            return [ABORT, error.remote_type, error.message]
        return [ABORT, "thrown", _words(error)]

    # The values.

    def _value(self, form: Any, depth: int) -> Any:
        """What stands behind a form. Lists and dicts are changed in place."""
        kind = type(form)
        if kind is list:
            if len(form) == 1 and type(form[0]) is list:
                return self._items(form[0], depth)
            return self._special(form, depth)
        if kind is dict:
            return self._object(form, depth)
        if kind is int and not -MAX_SAFE <= form <= MAX_SAFE:
            return _double(form)
        return form

    def _items(self, items: list[Any], depth: int) -> Any:
        if depth < 1:
            return self._bad(_TOO_DEEP, items)
        if len(items) > _LONG and _is_flat(items):
            return items
        for position, item in enumerate(items):
            kind = type(item)
            if kind is list or kind is dict:
                items[position] = self._value(item, depth - 1)
            elif kind is int and not -MAX_SAFE <= item <= MAX_SAFE:
                items[position] = _double(item)
        return items

    def _object(self, members: dict[str, Any], depth: int) -> Any:
        if depth < 1:
            return self._bad(_TOO_DEEP, members)
        if not DROPPED.isdisjoint(members):
            dropped = {key: members.pop(key) for key in DROPPED.intersection(members)}
            if _references(dropped):  # which no honest peer hides there
                return self._bad("a reference under a key that JavaScript drops", dropped | members)
        for key, item in members.items():
            kind = type(item)
            if kind is list or kind is dict:
                members[key] = self._value(item, depth - 1)
            elif kind is int and not -MAX_SAFE <= item <= MAX_SAFE:
                members[key] = _double(item)
        return members

    def _special(self, form: list[Any], depth: int) -> Any:
        tag = form[0] if form else None
        read = _FORMS.get(tag) if type(tag) is str else None
        if read is None:
            return self._bad(f"an unknown expression: {_short(form)}", form)
        try:
            return read(self, form, depth)
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            return self._bad(f"a malformed {tag} ({error}): {_short(form)}", form)

    def _bad(self, reason: str, form: Any = None) -> Bad:
        self._marked = True
        return Bad(reason, _references(form))

    def _import(self, form: list[Any], depth: int) -> Any:
        """An object, promise or answer of ours, a path on it, or a call."""
        id, path, args = cast(Any, (*form[1:], *([], None)[len(form) - 2 :]))
        if type(id) is not int or type(path) is not list:
            raise ValueError("an id, a path, and arguments")
        for step in path:
            if type(step) is not str and type(step) is not int:
                raise ValueError("a path is of names and numbers")
        self._marked = False
        if args is not None:
            if type(args) is not list:
                raise ValueError("arguments are an array")
            found = self._items(args, depth)
            if type(found) is Bad:
                return found
        self._marked_args = self._marked
        self._marked = True
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
            found = self._items(instructions, depth)
        finally:
            self._in_map = outer
        if type(found) is Bad:
            return found._replace(content=_references(form))
        self._marked = self._marked_args = True
        recording = Recording(captured, found)
        kind = Slot if outer else Yours
        return kind(id, tuple(path), recording)

    def _export(self, form: list[Any], _depth: int) -> Any:
        self._marked = True
        return Mine(_export_id(form))

    def _promise(self, form: list[Any], _depth: int) -> Any:
        self._marked = True
        return Promised(_export_id(form))

    def _no_stream(self, form: list[Any], _depth: int) -> Any:
        return self._bad(_STREAMS, form)

    def _no_fetch(self, form: list[Any], _depth: int) -> Any:
        return self._bad(f"a {form[0]}: send its url, headers and content by themselves", form)

    def _error(self, form: list[Any], depth: int) -> Any:
        _, name, text, stack, props = (*form, *(None, {})[len(form) - 3 :])[:5]
        if type(name) is not str or type(text) is not str or type(props) is not dict:
            raise ValueError("a name, a text, a stack and properties")
        outer = self._in_error
        if not outer and _references(props):  # nor are there any in the errors in it
            return self._bad("an exception with references in its properties", props)
        marked = self._marked
        self._in_error = True
        try:
            members = self._object(props, depth)
        finally:
            self._in_error = outer
        if type(members) is Bad:
            return members
        self._marked = marked  # what cannot be read of it is left out, as the sender does
        members = {key: item for key, item in members.items() if not _is_bad(item)}
        py_type, base = members.pop(_TYPE, name), members.pop(_BASE, _BASES.get(name))
        if type(py_type) is not str or not (base is None or type(base) is str):
            raise ValueError(f"{_TYPE} and {_BASE} are names")
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
        raise RemoteProtocolError(f"a reference by an id that is not its sender's: {_short(form)}")
    return id


def _captured(form: Any, *, inner: bool) -> Any:
    """What a function for map uses: a reference; in an inner one, a slot of the outer one."""
    match form:
        case ["import", int(id)] if type(id) is int:
            return id if inner else Yours(id, settled=True)
        case ["export", int()] if not inner:
            return Mine(_export_id(form))
    raise ValueError("captures are imports and exports")


def _undefined(_codec: CapnwebCodec, form: list[Any], _depth: int) -> Undefined:
    (_,) = form
    return undefined


def _infinity(_codec: CapnwebCodec, form: list[Any], _depth: int) -> float:
    (sign,) = form
    return float(sign)


def _bigint(_codec: CapnwebCodec, form: list[Any], _depth: int) -> BigInt:
    _, digits = form
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"over {_MAX_DIGITS} digits")
    if not re.fullmatch(r"-?[0-9]+", digits):
        raise ValueError("not decimal digits")
    value = 0
    plain = digits.lstrip("-")
    for start in range(0, len(plain), _DIGITS_AT_ONCE):
        some = plain[start : start + _DIGITS_AT_ONCE]
        value = value * 10 ** len(some) + int(some)
    return BigInt(-value if digits[0] == "-" else value)


def _date(_codec: CapnwebCodec, form: list[Any], _depth: int) -> datetime | None:
    _, ms = form
    if ms is None:  # an invalid Date
        return None
    if type(ms) is not int and type(ms) is not float:
        raise ValueError("milliseconds are a number")
    return _EPOCH + timedelta(milliseconds=ms)


def _bytes(_codec: CapnwebCodec, form: list[Any], _depth: int) -> Any:
    _, text, kind = (*form, "Uint8Array")[:3] if len(form) < 4 else form
    raw = text.translate(_TEXT_OF_BASE64).rstrip("=").encode("ascii")
    data = a2b_base64(raw + b"=" * (-len(raw) % 4), strict_mode=True)
    if kind == "Uint8Array":
        return data
    if kind in CONTAINERS:
        items = array(CONTAINERS[kind])
        items.frombytes(data)  # raises ValueError for bytes that are no whole items
        if _BIG_ENDIAN:
            items.byteswap()
        return items
    return Bytes(data, kind)


def _url(_codec: CapnwebCodec, form: list[Any], _depth: int) -> URL:
    _, text = form
    return URL(text)


def _headers(_codec: CapnwebCodec, form: list[Any], _depth: int) -> Headers:
    _, pairs = form
    if type(pairs) is not list:
        raise ValueError("pairs of a name and a value")
    return Headers(pairs)


_STREAMS = "streams do not cross yet: send what they hold in pieces, by calls"
_TOO_DEEP = "nested deeper than the limit (Limits.max_depth)"
_BIG_ENDIAN = array("H", [1]).tobytes() != b"\x01\x00"
_CALLS = ("pipeline", "import")

_WORDS: Mapping[str, Callable[[CapnwebCodec, list[Any]], list[Any]]] = {
    "push": CapnwebCodec._push,
    "pull": CapnwebCodec._pull,
    "resolve": CapnwebCodec._resolve,
    "reject": CapnwebCodec._reject,
    "release": CapnwebCodec._release,
    "stream": CapnwebCodec._stream,
    "pipe": CapnwebCodec._pipe,
    "abort": CapnwebCodec._abort,
}

_FORMS: Mapping[str, Callable[[CapnwebCodec, list[Any], int], Any]] = {
    "pipeline": CapnwebCodec._import,
    "import": CapnwebCodec._import,
    "remap": CapnwebCodec._remap,
    "export": CapnwebCodec._export,
    "promise": CapnwebCodec._promise,
    "undefined": _undefined,
    "inf": _infinity,
    "-inf": _infinity,
    "nan": _infinity,
    "bigint": _bigint,
    "date": _date,
    "bytes": _bytes,
    "error": CapnwebCodec._error,
    "url": _url,
    "headers": _headers,
    "writable": CapnwebCodec._no_stream,
    "readable": CapnwebCodec._no_stream,
    "blob": CapnwebCodec._no_stream,
    "request": CapnwebCodec._no_fetch,
    "response": CapnwebCodec._no_fetch,
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
            elif item[0] in _CALLS and len(item) == 4 and type(item[3]) is list:
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


# Texts.


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_scan = json.JSONDecoder(parse_constant=_refuse_constant).scan_once  # type: ignore[attr-defined]
_OPENING = b"[ \t\r"  # what a message may begin with; so a peer of another dialect is known at once
# One that does not end as well: it would be looked for anew from each quote in it.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LEVELS = [0] * 256
for _open, _close in (b"[]", b"{}"):
    _LEVELS[_open], _LEVELS[_close] = 1, -1


def _parsed(line: bytes) -> Any:
    """A line of JSON.

    Raises:
        RemoteProtocolError: it is none, or a bomb.
    """
    many = len(line) > _FEW_BRACKETS and line.count(b"[") + line.count(b"{") > _FEW_BRACKETS
    if many and _levels(line) > _MAX_BRACKETS:
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
    raise _no_json(line, reason)


def _no_json(line: bytes, reason: str) -> RemoteProtocolError:
    if line.startswith(MAGIC):
        return RemoteProtocolError(
            "the program at the other end speaks the native dialect: leave dialect= out here, or "
            'give dialect="capnweb" there'
        )
    return RemoteProtocolError(
        f"a line that is not JSON ({reason}): {line[:60]!r}. The program at the other end does not "
        "speak Cap'n Web, or something else (a print?) writes to its stream"
    )


def _levels(line: bytes) -> int:
    """How many containers stand inside each other, found without building them."""
    brackets = _STRINGS.sub(b"", line).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_LEVELS.__getitem__, brackets)), default=0)


def _items(message: list[Any], count: int) -> list[Any]:
    """The first items of a message, which may have more."""
    if len(message) < count:
        raise RemoteProtocolError(f"a malformed {message[0]}: {_short(message)}")
    return message[:count]


def _is_flat(items: Sequence[Any]) -> bool:
    """Do all stand for themselves in JSON? For long lists, to ask saves most of the walk."""
    kinds = set(map(type, items))
    if int in kinds:
        return len(kinds) == 1 and min(items) >= -MAX_SAFE and max(items) <= MAX_SAFE
    return kinds <= _FLAT


_LONG = 16  # items of a list, from which on it pays
_FLAT = frozenset((str, float, bool, type(None)))
_dumps = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")
).encode


def _double(value: int) -> float:
    """What a number beyond the exact ones is to JavaScript."""
    try:
        return float(value)
    except OverflowError:
        return float("inf" if value > 0 else "-inf")


def _short(form: Any) -> str:
    text = repr(form)
    return text if len(text) <= 100 else text[:100] + "..."


def _words(thrown: Any) -> str:
    """What was thrown, if that was no error."""
    return thrown if isinstance(thrown, str) else _short(thrown)


# Writing values.


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # JavaScript's strings may hold half of a pair
        return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text).encode()


_SURROGATE = re.compile("[\ud800-\udfff]")
_string: Callable[[str], str] = encode_basestring


def _int(value: int) -> str:
    if -MAX_SAFE <= value <= MAX_SAFE:
        return int.__repr__(value)
    return f'["bigint","{_digits(value)}"]'


def _digits(value: int) -> str:
    """In decimals, also where Python asks for leave: such an int is quadratic to convert."""
    if value.bit_length() <= 3 * _DIGITS_AT_ONCE:
        return int.__repr__(value)
    if value.bit_length() > 3.4 * _MAX_DIGITS:
        raise _too_many_digits()
    left, parts = abs(value), []
    while left:
        left, some = divmod(left, 10**_DIGITS_AT_ONCE)
        parts.append(f"{some:0{_DIGITS_AT_ONCE}}" if left else f"{some}")
    digits = "-" * (value < 0) + "".join(reversed(parts))
    if len(digits) > _MAX_DIGITS:
        raise _too_many_digits()
    return digits


def _too_many_digits() -> CannotPass:
    return CannotPass(f"an int of more than {_MAX_DIGITS} digits; write hex(value)")


def _float(value: float) -> str:
    if isfinite(value):
        return float.__repr__(value)
    return f'["{value}"]'  # inf, -inf, nan


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _none(_value: None) -> str:
    return "null"


_LEAVES: Mapping[type, Callable[[Any], str]] = {
    str: _string,
    int: _int,
    type(None): _none,
    bool: _bool,
    float: _float,
}
"""The types that make up most messages, found by exact type."""


def _path(path: Sequence[str | int]) -> str:
    return f"[{','.join([_LEAVES[type(step)](step) for step in path])}]"


def _no_kwargs(kwargs: Mapping[str, Any]) -> CannotPass:
    names = ", ".join(f'"{name}": ...' for name in list(kwargs)[:3])
    error = CannotPass(
        "Cap'n Web has no keyword arguments: pass it by position, or, as JavaScript does, all of "
        f"them as one dict: f({{{names}}})"
    )
    error.root = "argument"
    error.path = [next(iter(kwargs))]
    return error


def _error(error: BaseException, *, tracebacks: bool, causes: int = _MAX_CAUSES) -> str:
    """An exception. Its class has a name that JavaScript knows, if it has one; else the name of
    its own, and in any case what brings it back here."""
    far = to_far(error, with_traceback=tracebacks)
    name = far.name
    props: dict[str, str] = {}
    if name not in _BASES or _BASES[name] != far.base:
        props[_TYPE] = _string(far.name)
        props[_BASE] = "null" if far.base is None else _string(far.base)
        if far.base == "TypeError":
            name = far.base
    if isinstance(error, RemoteError):
        props |= _error_props(error)
    cause = error.__cause__
    # What lies behind an error of ours is told to those who are told tracebacks.
    if cause is not None and causes and (tracebacks or isinstance(error, RemoteError)):
        props["cause"] = _error(cause, tracebacks=tracebacks, causes=causes - 1)
    fields = [_string("error"), _string(name), _string(far.text)]
    if far.traceback or props:
        fields.append(_string(far.traceback) if far.traceback else "null")
    if props:
        fields.append(f"{{{','.join(f'{_string(key)}:{text}' for key, text in props.items())}}}")
    return f"[{','.join(fields)}]"


def _error_props(error: RemoteError) -> dict[str, str]:
    """The properties of an error that came from afar, as far as they pass."""
    props = {}
    for key, value in error.props.items():
        parts: list[str] = []
        try:
            _Writer(parts, _no_references, False).write(value, 16)
        except CannotPass:
            continue
        if key not in DROPPED and key not in (_TYPE, _BASE, "name", "message", "stack"):
            props[key] = "".join(parts)
    return props


def _no_references(_value: Any) -> Any:
    raise CannotPass("a reference in an exception")


class _Writer:
    """One walk over a value. `depth` counts down the containers that may still be opened."""

    __slots__ = ("_parts", "_to_ref", "_tracebacks")

    def __init__(self, parts: list[str], to_ref: ToRef, tracebacks: bool) -> None:
        self._parts = parts
        self._to_ref = to_ref
        self._tracebacks = tracebacks

    def write(self, value: Any, depth: int) -> None:
        """Append `value`."""
        kind = type(value)
        leaf = _LEAVES.get(kind)
        if leaf is not None:
            self._parts.append(leaf(value))
        elif kind is list or kind is tuple:
            self._list(value, depth)
        elif kind is dict:
            self._dict(value, depth)
        elif kind is bytes:
            self._bytes(value)
        elif kind is FunctionType or kind is MethodType:  # as callbacks are: not to be looked for
            self._ref(value, depth)
        else:
            self._other(value, depth)

    def _list(self, value: Sequence[Any], depth: int) -> None:
        if not depth:
            raise _too_deep()
        parts = self._parts
        if len(value) > _LONG and _is_flat(value):
            with contextlib.suppress(ValueError):  # infinity or none
                parts.append(f"[{_dumps(value)}]")
                return
        parts.append("[[")
        step = 0
        try:
            for step, item in enumerate(value):
                if step:
                    parts.append(",")
                leaf = _LEAVES.get(type(item))
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
            raise _too_deep()
        parts = self._parts
        separator = "{"
        key = None
        try:
            for key, item in value.items():
                if not isinstance(key, str):
                    raise CannotPass(
                        f"a dict key of type {type(key).__name__}; keys are str: "
                        "write {str(key): value} or a list of pairs"
                    )
                if key in DROPPED:
                    raise CannotPass("JavaScript drops this key; use another one")
                parts.append(f"{separator}{_string(key)}:")
                separator = ","
                self.write(item, depth - 1)
        except CannotPass as error:
            error.path.insert(0, key if isinstance(key, (str, int)) else repr(key))
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
            parts.append(f'["remap",{slot.id},{_path(slot.path)},')
            self.recording(slot.args, depth - 1)
        elif slot.args is None:
            parts.append(f'["pipeline",{slot.id}')
            if slot.path:
                parts.append(f",{_path(slot.path)}")
        else:
            if slot.kwargs:
                raise _no_kwargs(slot.kwargs)
            parts.append(f'["pipeline",{slot.id},{_path(slot.path)},')
            self._bare(slot.args, depth - 1)
        parts.append("]")

    def _bare(self, values: Sequence[Any], depth: int) -> None:
        """Values as arguments and instructions stand."""
        if depth < 1:
            raise _too_deep()
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
        if _BIG_ENDIAN:
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
                text = f'["pipeline",{id},{_path(path)}]'
            case Inline(inner):
                if not depth:
                    raise _too_deep()
                self.write(inner, depth - 1)
                return
        self._parts.append(text)


def _special(value: Any, tracebacks: bool) -> str | None:
    """A leaf that is an array on the wire, or a subclass of another leaf; None if it is none."""
    if isinstance(value, URL):
        return f'["url",{_string(str.__str__(value))}]'
    if isinstance(value, str):
        return _string(str.__str__(value))
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
        return _error(value, tracebacks=tracebacks)
    if isinstance(value, Headers):
        pairs = ",".join([f"[{_string(name)},{_string(text)}]" for name, text in value.pairs])
        return f'["headers",[{pairs}]]'
    if isinstance(value, (Decimal, UUID)):
        raise CannotPass(f"JavaScript has no {type(value).__name__}; write str(value)")
    if isinstance(value, (set, frozenset)):
        raise CannotPass("Cap'n Web has no sets; write list(value)")
    return None


def _written_date(value: datetime) -> str:
    if value.tzinfo is None:
        raise CannotPass(
            "a datetime without a time zone; write value.astimezone() or "
            "value.replace(tzinfo=timezone.utc)"
        )
    microseconds = (value - _EPOCH) // _MICROSECOND
    whole, rest = divmod(microseconds, 1000)
    return f'["date",{microseconds / 1000 if rest else whole}]'


def _too_deep() -> CannotPass:
    return CannotPass(
        "nested deeper than the limit (Limits.max_depth), or cyclic; "
        "pass an object by reference instead: class Node(capnode.Target)"
    )
