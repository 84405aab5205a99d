"""Rule 12: what a peer may reach. Deny by default; texts do not list what exists."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from capnode_py import RemoteError, Target
from capnode_py.testing import Wire


class Base(Target):
    def inherited(self) -> str:
        return "inherited"


class Mixin:
    def mixed_in(self) -> str:
        return "mixed in"


class Thing(Base, Mixin):
    class_attribute = 5
    nested_class = Base

    __slots__ = ("slot",)

    def __init__(self) -> None:
        self.instance_attribute = "secret"
        self.instance_function = lambda: "secret"
        self.slot = "secret"

    def method(self) -> str:
        return "method"

    async def coroutine(self) -> str:
        return "coroutine"

    @property
    def prop(self) -> dict[str, Any]:
        return {"a": [1, {"b": 2}]}

    @functools.cached_property
    def cached(self) -> str:
        return "cached"

    @staticmethod
    def static() -> str:
        return "static"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__

    @functools.lru_cache  # noqa: B019
    def remembered(self) -> str:
        return "remembered"

    partial = functools.partialmethod(method)

    def _private(self) -> str:
        return "secret"

    def __call__(self) -> str:
        return "secret"

    def __getattr__(self, name: str) -> str:
        return "secret"


class Plain:
    attribute = "secret"

    def method(self) -> str:
        return "secret"


def function() -> str:
    return "called"


function.attribute = "secret"  # type: ignore[attr-defined]


class SubDict(dict):
    def __missing__(self, key: Any) -> str:
        return "secret"

    def method(self) -> str:
        return "secret"


def index() -> dict[str, Any]:
    return {
        "thing": Thing(),
        "plain": Plain(),
        "function": function,
        "text": "text",
        "number": 5,
        "list": [1, [2, function]],
        "tuple": (1, (2, function)),
        "dict": {"key": {"_under": 1, "items": 2}},
        "sub": SubDict(key=1),
        "a_class": Thing,
        "bound": Plain().method,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "method"),
        ("inherited", "inherited"),
        ("mixed_in", "mixed in"),
        ("coroutine", "coroutine"),
        ("static", "static"),
        ("of_class", "Thing"),
        ("remembered", "remembered"),
        ("partial", "method"),
    ],
)
def test_public_methods_of_the_class_can_be_called(wire: Wire, name: str, value: str) -> None:
    """C1"""
    near, _far = wire.link(far_index=index())
    assert near.get(near.index.thing[name]()) == value


def test_properties_can_be_read_and_walked_through(wire: Wire) -> None:
    """C1"""
    near, _far = wire.link(far_index=index())
    assert near.get(near.index.thing.prop) == {"a": [1, {"b": 2}]}
    assert near.get(near.index.thing.prop.a[1].b) == 2
    assert near.get(near.index.thing.cached) == "cached"
    assert near.get(near.index.thing.cached) == "cached"  # now also in the instance's dict


def test_dicts_lists_and_tuples_can_be_walked_through(wire: Wire) -> None:
    """C1"""
    near, _far = wire.link(far_index=index())
    assert near.get(near.index.list[1][0]) == 2
    assert near.get(near.index.list[-1][1]()) == "called"
    assert near.get(near.index.tuple[1][1]()) == "called"
    assert near.get(near.index.dict.key["_under"]) == 1
    assert near.get(near.index.dict.key["items"]) == 2
    assert near.get(near.index.bound()) == "secret"  # meant to be called: it is in the dict


FORBIDDEN: list[tuple[Any, ...]] = [
    ("thing", "class_attribute"),
    ("thing", "nested_class"),
    ("thing", "instance_attribute"),
    ("thing", "instance_function"),
    ("thing", "slot"),
    ("thing", "_private"),
    ("thing", "__init__"),
    ("thing", "__class__"),
    ("thing", "__dict__"),
    ("thing", "__getattr__"),
    ("thing", "__call__"),
    ("thing", "anything"),
    ("thing", ""),
    ("thing", 0),
    ("thing", "method", "__func__"),
    ("thing", "method", "__self__"),
    ("thing", "prop", "keys"),
    ("thing", "prop", "missing"),
    ("plain", "method"),
    ("plain", "attribute"),
    ("function", "attribute"),
    ("function", "__globals__"),
    ("text", "upper"),
    ("text", 0),
    ("number", "real"),
    ("list", "append"),
    ("list", "0"),
    ("list", 9),
    ("tuple", "count"),
    ("dict", "keys"),
    ("dict", "key", "missing"),
    ("sub", "method"),
    ("sub", "missing"),
    ("a_class", "of_class"),
    ("missing",),
    ("_missing",),
    (0,),
]


@pytest.mark.parametrize("path", FORBIDDEN, ids=str)
def test_nothing_else_can_be_reached(wire: Wire, path: tuple[Any, ...]) -> None:
    """P6, C1"""
    near, _far = wire.link(far_index=index())
    place = near.index
    for step in path:
        place = place[step]
    for use in (place, place(), place.more):
        with pytest.raises((AttributeError, LookupError, TypeError)) as raised:
            near.get(use)
        text = str(raised.value)
        assert isinstance(raised.value, RemoteError)
        assert "secret" not in text
        for exists in ("inherited", "mixed_in", "instance_function", "of_class", "remembered"):
            assert exists not in text or exists in path
    assert near.get(near.index.thing.method()) == "method"


def test_a_target_itself_cannot_be_called(wire: Wire) -> None:
    """P6: `__call__` is an underscore name."""
    near, _far = wire.link(far_index=index())
    with pytest.raises(TypeError):
        near.get(near.index.thing())
    stub = near.get(near.index.thing)
    with pytest.raises(TypeError):
        near.get(stub())


def test_classes_and_callable_objects_cannot_be_called(wire: Wire) -> None:
    """P6: what does not pass as a function is none."""

    class Caller:
        def __call__(self) -> str:
            raise AssertionError("called from afar")

        def __getattr__(self, name: str) -> str:
            raise AssertionError("asked for an attribute from afar")

    near, _far = wire.link(far_index={"a_class": Thing, "caller": Caller(), "type": type})
    for name in ("a_class", "caller", "type"):
        with pytest.raises(TypeError, match="call"):
            near.get(near.index[name]())
        with pytest.raises(TypeError):
            near.get(near.index[name])


def test_names_of_the_base_class_itself_cannot_be_reached(wire: Wire) -> None:
    """P6: nothing of `object`, nothing of `Target`."""
    near, _far = wire.link(far_index=Base())
    for name in {*dir(object), *dir(Target)}:
        with pytest.raises(AttributeError):
            near.get(near.index[name])


def test_a_subclass_can_take_a_name_out_of_reach(wire: Wire) -> None:
    """P6: what is found first in the class decides."""

    class Closed(Base):
        inherited = None  # type: ignore[assignment]

    near, _far = wire.link(far_index=Closed())
    with pytest.raises(AttributeError):
        near.get(near.index.inherited())


def test_an_error_in_a_property_is_that_error(wire: Wire) -> None:
    """P6, C2"""

    class Broken(Target):
        @property
        def value(self) -> None:
            raise ZeroDivisionError("in the property")

    near, _far = wire.link(far_index=Broken())
    with pytest.raises(ZeroDivisionError, match="in the property"):
        near.get(near.index.value.more)
