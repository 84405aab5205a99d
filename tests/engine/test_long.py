"""Long byte strings: they leave as they are, and arrive as if they had been short."""

from __future__ import annotations

import ctypes
import mmap
import tracemalloc
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capnode_py import CannotPass, Limits, RemoteProtocolError
from capnode_py._frames import frame_head
from capnode_py._long import LONG, LONG_FRAME, LongFrame, Pieces
from capnode_py._messages import CALL, PUSH, Bad, Hello
from capnode_py.codec.cbor import CborCodec
from capnode_py.testing import Wire

KIB = 1024
DATA = bytes(range(256)) * 1024  # 256 KiB
NO_LONGER = DATA[: LONG - 1]


def no_refs(value: Any) -> Any:
    raise CannotPass(f"no reference for {value!r}")


def a_codec() -> CborCodec:
    """One that has seen a hello."""
    codec = CborCodec(Limits())
    list(codec.feed(codec.hello(Hello(versions=[1]))))
    return codec


def come(stream: bytes, cut: int, *, views: bool = True) -> Iterator[list[Any]]:
    """The messages of a stream that is read in parts."""
    codec = a_codec()
    for start in range(0, len(stream), cut):
        part = stream[start : start + cut]
        # As a driver reads: into memory that is soon overwritten.
        buffer = bytearray(part)
        for item in codec.feed(memoryview(buffer) if views else part):
            buffer[:] = bytes(len(buffer))
            assert not isinstance(item, Hello)
            yield from codec.decode(item)[0]
    assert codec.unfinished == 0
    codec.end()


VALUES = [
    DATA,
    [DATA],
    [1, DATA, "a", DATA[1:], NO_LONGER],
    {"a": DATA, "b": {"c": [DATA, b"", -1, 1.5, None, True]}},
    {NO_LONGER, DATA, 1},
    "x" * 300_000,
    ["y" * 70_000, DATA],
    [list(range(70_000)), DATA],
    [[[[DATA]]], {"deep": [{"er": (DATA, DATA)}]}],
    [1 << 400_000, DATA],
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("cut", [997, 64 * KIB, 10**9])
def test_a_frame_with_long_strings_arrives_in_any_parts(value: Any, cut: int) -> None:
    codec = a_codec()
    small = codec.frame([codec.control(5, 1)])
    message = codec.resolve(7, value, no_refs)
    stream = bytes(small) + bytes(codec.frame([message, codec.control(5, 2)])) + bytes(small) * 2
    found = list(come(stream, cut))
    assert [word[:2] for word in found] == [[5, 1], [5, 7], [5, 2], [5, 1], [5, 1]]
    assert found[1][2] == plain(value)


@pytest.mark.parametrize("around", [0, 24, 256, 1 << 16])
@pytest.mark.parametrize("cut", [1, 10**9])
def test_frames_of_any_size_around_where_their_heads_grow(around: int, cut: int) -> None:
    codec = a_codec()
    for size in range(max(around - 16, 0), around + 8, 1 if cut > 1 or around < 1000 else 5):
        message = codec.resolve(7, DATA[:size], no_refs)
        one = bytes(codec.frame([message]))
        assert one == frame_head(len(message) + 1) + b"\x81" + bytes(message)
        assert list(come(one, cut)) == [[5, 7, DATA[:size]]]
        assert list(come(one * 2, cut)) == [[5, 7, DATA[:size]]] * 2
        call = codec.call(0, ("f",), [DATA[:size]], {}, no_refs)
        assert list(come(bytes(codec.frame([call])), cut)) == [[CALL, 0, ["f"], [DATA[:size]]]]


def plain(value: Any) -> Any:
    """As it arrives: tuples as lists."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_byte_by_byte() -> None:
    codec = a_codec()
    stream = bytes(codec.frame([codec.resolve(7, [DATA[:LONG_FRAME], 1], no_refs)]))
    for views in (False, True):
        assert list(come(stream, 1, views=views)) == [[5, 7, [DATA[:LONG_FRAME], 1]]]


def test_a_long_string_leaves_as_the_very_object_that_was_passed() -> None:
    codec = a_codec()
    view = memoryview(DATA)[1:-1]
    call = codec.call(0, ("f",), [1, DATA, {"a": [view]}], {"key": DATA}, no_refs)
    assert isinstance(call, Pieces)
    frame = codec.frame([codec.control(5, 1), call])
    assert isinstance(frame, Pieces)
    whole = [piece for piece in frame.pieces if len(piece) >= LONG]
    assert whole[0] is whole[2] is DATA
    assert isinstance(whole[1], memoryview)
    assert whole[1].obj is DATA
    assert len(frame) == len(bytes(frame))
    (_, found) = come(bytes(frame), 10**9)
    assert found == [CALL, 0, ["f"], [1, DATA, {"a": [DATA[1:-1]]}], {"key": DATA}]


def test_a_long_call_can_become_a_push() -> None:
    codec = a_codec()
    push = codec.word(codec.call(0, ("f",), [DATA], {}, no_refs), PUSH)
    assert list(come(bytes(codec.frame([push])), 10**9)) == [[PUSH, 0, ["f"], [DATA]]]


def test_what_is_long_on_the_wire_is_one_object_here() -> None:
    """The content of the frame is not kept beside it."""
    codec = a_codec()
    (item,) = codec.feed(bytes(codec.frame([codec.resolve(1, [DATA, DATA[:LONG]], no_refs)])))
    assert isinstance(item, LongFrame)
    assert item.strings == [DATA, DATA[:LONG]]
    assert len(item.rest()) < 100


def test_what_is_long_is_copied_once_on_its_way_into_its_object() -> None:
    codec = a_codec()
    frame = bytes(codec.frame([codec.resolve(1, DATA, no_refs)]))
    tracemalloc.start()
    try:
        (item,) = codec.feed(memoryview(frame))
        assert tracemalloc.get_traced_memory()[1] < 1.2 * len(DATA)
    finally:
        tracemalloc.stop()
    assert isinstance(item, LongFrame)
    assert item.strings == [DATA]


def test_nothing_is_allocated_for_a_size_that_is_only_claimed() -> None:
    codec = a_codec()
    head = frame_head(128 << 20) + b"\x81\x83\x05\x01\x5a\x07\x00\x00\x00"
    tracemalloc.start()
    try:
        for part in (head, bytes(1000), bytes(1000)):
            assert list(codec.feed(part)) == []
        assert tracemalloc.get_traced_memory()[1] < 100 * KIB
    finally:
        tracemalloc.stop()
    assert codec.unfinished == len(head) - 5 + 2000


def test_a_frame_of_many_short_items_is_not_searched_to_its_end() -> None:
    codec = a_codec()
    (item,) = codec.feed(bytes(codec.frame([codec.resolve(1, [[0] * 200_000, DATA], no_refs)])))
    assert isinstance(item, LongFrame)
    assert item.strings == []
    assert codec.decode(item)[0][0][2][1] == DATA


def test_a_long_string_at_the_last_level_passes(wire: Wire) -> None:
    near, far = wire.link(far_index={"echo": lambda value: value})
    value: Any = DATA
    for _ in range(63):
        value = [value]
    assert near.get(far.other.index.echo(value)) == value


@pytest.mark.parametrize("number", [0, 1])
def test_the_other_side_cannot_refer_to_a_long_string(number: int) -> None:
    """Else a small frame would become a large value, when it is passed on."""
    codec = a_codec()
    long = b"\x5a" + len(DATA).to_bytes(4, "big") + DATA
    (before,) = codec.feed(_framed(b"\x81\x83\x05\x01\x82" + long + b"\x00"))
    assert isinstance(before, LongFrame)
    assert codec.decode(before)[0] == [[5, 1, [DATA, 0]]]
    old_tag = b"\xdb" + before.tag.to_bytes(8, "big")
    guess = b"\xdb\xff" + bytes(7)
    for tag in (old_tag, guess):
        forged = b"\x81\x83\x05\x01\x82" + long + tag + bytes([number])
        (item,) = codec.feed(_framed(forged))
        assert isinstance(item, LongFrame)
        ((_, _, (first, second)),), marked = codec.decode(item)
        assert first == DATA
        assert marked
        assert isinstance(second, Bad)


def _framed(content: bytes) -> bytes:
    return frame_head(len(content)) + content


def test_a_hello_is_no_long_frame() -> None:
    codec = CborCodec(Limits())
    hello = b"\xd9\xd9\xf7" + frame_head(100_000) + bytes(100_000)
    with pytest.raises(RemoteProtocolError, match="a hello of 100000 bytes"):
        list(codec.feed(hello))


def test_the_end_of_the_stream_in_a_long_frame_is_told() -> None:
    codec = a_codec()
    list(codec.feed(_framed(bytes(100_000))[:-1]))
    with pytest.raises(RemoteProtocolError, match="after 99999 of 100000 bytes"):
        codec.end()


ITEMS = st.sampled_from(
    [
        b"\x80",
        b"\x81",
        b"\x83",
        b"\x05",
        b"\x18",
        b"\x19\x01",
        b"\xfb\x00",
        b"\xf6",
        b"\x43abc",
        b"\x43ab",
        b"\x62\xff\xff",
        b"\x5f",
        b"\x7f",
        b"\xff",
        b"\x1c",
        b"\xc2",
        b"\xd9\xd9\xf7",
        b"\xa1\x61a",
        b"\x5a\x00\x01\x00\x00" + bytes(1 << 16),
        b"\x5a\x00\x01\x00\x00" + bytes((1 << 16) - 3),
        b"\x7a\x00\x01\x00\x00" + bytes(1 << 16),
        b"\x5b\x00\x00\x00\x00\x00\x01\x00\x01" + bytes((1 << 16) + 1),
        b"\x5b" + b"\xff" * 8,
        b"\x5a\xff\xff\xff\xff",
    ]
)


@given(st.lists(ITEMS, max_size=12), st.integers(3_000, 1 << 18))
@settings(max_examples=100, deadline=None)
def test_a_long_frame_means_what_it_would_mean_if_it_were_short(
    items: list[bytes], cut: int
) -> None:
    """Whatever bytes it holds."""
    content = b"\x81\x83\x05\x01" + b"".join(items)
    content += b"\x5a\x00\x01\x00\x00" + bytes(1 << 16)
    codec = a_codec()
    stream = _framed(content)
    whole = outcome(codec, content)
    frames = [
        frame
        for start in range(0, len(stream), cut)
        for frame in codec.feed(memoryview(stream)[start : start + cut])
    ]
    assert [type(frame) for frame in frames] == [LongFrame]
    assert outcome(codec, frames[0]) == whole


def outcome(codec: CborCodec, frame: Any) -> Any:
    try:
        return codec.decode(frame)
    except RemoteProtocolError:
        return None


# Buffers.


def some_map() -> mmap.mmap:
    area = mmap.mmap(-1, 100)
    area[:] = b"x" * 100
    return area


BUFFERS: list[tuple[Any, bytes]] = [
    (bytearray(b"abc"), b"abc"),
    (bytearray(DATA), DATA),
    (memoryview(b"abc"), b"abc"),
    (memoryview(bytearray(b"abc"))[::-1], b"cba"),
    (memoryview(DATA)[::2], DATA[::2]),
    (memoryview(array("I", [1, 2])), array("I", [1, 2]).tobytes()),
    (array("d", [1.5, 2.5]), array("d", [1.5, 2.5]).tobytes()),
    (array("B", DATA), DATA),
    (memoryview(DATA).cast("I", (256, 256)), DATA),
    ((ctypes.c_ubyte * 3)(1, 2, 3), b"\1\2\3"),
    (some_map(), b"x" * 100),
    (memoryview(b""), b""),
]


@pytest.mark.parametrize(("buffer", "expected"), BUFFERS, ids=range(len(BUFFERS)))
def test_buffers_pass_as_bytes(buffer: Any, expected: bytes) -> None:
    codec = a_codec()
    message = codec.resolve(1, {"a": [buffer]}, no_refs)
    assert list(come(bytes(codec.frame([message])), 10**9)) == [[5, 1, {"a": [expected]}]]


@pytest.mark.parametrize("value", [ctypes.c_int(1), (ctypes.c_void_p * 2)()])
def test_what_is_no_array_of_numbers_does_not(value: Any) -> None:
    with pytest.raises(CannotPass):
        a_codec().resolve(1, [value], no_refs)


@pytest.mark.parametrize("size", [100, 1 << 20])
@pytest.mark.parametrize("of", [bytearray, lambda size: memoryview(bytearray(size))])
def test_a_buffer_that_changes_after_the_call_was_sent_as_it_was(of: Any, size: int) -> None:
    codec = a_codec()
    buffer = of(size)
    frame = codec.frame([codec.resolve(1, buffer, no_refs)])
    buffer[:] = b"x" * size
    assert list(come(bytes(frame), 10**9)) == [[5, 1, bytes(size)]]
