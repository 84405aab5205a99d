"""Promises of promises: chains are skipped, broken ones break what holds them, circles end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from capnode_py import CapnodeError, Limits, PeerLost, RemoteError, Target
from capnode_py._messages import Promised, Yours
from capnode_py.testing import FakeDriver, Fence, Wire


class Thing(Target):
    def __init__(self) -> None:
        self.log: list[Any] = []

    def note(self, n: Any) -> Any:
        self.log.append(n)
        return n

    def itself(self) -> Thing:
        return self


def args_of(side: FakeDriver, word: str) -> list[Any]:
    """The arguments of the calls that this side has sent under such a word."""
    return [m.fields[2] for m in side.sent if m.word == word and len(m.fields) > 2]


# Chains.


def test_a_chain_of_promises_is_passed_on_as_its_end(wire: Wire) -> None:
    """P11: by whoever follows it, so nobody asks twice; home as the question that is asked."""

    async def later() -> str:
        await fence.wait()
        return "late"

    def first() -> Any:
        return second_promise[0]

    fence = Fence()
    near, far = wire.link(far_index={"later": later, "take": lambda *values: list(values)})
    own, _other = wire.link(far_index={"echo": lambda x: x}, names=("own", "other"))
    local = own.index.echo({"first": first})
    own.get(local)
    second_promise = [near.index.later()]
    chain = local.first()  # runs here, and follows the promise of far
    wire.run()
    task = near.spawn(near.index.take(chain, [second_promise[0]]))
    wire.run()
    assert args_of(near, "call")[-1] == [Yours(1), [Yours(1)]]
    fence.set()
    wire.run()
    assert task.result() == ["late", ["late"]]
    assert far.counts()["resolve"] == 2  # one for each question that was asked
    del chain, local
    second_promise.clear()


def test_a_chain_crosses_to_a_third_party_as_one_promise(wire: Wire) -> None:
    """P11: both its ends are the same promise, which is announced and resolved once."""

    async def later() -> str:
        await fence.wait()
        return "late"

    fence = Fence()
    promises: list[Any] = []
    near, _far = wire.link(far_index={"later": later})
    own, _other = wire.link(far_index={"echo": lambda x: x}, names=("own", "other"))
    third, fourth = wire.link(far_index=lambda *values: list(values), names=("third", "fourth"))
    local = own.index.echo({"first": lambda: promises[0]})
    own.get(local)
    promises += [near.index.later()]
    promises += [local.first()]
    wire.run()
    task = third.spawn(third.index(*promises))
    wire.run()
    assert args_of(third, "call") == [[Promised(-1), Promised(-1)]]
    fence.set()
    wire.run()
    assert task.result() == ["late", "late"]
    assert third.counts()["resolve"] == 1
    assert len(fourth.started) == 1
    del local
    promises.clear()


def test_a_promise_whose_outcome_was_told_is_passed_on_as_its_value(wire: Wire) -> None:
    """P11: never under the id that stood for it before."""

    async def later() -> Any:
        await fence.wait()
        return [thing]

    fence = Fence()
    thing = Thing()
    kept: list[Any] = []
    near, _far = wire.link(far_index={"later": later})
    third, fourth = wire.link(far_index=lambda *values: kept.extend(values), names=("3", "4"))
    promise = near.index.later()
    third.get(third.index(1))
    waiting = third.spawn(third.index(promise))
    wire.run()
    fourth.blocked = True
    fence.set()
    wire.run()  # its outcome is on the way,
    third.index(promise)  # ... and overtaken by nothing
    third.flush()
    assert args_of(third, "call")[-1] == [Promised(-1)]
    assert not isinstance(args_of(third, "push")[-1][0], Promised)
    fourth.blocked = False
    wire.run()
    assert waiting.done
    assert kept[1][0] is kept[2][0]
    assert fourth.get(kept[1][0].note(1)) == 1
    assert thing.log == [1]
    kept.clear()
    del promise


def test_a_call_through_the_end_of_a_chain_goes_on_at_once(wire: Wire) -> None:
    """P11, P13: no host on the way waits for the promise that it has passed on."""
    middle: FakeDriver
    thing = Thing()
    near, far = wire.link(far_index={"get": lambda: middle.index.get()})
    middle, third = wire.link(far_index={"get": lambda: thing}, names=("middle", "third"))
    third.blocked = True
    promise = near.index.get()
    call = near.spawn(promise.note(1))
    wire.run()
    assert [m.word for frame in third.inbox for m in frame.messages] == ["push", "call"]
    third.blocked = False
    wire.run()
    assert call.result() == 1
    assert far.counts() == third.counts() == {"resolve": 1}  # what carried it was not asked for
    del promise


# Pipelines whose head never comes.


def test_pipelined_calls_complete_although_the_first_answer_never_comes(wire: Wire) -> None:
    """P13, P6: its value cannot cross, but it can be called through."""
    thing = Thing()
    near, _far = wire.link(far_index=lambda: {"thing": thing, "bad": object()})
    promise = near.index()
    assert near.get(promise.thing.itself().note(1)) == 1
    assert near.get(promise.thing.note(2)) == 2
    with pytest.raises(TypeError, match="pass a dict"):
        near.get(promise)
    assert thing.log == [1, 2]


def test_calls_through_a_promise_whose_value_was_dropped(wire: Wire) -> None:
    """P4: the promise keeps it."""
    near, far = wire.link(far_index=lambda: [Thing()])
    promise = near.index()
    (thing,) = near.get(promise)
    near.get(thing.note(1))
    del thing
    wire.run()
    assert near.get(promise[0].note(2)) == 2
    assert near.get(near.get(promise)[0].itself().note(3)) == 3
    wire.run()
    assert len(far.session.exports) == 2
    del promise


# What is broken.


@pytest.mark.parametrize("inside", [False, True], ids=["bare", "inside"])
@pytest.mark.parametrize("passed", ["as argument", "as result"])
def test_a_promise_that_is_broken_already_breaks_what_it_is_passed_in(
    wire: Wire, passed: str, inside: bool
) -> None:
    """P9, P8: with its own error; what was called through it has that too."""

    def fail() -> None:
        raise KeyError("broken")

    kept: list[Any] = []
    near, far = wire.link({"fail": fail}, {"fail": fail, "get": lambda: kept[0], "take": print})
    side = near if passed == "as argument" else far
    broken = side.index.fail()
    with pytest.raises(KeyError):
        side.get(broken)
    wire.run()
    value = [broken] if inside else broken
    kept.append(value)
    promise = near.index.take(value) if passed == "as argument" else near.index.get()
    for use in (promise, promise.x, promise[0].note(1)):
        with pytest.raises(KeyError, match="broken"):
            near.get(use)
    kept.clear()
    del broken, value, promise


def test_a_broken_promise_breaks_at_the_third_host_too(wire: Wire) -> None:
    """P8, P9: resolved later, and passed on again after that."""

    async def fail() -> None:
        await fence.wait()
        raise KeyError("broken")

    fence = Fence()
    near, _far = wire.link(far_index={"fail": fail})
    third, fourth = wire.link(far_index=lambda *values: None, names=("third", "fourth"))
    promise = near.index.fail()
    tasks = [third.spawn(third.index(promise)), third.spawn(third.index([promise], promise.x))]
    wire.run()
    fence.set()
    wire.run()
    tasks.append(third.spawn(third.index({"again": promise})))
    wire.run()
    for task in tasks:
        with pytest.raises(KeyError, match="broken"):
            task.result()
    assert fourth.started == []
    del promise


# What is ours.


def test_what_turns_out_to_be_ours_is_called_without_the_wire(wire: Wire) -> None:
    """C4, P10: our own index, an object and a path of ours; nothing is sent for them."""
    thing, index = Thing(), Thing()
    near, far = wire.link(index, {"echo": lambda x: x})
    promises = [near.index.echo(thing), near.index.echo(index), near.index.echo([thing.note])]
    for promise in promises:
        near.get(promise)
    wire.run()
    sent = len(near.sent), len(far.sent)
    assert near.get(promises[0].note(1)) == 1
    assert near.get(promises[1].itself().note(2)) == 2
    assert near.get(promises[2][0](3)) == 3
    wire.run()
    assert (len(near.sent), len(far.sent)) == sent
    assert (thing.log, index.log) == ([1, 3], [2])


def test_a_path_of_ours_that_comes_home_pipelined_is_read_here(wire: Wire) -> None:
    """P10: far passes a path on our index, and a call on it; we see our own objects."""
    far: FakeDriver
    thing = Thing()
    seen: list[Any] = []
    index = {
        "deep": {"things": [thing]},
        "get": lambda: thing,
        "take": lambda *values: seen.extend(values),
    }
    near, far = wire.link(
        index,
        {"send": lambda: far.index.take(far.index.deep.things[0], [far.index.get().itself()])},
    )
    near.get(near.index.send())
    assert seen == [thing, [thing]]
    assert len(near.session.exports) == len(far.session.imports) == 1


# Circles.


class Ring(Target):
    """Its handlers wait for the fence, and then return what they are to return."""

    def __init__(self) -> None:
        self.fence = Fence()
        self.kept: list[Any] = []

    async def get(self, n: int = 0) -> Any:
        await self.fence.wait()
        return self.kept[n]

    async def inside(self, n: int = 0) -> Any:
        return {"a": [await self.get(n)]}

    def echo(self, *values: Any) -> Any:
        return values


@pytest.mark.parametrize(
    "close",
    [
        lambda ring, last: ring.get(),
        lambda ring, last: ring.inside(),
        lambda ring, last: ring.echo(ring.get()),
        lambda ring, last: ring.echo([1, {"x": ring.inside()}]),
        lambda ring, last: ring.get().x.y(),
        lambda ring, last: ring.get()["x"],
        lambda ring, last: last.more(),
        lambda ring, last: ring.echo(last),
        lambda ring, last: ring.echo(last.x(last)).y,
    ],
    ids=range(9),
)
@pytest.mark.parametrize("others", [0, 1, 4])
def test_promises_that_wait_for_each_other_are_rejected(
    wire: Wire, close: Callable[[Any, Any], Any], others: int
) -> None:
    """P12: by answers, arguments, paths and calls through them; the connection lives."""
    ring = Ring()
    near, _far = wire.link(far_index={"echo": lambda x: x})
    local = near.index.echo(ring)
    near.get(local)
    # Promise n becomes promise n + 1; the last leads to the first.
    chain = [local.get(n) for n in range(1, others + 2)]
    last = local.get(others + 2)
    ring.kept = [chain[0], *chain[1:], last, close(local, last), chain[0]]
    tasks = [near.spawn(promise) for promise in [*chain, last, ring.kept[-2]]]
    wire.run()
    ring.fence.set()
    wire.run()
    for task in tasks:
        with pytest.raises(CapnodeError, match="waits for itself"):
            task.result()
    assert near.get(near.index.echo(1)) == 1
    ring.kept.clear()
    del chain, last


def test_what_only_looks_like_a_circle_is_none(wire: Wire) -> None:
    """P12: the same promise many times, and promises that share one."""
    ring = Ring()
    near, _far = wire.link(far_index={"echo": lambda x: x})
    local = near.index.echo(ring)
    near.get(local)
    ring.kept.append("value")
    one = local.get()
    two = local.echo(one, [one], local.echo(one))
    three = local.echo(two, one, two[0], local.echo(two))
    task = near.spawn(three)
    wire.run()
    ring.fence.set()
    wire.run()
    second = ["value", ["value"], ["value"]]
    assert task.result() == [second, "value", "value", [second]]
    ring.kept.clear()


class Circle:
    """Two promises that lead to each other over the wire."""

    def __init__(self, wire: Wire, *, inside: bool) -> None:
        self.kept: list[Any] = []
        far: FakeDriver

        def wrapped(promise: Any) -> Any:
            return [promise] if inside else promise

        self.near, far = wire.link(
            {"back": lambda: wrapped(self.kept[0])}, {"go": lambda: wrapped(far.index.back())}
        )
        self.kept.append(self.near.index.go())
        self.task = self.near.spawn(self.kept[0])
        wire.run()


def test_a_circle_of_values_over_the_wire_is_rejected(wire: Wire) -> None:
    """P12: an answer names the promise in it, so that one side sees the whole."""
    circle = Circle(wire, inside=True)
    with pytest.raises(CapnodeError, match="waits for itself"):
        circle.task.result()
    circle.kept.clear()


def test_a_circle_of_bare_promises_over_the_wire_ends_by_a_cancel(wire: Wire) -> None:
    """P12: no side sees the whole of it; whoever gives it up ends it, and nothing is left."""
    circle = Circle(wire, inside=False)
    assert not circle.task.done
    circle.kept.pop().cancel()
    wire.run()
    with pytest.raises(RemoteError, match="cancelled"):
        circle.task.result()


def test_a_circle_of_bare_promises_over_the_wire_ends_with_the_connection(wire: Wire) -> None:
    """P12, D1"""
    circle = Circle(wire, inside=False)
    circle.near.hang_up()
    with pytest.raises(PeerLost):
        circle.task.result()
    circle.kept.clear()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe is sent early."""
    monkeypatch.setattr("capnode_py._circles.MANY", 20)


def run_to_the_end(wire: Wire) -> None:
    """Where that does not come by itself, this ends all the same."""
    for _ in range(300):
        for side in wire.sides:
            side.turn()
            if side.inbox:
                side.deliver()
    assert not any(side.inbox for side in wire.sides), "something goes round"


@pytest.mark.parametrize("how", ["one way", "dropped", "awaited"])
@pytest.mark.usefixtures("few")
def test_a_call_through_a_circle_does_not_go_round_for_ever(wire: Wire, how: str) -> None:
    """P12: also where nobody waits for it, so that nothing counts it."""
    circle = Circle(wire, inside=False)
    promise = circle.kept[0]
    if how == "one way":
        circle.near.peer.notify(promise.note)
    elif how == "dropped":
        promise.note()
    else:
        task = circle.near.spawn(promise.note())
    run_to_the_end(wire)
    with pytest.raises(CapnodeError, match="waits for itself"):
        circle.task.result()
    if how == "awaited":
        with pytest.raises(CapnodeError, match="waits for itself"):
            task.result()
    assert len(circle.near.sent) < 150
    assert circle.near.session.error is None
    circle.kept.clear()
    del promise


@pytest.mark.usefixtures("few")
def test_a_call_through_a_circle_of_three_hosts_does_not_go_round_for_ever(wire: Wire) -> None:
    """P12"""
    kept: list[Any] = []
    sides: dict[str, FakeDriver] = {}

    def ask(name: str) -> Any:
        return lambda: sides[name].index.go()

    sides["ab"], _ = wire.link({}, {"go": ask("bc")}, names=("ab", "ba"))
    sides["bc"], _ = wire.link({}, {"go": ask("ca")}, names=("bc", "cb"))
    sides["ca"], _ = wire.link({}, {"go": lambda: kept[0]}, names=("ca", "ac"))
    kept.append(sides["ab"].index.go())
    task = sides["ab"].spawn(kept[0])
    wire.run()
    assert not task.done
    sides["ab"].peer.notify(kept[0].note)
    run_to_the_end(wire)
    with pytest.raises(CapnodeError, match="waits for itself"):
        task.result()
    kept.clear()


@pytest.mark.usefixtures("few")
def test_many_calls_through_a_promise_that_leads_on_are_no_circle(wire: Wire) -> None:
    """P12: a probe comes to an end, and changes nothing."""
    near: FakeDriver
    far: FakeDriver
    fence = Fence()
    seen: list[int] = []

    async def late() -> Any:
        await fence.wait()
        return seen.append

    near, far = wire.link({"late": late}, {"get": lambda: far.index.late()})
    promise = near.index.get()
    for n in range(100):
        near.peer.notify(promise, n)
    wire.run()
    assert (near.counts()["ping"], far.counts()["ping"]) == (5, 10)  # of which it hands on five
    fence.set()
    wire.run()
    assert seen == [*range(100)]


def test_a_promise_that_depends_on_a_call_through_itself_is_rejected(wire: Wire) -> None:
    """P12, T4: two hosts would send it to and fro until one is full. The session lives."""
    near: FakeDriver
    far: FakeDriver
    kept: list[Any] = []
    near, far = wire.link(
        {"again": lambda: kept[0].more()},
        {"get": lambda: far.index.again(), "alive": lambda: "alive"},
        limits=Limits(max_sent_back=30),
        far_limits=Limits(max_sent_back=50),
    )
    kept.append(near.index.get())
    task = near.spawn(kept[0])
    run_to_the_end(wire)
    with pytest.raises(CapnodeError, match=r"30 calls of the other side.*Limits\.max_sent_back"):
        task.result()
    assert near.get(near.index.alive()) == "alive"
    kept.clear()
