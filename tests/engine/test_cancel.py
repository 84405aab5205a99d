"""Rule 9: cancelling withdraws an interest; dropping does not even that."""

from __future__ import annotations

import weakref
from asyncio import CancelledError
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import RemoteError, Target
from capnode_py.testing import FakeDriver, Fence, Task, Wire


class Worker(Target):
    """Its handlers wait until the fence is set."""

    def __init__(self) -> None:
        self.fence = Fence()
        self.log: list[str] = []

    async def work(self, *_values: Any) -> str:
        self.log.append("started")
        try:
            await self.fence.wait()
        except CancelledError:
            self.log.append("cancelled")
            raise
        self.log.append("done")
        return "done"

    async def suppress(self) -> list[Any]:
        try:
            await self.fence.wait()
        except CancelledError:
            self.log.append("suppressed")
        return [self.work]

    async def clean_up(self, cleaned: Fence) -> None:
        try:
            await self.fence.wait()
        finally:
            await CLEANED.wait()
            self.log.append("cleaned")

    def quick(self, *values: Any) -> list[Any]:
        self.log.append("quick")
        return list(values)


CLEANED = Fence()


def fails_as_cancelled(task: Task) -> None:
    with pytest.raises(RemoteError, match="handler was cancelled"):
        task.result()


def test_the_last_awaiter_that_is_cancelled_cancels_the_handler_once(wire: Wire) -> None:
    """K1"""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    promise = near.index.work()
    first, second = near.spawn(promise), near.spawn(promise)
    wire.run()
    first.cancel()
    wire.run()
    assert worker.log == ["started"]  # the other still waits
    assert near.counts()["cancel"] == 0
    second.cancel()
    wire.run()
    assert worker.log == ["started", "cancelled"]
    assert near.counts()["cancel"] == 1
    assert far.stopped == ["work"]
    for task in (first, second):
        with pytest.raises(CancelledError):
            task.result()
    third = near.spawn(promise)
    wire.run()
    fails_as_cancelled(third)


def test_promise_cancel_withdraws_although_others_wait(wire: Wire) -> None:
    """K1: they get what the far side then answers."""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    promise = near.index.work()
    task = near.spawn(promise)
    wire.run()
    promise.cancel()
    promise.cancel()
    wire.run()
    assert worker.log == ["started", "cancelled"]
    assert far.stopped == ["work"]
    fails_as_cancelled(task)


@pytest.mark.parametrize("way", ["a promise that is here", "a facade", "an attenuated facade"])
def test_who_awaits_gets_what_the_far_handler_made_of_it_whatever_the_call_went_through(
    wire: Wire, way: str
) -> None:
    """Here it follows another promise."""
    worker = Worker()
    near, far = wire.link(far_index=lambda: worker)
    got = near.index()
    stub = near.get(got)
    through = {
        "a promise that is here": got,
        "a facade": capnode.revocable(stub)[0],
        "an attenuated facade": capnode.attenuate(stub, allow={"work", "suppress"}),
    }[way]
    promise, suppressed = through.work(), through.suppress()
    tasks = [near.spawn(promise), near.spawn(suppressed)]
    wire.run()
    for each in (promise, suppressed):
        each.cancel()
    wire.run()
    assert far.stopped == ["work", "suppress"]
    fails_as_cancelled(tasks[0])
    assert len(tasks[1].result()) == 1  # it has suppressed it
    assert worker.log == ["started", "cancelled", "suppressed"]


def test_a_call_whose_cancel_is_in_the_same_frame_is_not_started(wire: Wire) -> None:
    """K7"""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    promise = near.index.work()
    promise.cancel()
    behind = near.spawn(near.index.quick(1))
    task = near.spawn(promise)
    wire.run()
    assert far.started == ["quick"]
    assert behind.result() == [1]
    fails_as_cancelled(task)


def test_a_call_cancelled_in_its_own_frame_releases_what_it_was_given(wire: Wire) -> None:
    """K3, K7"""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    promise = near.index.work(lambda: None, [print])
    promise.cancel()
    wire.run()
    assert far.started == []
    assert len(near.session.exports) == 1
    del promise


def test_a_call_that_still_waits_is_never_started_after_its_cancel(wire: Wire) -> None:
    """K7, K3: in the queue of a promise, or for a promise in its arguments."""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    busy = near.index.work()
    through = busy.quick(print)
    given = near.index.quick(busy, print)
    tasks = [near.spawn(promise) for promise in (busy, through, given)]
    wire.run()
    through.cancel()
    given.cancel()
    wire.run()
    fails_as_cancelled(tasks[1])
    fails_as_cancelled(tasks[2])
    assert len(near.session.exports) == 1  # what they were given is given up already
    worker.fence.set()
    wire.run()
    assert tasks[0].result() == "done"
    assert far.started == ["work"]


def test_a_handler_that_others_depend_on_is_not_cancelled_before_they_are(wire: Wire) -> None:
    """K8: a call through its promise, and a call that it was passed to."""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    promise = near.index.work()
    through, given = promise.upper(), near.index.quick(promise)
    tasks = [near.spawn(call) for call in (promise, through, given)]
    wire.run()
    promise.cancel()
    wire.run()
    assert far.stopped == []
    through.cancel()
    wire.run()
    assert far.stopped == []
    given.cancel()
    wire.run()
    assert far.stopped == ["work"]
    assert worker.log == ["started", "cancelled"]
    for task in tasks:
        fails_as_cancelled(task)


def test_dependents_that_stay_get_their_answer(wire: Wire) -> None:
    """K8"""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    promise = near.index.work()
    given = near.spawn(near.index.quick(promise))
    wire.run()
    promise.cancel()
    wire.run()
    worker.fence.set()
    wire.run()
    assert given.result() == ["done"]
    assert far.stopped == []


def test_a_cancel_crosses_a_proxy_once(wire: Wire) -> None:
    """X3, K8"""
    middle: FakeDriver
    worker = Worker()
    near, far = wire.link(far_index={"work": lambda: middle.index.work()})
    middle, third = wire.link(far_index=worker, names=("middle", "third"))
    task = near.spawn(near.index.work())
    wire.run()
    task.cancel()
    wire.run()
    assert third.stopped == ["work"]
    assert near.counts()["cancel"] == middle.counts()["cancel"] == 1
    assert far.counts()["reject"] == 1
    assert worker.log == ["started", "cancelled"]


def test_what_two_callers_share_is_cancelled_with_the_second(wire: Wire) -> None:
    """K8: one promise of a third host, answered to two calls."""
    worker = Worker()
    shared: list[Any] = []

    def work() -> Any:
        if not shared:
            shared.append(middle.index.work())
        return shared[0]

    near, _far = wire.link(far_index={"work": work})
    middle, third = wire.link(far_index=worker, names=("middle", "third"))
    first, second = near.spawn(near.index.work()), near.spawn(near.index.work())
    wire.run()
    first.cancel()
    wire.run()
    assert third.stopped == []
    second.cancel()
    wire.run()
    assert third.stopped == ["work"]
    shared.clear()


def test_a_promise_that_was_exported_keeps_its_call_alive(wire: Wire) -> None:
    """K8: it was given to another host, which still waits for it."""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    third, fourth = wire.link(far_index=Worker(), names=("third", "fourth"))
    promise = near.index.work()
    taken = third.spawn(third.index.quick(promise))
    task = near.spawn(promise)
    wire.run()
    task.cancel()
    wire.run()
    assert far.stopped == []
    worker.fence.set()
    wire.run()
    assert taken.result() == ["done"]
    assert fourth.started == ["quick"]


def test_a_handler_may_suppress_its_cancellation(wire: Wire) -> None:
    """K5: its late result leaks nothing."""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    task = near.spawn(near.index.suppress())
    wire.run()
    task.cancel()
    del task
    wire.run()
    assert worker.log == ["suppressed"]
    assert len(far.session.exports) == 1


def test_a_handler_may_finish_its_cleanup(wire: Wire) -> None:
    """K6: and the caller does not wait for it."""
    global CLEANED  # noqa: PLW0603
    CLEANED = Fence()
    worker = Worker()
    near, far = wire.link(far_index=worker)
    task = near.spawn(near.index.clean_up(1))
    wire.run()
    task.cancel()
    wire.run()
    assert task.done
    assert worker.log == []
    assert len(far.session.exports) == 2  # it runs, unheard
    CLEANED.set()
    wire.run()
    assert worker.log == ["cleaned"]
    assert far.stopped == ["clean_up"]


def test_a_cancel_that_crosses_the_answer_changes_nothing(wire: Wire) -> None:
    """K4, K9"""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    promise = near.index.quick(worker)
    task = near.spawn(promise)
    near.flush()
    far.deliver("call")
    promise.cancel()
    wire.run()
    assert task.result()[0] is not None
    assert near.session.error is far.session.error is None
    promise.cancel()
    assert near.get(promise) == task.result()
    del task, promise


def test_a_cancel_after_which_the_promise_is_dropped_is_withdrawn_in_order(wire: Wire) -> None:
    """K4: the cancel leaves before the release."""
    worker = Worker()
    near, far = wire.link(far_index=worker)
    promise = near.index.work()
    near.flush()
    far.deliver("call")
    promise.cancel()
    del promise
    near.flush()
    assert [m.word for m in far.coming()] == ["cancel", "release"]
    wire.run()
    assert worker.log == ["started", "cancelled"]


def test_cancelling_a_path_does_nothing(wire: Wire) -> None:
    """K9: there is no call yet."""
    near, _far = wire.link(far_index=Worker())
    near.index.work.cancel()
    near.index.work[1].cancel()
    assert near.session.backlog() == 0


def test_a_read_that_is_cancelled_is_withdrawn(wire: Wire) -> None:
    """K1: an await of a path makes the call itself."""

    class Slow(Target):
        @property
        def value(self) -> Any:
            return middle.index.work()

    worker = Worker()
    near, _far = wire.link(far_index=Slow())
    middle, third = wire.link(far_index=worker, names=("middle", "third"))
    task = near.spawn(near.index.value)
    wire.run()
    task.cancel()
    wire.run()
    assert third.stopped == ["work"]


def test_a_call_that_is_not_started_yet_gives_its_target_up_when_cancelled(wire: Wire) -> None:
    """K3, G1: a result that nobody can ask for any more is freed."""

    class Thing(Target):
        pass

    made: list[weakref.ref[Thing]] = []

    def make() -> Thing:
        thing = Thing()
        made.append(weakref.ref(thing))
        return thing

    worker = Worker()
    near, _far = wire.link(far_index={"make": make, "quick": worker.quick, "work": worker.work})
    thing = near.index.make()
    waiting = near.index.quick(thing, near.index.work())
    wire.run()
    waiting.cancel()
    del thing, waiting
    wire.run()
    assert made[0]() is None
    worker.fence.set()
    wire.run()


def test_a_failed_answer_frees_what_the_handler_held_at_once(wire: Wire) -> None:
    """G1, K5: also a handler that is a coroutine."""

    class Thing(Target):
        pass

    gone: list[weakref.ref[Thing]] = []

    async def fail() -> None:
        thing = Thing()
        gone.append(weakref.ref(thing))
        raise ValueError("failed")

    near, _far = wire.link(far_index=fail)
    with pytest.raises(ValueError, match="failed"):
        near.get(near.index())
    wire.run()
    assert gone[0]() is None
