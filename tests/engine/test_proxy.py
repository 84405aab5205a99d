"""Three parties on one host, by proxy: what holds between two neighbours holds through the middle.

``near -- left|right -- third``: `left` and `right` are the two sides of the host in the middle.
"""

from __future__ import annotations

import contextlib
import random
import weakref
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any

import pytest

from capnode_py import PeerLost, RemoteError, Target
from capnode_py.testing import FakeDriver, Fence, Wire


class Thing(Target):
    """An object whose calls are noted, and whose work can be cancelled."""

    def __init__(self) -> None:
        self.fence = Fence()
        self.log: list[Any] = []
        self.kept: list[Any] = []

    def note(self, n: Any) -> Any:
        self.log.append(n)
        return n

    async def note_later(self, n: Any) -> Any:
        self.log.append(n)
        return n

    def keep(self, *values: Any) -> None:
        self.kept += values

    def give(self) -> list[Any]:
        return self.kept

    async def work(self, *_values: Any) -> list[Any]:
        self.log.append("started")
        try:
            await self.fence.wait()
        except CancelledError:
            self.log.append("cancelled")
            raise
        return [Thing(), {"callback": self.note}]


class Three:
    """The hosts and their connections. The middle passes on what it is given, and keeps nothing."""

    left: FakeDriver
    right: FakeDriver

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.nears, self.thirds = Thing(), Thing()
        middle: dict[str, Any] = {
            "to_third": lambda *values: self.right.index.keep(*values),
            "from_third": lambda: self.right.index.give(),
            "from_near": lambda: self.left.index.give(),
        }
        self.near, self.left = wire.link(self.nears, middle, names=("near", "left"))
        self.right, self.third = wire.link(middle, self.thirds, names=("right", "third"))

    def introduce(self, thing: Thing) -> Any:
        """The stub that third then has of an object of near's; nobody else holds one."""
        self.near.get(self.near.index.to_third(thing))
        return self.thirds.kept.pop()

    def pings(self) -> int:
        return sum(side.counts()["ping"] for side in self.wire.sides)


@pytest.fixture
def three(wire: Wire) -> Three:
    return Three(wire)


def exported(side: FakeDriver) -> dict[int, int]:
    exports = side.session.exports
    return {id: exports.find(id).sent for id in exports.entries if id < 0}


# Identity.


def test_a_stub_that_was_passed_on_is_one_stub_by_all_routes(three: Three) -> None:
    """I2: as arguments of two calls, and as a result."""
    thing = Thing()
    stub = three.introduce(thing)
    assert three.third.get(stub.note("through")) == "through"
    assert three.introduce(thing) is stub
    three.nears.kept.append(thing)
    assert three.third.get(three.third.index.from_near()) == [stub]
    assert len(exported(three.near)) == len(exported(three.right)) == 1
    assert thing.log == ["through"]


def test_what_comes_home_the_long_way_is_the_original(three: Three) -> None:
    """I1, G2: near's object as a result and as an argument; nobody is asked for it."""
    thing = Thing()
    stub = three.introduce(thing)
    three.third.get(stub.keep(stub, {"deep": [stub]}, stub.note))
    assert thing.kept[0] is thing
    assert thing.kept[1]["deep"][0] is thing
    assert thing.kept[2] == thing.note
    thing.kept.clear()

    three.thirds.kept += [stub, {"deep": stub}]
    home = three.near.get(three.near.index.from_third())
    assert home[0] is thing
    assert home[1]["deep"] is thing
    assert three.pings() == 0
    three.thirds.kept.clear()


def test_an_object_of_the_third_party_comes_home_too(three: Three) -> None:
    """I1: near has it through the middle, and passes it back."""
    theirs = Thing()
    three.thirds.kept.append(theirs)
    (proxied,) = three.near.get(three.near.index.from_third())
    three.thirds.kept.clear()
    three.near.get(three.near.index.to_third(proxied, [proxied.note]))
    assert three.thirds.kept[0] is theirs
    assert three.thirds.kept[1] == [theirs.note]
    assert len(exported(three.third)) == len(exported(three.left)) == 1
    three.thirds.kept.clear()


def test_a_reference_of_another_connection_is_not_taken_for_our_own(wire: Wire) -> None:
    """I3: the same id on two connections stands for two objects."""
    ones, others = Thing(), Thing()
    one, ones_side = wire.link(far_index=ones, names=("one", "ones side"))
    other, others_side = wire.link(far_index=others, names=("other", "others side"))
    ones.kept.append(Thing())
    others.kept.append(Thing())
    (stub,), (others_stub,) = one.get(one.index.give()), other.get(other.index.give())
    assert list(exported(ones_side)) == list(exported(others_side)) == [-1]
    other.get(other.index.keep(stub))
    assert others.kept[1] is not others.kept[0]
    assert others_side.get(others.kept[1].note(5)) == 5
    assert ones.kept[0].log == [5]
    assert others.kept[0].log == []
    del stub, others_stub
    others.kept.clear()
    ones.kept.clear()


# Order.


def test_calls_through_the_middle_are_started_in_order(three: Three) -> None:
    """E8, E17: whatever kind they are, and whenever what arrives."""
    for seed in range(60):
        rng = random.Random(seed)
        for side in three.wire.sides:
            side.eager = rng.random() < 0.7
        thing = Thing()
        stub = three.introduce(thing)
        kinds = [stub.note, stub.note_later]
        made = 0
        while made < 8 or any(side.inbox or side.busy for side in three.wire.sides):
            moves: list[Callable[[], object]] = [s.deliver for s in three.wire.sides if s.inbox]
            moves += [side.turn for side in three.wire.sides if side.busy]
            if moves and rng.random() < 0.6:
                rng.choice(moves)()
            elif made < 8:
                if rng.random() < 0.5:
                    three.third.peer.notify(rng.choice(kinds), made)
                else:
                    rng.choice(kinds)(made)
                made += 1
        three.wire.run()
        assert thing.log == list(range(8)), f"seed {seed}"
        del stub, kinds


def test_no_call_overtakes_one_that_went_the_long_way(three: Three) -> None:
    """E8, E12: near's promise leads over the middle and third back to near; step by step."""
    thing = Thing()
    three.thirds.kept.append(three.introduce(thing))
    promise = three.near.index.from_third()
    task = three.near.spawn(promise)
    three.near.flush()
    three.left.deliver("call")
    three.right.flush()
    three.third.deliver("call")
    promise[0].note(0)
    three.near.flush()  # the call is on its way to the middle,
    three.right.deliver("resolve")
    three.left.flush()
    three.near.deliver("resolve")  # ... and here is what it was made on
    promise[0].note(1)
    three.wire.run()
    task.result()[0].note(2)
    assert task.result()[0] is thing
    assert thing.log == [0, 1, 2]
    assert three.near.counts()["ping"] == 1
    three.thirds.kept.clear()


# Release.


def test_what_the_third_party_drops_is_freed_at_its_owner(three: Three) -> None:
    """G1: hop by hop, one release each; nothing in the middle keeps it."""
    thing = Thing()
    gone = weakref.ref(thing)
    stub = three.introduce(thing)
    del thing
    three.wire.run()
    assert gone() is not None
    assert exported(three.near) == exported(three.right) == {-1: 1}
    before = [side.counts()["release"] for side in (three.third, three.left)]
    del stub
    three.third.flush()
    three.right.deliver("release")
    three.left.flush()
    three.near.deliver("release")
    assert gone() is None
    after = [side.counts()["release"] for side in (three.third, three.left)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]


def test_many_occurrences_are_one_release_a_hop(three: Three) -> None:
    """G3: though they are counted by each pair of neighbours for itself."""
    thing = Thing()
    three.near.get(three.near.index.to_third(thing, [thing, {"a": thing}]))
    assert exported(three.near) == exported(three.right) == {-1: 3}
    sent = len(three.third.sent), len(three.left.sent)
    three.thirds.kept.clear()
    three.wire.run()
    told = [*three.third.sent[sent[0] :], *three.left.sent[sent[1] :]]
    assert [list(m.fields[1]) for m in told if m.fields[1]] == [[[-1, 3]], [[-1, 3]]]


def test_a_reintroduction_crosses_the_releases_of_both_hops(three: Three) -> None:
    """G4"""
    thing = Thing()
    stub = three.introduce(thing)
    del stub
    three.third.flush()  # third gives it up,
    promise = three.near.index.to_third(thing)
    three.near.flush()
    three.left.deliver()
    three.right.flush()  # ... while the middle passes it on again
    three.wire.run()
    assert exported(three.near) == {-1: 2}  # by then the middle still had its stub
    assert exported(three.right) == {-1: 1}
    stub = three.thirds.kept.pop()
    assert three.third.get(stub.note(1)) == 1
    three.near.get(promise)


# Cancellation.


def test_a_cancel_reaches_the_owner_once(three: Three) -> None:
    """K1: through a stub that was passed on."""
    thing = Thing()
    stub = three.introduce(thing)
    task = three.third.spawn(stub.work())
    three.wire.run()
    task.cancel()
    three.wire.run()
    assert thing.log == ["started", "cancelled"]
    assert three.near.stopped == ["work"]
    assert three.third.counts()["cancel"] == three.left.counts()["cancel"] == 1


def test_dependents_beyond_the_middle_keep_a_call_alive(three: Three) -> None:
    """K8: it is cancelled when the last of them is given up."""
    thing = Thing()
    stub = three.introduce(thing)
    promise = stub.work()
    through, given = promise[0].note(1), stub.keep(promise)
    tasks = [three.third.spawn(waited) for waited in (promise, through, given)]
    three.wire.run()
    promise.cancel()
    three.wire.run()
    through.cancel()
    three.wire.run()
    assert thing.log == ["started"]
    given.cancel()
    three.wire.run()
    assert thing.log == ["started", "cancelled"]
    for task in tasks:
        with pytest.raises(RemoteError, match="handler was cancelled"):
            task.result()


@pytest.mark.parametrize("given_up", ["cancelled", "dropped", "both"])
def test_a_call_given_up_at_any_moment_leaks_nothing(three: Three, given_up: str) -> None:
    """K3, K4: with references on their way to the owner, and on their way back."""
    thing = Thing()
    stub = three.introduce(thing)
    for moment in range(14):
        thing.fence, thing.log = Fence(), []
        argument = Thing()
        gone = weakref.ref(argument)
        promise = stub.work(argument, lambda: None)
        del argument
        for _ in range(moment):
            _one_step(three.wire)
            if thing.log:
                thing.fence.set()
        if given_up != "dropped":
            promise.cancel()
        if given_up != "cancelled":
            promise = None
        thing.fence.set()
        three.wire.run()
        assert thing.log.count("cancelled") <= 1
        del promise
        three.wire.run()
        assert gone() is None
        assert exported(three.near) == exported(three.right) == {-1: 1}
        assert exported(three.left) == exported(three.third) == {}
        assert all(side.session.error is None for side in three.wire.sides)


def _one_step(wire: Wire) -> None:
    """Deliver the first frame that waits; the hosts then say what they have to say."""
    for side in wire.sides:
        if side.busy:
            side.turn()
    for side in wire.sides:
        if side.inbox:
            side.deliver()
            return


# Disconnection.


def test_the_loss_of_the_third_party_cancels_at_the_owner(three: Three) -> None:
    """G9: once; and what it held is freed there."""
    thing = Thing()
    gone = weakref.ref(thing)
    stub = three.introduce(thing)
    task = three.third.spawn(stub.work())
    three.wire.run()
    three.third.hang_up()
    three.wire.run()
    with pytest.raises(PeerLost):
        task.result()
    assert thing.log == ["started", "cancelled"]
    assert three.near.stopped == ["work"]
    assert exported(three.near) == {}
    del thing
    assert gone() is None


def test_the_loss_of_the_owner_fails_the_calls_through_the_middle(three: Three) -> None:
    """D1, G9: under way, pipelined and later; the connection to the middle lives."""
    stub = three.introduce(Thing())
    promise = stub.work()
    tasks = [three.third.spawn(waited) for waited in (promise, promise[0].note(1), stub.note(2))]
    three.wire.run()
    assert tasks.pop().result() == 2
    three.near.hang_up(OSError("reset by peer"))
    three.wire.run()
    tasks.append(three.third.spawn(stub.note(3)))
    three.wire.run()
    for task in tasks:
        with pytest.raises(RemoteError, match=r"PeerLost.*reset by peer") as raised:
            task.result()
        assert not isinstance(raised.value, ConnectionError)
    assert three.third.session.error is three.right.session.error is None
    del raised


def test_calls_held_behind_a_ping_end_with_any_of_the_connections(wire: Wire) -> None:
    """E16: a promise has come home the long way; at any moment of that, either hop breaks."""
    for hop in ("near", "third"):
        for moment in range(12):
            three = Three(wire)
            thing = Thing()
            three.thirds.kept.append(three.introduce(thing))
            promise = three.near.index.from_third()
            calls = [promise[0].note(0)]
            for _ in range(moment):
                _one_step(wire)
            calls.append(promise[0].note(1))
            tasks = [three.near.spawn(waited) for waited in (promise, *calls)]
            getattr(three, hop).hang_up()
            wire.run()
            for task in tasks:
                with contextlib.suppress(PeerLost, RemoteError):
                    task.result()  # it is done
            assert thing.log in ([], [0], [0, 1])
            three.near.hang_up()
            three.third.hang_up()
            three.thirds.kept.clear()
            del promise, calls, tasks, task
            wire.check_quiet()


def test_why_the_middle_could_not_pass_a_call_on_is_told_whenever_it_is_asked(wire: Wire) -> None:
    """C5, P5"""
    given: list[Any] = []
    near, _far = wire.link(far_index={"get": lambda: given[0]})
    middle, _third = wire.link(far_index={"open": lambda: print}, names=("middle", "third"))
    given.append(middle.get(middle.index.open()))
    stub = near.get(near.index.get())
    given[0].dealloc()
    failed = stub(1)
    failed.more()  # so that the outcome is not sent
    wire.run()
    with pytest.raises(RemoteError, match="given up"):
        near.get(failed)
    given.clear()
