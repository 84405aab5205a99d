"""Rules 6 and 13: calls start in order, and a peer that does not read gets nothing new started."""

from __future__ import annotations

from typing import Any

import pytest

from capnode_py import LimitExceeded, Limits, PeerLost, RemoteProtocolError, Target
from capnode_py.testing import FakeDriver, Fence, Wire

SMALL = Limits(high_water=10_000, low_water=2_000)


class Service(Target):
    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.fence = Fence()

    def big(self, n: int = 6_000) -> bytes:
        return bytes(n)

    def note(self, n: Any) -> Any:
        self.seen.append(n)
        return n

    async def note_async(self, n: Any) -> Any:
        self.seen.append(n)
        return n

    async def note_slowly(self, n: Any) -> Any:
        self.seen.append(n)
        await self.fence.wait()
        return n


def fill(near: FakeDriver, far: FakeDriver) -> list[Any]:
    """Bring far above high water: it answers, and nobody reads."""
    tasks = [near.spawn(near.index.big()) for _ in range(3)]
    near.flush()
    far.stall()
    far.deliver()
    assert far.session.backlog() > SMALL.high_water
    return tasks


# Rule 6: starting in order.


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "with a task each"])
def test_calls_start_in_order_whatever_kind_their_handlers_are(wire: Wire, eager: bool) -> None:
    """E17: also where tasks start in an order of their own, newest first."""
    service = Service()
    near, far = wire.link(far_index=service)
    far.eager = eager
    names = ["note", "note_async", "note_slowly", "note", "note_slowly", "note", "note_async"]
    tasks = [near.spawn(near.index[name](n)) for n, name in enumerate(names)]
    wire.run()
    assert service.seen == list(range(7))
    service.fence.set()
    wire.run()
    assert [task.result() for task in tasks] == list(range(7))


def test_a_sync_handler_does_not_overtake_one_that_waits_for_its_task(wire: Wire) -> None:
    """E17: also when it comes in a later frame."""
    service = Service()
    near, far = wire.link(far_index=service)
    far.eager = False
    near.spawn(near.index.note_async(0))
    near.flush()
    far.deliver()
    assert service.seen == []  # its task has not run yet
    near.spawn(near.index.note(1))
    near.flush()
    far.deliver()
    assert service.seen == []
    wire.run()
    assert service.seen == [0, 1]


def test_a_call_that_is_cancelled_before_its_task_runs_is_not_started(wire: Wire) -> None:
    """K7"""
    service = Service()
    near, far = wire.link(far_index=service)
    far.eager = False
    first, second = near.index.note_slowly(0), near.index.note(1)
    tasks = [near.spawn(first), near.spawn(second), near.spawn(near.index.note(2))]
    near.flush()
    far.deliver()
    second.cancel()
    near.flush()
    far.deliver("cancel")
    wire.run()
    assert service.seen == [0, 2]
    service.fence.set()
    wire.run()
    assert tasks[0].done
    assert tasks[1].done


# Rule 13: backlog.


def test_above_high_water_nothing_new_is_started_and_order_is_kept(wire: Wire) -> None:
    """F12"""
    service = Service()
    near, far = wire.link(far_index=service, far_limits=SMALL)
    filling = fill(near, far)
    tasks = [near.spawn(near.index.note(n)) for n in range(5)]
    near.peer.notify(near.index.note, 5)
    tasks.append(near.spawn(near.index.note(6)))
    near.flush()
    far.deliver()
    assert service.seen == []
    far.unstall()
    assert service.seen == list(range(7))
    wire.run()
    assert all(task.done for task in [*filling, *tasks])


def test_a_call_does_not_pass_those_that_are_kept(wire: Wire) -> None:
    """F12, E17: while any is kept, a later one is kept too, though the backlog has shrunk."""
    service = Service()
    near, far = wire.link(far_index=service, far_limits=SMALL)
    fill(near, far)
    near.spawn(near.index.note(0))
    near.flush()
    far.deliver()
    far.session.unsent = SMALL.low_water + 1  # below high water, not yet below low water
    far.session.written(far.session.unsent)
    near.spawn(near.index.note(1))
    near.flush()
    far.deliver()
    assert service.seen == []
    far.unstall()
    wire.run()
    assert service.seen == [0, 1]


def test_kept_calls_go_on_only_while_the_backlog_stays_low(wire: Wire) -> None:
    """F12: each of them may fill it again."""
    service = Service()
    near, far = wire.link(far_index=service, far_limits=SMALL)
    fill(near, far)
    tasks = [near.spawn(near.index.big()) for _ in range(6)]
    near.flush()
    far.deliver()
    assert len(far.started) == 2  # then it was above high water
    far.wrote(0)  # all was taken
    assert len(far.started) == 4
    far.flush()
    far.unstall()
    wire.run()
    assert all(task.done for task in tasks)


def test_outcomes_releases_and_cancels_are_handled_at_once(wire: Wire) -> None:
    """F12: reading never stops because of writing, else two honest peers would deadlock."""
    service = Service()
    near, far = wire.link({"answer": lambda: 42}, service, far_limits=SMALL)
    slow = near.index.note_slowly("slow")
    asked = far.spawn(far.index.answer())
    near.flush()
    far.deliver()
    far.flush()
    filling = fill(near, far)
    kept = near.index.note("kept")
    near.flush()
    near.deliver()  # far's question
    wire_answer = near.session.backlog()
    assert wire_answer == 0
    slow.cancel()
    near.flush()
    while far.inbox:
        far.deliver()
    assert asked.result() == 42
    assert far.stopped == ["note_slowly"]
    assert service.seen == ["slow"]
    kept.cancel()
    near.flush()
    far.deliver("cancel")
    far.unstall()
    wire.run()
    assert service.seen == ["slow"]  # what was kept and cancelled meanwhile is never started
    assert all(task.done for task in filling)


def test_a_path_as_argument_is_read_behind_the_calls_that_are_kept(wire: Wire) -> None:
    """F12, E17: it is a call like any other."""

    class Box(Target):
        def __init__(self) -> None:
            self._value = 0

        def set(self, value: int) -> None:
            self._value = value

        @property
        def value(self) -> int:
            return self._value

    box = Box()
    near, far = wire.link(
        far_index={"box": box, "echo": lambda x: x, "big": lambda: bytes(5000)}, far_limits=SMALL
    )
    tasks = fill(near, far)
    near.index.box.set(1)
    near.flush()
    far.deliver()
    tasks.append(near.spawn(near.index.echo([near.index.box.value])))
    near.index.box.set(2)
    near.flush()
    far.deliver()
    assert box.value == 0
    far.unstall()
    wire.run()
    assert tasks[-1].result() == [1]
    assert box.value == 2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["target", "argument"])
def test_a_kept_call_gets_the_error_of_an_answer_that_was_released(
    wire: Wire, when: str, how: str
) -> None:
    """F12, C7: the release is handled at once, and the call asked for the error before it."""

    async def fail() -> None:
        await fence.wait()
        raise ValueError("the reason")

    fence = Fence()
    near, far = wire.link(
        far_index={"fail": fail, "take": lambda x: x, "big": lambda: bytes(5000)}, far_limits=SMALL
    )
    failing = near.index.fail()
    failing.note()  # so that it goes as a push, and is not released with its answer
    near.flush()
    far.deliver()
    if when == "before":
        fence.set()
    far.turn()
    filling = fill(near, far)
    task = near.spawn(failing.note(1) if how == "target" else near.index.take([failing]))
    near.flush()
    far.deliver()
    del failing
    near.flush()
    far.deliver("release")
    fence.set()
    far.turn()
    far.unstall()
    wire.run()
    with pytest.raises(ValueError, match="the reason"):
        task.result()
    assert all(each.done for each in filling)


def test_liveness_pings_are_answered_although_calls_are_kept(wire: Wire) -> None:
    """F12: only those with a position are kept with the calls."""
    near, far = wire.link(far_index=Service(), far_limits=SMALL)
    fill(near, far)
    ping = near.spawn(near.peer.ping())
    near.flush()
    unsent = far.session.backlog()
    far.deliver("ping")
    assert far.session.backlog() > unsent
    far.unstall()
    wire.run()
    assert ping.done


def test_a_peer_that_calls_and_never_reads_ends_the_session(wire: Wire) -> None:
    """F12: beyond max_kept."""
    limits = Limits(high_water=10_000, low_water=2_000, max_kept=50_000)
    service = Service()
    near, far = wire.link(far_index=service, far_limits=limits)
    tasks = fill(near, far)
    tasks += [near.spawn(near.index.note(bytes(5_000))) for _ in range(12)]
    near.flush()
    while far.inbox:
        far.deliver()
    assert isinstance(far.session.error, RemoteProtocolError)
    assert "max_kept" in str(far.session.error)
    assert service.seen == []
    far.unstall()
    wire.run()
    assert all(task.done for task in tasks)


def test_pulls_of_a_peer_that_never_reads_end_the_session(wire: Wire) -> None:
    """Else it has us fill our memory with answers that it has asked for late."""
    limits = Limits(high_water=10_000, low_water=2_000, max_kept=30_000)
    near, far = wire.link(far_index=Service(), far_limits=limits)
    pushed = [near.index.big() for _ in range(20)]
    for promise in pushed:
        promise.nothing()  # called through, so that it goes as a push
    near.flush()
    wire.run()
    far.stall()
    tasks = [near.spawn(promise) for promise in pushed]
    near.flush()
    far.deliver()
    assert "does not read" in str(far.session.error)
    far.unstall()
    wire.run()
    assert all(task.done for task in tasks)


def test_pings_of_a_peer_that_never_reads_end_the_session(wire: Wire) -> None:
    limits = Limits(high_water=10_000, low_water=2_000, max_kept=30_000)
    near, far = wire.link(far_index=Service(), far_limits=limits)
    tasks = fill(near, far)
    tasks += [near.spawn(near.index.big(20_000))]
    far.session.unsent += 20_000  # as if it had answered already
    tasks.append(near.spawn(near.peer.ping()))
    near.flush()
    while far.inbox:
        far.deliver()
    assert "does not read" in str(far.session.error)
    far.unstall()
    wire.run()
    assert all(task.done for task in tasks)


def test_our_own_calls_beyond_max_unsent_raise(wire: Wire) -> None:
    """F12: and go again once the other side has read."""
    near, _far = wire.link(far_index=Service(), limits=Limits(max_unsent=20_000))
    near.stall()
    tasks = [near.spawn(near.index.note(bytes(5_000))) for _ in range(4)]
    near.flush()
    with pytest.raises(LimitExceeded, match="drain"):
        near.index.note(1)
    with pytest.raises(LimitExceeded, match="max_unsent"):
        near.index.note(1)
    with pytest.raises(LimitExceeded, match="max_unsent"):
        near.peer.notify(near.index.note, 1)
    near.unstall()
    wire.run()
    assert near.get(near.index.note(1)) == 1
    assert all(task.done for task in tasks)


def test_drain_waits_until_the_backlog_is_low(wire: Wire) -> None:
    """F12"""
    near, far = wire.link(far_index=Service(), limits=SMALL)
    near.stall()
    task = near.spawn(near.index.note(bytes(20_000)))
    near.flush()
    draining = near.spawn(near.peer.drain())
    near.turn()
    assert not draining.done
    assert near.peer.stats().unsent_bytes > 20_000
    near.unstall()
    assert draining.done
    wire.run()
    assert task.done
    assert far.session.error is None


def test_drain_ends_with_the_connection(wire: Wire) -> None:
    """F7"""
    near, _far = wire.link(far_index=Service(), limits=SMALL)
    near.stall()
    near.index.note(bytes(20_000))
    near.flush()
    draining = near.spawn(near.peer.drain())
    near.turn()
    near.hang_up()
    wire.run()
    draining.result()


def test_two_peers_that_flood_each_other_come_to_an_end(wire: Wire) -> None:
    """F12: both send far more than either may buffer, and both get all their answers."""
    limits = Limits(high_water=20_000, low_water=5_000)
    near, far = wire.link(
        lambda x: x, lambda x: x, limits=limits, far_limits=limits, names=("near", "far")
    )
    tasks = [side.spawn(side.index(bytes(3_000))) for _ in range(200) for side in (near, far)]
    while not all(task.done for task in tasks):
        near.stall()
        far.stall()
        near.flush()
        far.flush()
        near.unstall()  # a little at a time would be the same: nothing waits for the other side
        far.unstall()
        wire.run()
    assert all(len(task.result()) == 3_000 for task in tasks)


def test_kept_calls_are_dropped_with_the_connection(wire: Wire) -> None:
    """G9"""
    service = Service()
    near, far = wire.link(far_index=service, far_limits=SMALL)
    fill(near, far)
    task = near.spawn(near.index.note(lambda: None))
    near.flush()
    far.deliver()
    near.hang_up()
    wire.run()
    assert service.seen == []
    with pytest.raises(PeerLost):
        task.result()


def test_a_peer_that_calls_and_never_releases_ends_the_session(wire: Wire) -> None:
    """F12: beyond max_exports."""
    near, far = wire.link(far_index=Service(), far_limits=Limits(max_exports=50))
    promises = [near.index.note(n) for n in range(60)]
    tasks = [near.spawn(promise) for promise in promises]
    near.flush()
    far.deliver()
    assert "max_exports" in str(far.session.error)
    wire.run()
    assert all(task.done for task in tasks)


def test_references_beyond_max_exports_cannot_pass(wire: Wire) -> None:
    """F12: nothing was sent, and nothing is left of the attempt."""
    near, _far = wire.link(far_index=Service(), limits=Limits(max_exports=50))
    with pytest.raises(LimitExceeded, match="max_exports"):
        near.index.note([(lambda n=n: n) for n in range(60)])
    assert len(near.session.exports) == 1
    assert near.get(near.index.note(1)) == 1
