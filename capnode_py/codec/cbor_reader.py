"""Reads frames of the native dialect. The decoder is cbor2's; what tags become is decided here.

What is wrong with one value marks the frame and becomes a `Bad`, which rejects the call it is of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import cbor2

from .._cap_ids import LONGEST, CapId
from .._errors import FarError, RemoteProtocolError, from_far
from .._long import Frame, LongFrame
from .._messages import (
    UNNAMED,
    UNUSUAL,
    Bad,
    Hello,
    InSet,
    Mine,
    Promised,
    Recording,
    Slot,
    Yours,
    as_set,
)
from .cbor_writer import MINE, TAG_ERROR, TAG_RECORDING, TAG_REF

if TYPE_CHECKING:
    from decimal import Decimal
    from uuid import UUID

MAX_NAME = 100
"""Characters that are read of the name in a hello."""

_INERT = (Mine, Promised, Yours, Slot, Recording, Bad, InSet)

# A frame, a message, its arguments and the arrays of tags stand around a value.
_DEPTH_AROUND = 9
_END = b"\x63end"
_new: Any = tuple.__new__  # makes a NamedTuple in a third of the time


class Reader:
    """Reads frames, of which nothing is kept from one to the next.

    Attributes:
        where: the other side, as its errors name it.
    """

    def __init__(self, max_depth: int) -> None:
        self.where = UNNAMED
        self._arrived: LongFrame | None = None  # while it is decoded
        self._marked = False
        self._tags = self._decoders()
        self._decodes_to = max_depth + _DEPTH_AROUND

    def decode(self, frame: Frame, /) -> tuple[list[list[Any]], bool]:
        """The messages of a frame, and whether it is marked."""
        self._marked = False
        try:
            # Alone, the decoder would not tell that something stands behind the array.
            if type(frame) is bytes:
                data = b"\x82" + frame + _END
            else:
                self._arrived = cast(LongFrame, frame)
                data = self._arrived.rest()
            messages, end = cbor2.loads(  # a partial would cost half as much again
                data,
                semantic_decoders=self._tags,
                tag_hook=self._unknown_tag,
                max_depth=self._decodes_to,
                allow_indefinite=False,
                allow_duplicate_keys=False,
                strict_hashable_types=True,
            )
        except (cbor2.CBORError, RecursionError) as error:
            cause = f": {error.__cause__}" if error.__cause__ else ""
            raise RemoteProtocolError(f"a frame that is not valid: {error}{cause}") from None
        finally:
            self._arrived = None
        if type(messages) is not list:
            raise RemoteProtocolError(f"a frame that holds no array but {type(messages).__name__}")
        if end != "end":
            raise RemoteProtocolError("a frame with something behind its array")
        return messages, self._marked

    def lone_value(self, data: bytes) -> Any:
        """One value; UNUSUAL if it is none, or holds references."""
        try:
            messages, marked = self.decode(b"\x81\x81" + data)  # as deep as in its message
        except RemoteProtocolError:
            return UNUSUAL
        return UNUSUAL if marked else messages[0][0]

    def _decoders(self) -> Mapping[int, Callable[[Any, bool], Any]]:
        """A decoder for each tag that cbor2 knows, so that none of its own sees a peer's bytes.

        Those may raise, which would fail the whole frame, and some do more than decode: 28 and 29
        make cyclic values, 35 compiles the peer's regular expression, 36 parses MIME.
        """
        refused = (5, 25, 28, 29, 30, 35, 36, 52, 54, 100, 256, 260, 261, 1004, 43000, 55799)
        decoders: dict[int, Callable[[Any, bool], Any]] = {
            tag: functools.partial(self._refused_tag, tag) for tag in refused
        }
        decoders[TAG_REF] = self._ref
        decoders[TAG_RECORDING] = self._recording
        for tag, build in _BUILDERS.items():
            decoders[tag] = functools.partial(self._build, build)
        return decoders

    def _refused_tag(self, tag: int, content: Any, _immutable: bool) -> Bad:
        self._marked = True
        return Bad(f"CBOR tag {tag} is not a value of this protocol", content)

    def _unknown_tag(self, tag: cbor2.CBORTag, immutable: bool) -> Bad | bytes:
        arrived = self._arrived
        if arrived is not None and tag.tag == arrived.tag:
            return arrived.strings[int(tag.value)]
        return self._refused_tag(tag.tag, tag.value, immutable)

    def _build(self, build: Callable[[Reader, Any], Any], content: Any, _immutable: bool) -> Any:
        try:
            return build(self, content)
        except Exception as error:  # noqa: BLE001 - whatever the peer wrote: it rejects one call
            self._marked = True
            return Bad(f"a malformed value ({type(error).__name__})", content)

    def _ref(self, content: Any, _immutable: bool) -> Any:
        self._marked = True
        if type(content) is list and len(content) == 2:
            kind, id = content
            if kind == MINE and type(kind) is int and type(id) is int:  # as most are
                return _new(Mine, (id, None))
        match content:
            case [0, int(id)] if _is_id(id):
                return Mine(id)
            case [0, int(id), str(cap_id)] if _is_id(id) and len(cap_id) <= LONGEST:
                return Mine(id, CapId(cap_id))
            case [1, int(id)] if _is_id(id):
                return Promised(id)
            case [2, int(id)] if _is_id(id):
                return Yours(id)
            case [2, int(id), [*path]] if _is_id(id) and _is_path(path):
                return Yours(id, tuple(path))
            case [3, int(id), *rest] if _is_id(id):
                return _slot(id, *rest[:4]) or Bad("malformed slot", content)
        return Bad("malformed reference", content)

    def _recording(self, content: Any, _immutable: bool) -> Any:
        self._marked = True
        match content:
            case [list(captures), list(instructions)] if instructions:
                return Recording(captures, instructions)
        return Bad("malformed function for map", content)

    def _error(self, content: Any) -> Any:
        match content:
            case [str(), str(), str() | None, str() | None]:
                return from_far(FarError(*content), where=self.where)
            case [str(), str(), str() | None, str() | None, str()]:
                return from_far(FarError(*content), where=self.where)
        raise ValueError("an exception is [name, text, base, traceback, code?]")

    def _set(self, content: Any) -> Any:
        if _holds_references(content):
            self._marked = True
            return InSet(content)
        return as_set(content)


def _holds_references(content: Any) -> bool:
    kind = type(content)
    if kind is list or kind is tuple:
        return any(map(_holds_references, content))
    return kind in _INERT


def _is_id(id: int) -> bool:
    return type(id) is int  # a bool is an int, too


def _is_path(path: Any) -> bool:
    return type(path) is list and all(type(step) in (str, int) for step in path)


def _slot(id: int, path: Any = (), args: Any = None, *kwargs: Any) -> Slot | None:
    """The slot that stands there; None if it is malformed."""
    if path != () and not _is_path(path):
        return None
    if kwargs and (type(args) is not list or not _has_text_keys(*kwargs)):
        return None
    if args is not None and type(args) is not list and type(args) is not Recording:
        return None
    return Slot(id, tuple(path), args, *kwargs)


def _has_text_keys(value: Any, *more: Any) -> bool:
    return type(value) is dict and all(type(key) is str for key in value) and not more


def _datetime(_reader: Reader, content: Any) -> datetime:
    value = datetime.fromisoformat(content)
    if value.tzinfo is None:
        raise ValueError("a datetime without a time zone")
    return value


def _epoch(_reader: Reader, content: Any) -> datetime:
    return datetime.fromtimestamp(content, UTC)


def _bignum(_reader: Reader, content: Any) -> int:
    return int.from_bytes(_bytes(content), "big")


def _negative_bignum(_reader: Reader, content: Any) -> int:
    return -1 - int.from_bytes(_bytes(content), "big")


def _bytes(content: Any) -> bytes:
    if type(content) is not bytes:
        raise TypeError("expected a byte string")
    return content


def _decimal(_reader: Reader, content: Any) -> Decimal:
    from decimal import Decimal

    exponent, mantissa = content
    if type(exponent) is not int or type(mantissa) is not int:
        raise TypeError("a decimal fraction is [exponent, mantissa]")
    digits = tuple(map(int, str(abs(mantissa))))
    return Decimal((mantissa < 0, digits, exponent))


def _uuid(_reader: Reader, content: Any) -> UUID:
    from uuid import UUID

    return UUID(bytes=_bytes(content))


_BUILDERS: Mapping[int, Callable[[Reader, Any], Any]] = {
    0: _datetime,
    1: _epoch,
    2: _bignum,
    3: _negative_bignum,
    4: _decimal,
    37: _uuid,
    258: Reader._set,
    TAG_ERROR: Reader._error,
}


def read_hello(frame: bytes) -> Hello:
    try:
        content = cbor2.loads(
            frame, max_depth=8, allow_indefinite=False, strict_hashable_types=True
        )
        limits = content["limits"]
        return Hello(
            versions=[_whole(version) for version in content["versions"]],
            features=[str(feature) for feature in content["features"]],
            max_frame=_positive(limits["max_frame"]),
            max_depth=_positive(limits["max_depth"]),
            session_id=_bytes(content["session"]),
            secret=_bytes(content["secret"]),
            application=_printable(content["application"]),
            application_versions=[_whole(version) for version in content["application_versions"]],
        )
    except Exception as error:  # noqa: BLE001 - the peer's bytes can fail in any way
        raise RemoteProtocolError(
            f"a hello that cannot be read ({type(error).__name__}: {error})"
        ) from None


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a version is an integer")
    return value


def _printable(value: Any) -> str:
    """A name for errors, logs and reprs: short, and nothing that moves a terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(value)[:MAX_NAME])


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("a limit is a positive integer")
    return value
