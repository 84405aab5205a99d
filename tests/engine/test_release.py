"""What is given up, when, and with how many messages."""

from __future__ import annotations

import gc
import weakref
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import CannotPass, RemoteError, Target
from capnode_py._messages import Mine, Promised
from capnode_py.testing import FakeDriver, Fence, Wire


class Thing(Target):
    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.fence = Fence()
        self.log: list[str] = []

    def make(self) -> Thing:
        self.made = weakref.ref(made := Thing())
        return made

    def keep(self, *values: Any) -> None:
        self.kept += values

    def give(self) -> list[Any]:
        return self.kept

    def drop(self) -> None:
        self.kept.clear()

    def ignore(self, *_values: Any) -> None: ...

    async def wait(self, *_values: Any) -> list[Any]:
        self.log.append("started")
        try:
            await self.fence.wait()
        except CancelledError:
            self.log.append("cancelled")
            raise
        return [Thing(), self.ignore]

    async def stubborn(self, *_values: Any) -> list[Any]:
        try:
            await self.fence.wait()
        except CancelledError:
            self.log.append("suppressed")
        return [Thing(), self.ignore]


def exported(side: FakeDriver) -> dict[int, int]:
    exports = side.session.exports
    return {id: exports.find(id).sent for id in exports.entries if id < 0}


def test_an_object_goes_in_the_turn_after_the_last_stub_and_the_last_promise(wire: Wire) -> None:
    """G1: neither of the two alone is enough; and then it takes one frame."""
    thing = Thing()
    near, far = wire.link(far_index=thing)
    promise = near.index.make()
    stub = near.get(promise)
    wire.run()
    del promise
    wire.run()
    assert thing.made() is not None
    promise = near.index.keep(stub)
    near.get(promise)
    promise = near.get(near.index.give())[0].keep()  # a call on it, whose answer stays
    near.get(promise)
    near.get(near.index.drop())
    wire.run()
    del stub
    near.flush()
    assert [m.word for m in far.coming()] == ["release"]
    far.deliver("release")
    assert thing.made() is None
    assert near.get(promise) is None


def test_a_promise_that_has_its_value_holds_it_as_a_stub_does(wire: Wire) -> None:
    """G1"""
    thing = Thing()
    near, far = wire.link(far_index=thing)
    promise = near.index.make()
    near.get(promise)
    wire.run()
    assert thing.made() is not None
    assert near.get(promise.give()) == []
    del promise
    near.flush()
    far.deliver("release")
    assert thing.made() is None


def test_nothing_is_retained_after_the_last_message(wire: Wire) -> None:
    """T9: on a connection that then is idle, neither what was passed nor what was answered."""
    thing, argument = Thing(), Thing()
    near, far = wire.link(far_index=thing)
    gone = weakref.ref(argument)

    def callback() -> None: ...

    callback_gone = weakref.ref(callback)
    near.get(near.index.ignore(argument, callback))
    near.get(near.index.make())
    wire.run()
    del argument, callback
    assert [gone(), callback_gone(), thing.made()] == [None] * 3
    assert len(near.session.imports) == len(far.session.imports) == 1


def test_the_tables_show_what_is_pending(wire: Wire) -> None:
    """T8: a connection is idle when they hold the two indexes alone; calls under way count."""
    thing = Thing()
    near, far = wire.link(far_index=thing)

    def held() -> list[int]:
        stats = near.peer.stats(), far.peer.stats()
        return [n for each in stats for n in (each.imports, each.exports)]

    assert held() == [1, 1, 1, 1]
    task = near.spawn(near.index.wait(lambda: None))
    wire.run()
    assert held() == [2, 2, 2, 2]
    thing.fence.set()
    wire.run()
    assert len(task.result()) == 2
    assert held() == [3, 1, 1, 3]
    del task
    wire.run()
    assert held() == [1, 1, 1, 1]


def test_retaining_calling_back_and_returning_home_are_counted_message_by_message(
    wire: Wire,
) -> None:
    """G2: each call and its answer, and the one release of what was retained."""
    thing = Thing()
    calls: list[int] = []
    append = calls.append
    near, far = wire.link(far_index=thing)
    near.get(near.index.keep(append))
    for n in range(3):
        far.get(thing.kept[0](n))
    assert near.get(near.index.give()) == [append]
    wire.run()
    sent = Counter(m.word for side in (near, far) for m in side.sent if m.word != "release")
    assert sent == {"call": 5, "resolve": 5}
    assert not [m for side in (near, far) for m in side.sent if m.word == "release" and m.fields[1]]
    thing.kept.clear()
    wire.run()
    told = [m.fields[1] for side in (near, far) for m in side.sent if m.word == "release"]
    assert [pairs for pairs in told if pairs] == [[[-1, 1]]]
    assert calls == [0, 1, 2]


def test_the_outcome_of_a_promise_gives_the_promise_up(wire: Wire) -> None:
    """G8: by the receiver, once, as often as it was received; what it became is held instead."""
    thing, thirds = Thing(), Thing()
    near, far = wire.link(far_index=thing)
    third, fourth = wire.link(far_index=thirds, names=("third", "fourth"))
    promise = third.index.wait()
    near.index.keep(promise, [promise])
    near.index.keep({"again": promise})
    wire.run()
    assert exported(near) == {-1: 3}
    thirds.fence.set()
    wire.run()
    assert -1 not in exported(near)
    told = [pair for m in far.sent if m.word == "release" for pair in m.fields[1]]
    assert [pair for pair in told if pair[0] == -1] == [[-1, 3]]
    assert near.counts()["resolve"] == 1
    assert len(thing.kept) == 3
    assert len(exported(near)) == len(exported(fourth)) == 2  # the object and the method
    thing.kept.clear()
    del promise


def test_a_promise_in_a_call_that_cannot_be_encoded_was_not_announced(wire: Wire) -> None:
    """T6: its outcome, when that comes, is sent to nobody."""
    thing, thirds = Thing(), Thing()
    near, _far = wire.link(far_index=thing)
    third, _fourth = wire.link(far_index=thirds, names=("third", "fourth"))
    promise = third.index.wait()
    with pytest.raises(CannotPass):
        near.index.keep(promise, object())
    assert exported(near) == {}
    thirds.fence.set()
    third.get(promise)
    assert near.sent == []
    near.get(near.index.ignore(print))
    assert near.sent[0].fields[2] == [Mine(-1)]  # the next id, and not that of the promise
    wire.run()

    thirds.fence = Fence()
    promise = third.index.wait()
    near.index.ignore(promise)  # now it is: the same entry is made anew
    with pytest.raises(CannotPass):
        near.index.ignore(promise, object())
    near.flush()
    assert [m.fields[2] for m in near.sent if m.word == "push"] == [[Promised(-2)]]
    assert exported(near) == {-2: 1}
    thirds.fence.set()
    wire.run()
    assert near.counts()["resolve"] == 1
    del promise


# Cancelled calls.


@pytest.mark.parametrize("name", ["wait", "stubborn"])
def test_a_cancelled_handler_gives_up_what_it_was_given(wire: Wire, name: str) -> None:
    """K3, K5: in the turn in which it ends; also if it ends as though nothing had happened."""
    thing = Thing()
    near, far = wire.link(far_index=thing)

    def callback() -> None: ...

    gone = weakref.ref(callback)
    promise = near.index[name](callback, [callback])
    task = near.spawn(promise)
    del callback
    wire.run()
    assert exported(near) == {-1: 2}
    gc.disable()  # it must not take a collection
    try:
        task.cancel()
        del task, promise
        wire.run()
    finally:
        gc.enable()
    assert thing.log[-1] in ("cancelled", "suppressed")
    assert gone() is None
    assert exported(near) == exported(far) == {}


def test_the_late_result_of_a_cancelled_call_is_dropped_if_nobody_holds_its_promise(
    wire: Wire,
) -> None:
    """K5: nothing of it crosses; and if it is held, its outcome is what the handler gave."""
    thing = Thing()
    near, far = wire.link(far_index=thing)
    promise = near.index.stubborn()
    task = near.spawn(promise)
    wire.run()
    task.cancel()
    wire.run()
    assert len(near.get(promise)) == 2
    assert exported(far) == {-1: 1, -2: 1}
    del promise, task
    wire.run()
    assert exported(far) == {}

    task = near.spawn(near.index.stubborn())
    wire.run()
    sent = len(far.sent)
    task.cancel()
    del task
    wire.run()
    assert [m.word for m in far.sent[sent:]] == []
    assert thing.log == ["suppressed"] * 2


@pytest.mark.parametrize("moment", range(8))
def test_a_cancel_at_any_moment_leaks_nothing(wire: Wire, moment: int) -> None:
    """K4, K7: before the call leaves, while it runs, and across its answer with references."""
    thing = Thing()
    near, far = wire.link(far_index=thing)
    promise = near.index.wait(lambda: None, thing)
    steps: list[Callable[[], object]] = [
        near.flush,
        far.deliver,
        thing.fence.set,
        far.turn,
        near.deliver,
        near.flush,
        wire.run,
    ]
    for step in steps[:moment]:
        step()
    promise.cancel()
    wire.run()
    thing.fence.set()
    outcome = near.spawn(promise)
    wire.run()
    if moment < 3:
        with pytest.raises(RemoteError, match="cancelled"):
            outcome.result()
        assert thing.log == (["started", "cancelled"] if moment else [])
    else:  # the handler had what it waited for
        assert len(outcome.result()) == 2
        assert thing.log == ["started"]


def test_an_error_that_nobody_can_ask_for_is_let_go(wire: Wire) -> None:
    """K3: its traceback may hold a frame that holds its answer, and what the handler was given."""
    near, far = wire.link(far_index=Thing())
    far.holding = True
    near.index.wait(lambda: None)
    wire.run()  # the call, and the release of its answer
    (call,) = far.held
    far.held.clear()
    answer = call.reply
    assert answer is not None
    error = type("LateError", (ValueError,), {})("late")
    gone = weakref.finalize(error, lambda: None)
    far.session.fail(call, error)
    assert answer.settled
    del error
    assert not gone.alive
    call.args = []


# Collections.


def test_thousands_of_calls_with_a_callback_each_leave_nothing(wire: Wire) -> None:
    """G10: `python -m tests.soak` makes a million."""

    async def call(callback: Any) -> Any:
        return await callback(1)

    near, far = wire.link(far_index=call)

    def some(calls: int) -> None:
        for _ in range(calls):
            assert near.get(near.index(lambda n: n + 1)) == 2
            near.sent.clear()
            far.sent.clear()
            far.started.clear()
            near.started.clear()

    some(200)
    wire.check_quiet()
    gc.collect()
    before = len(gc.get_objects())
    some(2000)
    wire.check_quiet()
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert near.session.imports.last_question == 2200
    assert far.session.exports.last_answer == 2200


def test_the_leak_report_names_what_is_dropped_and_not_released_yet(wire: Wire) -> None:
    near, _ = wire.link(far_index=lambda: print)
    stub = near.get(near.index())
    wire.run()
    del stub
    assert near.peer.leak_report() == "import -1: dropped, to be released, received 1 x"


def test_the_leak_report_names_what_stands_for_something_else_by_that(wire: Wire) -> None:
    kept: list[Any] = []
    near, _ = wire.link(far_index=kept.append)
    other, _ = wire.link(names=("other", "its peer"))
    facade, _revoke = capnode.revocable(other.index)
    near.get(near.index(other.index))
    near.get(near.index(facade))
    wire.run()
    assert near.peer.leak_report().splitlines() == [
        f"export -1: {other.index!r}, sent 1 x",
        f"export -2: <Facade of {other.index!r}>, sent 1 x",
    ]
    kept.clear()
