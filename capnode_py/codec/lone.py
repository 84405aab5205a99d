"""A call or an answer that has a frame to itself, and no long one, without the general codec.

Most of what a caller that waits sends and hears are these two. What the general way costs is its
generality: a decoder that is set up for each frame, a walk that may meet anything. Whatever is not
just what is looked for here, in its shortest form, is left to that way, which decides what it is:
nothing is refused here, nothing is accepted that would not be accepted there, and what is written
is what would be written there. Tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from struct import error as StructError  # noqa: N812 - as the class that it is
from types import FunctionType
from typing import Any

from .._errors import CannotPass, LimitExceeded
from .._frames import Cutter, frame_head
from .._messages import CALL, RELEASE, RESOLVE, UNUSUAL, Mine, Path

LONGEST = 64 * 1024 - 4
"""The bytes of a frame, at the most: one that comes in one read of a driver, with its head. In it
no byte string is long enough to leave without a copy (`_long.py`)."""

_FRAME, _LONG_FRAME = 0x40, 0x58  # a byte string of less than 24 bytes, and of less than 256
_LONGER_FRAME = 0x59  # of less than 65536
_CALL = bytes((0x81, 0x84, CALL))  # a frame of one message, which has four fields
_RESOLVE = bytes((0x81, 0x83, RESOLVE))
_RESOLVE_AND = bytes((0x82, 0x83, RESOLVE))  # a frame of two messages, of which this is the first
_WORDS = {_CALL: CALL, _RESOLVE: RESOLVE, _RESOLVE_AND: RELEASE}
_RELEASE = bytes((0x83, RELEASE))
_RELEASE_ONE = _RELEASE + b"\x81"  # of one answer, and what follows
_PAIR, _NO_PATH = b"\x82", b"\x80"
_ONE_PAIR = b"\x81\x82"  # a list of one pair
_BYTES, _TEXT, _LIST, _TAG = 0x40, 0x60, 0x80, 0xD9
_MINE = b"\xc0\xde\x82\x00"  # the rest of the tag of references, and of [mine, id]
_SHORT = 24  # a length or an int below this stands in the head itself
_SMALL = 256

_LEFT = (CannotPass, LimitExceeded, ValueError)  # raised for what is left to the general way
_ONLY_INTS = {int}

_HEADS_NOTED = 1000
Head = tuple[int, list[str], int]
"""Of a call: its target, its path, and how many arguments follow."""
_ARGS_AT = _TEXT - 7
"""Where these begin, behind one name on a small id: the head of the name, less this."""

_HEADS = [bytes((_FRAME + n,) if n < _SHORT else (_LONG_FRAME, n)) for n in range(_SMALL)]
_LISTS = [bytes((_LIST + n,)) for n in range(_SHORT)]
_INTS = [bytes((n,) if n < _SHORT else (0x18, n)) for n in range(_SMALL)]
_SHORT_FRAMES = bytes((0, *(_FRAME + n for n in range(_SHORT))))
"""What a frame of so many bytes begins with, if that is one byte."""
_IDS = {
    **{n: _INTS[n] for n in range(_SMALL)},
    **{~n: bytes((0x20 + n,) if n < _SHORT else (0x38, n)) for n in range(_SMALL)},
}
_REFERENCE = b"\xd9" + _MINE
# The heads of an id of more than one byte: of how many, and what to do for a negative one.
_TARGETS = {0x18 + n: (0, 1 << n) for n in range(4)} | {0x38 + n: (-1, 1 << n) for n in range(4)}
_TARGETS |= {0x20 + n: (~n, 0) for n in range(_SHORT)}
_ONE_BYTE: Mapping[int, Any] = {
    **{0x20 + n: -1 - n for n in range(_SHORT)},
    0xF4: False,
    0xF5: True,
    0xF6: None,
}
"""The other values that are one byte, and immutable."""
_STRINGS = {0x58: (1, False), 0x79: (2, True)}
"""Heads of a byte string and a text: the bytes of the length, and whether it is a text."""
_DOUBLE = 0xFB
_double_at = Struct(">d").unpack_from
# A short answer to an id of four bytes, or of two, as nearly all are. To write: how, the first byte
# if the value took none, and the word. To read: how, with one byte of the value; the word; and the
# size of the frame, if that is all of it.
_WRITE_ANSWER = (
    (Struct(">B4sI").pack, _FRAME + 8, _RESOLVE + b"\x1a"),
    (Struct(">B4sH").pack, _FRAME + 6, _RESOLVE + b"\x19"),
)
_READ_ANSWER = (
    (Struct(">B4sIB").unpack_from, _RESOLVE + b"\x1a", 10),
    (Struct(">B4sHB").unpack_from, _RESOLVE + b"\x19", 8),
)
_SHORT_VALUE = _SHORT - 8  # with the longer of these heads, the frame is short


class Lone:
    """See the module.

    Args:
        paths: what has been encoded of paths, which the general way notes.
        leaves: how values of these types are encoded; LimitExceeded for what is too long for here.
        value: decodes one value in the general way; UNUSUAL if it is none, or holds references.
        cutter: of the stream; within a frame, nothing comes alone.
    """

    def __init__(
        self,
        paths: Mapping[Path, bytes],
        leaves: Mapping[type, Callable[[Any], bytes]],
        value: Callable[[bytes], Any],
        cutter: Cutter,
    ) -> None:
        self._paths = paths
        self._leaves = leaves
        self._value = value
        self._cutter = cutter
        self._heads: dict[bytes, Head] = {}
        self._starts: dict[tuple[int, Path, int], bytes] = {}
        self._longest = _SMALL - 1

    def limit(self, max_frame: int, /) -> None:
        """What the other side takes: 256 bytes at least, if anything is to be written here."""
        self._longest = min(LONGEST, max_frame)

    def word(self, data: bytes, /) -> int | None:
        """CALL or RESOLVE if `data` begins like the frame of one, RELEASE if that has something
        behind it; a look, and no more."""
        return _WORDS.get(data[1:4]) or _WORDS.get(data[2:5]) or _WORDS.get(data[3:6])

    def write_call(
        self,
        target: int,
        path: Path,
        args: Sequence[Any],
        to_ref: Callable[[Any], Any],
        behind: int = 0,
        /,
    ) -> bytes | None:
        """The frame of a call, or only the message, if others stand before it; None if it is long,
        or has other arguments than leaves and plain functions: `to_ref` has exported some of these,
        maybe."""
        frame: bytes | None
        if target > 0 or not path:  # an answer, or a callback: used once, mostly, not to be noted
            at = _IDS.get(target) or _long_id(target)
            steps = self._paths.get(path) if path else _NO_PATH
            if not at or steps is None or len(args) >= _SHORT:
                return None
            frame = _CALL + at + steps + _LISTS[len(args)]
        else:
            frame = self._starts.get((target, path, len(args)))
            if frame is None:
                frame = self._start(target, path, len(args))
                if frame is None:
                    return None
        for value in args:
            kind = type(value)
            if kind is int and (raw := _IDS.get(value)):
                frame += raw
            else:
                leaf = self._leaves.get(kind)
                try:
                    if leaf is not None:
                        frame += leaf(value)
                    elif kind is FunctionType:
                        id, cap_id = to_ref(value)
                        at = _IDS.get(id) or _long_id(id)
                        if cap_id is not None or not at or id >= 0:
                            return None
                        frame += _REFERENCE + at
                    else:
                        return None
                except _LEFT:
                    return None
        size = len(frame)
        if behind:
            return frame[1:] if size <= self._longest else None
        if size < _SMALL:
            return _HEADS[size] + frame
        return frame_head(size) + frame if size <= self._longest else None

    def _start(self, target: int, path: Path, count: int) -> bytes | None:
        """What such a call begins with, up to its arguments; None if that is not known yet."""
        steps = self._paths.get(path)
        at = _IDS.get(target) or _long_id(target)
        if not at or steps is None or count >= _SHORT:
            return None
        if len(self._starts) == _HEADS_NOTED:
            self._starts.clear()
        self._starts[target, path, count] = start = _CALL + at + steps + _LISTS[count]
        return start

    def _leaf(self, value: Any) -> bytes | None:
        """A value that is a leaf; None if it is none, or one for the general way."""
        leaf = self._leaves.get(type(value))
        try:
            return None if leaf is None else leaf(value)
        except _LEFT:
            return None

    def write_answer(self, id: int, value: Any, /) -> bytes | None:
        """The frame of an answer; likewise."""
        raw = _INTS[value] if type(value) is int and 0 <= value < _SMALL else self._leaf(value)
        if raw is None:
            return None
        size = len(raw)
        if size < _SHORT_VALUE and 0xFF < id < 0x1_0000_0000:
            pack, first, word = _WRITE_ANSWER[id < 0x10000]
            return pack(first + size, word, id) + raw
        frame = _answer_head(id) + raw
        size = len(frame)
        if size < _SMALL:
            return _HEADS[size] + frame
        return frame_head(size) + frame if size <= self._longest else None

    def read_call(self, data: bytes, /) -> tuple[int, list[str], list[Any], bool] | None:
        """Its target, path and arguments, and whether objects (`Mine`) are among these, if `data`
        is one frame with a call by one name or none, whose arguments are leaves and objects, and
        nothing else."""
        size = len(data)
        try:
            start = 1
            if data[0] != size + (_FRAME - 1) or size > _SHORT:
                start = 2
                if data[0] != _LONG_FRAME or data[1] != size - 2 or size - 2 < _SHORT:
                    start = 3
                    if not self._is_longer(data, size):
                        return None
            # Where the head of most calls ends, by one name on a small id. No head is the beginning
            # of another, so what is found here is this one, whatever `data` is.
            at = start + data[start + 5] - _ARGS_AT
            head = self._heads.get(data[start:at])
            if head is None:
                fresh = _read_callback(data, start) or self._read_head(data, start)
                if fresh is None:
                    return None
                head, at = fresh

            target, path, count = head
            objects = False
            args: list[Any] = []
            for _ in range(count):
                value: Any = data[at]
                at += 1
                if value >= _SHORT:
                    if value == _TAG:  # a callback, mostly
                        value, at = _read_mine(data, at)
                        args.append(value)
                        objects = True
                        continue
                    end = at + value - _TEXT
                    if at <= end < at + _SHORT:
                        value = data[at:end].decode()
                        at = end
                    else:
                        value, at = _read_value(data, at, value)
                args.append(value)
        except (IndexError, UnicodeDecodeError, KeyError):
            return None
        # One by no name and without arguments may be found above as all of what may be a head.
        whole = at == size or (at > size and not count)
        return (target, path, args, objects) if whole and self._cutter.between else None

    def _read_head(self, data: bytes, start: int) -> tuple[Head, int] | None:
        """And where the arguments begin."""
        at = start + len(_CALL)
        if data[start:at] != _CALL:
            return None
        target = data[at]
        at += 1
        if target >= _SHORT:
            width = _TARGETS.get(target)
            if width is None:
                return None
            small, size = width
            target = small ^ int.from_bytes(data[at : at + size])
            at += size
        path = []
        end = at + 1
        if data[at] != _LIST:
            name_at = at + 2
            end = name_at + data[at + 1] - _TEXT
            if data[at] != _LIST + 1 or not name_at <= end < name_at + _SHORT:
                return None
            path.append(data[name_at:end].decode())

        count = data[end] - _LIST
        end += 1
        if not 0 <= count < _SHORT:
            return None
        if target < 0 and not path:  # a callback: as in `_read_callback`
            return (target, path, count), end
        if len(self._heads) == _HEADS_NOTED:  # the other side chooses them
            self._heads.clear()
        self._heads[data[start:end]] = head = target, path, count
        return head, end

    def read_answer(self, data: bytes, id: int, /) -> Any:
        """The value, if `data` is one frame with the answer to `id`, and nothing else; else
        UNUSUAL."""
        size = len(data)
        at = 0
        if size <= _SHORT:
            unpack, expected, least = _READ_ANSWER[id < 0x10000]
            try:
                first, word, number, value = unpack(data)
                if word == expected and number == id and first == _SHORT_FRAMES[size]:
                    at = least - 1
            except StructError:  # it is shorter, since the id is
                pass
        at = at or self._answer_at(data, size, id)
        if not at:
            return UNUSUAL
        if not self._cutter.between:
            return UNUSUAL
        if at == size - 1 and (value := data[at]) < _SHORT:
            return value
        try:
            value, end = _read_leaf(data, at)
        except (IndexError, UnicodeDecodeError, KeyError):
            end = 0
        return value if end == size else self._value(data[at:])

    def _answer_at(self, data: bytes, size: int, id: int) -> int:
        """Where its value begins, if `data` is one frame that begins as the answer to `id`; else
        0."""
        head = _answer_head(id)
        at = 1 if size <= _SHORT else 2 if size < _SMALL + 2 else 3
        whole = data[:at] == _HEADS[size - at] if at < 3 else self._is_longer(data, size)
        return at + len(head) if whole and data.startswith(head, at) else 0

    def read_answer_and(self, data: bytes, id: int, /) -> tuple[Any, list[int], list[int]] | None:
        """Its value, and what is released behind it: answers, and a reference and how often, if
        `data` is one frame with the answer to `id`, and a release of one reference at least."""
        size = len(data)
        at = 1 if size <= _SHORT else 2 if size < _SMALL + 2 else 3
        if not data.startswith(_RESOLVE_AND, at) or not self._cutter.between:
            return None
        head = _answer_head(id)[1:]
        whole = data[:at] == _HEADS[size - at] if at < 3 else self._is_longer(data, size)
        if not whole or not data.startswith(head, at + 1):
            return None
        both = self._value(data[at:])  # a list of two lists
        if both is UNUSUAL:
            return None
        (_, _, value), release = both
        if type(release) is not list or len(release) != 3:
            return None
        word, answers, pairs = release
        if type(word) is not int or word != RELEASE or type(answers) is not list:
            return None
        if type(pairs) is not list or len(pairs) != 1 or type(pairs[0]) is not list:
            return None
        (pair,) = pairs
        if len(pair) != 2 or set(map(type, answers + pair)) != _ONLY_INTS:
            return None
        return value, answers, pair

    def read_answer_freeing(self, data: bytes, id: int, answer: int, lent: int, /) -> Any:
        """The value, if `data` is one frame with the answer to `id` and a release of these two, as
        it is behind a callback that was called once; else UNUSUAL. What this saves is to read what
        is known: half of the way."""
        tail = (
            _RELEASE_ONE
            + (_IDS.get(answer) or _answer_id(answer))
            + _ONE_PAIR
            + (_IDS.get(lent) or _long_id(lent))
            + b"\x01"
        )
        size = len(data)
        if not data.endswith(tail) or size >= _SMALL or not self._cutter.between:
            return UNUSUAL
        at = 1 if size <= _SHORT else 2
        head = b"\x82" + _answer_head(id)[1:]
        if data[:at] != _HEADS[size - at] or not data.startswith(head, at):
            return UNUSUAL
        at += len(head)
        end = size - len(tail)
        if at == end - 1 and (value := data[at]) < _SHORT:
            return value
        try:
            value, at = _read_leaf(data, at)
        except (IndexError, UnicodeDecodeError, KeyError):
            return UNUSUAL
        return value if at == end else UNUSUAL

    def write_answer_and(
        self, id: int, value: Any, answers: Sequence[int], references: Mapping[int, int], /
    ) -> bytes | None:
        """The frame of an answer with a release behind it; None if that is long."""
        raw = _INTS[value] if type(value) is int and 0 <= value < _SMALL else self._leaf(value)
        if raw is None:
            return None
        if len(answers) >= _SHORT or len(references) >= _SHORT:
            return None
        frame = b"\x82" + _answer_head(id)[1:] + raw + _RELEASE + _LISTS[len(answers)]
        for answer in answers:
            frame += _IDS.get(answer) or _answer_id(answer)
        frame += _LISTS[len(references)]
        for reference, n in references.items():
            at = _IDS.get(reference) or _long_id(reference)
            if not at or n >= _SMALL:
                return None
            frame += _PAIR + at + _INTS[n]
        size = len(frame)
        return _HEADS[size] + frame if size < _SMALL else None

    def _is_longer(self, data: bytes, size: int) -> bool:
        """Has this the head of one frame of 256 bytes or more, which is whole?"""
        return (
            _SMALL + 2 < size <= self._cutter.max_frame
            and data[0] == _LONGER_FRAME
            and data[1] << 8 | data[2] == size - 3
        )

    def message(self, frame: bytes, /) -> bytes:
        """The one that is alone in a frame which was written here."""
        size = len(frame)
        return frame[2 if size <= _SHORT else 3 if size < _SMALL + 2 else 4 :]


def _long_id(id: int) -> bytes:
    """One that is not among `_IDS`; nothing if it is too long."""
    if -0x10000 <= id < 0:
        return b"\x39" + (~id).to_bytes(2)
    if 0 <= id < 0x10000:
        return b"\x19" + id.to_bytes(2)
    if not -0x1_0000_0000 <= id < 0x1_0000_0000:
        return b""
    return b"\x3a" + (~id).to_bytes(4) if id < 0 else b"\x1a" + id.to_bytes(4)


def _answer_head(id: int) -> bytes:
    """What an answer begins with."""
    if id < 0x100:
        return _RESOLVE + _INTS[id]
    return _RESOLVE + _answer_id(id)


def _answer_id(id: int) -> bytes:
    """One of 256 or more."""
    if id < 0x10000:
        return b"\x19" + id.to_bytes(2)
    return b"\x1a" + id.to_bytes(4) if id < 1 << 32 else b"\x1b" + id.to_bytes(8)


def _read_callback(data: bytes, start: int) -> tuple[Head, int] | None:
    """The head of a call of a callback, if its id takes two bytes, and where the arguments begin.
    Each is called once, mostly, so there is nothing to be noted."""
    if data[start + 3] == 0x39 and data[start + 6] == _LIST and data.startswith(_CALL, start):
        count = data[start + 7] - _LIST
        if 0 <= count < _SHORT:
            return (~(data[start + 4] << 8 | data[start + 5]), [], count), start + 8
    return None


def _read_mine(data: bytes, at: int) -> tuple[Mine, int]:
    """A reference to an object, whose tag begins before `at`.

    Raises:
        IndexError, KeyError: it is another, or another tag.
    """
    if not data.startswith(_MINE, at):
        raise KeyError(at)
    at += len(_MINE)
    small, size = _TARGETS[data[at]]
    at += 1
    if not size:
        return Mine(small), at
    if at + size > len(data):
        raise IndexError(at)
    return Mine(small ^ int.from_bytes(data[at : at + size])), at + size


def _read_leaf(data: bytes, at: int) -> tuple[Any, int]:
    """A small int or text, or one of those few that `_read_value` knows, which begins at `at`.

    Raises:
        IndexError, UnicodeDecodeError, KeyError: it is none of these.
    """
    head = data[at]
    at += 1
    if head < _SHORT:
        return head, at
    end = at + head - _TEXT
    if at <= end < at + _SHORT:
        return data[at:end].decode(), end
    return _read_value(data, at, head)


def _read_value(data: bytes, at: int, head: int) -> tuple[Any, int]:
    """A value of these with this head; what stands behind the head starts at `at`.

    Raises:
        IndexError, UnicodeDecodeError, KeyError: it is none of these.
    """
    if head == 0x18:
        return data[at], at + 1
    if head == 0x19:
        return data[at] << 8 | data[at + 1], at + 2
    if head == 0x78:
        end = at + 1 + data[at]
        return data[at + 1 : end].decode(), end
    if head == 0x59:  # a large value, mostly
        start = at + 2
        end = start + (data[at] << 8 | data[at + 1])
        return data[start:end], end
    if head in _ONE_BYTE:
        return _ONE_BYTE[head], at
    if _BYTES <= head < _BYTES + _SHORT:
        end = at + head - _BYTES
        return data[at:end], end
    if head in _STRINGS:
        size, is_text = _STRINGS[head]
        start = at + size
        end = start + int.from_bytes(data[at:start])
        raw = data[start:end]  # less than that, if the frame ends before: then `end` is beyond it
        return raw.decode() if is_text else raw, end
    if head == _DOUBLE:
        end = at + 8
        if end > len(data):
            raise IndexError(at)
        return _double_at(data, at)[0], end
    small, size = _TARGETS[head]
    end = at + size
    return small ^ int.from_bytes(data[at:end]), end
