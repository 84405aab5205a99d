"""`codec.lone` writes what the general way writes, and reads nothing otherwise than that does."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capnode_py import CannotPass, Limits, RemoteProtocolError, Target
from capnode_py._frames import frame_head
from capnode_py._messages import (
    CALL,
    REJECT,
    RELEASE,
    RESOLVE,
    UNUSUAL,
    Hello,
    Mine,
    Promised,
    Yours,
)
from capnode_py.codec.cbor import CborCodec
from capnode_py.codec.lone import LONGEST
from capnode_py.driver._descriptor import SMALL_READ
from capnode_py.testing import Wire


def _near(n: int) -> Any:
    return st.sampled_from([n, n - 1, -n, -n - 1, -n + 1])


EDGES = [n + d for n in (24, 256, LONGEST + 1, 65536) for d in (-4, -3, -2, -1, 0, 1)]
"""Where heads grow, and what is written alone ends."""


def _opened(limits: Limits | None = None) -> CborCodec:
    """A codec that has read a hello, and reads frames."""
    codec = CborCodec(limits or Limits())
    assert len(list(codec.feed(codec.hello(Hello(versions=(1,), session_id=b"x"))))) == 1
    return codec


CODEC = _opened()
LONE = CODEC.lone
LONE.limit(1 << 20)

small = st.one_of(
    st.integers(-70000, 70000),
    st.sampled_from([1 << 31, 1 << 32, (1 << 64) - 1, 1 << 64]).flatmap(_near),
    st.booleans(),
    st.none(),
    st.text(max_size=30),
    st.floats(),
    st.binary(max_size=30),
)
sizes = st.one_of(st.integers(0, 3000), st.sampled_from(EDGES), st.integers(0, 70_000))
others = st.one_of(
    small,
    sizes.map(bytes),
    sizes.map(bytearray),
    sizes.map(lambda size: memoryview(bytes(size))),
    sizes.map(lambda size: "\N{SNOWMAN}" * (size // 3) + "x" * (size % 3)),
    st.lists(small, max_size=3),
    st.dictionaries(st.text(max_size=3), small, max_size=3),
)
ids = st.one_of(
    st.integers(-70000, 70000),
    st.sampled_from([23, 24, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32]),
)
paths = st.lists(st.text(max_size=30), max_size=2).map(tuple)


def _frame(target: int, path: tuple[str, ...], args: Any) -> bytes:
    return _framed(CODEC.call(target, path, args, {}, _nothing))


def _framed(*messages: Any) -> bytes:
    return bytes(CODEC.frame(list(messages)))


def _messages(data: bytes) -> tuple[list[list[Any]], bool]:
    """What the general way reads."""
    frames: list[Any] = list(_opened().feed(data))
    assert len(frames) == 1
    return CODEC.decode(frames[0])


def _nothing(value: Any) -> Any:
    raise CannotPass(f"{value!r} is not for this test")


@settings(deadline=None)
@given(ids, paths, st.lists(others, max_size=26).map(tuple))
def test_a_call_is_written_and_read_as_in_the_general_way(target, path, args) -> None:
    expected = _frame(target, path, args)
    for _ in range(2):  # also with what was noted the first time
        written = LONE.write_call(target, path, args, _nothing)
        assert written in (None, expected)
        message = CODEC.call(target, path, args, {}, _nothing)
        assert LONE.write_call(target, path, args, _nothing, 1) in (None, message)
        read = LONE.read_call(expected)
        ((word, *fields),), _ = _messages(expected)
        assert word == CALL
        assert read is None or repr([*read[:3], read[3]]) == repr([*fields, False])


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(-(1 << 33), -1), small), max_size=5), paths)
def test_callbacks_are_written_as_in_the_general_way(drawn, path) -> None:
    references = {_callback(): id for id in drawn if type(id) is int and id < -2}
    args = (*references, *drawn)

    def to_ref(value: Any) -> Mine:
        return Mine(references[value])

    expected = _framed(CODEC.call(-1, path, args, {}, to_ref))
    written = LONE.write_call(-1, path, args, to_ref)
    assert written in (None, expected)


def _callback() -> Any:
    return lambda: None


@pytest.mark.parametrize("id", [-1, -24, -25, -256, -257, -65536, -65537, -(1 << 32)])
def test_a_callback_is_written_and_read_alone(id: int) -> None:
    expected = _framed(CODEC.call(0, ("add",), (1, _callback), {}, lambda _: Mine(id)))
    assert LONE.write_call(0, ("add",), (1, _callback), lambda _: Mine(id)) == expected
    assert LONE.read_call(expected) == (0, ["add"], [1, Mine(id)], True)
    called = _frame(id, (), (1,))
    assert LONE.write_call(id, (), (1,), _nothing) == called
    assert LONE.read_call(called) == (id, [], [1], False)


@pytest.mark.parametrize("reference", [Mine(-1, "a cap_id"), Mine(0), Mine(-(1 << 32) - 1)])
def test_a_function_that_is_more_than_a_callback_is_not_written_alone(reference: Mine) -> None:
    assert LONE.write_call(0, ("add",), (_callback,), lambda _: reference) is None


USUAL_ARGS = [
    (),
    (1, -1, 300, -300, 70_000, 1 << 40, -(1 << 40)),
    ("text", "x" * 50, None, True, False, 24),
    (1.5, b"", b"bytes", b"x" * 50, b"y" * 1024, 1),
    ("z" * 1024, b"y" * 30_000, 1),
]


@pytest.mark.parametrize("args", USUAL_ARGS)
@pytest.mark.parametrize("target", [0, 23, 200, 3000, 70_000, -1, -200, -3000])
def test_the_usual_call_is_written_and_read_alone(target: int, args: tuple[Any, ...]) -> None:
    for path in (("name",), ()):
        frame = _frame(target, path, args)
        assert LONE.write_call(target, path, args, _nothing) == frame
        message = LONE.write_call(target, path, args, _nothing, 1)
        assert message is not None
        assert LONE.message(frame) == message
        assert LONE.read_call(frame) == (target, list(path), list(args), False)


@settings(deadline=None)
@given(ids.filter(lambda id: id > 0), others)
def test_an_answer_is_written_and_read_as_in_the_general_way(id, value) -> None:
    expected = _framed(CODEC.resolve(id, value, _nothing))
    assert LONE.write_answer(id, value) in (None, expected)
    read = LONE.read_answer(expected, id)
    ((word, told, decoded),), _ = _messages(expected)
    assert (word, told) == (RESOLVE, id)
    if len(expected) <= 65535 + 3:
        assert repr(read) == repr(decoded)
    else:
        assert read is UNUSUAL
    assert LONE.read_answer(expected, id + 1) is UNUSUAL


@pytest.mark.parametrize("id", [300, 70_000, (1 << 32) - 1, 1 << 32])
@pytest.mark.parametrize("value", [5, "text"])
def test_an_answer_to_any_id_is_written_and_read_alone(id: int, value: Any) -> None:
    frame = _framed(CODEC.resolve(id, value, _nothing))
    assert LONE.write_answer(id, value) == frame
    assert LONE.read_answer(frame, id) == value


@pytest.mark.parametrize("id", [300, 70_000])
def test_what_only_looks_like_an_answer_is_none(id: int) -> None:
    frame = _framed(CODEC.resolve(id, 5, _nothing))
    at = frame.index(bytes((RESOLVE,)), 1)
    for word in (REJECT, CALL):
        assert LONE.read_answer(frame[:at] + bytes((word,)) + frame[at + 1 :], id) is UNUSUAL
    for size in (-1, 1):  # what the head says is not what is there
        assert LONE.read_answer(bytes((frame[0] + size,)) + frame[1:], id) is UNUSUAL


@pytest.mark.parametrize(
    "head",
    [b"\x81\x84\x01\x01\x81\x63add", b"\x81\x84\x01\x39\x01\x00\x80"],
    ids=["by name", "of a callback"],
)
@pytest.mark.parametrize(
    "arguments",
    [b"\x60", b"\x05", b"\xa0", b"\x98\x18" + bytes(24), b"\x82\x01\x65ab"],
    ids=["text", "int", "map", "many", "cut short"],
)
def test_arguments_that_are_no_short_list_are_for_the_general_way(
    head: bytes, arguments: bytes
) -> None:
    content = head + arguments
    for _ in range(2):  # also with what was noted the first time
        assert LONE.read_call(frame_head(len(content)) + content) is None
        assert LONE.read_call(frame_head(len(head) + 1) + head + b"\x80") is not None


@settings(deadline=None)
@given(
    ids.filter(lambda id: id > 0),
    others,
    st.lists(ids, max_size=26),
    st.lists(st.tuples(ids, ids), max_size=2),
)
def test_an_answer_with_a_release_is_read_as_in_the_general_way(id, value, answers, pairs) -> None:
    messages = [CODEC.resolve(id, value, _nothing), CODEC.release(answers, pairs)]
    frame = _framed(*messages)
    assert LONE.read_answer(frame, id) is UNUSUAL
    assert LONE.read_answer_and(frame, id + 1) is None
    both = LONE.read_answer_and(frame, id)
    if both is not None:
        assert repr(_both(id, both)) == repr(_messages(frame)[0])


@pytest.mark.parametrize("value", [None, True, 5, 300, -1, "text", "x" * 60, 1.5, b"y" * 1024])
@pytest.mark.parametrize("answers", [[], [7], [7, 300, 70_000]])
def test_an_answer_and_the_release_of_its_callback_come_together(value, answers) -> None:
    messages = [CODEC.resolve(9, value, _nothing), CODEC.release(answers, [(-70_000, 1)])]
    frame: Any = CODEC.frame(messages)
    assert LONE.word(frame) == RELEASE
    assert LONE.read_answer_and(frame, 9) == (value, answers, [-70_000, 1])


BYTES = bytes(range(256)) * 257
TEXT = "text" * 17_000
KINDS: list[Callable[[int], Any]] = [
    lambda size: BYTES[:size],
    lambda size: TEXT[:size],
    lambda size: bytearray(BYTES[:size]),
    lambda size: memoryview(BYTES)[:size],
    lambda size: memoryview(bytearray(BYTES))[size - 1 :: -1] if size else b"",
]


@pytest.mark.parametrize("kind", KINDS, ids=["bytes", "str", "bytearray", "view", "reversed"])
def test_a_value_of_any_size_is_written_and_read_alone_up_to_the_longest(kind: Any) -> None:
    for size in sorted({size - around for size in EDGES for around in range(16)}):
        if size < 0:
            continue
        value = kind(size)
        plain = value if isinstance(value, str) else bytes(value)
        for args in ((value,), (1, value, None)):
            call = _frame(0, ("echo",), args)
            read = LONE.read_call(call)
            written = LONE.write_call(0, ("echo",), args, _nothing)
            if len(call) <= LONGEST + 3:
                assert written == call
                assert type(written) is bytes
            else:
                assert written is None
            if len(call) <= 65535 + 3:
                assert read == (
                    0,
                    ["echo"],
                    [plain if arg is value else arg for arg in args],
                    False,
                )
            else:
                assert read is None
        answer = _framed(CODEC.resolve(300, value, _nothing))
        written = LONE.write_answer(300, value)
        if len(answer) <= LONGEST + 3:
            assert written == answer
            assert bytes(CODEC.frame([LONE.message(written)])) == answer
        else:
            assert written is None
        read = LONE.read_answer(answer, 300)
        assert read is UNUSUAL if len(answer) > 65535 + 3 else read == plain


def test_the_longest_comes_in_one_small_read() -> None:
    """A read that is full may have left something."""
    assert len(_framed(bytes(LONGEST - 1))) == SMALL_READ - 1


NUMBERS = memoryview(array("I", range(300)))


def test_of_a_buffer_the_bytes_are_written_as_they_are_now() -> None:
    values = (NUMBERS, bytearray(b"abc" * 200))
    expected = _frame(0, ("f",), values)
    written = LONE.write_call(0, ("f",), values, _nothing)
    assert written == expected
    values[1][:] = b"x"
    read = LONE.read_call(expected)
    assert read is not None
    assert read[2] == [NUMBERS.tobytes(), b"abc" * 200]


def test_a_view_that_was_given_back_is_left_to_the_general_way() -> None:
    view = memoryview(b"abc")
    view.release()
    assert _frame(0, ("f",), ())  # the path is noted
    assert LONE.write_call(0, ("f",), (view,), _nothing) is None
    assert LONE.write_answer(300, view) is None


@pytest.mark.parametrize("limit", [256, 1000, LONGEST - 1, 1 << 20])
def test_a_frame_over_the_limit_of_the_other_side_is_not_written_alone(limit: int) -> None:
    codec = _opened()
    codec.call(0, ("f",), (), {}, _nothing)  # which notes the path
    lone = codec.lone
    lone.limit(limit)
    limit = min(limit, LONGEST)
    fitted = set()
    for size in range(limit - 20, limit + 2):
        value = bytes(size)
        call = CODEC.call(0, ("f",), (value,), {}, _nothing)
        answer = CODEC.resolve(300, value, _nothing)
        for message, written in (
            (call, lone.write_call(0, ("f",), (value,), _nothing)),
            (answer, lone.write_answer(300, value)),
        ):
            fits = len(message) + 1 <= limit
            fitted.add(fits)
            assert written == (_framed(message) if fits else None)
    assert fitted == {False, True}


def test_a_frame_over_our_own_limit_is_not_read_alone() -> None:
    codec = _opened(Limits(max_frame=1000))
    for size in range(960, 1010):
        value = bytes(size)
        call, answer = _frame(0, ("f",), (value,)), _framed(CODEC.resolve(300, value, _nothing))
        both = _framed(CODEC.resolve(300, value, _nothing), CODEC.release([], [(-1, 1)]))
        for frame, read in (
            (call, codec.lone.read_call(call)),
            (answer, codec.lone.read_answer(answer, 300)),
            (both, codec.lone.read_answer_and(both, 300)),
        ):
            if read is not None and read is not UNUSUAL:
                assert len(list(_opened(Limits(max_frame=1000)).feed(frame))) == 1
            elif len(frame) <= 1000:
                raise AssertionError(size)


@settings(deadline=None)
@given(
    ids.filter(lambda id: id > 0),
    others,
    st.lists(ids.filter(lambda id: id > 0), max_size=26),
    st.dictionaries(st.integers(-70_000, -1), st.integers(1, 300), max_size=26),
)
def test_an_answer_with_a_release_is_written_as_in_the_general_way(id, value, answers, lent):
    messages = [CODEC.resolve(id, value, _nothing), CODEC.release(answers, list(lent.items()))]
    expected = CODEC.frame(messages)
    assert LONE.write_answer_and(id, value, answers, lent) in (None, expected)


@pytest.mark.parametrize("value", [None, True, 5, 300, -1, "text", "x" * 60])
@pytest.mark.parametrize("id", [1, 24, 300, 70_000, 1 << 33])
@pytest.mark.parametrize("lent", [-1, -25, -300, -70_000])
def test_an_answer_and_the_release_of_a_callback_that_was_called_once(id, value, lent) -> None:
    messages = [CODEC.resolve(9, value, _nothing), CODEC.release([id], [(lent, 1)])]
    expected: Any = CODEC.frame(messages)
    assert LONE.write_answer_and(9, value, [id], {lent: 1}) == expected
    assert LONE.read_answer_freeing(expected, 9, id, lent) == value
    for other in [(10, id, lent), (9, id + 1, lent), (9, id, lent - 1)]:
        assert LONE.read_answer_freeing(expected, *other) is UNUSUAL


def test_a_reference_with_a_long_id_is_released_in_the_general_way() -> None:
    assert LONE.write_answer_and(9, 5, [], {-(1 << 32): 1}) is not None
    assert LONE.write_answer_and(9, 5, [], {-(1 << 32) - 1: 1}) is None


@pytest.mark.parametrize("target", [-1, -24, -25, -300, -65_536, -65_537])
@pytest.mark.parametrize("args", [(), (5,), ("text", 300)])
def test_a_call_of_a_callback_is_read_whole_or_not_at_all(target, args) -> None:
    frame = _frame(target, (), args)
    assert LONE.read_call(frame) == (target, [], list(args), False)
    for end in range(1, len(frame)):
        assert LONE.read_call(frame[:end]) is None


def _both(id: int, both: tuple[Any, list[int], list[int]]) -> list[Any]:
    value, answers, pair = both
    return [[RESOLVE, id, value], [RELEASE, answers, [pair]]]


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=24).map(lambda rest: b"\x82\x83\x05\x07" + rest),
        st.binary(max_size=9).map(lambda rest: b"\x82\x83\x05\x07\x01\x83\x07\x80" + rest),
        st.binary(max_size=9).map(lambda rest: b"\x82\x83\x05\x07\x01\x83\x07\x80\x81\x82" + rest),
        st.binary(max_size=9).map(
            lambda rest: b"\x82\x83\x05\x07" + rest + b"\x83\x07\x81\x07\x81\x82\x20\x01"
        ),
        st.binary(max_size=24).map(lambda rest: b"\x81\x84\x01\x39" + rest),
        st.binary(max_size=24).map(lambda rest: b"\x81\x84\x01\x39\x01\x00\x80" + rest),
        st.binary(max_size=24).map(lambda rest: b"\x81\x84\x01\x00\x81" + rest),
        st.binary(max_size=24).map(lambda rest: b"\x81\x84\x01\x00\x81\x63add" + rest),
        st.binary(max_size=24).map(lambda rest: b"\x81\x83\x05\x07" + rest),
        st.binary(max_size=9).map(
            lambda rest: b"\x81\x84\x01\x00\x81\x63add\x81\xd9\xc0\xde\x82\x00" + rest
        ),
    ),
    st.booleans(),
)
def test_whatever_comes_it_reads_nothing_that_the_general_way_does_not(content, framed) -> None:
    size = len(content)
    data = (
        content
        if not framed
        else (bytes((0x40 + size,)) if size < 24 else bytes((0x58, size))) + content
    )
    _read_as_in_the_general_way(data)


@settings(deadline=None)
@given(
    st.one_of(
        st.lists(others, min_size=1, max_size=3).map(lambda args: _frame(0, ("add",), args)),
        others.map(lambda value: _framed(CODEC.resolve(7, value, _nothing))),
        others.map(
            lambda value: _framed(CODEC.resolve(7, value, _nothing), CODEC.release([1], [(-1, 1)]))
        ),
    ),
    st.integers(0, 40),
    st.sampled_from([0x18, 0x19, 0x1A, 0x3B, 0x40, 0x58, 0x59, 0x5F, 0x78, 0x79, 0x7A, 0xF9, 0xFB])
    | st.integers(0, 255),
    st.integers(-3, 3),
)
def test_a_frame_with_a_wrong_byte_is_read_as_in_the_general_way_or_not_at_all(
    frame: bytes, at: int, byte: int, more: int
) -> None:
    data = bytearray(frame)
    data[at % len(data)] = byte
    wrong = bytes(data[:more] if more < 0 else data + bytes(more))
    _read_as_in_the_general_way(wrong)


def _read_as_in_the_general_way(data: bytes) -> None:
    call, answer = LONE.read_call(data), LONE.read_answer(data, 7)
    if call is not None:
        messages, marked = _messages(data)
        assert repr(messages) == repr([[CALL, *call[:3]]])
        assert marked == call[3]
    if answer is not UNUSUAL:
        messages, marked = _messages(data)
        assert not marked
        assert repr(messages) == repr([[RESOLVE, 7, answer]])
    both = LONE.read_answer_and(data, 7)
    if both is not None:
        assert repr(_messages(data)) == repr((_both(7, both), False))
    for answer, lent in [(7, -1), (24, -25), (300, -70_000)]:
        value = LONE.read_answer_freeing(data, 7, answer, lent)
        if value is not UNUSUAL:
            expected = _both(7, (value, [answer], [lent, 1]))
            assert repr(_messages(data)) == repr((expected, False))


NOT_TEXT = b"\xed\xa0\x80" + b"x" * 20_000  # half of a surrogate pair


@pytest.mark.parametrize("size", [3, 23, 24, 255, 256, 1024, 20_000])
def test_a_text_that_is_none_is_not_read_alone(size: int) -> None:
    value = bytearray(bytes(CODEC.resolve(7, "x" * size, _nothing))[3:])
    value[-size:] = NOT_TEXT[:size]
    answer = _framed(b"\x83\x05\x07" + value)
    assert LONE.read_answer(answer, 7) is UNUSUAL
    assert LONE.read_call(_framed(b"\x84\x01\x00\x81\x63add\x81" + value)) is None
    both = _framed(b"\x83\x05\x07" + value, CODEC.release([], [(-1, 1)]))
    assert LONE.read_answer_and(both, 7) is None
    with pytest.raises(RemoteProtocolError):
        _messages(answer)


@pytest.mark.parametrize("size", [10, 100, 300, 1024, 60_000])
def test_a_part_of_a_frame_is_not_read_alone(size: int) -> None:
    for frame in (
        _frame(0, ("add",), (b"x" * size,)),
        _framed(CODEC.resolve(7, b"x" * size, _nothing)),
        _framed(CODEC.resolve(7, b"x" * size, _nothing), CODEC.release([], [(-1, 1)])),
    ):
        for cut in (1, 2, 3, 4, 5, 9, len(frame) // 2, len(frame) - 1):
            codec = _opened()
            (content,) = codec.feed(frame)
            assert isinstance(content, bytes)
            heads = [frame_head(len(content) + more) for more in (-1, 1)]
            parts = (frame[:cut], frame + b"\x00", frame * 2, *(head + content for head in heads))
            for part in parts:
                assert codec.lone.read_call(part) is None
                assert codec.lone.read_answer(part, 7) is UNUSUAL
                assert codec.lone.read_answer_and(part, 7) is None
            assert list(codec.feed(frame[:cut])) == []
            assert codec.lone.read_call(frame) is None
            assert codec.lone.read_answer(frame, 7) is UNUSUAL
            assert codec.lone.read_answer_and(frame, 7) is None
            (whole,) = codec.feed(frame[cut:])
            assert isinstance(whole, bytes)
            assert frame.endswith(whole)


def test_behind_a_part_of_a_frame_nothing_comes_alone() -> None:
    codec = _opened()
    call = _frame(0, ("add",), (1, 2))
    both: Any = codec.frame([codec.resolve(7, 1, _nothing), codec.release([], [(-1, 1)])])
    assert codec.lone.read_call(call) is not None
    assert codec.lone.read_answer_and(both, 7) is not None
    freeing: Any = codec.frame([codec.resolve(7, 1, _nothing), codec.release([3], [(-1, 1)])])
    assert codec.lone.read_answer_freeing(freeing, 7, 3, -1) == 1
    assert list(codec.feed(call[:3])) == []
    assert codec.lone.read_call(call) is None
    assert codec.lone.read_answer(_framed(codec.resolve(7, 1, _nothing)), 7) is UNUSUAL
    assert codec.lone.read_answer_and(both, 7) is None
    assert codec.lone.read_answer_freeing(freeing, 7, 3, -1) is UNUSUAL


@pytest.mark.parametrize("id", [-1, -24, -25, -256, -257, -65536])
def test_a_callback_comes_alone(id: int) -> None:
    frame = _framed(CODEC.call(0, ("add",), (1, print), {}, lambda _: Mine(id)))
    assert LONE.read_call(frame) == (0, ["add"], [1, Mine(id)], True)
    assert _messages(frame) == ([[CALL, 0, ["add"], [1, Mine(id)]]], True)


@pytest.mark.parametrize("reference", [Mine(-1, "a cap_id"), Mine(0), Promised(-1), Yours(1)])
def test_other_references_do_not_come_alone(reference: Any) -> None:
    frame = _framed(CODEC.call(0, ("add",), (Target(),), {}, lambda _: reference))
    assert LONE.read_call(frame) is None


def test_an_answer_that_holds_references_does_not_come_alone() -> None:
    reference = bytes.fromhex("d9c0de820020")  # a mine, id -1
    assert LONE.read_answer(b"\x4a\x81\x83\x05\x07" + reference, 7) is UNUSUAL


def test_the_heads_that_a_peer_sends_are_not_noted_for_ever() -> None:
    codec = _opened()
    for n in range(5000):
        assert codec.lone.read_call(_frame(0, (f"name{n}",), ())) is not None
    assert len(codec.lone._heads) <= 1000


class Keeper(Target):
    def keep(self, _function: Any) -> None: ...


def test_an_answer_that_releases_what_was_not_sent_is_left_to_the_general_way(wire: Wire) -> None:
    near, _far = wire.link(far_index=Keeper())
    promise = near.index.keep(_callback)
    near.flush()
    exchange, exports = near.session.exchange, near.session.exports
    id = near.session.imports.last_question
    (held,) = (id for id in exports.entries if id < 0)
    for answers, pair in [
        ([], (held, 2)),
        ([], (held, 0)),
        ([], (held - 1, 1)),
        ([], (0, 1)),
        ([1], (held, 1)),
    ]:
        messages = [CODEC.resolve(id, 5, _nothing), CODEC.release(answers, [pair])]
        frame: Any = CODEC.frame(messages)
        assert LONE.read_answer_and(frame, id) == (5, answers, list(pair))
        assert not exchange.settle(frame)
        assert held in exports.entries
    assert near.get(promise) is None
    del promise
    wire.run()
    assert list(exports.entries) == [0]


def test_an_answer_that_releases_an_answer_twice_is_left_to_the_general_way(wire: Wire) -> None:
    near, far = wire.link(lambda: 5, far_index=Keeper())
    asked = far.index()
    far.flush()
    near.deliver()  # and what it answers has not come
    promise = near.index.keep(_callback)
    near.flush()
    exchange, exports = near.session.exchange, near.session.exports
    id = near.session.imports.last_question
    (held,) = (id for id in exports.entries if id < 0)
    resolve = CODEC.resolve(id, 6, _nothing)
    twice: Any = CODEC.frame([resolve, CODEC.release([1, 1], [(held, 1)])])
    assert 1 in exports.entries
    assert not exchange.settle(twice)
    assert {1, held} <= set(exports.entries)
    assert near.get(promise) is None
    assert far.get(asked) == 5
