"""The native dialect: messages as CBOR arrays, a frame for those of one turn of the loop.

The encoder is our own: one walk that bounds the depth (cbor2's crashes the process on a deep
list), finds references, knows the way to a value that cannot pass, and writes the common types;
every other leaf is cbor2's, and so is all decoding. A test holds its output equal to cbor2's.
"""

from __future__ import annotations

import functools
import math
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

import cbor2

from .._cap_ids import LONGEST, CapId
from .._errors import CannotPass, FarError, LimitExceeded, RemoteProtocolError, from_far, to_far
from .._frames import MAGIC, Cutter, frame_head
from .._limits import Limits
from .._long import LONG, Encoded, Frame, LongFrame, Piece, Pieces, in_pieces, joined
from .._messages import (
    CALL,
    IN_RECORDING,
    REJECT,
    RELEASE,
    RESOLVE,
    UNNAMED,
    UNUSUAL,
    At,
    Bad,
    Hello,
    Inline,
    InSet,
    Mine,
    Path,
    Promised,
    Recording,
    Slot,
    ToRef,
    Traits,
    Yours,
    as_set,
)
from . import lone
from .walk import Walk, no_key, no_zone, step_to, too_deep

if TYPE_CHECKING:
    from decimal import Decimal
    from uuid import UUID

VERSION = 1

_PATHS = 4096  # noted, of calls made
_SHORT_PATH = 100  # bytes of one

TAG_REF = 49374
"""Our private tag of references: ``[kind, id, ...]``."""
TAG_ERROR = 49375
"""Our private tag of exceptions: ``[name, text, base, traceback]``."""
TAG_RECORDING = 49376
"""Our private tag of functions for map: ``[captures, instructions]``."""

_MINE, _PROMISED, _YOURS, _SLOT = 0, 1, 2, 3
_INERT = (Mine, Promised, Yours, Slot, Recording, Bad, InSet)

_TRAITS = Traits(
    reuse_export_ids=True,
    gapless=True,
    hello=True,
    bye=True,
    calls=True,
    values=False,
    streams=False,
    one_way=True,
    cancel=True,
    ping=True,
    kwargs=True,
    cap_ids=True,
    breaks=True,
    text=False,
    max_message=1 << 62,
)

# A frame, a message, its arguments and the arrays of tags stand around a value.
_DEPTH_AROUND = 9
_END = b"\x63end"
_new: Any = tuple.__new__  # makes a NamedTuple in a third of the time


_ONE_BYTE = [bytes((n,)) for n in range(256)]


def _head(major: int, value: int) -> bytes:
    """A CBOR head: the major type (already shifted) and its argument, in the shortest form."""
    if value < 24:
        return _ONE_BYTE[major | value]
    if value < 0x100:
        return bytes((major | 24, value))
    if value < 0x10000:
        return struct.pack(">BH", major | 25, value)
    if value < 0x1_0000_0000:
        return struct.pack(">BI", major | 26, value)
    return struct.pack(">BQ", major | 27, value)


# What these tables buy: most ints, names and containers are small, and a look-up costs a third of
# computing the head.
_SMALL_INTS: dict[Any, bytes] = {
    n: _head(0x00, n) if n >= 0 else _head(0x20, ~n) for n in range(-256, 256)
}
_small_int = _SMALL_INTS.get
_TEXT_HEADS = [_head(0x60, n) for n in range(256)]
_LIST_HEADS = [_head(0x80, n) for n in range(256)]
_MAP_HEADS = [_head(0xA0, n) for n in range(256)]
_REF_HEAD = _head(0xC0, TAG_REF)
_NO_ITEMS = _LIST_HEADS[0]
_PAIR = _LIST_HEADS[2]
_MINE_HEAD = _REF_HEAD + _LIST_HEADS[2] + _SMALL_INTS[_MINE]
_LASTING_HEAD = _REF_HEAD + _LIST_HEADS[3] + _SMALL_INTS[_MINE]
_RESOLVE = _LIST_HEADS[3] + _SMALL_INTS[RESOLVE]
_RELEASE = _LIST_HEADS[3] + _SMALL_INTS[RELEASE]
_RELEASE_ONE = _RELEASE + _LIST_HEADS[1]
_READ = _LIST_HEADS[3] + _SMALL_INTS[CALL]
_CALL = _LIST_HEADS[4] + _SMALL_INTS[CALL]
_CALL_WITH_KWARGS = _LIST_HEADS[5] + _SMALL_INTS[CALL]
_FRAME_HEADS = [frame_head(n) for n in range(256)]
_HEADS_ALONE = [frame_head(n + 1) + _LIST_HEADS[1] for n in range(256)]
_ERROR_HEAD = _head(0xC0, TAG_ERROR)
_SET_HEAD = _head(0xC0, 258)
_RECORDING_HEAD = _head(0xC0, TAG_RECORDING)
_NUMBERS = frozenset("cbB?hHiIlLqQnNefd")  # formats of buffers
_NONE, _TRUE, _FALSE = b"\xf6", b"\xf5", b"\xf4"
_pack_short = struct.Struct(">BH").pack
_pack_long = struct.Struct(">BI").pack
_pack_resolve = struct.Struct(">BBBH").pack
_pack_float = struct.Struct(">Bd").pack


def _int(value: int) -> bytes:
    small = _small_int(value)
    if small is not None:
        return small
    if value >= 0:
        if value < 0x10000:
            return _pack_short(0x19, value)
        if value < 0x1_0000_0000:
            return _pack_long(0x1A, value)
        if value < 1 << 64:
            return _head(0x00, value)
    elif value >= -0x10000:
        return _pack_short(0x39, ~value)
    elif value >= -(1 << 64):
        return _head(0x20, ~value)
    return cbor2.dumps(value)


def _text(value: str) -> bytes:
    try:
        raw = value.encode()
    except UnicodeEncodeError as error:
        raise CannotPass(f"a str that is not valid Unicode ({error.reason})") from None
    size = len(raw)
    return (_TEXT_HEADS[size] if size < 256 else _head(0x60, size)) + raw


def _path(path: Path) -> bytes:
    """A path of names and ints."""
    steps = [_text(step) if isinstance(step, str) else _int(step) for step in path]
    return _head(0x80, len(path)) + b"".join(steps)


def _bool(value: bool) -> bytes:
    return _TRUE if value else _FALSE


def _none(_value: None) -> bytes:
    return _NONE


def _float(value: float) -> bytes:
    return _pack_float(0xFB, value) if math.isfinite(value) else cbor2.dumps(float(value))


_LEAVES: Mapping[type, Callable[[Any], bytes]] = {
    str: _text,
    int: _int,
    type(None): _none,
    bool: _bool,
    float: _float,
}
"""The types that make up most messages, found by exact type."""


def _lone_text(value: str) -> bytes:
    """`_text` of what is not too long for a frame of `lone`: it would be encoded in vain."""
    if len(value) > lone.LONGEST:
        raise LimitExceeded("a long text")
    return _text(value)


def _lone_bytes(value: Piece) -> bytes:
    size = len(value)
    if size > lone.LONGEST:
        raise LimitExceeded("a long byte string")
    return _head(0x40, size) + value


def _lone_buffer(value: bytearray | memoryview) -> bytes:
    if memoryview(value).nbytes > lone.LONGEST:
        raise LimitExceeded("a long buffer")
    return _lone_bytes(_steady(value))


_LONE_LEAVES: Mapping[type, Callable[[Any], bytes]] = {
    **_LEAVES,
    str: _lone_text,
    bytes: _lone_bytes,
    bytearray: _lone_buffer,
    memoryview: _lone_buffer,
}
"""What `lone` writes; the others have more ways, for what is long."""


class CborCodec:
    """See `Codec` for the interface; ``docs/protocol.md`` for the format."""

    traits = _TRAITS

    def __init__(self, limits: Limits, *, max_junk: int = 0, tracebacks: bool = True) -> None:
        self.max_depth = limits.max_depth
        self.features: Collection[str] = ()
        self.tracebacks = tracebacks
        self.where = UNNAMED
        self._cutter = Cutter(max_frame=limits.max_frame, max_junk=max_junk)
        self.feed: Callable[[bytes | memoryview], Iterable[Frame | Hello]] = self._feed_first
        self._arrived: LongFrame | None = None  # while it is decoded
        self._greeted = False
        self._marked = False
        self._paths: dict[Path, bytes] = {}
        self._tags = self._decoders()
        self._decodes_to = limits.max_depth + _DEPTH_AROUND
        self.lone = lone.Lone(self._paths, _LONE_LEAVES, self._lone_value, self._cutter)

    @property
    def junk(self) -> bytes:
        """What stood in the stream before the hello."""
        return self._cutter.junk

    # Writing.

    def hello(self, hello: Hello) -> bytes:
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

    def call(self, target: At, path: Path, args: Any, kwargs: Any, to_ref: ToRef, /) -> Encoded:
        at = _small_int(target) or (_int(target) if isinstance(target, int) else _text(target))
        steps = self._paths.get(path) or self._path(path)
        if args is None:
            return _READ + at + steps
        if type(args) is Recording:
            return self._map(_CALL + at + steps, args, to_ref)
        size = len(args)
        if not size and not kwargs:  # as in most calls that a pipeline goes through
            return _CALL + at + steps + _NO_ITEMS
        head = _LIST_HEADS[size] if size < 256 else _head(0x80, size)
        parts: list[Piece] = [_CALL_WITH_KWARGS if kwargs else _CALL, at, steps, head]
        long: list[int] = []
        name = value = None
        try:
            for value in args:
                kind = type(value)
                if kind is int:
                    parts.append(_small_int(value) or _int(value))
                elif (leaf := _LEAVES.get(kind)) is not None:
                    parts.append(leaf(value))
                elif kind is FunctionType:  # a callback: this is the way through `_Writer._ref`
                    parts.append(_mine(to_ref(value)))
                elif kind is bytes and len(value) < LONG:
                    parts.append(_head(0x40, len(value)))
                    parts.append(value)
                else:
                    long += self._write(parts, value, to_ref)
            if kwargs:
                parts.append(_head(0xA0, len(kwargs)))
                for name, value in kwargs.items():
                    parts.append(_text(name))
                    leaf = _LEAVES.get(type(value))
                    if leaf is not None:
                        parts.append(leaf(value))
                    else:
                        long += self._write(parts, value, to_ref)
        except CannotPass as error:
            error.root = "argument"
            # The first that is this one: what stands twice fails where it stands first.
            place = next(n for n, arg in enumerate(args) if arg is value) if name is None else name
            error.path.insert(0, place)
            raise
        return in_pieces(parts, long) if long else b"".join(parts)

    def _map(self, head: bytes, recording: Recording, to_ref: ToRef) -> bytes:
        if "map" not in self.features:
            raise CannotPass(
                "a function for map, which the other side does not know (its hello does not name "
                "it): await the list, and write [function(item) for item in it]"
            )
        parts: list[Piece] = [head]
        try:
            self._write(parts, recording, to_ref)
        except CannotPass as error:
            error.root = IN_RECORDING
            error.path.clear()
            raise
        return b"".join(parts)

    def _path(self, path: Path) -> bytes:
        """Programs call the same few names over and over, so short paths are noted."""
        steps = _path(path)
        if len(steps) < _SHORT_PATH:
            if len(self._paths) == _PATHS:  # a peer that we forward for may choose them
                self._paths.clear()
            self._paths[path] = steps
        return steps

    def _write(self, parts: list[Piece], value: Any, to_ref: ToRef) -> Sequence[int]:
        """Append a value that a message carries. Most are leaves, for which nobody asks this.
        Returns where in `parts` long byte strings stand."""
        writer = _Writer(parts, to_ref, self.tracebacks)
        writer.write(value, self.max_depth)
        return writer.long

    def word(self, call: Encoded, word: int, /) -> Encoded:
        if isinstance(call, Pieces):
            head, *rest = call.pieces
            return Pieces([bytes(self.word(bytes(head), word)), *rest])
        return call[:1] + _SMALL_INTS[word] + call[2:]

    def value(self, value: Any, to_ref: ToRef, /) -> bytes:
        raise NotImplementedError("this dialect has no such word")

    def resolve(self, id: int, value: Any, to_ref: ToRef, /) -> Encoded:
        kind = type(value)
        head = _pack_resolve(0x83, RESOLVE, 0x19, id) if 255 < id < 0x10000 else _RESOLVE + _int(id)
        try:
            if kind is int:
                return head + (_small_int(value) or _int(value))
            leaf = _LEAVES.get(kind)
            if leaf is not None:
                return head + leaf(value)
            if kind is bytes and len(value) < LONG:
                return b"".join((head, _head(0x40, len(value)), value))
            parts: list[Piece] = [head]
            long = self._write(parts, value, to_ref)
        except CannotPass as error:
            error.root = "the result"
            raise
        return in_pieces(parts, long) if long else b"".join(parts)

    def reject(self, id: int, error: BaseException, /) -> bytes:
        parts = [b"\x83", _SMALL_INTS[REJECT], _int(id)]
        parts += _error(error, self.tracebacks)
        return b"".join(parts)

    def release(self, answers: list[int], references: list[tuple[int, int]], /) -> bytes:
        if len(answers) == 1 and not references:  # as with each call that is awaited alone
            return _RELEASE_ONE + _int(answers[0]) + b"\x80"
        parts = [_RELEASE, cbor2.dumps(answers)]  # of many, in a third of the time
        parts.append(_head(0x80, len(references)))
        for id, n in references:
            parts += (_PAIR, _int(id), _int(n))
        return b"".join(parts)

    def control(self, word: int, /, *fields: Any) -> bytes:
        return _LIST_HEADS[1 + len(fields)] + _SMALL_INTS[word] + _plain(fields)

    def copy(self, values: list[Any], to_ref: ToRef, /) -> tuple[list[Any], bool]:
        parts: list[Piece] = []
        # The list itself and the one of a call's arguments stand around the values.
        _Writer(parts, to_ref, self.tracebacks).write(values, self.max_depth + 2)
        return self.decode(b"".join(parts))

    def frame(self, messages: list[Encoded], /) -> Encoded:
        if len(messages) == 1 and (size := len(content := messages[0])) < 0xFFFF:  # as most are
            if size < 256:
                return _HEADS_ALONE[size] + content
            return b"".join((_pack_short(0x59, size + 1), _LIST_HEADS[1], cast(bytes, content)))
        try:
            content = b"".join(messages)  # type: ignore[arg-type]
        except TypeError:  # one of them is in pieces: to ask before would cost all the others
            return self._long_frame(messages)
        size = len(content)
        if size < 254 and len(messages) < 24:
            return _FRAME_HEADS[size + 1] + _LIST_HEADS[len(messages)] + content
        head = _head(0x80, len(messages))
        return b"".join((frame_head(len(head) + size), head, content))

    def _long_frame(self, messages: list[Encoded]) -> Pieces:
        head = _head(0x80, len(messages))
        return joined(frame_head(len(head) + sum(map(len, messages))) + head, messages)

    # Reading.

    def _feed_first(self, data: bytes | memoryview, /) -> Iterable[Frame | Hello]:
        return self._greet(self._cutter.feed(data))

    def _greet(self, frames: list[Frame]) -> Iterator[Frame | Hello]:
        for frame in frames:
            if self._greeted:
                yield frame
            else:
                self._greeted = True
                self.feed = self._cutter.feed
                if isinstance(frame, LongFrame):
                    raise RemoteProtocolError(f"a hello of {len(frame)} bytes")
                yield _read_hello(frame)

    @property
    def unfinished(self) -> int:
        return self._cutter.unfinished

    def end(self) -> None:
        self._cutter.end()

    def decode(self, frame: Frame, /) -> tuple[list[list[Any]], bool]:
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

    def _lone_value(self, data: bytes) -> Any:
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

    def _build(self, build: Callable[[CborCodec, Any], Any], content: Any, _immutable: bool) -> Any:
        try:
            return build(self, content)
        except Exception as error:  # noqa: BLE001 - whatever the peer wrote: it rejects one call
            self._marked = True
            return Bad(f"a malformed value ({type(error).__name__})", content)

    def _ref(self, content: Any, _immutable: bool) -> Any:
        self._marked = True
        if type(content) is list and len(content) == 2:
            kind, id = content
            if kind == _MINE and type(kind) is int and type(id) is int:  # as most are
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


def _datetime(_codec: CborCodec, content: Any) -> datetime:
    value = datetime.fromisoformat(content)
    if value.tzinfo is None:
        raise ValueError("a datetime without a time zone")
    return value


def _epoch(_codec: CborCodec, content: Any) -> datetime:
    return datetime.fromtimestamp(content, UTC)


def _bignum(_codec: CborCodec, content: Any) -> int:
    return int.from_bytes(_bytes(content), "big")


def _negative_bignum(_codec: CborCodec, content: Any) -> int:
    return -1 - int.from_bytes(_bytes(content), "big")


def _bytes(content: Any) -> bytes:
    if type(content) is not bytes:
        raise TypeError("expected a byte string")
    return content


def _decimal(_codec: CborCodec, content: Any) -> Decimal:
    from decimal import Decimal

    exponent, mantissa = content
    if type(exponent) is not int or type(mantissa) is not int:
        raise TypeError("a decimal fraction is [exponent, mantissa]")
    digits = tuple(map(int, str(abs(mantissa))))
    return Decimal((mantissa < 0, digits, exponent))


def _uuid(_codec: CborCodec, content: Any) -> UUID:
    from uuid import UUID

    return UUID(bytes=_bytes(content))


_BUILDERS: Mapping[int, Callable[[CborCodec, Any], Any]] = {
    0: _datetime,
    1: _epoch,
    2: _bignum,
    3: _negative_bignum,
    4: _decimal,
    37: _uuid,
    258: CborCodec._set,
    TAG_ERROR: CborCodec._error,
}


def _read_hello(frame: bytes) -> Hello:
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


MAX_NAME = 100
"""Characters that are read of the name in a hello."""


def _printable(value: Any) -> str:
    """A name for errors, logs and reprs: short, and nothing that moves a terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(value)[:MAX_NAME])


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("a limit is a positive integer")
    return value


def _plain(values: Iterable[Any]) -> bytes:
    """The items of our own control messages: leaves, and lists of them."""
    return b"".join(
        [
            _head(0x80, len(value)) + _plain(value)
            if type(value) is list
            else _LEAVES[type(value)](value)
            for value in values
        ]
    )


def _error(error: BaseException, tracebacks: bool) -> list[bytes]:
    far = to_far(error, with_traceback=tracebacks)
    texts = far[:4] if far.code is None else far
    parts = [_ERROR_HEAD, _LIST_HEADS[len(texts)]]
    parts += [_NONE if text is None else _replace_surrogates(text) for text in texts]
    return parts


def _replace_surrogates(text: str) -> bytes:
    return _text(text.encode(errors="backslashreplace").decode())


class _Writer(Walk[Piece]):
    """Writes values as CBOR.

    Attributes:
        long: where in `parts` long byte strings stand.
    """

    __slots__ = ("_sets", "long")

    leaves = _LEAVES

    def __init__(self, parts: list[Piece], to_ref: ToRef, tracebacks: bool) -> None:
        super().__init__(parts, to_ref, tracebacks)
        self.long: list[int] | tuple[()] = ()
        self._sets = 0  # around what is being written

    def _bytes(self, value: Piece) -> None:
        size = len(value)
        self._parts.append(_head(0x40, size))
        if size >= LONG:
            if not self.long:
                self.long = []
            self.long.append(len(self._parts))
        self._parts.append(value)

    def _list(self, value: Any, depth: int) -> None:
        if not depth:
            raise too_deep()
        size = len(value)
        self._parts.append(_LIST_HEADS[size] if size < 256 else _head(0x80, size))
        step = 0
        try:
            for step, item in enumerate(value):  # noqa: B007 - the error names it
                leaf = _LEAVES.get(type(item))
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
        self._parts.append(_MAP_HEADS[size] if size < 256 else _head(0xA0, size))
        key = None
        try:
            for key, item in value.items():
                if not isinstance(key, str):
                    raise no_key(key)
                self._parts.append(_text(key))
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
            self._parts.append(_text(str.__str__(value)))
        elif isinstance(value, int):
            self._parts.append(_int(int(value)))
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
            self._parts += _error(value, self._tracebacks)
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
            self._parts.append(_mine(ref))
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


def _mine(ref: Any) -> bytes:
    """A `Mine` as it is written; a function is never another reference."""
    id, cap_id = ref
    if cap_id is None:
        return _MINE_HEAD + _int(id)
    return _LASTING_HEAD + _int(id) + _text(cap_id)


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
