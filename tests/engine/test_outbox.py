"""What leaves: the pull flag, frames of one turn, and releases that ride along."""

from __future__ import annotations

from typing import Any

import pytest

from capnode_py import Limits, Target
from capnode_py._messages import Yours
from capnode_py._outbox import WAITS_UP_TO
from capnode_py.testing import FakeDriver, Fence, Wire

FENCE = Fence()


@pytest.fixture(autouse=True)
def _new_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Service.later` waits for."""
    monkeypatch.setitem(globals(), "FENCE", Fence())


class Service(Target):
    def echo(self, value: Any = None) -> Any:
        return value

    async def later(self, value: Any) -> Any:
        await FENCE.wait()
        return value

    def itself(self, *_values: Any) -> Service:
        return self


# The pull flag.


def test_a_promise_only_pipelined_through_goes_as_push_and_is_never_answered(wire: Wire) -> None:
    """P14"""
    near, far = wire.link(far_index=Service())
    promise = near.index.itself()
    task = near.spawn(promise.itself().echo(1))
    wire.run()
    assert near.words()[:3] == ["push", "push", "call"]
    assert task.result() == 1
    assert far.words() == ["resolve"]


def test_a_promise_that_is_dropped_unseen_goes_as_push(wire: Wire) -> None:
    """P14, K2"""
    near, far = wire.link(far_index=Service())
    near.index.echo(1)
    wire.run()
    assert near.words() == ["push", "release"]
    assert far.sent == []


@pytest.mark.parametrize("name", ["echo", "later"])
def test_a_promise_that_is_only_passed_on_is_not_answered(wire: Wire, name: str) -> None:
    """P14: its host has the value where it is needed; settled before or after."""
    near, far = wire.link(far_index=Service())
    promise = near.index[name]("big value")
    task = near.spawn(near.index.echo([promise]))
    wire.run()
    FENCE.set()
    wire.run()
    assert task.result() == ["big value"]
    assert near.words()[:2] == ["push", "call"]
    assert far.counts() == {"resolve": 1}
    assert near.get(promise) == "big value"  # now it is asked for
    assert near.counts()["pull"] == 1
    assert far.counts() == {"resolve": 2}


@pytest.mark.parametrize("name", ["echo", "later"])
def test_a_promise_that_was_passed_on_can_be_awaited_at_any_time(wire: Wire, name: str) -> None:
    """P14, T4"""
    near, far = wire.link(far_index=Service())
    promise = near.index[name](1)
    taken = near.spawn(near.index.echo(promise))
    near.flush()
    task = near.spawn(promise)
    wire.run()
    FENCE.set()
    wire.run()
    assert taken.result() == task.result() == 1
    assert far.counts()["resolve"] == 2


def test_calls_that_are_gathered_go_as_call(wire: Wire) -> None:
    """P14: at the flush none of them has been awaited; they are guessed to be."""
    near, _far = wire.link(far_index=Service())
    promises = [near.index.echo(n) for n in range(10)]
    near.flush()
    tasks = [near.spawn(promise) for promise in promises]
    wire.run()
    assert [task.result() for task in tasks] == list(range(10))
    assert near.counts() == {"call": 10, "release": 1}


def test_an_await_after_the_push_pulls(wire: Wire) -> None:
    """P14: before the far side has an answer, and after."""

    async def wait() -> str:
        await fence.wait()
        return "done"

    fence = Fence()
    near, far = wire.link(far_index={"wait": wait})
    promise = near.index.wait()
    length = near.spawn(promise.upper)
    wire.run()
    assert near.words()[0] == "push"
    task = near.spawn(promise)
    wire.run()
    assert near.counts()["pull"] == 1
    fence.set()
    wire.run()
    assert task.result() == "done"
    with pytest.raises(AttributeError):
        length.result()
    assert far.counts() == {"resolve": 1, "reject": 1}

    late = near.index.wait()
    late.x()
    wire.run()
    assert near.get(late) == "done"
    assert near.counts()["pull"] == 2


def test_a_promise_is_pulled_once_and_answered_once(wire: Wire) -> None:
    """T4"""
    near, far = wire.link(far_index=Service())
    promise = near.index.itself()
    promise.echo()
    near.flush()
    tasks = [near.spawn(promise) for _ in range(3)]
    wire.run()
    assert near.counts()["pull"] == 1
    assert [m.fields[0] for m in far.sent if m.word == "resolve"] == [1]
    assert {task.result() for task in tasks} == {near.index}


def test_awaited_and_pipelined_before_the_flush_goes_as_call(wire: Wire) -> None:
    """P14"""
    near, _far = wire.link(far_index=Service())
    promise = near.index.itself()
    task = near.spawn(promise)
    promise.echo(1)
    wire.run()
    assert near.words()[:2] == ["call", "push"]
    assert task.result() is near.index


def test_a_proxy_pulls_only_what_it_is_asked_for(wire: Wire) -> None:
    """P14, through a proxy."""
    middle: FakeDriver
    near, far = wire.link(far_index={"get": lambda: middle.index.itself()})
    middle, third = wire.link(far_index=Service(), names=("middle", "third"))
    promise = near.index.get()
    assert near.get(promise.echo(7)) == 7
    assert third.counts() == {"resolve": 1}
    assert middle.words()[0] == "push"
    stub = near.get(promise)
    assert near.get(stub.echo(8)) == 8
    assert middle.counts()["pull"] == 1
    assert far.session.error is None
    del promise, stub


# Frames.


def test_the_messages_of_one_turn_are_one_frame(wire: Wire) -> None:
    """P3: and so are their answers."""
    near, far = wire.link(far_index=Service())
    tasks = [near.spawn(near.index.echo(n)) for n in range(100)]
    near.flush()
    assert len(far.inbox) == 1
    far.deliver()
    assert len(near.inbox) == 1
    near.deliver()
    assert all(task.done for task in tasks)


def test_a_frame_is_closed_at_64_kib(wire: Wire) -> None:
    """F12: even in mid-turn, so that the other side can start."""
    near, far = wire.link(far_index=Service())
    tasks = [near.spawn(near.index.echo(bytes(1000))) for _ in range(200)]
    near.flush()
    sizes = [len(frame.data) for frame in far.inbox]
    assert len(sizes) == 4
    assert all(64 * 1024 <= size < 66 * 1024 for size in sizes[:-1])
    wire.run()
    assert all(task.done for task in tasks)


def test_no_frame_is_larger_than_the_other_side_takes(wire: Wire) -> None:
    """C5, F10: small messages together may not exceed what one may."""
    near, far = wire.link(far_index=Service(), far_limits=Limits(max_frame=3_000))
    tasks = [near.spawn(near.index.echo(bytes(n))) for n in range(0, 2_900, 100)]
    near.flush()
    assert max(len(frame.data) for frame in far.inbox) <= 3_000 + 5
    wire.run()
    assert [len(task.result()) for task in tasks] == list(range(0, 2_900, 100))


def test_an_awaited_call_is_one_message_each_way(wire: Wire) -> None:
    """P14: with its release in the frame of the next one."""
    near, far = wire.link(far_index=Service())
    for n in range(50):
        task = near.spawn(near.index.echo(n))
        near.flush()
        far.deliver()
        near.deliver()
        assert task.result() == n
    assert far.counts() == {"resolve": 50}
    assert near.counts() == {"call": 50, "release": 49}
    assert far.inbox == near.inbox
    frames = near.session.messages_sent
    wire.run()
    assert near.session.messages_sent == frames + 1  # the last release, when nothing else left


def test_gathered_calls_take_one_message_each_way(wire: Wire) -> None:
    """P14"""
    near, far = wire.link(far_index=Service())
    for _ in range(10):
        tasks = [near.spawn(near.index.echo(n)) for n in range(100)]
        wire.run()
        assert all(task.done for task in tasks)
    assert far.session.messages_sent == 1000
    assert near.session.messages_sent == 1000 + 10


# Releases.


def test_releases_alone_wait_for_company(wire: Wire) -> None:
    """G1: they are asked for later, and leave with the next frame or then."""
    near, far = wire.link(far_index=Service())
    later: list[int] = []
    near.session._outbox._wake_later = lambda: later.append(1)
    tasks = [near.spawn(near.index.echo(n)) for n in range(5)]
    near.flush()
    far.deliver()
    near.deliver()
    assert later == [1]  # once for all of them
    assert not far.inbox
    task = near.spawn(near.index.echo(1))
    near.flush()
    assert [m.word for m in far.coming()] == ["call", "release"]
    assert far.coming()[1].fields == [[1, 2, 3, 4, 5], []]
    del tasks
    wire.run()
    assert task.done
    near.flush()


def test_releases_of_plain_answers_wait_until_they_are_many(wire: Wire) -> None:
    """A call that is awaited alone costs one message each way, and no release of its own."""
    near, far = wire.link(far_index=Service())
    said = []
    for n in range(70):
        task = near.spawn(near.index.echo(n))
        near.flush_turn()
        said += [m.word for m in far.coming()[1:]]
        far.deliver("call", *said[-1:] if far.coming()[1:] else ())
        near.deliver("resolve")
        assert task.result() == n
    assert said == ["release", "release"]
    assert 0 < far.peer.stats().answers < 32
    near.flush()  # when something else has it leave, or after some milliseconds
    far.deliver("release")
    assert far.peer.stats().answers == 0


def test_a_ping_takes_the_releases_along_that_wait(wire: Wire) -> None:
    """So that it is a fence for them, too."""
    near, far = wire.link(far_index=Service())
    task = near.spawn(near.index.echo(1))
    near.flush_turn()
    far.deliver("call")
    near.deliver("resolve")
    near.spawn(near.peer.ping())
    near.flush_turn()
    far.deliver("ping", "release")
    assert far.peer.stats().answers == 0
    assert task.done


@pytest.mark.parametrize("what", ["large", "object", "error", "dropped", "stub"])
def test_what_holds_much_or_objects_is_released_with_the_next_frame(wire: Wire, what: str) -> None:
    near, far = wire.link(
        far_index={
            "large": lambda: "x" * WAITS_UP_TO,
            "object": lambda: {"it": Service()},
            "error": lambda: int("none"),
            "dropped": lambda: Service(),
            "stub": lambda: Service(),
            "tick": lambda: None,
        }
    )
    stub = near.get(near.index.stub()) if what == "stub" else None
    task = None
    if what == "dropped":
        near.index.dropped()
    elif what != "stub":
        task = near.spawn(near.index[what]())
    near.flush_turn()
    if what != "stub":
        far.deliver()
    if task is not None:
        near.deliver()
        assert task.done
    del stub  # not the task, which has the object: its answer is what is released
    near.index.tick()
    near.flush_turn()
    assert [m.word for m in far.coming()] == ["push", "release"]


def test_a_release_never_overtakes_a_message_that_names_the_id(wire: Wire) -> None:
    """G4: releases are the last messages of a frame."""
    near, far = wire.link(far_index=Service())
    promise = near.index.itself()
    near.index.echo(promise)
    near.peer.notify(promise.echo, promise)
    del promise
    near.flush()
    words = [m.word for m in far.coming()]
    assert words == ["push", "push", "send", "release"]
    assert far.coming()[1].fields[2] == [Yours(1)]
    wire.run()
    assert far.session.error is None


def test_dropping_and_calling_in_one_turn_releases_behind_the_calls(wire: Wire) -> None:
    """G4: also what was given up by hand."""
    near, far = wire.link(far_index={"get": lambda: print_, "take": lambda *a: len(a)})

    def print_(*_values: Any) -> None: ...

    stub = near.get(near.index.get())
    first = near.spawn(near.index.take(stub, [stub]))
    second = near.spawn(stub(1))
    stub.dealloc()
    near.flush()
    assert [m.word for m in far.coming()] == ["call", "call", "release"]
    wire.run()
    assert first.result() == 2
    assert second.result() is None
    assert len(far.session.exports) == 1


def test_nothing_is_woken_for_twice_in_a_turn(wire: Wire) -> None:
    """P3"""
    near, _far = wire.link(far_index=Service())
    wakes: list[int] = []
    near.session._outbox._wake = lambda: wakes.append(1)
    tasks = [near.spawn(near.index.echo(n)) for n in range(5)]
    assert wakes == [1]
    near.flush()
    wire.run()
    tasks.append(near.spawn(near.index.echo(5)))
    assert len(wakes) >= 2
    near.flush()
    wire.run()
    assert all(task.done for task in tasks)
