"""Lending: what a facade answers, what comes through it, and what is left when it is taken back.

Each test that takes `way` runs on four ways to hold a facade: here, over a wire, of a stub, and of
a stub over a second wire.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import RemoteError, Revoked, Target
from capnode_py._facades import FarLent, Lent, _FarPath
from capnode_py._membrane import Terms
from capnode_py.testing import FakeDriver, Wire

WAYS = ["here", "afar", "of a stub", "of a stub, afar"]


class Box(Target):
    """Holds what it is given, and gives it back."""

    def __init__(self, name: str = "box") -> None:
        self._name = name
        self._child: Box | None = None
        self._kept: list[Any] = []

    def name(self) -> str:
        return self._name

    def child(self) -> Box:
        if self._child is None:
            self._child = Box(f"{self._name}'s child")
        return self._child

    @property
    def inner(self) -> Box:
        return self.child()

    @property
    def parts(self) -> dict[str, Any]:
        return {"list": [self.child(), 1], "dict": {"box": self.child()}, "name": self.child().name}

    def nested(self) -> Any:
        return [1, {"boxes": [self.child(), self]}, self.child().name]

    def itself(self) -> Box:
        return self

    def namer(self) -> Callable[[], str]:
        return self.name

    def is_child(self, value: Any) -> bool:
        return value is self._child

    def are_children(self, values: Any) -> list[bool]:
        return [value is self._child for value in values["boxes"]]

    def keep(self, value: Any) -> None:
        self._kept.append(value)

    def kept(self) -> Any:
        return self._kept[-1]

    def give_to(self, function: Any) -> Any:
        return function(self.child())

    def fail(self) -> None:
        raise KeyError("as ever")

    def echo(self, value: Any) -> Any:
        return value

    def _secret(self) -> str:
        return "secret"


class Way:
    """How the holder of a facade comes by it. `handle` is what he holds of it."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.name = name
        self._given: list[Any] = []
        self._obj: list[Any] = []
        self.holder: FakeDriver | None = None
        self._lender: FakeDriver | None = None
        if "stub" in name:
            self._lender, _ = wire.link(far_index={"get": self._obj.pop}, names=("lender", "owner"))
            self.holder = self._lender
        if "afar" in name:
            self.holder, _ = wire.link(
                far_index={"get": self._given.pop}, names=("holder", "the lender")
            )

    @property
    def is_local(self) -> bool:
        return self.holder is None

    def lendable(self, obj: Any) -> Any:
        """What the lender has of `obj`."""
        if self._lender is None:
            return obj
        self._obj.append(obj)
        return self._lender.get(self._lender.index.get())

    def handed(self, facade: Any) -> Any:
        """What the holder has of it."""
        if "afar" not in self.name or self.holder is None:
            return facade
        self._given.append(facade)
        return self.holder.get(self.holder.index.get())

    def lend(self, obj: Any, **options: Any) -> tuple[Any, Any]:
        facade, revoke = capnode.revocable(self.lendable(obj), **options)
        return self.handed(facade), revoke

    def get(self, made: Any) -> Any:
        """The value of what a call has given."""
        if type(made) is capnode.Promise:
            assert self.holder is not None
            return self.holder.get(made)
        return made

    def fails(self, call: Callable[[], Any], reason: str = "enough") -> None:
        """It fails with this reason, by the class of here or of afar."""
        with pytest.raises((Revoked, RemoteError)) as caught:
            self.get(call())
        error = caught.value
        assert type(error) is (RemoteError if "afar" in self.name else Revoked)
        assert getattr(error, "remote_type", "Revoked") == "Revoked"
        assert error.args == (reason,)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, wire: Wire) -> Way:
    return Way(wire, request.param)


def slow() -> None:
    """Its outcome is told by the test."""


# The membrane.


def test_all_public_names_of_a_facade_are_those_of_the_object() -> None:
    for kind in (Lent, FarLent, _FarPath):
        assert [name for name in dir(kind) if name[0] != "_"] == []


def test_a_facade_answers_as_the_object_does(way: Way) -> None:
    handle, _ = way.lend(Box())
    assert way.get(handle.name()) == "box"
    assert way.get(handle.echo([1, {"a": None}])) == [1, {"a": None}]
    assert way.get(handle.child().name()) == "box's child"
    assert way.get(handle.inner.name()) == "box's child"
    with pytest.raises(KeyError, match="as ever"):
        way.get(handle.fail())


def test_a_facade_reaches_no_more_than_the_object(way: Way) -> None:
    handle, _ = way.lend(Box())
    for name in ("_secret", "_name", "nothing", "_kept"):
        with pytest.raises(AttributeError):
            way.get(getattr(handle, name)() if way.is_local else handle[name]())
    if not way.is_local:
        for name in ("_obj", "_terms", "_held", "_step", "_function", "_watch"):  # of the facade
            with pytest.raises(AttributeError):
                way.get(handle[name]())


def test_a_function_is_lent_as_an_object_is(way: Way) -> None:
    box = Box()
    handle, revoke = way.lend(box.child)
    derived = way.get(handle())
    assert way.get(derived.name()) == "box's child"
    revoke("enough")
    way.fails(lambda: handle())
    way.fails(lambda: derived.name())


def test_what_is_obtained_through_a_facade_is_taken_back_with_it(way: Way) -> None:
    """M8, M6: results, properties, paths, and what stands inside lists and dicts."""
    handle, revoke = way.lend(Box())
    parts = way.get(handle.parts)
    nested = way.get(handle.nested())
    inner = way.get(handle.inner)
    derived = [
        way.get(handle.child()).name,
        inner.name,
        way.get(inner.child()).name,
        way.get(handle.itself()).name,
        way.get(handle.namer()),
        parts["list"][0].name,
        parts["dict"]["box"].name,
        parts["name"],
        nested[1]["boxes"][0].name,
        nested[1]["boxes"][1].name,
        nested[2],
    ]
    for name in derived:
        assert "box" in way.get(name())
    revoke("enough")
    for name in derived:
        way.fails(name)


def test_what_a_callback_is_given_is_taken_back_too(way: Way) -> None:
    """M8: a callback that was passed in is one more way out."""
    handle, revoke = way.lend(Box())
    leaked: list[Any] = []
    way.get(handle.give_to(leaked.append))
    (child,) = leaked
    assert way.get(child.name()) == "box's child"
    revoke("enough")
    way.fails(lambda: child.name())


def test_a_callback_that_is_kept_inside_is_taken_back_too(wire: Wire) -> None:
    box = Box()
    facade, revoke = capnode.revocable(box)
    said: list[str] = []
    facade.keep(said.append)
    box._kept[0]("before")
    revoke("enough")
    with pytest.raises(Revoked, match="enough"):
        box._kept[0]("after")
    assert said == ["before"]


def test_a_facade_that_comes_back_is_what_it_stands_for(way: Way) -> None:
    """M4"""
    handle, _ = way.lend(Box())
    child = way.get(handle.child())
    assert way.get(handle.is_child(child)) is True
    assert way.get(handle.are_children({"boxes": [child, handle]})) == [True, False]
    assert way.get(handle.is_child(handle.inner)) is True  # also one that is not here yet


def test_what_was_passed_in_comes_out_as_itself(way: Way) -> None:
    """M4, the other way: a function goes in, and the very same comes out."""
    handle, _ = way.lend(Box())

    def mine() -> str:
        return "mine"

    way.get(handle.keep(mine))
    assert way.get(handle.kept()) is mine


def test_the_same_object_gives_the_same_facade(way: Way) -> None:
    """M7"""
    handle, _ = way.lend(Box())
    child = way.get(handle.child())
    assert way.get(handle.child()) is child
    assert way.get(handle.nested())[1]["boxes"] == [child, handle]
    assert (way.get(handle.inner)) is child


def test_after_the_revocation_nothing_is_kept() -> None:
    """M8: the identity map is empty."""
    box = Box()
    terms = Terms(revocable=True, derived=True)
    facade = terms.facade(box)
    child, name = facade.child(), facade.name
    assert len(terms._facades) == 3
    terms.revoke("enough")
    assert len(terms._facades) == len(terms._outcomes) == len(terms._running) == 0
    with pytest.raises(Revoked):
        terms.facade(box)
    assert child is not None
    assert name is not None


def test_the_object_is_let_go_at_once(way: Way) -> None:
    """M11"""
    box = Box()
    alive = weakref.ref(box)
    handle, revoke = way.lend(box)
    child = way.get(handle.child())
    promise = handle.child()  # an answer that is held unawaited
    del box
    for side in (way.holder, way._lender):
        if side is not None:
            side.wire.run()
    revoke("enough")
    for side in (way.holder, way._lender):
        if side is not None:  # a stub is released by a message
            side.wire.run()
    if "afar" not in way.name:
        assert alive() is None
    del promise, child
    for side in (way.holder, way._lender):
        if side is not None:
            side.wire.run()
    assert alive() is None
    way.fails(lambda: handle.name())


def test_dropping_all_facades_lets_go_of_the_object(way: Way) -> None:
    box = Box()
    alive = weakref.ref(box)
    handle, revoke = way.lend(box)
    way.get(handle.child())
    assert revoke.is_in_use
    del box, handle
    for side in (way.holder, way._lender):
        if side is not None:
            side.wire.run()
    assert not revoke.is_in_use
    assert alive() is None


def test_a_second_revoke_does_nothing(way: Way) -> None:
    handle, revoke = way.lend(Box())
    revoke("enough")
    revoke("something else")
    way.fails(lambda: handle.name())


def test_the_reason_may_be_an_exception(way: Way) -> None:
    handle, revoke = way.lend(Box())
    revoke(reason=PermissionError("not paid"))
    for _ in range(2):
        with pytest.raises(PermissionError, match="not paid"):
            way.get(handle.name())


def test_a_reason_is_a_text_or_an_exception() -> None:
    _, revoke = capnode.revocable(Box())
    for reason in (5, KeyboardInterrupt(), ValueError):
        with pytest.raises(TypeError, match=r"a text or an exception.*revoke\("):
            revoke(reason)


def test_a_method_that_takes_its_own_object_back_fails_with_the_reason(way: Way) -> None:
    class Closing(Target):
        def close(self) -> str:
            revoke("enough")
            return "done"

    handle, revoke = way.lend(Closing())
    way.fails(handle.close)


def test_a_call_that_is_under_way_fails_with_the_reason(wire: Wire) -> None:
    """M8, M10, without a loop: the far side has not answered yet, and is told to stop."""
    near, far = wire.link(far_index={"slow": slow})
    far.holding = True
    facade, revoke = capnode.revocable(near.index)
    promise = facade.slow()
    waiting = near.spawn(promise)
    through = near.spawn(promise.more())
    wire.run()
    revoke("enough")
    wire.run()
    for task in (waiting, through):
        with pytest.raises(Revoked, match="enough"):
            task.result()
    assert far.stopped == ["slow"]
    far.session.fail(far.held.pop(), TimeoutError("cancelled"))


@pytest.mark.filterwarnings("error")
def test_what_does_not_begin_behind_a_facade_is_closed(wire: Wire) -> None:
    """A coroutine that nobody awaits would be warned of."""
    began: list[str] = []

    class Late(Target):
        async def late(self) -> None:
            began.append("late")

    facade, revoke = capnode.revocable(Late())
    near, far = wire.link(far_index=facade)
    far.eager = False
    task = near.spawn(near.index.late())
    near.flush()
    far.received(far.inbox.popleft().data)  # it is there, and its task has not begun
    task.cancel()
    wire.run()
    unbegun = facade.late()
    assert unbegun.__qualname__.endswith("Late.late")  # which a warning would name
    unbegun.close()
    unbegun = facade.late()
    revoke("enough")
    with pytest.raises(Revoked):
        unbegun.send(None)
    del unbegun
    gc.collect()
    assert began == []


def test_a_cancelled_call_is_cancelled_through_the_facade(wire: Wire) -> None:
    """K1: through two connections, and a facade in the middle."""
    middle, owner = wire.link(far_index={"slow": slow}, names=("middle", "owner"))
    owner.holding = True
    facade, _ = capnode.revocable(middle.index)
    holder, _ = wire.link(far_index=facade, names=("holder", "the middle"))
    task = holder.spawn(holder.index.slow())
    wire.run()
    task.cancel()
    wire.run()
    assert owner.stopped == ["slow"]
    owner.session.fail(owner.held.pop(), TimeoutError("gone"))
    wire.run()


def test_a_promise_in_a_value_is_lent_too(wire: Wire) -> None:
    """M2"""
    near, _ = wire.link(far_index=Box())

    class Sender(Target):
        def send(self) -> Any:
            return [near.index.child()]

        def itself(self) -> Any:
            return near.index.child()

    facade, revoke = capnode.revocable(Sender())
    (promise,) = facade.send()
    child, same = near.get(promise), near.get(facade.itself())
    assert child is same
    assert near.get(child.name()) == "box's child"
    revoke("enough")
    with pytest.raises(Revoked):
        near.get(child.name())


def test_data_without_references_is_not_copied() -> None:
    value = {"list": [1, (2, 3)], "set": {4}}
    facade, _ = capnode.revocable(Box())
    assert facade.echo(value) is value


@capnode.by_copy
@dataclasses.dataclass
class Pair:
    one: Any
    other: Any


def test_what_passes_by_copy_is_lent_by_its_fields(way: Way) -> None:
    class Pairs(Target):
        def pair(self) -> Pair:
            return Pair(Box(), 1)

    handle, revoke = way.lend(Pairs())
    pair = way.get(handle.pair())
    assert pair["other"] == 1
    assert way.get(pair["one"].name()) == "box"
    revoke("enough")
    way.fails(lambda: pair["one"].name())


def test_tuples_and_sets_are_looked_into() -> None:
    box = Box()
    facade, revoke = capnode.revocable(lambda: ((box,), {box.name}, frozenset({box.name})))
    (one,), names, frozen = facade()
    assert type(one) is not Box
    (name,) = names
    assert frozen == {name}
    assert name() == "box"
    revoke("enough")
    with pytest.raises(Revoked):
        name()


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    facade, _ = capnode.revocable(lambda: loop)
    with pytest.raises(ValueError, match="inside each other"):
        facade()


# The caretaker.


def test_without_derived_results_pass_as_they_are(way: Way) -> None:
    """M10: not transitive."""
    handle, revoke = way.lend(Box(), derived=False)
    child = way.get(handle.child())
    revoke("enough")
    assert way.get(child.name()) == "box's child"
    way.fails(lambda: handle.name())


def test_without_derived_what_a_path_leads_to_is_taken_back(way: Way) -> None:
    """A method that is read is no way around."""
    handle, revoke = way.lend(Box(), derived=False)
    name = way.get(handle.name)
    inner = way.get(handle.inner)
    assert way.get(name()) == "box"
    assert way.get(inner.name()) == "box's child"
    revoke("enough")
    way.fails(lambda: name())
    way.fails(lambda: inner.name())


def test_it_is_in_use_while_somebody_holds_a_facade(wire: Wire) -> None:
    """M10: is_in_use"""
    given: list[Any] = []
    near, _ = wire.link(far_index={"get": given.pop})
    facade, revoke = capnode.revocable(Box(), derived=False)
    given.append(facade)
    del facade
    assert revoke.is_in_use
    stub = near.get(near.index.get())
    assert revoke.is_in_use
    stub.dealloc()
    wire.run()
    assert not revoke.is_in_use
    facade, revoke = capnode.revocable(Box())
    revoke()
    assert not revoke.is_in_use
    assert facade is not None


# Attenuation.


def attenuated(way: Way, obj: Any, allow: Any) -> Any:
    return way.handed(capnode.attenuate(way.lendable(obj), allow=allow))


def test_only_the_allowed_names_can_be_reached(way: Way) -> None:
    handle = attenuated(way, Box(), {"name"})
    assert way.get(handle.name()) == "box"
    for name in ("child", "inner", "echo", "no_such_thing"):
        with pytest.raises(AttributeError) as caught:
            way.get(getattr(handle, name)())
        others = {"name", "child", "inner", "echo"} - {name}
        assert not any(f"{other!r}" in str(caught.value) for other in others)
    with pytest.raises(AttributeError):
        way.get(handle.inner)


def test_what_is_not_allowed_looks_like_what_is_not_there() -> None:
    facade = capnode.attenuate(Box(), allow={"name"})
    texts = []
    for name in ("child", "nothing"):
        with pytest.raises(AttributeError) as caught:
            getattr(facade, name)
        texts.append(str(caught.value).replace(name, "..."))
    assert texts[0] == texts[1] == "Box has no method or property '...' to reach"


def test_the_same_names_hold_for_what_a_path_leads_to(way: Way) -> None:
    handle = attenuated(way, Box(), ["inner", "name", "parts"])
    assert way.get(handle.inner.name()) == "box's child"
    assert way.get(handle.inner.inner.name()) == "box's child's child"
    assert way.get(handle.parts["list"][0].name()) == "box's child"
    assert way.get(handle.parts["dict"]["box"].inner.name()) == "box's child's child"
    inner = way.get(handle.inner)
    parts = way.get(handle.parts)
    assert way.get(inner.name()) == "box's child"
    for call in (
        lambda: handle.inner.echo(1),
        lambda: handle.inner.inner.echo(1),
        lambda: handle.parts["list"][0].echo(1),
        lambda: inner.echo(1),
        lambda: inner.inner.echo(1),
        lambda: parts["list"][0].echo(1),
        lambda: parts["dict"]["box"].echo(1),
    ):
        with pytest.raises(AttributeError):
            way.get(call())


def test_what_a_method_returns_passes_as_it_is(way: Way) -> None:
    """A facet: who may call `child` gets the child."""
    handle = attenuated(way, Box(), {"child"})
    child = way.get(handle.child())
    assert way.get(child.echo(1)) == 1
    assert way.get(handle.child().echo(1)) == 1


def test_a_pipelined_call_is_attenuated_as_well(wire: Wire) -> None:
    """All of it in one frame: nothing here can look at what a step has given."""
    facade = capnode.attenuate(Box(), allow={"inner", "name"})
    near, far = wire.link(far_index={"get": lambda: facade})
    got = near.index.get()
    good, bad, worse = got.inner.name(), got.inner.child(), got.inner.inner.echo(1)
    near.flush()
    far.deliver()
    assert near.get(good) == "box's child"
    for promise in (bad, worse):
        with pytest.raises(AttributeError):
            near.get(promise)


def test_an_allowed_path_on_a_stub_is_one_message(wire: Wire) -> None:
    near, far = wire.link(far_index=Box())
    facade = capnode.attenuate(near.index, allow={"inner", "name"})
    assert near.get(facade.inner.inner.name()) == "box's child's child"
    assert near.counts()["call"] == 1
    assert far.started == ["inner.inner.name"]


def test_only_the_names_of_an_attenuated_stub_are_lent(wire: Wire) -> None:
    near, _ = wire.link(far_index={"f": lambda: {"name": lambda: "called"}})
    function = near.get(near.index.f)
    facade = capnode.attenuate(function, allow={"name"})
    with pytest.raises(TypeError, match="cannot be called"):
        near.get(facade())
    index = capnode.attenuate(near.index, allow={"f"})
    assert near.get(near.get(near.get(index.f)())["name"]()) == "called"


def test_names_that_are_allowed_are_a_set_of_names() -> None:
    with pytest.raises(TypeError, match=r"write allow=\{'read'\}"):
        capnode.attenuate(Box(), allow="read")
    for allow in ({1}, [b"read"], None, {"read": 1}, iter("read")):
        with pytest.raises(TypeError, match="allow= takes"):
            capnode.attenuate(Box(), allow=allow)  # type: ignore[arg-type]
    names = {"name"}
    facade = capnode.attenuate(Box(), allow=names)
    names.add("echo")  # it was taken as it was
    with pytest.raises(AttributeError):
        facade.echo(1)


def test_a_function_has_no_names_to_choose_from() -> None:
    for function in (print, Box().name, capnode.revocable(Box().name)[0]):
        with pytest.raises(TypeError, match="no names"):
            capnode.attenuate(function, allow={"name"})


# Both.


def test_facades_nest(way: Way) -> None:
    """M9: two loans of one object, one on the other, each end for themselves."""
    outer, revoke_outer = capnode.revocable(way.lendable(Box()))
    inner, revoke_inner = capnode.revocable(capnode.attenuate(outer, allow={"inner", "name"}))
    first, second = way.handed(outer), way.handed(inner)
    child = way.get(second.inner)
    assert way.get(child.name()) == "box's child"
    for call in (lambda: second.echo(1), lambda: child.echo(1), lambda: second.inner.echo(1)):
        with pytest.raises(AttributeError):
            way.get(call())
    revoke_inner("enough")
    way.fails(lambda: second.name())
    way.fails(lambda: child.name())
    assert way.get(first.name()) == "box"
    revoke_outer("enough")
    way.fails(lambda: first.name())


def test_the_end_of_the_inner_loan_ends_the_outer(way: Way) -> None:
    """M9"""
    loan, revoke = capnode.revocable(way.lendable(Box()))
    facade, _ = capnode.revocable(loan)
    handle = way.handed(capnode.attenuate(facade, allow={"inner", "name"}))
    child = way.get(handle.inner)
    assert way.get(child.name()) == "box's child"
    revoke("enough")
    way.fails(lambda: handle.name())
    way.fails(lambda: child.name())


def test_a_loan_does_not_wrap_its_own_facades_again(way: Way) -> None:
    """M9: the same policy does not double."""
    facade, _ = capnode.revocable(way.lendable(Box()))
    handle = way.handed(facade)
    way.get(handle.keep(handle))
    assert way.get(handle.kept()) is handle
    assert way.get(handle.echo(handle)) is handle


def test_what_can_be_lent() -> None:
    for lend in (
        capnode.revocable,
        lambda obj: capnode.attenuate(obj, allow={"name"}),
    ):
        for obj, text in [
            (Box, r"\(Box\(\)\)"),
            ({"f": print}, "each in it"),
            ([print], "each in it"),
            (5, "inherit from capnode.Target"),
            (object(), "inherit from capnode.Target"),
        ]:
            with pytest.raises(TypeError, match=text):
                lend(obj)


def test_a_promise_is_to_be_awaited_first(wire: Wire) -> None:
    near, _ = wire.link(far_index=Box())
    for promise in (near.index.child, near.index.child()):
        with pytest.raises(TypeError, match="await it first"):
            capnode.revocable(promise)
        with pytest.raises(TypeError, match="await it first"):
            capnode.attenuate(promise, allow={"name"})


def test_a_facade_is_neither_copied_nor_shown() -> None:
    facade, revoke = capnode.revocable(Box())
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.copy(facade)
    assert repr(facade) == "<Facade of Box>"
    assert repr(revoke) == "<Revoke>"
    revoke()
    assert repr(facade) == "<Facade, revoked>"


def test_a_facade_can_be_the_index_and_be_shared(wire: Wire) -> None:
    facade, revoke = capnode.revocable(Box())
    near, _ = wire.link(far_index=facade)
    broken: list[Any] = []
    near.peer.on_broken(near.index, broken.append)
    assert near.get(near.index.child().name()) == "box's child"
    revoke("enough")
    wire.run()
    assert [error.args for error in broken] == [("enough",)]
    with pytest.raises(RemoteError, match="enough"):
        near.get(near.index.name())


def test_a_revoke_can_be_handed_on(wire: Wire) -> None:
    def lend() -> Any:
        return capnode.revocable(Box())

    near, _ = wire.link(far_index={"lend": lend})
    facade, revoke = near.get(near.index.lend())
    near.get(revoke("enough"))
    with pytest.raises(RemoteError, match="enough"):
        near.get(facade.name())


# Holders are told.


class Watched:
    """What a holder is told."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def __call__(self, error: BaseException) -> None:
        self.errors.append(error)

    @property
    def reasons(self) -> list[Any]:
        return [error.args[0] for error in self.errors]


def lend_to(wire: Wire, *, twice: bool = False) -> Any:
    given: list[Any] = []
    near, far = wire.link(far_index={"get": given.pop})
    facade, revoke = capnode.revocable(Box())
    given.extend([facade] * (1 + twice))
    return near, far, facade, revoke


def test_a_holder_is_told_without_a_call(wire: Wire) -> None:
    """M12"""
    near, far, facade, revoke = lend_to(wire)
    stub = near.get(near.index.get())
    child = near.get(stub.child())
    told, of_child = Watched(), Watched()
    near.peer.on_broken(stub, told)
    near.peer.on_broken(child, of_child)
    wire.run()
    sent = len(near.sent)
    revoke("enough")
    revoke("again")
    wire.run()
    assert told.reasons == of_child.reasons == ["enough"]
    assert isinstance(told.errors[0], RemoteError)
    assert str(told.errors[0]) == "Revoked: enough"
    assert len(near.sent) == sent
    assert far.counts()["reject"] == 2
    del facade


def test_who_asks_late_is_told_soon(wire: Wire) -> None:
    """M12"""
    near, _, _, revoke = lend_to(wire)
    stub = near.get(near.index.get())
    revoke("enough")
    wire.run()
    told = Watched()
    near.peer.on_broken(stub, told)
    assert told.errors == []  # not while on_broken runs
    wire.run()
    assert told.reasons == ["enough"]


def test_who_gets_a_facade_that_is_revoked_is_told(wire: Wire) -> None:
    """M12: behind each reference that is sent."""
    near, _, _, revoke = lend_to(wire, twice=True)
    first = near.get(near.index.get())
    revoke("enough")
    second = near.get(near.index.get())
    told = Watched()
    near.peer.on_broken(first, told)
    near.peer.on_broken(second, told)
    wire.run()
    assert told.reasons == ["enough", "enough"]


def test_a_reference_that_follows_its_break_is_told_of(wire: Wire) -> None:
    """The holder has dropped his stub, and gets another before the release has arrived."""
    taken: list[Any] = []
    near, far = wire.link({"take": taken.append})
    facade, revoke = capnode.revocable(Box())
    far.get(far.index.take(facade))
    far.blocked = True
    taken.clear()
    near.flush()
    revoke("enough")
    far.index.take(facade)
    wire.run()
    told = Watched()
    near.peer.on_broken(taken[0], told)
    wire.run()
    assert told.reasons == ["enough"]
    far.blocked = False
    taken.clear()


def test_who_asks_in_the_moment_of_the_break_is_told_once() -> None:
    """As if another thread revoked between any two steps of asking."""
    facade, revoke = capnode.revocable(Box())
    told: list[Any] = []

    class Asking:
        def __hash__(self) -> int:  # called as it is entered
            revoke("enough")
            return 1

    asking = Asking()
    facade._watch(asking, lambda owner, error: told.append((owner, error.args)))
    assert told == [(asking, ("enough",))]


def test_each_who_asked_is_told_once(wire: Wire) -> None:
    near, _, _, revoke = lend_to(wire)
    stub = near.get(near.index.get())
    told = [Watched(), Watched()]
    for function in (*told, told[0]):
        near.peer.on_broken(stub, function)
    revoke("enough")
    wire.run()
    near.hang_up()
    wire.run()
    assert [len(function.errors) for function in told] == [2, 1]


def test_the_end_of_the_connection_breaks_every_stub(wire: Wire) -> None:
    near, _, facade, _ = lend_to(wire)
    stub = near.get(near.index.get())
    told, of_index, late = Watched(), Watched(), Watched()
    near.peer.on_broken(stub, told)
    near.peer.on_broken(near.index, of_index)
    near.hang_up()
    wire.run()
    near.peer.on_broken(stub, late)
    wire.run()
    for watched in (told, of_index, late):
        assert [type(error) for error in watched.errors] == [capnode.PeerLost]
    assert told.errors[0] is not of_index.errors[0]
    del facade


def test_who_has_given_the_stub_up_is_not_told(wire: Wire) -> None:
    near, _, _, revoke = lend_to(wire, twice=True)
    told = Watched()
    stub = near.get(near.index.get())
    near.peer.on_broken(stub, told)
    stub.dealloc()
    with pytest.raises(capnode.Released):
        near.peer.on_broken(stub, told)
    dropped = near.get(near.index.get())
    near.peer.on_broken(dropped, told)
    del dropped
    revoke("enough")
    near.hang_up()
    wire.run()
    assert told.errors == []


def test_who_has_cancelled_is_not_told(wire: Wire) -> None:
    near, _, _, revoke = lend_to(wire)
    stub = near.get(near.index.get())
    told, other = Watched(), Watched()
    held = weakref.ref(told)
    watch = near.peer.on_broken(stub, told)
    near.peer.on_broken(stub, other)
    watch.cancel()
    watch.cancel()
    assert repr(watch) == "<Watch: cancelled>"
    del told
    assert held() is None  # nothing keeps the function
    revoke("enough")
    wire.run()
    assert other.reasons == ["enough"]
    near.peer.on_broken(stub, other).cancel()  # it is broken, and he is to be told soon
    wire.run()
    assert other.reasons == ["enough"]


def test_nothing_is_held_for_who_has_cancelled(wire: Wire) -> None:
    """To watch what was reconstructed takes a call, whose answer holds the object."""
    box = Box()
    host = capnode.Capnode({"get": lambda: box})
    near, _ = wire.link(far_index=host, names=("near", "host"))
    other, far = wire.link(far_index=host, names=("other", "the host"))
    stub = near.get(near.index.get())
    again = other.peer.reconstruct(stub.cap_id)
    wire.run()
    before = other.peer.stats().imports
    watch = other.peer.on_broken(again, print)
    wire.run()
    assert other.peer.stats().imports > before
    watch.cancel()
    wire.run()
    assert other.peer.stats().imports == before
    assert far.session.error is None


def test_to_ask_does_not_keep_the_stub(wire: Wire) -> None:
    near, _, facade, _ = lend_to(wire)
    stub = near.get(near.index.get())
    near.peer.on_broken(stub, lambda _: None)
    alive = weakref.ref(stub)
    del stub
    assert alive() is None
    del facade


def test_a_release_that_crosses_the_break_is_moot(wire: Wire) -> None:
    near, far, _, revoke = lend_to(wire)
    stub = near.get(near.index.get())
    near.blocked = True
    revoke("enough")
    wire.run()
    del stub
    near.flush()
    near.blocked = False
    wire.run()
    assert near.session.error is None
    assert far.session.error is None


def test_a_break_is_handed_on_by_who_stands_between(wire: Wire) -> None:
    """The holder has a stub of the middle's stub."""
    middle, _, _, revoke = lend_to(wire)
    holder, _ = wire.link(
        far_index={"get": lambda: middle.index.get()}, names=("holder", "the middle")
    )
    stub = holder.get(holder.index.get())
    told = Watched()
    holder.peer.on_broken(stub, told)
    revoke("enough")
    wire.run()
    assert told.reasons == ["enough"]


def test_what_rests_on_a_broken_reference_is_broken(wire: Wire) -> None:
    """An attenuated facade of a facade, and a facade of a stub whose connection ends."""
    loan, revoke = capnode.revocable(Box())
    middle, _ = wire.link(far_index=Box(), names=("middle", "owner"))
    given = [capnode.attenuate(loan, allow={"name"}), capnode.revocable(middle.index)[0]]
    holder, _ = wire.link(far_index={"get": given.pop}, names=("holder", "the middle"))
    of_stub, of_loan = (holder.get(holder.index.get()) for _ in range(2))
    told = [Watched(), Watched()]
    holder.peer.on_broken(of_loan, told[0])
    holder.peer.on_broken(of_stub, told[1])
    revoke("enough")
    wire.run()
    assert told[0].reasons == ["enough"]
    assert told[1].errors == []
    middle.hang_up()
    wire.run()
    assert [str(error) for error in told[1].errors] == [
        "PeerLost: the other side closed the connection"
    ]


def test_a_reconstructed_stub_breaks_with_what_it_stands_for(wire: Wire) -> None:
    """M12"""
    given: list[Any] = []
    host = capnode.Capnode({"get": given.pop})
    near, _ = wire.link(far_index=host, names=("near", "host"))
    other, _ = wire.link(far_index=host, names=("other", "the host"))
    facade, revoke = capnode.revocable(Box())
    given.append(facade)
    stub = near.get(near.index.get())
    again = other.peer.reconstruct(stub.cap_id)
    assert other.get(again.name()) == "box"
    told, nothing = Watched(), Watched()
    other.peer.on_broken(again, told)
    unknown = other.peer.reconstruct("cap.c.nothing")
    other.peer.on_broken(unknown, nothing)
    wire.run()
    assert [type(error).__name__ for error in nothing.errors] == ["RemoteError[LookupError]"]
    revoke("enough")
    wire.run()
    assert told.reasons == ["enough"]


def test_only_stubs_of_this_peer_can_break(wire: Wire) -> None:
    near, far = wire.link(far_index=Box())
    for wrong in (near.index.name, near.index.name(), far.index, Box()):
        with pytest.raises(TypeError, match="a stub of this peer"):
            near.peer.on_broken(wrong, print)
    with pytest.raises(TypeError, match="a function"):
        near.peer.on_broken(near.index, "print")


def test_what_a_peer_says_of_a_facade_tells_what_to_write(wire: Wire) -> None:
    near, _ = wire.link(far_index=Box())
    for facade in (capnode.revocable(near.index)[0], capnode.revocable(Box())[0]):
        calls: list[Callable[[], Any]] = [
            lambda facade=facade: near.peer.notify(facade),  # type: ignore[misc]
            lambda facade=facade: near.peer.with_options(facade, timeout=1),  # type: ignore[misc]
            lambda facade=facade: near.peer.on_broken(facade, print),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises(TypeError, match=r"not a facade, .*give the stub"):
                call()


def test_a_dialect_without_breaks_is_told_by_its_calls_only(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far, _, revoke = lend_to(wire)
    monkeypatch.setattr(far.session, "traits", far.session.traits.__replace__(breaks=False))
    stub = near.get(near.index.get())
    revoke("enough")
    wire.run()
    assert far.counts()["reject"] == 0
    with pytest.raises(RemoteError, match="enough"):
        near.get(stub.name())
