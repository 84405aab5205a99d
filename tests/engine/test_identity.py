"""Rule 4: the same object has one id and one stub, and sent home it is itself."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import CannotPass, Target
from capnode_py._messages import Mine
from capnode_py.testing import Wire


class Thing(Target):
    def __init__(self, name: str = "") -> None:
        self.name_ = name
        self.kept: list[Any] = []

    def method(self) -> str:
        return self.name_

    def other(self) -> str:
        return "other"

    def keep(self, *values: Any) -> None:
        self.kept += values

    def give(self) -> list[Any]:
        return self.kept

    @property
    def itself(self) -> Thing:
        return self

    @staticmethod
    def static() -> str:
        return "static"

    @classmethod
    def make(cls) -> str:
        return cls.__name__


def ids(wire_side: Any) -> list[int]:
    return [id for id in wire_side.session.exports.entries if id < 0]


def test_the_same_object_is_exported_once_and_imported_as_one_stub(wire: Wire) -> None:
    """T2, P2"""
    thing = Thing("one")
    far_thing = Thing()
    near, far = wire.link({"thing": thing, "again": [thing]}, far_thing)
    near.get(near.index.keep(thing, {"a": [thing]}))
    near.get(near.index.keep(thing))
    first, second, third = (
        far_thing.kept[0],
        far_thing.kept[1]["a"][0],
        far_thing.kept[2],
    )
    assert first is second is third
    assert far.get(far.index.thing) is first
    assert far.get(far.index.again[0]) is first
    assert hash(first) == hash(second)
    assert {first: 1}[second] == 1
    assert ids(near) == [-1]
    far_thing.kept.clear()


def test_distinct_objects_have_distinct_ids(wire: Wire) -> None:
    """T2: also if they are equal."""

    class Equal(Thing):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

    far_thing = Thing()
    near, _far = wire.link(far_index=far_thing)
    near.get(near.index.keep(Equal(), Equal(), lambda: 1, lambda: 1))
    assert ids(near) == [-1, -2, -3, -4]
    assert len(set(far_thing.kept)) == 4
    far_thing.kept.clear()


def test_bound_methods_of_one_object_and_function_are_one_export(wire: Wire) -> None:
    """T2: though each access makes a new method object."""
    thing, other, far_thing = Thing("a"), Thing("b"), Thing()
    near, far = wire.link(far_index=far_thing)
    calls: list[int] = []
    near.get(near.index.keep(thing.method, thing.method, thing.other, other.method))
    near.get(near.index.keep(calls.append, calls.append, [].append, Thing.make, Thing.make))
    kept = far_thing.kept
    assert kept[0] is kept[1]
    assert kept[4] is kept[5]
    assert kept[7] is kept[8]
    assert len({*kept}) == 3 + 2 + 1
    assert [far.get(kept[n]()) for n in (0, 2, 3, 7)] == ["a", "other", "b", "Thing"]
    far.get(kept[4](1))
    assert calls == [1]
    kept.clear()
    del kept


def test_sent_home_it_is_the_original_object(wire: Wire) -> None:
    """I1"""
    thing, far_thing = Thing(), Thing()
    near, _far = wire.link(far_index=far_thing)

    def function() -> None: ...

    partial = functools.partial(function)
    originals = [thing, function, print, thing.method, [].append, partial, Thing.static]
    near.get(near.index.keep(*originals))
    back = near.get(near.index.give())
    assert back == originals
    for n in (0, 1, 2, 5, 6):
        assert back[n] is originals[n]
    far_thing.kept.clear()


def test_a_stub_sent_home_as_argument_is_the_original_object(wire: Wire) -> None:
    """I1, I2"""
    inner = Thing("inner")
    far_thing = Thing()
    far_thing.kept.append(inner)
    near, _far = wire.link(far_index=far_thing)
    (stub,) = near.get(near.index.give())
    near.get(near.index.keep(stub, {"x": [stub]}, near.index))
    assert far_thing.kept[1] is inner
    assert far_thing.kept[2]["x"][0] is inner
    assert far_thing.kept[3] is far_thing
    far_thing.kept.clear()


def test_an_index_crosses_as_the_index(wire: Wire) -> None:
    """T2, I1: uncounted, and it arrives as `peer.index`."""
    near_thing, far_thing = Thing("near"), Thing("far")
    near, far = wire.link(near_thing, far_thing)
    near.get(near.index.keep(near_thing))
    assert far_thing.kept[0] is far.index
    assert near.sent[0].fields[2] == [Mine(0)]
    assert ids(near) == []
    assert near.get(near.index.itself) is near.index
    assert near.get(near.index.give()) == [near_thing]


def test_a_dict_index_is_live_and_crosses_by_copy(wire: Wire) -> None:
    """T2: a value that is called is one that is in it now."""
    index: dict[str, Any] = {"a": 1}
    near, _far = wire.link(far_index=index)
    assert near.get(near.index.a) == 1
    index["b"] = lambda: 2
    assert near.get(near.index.b()) == 2
    whole = near.get(near.peer.request_index())
    assert whole["a"] == 1
    assert near.get(whole["b"]()) == 2


def test_an_index_that_is_a_function_is_called_through_the_stub(wire: Wire) -> None:
    """C1"""
    near, _far = wire.link(far_index=lambda x: x + 1)
    assert near.get(near.index(1)) == 2
    assert near.get(near.peer.request_index()) is near.index


def test_a_path_passed_home_arrives_as_the_bound_method(wire: Wire) -> None:
    """I1, P10"""
    inner = Thing("inner")
    far_thing = Thing()
    far_thing.kept.append({"inner": inner, "list": [5, 6]})
    near, _far = wire.link(far_index=far_thing)
    (value,) = near.get(near.index.give())
    stub = value["inner"]
    near.get(near.index.keep(stub.method, near.index.keep, [stub.itself]))
    assert far_thing.kept[1] == inner.method
    assert far_thing.kept[2] == far_thing.keep
    assert far_thing.kept[3][0] is inner
    far_thing.kept.clear()


def test_a_reference_of_a_third_party_is_proxied_and_is_one_stub(wire: Wire) -> None:
    """I2, T2"""
    far_thing, thing = Thing(), Thing("third")
    near, far = wire.link(far_index=far_thing)
    middle, third = wire.link(far_index={"thing": lambda: thing}, names=("middle", "third"))
    stub = near.get(middle.index.thing()) if middle.wire is near.wire else None
    near.get(near.index.keep(stub, stub))
    assert far_thing.kept[0] is far_thing.kept[1]
    assert far.get(far_thing.kept[0].method()) == "third"
    assert ids(third) == [-1]
    far_thing.kept.clear()


def test_two_routes_to_an_object_on_one_connection_give_one_stub(wire: Wire) -> None:
    """I2: by a result, by a property and by an argument of a callback."""
    thing = Thing("one")
    seen: list[Any] = []

    def tell(callback: Any) -> Any:
        return callback(thing)

    near, _far = wire.link(far_index={"thing": thing, "get": lambda: [thing], "tell": tell})
    by_read = near.get(near.index.thing)
    (by_result,) = near.get(near.index.get())
    near.get(near.index.tell(seen.append))
    assert by_read is by_result is seen[0]
    seen.clear()


def test_stubs_cannot_be_copied_pickled_or_iterated(wire: Wire) -> None:
    """I3: a stub belongs to its connection, and a promise is not its value."""
    near, _far = wire.link(far_index=Thing())
    stub, promise = near.index, near.index.method
    for far_value in (stub, promise):
        with pytest.raises(TypeError, match="belongs to its connection"):
            pickle.dumps(far_value)
        with pytest.raises(TypeError, match="belongs to its connection"):
            copy.copy(far_value)
        with pytest.raises(TypeError):
            iter(far_value)
        with pytest.raises(TypeError):
            "x" in far_value  # noqa: B015
        with pytest.raises(AttributeError, match="underscore"):
            far_value._name  # noqa: B018
        with pytest.raises(TypeError, match="slice"):
            far_value[1:2]
    with pytest.raises(TypeError, match="did you forget await"):
        bool(promise)
    with pytest.raises(TypeError):
        near.spawn(stub).result()


def test_what_is_neither_data_nor_meant_by_reference_does_not_pass(wire: Wire) -> None:
    """I3: deny by default."""
    near, _far = wire.link(far_index=Thing())

    class Plain: ...

    class Callable_:  # noqa: N801
        def __call__(self) -> None: ...

    async def coroutine() -> None: ...

    numbers = (n for n in range(3))
    for value in (Plain(), Plain, Thing, Callable_(), iter("ab"), numbers, range(3), ...):
        with pytest.raises(CannotPass):
            near.index.keep(value)
    made = coroutine()
    with pytest.raises(CannotPass, match="await it first"):
        near.index.keep(made)
    made.close()


def test_by_copy_classes_pass_their_fields_and_arrive_plain(wire: Wire) -> None:
    """C1"""
    import dataclasses
    import enum

    @capnode.by_copy
    @dataclasses.dataclass
    class Point:
        x: int
        y: Any

    @capnode.by_copy
    class Colour(enum.Enum):
        RED = "red"

    near, _far = wire.link(far_index=lambda value: value)
    assert near.get(near.index(Point(1, Point(2, Colour.RED)))) == {
        "x": 1,
        "y": {"x": 2, "y": "red"},
    }
