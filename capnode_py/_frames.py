"""Cutting a byte stream into the items of the native dialect.

A stream is a CBOR sequence (RFC 8742). Its first item is the hello, self-described: the bytes
``d9 d9 f7``, then a frame. Every other item is a frame: a byte string of definite length, whose
head tells the length before anything is allocated.
"""

from __future__ import annotations

import struct

from ._errors import RemoteProtocolError
from ._long import LONG_FRAME, LongFrame

MAGIC = b"\xd9\xd9\xf7"
"""CBOR's self-described tag (RFC 8949, 3.4.6)."""

_BYTE_STRING = 0x40
_LONG_HEADS = (_BYTE_STRING + 26, _BYTE_STRING + 27)
_LENGTH_BYTES = {24: 1, 25: 2, 26: 4, 27: 8}


_SHORT_HEADS = [bytes((_BYTE_STRING | size,)) for size in range(24)]


def frame_head(size: int) -> bytes:
    """The head of a byte string of `size` bytes."""
    if size < 24:
        return _SHORT_HEADS[size]
    if size < 0x100:
        return b"\x58" + size.to_bytes(1, "big")
    if size < 0x10000:
        return struct.pack(">BH", 0x59, size)
    if size < 0x1_0000_0000:
        return struct.pack(">BI", 0x5A, size)
    return struct.pack(">BQ", 0x5B, size)


class Cutter:
    """Bytes in, frames out. The first frame is the hello's.

    Args:
        max_frame: the longest frame to accept.
        max_junk: how much may stand before the hello; 0 for a stream that nobody else writes to.
    """

    def __init__(self, *, max_frame: int, max_junk: int = 0) -> None:
        self.max_frame = max_frame
        self._max_junk = max_junk
        self._rest = bytearray()
        self._need = 1  # with fewer bytes than these in `_rest`, there is no frame in it
        self._long: LongFrame | None = None  # in the midst of which we are
        self._opened = False
        self.between = False  # behind one frame, and before the next
        self.junk = b""

    def feed(self, data: bytes | memoryview) -> list[bytes | LongFrame]:
        """The frames that are whole by now.

        Args:
            data: a view is not looked at again once this has returned.

        Raises:
            RemoteProtocolError: the stream is not one of frames, or a frame is over the limit.
        """
        if self.between and type(data) is bytes:
            size = len(data)
            if 1 < size == data[0] - (_BYTE_STRING - 1) < 25:
                return [data[1:]]  # one small frame, as most reads are
            if 2 < size == data[1] + 2 and data[0] == _BYTE_STRING + 24:
                return [data[2:]]
            if 258 < size <= self.max_frame and data[0] == _BYTE_STRING + 25:
                length = data[1] << 8 | data[2]
                if length == size - 3:
                    return [data[3:]]
        frames: list[bytes | LongFrame] = []
        if self.between and len(data) and data[0] in _LONG_HEADS:  # a view is not copied first
            start, end = self._frame_at(data, 0)
            if end - start > LONG_FRAME:
                self.between = False
                come = memoryview(data)[start:]
                data = data[start + self._go_on(LongFrame(end - start), come, frames) :]
        elif self._long is not None:
            data = data[self._go_on(self._long, memoryview(data), frames) :]
        elif self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return frames
            data = bytes(self._rest)
            self._rest.clear()
        data = bytes(data)

        position = 0 if self._opened else self._open(data)
        size = len(data)
        while position < size:
            short = data[position] - _BYTE_STRING
            if 0 <= short < 24:
                start = position + 1
                end = start + short
            else:
                start, end = self._frame_at(data, position)
            if end - start > LONG_FRAME:
                come = memoryview(data)[start:]
                position = start + self._go_on(LongFrame(end - start), come, frames)
                continue
            if end > size or start > size:
                self._need = end - position
                self._rest += data[position:] if position else data
                break
            frames.append(data[start:end])
            position = end
        self.between = self._opened and not self._rest and self._long is None
        return frames

    def _go_on(self, long: LongFrame, data: memoryview, frames: list[bytes | LongFrame]) -> int:
        """Put what has come into this frame. Returns how much was its."""
        taken = long.feed(data)
        if long.left:
            self._long = long
        else:
            self._long = None
            frames.append(long)
        return taken

    @property
    def unfinished(self) -> int:
        """How many bytes have come of what is not whole yet."""
        return len(self._rest) if self._long is None else self._long.size - self._long.left

    def end(self) -> None:
        """The stream has ended.

        Raises:
            RemoteProtocolError: in the middle of a frame.
        """
        if self.unfinished and self._opened:
            need = self._need if self._long is None else self._long.size
            raise RemoteProtocolError(
                f"the stream ended in mid-frame, after {self.unfinished} of {need} bytes"
            )

    def _open(self, data: bytes) -> int:
        """Where the hello's frame starts; the end of the data while that can't be told."""
        at = data.find(MAGIC)
        if at < 0:
            # The magic may have begun in the last two bytes.
            tail = next((n for n in (2, 1) if data.endswith(MAGIC[:n])), 0)
            if len(data) - tail > self._max_junk:
                raise self._not_a_peer(data)
            self._keep(data)
            return len(data)

        if at > self._max_junk:
            raise self._not_a_peer(data)
        self.junk = data[:at]
        head = data[at + 3 : at + 4]
        if not head:
            self._keep(data)
            return len(data)
        self._opened = True
        return at + 3

    def _keep(self, data: bytes) -> None:
        self.junk = data
        self._rest += data
        self._need = 1

    def _not_a_peer(self, data: bytes) -> RemoteProtocolError:
        self.junk = data
        return RemoteProtocolError(
            f"the stream does not open with a hello of this protocol but with {data[:60]!r}: "
            + (
                'the program at the other end speaks another dialect: give dialect="capnweb" here, '
                "or leave it out there"
                if data.startswith(b'["')
                else "the program at the other end is not a capnode peer, or something else (a "
                "print?) writes to its stream"
            )
        )

    def _frame_at(self, data: bytes | memoryview, position: int) -> tuple[int, int]:
        """Where the content of the frame starts and ends; both beyond the data while unknown."""
        head = data[position]
        width = _LENGTH_BYTES.get(head - _BYTE_STRING)
        if width is None:
            raise self._not_a_frame(head)
        start = position + 1 + width
        if start > len(data):
            return start, start
        length = int.from_bytes(data[position + 1 : start], "big")
        if length > self.max_frame:
            raise RemoteProtocolError(
                f"a frame of {length} bytes is over the limit of {self.max_frame} "
                "(Limits.max_frame, which our hello has said)"
            )
        return start, start + length

    def _not_a_frame(self, head: int) -> RemoteProtocolError:
        if head >> 5 == 4:
            return RemoteProtocolError("a chunk of an attachment, which no hello has offered")
        if head == 0x5F:
            return RemoteProtocolError("a frame of indefinite length")
        return RemoteProtocolError(
            f"byte 0x{head:02x} where a frame should start: the stream is out of step, or "
            "something else writes to it"
        )
