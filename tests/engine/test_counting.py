"""Rules 1 to 3: references are counted, moot payloads too, and finalizers only leave a note."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

from capnode_py import CannotPass, LimitExceeded, Limits, Released, RemoteError, Target
from capnode_py._messages import Mine, Promised, Yours
from capnode_py.testing import FakeDriver, Fence, Wire


class Keeper(Target):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, *values: Any, **named: Any) -> None:
        self.kept += [*values, *named.values()]

    def give(self) -> list[Any]:
        return self.kept

    def drop(self) -> None:
        self.kept.clear()


def exported(side: FakeDriver) -> dict[int, int]:
    """The ids of its own references that a side holds for the other, with their counts."""
    exports = side.session.exports
    return {id: exports.find(id).sent for id in exports.entries if id < 0}


def received(side: FakeDriver) -> dict[int, int]:
    """The references of the other's that a side holds, with how often each was received."""
    return {id: entry.received for id, entry in side.session.imports.entries.items() if id < 0}


def references(message_fields: Any) -> list[Any]:
    """The references in what was put on the wire, in order."""
    if isinstance(message_fields, (Mine, Promised, Yours)):
        return [message_fields]
    if isinstance(message_fields, dict):
        message_fields = list(message_fields.values())
    if isinstance(message_fields, list):
        return [ref for item in message_fields for ref in references(item)]
    return []


# Rule 1: counting.


def test_each_occurrence_counts_one_and_all_are_released_at_once(wire: Wire) -> None:
    """G3, T9"""
    keeper = Keeper()
    near, far = wire.link(far_index=keeper)

    def callback() -> None: ...

    near.get(near.index.keep(callback, [callback], {"a": {"b": callback}}, named=callback))
    assert exported(near) == {-1: 4}
    assert received(far) == {-1: 4}
    assert len(keeper.kept) == 4

    near.get(near.index.keep(callback))
    assert exported(near) == {-1: 5}
    sent = len(far.sent)
    keeper.kept.clear()
    wire.run()
    (release,) = [m for m in far.sent[sent:] if m.word == "release" and m.fields[1]]
    assert list(release.fields) == [[], [[-1, 5]]]
    assert exported(near) == {}


def test_results_count_as_arguments_do(wire: Wire) -> None:
    """G3"""

    def callback() -> None: ...

    near, far = wire.link(far_index=lambda: [callback, {"again": callback}])
    value = near.get(near.index())
    assert exported(far) == received(near) == {-1: 2}
    assert value[0] is value[1]["again"]
    del value
    wire.run()
    assert exported(far) == {}


def test_what_goes_home_and_the_index_count_nothing(wire: Wire) -> None:
    """G2: targets, `yours`, answers and id 0 count 0."""

    def callback() -> str:
        return "called"

    keeper = Keeper()
    near, far = wire.link({"mine": 1}, keeper)
    keeper.kept.append(callback)
    (stub,) = near.get(near.index.give())
    assert exported(far) == {-1: 1}

    near.get(near.index.keep(stub, far_index=near.index))  # home again
    assert keeper.kept[1:] == [callback, keeper]
    near.get(stub())
    pending = near.index.give()
    near.get(near.index.keep(pending))
    assert exported(far) == {-1: 1}  # the answer that was passed on never crossed
    assert exported(near) == {}
    keeper.kept.clear()


def test_retained_called_back_and_returned_home(wire: Wire) -> None:
    """G2: after the last call that needs it, nothing but the release goes over the wire."""
    keeper = Keeper()
    near, far = wire.link(far_index=keeper)
    calls: list[int] = []
    near.get(near.index.keep(calls.append))
    (append,) = keeper.kept
    far.get(append(1))
    far.get(append(2))
    assert calls == [1, 2]

    assert near.get(near.index.give()) == [calls.append]
    assert exported(near) == {-1: 1}
    sent = len(far.sent)
    keeper.kept.clear()
    del append
    wire.run()
    assert [m.word for m in far.sent[sent:]] == ["release"]
    assert exported(near) == {}


def test_a_call_that_cannot_be_encoded_leaves_nothing(wire: Wire) -> None:
    """T6: exports are rolled back, the question took no id, nothing was sent."""
    keeper = Keeper()
    near, _far = wire.link(far_index=keeper)

    def known() -> None: ...

    def new() -> None: ...

    near.get(near.index.keep(known))
    before = near.session.messages_sent
    for args in ([known, object()], [new, [known, new, object()]], [new, {"a": {1: 2}}]):
        with pytest.raises(CannotPass):
            near.index.keep(*args)
        assert exported(near) == {-1: 1}
        assert len(near.session.imports) == 1
    assert near.session.messages_sent == before
    assert near.session.backlog() == 0

    near.get(near.index.keep(new))
    assert exported(near) == {-1: 1, -2: 1}  # the next id, not one after it
    assert near.sent[-2 if near.sent[-1].word == "release" else -1].word == "call"
    assert near.session.imports.last_question == 2
    keeper.kept.clear()


def test_a_one_way_call_that_cannot_be_encoded_leaves_nothing(wire: Wire) -> None:
    """T6"""
    near, _far = wire.link(far_index=Keeper())
    with pytest.raises(CannotPass):
        near.session.notify(near.index, ("keep",), [lambda: None, object()], {})
    assert exported(near) == {}
    assert near.session.backlog() == 0


def test_a_result_that_cannot_be_encoded_fails_that_call_and_leaves_nothing(wire: Wire) -> None:
    """T6, C8"""
    near, far = wire.link(far_index=lambda: [print, object()])
    with pytest.raises(TypeError, match=r"object.*pass a"):
        near.get(near.index())
    assert exported(far) == {}


def test_an_oversize_message_is_rolled_back_too(wire: Wire) -> None:
    """T6, C5"""
    near, _far = wire.link(far_index=Keeper(), far_limits=Limits(max_frame=10_000))
    with pytest.raises(LimitExceeded):
        near.index.keep(lambda: None, bytes(20_000))
    assert exported(near) == {}
    assert len(near.session.imports) == 1
    near.get(near.index.keep(1))


def test_a_read_that_is_made_in_mid_encoding_stands_when_the_call_is_rolled_back(
    wire: Wire,
) -> None:
    """T6: a path on a promise that has its value is read while the call with it is encoded."""
    keeper = Keeper()
    near, _far = wire.link(far_index=keeper)
    keeper.kept.append({"name": "n"})
    promise = near.index.give()
    near.get(promise)
    new = near.index.keep

    def callback() -> None: ...

    with pytest.raises(CannotPass):
        new(callback, promise[0].name, object())
    assert exported(near) == {}
    near.get(new(callback, promise[0].name))
    assert keeper.kept[1:] == [keeper.kept[1], "n"]
    keeper.drop()


def test_an_object_is_freed_once_the_last_holder_lets_go(wire: Wire) -> None:
    """G1, C7: also the call under way holds its target."""

    class Session(Target):
        async def query(self) -> str:
            await fence.wait()
            return "result"

    fence = Fence()
    kept: list[weakref.ref[Session]] = []

    def make() -> Session:
        session = Session()
        kept.append(weakref.ref(session))
        return session

    near, _far = wire.link(far_index={"open": make})
    session = near.get(near.index.open())
    answer = near.spawn(session.query())
    wire.run()
    del session
    wire.run()
    assert kept[0]() is not None  # it is running
    fence.set()
    wire.run()
    assert answer.result() == "result"
    assert kept[0]() is None


def test_a_release_that_crosses_the_same_reference_takes_only_what_was_received(
    wire: Wire,
) -> None:
    """G4"""
    keeper = Keeper()
    near, far = wire.link(far_index=keeper)

    def callback() -> str:
        return "here"

    near.get(near.index.keep(callback, callback))
    keeper.kept.clear()
    far.flush()  # a release of 2 is on its way
    assert [m.word for m in near.coming()] == ["release"]
    near.get(near.index.keep(callback))  # and the third occurrence crosses it
    assert exported(near) == {-1: 1}
    assert far.get(keeper.kept[0]()) == "here"
    keeper.kept.clear()


def test_ids_are_never_reused(wire: Wire) -> None:
    """T1, T3: each new reference takes the next id, whatever was released."""
    keeper = Keeper()
    near, _far = wire.link(far_index=keeper)
    for n in range(1, 4):
        near.get(near.index.keep(lambda: None))
        assert list(exported(near)) == [-n]
        keeper.kept.clear()
        wire.run()
        assert exported(near) == {}
    assert near.session.imports.last_question == 3


def test_thousands_of_releases_arrive_in_messages_of_bounded_size(wire: Wire) -> None:
    """G3"""
    keeper = Keeper()
    near, far = wire.link(far_index=keeper)
    near.get(near.index.keep(*[(lambda n=n: n) for n in range(2500)]))
    assert len(exported(near)) == 2500
    keeper.kept.clear()
    wire.run()
    assert exported(near) == {}
    assert [len(m.fields[1]) for m in far.sent if m.word == "release"] == [1000, 1000, 500]


def test_dealloc_releases_at_once_and_a_later_use_raises(wire: Wire) -> None:
    """G7"""
    keeper = Keeper()
    near, far = wire.link({"f": print}, keeper)
    near.get(near.index.keep(lambda: "called"))
    (stub,) = keeper.kept
    promise = stub()
    stub.dealloc()
    stub.dealloc()
    assert far.get(promise) == "called"  # it was made before
    assert exported(near) == {}
    for use in (stub, stub.name, lambda: far.index.f(stub), lambda: far.index.f(stub.x)):
        with pytest.raises(Released):
            use()
    assert "released" in repr(stub)
    far.index.dealloc()
    far.peer.index.f.dealloc()  # a far name: a promise has none of ours
    keeper.kept.clear()


def test_dealloc_and_the_same_reference_again_is_a_new_stub(wire: Wire) -> None:
    """G4, G7"""
    keeper = Keeper()
    near, far = wire.link(far_index=keeper)

    def callback() -> str:
        return "called"

    near.get(near.index.keep(callback))
    with keeper.kept[0] as first:
        near.get(near.index.keep(callback))
        assert keeper.kept[1] is first
    near.get(near.index.keep(callback))
    assert keeper.kept[2] is not first
    assert far.get(keeper.kept[2]()) == "called"
    with pytest.raises(Released):
        first()
    keeper.kept.clear()
    del first


def test_a_disconnect_frees_every_export(wire: Wire) -> None:
    """G9"""
    near, _far = wire.link(far_index=Keeper())

    class Thing(Target):
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    near.get(near.index.keep(thing))
    del thing
    assert gone() is not None
    near.hang_up()
    assert gone() is None
    assert len(near.session.exports) == len(near.session.imports) == 0


# Rule 2: moot payloads.


def test_a_late_answer_is_counted_and_its_references_released(wire: Wire) -> None:
    """K4, T5"""
    near, far = wire.link(far_index=lambda: [print, {"again": print}])
    promise = near.index()
    near.flush()
    far.deliver("call")
    del promise
    near.flush()
    assert near.counts()["release"] == 1
    assert [m.word for m in near.coming()] == ["resolve"]  # it crosses the release
    far.deliver("release")
    assert exported(far) == {-1: 2}
    near.deliver("resolve")
    wire.run()
    assert exported(far) == {}
    assert near.session.error is None


def test_a_late_answer_with_a_promise_in_it_leaks_nothing(wire: Wire) -> None:
    """K4, T5, G8"""

    async def later() -> str:
        await fence.wait()
        return "late"

    fence = Fence()

    def give() -> dict[str, Any]:
        return {"p": far.index.later()}

    near, far = wire.link({"later": later}, give)
    promise = near.index()
    near.flush()
    far.deliver("call")
    del promise
    near.flush()
    wire.run()
    fence.set()
    wire.run()
    assert near.session.error is None
    assert exported(far) == {}


def test_a_late_answer_that_names_our_own_object_is_moot(wire: Wire) -> None:
    """K4"""
    keeper = Keeper()
    near, far = wire.link(far_index=keeper)
    near.get(near.index.keep({"name": "mine"}, lambda: None))
    promise = near.index.give()
    near.flush()
    far.deliver()
    del promise
    near.flush()
    wire.run()
    assert near.session.error is None
    keeper.kept.clear()


def test_a_late_rejection_is_moot(wire: Wire) -> None:
    """T5"""

    def fail() -> None:
        raise ValueError("late")

    near, far = wire.link(far_index=fail)
    promise = near.index()
    near.flush()
    far.deliver("call")
    del promise
    near.flush()
    near.deliver("reject")
    assert near.session.error is None


def test_an_outcome_for_a_promise_that_was_given_up_is_moot(wire: Wire) -> None:
    """T5, G8: the promise resolves while its release is on the way."""

    async def later() -> list[Any]:
        await fence.wait()
        return [print]

    async def wait(promised: list[Any]) -> None:
        raise AssertionError("not started: its argument never came")

    fence = Fence()
    near, far = wire.link(far_index={"wait": wait})
    _third, other = wire.link(far_index={"later": later}, names=("third", "other"))
    promise = _third.index.later()
    waiting = near.index.wait(promise)  # crosses as a promise of near's
    wire.run()
    assert exported(near) == received(far) == {-1: 1}
    waiting.cancel()
    near.flush()
    far.deliver("cancel")
    far.flush()
    assert exported(far) == {}
    assert received(far) == {}  # given up with the call that it was for
    fence.set()
    other.turn()
    _third.deliver("resolve")
    near.flush()
    assert "resolve" in [m.word for m in far.coming()]  # it crosses the release
    wire.run()
    assert near.session.error is far.session.error is None
    assert exported(near) == {}
    with pytest.raises(RemoteError, match="cancelled"):
        near.get(waiting)


def test_dropping_a_promise_whose_value_still_waits_releases_it(wire: Wire) -> None:
    """G8: a promise inside the value may never settle."""

    async def never() -> None:
        await Fence().wait()

    def give() -> list[Any]:
        return [third.index(), print]

    near, far = wire.link(far_index=give)
    third, _fourth = wire.link(far_index=never, names=("third", "fourth"))
    task = near.spawn(near.index())
    wire.run()
    assert exported(far) == {-1: 1, -2: 1}
    task.cancel()
    del task
    wire.run()
    assert exported(far) == {}
    assert len(far.session.exports) == 1
    third.hang_up()


# Rule 3: finalizers leave a note.


def test_dropping_stubs_wakes_the_driver_once_and_sends_nothing(wire: Wire) -> None:
    """G5"""
    keeper = Keeper()
    near, far = wire.link(far_index=keeper)
    near.get(near.index.keep(*[(lambda n=n: n) for n in range(10)]))
    wakes: list[int] = []
    far.wake_from_anywhere = lambda: wakes.append(1)  # type: ignore[method-assign]
    sent = far.session.messages_sent
    keeper.kept.clear()
    assert wakes == [1]
    assert far.session.backlog() == 0
    assert len(far.session.imports) == 11  # only noted
    far.flush()
    assert far.session.messages_sent == sent + 1
    assert len(far.session.imports) == 1

    near.get(near.index.keep(lambda: None))
    keeper.kept.clear()
    assert wakes == [1, 1]  # drained, so the next note wakes again
    del far.wake_from_anywhere
    far.flush()


def test_a_flush_drains_the_notes_first(wire: Wire) -> None:
    """G5: the release rides with what leaves anyway."""
    keeper = Keeper()
    near, far = wire.link({"f": lambda: None}, keeper)
    near.get(near.index.keep(lambda: None))
    wire.run()
    far.wake_from_anywhere = lambda: None  # type: ignore[method-assign]
    keeper.kept.clear()
    promise = far.index.f()
    far.flush()
    assert [m.word for m in near.coming()] == ["call", "release"]
    del far.wake_from_anywhere
    far.get(promise)


def test_a_stub_dropped_in_another_thread_is_only_noted_there(wire: Wire) -> None:
    """G5"""
    keeper = Keeper()
    near, far = wire.link(far_index=keeper)
    near.get(near.index.keep(lambda: None))
    thread = threading.Thread(target=keeper.kept.clear)
    thread.start()
    thread.join()
    assert far.session.backlog() == 0
    assert list(received(far)) == [-1]
    wire.run()
    assert exported(near) == {}


def test_a_note_that_was_drained_before_it_has_said_so_lets_the_next_one_wake(wire: Wire) -> None:
    """G5: it was left in another thread, and a flush is coming, which finds none."""
    near, far = wire.link(far_index={"f": lambda: None})
    near.get(near.index.f())
    far.session.noted = True
    far.flush()
    assert not far.session.noted


def test_a_stub_that_dies_in_a_cycle_is_released(wire: Wire) -> None:
    """G5"""
    keeper = Keeper()
    near, _far = wire.link(far_index=keeper)
    near.get(near.index.keep(lambda: None))
    gc.disable()
    try:
        loop: list[Any] = [keeper.kept.pop()]
        loop.append(loop)
        del loop
        wire.run()
        assert exported(near) == {-1: 1}
        gc.collect()
    finally:
        gc.enable()
    wire.run()
    assert exported(near) == {}


def test_a_note_is_stale_once_the_reference_has_come_again(wire: Wire) -> None:
    """G4: the stub has died, and before its note is read a new one stands for the reference."""
    keeper = Keeper()
    near, far = wire.link(far_index=keeper)

    def callback() -> str:
        return "here"

    near.get(near.index.keep(callback))
    promise = near.index.keep(callback)
    near.flush()
    far.wake_from_anywhere = lambda: None  # type: ignore[method-assign]
    keeper.kept.clear()
    assert far.session._notes
    far.deliver("call")
    far.flush()
    assert received(far) == {-1: 2}  # the one of the first stub is now this one's to release
    assert far.get(keeper.kept[0]()) == "here"
    assert exported(near) == {-1: 2}
    del far.wake_from_anywhere
    near.get(promise)
    keeper.kept.clear()


def test_a_note_left_while_notes_are_drained_is_drained_too(wire: Wire) -> None:
    """G5"""
    keeper = Keeper()
    near, _far = wire.link(far_index=keeper)
    near.get(near.index.keep(*[(lambda n=n: n) for n in range(3)]))
    first, second, third = keeper.kept
    keeper.kept.clear()
    weakref.finalize(first, lambda held: held.clear(), [second])
    del second
    del first
    wire.run()
    assert list(exported(near)) == [-3]
    del third


@pytest.mark.parametrize("kind", ["plain", "with keywords", "async"])
def test_a_handler_that_raises_releases_what_it_was_given(wire: Wire, kind: str) -> None:
    """K3, G1"""

    def fail(callback: Any) -> None:
        raise KeyError("no")

    async def fail_later(callback: Any) -> None:
        raise KeyError("no")

    near, _far = wire.link(far_index={"fail": fail_later if kind == "async" else fail})
    args, kwargs = ([], {"callback": lambda: None}) if kind == "with keywords" else ([print], {})
    promise = near.index.fail(*args, **kwargs)
    args.clear()
    kwargs.clear()
    with pytest.raises(RemoteError):
        near.get(promise)
    wire.run()
    assert exported(near) == {}
