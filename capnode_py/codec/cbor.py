"""The native dialect: messages as CBOR arrays, a frame for those of one turn of the loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from struct import Struct
from types import FunctionType
from typing import Any, cast

import cbor2

from .._errors import CannotPass, RemoteProtocolError
from .._frames import Cutter, frame_head
from .._limits import Limits
from .._long import LONG, Encoded, Frame, LongFrame, Piece, Pieces, in_pieces, joined
from .._messages import (
    CALL,
    IN_RECORDING,
    REJECT,
    RELEASE,
    RESOLVE,
    At,
    Hello,
    Path,
    Recording,
    ToRef,
    Traits,
)
from . import lone
from .cbor_reader import Reader, read_hello
from .cbor_writer import (
    LEAVES,
    LIST_HEADS,
    LONE_LEAVES,
    SMALL_INTS,
    Writer,
    error_parts,
    head_of,
    heads_of,
    hello_bytes,
    int_bytes,
    mine_bytes,
    pack_short,
    path_bytes,
    plain_bytes,
    small_int,
    text_bytes,
)

VERSION = 1

_PATHS = 4096  # noted, of calls made
_SHORT_PATH = 100  # bytes of one

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

_NO_ITEMS = LIST_HEADS[0]
_PAIR = LIST_HEADS[2]
_RESOLVE = LIST_HEADS[3] + SMALL_INTS[RESOLVE]
_RELEASE = LIST_HEADS[3] + SMALL_INTS[RELEASE]
_RELEASE_ONE = _RELEASE + LIST_HEADS[1]
_READ = LIST_HEADS[3] + SMALL_INTS[CALL]
_CALL = LIST_HEADS[4] + SMALL_INTS[CALL]
_CALL_WITH_KWARGS = LIST_HEADS[5] + SMALL_INTS[CALL]
_FRAME_HEADS = heads_of(0x40)
_HEADS_ALONE = [head + LIST_HEADS[1] for head in (*_FRAME_HEADS[1:], frame_head(256))]
_pack_resolve = Struct(">BBBH").pack


class CborCodec:
    """See `Codec` for the interface; ``docs/protocol.md`` for the format."""

    traits = _TRAITS

    def __init__(self, limits: Limits, *, max_junk: int = 0, tracebacks: bool = True) -> None:
        self.max_depth = limits.max_depth
        self.features: Collection[str] = ()
        self.tracebacks = tracebacks
        self._cutter = Cutter(max_frame=limits.max_frame, max_junk=max_junk)
        self.feed: Callable[[bytes | memoryview], Iterable[Frame | Hello]] = self._feed_first
        self._greeted = False
        self._paths: dict[Path, bytes] = {}
        self._reader = Reader(limits.max_depth)
        self.decode = self._reader.decode
        self.lone = lone.Lone(self._paths, LONE_LEAVES, self._reader.lone_value, self._cutter)

    @property
    def where(self) -> str:
        """The other side, as its errors name it."""
        return self._reader.where

    @where.setter
    def where(self, name: str) -> None:
        self._reader.where = name

    @property
    def junk(self) -> bytes:
        """What stood in the stream before the hello."""
        return self._cutter.junk

    # Writing.

    def hello(self, hello: Hello) -> bytes:
        return hello_bytes(hello)

    def call(self, target: At, path: Path, args: Any, kwargs: Any, to_ref: ToRef, /) -> Encoded:
        at = small_int(target) or (
            int_bytes(target) if isinstance(target, int) else text_bytes(target)
        )
        steps = self._paths.get(path) or self._path(path)
        if args is None:
            return _READ + at + steps
        if type(args) is Recording:
            return self._map(_CALL + at + steps, args, to_ref)
        size = len(args)
        if not size and not kwargs:  # as in most calls that a pipeline goes through
            return _CALL + at + steps + _NO_ITEMS
        head = LIST_HEADS[size] if size < 256 else head_of(0x80, size)
        parts: list[Piece] = [_CALL_WITH_KWARGS if kwargs else _CALL, at, steps, head]
        long: list[int] = []
        name = value = None
        try:
            for value in args:
                kind = type(value)
                if kind is int:
                    parts.append(small_int(value) or int_bytes(value))
                elif (leaf := LEAVES.get(kind)) is not None:
                    parts.append(leaf(value))
                elif kind is FunctionType:  # a callback: this is the way through `Writer._ref`
                    parts.append(mine_bytes(to_ref(value)))
                elif kind is bytes and len(value) < LONG:
                    parts.append(head_of(0x40, len(value)))
                    parts.append(value)
                else:
                    long += self._write(parts, value, to_ref)
            if kwargs:
                parts.append(head_of(0xA0, len(kwargs)))
                for name, value in kwargs.items():
                    parts.append(text_bytes(name))
                    leaf = LEAVES.get(type(value))
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
        steps = path_bytes(path)
        if len(steps) < _SHORT_PATH:
            if len(self._paths) == _PATHS:  # a peer that we forward for may choose them
                self._paths.clear()
            self._paths[path] = steps
        return steps

    def _write(self, parts: list[Piece], value: Any, to_ref: ToRef) -> Sequence[int]:
        """Append a value that a message carries. Most are leaves, for which nobody asks this.
        Returns where in `parts` long byte strings stand."""
        writer = Writer(parts, to_ref, self.tracebacks)
        writer.write(value, self.max_depth)
        return writer.long

    def word(self, call: Encoded, word: int, /) -> Encoded:
        if isinstance(call, Pieces):
            head, *rest = call.pieces
            return Pieces([bytes(self.word(bytes(head), word)), *rest])
        return call[:1] + SMALL_INTS[word] + call[2:]

    def value(self, value: Any, to_ref: ToRef, /) -> bytes:
        raise NotImplementedError("this dialect has no such word")

    def resolve(self, id: int, value: Any, to_ref: ToRef, /) -> Encoded:
        kind = type(value)
        head = (
            _pack_resolve(0x83, RESOLVE, 0x19, id)
            if 255 < id < 0x10000
            else _RESOLVE + int_bytes(id)
        )
        try:
            if kind is int:
                return head + (small_int(value) or int_bytes(value))
            leaf = LEAVES.get(kind)
            if leaf is not None:
                return head + leaf(value)
            if kind is bytes and len(value) < LONG:
                return b"".join((head, head_of(0x40, len(value)), value))
            parts: list[Piece] = [head]
            long = self._write(parts, value, to_ref)
        except CannotPass as error:
            error.root = "the result"
            raise
        return in_pieces(parts, long) if long else b"".join(parts)

    def reject(self, id: int, error: BaseException, /) -> bytes:
        parts = [b"\x83", SMALL_INTS[REJECT], int_bytes(id)]
        parts += error_parts(error, self.tracebacks)
        return b"".join(parts)

    def release(self, answers: list[int], references: list[tuple[int, int]], /) -> bytes:
        if len(answers) == 1 and not references:  # as with each call that is awaited alone
            return _RELEASE_ONE + int_bytes(answers[0]) + b"\x80"
        parts = [_RELEASE, cbor2.dumps(answers)]  # of many, in a third of the time
        parts.append(head_of(0x80, len(references)))
        for id, n in references:
            parts += (_PAIR, int_bytes(id), int_bytes(n))
        return b"".join(parts)

    def control(self, word: int, /, *fields: Any) -> bytes:
        return LIST_HEADS[1 + len(fields)] + SMALL_INTS[word] + plain_bytes(fields)

    def copy(self, values: list[Any], to_ref: ToRef, /) -> tuple[list[Any], bool]:
        parts: list[Piece] = []
        # The list itself and the one of a call's arguments stand around the values.
        Writer(parts, to_ref, self.tracebacks).write(values, self.max_depth + 2)
        return self.decode(b"".join(parts))

    def frame(self, messages: list[Encoded], /) -> Encoded:
        if len(messages) == 1 and (size := len(content := messages[0])) < 0xFFFF:  # as most are
            if size < 256:
                return _HEADS_ALONE[size] + content
            return b"".join((pack_short(0x59, size + 1), LIST_HEADS[1], cast(bytes, content)))
        try:
            content = b"".join(messages)  # type: ignore[arg-type]
        except TypeError:  # one of them is in pieces: to ask before would cost all the others
            return self._long_frame(messages)
        size = len(content)
        if size < 254 and len(messages) < 24:
            return _FRAME_HEADS[size + 1] + LIST_HEADS[len(messages)] + content
        head = head_of(0x80, len(messages))
        return b"".join((frame_head(len(head) + size), head, content))

    def _long_frame(self, messages: list[Encoded]) -> Pieces:
        head = head_of(0x80, len(messages))
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
                yield read_hello(frame)

    @property
    def unfinished(self) -> int:
        return self._cutter.unfinished

    def end(self) -> None:
        self._cutter.end()
