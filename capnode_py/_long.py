"""Byte strings too long to be copied about.

What a codec, an outbox and a stream would do to a megabyte is to copy it five times on its way. So
a message that holds a long byte string leaves as `Pieces`, one of which is the very object that
was passed; and a frame of more than `LONG_FRAME` bytes arrives in a `LongFrame`, which puts its
long byte strings into objects of their own while they come. The bytes on the wire are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from os import urandom

LONG = 64 * 1024
"""A byte string of this size is a piece of its own. Below it, copying costs less."""

LONG_FRAME = 64 * 1024
"""A frame above this size is searched for long byte strings."""

_BYTES = 2  # the major types
_STRINGS = (_BYTES, 3)
_TWO, _END = b"\x82", b"\x63end"
_FREE = 256  # items that are searched in any case;
_BYTES_AN_ITEM = 512  # then one for each of so many bytes: searching costs less than decoding

Piece = bytes | memoryview
"""What a stream takes as it stands. A view is one of bytes that nobody can change."""


class Pieces:
    """A message or a frame of several pieces, in place of the bytes that they make together."""

    __slots__ = ("pieces", "size")

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.size = sum(map(len, pieces))

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)

    def __radd__(self, before: bytes) -> Pieces:
        return Pieces([before + self.pieces[0], *self.pieces[1:]])


def in_pieces(parts: Sequence[Piece], long: Iterable[int]) -> Pieces:
    """The parts of a message, of which those at the places `long` stay as they are."""
    pieces: list[Piece] = []
    start = 0
    for place in long:
        pieces.append(b"".join(parts[start:place]))
        pieces.append(parts[place])
        start = place + 1
    if start < len(parts):
        pieces.append(b"".join(parts[start:]))
    return Pieces(pieces)


def joined(head: bytes, messages: Iterable[bytes | Pieces]) -> Pieces:
    """One frame of those messages; what is short between the long pieces is joined."""
    pieces: list[Piece] = []
    short = [head]
    for message in messages:
        for piece in [message] if isinstance(message, bytes) else message.pieces:
            if len(piece) < LONG:
                short.append(bytes(piece))
                continue
            if short:
                pieces.append(b"".join(short))
                short.clear()
            pieces.append(piece)
    if short:
        pieces.append(b"".join(short))
    return Pieces(pieces)


def flat(frames: Iterable[bytes | Pieces]) -> Iterable[Piece]:
    """The pieces of all these frames, in their order."""
    for frame in frames:
        if isinstance(frame, bytes):
            yield frame
        else:
            yield from frame.pieces


class LongFrame:
    """A frame that arrives in parts.

    What has come of it is searched, item by item, for byte strings of `LONG` bytes and more. Each
    of them grows in a buffer of its own, as it comes and no faster. In its place the rest of the
    frame has a tag around its number, a random tag, which the other side cannot know: so nobody
    else can refer to a string. The search follows the heads of the items and knows nothing of
    their nesting. Where items are many and short it gives up: the decoder then copies what is long
    behind them, as it does with all that is short.

    Args:
        size: of the frame, as its head has said.

    Attributes:
        left: how many bytes are still to come.
        strings: the long byte strings that have come.
        tag: what stands around their numbers.
    """

    def __init__(self, size: int) -> None:
        self.size = self.left = size
        self.strings: list[bytes] = []
        key = urandom(7)
        self.tag = int.from_bytes(b"\xff" + key, "big")
        self._placeholder = b"\xdb\xff" + key + b"\x1a"
        self._rest = BytesIO()
        self._rest.write(_TWO)
        self._head = b""  # of an item, cut by the end of what has come
        self._to_skip = 0  # bytes that are no heads
        self._string = BytesIO()
        self._string_left = 0
        self._searched = 0

    def __len__(self) -> int:
        return self.size

    def rest(self) -> bytes:
        """The frame without its long strings, and a text behind it, in an array of two: so that
        the decoder tells whether anything stands between them."""
        self._rest.write(_END)
        return self._rest.getvalue()  # not a copy

    def feed(self, data: memoryview) -> int:
        """Take what of `data` belongs to this frame. Returns how much that is."""
        taken = min(len(data), self.left)
        self.left -= taken
        data = data[:taken]
        if self._head:
            data = memoryview(self._head + data)
            self._head = b""
        position, size = 0, len(data)
        while position < size:
            if self._string_left:
                end = min(size, position + self._string_left)
                self._string.write(data[position:end])
                self._string_left -= end - position
                if not self._string_left:
                    self.strings.append(self._string.getvalue())  # not a copy
                    self._string = BytesIO()
            elif self._to_skip:
                end = min(size, position + self._to_skip)
                self._rest.write(data[position:end])
                self._to_skip -= end - position
            else:
                end = self._search(data, position)
            position = end
        return taken

    def _search(self, data: memoryview, start: int) -> int:
        """Follow the items to the next long string, or to the end. Returns how far."""
        size = len(data)
        to_come = self.left + size  # of the frame, from the beginning of `data` on
        allowed = _FREE + (self.size - to_come + start) // _BYTES_AN_ITEM
        position = start
        while position < size:
            first = data[position]
            info = length = first & 31
            content = position + 1
            if info > 23:
                content += 1 << (info - 24 & 3)
                if content > size and self.left:
                    self._head = bytes(data[position:])
                    self._rest.write(data[start:position])
                    return size
                length = int.from_bytes(data[position + 1 : content], "big")
            is_string = first >> 5 in _STRINGS
            self._searched += 1
            if (
                info > 27  # which is no head,
                or (is_string and length > to_come - content)  # or one of more than there is,
                or self._searched > allowed
            ):
                self._to_skip = to_come - position  # the decoder is to see it
                break
            if length >= LONG and first >> 5 == _BYTES:
                self._rest.write(data[start:position])
                self._rest.write(self._placeholder + len(self.strings).to_bytes(4, "big"))
                self._string_left = length
                return content
            position = content + length if is_string else content
        end = min(position, size)
        self._rest.write(data[start:end])
        self._to_skip += position - end
        return end


Encoded = bytes | Pieces
"""A message or a frame that leaves."""
Frame = bytes | LongFrame
"""The content of a frame that has come."""
