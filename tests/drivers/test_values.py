"""What passes: values by copy, references by identity, anywhere in arguments and results."""

from __future__ import annotations

import collections
import copy
import dataclasses
import enum
import functools
import math
import pickle
import threading
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import pytest

import capnode_py as capnode

NOON = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
PLAIN: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "byte": 255,
    "word": 2**64 - 1,
    "negative": -(2**64),
    "huge": 2**4000 + 1,
    "hugely negative": -(2**4000),
    "float": 0.1,
    "negative zero": -0.0,
    "infinity": math.inf,
    "empty text": "",
    "text": "tëxt \x00 €\U0001f600",
    "empty bytes": b"",
    "bytes": bytes(range(256)),
    "empty list": [],
    "list": [1, [2, [3, []]]],
    "empty dict": {},
    "dict": {"": 1, "a": {"b": {"c": None}}},
    "empty set": set(),
    "set": {1, "a", 2.5, None, (1, ("b",))},
    "datetime": NOON,
    "datetime elsewhere": NOON.astimezone(timezone(timedelta(hours=-3, minutes=-30))),
    "decimal": Decimal("-1234567890.0010"),
    "small decimal": Decimal("1E-400"),
    "uuid": UUID("12345678-1234-5678-1234-567812345678"),
}


def buried(value: Any, depth: int = 30) -> Any:
    """`value` as deep as this in lists and dicts."""
    for level in range(depth):
        value = {"x": value} if level % 2 else [value]
    return value


def dug(value: Any, depth: int = 30) -> Any:
    """What `buried` has buried."""
    for level in reversed(range(depth)):
        value = value["x"] if level % 2 else value[0]
    return value


def alike(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(one) is not type(other) or one != other:
        return False
    if isinstance(one, dict):
        return all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return all(map(alike, one, other))
    if isinstance(one, set):
        return {type(member) for member in one} == {type(member) for member in other}
    return repr(one) == repr(other)  # -0.0, the exponent of a Decimal, the zone of a datetime


async def test_plain_values_arrive_equal_and_of_the_same_type_at_any_depth(road):
    seen: list[Any] = []

    def echo(value: Any) -> Any:
        seen.append(value)
        return value

    near, _ = await road.open(far_index={"echo": echo})
    assert alike(await near.index.echo(PLAIN), PLAIN)
    assert alike(seen.pop(), PLAIN)
    deep = await near.index.echo(buried(PLAIN))
    assert alike(dug(deep), PLAIN)
    assert math.isnan(await near.index.echo(math.nan))


async def test_values_pass_as_keyword_arguments(any_road):
    near, _ = await any_road.open(far_index={"echo": lambda *args, **kwargs: [args, kwargs]})
    assert await near.index.echo(1, **PLAIN) == [[1], PLAIN]


class Tags(list):
    pass


class Point(NamedTuple):
    x: int
    y: int


class Loud(str):
    def __str__(self) -> str:
        return "LOUD"

    __slots__ = ()


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.StrEnum):
    FAST = "fast"


SUBCLASSES: list[tuple[Any, Any]] = [
    ((1, (2,)), [1, [2]]),
    (Point(1, 2), [1, 2]),
    (Tags([1]), [1]),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (frozenset({1}), {1}),
    (Loud("quiet"), "quiet"),
    (Level.LOW, 1),
    (Mode.FAST, "fast"),
    (bytearray(b"ab"), b"ab"),
    (memoryview(b"abcd")[::2], b"ac"),
]


async def test_a_subclass_arrives_as_its_base_type(any_road, subtests):
    near, _ = await any_road.open(
        far_index={"echo": lambda value: value, "it": lambda n: SUBCLASSES[n][0]}
    )
    for n, (value, arrives) in enumerate(SUBCLASSES):
        with subtests.test(repr(value)):
            assert alike((await near.index.echo([value]))[0], arrives)
            assert alike(await near.index.it(n), arrives)


@capnode.by_copy
@dataclasses.dataclass
class Row:
    name: str
    parts: list[Any]


@capnode.by_copy
class Color(enum.Enum):
    RED = "red"


async def test_values_of_every_size_come_back_as_they_went(any_road):
    """Alone, each: those that are small, and those that come in one read, go ways of their own."""
    near, _ = await any_road.open(far_index={"echo": lambda *values: list(values)[-1]})
    data = bytes(range(256)) * 1000
    text = "text \N{SNOWMAN}" * 40_000
    for edge in (24, 256, 1024, 64 * 1024, 128 * 1024):
        for size in (edge - 16, *range(edge - 5, edge + 2)):
            assert await near.index.echo(data[:size]) == data[:size]
            assert await near.index.echo(1, text[:size]) == text[:size]
            changing = bytearray(data[:size])
            promise = near.index.echo(-1.5, changing)
            changing[:] = bytes(size)
            assert await promise == data[:size]
            assert await near.index.echo(None, memoryview(data)[size::-1]) == data[size::-1]


async def test_long_byte_strings_pass_whole_and_in_order(any_road):
    """Both ways at once, among small calls."""
    near, far = await any_road.open(
        index={"echo": lambda value: value}, far_index={"echo": lambda value: value}
    )
    one = bytes(range(256)) * (8 * 1024)
    other = bytearray(one)
    promises = []
    for n in range(3):
        for peer in (near, far):
            promises.append((peer.index.echo(n), n))
            promises.append((peer.index.echo([n, {"long": one, "too": other}, one[n:]]), n))
    other[:] = bytes(len(other))  # which is too late to change what was sent
    for promise, n in promises:
        value = await promise
        assert value in (n, [n, {"long": one, "too": one}, one[n:]])


async def test_by_copy_passes_a_dataclass_as_its_fields_and_an_enum_as_its_value(any_road):
    def one() -> str:
        return "called"

    near, _ = await any_road.open(
        far_index={
            "echo": lambda value: value,
            "rows": lambda: [Row("a", [Row("b", [])]), {"color": Color.RED}],
            "with_function": lambda: Row("f", [one]),
        }
    )
    row = {"name": "a", "parts": [{"name": "b", "parts": []}]}
    assert await near.index.rows() == [row, {"color": "red"}]
    assert await near.index.echo([Row("a", [Row("b", [])]), Color.RED]) == [row, "red"]
    assert await near.index.with_function()["parts"][0]() == "called"


def test_by_copy_refuses_what_is_neither_dataclass_nor_enum():
    class Other:
        pass

    with pytest.raises(TypeError, match=r"by_copy takes a dataclass or an enum, not Other"):
        capnode.by_copy(Other)


async def test_an_exception_passes_as_a_value(any_road):
    seen: list[BaseException] = []
    near, _ = await any_road.open(
        far_index={"see": seen.append, "errors": lambda: [ValueError("a"), {"b": KeyError("k")}]}
    )
    await near.index.see(LookupError("here"))
    assert isinstance(seen[0], LookupError)
    assert str(seen[0]) == "here"
    first, second = await near.index.errors()
    assert isinstance(first, ValueError)
    assert isinstance(second["b"], KeyError)


class Thing(capnode.Target):
    """An object with every kind of member that a peer may reach."""

    def __init__(self, name: str = "thing") -> None:
        self.name = name

    def hello(self) -> str:
        return f"hello from {self.name}"

    async def slow_hello(self) -> str:
        return f"slow hello from {self.name}"

    @staticmethod
    def static() -> str:
        return "static"

    @classmethod
    def made(cls) -> str:
        return cls.__name__

    @functools.cached_property
    def child(self) -> Thing:
        return Thing(f"{self.name}'s child")

    @property
    def label(self) -> str:
        return self.name

    @functools.lru_cache  # noqa: B019 - it lives as long as this test
    def cached(self) -> str:
        return "cached"

    fixed = functools.partialmethod(hello)


def function() -> str:
    return "function"


async def coroutine_function() -> str:
    return "coroutine function"


def functions() -> dict[str, tuple[Any, str]]:
    """Each kind of callable that passes by reference, and what it returns."""
    thing = Thing()
    return {
        "function": (function, "function"),
        "coroutine function": (coroutine_function, "coroutine function"),
        "lambda": (lambda: "lambda", "lambda"),
        "bound method": (thing.hello, "hello from thing"),
        "bound coroutine method": (thing.slow_hello, "slow hello from thing"),
        "class method": (Thing.made, "Thing"),
        "static method": (Thing.static, "static"),
        "builtin method": ("done".lower, "done"),
        "partial": (functools.partial(str.upper, "partial"), "PARTIAL"),
    }


async def test_every_kind_of_function_passes_by_reference_in_arguments(road):
    async def call_all(named: dict[str, Any]) -> dict[str, Any]:
        return {name: await one() for name, one in dug(named, 5).items()}

    near, _ = await road.open(far_index={"call_all": call_all})
    given = {name: one for name, (one, _) in functions().items()}
    assert await near.index.call_all(buried(given, 5)) == {
        name: result for name, (_, result) in functions().items()
    }


async def test_every_kind_of_function_passes_by_reference_in_results(road):
    near, _ = await road.open(
        far_index={"all": lambda: buried({name: one for name, (one, _) in functions().items()}, 5)}
    )
    named = dug(await near.index.all(), 5)
    for name, (_, result) in functions().items():
        assert isinstance(named[name], capnode.Stub)
        assert await named[name]() == result


async def test_builtins_pass_by_reference(any_road, capsys):
    seen: list[Any] = []

    async def report(progress: Any, *values: Any) -> None:
        for value in values:
            await progress(value)

    near, _ = await any_road.open(far_index={"report": report, "print": print, "len": len})
    await near.index.report(seen.append, 1, "two")
    await near.index.report(print, "three")
    await near.index.print("four", end="!")
    assert seen == [1, "two"]
    assert capsys.readouterr().out == "three\nfour!"
    assert await near.index.len([1, 2]) == 2


def _references() -> list[Any]:
    thing = Thing()
    kept = [1]
    return [thing, function, thing.hello, kept.append, print, functools.partial(function), kept]


async def test_a_reference_that_comes_home_is_the_original(road):
    """I1."""
    *given, kept = _references()
    near, _ = await road.open(
        far_index={"echo": lambda value: value, "deep": lambda value: buried(value, 4)}
    )
    for one in given:
        home = await near.index.echo(one)
        if getattr(one, "__self__", None) in (None, __builtins__) or one is print:
            assert home is one
        assert home == one  # a bound method is made anew for each access, and is equal
    for one, home in zip(given, dug(await near.index.deep(given), 4), strict=True):
        assert home == one
    assert kept == [1]


async def test_the_same_object_is_the_same_stub_and_distinct_ones_are_distinct(road):
    """I2, T2: also through two routes, and a bound method is one with its object and function."""
    one, other = Thing("one"), Thing("other")
    far_index = {
        "all": lambda: [one, other, one, one.hello, one.hello, other.hello],
        "one": lambda: one,
        "nested": {"one": one},
        "same": lambda a, b: a is b,
    }
    near, _ = await road.open(far_index=far_index)
    first, second, third, hello, hello_again, other_hello = await near.index.all()
    assert first is third
    assert first is not second
    assert hello is hello_again
    assert hello is not other_hello
    assert await near.index.one() is first
    assert await near.index.nested.one is first
    assert {first: "it"}[third] == "it"
    assert first != second
    # And the other way round: what we send twice arrives as one stub.
    mine = Thing("mine")
    assert await near.index.same(mine, mine)
    assert await near.index.same(mine.hello, mine.hello)
    assert await near.index.same(function, function)
    assert not await near.index.same(mine, mine.hello)


async def test_a_stub_sent_home_is_the_object_itself(any_road):
    one = Thing()
    near, _ = await any_road.open(
        far_index={"one": lambda: one, "is_one": lambda value: dug(value, 4) is one}
    )
    stub = await near.index.one()
    assert await near.index.is_one(buried(stub, 4))


async def test_a_path_sent_home_is_what_stands_there(any_road):
    one = Thing()
    seen: list[Any] = []
    near, _ = await any_road.open(
        far_index={"thing": one, "data": {"n": [1, 2]}, "see": seen.append}
    )
    await near.index.see([near.index.thing, near.index.data.n[1], near.index.thing.label])
    await near.index.see(near.index.thing.hello)
    assert seen[0] == [one, 2, "thing"]
    assert seen[0][0] is one
    assert seen[1] == one.hello


async def test_the_index_itself_can_be_passed(any_road):
    class Api(capnode.Target):
        def me(self) -> Api:
            return self

        def is_me(self, value: Any) -> bool:
            return value is self

    near, far = await any_road.open(far_index=Api(), index=function)
    assert await near.index.me() is near.index
    assert await near.index.is_me(near.index)
    assert await near.request_index() is near.index
    assert await far.request_index() is far.index
    assert await far.index() == "function"


async def test_a_third_partys_reference_is_carried_on(any_road):
    """What came from one peer can be handed to another, both ways, and calls pass through us."""
    left_near, _ = await any_road.open(far_index={"thing": Thing("left's")})
    right_near, _ = await any_road.open(
        far_index={"call": lambda it: it.hello(), "give": lambda: [Thing("right's")]}
    )
    thing = await left_near.index.thing
    assert await right_near.index.call(thing) == "hello from left's"
    assert await right_near.index.call(left_near.index.thing) == "hello from left's"
    assert (await right_near.index.give())[0] is not thing


# What cannot pass.


class Plain:
    def __call__(self) -> None: ...


class Undecorated(enum.Enum):
    ONE = 1


@dataclasses.dataclass
class UndecoratedRow:
    n: int = 0


def _generator() -> Any:
    yield 1


CYCLE: list[Any] = []
CYCLE.append(CYCLE)

CANNOT_PASS: dict[str, tuple[Any, str]] = {
    "class": (Plain, "pass a function that makes one"),
    "exception class": (ValueError, "pass a function that makes one"),
    "object": (object(), "pass a dict of what the other side needs"),
    "callable object": (Plain(), r"write lambda \*args: f\(\*args\)"),
    "generator": (_generator(), r"pass list\(it\)"),
    "enum": (Undecorated.ONE, "@capnode.by_copy"),
    "dataclass": (UndecoratedRow(), "@capnode.by_copy"),
    "naive datetime": (datetime(2026, 1, 1), r"astimezone\(\)"),  # noqa: DTZ001
    "decimal": (Decimal("nan"), "not finite"),
    "dict key": ({1: "a"}, "keys are str"),
    "surrogate": ("\ud800", "not valid Unicode"),
    "complex": (1j, r"write \[value.real, value.imag\]"),
    "range": (range(3), r"write list\(value\)"),
    "lock": (threading.Lock(), "pass a dict of what the other side needs"),
    "module": (math, "pass a dict of what the other side needs"),
    "cycle": (CYCLE, "cyclic"),
    "too deep": (buried(1, 100), "nested deeper than the limit"),
}


async def test_what_cannot_pass_is_refused_at_the_call_and_nothing_is_sent(any_road, subtests):
    seen: list[Any] = []
    far_index = {"see": seen.append, "give": lambda name: ["ok", CANNOT_PASS[name][0]]}
    near, _ = await any_road.open(far_index=far_index)
    for name, (value, why) in CANNOT_PASS.items():
        with subtests.test(name):
            await _refused(near, value, why)
            # In a result it fails that call alone, where the caller sees it.
            with pytest.raises(TypeError, match=why):
                await near.index.give(name)
    await near.index.see("still here")
    assert seen == ["still here"]


async def _refused(near: capnode.Peer, value: Any, why: str) -> None:
    sent = near.stats().messages_sent
    with pytest.raises(capnode.CannotPass, match=why) as caught:
        near.index.see([Thing(), {"here": value}])  # not awaited: it raises at the call
    if value is not CYCLE:
        assert caught.value.path[:3] == [0, 1, "here"]
        assert "argument 0, at [1]['here']" in str(caught.value)
    with pytest.raises(TypeError, match=why):
        near.index.see(option=value)
    with pytest.raises(capnode.CannotPass):
        near.notify(near.index.see, value)
    assert (near.stats().messages_sent, near.stats().exports) == (sent, 1)


async def test_a_coroutine_is_refused_with_the_advice_to_await_it(any_road):
    near, _ = await any_road.open(far_index={"see": len})
    coroutine = coroutine_function()
    with pytest.raises(capnode.CannotPass, match="a coroutine: await it first"):
        near.index.see(coroutine)
    coroutine.close()


async def test_the_depth_limit_of_either_side_holds(any_road):
    near, _ = await any_road.open(
        far_index={"depth": lambda value: len(repr(value)), "deep": lambda n: buried(1, n)},
        far_limits=capnode.Limits(max_depth=10),
    )
    assert await near.index.depth(buried(1, 10))
    with pytest.raises(capnode.CannotPass, match="max_depth"):
        near.index.depth(buried(1, 11))
    assert await near.index.deep(10) == buried(1, 10)
    with pytest.raises(TypeError, match="max_depth"):
        await near.index.deep(11)


async def test_stubs_and_promises_cannot_be_copied_or_pickled(any_road):
    near, _ = await any_road.open(far_index={"thing": Thing()})
    stub = await near.index.thing
    for one in (stub, near.index.thing, near.index.thing.hello()):
        for make in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="belongs to its connection"):
                make(one)
