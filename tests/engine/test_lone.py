"""`codec.lone` writes what the general way writes, and reads nothing otherwise than that does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capnode_py import CannotPass, Limits, Target
from capnode_py._messages import CALL, RELEASE, RESOLVE, UNUSUAL, Hello, Mine, Promised, Yours
from capnode_py.codec.cbor import CborCodec
from capnode_py.testing import Wire


def _opened() -> CborCodec:
    """A codec that has read a hello, and reads frames."""
    codec = CborCodec(Limits())
    assert len(list(codec.feed(codec.hello(Hello(versions=(1,), session_id=b"x"))))) == 1
    return codec


CODEC = _opened()
LONE = CODEC.lone

small = st.one_of(
    st.integers(-70000, 70000), st.booleans(), st.none(), st.text(max_size=30), st.floats()
)
others = st.one_of(
    small,
    st.binary(max_size=4),
    st.lists(small, max_size=3),
    st.dictionaries(st.text(max_size=3), small, max_size=3),
)
ids = st.one_of(st.integers(-70000, 70000), st.sampled_from([23, 24, 255, 256, 65535, 65536]))
paths = st.lists(st.text(max_size=30), max_size=2).map(tuple)


def _frame(target: int, path: tuple[str, ...], args: Any) -> bytes:
    return _framed(CODEC.call(target, path, args, {}, _nothing))


def _framed(message: Any) -> bytes:
    frame = CODEC.frame([message])
    assert isinstance(frame, bytes)
    return frame


def _messages(data: bytes) -> tuple[list[list[Any]], bool]:
    """What the general way reads."""
    frames: list[Any] = list(_opened().feed(data))
    assert len(frames) == 1
    return CODEC.decode(frames[0])


def _nothing(value: Any) -> Any:
    raise CannotPass(f"{value!r} is not for this test")


@given(ids, paths, st.lists(others, max_size=26).map(tuple))
def test_a_call_is_written_and_read_as_in_the_general_way(target, path, args) -> None:
    expected = _frame(target, path, args)
    for _ in range(2):  # also with what was noted the first time
        written = LONE.write_call(target, path, args, _nothing)
        assert written in (None, expected)
        read = LONE.read_call(expected)
        ((word, *fields),), _ = _messages(expected)
        assert word == CALL
        assert read is None or repr([*read[:3], read[3]]) == repr([*fields, False])


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


@pytest.mark.parametrize("args", [(), (1, -1, 300), ("text", "x" * 50, None, True, False, 24)])
@pytest.mark.parametrize("target", [0, 23, 200, -1, -200, -3000])
def test_the_usual_call_is_written_and_read_alone(target: int, args: tuple[Any, ...]) -> None:
    for path in (("name",), ()):
        frame = _frame(target, path, args)
        assert LONE.write_call(target, path, args, _nothing) == frame
        if -1 not in args:
            assert LONE.read_call(frame) == (target, list(path), list(args), False)


@given(ids.filter(lambda id: id > 0), others)
def test_an_answer_is_written_and_read_as_in_the_general_way(id, value) -> None:
    expected = _framed(CODEC.resolve(id, value, _nothing))
    assert LONE.write_answer(id, value) in (None, expected)
    read = LONE.read_answer(expected, id)
    ((word, told, decoded),), _ = _messages(expected)
    assert (word, told) == (RESOLVE, id)
    if len(expected) < 250:
        assert repr(read) == repr(decoded)
    else:
        assert read is UNUSUAL or repr(read) == repr(decoded)
    assert LONE.read_answer(expected, id + 1) is UNUSUAL


@given(
    ids.filter(lambda id: id > 0),
    others,
    st.lists(ids, max_size=26),
    st.lists(st.tuples(ids, ids), max_size=2),
)
def test_an_answer_with_a_release_is_read_as_in_the_general_way(id, value, answers, pairs) -> None:
    messages = [CODEC.resolve(id, value, _nothing), CODEC.release(answers, pairs)]
    frame: Any = CODEC.frame(messages)
    assert LONE.read_answer(frame, id) is UNUSUAL
    assert LONE.read_answer_and(frame, id + 1) is None
    both = LONE.read_answer_and(frame, id)
    if both is not None:
        assert repr(_both(id, both)) == repr(_messages(frame)[0])


@pytest.mark.parametrize("value", [None, True, 5, 300, -1, "text", "x" * 60])
@pytest.mark.parametrize("answers", [[], [7], [7, 300, 70_000]])
def test_an_answer_and_the_release_of_its_callback_come_together(value, answers) -> None:
    messages = [CODEC.resolve(9, value, _nothing), CODEC.release(answers, [(-70_000, 1)])]
    frame: Any = CODEC.frame(messages)
    assert LONE.word(frame) == RESOLVE
    assert LONE.read_answer_and(frame, 9) == (value, answers, [-70_000, 1])


def _both(id: int, both: tuple[Any, list[int], list[int]]) -> list[Any]:
    value, answers, pair = both
    return [[RESOLVE, id, value], [RELEASE, answers, [pair]]]


@given(
    st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=24).map(lambda rest: b"\x82\x83\x05\x07" + rest),
        st.binary(max_size=9).map(lambda rest: b"\x82\x83\x05\x07\x01\x83\x07\x80" + rest),
        st.binary(max_size=9).map(lambda rest: b"\x82\x83\x05\x07\x01\x83\x07\x80\x81\x82" + rest),
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
    call, answer = LONE.read_call(data), LONE.read_answer(data, 7)
    if call is not None:
        assert _messages(data) == ([[CALL, *call[:3]]], call[3])
    if answer is not UNUSUAL:
        messages, marked = _messages(data)
        assert not marked
        assert repr(messages) == repr([[RESOLVE, 7, answer]])
    both = LONE.read_answer_and(data, 7)
    if both is not None:
        assert repr(_messages(data)) == repr((_both(7, both), False))


def test_behind_a_part_of_a_frame_nothing_comes_alone() -> None:
    codec = _opened()
    call = _frame(0, ("add",), (1, 2))
    both: Any = codec.frame([codec.resolve(7, 1, _nothing), codec.release([], [(-1, 1)])])
    assert codec.lone.read_call(call) is not None
    assert codec.lone.read_answer_and(both, 7) is not None
    assert list(codec.feed(call[:3])) == []
    assert codec.lone.read_call(call) is None
    assert codec.lone.read_answer(_framed(codec.resolve(7, 1, _nothing)), 7) is UNUSUAL
    assert codec.lone.read_answer_and(both, 7) is None


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
