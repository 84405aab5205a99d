"""Writes values of the native dialect: as CBOR, by an encoder of our own.

One walk bounds the depth (cbor2's crashes the process on a deep list), finds references, knows the
way to a value that cannot pass, and writes the common types; every other leaf is cbor2's. A test
holds its output equal to cbor2's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from struct import Struct
from typing import TYPE_CHECKING, Any

import cbor2

from .._errors import CannotPass, LimitExceeded, to_far
from .._frames import MAGIC, frame_head
from .._long import LONG, Piece
from .._messages import Hello, Inline, Mine, Path, Promised, Recording, Slot, ToRef, Yours
from . import lone
from .walk import Walk, no_key, no_zone, step_to, too_deep

if TYPE_CHECKING:
    from decimal import Decimal

TAG_REF = 49374
"""Our private tag of references: ``[kind, id, ...]``."""
TAG_ERROR = 49375
"""Our private tag of exceptions: ``[name, text, base, traceback]``."""
TAG_RECORDING = 49376
"""Our private tag of functions for map: ``[captures, instructions]``."""

MINE, _PROMISED, _YOURS, _SLOT = 0, 1, 2, 3  # kinds of references

pack_short: Callable[[int, int], bytes] = Struct(">BH").pack
"""The head of what has a length, or is a number, of two bytes."""
_pack_long = Struct(">BI").pack
_pack_longest = Struct(">BQ").pack
_pack_float = Struct(">Bd").pack


_BYTES = bytes(range(256))
_ONE_BYTE = [_BYTES[n : n + 1] for n in range(256)]


def heads_of(major: int) -> list[bytes]:
    """`head_of` all arguments of a byte."""
    short = _ONE_BYTE[major : major + 24]
    return short + [_ONE_BYTE[major | 24] + argument for argument in _ONE_BYTE[24:]]


# What these tables buy: most ints, names and containers are small, and a look-up costs a third of
# computing the head.
SMALL_INTS: dict[Any, bytes] = dict(enumerate(heads_of(0x00)))
SMALL_INTS |= zip(range(-1, -257, -1), heads_of(0x20), strict=True)
small_int = SMALL_INTS.get
_TEXT_HEADS = heads_of(0x60)
LIST_HEADS = heads_of(0x80)
_MAP_HEADS = heads_of(0xA0)


def head_of(major: int, value: int) -> bytes:
    """A CBOR head: the major type (already shifted) and its argument, in the shortest form."""
    if value < 24:
        return _ONE_BYTE[major | value]
    if value < 0x100:
        return bytes((major | 24, value))
    if value < 0x10000:
        return pack_short(major | 25, value)
    if value < 0x1_0000_0000:
        return _pack_long(major | 26, value)
    return _pack_longest(major | 27, value)


_REF_HEAD = head_of(0xC0, TAG_REF)
_MINE_HEAD = _REF_HEAD + LIST_HEADS[2] + SMALL_INTS[MINE]
_LASTING_HEAD = _REF_HEAD + LIST_HEADS[3] + SMALL_INTS[MINE]
_ERROR_HEAD = head_of(0xC0, TAG_ERROR)
_SET_HEAD = head_of(0xC0, 258)
_RECORDING_HEAD = head_of(0xC0, TAG_RECORDING)
_NUMBERS = frozenset("cbB?hHiIlLqQnNefd")  # formats of buffers
_NONE, _TRUE, _FALSE = b"\xf6", b"\xf5", b"\xf4"


def int_bytes(value: int) -> bytes:
    small = small_int(value)
    if small is not None:
        return small
    if value >= 0:
        if value < 0x10000:
            return pack_short(0x19, value)
        if value < 0x1_0000_0000:
            return _pack_long(0x1A, value)
        if value < 1 << 64:
            return head_of(0x00, value)
    elif value >= -0x10000:
        return pack_short(0x39, ~value)
    elif value >= -(1 << 64):
        return head_of(0x20, ~value)
    return cbor2.dumps(value)


def text_bytes(value: str) -> bytes:
    try:
        raw = value.encode()
    except UnicodeEncodeError as error:
        raise CannotPass(f"a str that is not valid Unicode ({error.reason})") from None
    size = len(raw)
    return (_TEXT_HEADS[size] if size < 256 else head_of(0x60, size)) + raw


def path_bytes(path: Path) -> bytes:
    """A path of names and ints."""
    steps = [text_bytes(step) if isinstance(step, str) else int_bytes(step) for step in path]
    return head_of(0x80, len(path)) + b"".join(steps)


def _bool(value: bool) -> bytes:
    return _TRUE if value else _FALSE


def _none(_value: None) -> bytes:
    return _NONE


def _float(value: float) -> bytes:
    return _pack_float(0xFB, value) if math.isfinite(value) else cbor2.dumps(float(value))


LEAVES: Mapping[type, Callable[[Any], bytes]] = {
    str: text_bytes,
    int: int_bytes,
    type(None): _none,
    bool: _bool,
    float: _float,
}
"""The types that make up most messages, found by exact type."""


def _lone_text(value: str) -> bytes:
    """`text_bytes` of what is not too long for a frame of `lone`: it would be encoded in vain."""
    if len(value) > lone.LONGEST:
        raise LimitExceeded("a long text")
    return text_bytes(value)


def _lone_bytes(value: Piece) -> bytes:
    size = len(value)
    if size > lone.LONGEST:
        raise LimitExceeded("a long byte string")
    return head_of(0x40, size) + value


def _lone_buffer(value: bytearray | memoryview) -> bytes:
    if memoryview(value).nbytes > lone.LONGEST:
        raise LimitExceeded("a long buffer")
    return _lone_bytes(_steady(value))


LONE_LEAVES: Mapping[type, Callable[[Any], bytes]] = {
    **LEAVES,
    str: _lone_text,
    bytes: _lone_bytes,
    bytearray: _lone_buffer,
    memoryview: _lone_buffer,
}
"""What `lone` writes; the others have more ways, for what is long."""


class Writer(Walk[Piece]):
    """Writes values as CBOR.

    Attributes:
        long: where in `parts` long byte strings stand.
    """

    __slots__ = ("_sets", "long")

    leaves = LEAVES

    def __init__(self, parts: list[Piece], to_ref: ToRef, tracebacks: bool) -> None:
        super().__init__(parts, to_ref, tracebacks)
        self.long: list[int] | tuple[()] = ()
        self._sets = 0  # around what is being written

    def _bytes(self, value: Piece) -> None:
        size = len(value)
        self._parts.append(head_of(0x40, size))
        if size >= LONG:
            if not self.long:
                self.long = []
            self.long.append(len(self._parts))
        self._parts.append(value)

    def _list(self, value: Any, depth: int) -> None:
        if not depth:
            raise too_deep()
        size = len(value)
        self._parts.append(LIST_HEADS[size] if size < 256 else head_of(0x80, size))
        step = 0
        try:
            for step, item in enumerate(value):  # noqa: B007 - the error names it
                leaf = LEAVES.get(type(item))
                if leaf is not None:
                    self._parts.append(leaf(item))
                else:
                    self.write(item, depth - 1)
        except CannotPass as error:
            error.path.insert(0, step)
            raise

    def _dict(self, value: Any, depth: int) -> None:
        if not depth:
            raise too_deep()
        size = len(value)
        self._parts.append(_MAP_HEADS[size] if size < 256 else head_of(0xA0, size))
        key = None
        try:
            for key, item in value.items():
                if not isinstance(key, str):
                    raise no_key(key)
                self._parts.append(text_bytes(key))
                self.write(item, depth - 1)
        except CannotPass as error:
            error.path.insert(0, step_to(key))
            raise

    def _set(self, value: Any, depth: int) -> None:
        if depth < 2:  # the tag is a level for the decoder, too
            raise too_deep()
        self._parts.append(_SET_HEAD)
        self._sets += 1
        self._list(list(value), depth - 1)
        self._sets -= 1

    def _other(self, value: Any, depth: int) -> None:
        """Subclasses as their base type, cbor2's leaves, and what the engine knows."""
        kind = type(value)
        if isinstance(value, str):
            self._parts.append(text_bytes(str.__str__(value)))
        elif isinstance(value, int):
            self._parts.append(int_bytes(int(value)))
        elif isinstance(value, float):
            self._parts.append(_float(value))
        elif kind is Slot:
            fields = [_SLOT, value.id, value.path, value.args, value.kwargs]
            self._tagged(_REF_HEAD, fields[: _used(value)], depth)
        elif kind is Recording:
            fields = [value.captures, value.instructions]
            self._tagged(_RECORDING_HEAD, fields, depth)
        elif isinstance(value, (bytes, bytearray, memoryview)):
            self._bytes(_steady(value))
        elif isinstance(value, (list, tuple)):
            self._list(list(value), depth)
        elif isinstance(value, dict):
            self._dict(dict(value), depth)
        elif isinstance(value, (set, frozenset)):
            self._set(value, depth)
        elif isinstance(value, datetime) or _is_of(value, "decimal", "Decimal"):
            self._parts.append(_leaf(value))
        elif _is_of(value, "uuid", "UUID"):
            self._parts.append(cbor2.dumps(value))
        elif isinstance(value, BaseException):
            self._parts += error_parts(value, self._tracebacks)
        else:
            self._ref(value, depth)

    def _tagged(self, head: bytes, fields: list[Any], depth: int) -> None:
        if not depth:  # the tag is a level for the decoder, too
            raise too_deep()
        self._parts.append(head)
        self._list(fields, depth - 1)

    def _ref(self, value: Any, depth: int) -> None:
        fields: list[Any]
        try:
            ref = self._to_ref(value)
        except CannotPass:
            raw = _of_buffer(value)
            if raw is None:
                raise
            self._bytes(raw)
            return
        if type(ref) is Mine:
            self._parts.append(mine_bytes(ref))
            return
        if self._sets and (isinstance(ref, Promised) or (isinstance(ref, Yours) and ref.id > 0)):
            raise CannotPass("a promise in a set: await it before, or pass a list")
        match ref:
            case Promised(id):
                fields = [_PROMISED, id]
            case Yours(id, ()):
                fields = [_YOURS, id]
            case Yours(id, path):
                fields = [_YOURS, id, path]
            case Inline(inner):
                if not depth:
                    raise too_deep()
                self.write(inner, depth - 1)
                return
        self._parts.append(_REF_HEAD)
        self._list(fields, 2)


def _used(slot: Slot) -> int:
    """How many of its fields are to be written, with the kind before them."""
    if slot.kwargs:
        return 5
    return 2 if slot.args is None and not slot.path else 3 if slot.args is None else 4


def mine_bytes(ref: Any) -> bytes:
    """A `Mine` as it is written; a function is never another reference."""
    id, cap_id = ref
    if cap_id is None:
        return _MINE_HEAD + int_bytes(id)
    return _LASTING_HEAD + int_bytes(id) + text_bytes(cap_id)


def _steady(value: bytes | bytearray | memoryview) -> Piece:
    """These bytes as they are now: what may still change is copied."""
    if isinstance(value, memoryview) and type(value.obj) is bytes and value.c_contiguous:
        return value.cast("B")
    return bytes(value)


def _of_buffer(value: Any) -> Piece | None:
    """The bytes of an array of numbers; None for what is no such thing.

    A number of its own (numpy's) has a buffer too, and an array of objects one of pointers.
    """
    try:
        view = memoryview(value)
    except TypeError:
        return None
    is_array = view.ndim > 0 and view.format.lstrip("@=<>!") in _NUMBERS
    return _steady(view) if is_array else None


def _is_of(value: Any, module: str, name: str) -> bool:
    """Is it of this class? Of one whose module nobody has loaded there is nothing."""
    return isinstance(value, getattr(sys.modules.get(module), name, ()))


def _leaf(value: datetime | Decimal) -> bytes:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise no_zone()
    elif not value.is_finite():
        raise CannotPass("a Decimal that is not finite; write float(value)")
    return cbor2.dumps(value)


def plain_bytes(values: Iterable[Any]) -> bytes:
    """The items of our own control messages: leaves, and lists of them."""
    return b"".join(
        [
            head_of(0x80, len(value)) + plain_bytes(value)
            if type(value) is list
            else LEAVES[type(value)](value)
            for value in values
        ]
    )


def error_parts(error: BaseException, tracebacks: bool) -> list[bytes]:
    far = to_far(error, with_traceback=tracebacks)
    texts = far[:4] if far.code is None else far
    parts = [_ERROR_HEAD, LIST_HEADS[len(texts)]]
    parts += [_NONE if text is None else _replace_surrogates(text) for text in texts]
    return parts


def _replace_surrogates(text: str) -> bytes:
    return text_bytes(text.encode(errors="backslashreplace").decode())


def hello_bytes(hello: Hello) -> bytes:
    """The hello, as it stands in front of the stream."""
    content = cbor2.dumps(
        {
            "versions": list(hello.versions),
            "features": list(hello.features),
            "limits": {"max_frame": hello.max_frame, "max_depth": hello.max_depth},
            "session": hello.session_id,
            "secret": hello.secret,
            "application": hello.application,
            "application_versions": list(hello.application_versions),
        }
    )
    return MAGIC + frame_head(len(content)) + content
