"""Rule 10: the end of a connection fails everything at once, and leaves nothing."""

from __future__ import annotations

import gc
import weakref
from asyncio import CancelledError
from typing import Any

import pytest

from capnode_py import CapnodeError, PeerClosed, PeerLost, RemoteError, Target
from capnode_py.testing import FakeDriver, Fence, Wire


class Service(Target):
    def __init__(self) -> None:
        self.fence = Fence()
        self.log: list[str] = []
        self.kept: list[Any] = []

    async def wait(self, *_values: Any) -> str:
        try:
            await self.fence.wait()
        except CancelledError:
            self.log.append("cancelled")
            raise
        return "done"

    async def insist(self) -> Service:
        try:
            await self.fence.wait()
        except CancelledError:
            self.log.append("goes on")
        return self

    def keep(self, *values: Any) -> None:
        self.kept += values

    def thing(self) -> Service:
        return Service()


def test_everything_pending_fails_at_once_each_with_its_own_exception(wire: Wire) -> None:
    """D1"""
    near, far = wire.link(far_index=Service())
    promise = near.index.wait()
    stub = near.get(near.index.thing())
    tasks = [
        near.spawn(promise),
        near.spawn(promise),
        near.spawn(promise.x.y()),
        near.spawn(near.index.keep(promise)),
        near.spawn(stub.wait()),
        near.spawn(near.peer.ping()),
    ]
    wire.run()
    tasks[-1:] = [near.spawn(near.peer.ping())]  # the first was answered
    near.hang_up(OSError("reset by peer"))
    errors = []
    for task in tasks:
        with pytest.raises(PeerLost, match="reset by peer") as raised:
            task.result()
        errors.append(raised.value)
    assert len({id(error) for error in errors}) == len(errors)
    assert len({id(error.__traceback__) for error in errors}) == len(errors)
    assert all(isinstance(error.__cause__, OSError) for error in errors)
    assert isinstance(errors[0], ConnectionError)
    assert near.session.error is not None
    assert far.session.error is not None
    del errors, raised


def test_later_calls_fail_with_the_same_cause(wire: Wire) -> None:
    """D1"""
    near, _far = wire.link(far_index=Service())
    stub = near.get(near.index.thing())
    promise = near.index.wait()
    near.hang_up()
    for later in (near.index.wait(), stub.wait(), stub.x, promise, promise.x(), near.index.a[0]):
        with pytest.raises(PeerLost):
            near.get(later)
    with pytest.raises(PeerLost):
        near.peer.notify(near.index.wait)
    with pytest.raises(PeerLost):
        near.get(near.peer.ping())
    stub.dealloc()
    assert "gone" in repr(stub)


def test_the_tables_are_cleared_and_nothing_is_sent(wire: Wire) -> None:
    """G9"""
    service = Service()
    near, far = wire.link(far_index=service)
    near.get(near.index.keep(print, lambda: None))
    tasks = [near.spawn(near.index.wait()), near.spawn(near.index.wait(near.index.wait()))]
    wire.run()
    sent = len(near.sent), len(far.sent)
    near.hang_up()
    wire.run()
    for side in (near, far):
        assert len(side.session.imports) == len(side.session.exports) == 0
        assert side.session.backlog() == 0
    assert (len(near.sent), len(far.sent)) == sent
    service.kept.clear()  # stubs that die later
    del tasks
    wire.run()
    assert (len(near.sent), len(far.sent)) == sent


def test_what_waits_for_a_handler_that_goes_on_after_the_end_is_not_started(wire: Wire) -> None:
    """Calls through its answer, and calls with its answer as an argument."""
    service = Service()
    near, _far = wire.link(far_index=service)
    promise = near.index.insist()
    calls = [promise.keep("through"), near.index.keep(promise), promise.wait(promise)]
    tasks = [near.spawn(call) for call in calls]
    wire.run()
    near.hang_up()
    wire.run()
    assert service.log == ["goes on"]
    assert service.kept == []
    for task in tasks:
        with pytest.raises(PeerLost):
            task.result()


def test_an_await_behind_calls_that_are_yet_to_start_ends_too(wire: Wire) -> None:
    """E16: the value is here, and calls made through the promise wait for their tasks."""
    service = Service()
    near, far = wire.link(far_index={"echo": lambda x: x})
    near.eager = False
    promise = near.index.echo(service)
    task = near.spawn(promise)
    near.flush()
    far.deliver()
    call = promise.wait()
    near.flush()
    near.deliver("resolve")
    far.deliver()
    far.deliver("ping")
    while near.inbox:
        near.deliver()
    assert not task.done
    assert near.starting
    near.hang_up()
    near.turn()
    assert task.done
    with pytest.raises((PeerLost, RemoteError)):
        near.get(call)


def test_handlers_are_cancelled_once(wire: Wire) -> None:
    """G9"""
    service = Service()
    near, far = wire.link(far_index=service)
    near.spawn(near.index.wait())
    wire.run()
    near.hang_up()
    wire.run()
    assert far.stopped == ["wait"]
    assert service.log == ["cancelled"]


def test_a_handlers_calls_back_fail_and_it_may_catch_that(wire: Wire) -> None:
    """D1"""
    caught: list[BaseException] = []

    async def call_back(f: Any) -> None:
        try:
            await f()
        except PeerLost as error:
            caught.append(error)
            raise

    async def never() -> None:
        await Fence().wait()

    near, _far = wire.link(far_index=call_back)
    near.spawn(near.index(never))
    wire.run()
    near.hang_up()
    wire.run()
    assert len(caught) <= 1  # lost, or cancelled before: both end it
    caught.clear()


def test_a_proxied_call_is_withdrawn_at_the_third_host(wire: Wire) -> None:
    """G9, X3"""
    middle: FakeDriver
    service = Service()
    near, _far = wire.link(far_index={"wait": lambda: middle.index.wait()})
    middle, third = wire.link(far_index=service, names=("middle", "third"))
    near.spawn(near.index.wait())
    wire.run()
    near.hang_up()
    wire.run()
    assert third.stopped == ["wait"]
    assert len(third.session.exports) == 1


def test_a_proxied_call_fails_when_the_third_host_is_lost(wire: Wire) -> None:
    """D1: the loss of a third party does not look like the loss of this peer."""
    middle: FakeDriver
    near, _far = wire.link(far_index={"wait": lambda: middle.index.wait()})
    middle, _third = wire.link(far_index=Service(), names=("middle", "third"))
    task = near.spawn(near.index.wait())
    wire.run()
    middle.hang_up()
    wire.run()
    with pytest.raises(RemoteError, match="PeerLost") as raised:
        task.result()
    assert not isinstance(raised.value, ConnectionError)
    assert near.session.error is None
    del raised


def test_exported_promises_of_a_lost_connection_are_forgotten(wire: Wire) -> None:
    """G9: they may settle later."""
    service = Service()
    near, far = wire.link(far_index=Service())
    third, _fourth = wire.link(far_index=service, names=("third", "fourth"))
    promise = third.index.wait()
    near.spawn(near.index.wait(promise))
    wire.run()
    near.hang_up()
    service.fence.set()
    wire.run()
    assert third.get(promise) == "done"
    assert far.session.backlog() == near.session.backlog() == 0


def test_a_result_that_comes_after_the_end_goes_nowhere(wire: Wire) -> None:
    """K5, G9: a handler that suppresses its cancellation."""

    async def suppress() -> list[Any]:
        try:
            await Fence().wait()
        except CancelledError:
            await fence.wait()
        return [print]

    fence = Fence()
    near, far = wire.link(far_index=suppress)
    near.spawn(near.index())
    wire.run()
    near.hang_up()
    wire.run()
    fence.set()
    wire.run()
    assert len(far.session.exports) == 0
    assert far.session.backlog() == 0


def test_a_lost_session_is_freed(wire: Wire) -> None:
    """G9"""
    other = Wire()
    near, _far = other.link(far_index=Service())
    promise = near.index.wait()
    other.run()
    session = weakref.ref(near.session)
    near.hang_up()
    other.run()
    del near, _far, other, promise
    gc.collect()
    assert session() is None
    assert wire.sides == []


def test_bye_lets_running_answers_finish_and_makes_no_new_calls(wire: Wire) -> None:
    """D5"""
    service = Service()
    near, far = wire.link(far_index=service)
    task = near.spawn(near.index.wait())
    wire.run()
    closing = far.spawn(far.aclose())
    wire.run()
    assert far.session.said_bye
    with pytest.raises(PeerClosed, match="closing"):
        far.get(far.index.f())
    with pytest.raises(PeerClosed, match="closing"):
        far.peer.notify(far.index.f)
    assert not closing.done
    service.fence.set()
    wire.run()
    assert task.result() == "done"
    assert closing.done
    for late in (near, far):
        assert late.session.error is not None
    with pytest.raises(PeerLost, match="bye"):
        near.get(near.index.wait())
    with pytest.raises(PeerClosed):
        far.get(far.index.f())


def test_a_call_after_the_others_bye_is_still_answered(wire: Wire) -> None:
    """D5: bye says that its sender makes no calls, not that it takes none."""
    service = Service()
    near, far = wire.link(far_index=service)
    near.session.say_bye()
    near.session.say_bye()
    wire.run()
    assert near.counts()["bye"] == 1
    call = far.index.anything
    with pytest.raises(LookupError):
        far.get(call)
    service.fence.set()


def test_an_idle_close_sends_a_bye_and_no_more(wire: Wire) -> None:
    """T8"""
    near, far = wire.link(far_index=Service())
    near.get(near.index.keep())
    wire.run()
    sent = len(near.sent)
    closing = near.spawn(near.aclose())
    wire.run()
    assert closing.done
    assert near.words()[sent:] == ["bye"]
    assert far.words()[-1] == "bye"
    again = near.spawn(near.aclose())
    wire.run()
    assert again.done


def test_the_end_in_mid_frame_is_said_to_be_that(wire: Wire) -> None:
    """D4, F11"""
    near, far = wire.link(far_index=Service())
    task = near.spawn(near.index.keep())
    near.flush()
    far.feed(far.inbox.popleft().data[:-1])
    far.feed(b"")
    assert "mid-frame" in str(far.session.error)
    wire.run()
    with pytest.raises(CapnodeError):
        task.result()


@pytest.mark.parametrize("eager", [True, False], ids=["inline", "with a task each"])
def test_what_has_come_before_the_bye_is_answered(wire: Wire, eager: bool) -> None:
    """D5: also what waits for its task when the other side's half ends."""
    service = Service()
    near, far = wire.link(far_index=service)
    far.eager = eager
    tasks = [near.spawn(near.index.wait()), near.spawn(near.index.keep(1))]
    near.session.say_bye()
    near.flush()
    far.received(far.inbox.popleft().data)
    far.feed(b"")  # in one turn, before any new task has run
    wire.run()
    assert not far.peer.is_closed
    service.fence.set()
    wire.run()
    assert tasks[0].result() == "done"
    assert tasks[1].result() is None
    assert service.kept == [1]
    assert far.peer.is_closed
    assert service.log == []
    near.hang_up()


def test_what_comes_after_the_end_is_not_looked_at(wire: Wire) -> None:
    """D1: a driver may have read it already."""
    called: list[int] = []
    near, far = wire.link(far_index=called.append)
    promise = near.index(2)
    near.peer.notify(near.index, 1)
    near.flush()
    late = far.inbox[0].data
    near.hang_up()
    far.session.receive(late)
    assert called == []
    assert len(far.session.exports) == 0
    with pytest.raises(PeerLost):
        near.get(promise)
