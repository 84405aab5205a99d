"""The native codec: what values become on the wire, and what hostile bytes do not become."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import capnode_py as capnode
from capnode_py import CannotPass, Limits, RemoteError, RemoteProtocolError, Stub, Target
from capnode_py._frames import MAGIC, Cutter, frame_head
from capnode_py._messages import CALL, PUSH, Hello, Mine, Promised, Yours
from capnode_py.codec.cbor import CborCodec
from capnode_py.codec.cbor_writer import TAG_ERROR, TAG_REF
from capnode_py.testing import Wire


def no_refs(value: Any) -> Any:
    raise CannotPass(f"no reference for {value!r}")


def encoded(value: Any, **limits: int) -> bytes:
    """A value as it stands in a resolve."""
    message = bytes(CborCodec(Limits(**limits)).resolve(5, value, no_refs))
    assert message[:3] == b"\x83\x05\x05"
    return message[3:]


def decoded(data: bytes) -> Any:
    """What an encoded value is once it has come."""
    messages, _marked = CborCodec(Limits()).decode(b"\x81\x83\x05\x05" + data)
    return messages[0][2]


def through(value: Any) -> Any:
    return decoded(encoded(value))


def arrives_as(value: Any) -> Any:
    """What the rules say that a plain value arrives as."""
    if isinstance(value, (list, tuple)):
        return [arrives_as(item) for item in value]
    if isinstance(value, dict):
        return {key: arrives_as(item) for key, item in value.items()}
    return value


def same(one: Any, other: Any) -> bool:
    """Equal, of the same type, nan to nan, -0.0 to -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (
            math.isnan(one) and math.isnan(other)
            if math.isnan(one)
            else (one == other and math.copysign(1, one) == math.copysign(1, other))
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    return bool(one == other)


TEXT = st.text()  # no surrogates: they are no text
TIMES = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5, minutes=-30))]))
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(1 << 80), max_value=1 << 80)
    | st.floats()
    | TEXT
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(TEXT, inner, max_size=4)
    ),
    max_leaves=20,
)
HASHABLE = st.none() | st.integers() | TEXT | st.binary() | st.tuples(st.integers(), TEXT)
MORE = st.recursive(
    PLAIN
    | TIMES
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.uuids()
    | st.sets(HASHABLE, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(PLAIN)
@settings(max_examples=150, deadline=None)
def test_plain_values_are_written_as_cbor2_writes_them(value: Any) -> None:
    """H5: the oracle of our own encoder."""
    assert encoded(value) == cbor2.dumps(value)


@given(TIMES | st.uuids() | st.decimals(allow_nan=False, allow_infinity=False) | st.integers())
@settings(max_examples=50, deadline=None)
def test_the_other_leaves_are_written_as_cbor2_writes_them(value: Any) -> None:
    """H5"""
    assert encoded(value) == cbor2.dumps(value)


@given(MORE)
@settings(max_examples=150, deadline=None)
def test_values_arrive_as_the_rules_say(value: Any) -> None:
    """H5: tuples as lists, all else as itself."""
    assert same(through(value), arrives_as(value))


@given(MORE)
@settings(max_examples=50, deadline=None)
def test_a_copy_made_here_is_what_the_wire_would_have_made(value: Any) -> None:
    """H5, I1: calls between two parts of one side pass values by the same rules."""
    copy, marked = CborCodec(Limits()).copy([value], no_refs)
    assert same(copy[0], through(value))
    assert not marked


@given(st.lists(PLAIN, max_size=3), st.dictionaries(TEXT, PLAIN, max_size=3))
@settings(max_examples=50, deadline=None)
def test_a_call_holds_its_arguments_and_its_word_can_be_changed(args: Any, kwargs: Any) -> None:
    """C1"""
    codec = CborCodec(Limits())
    message = bytes(codec.call(-7, ("a", 3), args, kwargs, no_refs))
    (call, push), _ = codec.decode(b"\x82" + message + bytes(codec.word(message, PUSH)))
    assert call[:3] == [CALL, -7, ["a", 3]]
    assert same(call[3], arrives_as(args))
    assert same(call[4] if len(call) > 4 else {}, arrives_as(kwargs))
    assert push[0] == PUSH
    assert same(push[1:], call[1:])


@pytest.mark.parametrize(
    "value",
    [0, 23, 24, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1, 1 << 64, 1 << 2000],
)
def test_integers_of_any_size(value: int) -> None:
    """C1"""
    for number in (value, -value, -value - 1, ~value):
        assert encoded(number) == cbor2.dumps(number)
        assert through(number) == number


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 257, 65535, 65536])
def test_containers_and_texts_of_any_size(size: int) -> None:
    """C1"""
    for value in ("x" * size, b"x" * size, [None] * size, {str(n): n for n in range(size)}):
        assert encoded(value) == cbor2.dumps(value)
        assert through(value) == value


def test_subclasses_pass_as_their_base_type() -> None:
    """C1"""

    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    class Level(enum.IntEnum):
        HIGH = 3

    class Real(float):
        pass

    class Raw(bytes):
        pass

    class Row(list):
        pass

    class Group(set):
        pass

    point = namedtuple("point", "x y")
    for value, base in [
        (Text("a"), "a"),
        (Number(5), 5),
        (Level.HIGH, 3),
        (Real(0.5), 0.5),
        (Raw(b"a"), b"a"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"abcdef")[1:3], b"bc"),
        (Row([1]), [1]),
        (point(1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (Group([1]), {1}),
        (frozenset([1]), {1}),
        ({Text("key"): Number(1)}, {"key": 1}),
    ]:
        assert same(through(value), base)
        assert same(through([value]), [base])


def test_nested_sets_and_tuples_in_sets_stay_hashable() -> None:
    """C1"""
    value = {frozenset({1, 2}), (1, (2, frozenset({3})))}
    assert through(value) == value


def test_a_set_with_references_is_a_set_of_stubs(wire: Wire) -> None:
    """G3: at any depth in it, each counted."""

    def function() -> str:
        return "called"

    kept: list[Any] = []
    near, far = wire.link(far_index=kept.append)
    near.get(near.index({function, 5, (function, (6, function))}))
    (value,) = kept
    (stub,) = (member for member in value if isinstance(member, Stub))
    assert value == {stub, 5, (stub, (6, stub))}
    assert far.get(stub()) == "called"
    kept.clear()
    del value, stub


def test_exceptions_pass_as_values() -> None:
    """C2: as what a call would have raised."""

    class OwnError(KeyError):
        pass

    value = through([ValueError("text"), OwnError("key"), CannotPass("no"), Exception()])
    assert all(isinstance(error, RemoteError) for error in value)
    assert isinstance(value[0], ValueError)
    assert isinstance(value[1], KeyError)
    assert value[1].remote_type == "OwnError"  # type: ignore[attr-defined]
    assert str(value[0]) == "text"
    assert isinstance(value[2], TypeError)


@pytest.mark.parametrize("code", ["ENOENT", "errorcode", "__name__", "ENOSUCH", ""])
def test_only_the_name_of_a_code_makes_a_number(code: str) -> None:
    tagged = cbor2.dumps(cbor2.CBORTag(TAG_ERROR, ["OSError", "text", "OSError", None, code]))
    ((_, _, value),), _ = CborCodec(Limits()).decode(b"\x81\x83\x05\x01" + tagged)
    assert isinstance(value, OSError)
    assert value.errno == (2 if code == "ENOENT" else None)


# What cannot pass.


class Plain: ...


@dataclasses.dataclass
class Data:
    x: int


class Colour(enum.Enum):
    RED = 1


def generator() -> Any:
    yield 1


CANNOT: dict[str, tuple[Any, str]] = {
    "object": (Plain(), "capnode.Target"),
    "class": (Plain, "lambda"),
    "naive datetime": (datetime(2026, 1, 1), "astimezone"),  # noqa: DTZ001
    "nan": (Decimal("NaN"), "float"),
    "infinity": (Decimal("-Infinity"), "float"),
    "int key": ({1: 2}, "str"),
    "None key": ({None: 2}, "str"),
    "tuple key": ({(1, 2): 3}, "str"),
    "surrogate": ("\ud800", "Unicode"),
    "surrogate key": ({"\ud800": 1}, "Unicode"),
    "generator": (generator(), "list"),
    "dataclass": (Data(1), "by_copy"),
    "enum": (Colour.RED, "by_copy"),
    "complex": (1j, "value.real"),
    "date": (datetime(2026, 1, 1, tzinfo=UTC).date(), "isoformat"),
    "timedelta": (timedelta(1), "total_seconds"),
    "range": (range(3), "list"),
    "ellipsis": (..., ""),
    "undefined": (cbor2.undefined, ""),
    "tag": (cbor2.CBORTag(5, []), ""),
    "simple value": (cbor2.CBORSimpleValue(5), ""),
}


@pytest.mark.parametrize("name", [*CANNOT])
def test_what_cannot_pass_names_the_way_to_it_and_the_remedy(wire: Wire, name: str) -> None:
    """T6"""
    value, remedy = CANNOT[name]
    near, far = wire.link(far_index=lambda *_args, **_named: None)
    cases: list[tuple[list[Any], dict[str, Any], str, list[Any]]] = [
        ([1, value], {}, "argument 1", []),
        ([{"a": [0, (0, value)]}], {}, "argument 0", ["a", 1, 1]),
        ([], {"name": [value]}, "argument name", [0]),
    ]
    for args, kwargs, root, path in cases:
        with pytest.raises(CannotPass) as raised:
            near.index(*args, **kwargs)
        error = raised.value
        assert str(error).startswith(root)
        assert "".join(f"[{step!r}]" for step in path) in str(error)
        assert remedy in str(error)
        assert isinstance(error, TypeError)
    assert near.session.backlog() == 0
    assert far.sent == []
    del raised, error


def test_what_cannot_pass_in_a_result_names_the_way_too(wire: Wire) -> None:
    """C8"""
    near, _far = wire.link(far_index=lambda: {"rows": [1, {2: 3}]})
    with pytest.raises(TypeError, match=r"result.*\['rows'\]\[1\]") as raised:
        near.get(near.index())
    assert isinstance(raised.value, RemoteError)
    assert raised.value.remote_type == "CannotPass"
    del raised


def test_a_by_copy_class_with_a_bad_field_names_the_way(wire: Wire) -> None:
    """T6"""

    @capnode.by_copy
    @dataclasses.dataclass
    class Row:
        cells: list[Any]

    near, _far = wire.link(far_index=lambda x: x)
    assert near.get(near.index([Row([1])])) == [{"cells": [1]}]
    with pytest.raises(CannotPass, match=r"\[0\]\['cells'\]\[1\]"):
        near.index([Row([1, Plain()])])


# Depth.


def nested(depth: int, make: Any = lambda inner: [inner], leaf: Any = 0) -> Any:
    for _ in range(depth):
        leaf = make(leaf)
    return leaf


MAKERS = {
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "dict": lambda inner: {"k": inner},
    "mixed": lambda inner: [{"k": inner}],
    "set": lambda inner: frozenset([inner]),
}


@pytest.mark.parametrize("make", [*MAKERS])
def test_a_value_as_deep_as_the_limit_passes_and_a_deeper_one_cannot(wire: Wire, make: str) -> None:
    """F10: what one side lets out, the other accepts."""
    near, far = wire.link(far_index=lambda *_args: True, far_limits=Limits(max_depth=20))
    step = 2 if make in ("mixed", "set") else 1  # a set is a list in a tag
    assert near.get(near.index(nested(20 // step, MAKERS[make]), 1)) is True
    with pytest.raises(CannotPass, match="deeper"):
        near.index(nested(20 // step + 1, MAKERS[make]))
    assert far.session.error is None


@pytest.mark.parametrize("make", [*MAKERS])
def test_a_very_deep_value_is_no_crash(make: str) -> None:
    """F10: neither of the encoder's stack nor of the process."""
    with pytest.raises(CannotPass, match="deeper"):
        encoded(nested(5_000, MAKERS[make]))


def test_a_deep_result_fails_its_call_alone(wire: Wire) -> None:
    """F10, C5"""
    near, _far = wire.link(far_index={"deep": lambda: nested(1000), "flat": lambda: 1})
    with pytest.raises(RemoteError, match="deeper"):
        near.get(near.index.deep())
    assert near.get(near.index.flat()) == 1


def test_cyclic_values_cannot_pass() -> None:
    """F10"""
    a_list: list[Any] = []
    a_list.append(a_list)
    a_dict: dict[str, Any] = {}
    a_dict["self"] = [a_dict]
    for value in (a_list, a_dict, [1, {"a": a_list}]):
        with pytest.raises(CannotPass, match="cyclic"):
            encoded(value)


def test_a_class_by_copy_cannot_hide_a_cycle() -> None:
    """F10"""

    @capnode.by_copy
    @dataclasses.dataclass
    class Node:
        next: Any = None

    node = Node()
    node.next = node
    wire = Wire()
    near, _far = wire.link()
    with pytest.raises(CannotPass, match="cyclic"):
        near.index.f(node)


def test_the_same_value_twice_is_no_cycle() -> None:
    """F10"""
    shared = [1]
    assert through([shared, shared, {"a": shared}]) == [[1], [1], {"a": [1]}]


# Hostile bytes: what rejects one call.


def tag(number: int, content: Any) -> cbor2.CBORTag:
    return cbor2.CBORTag(number, content)


def raw(*messages: Any) -> bytes:
    content = cbor2.dumps(list(messages))
    return frame_head(len(content)) + content


MINE = tag(TAG_REF, [0, -1])

BAD_VALUES = {
    "string reference": tag(25, 0),
    "shared value": tag(28, [1]),
    "reference to shared value": tag(29, 0),
    "regular expression": tag(35, "(a+)+$"),
    "MIME": tag(36, "Content-Type: text/plain\r\n\r\ntext"),
    "string namespace": tag(256, [1]),
    "bigfloat": tag(5, [1, 2]),
    "rational": tag(30, [1, 0]),
    "address": tag(52, b"1234"),
    "date": tag(100, 5),
    "date text": tag(1004, "2026-01-01"),
    "self-described": tag(55799, 1),
    "complex": tag(43000, [1, 2]),
    "unknown": tag(987654, "x"),
    "chunk": tag(49376, "x"),
    "no time": tag(0, "yesterday"),
    "no text": tag(0, 5),
    "naive time": tag(0, "2026-01-01T00:00:00"),
    "no seconds": tag(1, "x"),
    "far future": tag(1, 1e300),
    "nan seconds": tag(1, math.nan),
    "big integer of text": tag(2, "x"),
    "negative big integer of a list": tag(3, [1]),
    "decimal of text": tag(4, "1.5"),
    "decimal of one": tag(4, [1]),
    "decimal of floats": tag(4, [1, 1.5]),
    "decimal of a mantissa without end": tag(4, [0, 1 << 40_000]),
    "short uuid": tag(37, b"123"),
    "set of a number": tag(258, 5),
    "set of dicts": tag(258, [{}]),
    "set of sets of lists": tag(258, [[{}]]),
    "colliding set": tag(258, [n * ((1 << 61) - 1) for n in range(5_000)]),
    "colliding set of pairs": tag(258, [[n * ((1 << 61) - 1), 1] for n in range(5_000)]),
    "colliding set beside a reference": tag(
        258, [MINE, *(n * ((1 << 61) - 1) for n in range(5_000))]
    ),
    "error of numbers": tag(TAG_ERROR, [1, 2, 3, 4]),
    "error of two": tag(TAG_ERROR, ["a", "b"]),
    "reference to nothing": tag(TAG_REF, []),
    "reference of text": tag(TAG_REF, "x"),
    "reference of kind 9": tag(TAG_REF, [9, 1]),
    "reference to True": tag(TAG_REF, [2, True]),
    "reference to 1.0": tag(TAG_REF, [2, 1.0]),
    "reference with a path of lists": tag(TAG_REF, [2, 0, [["a"]]]),
    "reference with a path of text": tag(TAG_REF, [2, 0, "ab"]),
    "reference with too much": tag(TAG_REF, [2, 0, [], 1]),
    "promise with a path": tag(TAG_REF, [1, -1, ["x"]]),
    "reference with a number for a cap_id": tag(TAG_REF, [0, -1, 5]),
}


@pytest.mark.parametrize("name", [*BAD_VALUES])
def test_a_value_that_cannot_be_decoded_rejects_one_call_and_not_the_session(
    wire: Wire, name: str
) -> None:
    """C8, F10: anywhere in its arguments, named or not, in a call or a one-way call."""
    bad = BAD_VALUES[name]
    taken: list[Any] = []
    near, far = wire.link({"take": taken.append, "keep": taken.append})
    far.get(far.index.keep(print))  # its reference -1
    # As if far had made these:
    promises = [far.index.take() for _ in range(4)]
    far.session.flush()
    far.session.exports.find(-1).sent += 4 * _occurrences(bad)
    tasks = [far.spawn(promise) for promise in promises]
    near.feed(
        raw(
            [1, 0, ["take"], [bad]],
            [1, 0, ["take"], [[1, {"a": [bad]}]]],
            [1, 0, ["take"], [], {"a": bad}],
            [1, 0, ["take"], ["good"]],
            [4, 0, ["take"], [bad]],
        )
    )
    wire.run()
    assert near.session.error is far.session.error is None
    assert taken[1:] == ["good"]
    for task in tasks[:3]:
        with pytest.raises(RemoteError, match="cannot be decoded"):
            task.result()
    assert tasks[3].result() is None
    taken.clear()  # and that all references are given back is seen at the end


def _occurrences(value: Any) -> int:
    """How often it holds far's reference -1."""
    if isinstance(value, cbor2.CBORTag):
        return value == MINE or _occurrences(value.value)
    if isinstance(value, list):
        return sum(map(_occurrences, value))
    return sum(map(_occurrences, value.values())) if isinstance(value, dict) else 0


def test_references_beside_and_inside_what_cannot_be_decoded_are_given_back(wire: Wire) -> None:
    """K3, T6: else the two sides would not count alike."""
    near, far = wire.link({"take": lambda *_args: None})
    waiting = far.spawn(far.index.take(print, print, print, print, len))
    far.session.flush()
    bad = tag(987654, [MINE, {"a": MINE}, tag(28, [MINE])])
    near.feed(raw([1, 0, ["take"], [bad, [MINE], {"x": tag(TAG_REF, [0, -2])}]]))
    wire.run()
    with pytest.raises(RemoteError, match="cannot be decoded"):
        waiting.result()
    released = [pair for m in near.sent if m.word == "release" for pair in m.fields[1]]
    assert sorted(released) == [[-2, 1], [-1, 4]]
    assert len(far.session.exports) == 1


def test_a_bad_value_in_a_result_rejects_the_awaiting_call_alone(wire: Wire) -> None:
    """C8"""
    near, far = wire.link(far_index=lambda: 1)
    far.holding = True
    first, second = near.spawn(near.index()), near.spawn(near.index())
    near.flush()
    far.deliver()
    near.feed(raw([5, 1, [tag(35, "x")]], [5, 2, "good"]))
    with pytest.raises(RemoteProtocolError, match="cannot be decoded"):
        first.result()
    assert second.result() == "good"
    assert near.session.error is None
    far.held.clear()
    wire.run()


def test_a_value_that_contains_itself_cannot_be_made(wire: Wire) -> None:
    """F10: the bytes of cbor2's own cyclic list."""
    near, _far = wire.link({"take": lambda *_args: None})
    cyclic = b"\xd8\x1c\x81\xd8\x1d\x00"
    content = b"\x81\x84\x04\x00\x81\x64take\x81" + cyclic
    near.feed(frame_head(len(content)) + content)
    assert near.session.error is None
    assert near.started == []


def test_tags_in_tags_are_bounded(wire: Wire) -> None:
    """F10: a chain of tags counts as depth."""
    near, _far = wire.link({"take": lambda *_args: None})
    content = b"\x81\x84\x04\x00\x81\x64take\x81" + b"\xda\x00\x0f\x00\x00" * 10_000 + b"\x00"
    near.feed(frame_head(len(content)) + content)
    assert isinstance(near.session.error, RemoteProtocolError) or near.started == []


def test_a_flood_of_empty_containers_is_bounded_by_its_bytes() -> None:
    """F10: a head that announces 2**32 members of nothing allocates nothing."""
    codec = CborCodec(Limits())
    for head in (b"\x9a\xff\xff\xff\xff", b"\x9b\x7f" + b"\xff" * 7, b"\xba\xff\xff\xff\xff"):
        with pytest.raises(RemoteProtocolError):
            codec.decode(b"\x81" + head)


# References, as the codec writes them.


def test_references_are_one_private_tag(wire: Wire) -> None:
    """T2"""
    codec = CborCodec(Limits())
    refs: Iterator[Any] = iter(
        [Mine(-1), Mine(-2, "cap"), Promised(-3), Yours(4), Yours(5, ("a", 0)), Yours(-6, ("x",))]
    )
    message = bytes(codec.resolve(1, [Plain() for _ in range(6)], lambda _value: next(refs)))
    (found,), marked = codec.decode(b"\x81" + message)
    assert marked
    assert found[2] == [
        Mine(-1),
        Mine(-2, "cap"),
        Promised(-3),
        Yours(4),
        Yours(5, ("a", 0)),
        Yours(-6, ("x",)),
    ]
    assert cbor2.loads(message)[2][0].tag == TAG_REF
    assert wire.sides == []


def test_a_frame_without_references_is_not_marked() -> None:
    """C1: so that its values need not be walked."""
    codec = CborCodec(Limits())
    message = bytes(codec.resolve(1, {"a": [1, {2}, Decimal(1), UUID(int=1)]}, no_refs))
    assert codec.decode(b"\x81" + message)[1] is False


# Cutting the stream.


HELLO = CborCodec(Limits()).hello(Hello(versions=[1], application="me"))


def cut(data: bytes, size: int, *, max_frame: int = 1 << 20, max_junk: int = 0) -> list[Any]:
    codec = CborCodec(Limits(max_frame=max_frame), max_junk=max_junk)
    found: list[Any] = []
    for start in range(0, len(data), size):
        found += codec.feed(data[start : start + size])
    return found


@given(
    st.lists(st.binary(max_size=400), max_size=5),
    st.integers(min_value=1, max_value=500),
    st.binary(max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    contents: list[bytes], size: int, tail: bytes
) -> None:
    """F11: whole, byte by byte, and with a tail that is no frame yet."""
    data = HELLO + b"".join(frame_head(len(c)) + c for c in contents)
    for piece in (size, 1, len(data)):
        hello, *frames = cut(data + b"\x59\xff"[: len(tail)], piece)
        assert isinstance(hello, Hello)
        assert frames == contents


def test_the_end_of_a_stream_in_mid_frame_is_told_from_one_between_frames() -> None:
    """F11, D4"""
    codec = CborCodec(Limits())
    list(codec.feed(HELLO))
    codec.end()
    assert list(codec.feed(b"\x42\x00")) == []
    with pytest.raises(RemoteProtocolError, match="mid-frame"):
        codec.end()


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "junk", [b"", b"Hello!\n", b"\xd9", b"\xd9\xd9", b"\xd9\xd9\xd9", b"\xd9\xf7\n" * 20], ids=repr
)
def test_junk_before_the_hello_is_skipped_where_it_is_expected(junk: bytes, size: int) -> None:
    """D7: a child may have printed before it claimed its stdio."""
    codec = CborCodec(Limits(), max_junk=100)
    found: list[Any] = []
    data = junk + HELLO + b"\x41\x80"
    for start in range(0, len(data), size):
        found += codec.feed(data[start : start + size])
    assert isinstance(found[0], Hello)
    assert found[1:] == [b"\x80"]
    assert codec.junk == junk


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_too_much_junk_and_junk_where_none_is_expected_are_shown(size: int) -> None:
    """D7"""
    for junk, max_junk in ((b"x" * 101, 100), (b"Traceback!" * 20, 100), (b"printed\n", 0)):
        with pytest.raises(RemoteProtocolError, match=r"print.*\?") as raised:
            cut(junk + HELLO, size, max_junk=max_junk)
        assert repr(junk[:1])[2:3] in str(raised.value)
    assert len(cut(b"x" * 100 + HELLO, size, max_junk=100)) == 1


def test_junk_that_is_all_there_ever_is_is_kept_for_the_error() -> None:
    """D7"""
    codec = CborCodec(Limits(), max_junk=100)
    assert list(codec.feed(b"usage: plugin")) == []
    assert list(codec.feed(b" [--help]\n")) == []
    codec.end()
    assert codec.junk == b"usage: plugin [--help]\n"


@pytest.mark.parametrize("size", [1, 3, 9, 100])
def test_an_oversize_head_is_refused_before_its_content_comes(size: int) -> None:
    """F10"""
    for length in (1001, 1 << 16, 1 << 32, 1 << 62):
        with pytest.raises(RemoteProtocolError, match=str(length)):
            cut(HELLO + frame_head(length), size, max_frame=1000)
    assert len(cut(HELLO + frame_head(1000) + bytes(1000), 50, max_frame=1000)) == 2


def test_what_waits_for_a_large_frame_is_not_copied_for_each_piece() -> None:
    """F10, F11: a slow sender does not cost quadratic time."""
    cutter = Cutter(max_frame=1 << 30)
    cutter.feed(MAGIC + b"\x40")
    cutter.feed(frame_head(1 << 20))
    rest = cutter._rest
    for _ in range((1 << 20) // 1024 - 1):
        assert cutter.feed(bytes(1024)) == []
        assert cutter._rest is rest
    (frame,) = cutter.feed(bytes(1024))
    assert len(frame) == 1 << 20


class Deep(Target):
    def take(self, *values: Any) -> int:
        return len(values)


def test_the_depth_that_both_sides_have_in_common_holds_for_both(wire: Wire) -> None:
    """F10"""
    near, far = wire.link(
        Deep(), Deep(), limits=Limits(max_depth=30), far_limits=Limits(max_depth=10)
    )
    for side in (near, far):
        assert side.get(side.index.take(nested(10))) == 1
        with pytest.raises(CannotPass):
            side.index.take(nested(11))
