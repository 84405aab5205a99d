"""Rule 5: calls on one reference start in the order they were made, also across a resolution."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from capnode_py import Limits, PeerLost, Promise, RemoteError, RemoteProtocolError, Target
from capnode_py._cell import Cell
from capnode_py._messages import Yours
from capnode_py._tables import PathTable
from capnode_py.testing import FakeDriver, Fence, Wire


class Recorder(Target):
    """An object that sees in which order it is called."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def note(self, n: int) -> int:
        self.seen.append(n)
        return n

    async def note_async(self, n: int) -> int:
        self.seen.append(n)
        return n


def words(side: FakeDriver) -> list[str]:
    return [message.word for message in side.coming()]


def test_a_call_under_way_is_not_overtaken_by_one_made_after_the_resolution(wire: Wire) -> None:
    """E1, E2, E12, E13: step by step. The ping goes the way of the calls, and holds the await."""
    mine = Recorder()
    near, far = wire.link(far_index={"echo": lambda x: x})
    promise = near.index.echo(mine)
    built_before = promise.note
    task = near.spawn(promise)
    near.flush()
    far.deliver("call")
    assert words(near) == ["resolve"]  # it names our own object

    promise.note(0)
    near.flush()  # ... while this goes the long way round
    near.deliver("resolve")
    assert not task.done
    promise.note(1)  # queues here
    assert near.session.imports.entries[1]() is promise._base  # p is released after its pong
    assert [m.fields[0] for m in near.sent if m.word == "release"] == [[2]]  # only note(0)
    assert mine.seen == []

    far.deliver("push", "release")
    assert words(far) == ["ping"]
    far.deliver("ping")
    near.deliver("push", "release")  # dropped by who made it, so pushed on as well
    assert mine.seen == [0]
    assert not task.done
    near.deliver("pong")
    assert mine.seen == [0, 1]
    assert task.result() is mine  # the original object, unwrapped
    built_before(2)
    wire.run()
    assert mine.seen == [0, 1, 2]
    assert near.counts()["ping"] == 1
    assert near.counts()["call"] + near.counts()["push"] == 2  # notes 1 and 2 never left


def test_without_calls_through_it_there_is_no_ping(wire: Wire) -> None:
    """E5"""
    mine = Recorder()
    near, far = wire.link(far_index={"echo": lambda x: x})
    promise = near.index.echo([mine])
    assert near.get(promise) == [mine]
    promise[0].note(1)  # only after it had its value
    wire.run()
    assert mine.seen == [1]
    assert near.counts()["ping"] == far.counts()["pong"] == 0
    assert near.counts()["call"] == 1


@pytest.mark.parametrize("value", [None, 5, {"note": "text"}], ids=str)
def test_a_value_that_is_plain_data_needs_no_ping(wire: Wire, value: Any) -> None:
    """E6"""
    near, _far = wire.link(far_index={"get": lambda: value})
    promise = near.index.get()
    call = promise.note(1)
    near.get(promise)
    with pytest.raises(RemoteError):
        near.get(call)
    assert near.counts()["ping"] == 0


def test_a_value_of_the_other_side_needs_no_ping(wire: Wire) -> None:
    """E5: both ways to it are the same way."""
    theirs = Recorder()
    near, _far = wire.link(far_index={"get": lambda: theirs})
    promise = near.index.get()
    promise.note(0)
    stub = near.get(promise)
    stub.note(1)
    near.get(promise.note(2))
    assert theirs.seen == [0, 1, 2]
    assert near.counts()["ping"] == 0


def test_a_rejection_needs_no_ping(wire: Wire) -> None:
    """E6, P5, P8"""

    def fail() -> None:
        raise ValueError("no")

    near, _far = wire.link(far_index={"fail": fail})
    promise = near.index.fail()
    call = promise.note(1)
    for failed in (promise, call, promise.note(2), call.x.y()):
        with pytest.raises(ValueError, match="no"):
            near.get(failed)
    assert near.counts()["ping"] == 0


def test_one_ping_for_any_number_of_calls_and_awaits(wire: Wire) -> None:
    """E5"""
    mine = Recorder()
    near, far = wire.link(far_index={"echo": lambda x: x})
    promise = near.index.echo({"a": mine, "b": [mine]})
    for n in range(5):
        promise.a.note(n)
        promise.b[0].note(n)
    for _ in range(3):
        near.get(promise)
    assert sorted(mine.seen) == mine.seen
    assert near.counts()["ping"] == far.counts()["pong"] == 1


def test_a_promise_that_was_passed_on_is_pinged_too(wire: Wire) -> None:
    """E1, P7"""
    mine = Recorder()

    async def use(recorder: Any) -> None:
        await recorder.note(0)

    near, _far = wire.link(far_index={"echo": lambda x: x, "use": use})
    promise = near.index.echo(mine)
    near.index.use(promise)
    assert near.get(promise) is mine
    assert near.counts()["ping"] == 1


def test_a_one_way_call_through_a_promise_keeps_its_place(wire: Wire) -> None:
    """E1, E17"""
    mine = Recorder()
    near, far = wire.link(far_index={"echo": lambda x: x})
    promise = near.index.echo(mine)
    task = near.spawn(promise)
    near.flush()
    far.deliver()
    near.peer.notify(promise.note, 0)
    near.flush()
    near.deliver("resolve")
    near.peer.notify(promise.note, 1)
    promise.note(2)
    wire.run()
    assert task.done
    assert mine.seen == [0, 1, 2]


def test_calls_held_behind_the_ping_fail_when_the_connection_breaks(wire: Wire) -> None:
    """E16"""
    mine = Recorder()
    near, far = wire.link(far_index={"echo": lambda x: x})
    promise = near.index.echo(mine)
    task = near.spawn(promise)
    near.flush()
    far.deliver()
    under_way = near.spawn(promise.note(0))
    near.flush()
    near.deliver("resolve")
    held = near.spawn(promise.note(1))
    near.hang_up()
    for waiting in (task, under_way, held):
        with pytest.raises(PeerLost):
            waiting.result()
    assert mine.seen == []


def test_a_rejection_inside_the_value_fails_all_and_the_session_lives(wire: Wire) -> None:
    """E7, P9: the value names our own promise, which is rejected while calls are under way."""
    far: FakeDriver

    async def broken() -> None:
        await fence.wait()
        raise KeyError("broken")

    fence = Fence()
    near, far = wire.link(
        {"broken": broken},
        {"get": lambda: {"x": far.index.broken()}, "alive": lambda: "alive"},
    )
    promise = near.index.get()
    first = near.spawn(promise.x.note(0))
    task = near.spawn(promise)
    wire.run()
    second = near.spawn(promise.x.note(1))
    fence.set()
    third = near.spawn(promise.x.note(2))
    wire.run()
    for failed in (first, task, second, third, near.spawn(promise.x.note(3))):
        wire.run()
        with pytest.raises(KeyError):
            failed.result()
    assert near.get(near.index.alive()) == "alive"


def test_what_was_resolved_to_a_promise_is_forwarded_to_it_for_ever(wire: Wire) -> None:
    """E14: far answers with a promise of near's, and calls that still come go through that."""
    far: FakeDriver
    mine = Recorder()

    async def later() -> Recorder:
        await fence.wait()
        return mine

    fence = Fence()
    near, far = wire.link({"later": later}, {"get": lambda: [far.index.later()]})
    promise = near.index.get()
    promise[0].note(0)
    task = near.spawn(promise)
    wire.run()
    promise[0].note(1)
    near.flush()
    fence.set()
    near.turn()  # near's promise is resolved here, and its outcome is on the way
    promise[0].note(2)
    near.flush()
    wire.run()
    promise[0].note(3)
    wire.run()
    assert task.result() == [mine]
    assert mine.seen == [0, 1, 2, 3]


def test_a_promise_that_leads_back_to_its_host_keeps_the_order(wire: Wire) -> None:
    """E9, E3: far answers with a promise of near's, which becomes an object of far's.

    Calls that are under way to far by then come back to near, and go on to the object from there.
    """
    far: FakeDriver
    theirs = Recorder()

    async def get(x: Any) -> Any:
        await fence.wait()
        return x

    fence = Fence()
    near, far = wire.link({"get": get}, {"get": lambda: [far.index.get(theirs)]})
    promise = near.index.get()
    task = near.spawn(promise)
    promise[0].note(0)
    wire.run()
    assert theirs.seen == []  # it waits at near, for near's own promise
    promise[0].note(1)
    near.flush()
    fence.set()
    near.turn()  # near knows the object now; a ping goes behind note(1)
    assert near.counts()["ping"] == 1
    promise[0].note(2)
    far.deliver()
    assert theirs.seen == []
    wire.run()
    promise[0].note(3)
    assert task.done
    wire.run()
    assert theirs.seen == [0, 1, 2, 3]
    assert near.counts()["ping"] == far.counts()["pong"] == 1
    assert far.counts()["ping"] == 0


def test_a_barrier_follows_a_barrier(wire: Wire) -> None:
    """E10, E4: far's promise becomes one of near's, then one of far's again, then near's object."""
    near: FakeDriver
    far: FakeDriver
    mine = Recorder()

    async def echo(x: Any) -> Any:
        await fences[1].wait()
        return x

    async def again() -> Any:
        await fences[0].wait()
        return near.index.echo(mine)

    fences = [Fence(), Fence()]
    near, far = wire.link({"again": again}, {"get": lambda: [far.index.again()], "echo": echo})
    promise = near.index.get()
    task = near.spawn(promise)
    promise[0].note(0)
    for stage, fence in enumerate(fences):
        wire.run()
        promise[0].note(stage * 2 + 1)
        near.flush()
        fence.set()
        near.turn()
        promise[0].note(stage * 2 + 2)
        assert not task.done
    wire.run()
    promise[0].note(5)
    wire.run()
    assert mine.seen == [0, 1, 2, 3, 4, 5]
    assert task.result() == [mine]
    assert near.counts()["ping"] == far.counts()["pong"] == 2  # one for each promise on the way


# A position on a promise, at each place where it may have to wait.


def test_a_position_waits_for_the_answer_that_it_names(wire: Wire) -> None:
    """E1: it queues with the calls on the promise, and the pong leaves behind them."""

    async def get() -> Any:
        await fence.wait()
        return far.index

    fence = Fence()
    mine = Recorder()
    near, far = wire.link(mine, {"get": get})
    promise = near.index.get()
    passed: list[int] = []
    near.peer.notify(promise.note, 0)
    near.session.ping(lambda: passed.append(len(mine.seen)), promise._base.import_id)
    near.peer.notify(promise.note, 1)
    wire.run()
    assert passed == []
    fence.set()
    wire.run()
    assert passed == [1]  # behind the first, before the second
    assert mine.seen == [0, 1]


def test_a_position_goes_on_to_where_the_calls_went(wire: Wire) -> None:
    """E8: a proxy's pong waits for that of the next hop."""
    middle: FakeDriver

    async def echo(x: Any) -> Any:
        await fence.wait()
        return x

    fence = Fence()
    mine = Recorder()
    near, far = wire.link(far_index={"get": lambda x: [middle.index.echo(x)]})
    middle, third = wire.link(far_index={"echo": echo}, names=("middle", "third"))
    promise = near.index.get(mine)
    passed: list[int] = []
    near.peer.notify(promise[0].note, 0)
    near.session.ping(lambda: passed.append(len(mine.seen)), promise._base.import_id)
    wire.run()
    assert middle.counts()["ping"] == 1
    assert third.counts()["pong"] == far.counts()["pong"] == 0
    fence.set()
    wire.run()
    assert passed == [1]
    assert mine.seen == [0]


def test_a_position_waits_for_every_promise_inside_the_value(wire: Wire) -> None:
    """E8: since calls may have gone through any of them."""
    far: FakeDriver
    middle: FakeDriver

    async def wait(n: int) -> Any:
        await fences[n].wait()
        return far.index

    fences = [Fence(), Fence()]
    mine = Recorder()
    near, far = wire.link(
        mine, {"get": lambda: {"a": middle.index.wait(0), "b": [middle.index.wait(1)]}}
    )
    middle, _third = wire.link(far_index={"wait": wait}, names=("middle", "third"))
    promise = near.index.get()
    passed: list[list[int]] = []
    near.peer.notify(promise.b[0].note, 0)
    near.peer.notify(promise.a.note, 1)
    near.session.ping(lambda: passed.append(mine.seen[:]), promise._base.import_id)
    wire.run()
    fences[0].set()
    wire.run()
    assert passed == []
    assert mine.seen == [1]
    fences[1].set()
    wire.run()
    assert passed == [[1, 0]]


def test_a_position_on_what_is_rejected_passes(wire: Wire) -> None:
    """E7"""

    async def fail() -> None:
        await fence.wait()
        raise ValueError("no")

    fence = Fence()
    near, _far = wire.link(far_index={"fail": fail})
    promise = near.index.fail()
    passed: list[int] = []
    near.session.ping(lambda: passed.append(1), promise._base.import_id)
    wire.run()
    assert passed == []
    fence.set()
    wire.run()
    assert passed == [1]


def test_a_position_is_kept_with_the_calls_that_are_kept(wire: Wire) -> None:
    """E1, F12: behind an answer that does not leave, calls and their position stay in order."""
    mine = Recorder()
    near, far = wire.link(
        far_index={"echo": lambda x: x, "flood": lambda: bytes(3000)},
        far_limits=Limits(high_water=1000, low_water=500),
    )
    promise = near.index.echo(mine)
    task = near.spawn(promise)
    near.flush()
    far.deliver()
    flood = near.spawn(near.index.flood())
    near.flush()
    far.stall()
    far.deliver("call")  # its answer is stuck
    promise.note(0)
    near.flush()
    near.deliver("resolve")
    near.flush()
    far.deliver()
    far.deliver("ping")
    promise.note(1)
    assert not task.done
    far.unstall()
    wire.run()
    assert mine.seen == [0, 1]
    assert task.done
    assert flood.done


def test_a_pong_does_not_overtake_the_calls_that_are_kept(wire: Wire) -> None:
    """E1, F12: they came before it, and are started before the promise has its value."""
    mine = Recorder()
    near, far = wire.link(
        {"flood": lambda: bytes(3000)},
        {"echo": lambda x: x},
        limits=Limits(high_water=1000, low_water=500),
    )
    promise = near.index.echo(mine)
    task = near.spawn(promise)
    near.flush()
    far.deliver("call")
    promise.note(0)
    near.flush()
    near.deliver("resolve")
    flood = far.spawn(far.index.flood())
    far.flush()
    near.stall()
    near.deliver("call")  # its answer is stuck
    far.deliver("push", "release")
    far.deliver("ping")
    near.deliver("push", "release")
    near.deliver("pong")
    promise.note(1)
    alive = far.spawn(far.peer.ping())  # which has no place in any queue
    far.flush()
    near.deliver("ping")
    assert not task.done
    assert mine.seen == []
    near.unstall()
    wire.run()
    assert mine.seen == [0, 1]
    assert task.done
    assert flood.done
    assert alive.done


def test_a_path_that_was_announced_does_not_overtake_what_went_by_it(wire: Wire) -> None:
    """E8, E13, F12: the proxy's own object comes home while a call on it is kept there."""
    middle: FakeDriver
    third: FakeDriver
    tasks: list[Any] = []

    def box(x: Any) -> Any:
        echoed = third.index.echo(x)
        tasks.append(third.spawn(echoed))
        return {"q": echoed}

    proxys = Recorder()
    near, far = wire.link(far_index={"get": lambda: [middle.index.box(proxys)["q"], Recorder()]})
    middle, third = wire.link(
        {"echo": lambda x: x, "flood": lambda: bytes(3000)},
        {"box": box},
        limits=Limits(high_water=1000, low_water=500),
        names=("middle", "third"),
    )
    promise = near.index.get()
    promise[1].note(0)  # so that its value is not sent yet
    near.flush()
    far.deliver()
    middle.flush()
    third.deliver()  # it asks for an echo
    tasks.append(third.spawn(third.index.flood()))
    third.flush()
    promise[0].note(0)
    near.flush()
    far.deliver()
    middle.flush()
    tasks.append(near.spawn(promise))  # only now the path is announced
    near.flush()
    far.deliver("pull")
    middle.flush()
    middle.deliver()  # the echo
    middle.stall()
    middle.deliver("call")  # the flood, which is stuck
    while third.inbox or middle.inbox:
        for side in (third, middle):
            if side.inbox:
                side.deliver()
    assert proxys.seen == []  # the call is kept, and its object has come home
    while near.inbox:
        near.deliver()
    promise[0].note(1)
    near.flush()
    while far.inbox:
        far.deliver()
    assert proxys.seen == []
    middle.unstall()
    wire.run()
    assert proxys.seen == [0, 1]
    assert all(task.done for task in tasks)
    tasks.clear()


def relay(wire: Wire, mine: Any) -> tuple[FakeDriver, FakeDriver]:
    """far's `get` gives a path into what near's `relay` answers, which is what far's `box` gives:
    near's `mine`. So calls by the path go to far, to near, to far and to near."""
    near: FakeDriver
    far: FakeDriver
    near, far = wire.link(
        {"relay": lambda: near.index.box(mine)},
        {"get": lambda: {"in": [far.index.relay()["in"][0]]}, "box": lambda x: {"in": [x]}},
    )
    return near, far


def test_calls_by_a_path_go_where_the_path_was_resolved_to(wire: Wire) -> None:
    """E13, E14: what is called by a path after the other side said that it is the value goes to
    what was read by it then, and not round again, where later calls would overtake it."""
    mine = Recorder()
    near, far = relay(wire, mine)
    promise = near.index.get()
    item = promise["in"][0]
    task = near.spawn(promise)
    near.flush()
    far.deliver("call")
    near.deliver("push", "resolve")  # the path is read, at far
    far.deliver("push", "call")
    item.note(0)  # on its way by the path, when near learns that it leads to its own object
    near.flush()
    near.deliver("resolve")
    far.deliver("push", "release")
    far.deliver("ping", "release")
    near.deliver("push", "release")
    assert not task.done
    near.deliver("pong")
    item.note(1)
    wire.run()
    assert mine.seen == [0, 1]
    assert task.result() == {"in": [mine]}
    assert near.counts()["ping"] == 1


def test_calls_by_a_path_go_where_it_was_resolved_to_though_the_promise_is_dropped(
    wire: Wire,
) -> None:
    """E14, G8: until the last of them has come, of which a ping tells."""
    scenario = a_path_on_an_object(wire, Fence)
    near, promise = scenario.near, scenario.promise
    far = near.other
    near.flush()
    far.deliver("push", "push", "call", "release")
    near.deliver("resolve")  # the path is read, at far
    for n in range(2):
        promise["in"][0].note(n)
        near.flush()
    del promise
    scenario = scenario._replace(promise=None)
    near.flush()
    while far.inbox:
        far.deliver()
    while near.session.pings.pending:
        near.deliver()
    assert scenario.recorder.seen == [0, 1]  # they went to what was read, and not round again
    assert not near.session._seam.resolved_paths
    assert scenario.stored is not None
    scenario.stored.clear()


def test_a_path_on_an_object_is_forgotten_with_its_promise(wire: Wire) -> None:
    """E5, E14: without a ping, since nothing was called through it."""
    scenario = a_path_on_an_object(wire, Fence)
    near = scenario.near
    task = near.spawn(scenario.promise)
    wire.run()
    assert task.result() == {"in": [scenario.recorder]}
    assert not near.session._seam.resolved_paths
    assert near.counts()["ping"] == 0
    assert scenario.stored is not None
    scenario.stored.clear()


def test_ever_more_paths_on_an_answer_that_is_kept_end_the_session(wire: Wire) -> None:
    """T4: a peer could fill our memory with them."""
    far: FakeDriver
    kept: list[Any] = []

    def get(n: int) -> Any:
        if not kept:
            kept.append(far.index.late())
        return [kept[0]["in"][step] for step in range(n, n + 10)]

    async def late() -> None:
        await Fence().wait()

    near, far = wire.link({"late": late}, {"get": get}, limits=Limits(max_exports=50))
    tasks = [near.spawn(near.index.get(n * 10)) for n in range(6)]
    wire.run()
    with pytest.raises(RemoteProtocolError, match="more than 50 paths on answers"):
        tasks[0].result()
    kept.clear()


def test_the_longest_beginning_of_a_path_counts_for_as_long_as_a_promise_has_it() -> None:
    """E14"""
    table = PathTable(10)
    short, long = Cell(None), Cell(None)  # type: ignore[arg-type]
    table.add(1, [(Yours(-3, ("a",)), short)], lambda id: id == 5)
    table.add(2, [(Yours(-3, ("a", 0, "b")), long), (Yours(-3, ("a",)), short)], lambda _: False)
    table.add(3, [(Yours(5, ("a",)), long)], lambda id: id == 5)
    assert table.find(-3, ("a", 0, "b", "c")) == (long, 3)
    assert table.find(-3, ("a", 0, "c")) == (short, 1)
    assert table.find(-3, ("b", 0)) == table.find(-4, ("a",)) == table.find(-3, ()) == (None, 0)
    table.forget(1)
    assert table.find(-3, ("a",)) == (short, 1)
    table.forget(2)
    table.forget(2)
    table.forget(3)
    assert table.find(5, ("a", 0)) == (long, 1)  # as long as the answer
    table.drop(5)
    table.drop(5)
    assert not table
    assert table.find(-3, ("a", 0, "b")) == (None, 0)
    assert table.under(-3) is None


def test_a_value_is_announced_as_what_its_paths_are_read_as(wire: Wire) -> None:
    """E14: calls by such a path go there already, and so must the position behind them."""
    scenario = a_path_that_another_promise_came_to(wire, Fence)
    near, promise = scenario.near, scenario.promise
    far = near.other
    promise["in"][0].note(0)
    near.flush()
    far.deliver("push", "push", "release")
    near.deliver("call", "push", "push", "release")
    far.deliver("resolve", "push", "push", "release")  # to the path, which is read, at near
    task = near.spawn(promise)
    near.flush()
    far.deliver("pull")
    (announced,) = (m.fields[1] for m in far.sent if m.word == "resolve" and m.fields[0] == 1)
    assert announced == {"in": [Yours(4)]}  # which is the read, far's fourth question
    wire.run()
    assert scenario.recorder.seen == [0]
    assert task.done


def test_a_path_that_is_kept_is_not_announced_as_what_it_will_be_read_as(wire: Wire) -> None:
    """E14, F12: the value would wait for itself."""
    near: FakeDriver
    far: FakeDriver
    mine = Recorder()
    tasks: list[Any] = []

    def get() -> Any:
        boxed = far.index.boxed()
        tasks.append(far.spawn(boxed))
        return {"in": [boxed["in"][0]]}

    near, far = wire.link(
        {"boxed": lambda: {"in": [near.index.echo(mine)]}},
        {"get": get, "echo": lambda x: x, "take": lambda data: None},
        limits=Limits(high_water=1000, low_water=500),
    )
    promise = near.index.get()
    task = near.spawn(promise)
    near.flush()
    near.peer.notify(near.index.take, bytes(3000))
    near.stall()
    near.flush()
    far.deliver("call")
    promise["in"][0].note(0)
    near.deliver("call", "resolve")  # both are kept: far's call, and the read of its answer
    near.unstall()
    promise["in"][0].note(1)
    wire.run()
    assert mine.seen == [0, 1]
    assert task.result() == {"in": [mine]}
    assert tasks.pop().done


def test_what_is_read_by_a_path_waits_for_calls_by_it_that_are_kept(wire: Wire) -> None:
    """E12, F12: a read goes behind the calls that were made by the path before."""
    far: FakeDriver

    def box() -> Any:
        given = far.index.give()
        given.note(0)  # so that its value is not sent
        return {"in": [given], "also": lambda: None}

    mine = Recorder()
    near, far = wire.link(
        {"give": lambda: mine},
        {"box": box, "take": lambda data: None},
        limits=Limits(high_water=1000, low_water=500),
    )
    promise = near.index.box()
    promise["also"]()
    near.flush()
    far.deliver("push", "push", "release")
    near.deliver("push", "push", "release")
    item = promise["in"][0]
    item.note(1)
    task = near.spawn(item)
    near.flush()
    near.stall()
    near.peer.notify(near.index.take, bytes(3000))
    near.flush()
    far.deliver("push", "call", "release")
    near.deliver("push", "pull", "release")  # the call is kept; the value is sent
    near.peer.notify(near.index.take, bytes(3000))
    near.flush()
    near.unstall(2)
    far.deliver("send")
    far.deliver("resolve")
    near.deliver("resolve", "release")
    assert mine.seen == [0]
    assert not task.done
    near.unstall()
    wire.run()
    assert task.result() is mine
    assert mine.seen == [0, 1]


def test_what_is_read_by_a_path_waits_for_calls_by_it_that_are_not_started(wire: Wire) -> None:
    """E8, E12: of a proxy, who tells a third host of its own object meanwhile."""
    middle: FakeDriver
    third: FakeDriver
    middles = Recorder()
    near, far = wire.link(far_index={"get": lambda: middle.index.box()})
    middle, third = wire.link(
        {"give": lambda: middles},
        {"box": lambda: {"in": [third.index.give()]}},
        names=("middle", "third"),
    )
    middle.eager = False
    item = near.index.get()["in"][0]
    item.note_async(0)
    task = near.spawn(item)
    near.flush()
    far.deliver("push", "push", "call", "release")
    middle.turn()
    third.deliver("push", "push", "call", "release")
    middle.deliver("call", "push", "release")
    third.deliver("resolve")
    middle.deliver("resolve", "release")
    far.turn()
    assert middle.starting  # with note_async(0)
    assert not near.inbox
    middle.settle()
    assert middles.seen == [0]
    wire.run()
    assert near.get(task.result().note(1)) == 1


def test_a_read_of_a_promise_is_no_question_of_its_own(wire: Wire) -> None:
    """E8: calls go through that promise, and its barrier is for who reads it, too."""
    middle: FakeDriver
    near, _far = wire.link(far_index={"get": lambda: {"p": middle.index.one()}})
    middle, third = wire.link(far_index={"one": lambda: 1}, names=("middle", "third"))
    promise = near.index.get()
    assert near.get(promise["p"]) == 1
    assert third.started == ["one"]


# Any interleaving. Each scenario leads to a promise whose value has a Recorder at `path`.


class Scenario(NamedTuple):
    near: FakeDriver
    promise: Any
    recorder: Recorder
    path: tuple[Any, ...] = ()
    stored: list[Any] | None = None  # what an index holds until the end


Make = Callable[[Wire, Callable[[], Fence]], Scenario]


def echo(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E1, E2"""
    near, _far = wire.link(far_index={"echo": lambda x: x})
    mine = Recorder()
    return Scenario(near, near.index.echo(mine), mine)


def echo_later(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E1"""
    until = fence()

    async def echo(x: Any) -> Any:
        await until.wait()
        return {"a": [x]}

    near, _far = wire.link(far_index={"echo": echo})
    mine = Recorder()
    return Scenario(near, near.index.echo(mine), mine, ("a", 0))


def far_object(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E5"""
    until = fence()

    async def get() -> Any:
        await until.wait()
        return theirs

    theirs = Recorder()
    near, _far = wire.link(far_index={"get": get})
    return Scenario(near, near.index.get(), theirs)


def promised_answer(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E3: far returns the promise of a call on near."""
    far: FakeDriver
    until = fence()
    mine = Recorder()

    async def get() -> Any:
        await until.wait()
        return mine

    near, far = wire.link({"get": get}, {"get": lambda: far.index.get()})
    return Scenario(near, near.index.get(), mine)


def promised_answer_inside(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E3, E4: far returns it inside a value."""
    far: FakeDriver
    until = fence()
    mine = Recorder()

    async def get() -> Any:
        await until.wait()
        return {"deep": mine}

    near, far = wire.link({"get": get}, {"get": lambda: [far.index.get()]})
    return Scenario(near, near.index.get(), mine, (0, "deep"))


def read_of_ours(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """P10: far returns a path on near's index."""
    far: FakeDriver
    mine = Recorder()
    near, far = wire.link({"a": [mine]}, {"get": lambda: [far.index.a[0]]})
    return Scenario(near, near.index.get(), mine, (0,))


def two_hops(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E8: through a proxy, which returns a promise of a third host, which echoes near's object."""
    middle: FakeDriver
    until = fence()

    async def echo(x: Any) -> Any:
        await until.wait()
        return x

    near, _far = wire.link(far_index={"get": lambda x: middle.index.echo(x)})
    middle, _third = wire.link(far_index={"echo": echo}, names=("middle", "third"))
    mine = Recorder()
    return Scenario(near, near.index.get(mine), mine)


def two_hops_inside(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E8: the proxy answers at once, with a promise inside."""
    middle: FakeDriver
    until = fence()

    async def echo(x: Any) -> Any:
        await until.wait()
        return [x]

    near, _far = wire.link(far_index={"get": lambda x: {"p": middle.index.echo(x)}})
    middle, _third = wire.link(far_index={"echo": echo}, names=("middle", "third"))
    mine = Recorder()
    return Scenario(near, near.index.get(mine), mine, ("p", 0))


def two_hops_to_the_proxy(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E8: the third host echoes the proxy's own object."""
    middle: FakeDriver
    proxys: Recorder
    near, _far = wire.link(far_index={"get": lambda: middle.index.echo(proxys)})
    middle, _third = wire.link(far_index={"echo": lambda x: x}, names=("middle", "third"))
    proxys = Recorder()
    return Scenario(near, near.index.get(), proxys)


def two_hops_to_the_end(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E8: the object is the third host's."""
    middle: FakeDriver
    until = fence()
    thirds = Recorder()

    async def get() -> Any:
        await until.wait()
        return thirds

    near, _far = wire.link(far_index={"get": lambda: [middle.index.get()]})
    middle, _third = wire.link(far_index={"get": get}, names=("middle", "third"))
    return Scenario(near, near.index.get(), thirds, (0,))


def two_hops_to_a_path(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E8, E13: the proxy gives a path into an answer of the third host, at which stands a promise
    that the proxy answers with the third host's own object."""
    middle: FakeDriver
    third: FakeDriver
    until = fence()

    async def echo(x: Any) -> Any:
        await until.wait()
        return x

    thirds = Recorder()
    near, _far = wire.link(far_index={"get": lambda: {"p": middle.index.get()["q"]}})
    middle, third = wire.link(
        {"echo": echo}, {"get": lambda: {"q": third.index.echo(thirds)}}, names=("middle", "third")
    )
    return Scenario(near, near.index.get(), thirds, ("p",))


def a_path_to_the_proxy(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E8, E13: the same, but at the path stands the proxy's own object."""
    middle: FakeDriver
    until = fence()

    async def box(x: Any) -> Any:
        await until.wait()
        return {"q": x}

    proxys = Recorder()
    near, _far = wire.link(far_index={"get": lambda: {"p": [middle.index.box(proxys)["q"]]}})
    middle, _third = wire.link(far_index={"box": box}, names=("middle", "third"))
    return Scenario(near, near.index.get(), proxys, ("p", 0))


def reflection(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E9: far resolves to a promise of near's, which resolves to an object of far's."""
    far: FakeDriver
    until = fence()
    theirs = Recorder()

    async def get(x: Any) -> Any:
        await until.wait()
        return x

    near, far = wire.link({"get": get}, {"get": lambda: [far.index.get(theirs)]})
    return Scenario(near, near.index.get(), theirs, (0,))


def reflection_of_a_proxy(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E9: near's promise is one of a third host, which holds far's object through near."""
    far: FakeDriver
    third: FakeDriver
    until = fence()
    theirs = Recorder()

    async def echo(x: Any) -> Any:
        await until.wait()
        return x

    near, far = wire.link(
        {"get": lambda x: third.index.echo(x)}, {"get": lambda: {"p": far.index.get(theirs)}}
    )
    third, _fourth = wire.link(far_index={"echo": echo}, names=("third", "fourth"))
    return Scenario(near, near.index.get(), theirs, ("p",))


def successive(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E10: far -> near's promise -> far's promise -> near's object."""
    far: FakeDriver
    near: FakeDriver
    first, second = fence(), fence()
    mine = Recorder()

    async def echo(x: Any) -> Any:
        await first.wait()
        return x

    async def again() -> Any:
        await second.wait()
        return near.index.echo(mine)

    near, far = wire.link({"again": again}, {"get": lambda: [far.index.again()], "echo": echo})
    return Scenario(near, near.index.get(), mine, (0,))


def answer_of_a_pipelined_call(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E1: the promise is itself the answer of a call through a promise."""
    until = fence()

    class Box(Target):
        def echo(self, x: Any) -> Any:
            return x

    async def box() -> Any:
        await until.wait()
        return Box()

    near, _far = wire.link(far_index={"box": box})
    mine = Recorder()
    return Scenario(near, near.index.box().echo(mine), mine)


def answer_of_our_own(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E9, E12: a call through a promise turns out to be one on an object of near's."""
    mine = Recorder()

    class Box(Target):
        def get(self) -> Any:
            return {"r": mine}

    near, _far = wire.link(far_index={"echo": lambda x: x})
    return Scenario(near, near.index.echo(Box()).get(), mine, ("r",))


def promise_of_a_third_as_argument(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E4, P7: a promise of another connection, which resolves to near's object, is echoed."""
    until = fence()
    mine = Recorder()

    async def echo(x: Any) -> Any:
        await until.wait()
        return [x]

    near, _far = wire.link(far_index={"echo": lambda x: {"e": x}})
    third, _fourth = wire.link(far_index={"echo": echo}, names=("third", "fourth"))
    promise = third.index.echo(mine)
    return Scenario(near, near.index.echo(promise), mine, ("e", 0))


def a_path_that_leads_on(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E13, E14: far gives a path into what near has from far."""
    mine = Recorder()
    near, _far = relay(wire, mine)
    return Scenario(near, near.index.get(), mine, ("in", 0))


def a_path_on_an_object(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E13, E14: the same, where the path begins at near's index."""
    near: FakeDriver
    far: FakeDriver
    mine = Recorder()

    class Index(Target):
        @property
        def stored(self) -> Any:
            return {"it": stored[0]}

    near, far = wire.link(
        Index(),
        {"get": lambda: {"in": [far.index.stored["it"][0]]}, "box": lambda x: [x, lambda: None]},
    )
    stored = [near.index.box(mine)]
    stored[0][1]()  # so that near does not get the value
    return Scenario(near, near.index.get(), mine, ("in", 0), stored)


def a_path_that_another_promise_came_to(wire: Wire, fence: Callable[[], Fence]) -> Scenario:
    """E13, E14: far's promise becomes the path by which near calls."""
    near: FakeDriver
    far: FakeDriver
    theirs = Recorder()

    def get() -> Any:
        far.spawn(far.index.other())
        return {"in": [far.index.relay()["in"][0]]}

    near, far = wire.link(
        {
            "other": lambda: {"in": [promises.pop()["in"][0]]},
            "relay": lambda: near.index.home(),
            "box": lambda x: {"in": [x]},
        },
        {"get": get, "home": lambda: {"in": [far.index.box(theirs)["in"][0]]}},
    )
    promises: list[Any] = [near.index.get()]
    return Scenario(near, promises[0], theirs, ("in", 0))


SCENARIOS: list[Make] = [
    echo,
    echo_later,
    far_object,
    promised_answer,
    promised_answer_inside,
    read_of_ours,
    two_hops,
    two_hops_inside,
    two_hops_to_the_proxy,
    two_hops_to_the_end,
    two_hops_to_a_path,
    a_path_to_the_proxy,
    reflection,
    reflection_of_a_proxy,
    successive,
    answer_of_a_pipelined_call,
    answer_of_our_own,
    promise_of_a_third_as_argument,
    a_path_that_leads_on,
    a_path_on_an_object,
    a_path_that_another_promise_came_to,
]


def step_to(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def play(wire: Wire, seed: int, make: Make) -> None:
    """Make calls through the promise, and on its value once that is here, at any moments."""
    rng = random.Random(seed)
    fences: list[Fence] = []

    def fence() -> Fence:
        fences.append(Fence())
        return fences[-1]

    near, promise, recorder, path, stored = make(wire, fence)
    place = step_to(promise, path)
    for side in wire.sides:
        side.eager = rng.random() < 0.7
    tasks = []
    calls = 8
    awaited_at = rng.randrange(calls)
    task = None
    made = 0

    def call() -> None:
        nonlocal made, task
        if made == awaited_at:
            task = near.spawn(promise)
        on = step_to(task.result(), path) if task is not None and task.done else place
        called = on.note(made) if rng.random() < 0.7 else on.note_async(made)
        if inspect.iscoroutine(called) or (type(called) is Promise and rng.random() < 0.7):
            tasks.append(near.spawn(called))  # else dropped, and delivered all the same
        made += 1

    while True:
        moves: list[Callable[[], object]] = [s.deliver for s in wire.sides if s.inbox]
        moves += [side.turn for side in wire.sides if side.busy]
        moves += [side.settle for side in wire.sides if side.starting]
        if made < calls:
            moves.append(call)
        if not moves or rng.random() < 0.3:
            moves += [fence.set for fence in fences if not fence.is_set()]
        if moves:
            rng.choice(moves)()
        elif not any(side.settle() for side in wire.sides):
            break
    assert recorder.seen == list(range(calls))
    assert task is not None
    assert step_to(task.result(), path) is not None
    for made_call in tasks:
        made_call.result()
    if stored is not None:
        stored.clear()


@pytest.mark.parametrize("make", SCENARIOS, ids=lambda make: make.__name__)
def test_calls_start_in_the_order_they_were_made(make: Make) -> None:
    """E1 to E4, E8 to E10, E12, E13, E17, E18: whenever what arrives."""
    for seed in range(130):
        wire = Wire()
        try:
            play(wire, seed, make)
            wire.check_quiet()
        except BaseException as error:
            error.add_note(f"with seed {seed}")
            raise
