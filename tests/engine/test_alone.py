"""What has a frame to itself takes the short way, as on asyncio: nothing else becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capnode_py import LimitExceeded, Limits, Target
from capnode_py.testing import FakeDriver, Fence, Wire


class Held(Target):
    def name(self) -> str:
        return "held"


class Service(Target):
    """What a far side does with what it is given."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.fence = Fence()

    def add(self, a: int, b: int) -> int:
        return a + b

    def itself(self) -> Service:
        return self

    def give(self) -> Held:
        return Held()

    def keep(self, function: Any) -> None:
        self.kept.append(function)

    def keep_none(self) -> int:
        kept, self.kept = self.kept, []
        return len(kept)

    async def call_back(self, function: Any, *values: Any) -> Any:
        return await function(*values)

    async def call_often(self, function: Any, times: int) -> int:
        for n in range(times):
            await function(n)
        return times

    async def call_kept(self, value: Any) -> list[Any]:
        return [await function(value) for function in self.kept]

    async def keep_and_call(self, function: Any) -> Any:
        self.kept.append(function)
        return await function(1)

    async def call_and_drop(self, function: Any) -> int:
        _ = function(1)
        return 2

    async def ask_and_drop(self, told: Any) -> Any:
        return await told.ask()

    async def give_back(self, function: Any) -> Any:
        return function

    async def fail(self, function: Any) -> None:
        raise ValueError(str(await function(1)))

    async def text(self, size: int) -> str:
        return "x" * size

    async def at_once(self) -> int:
        return 3

    async def for_ever(self, function: Any) -> None:
        await self.fence.wait()
        await function(1)


def _same(value: Any) -> Any:
    return value


def _broken(value: Any) -> Any:
    raise LookupError(value)


async def _later(value: Any) -> Any:
    return value


Step = Callable[[FakeDriver], Any]
STEPS: dict[str, Step] = {
    "a call": lambda near: near.get(near.index.add(1, 2)),
    "one that fails": lambda near: near.get(near.index.add(1)),
    "to nowhere": lambda near: near.get(near.index.nothing()),
    "async, at once": lambda near: near.get(near.index.at_once()),
    "a callback": lambda near: near.get(near.index.call_back(lambda value: value, 1)),
    "one that is known": lambda near: near.get(near.index.call_back(_same, "text")),
    "an async one": lambda near: near.get(near.index.call_back(_later, None)),
    "one that fails too": lambda near: near.get(near.index.call_back(_broken, 5)),
    "one that gives an object": lambda near: near.get(near.index.call_back(lambda: None)),
    "one twice": lambda near: near.get(near.index.call_back(_same, _same)) is _same,
    "often": lambda near: near.get(near.index.call_often(lambda value: value, 3)),
    "kept": lambda near: near.get(near.index.keep(lambda value: value)),
    "kept, known": lambda near: near.get(near.index.keep(_same)),
    "kept and called": lambda near: near.get(near.index.keep_and_call(lambda value: value)),
    "those kept are called": lambda near: near.get(near.index.call_kept(7)),
    "let go": lambda near: near.get(near.index.keep_none()),
    "called, and not awaited": lambda near: near.get(near.index.call_and_drop(lambda value: value)),
    "given back": lambda near: near.get(near.index.give_back(_same)) is _same,
    "an error after a callback": lambda near: near.get(near.index.fail(lambda value: value)),
    "a long answer": lambda near: len(near.get(near.index.text(300))),
    "dropped": lambda near: near.index.add(1, 2) and None,
    "a chain": lambda near: near.get(near.index.itself().itself().add(2, 3)),
    "an object": lambda near: near.get(near.get(near.index.give()).name()),
    "a method": lambda near: near.get(near.index.call_back(Held().name)),
    "cancelled": lambda near: near.index.for_ever(lambda value: value).cancel(),
}


def _run(near: FakeDriver, step: Step) -> Any:
    try:
        outcome = step(near)
    except Exception as error:  # it is compared
        outcome = type(error).__mro__[1].__name__, str(error)
    near.wire.run()
    return outcome


def _history(steps: list[str], *, alone: bool, eager: bool, back: bool) -> list[Any]:
    wire = Wire()
    near, far = wire.link(Service(), far_index=Service())
    wire.run()
    for side in (near, far):
        side.alone, side.eager = alone, eager
    history: list[Any] = []
    for number, name in enumerate(steps * 2):  # the second time, the names are known
        side = far if back and number % 2 else near
        history.append(_run(side, STEPS[name]))
    for side in (near, far):
        _run(side, STEPS["let go"])
    wire.check_quiet()
    return [*history, near.started, far.started]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(sorted(STEPS)), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_the_same_becomes_of_what_takes_the_short_way(steps, eager, back) -> None:
    general = _history(steps, alone=False, eager=eager, back=back)
    assert _history(steps, alone=True, eager=eager, back=back) == general


@pytest.fixture
def pair(wire: Wire) -> tuple[FakeDriver, FakeDriver]:
    near, far = wire.link(Service(), far_index=Service())
    near.alone = far.alone = True
    near.get(near.index.add(1, 2))  # what has been called before is written in the short way
    near.get(near.index.call_back(_fresh(), 1))
    near.sent.clear()
    far.sent.clear()
    return near, far


def _fresh() -> Callable[[Any], Any]:
    return lambda value: value


def test_a_call_with_a_callback_is_four_frames(pair: tuple[FakeDriver, FakeDriver]) -> None:
    """G1: the release of the callback rides behind the answer."""
    near, far = pair
    assert near.get(near.index.call_back(_fresh(), 1)) == 1
    assert [word for word in near.words() if word != "release"] == ["call", "resolve"]
    assert far.words() == ["call", "resolve", "release"]
    assert [id for id in near.session.exports.entries if id < 0] == []


def test_a_call_that_nobody_awaits_is_a_push_also_alone(
    pair: tuple[FakeDriver, FakeDriver],
) -> None:
    """P14, K2"""
    near, _far = pair
    near.index.add(1, 2)
    near.wire.run()
    assert near.words()[0] == "push"


def test_a_call_that_is_not_awaited_yet_is_a_call_also_alone(
    pair: tuple[FakeDriver, FakeDriver],
) -> None:
    """P14: as in a gather, whose tasks have not begun; an await after that says nothing."""
    near, far = pair
    promise = near.index.add(1, 2)
    near.flush_turn()
    assert [message.word for message in far.coming()] == ["call"]
    task = near.spawn(promise)
    near.wire.run()
    assert task.result() == 3
    assert "pull" not in near.words()


def test_what_is_said_behind_a_lone_message_leaves_in_its_frame(
    pair: tuple[FakeDriver, FakeDriver],
) -> None:
    near, far = pair
    tasks = [near.spawn(near.index.add(n, n)) for n in range(3)]
    near.flush()
    assert [message.word for message in far.coming()] == ["call"] * 3
    near.wire.run()
    assert [task.result() for task in tasks] == [0, 2, 4]


def test_behind_an_answer_with_its_release_others_go_on(wire: Wire) -> None:
    service = Service()
    near, far = wire.link(far_index=service)
    near.alone = far.alone = True
    tasks = [near.spawn(near.index.for_ever(_fresh())) for _ in range(3)]
    wire.run()
    service.fence.set()
    wire.run()
    assert [task.result() for task in tasks] == [None] * 3


def test_a_release_that_is_due_leaves_with_a_lone_call(pair: tuple[FakeDriver, FakeDriver]) -> None:
    near, far = pair
    stub = near.get(near.index.give())
    del stub
    near.session.drain_notes()
    task = near.spawn(near.index.add(1, 2))
    near.flush_turn()
    assert [message.word for message in far.coming()] == ["call", "release"]
    near.wire.run()
    assert task.result() == 3


def test_a_callback_that_is_lent_again_is_not_freed_by_the_release_of_the_first(
    pair: tuple[FakeDriver, FakeDriver],
) -> None:
    """Rule 1: one is released behind the answer, while another is on its way."""
    near, far = pair
    function = _fresh()
    task = near.spawn(near.index.call_back(function, 1))
    near.flush()
    far.deliver("call")
    near.deliver("call")
    far.deliver("resolve")
    near.peer.notify(near.index.keep, function)
    near.flush()
    assert [message.word for message in near.coming()] == ["resolve", "release"]
    near.deliver()
    assert task.result() == 1
    ((held, export),) = [item for item in near.session.exports.entries.items() if item[0] < 0]
    assert export.sent == 1  # type: ignore[union-attr]
    near.wire.run()
    assert near.get(near.index.call_kept(5)) == [5]
    assert near.get(near.index.keep_none()) == 1
    near.wire.run()
    assert held not in near.session.exports.entries


class Told(Target):
    def __init__(self) -> None:
        self.told = 0

    def ask(self) -> int:
        return 5

    def _released(self) -> None:
        self.told += 1


def test_who_wants_to_know_is_told_of_a_release_behind_an_answer(
    pair: tuple[FakeDriver, FakeDriver],
) -> None:
    near, _far = pair
    told = Told()
    assert near.get(near.index.ask_and_drop(told)) == 5
    near.wire.run()
    assert told.told == 1


def test_an_answer_that_was_released_is_not_released_again_behind_another(
    pair: tuple[FakeDriver, FakeDriver],
) -> None:
    """Rule 1: the other side does not hold it, which the general way finds, and says."""
    near, _far = pair
    assert near.get(near.index.call_back(_fresh(), 1)) == 1
    assert near.session.exports.last_answer == 2
    assert 2 not in near.session.exports.entries
    task = near.spawn(near.index.keep(_fresh()))
    near.flush()
    id, lent = near.session.imports.last_question, near.session.exports.last_export
    lone: Any = near.session._codec.lone
    frame: bytes = lone.write_answer_and(id, 5, [2], {lent: 1})
    assert not near.session.exchange.settle(frame)
    assert lent in near.session.exports.entries
    near.wire.run()
    assert task.result() is None
    near.get(near.index.keep_none())


def test_a_callback_that_was_lent_twice_is_released_once_for_each(
    pair: tuple[FakeDriver, FakeDriver],
) -> None:
    near, _far = pair
    function = _fresh()
    first = near.spawn(near.index.keep(function))
    near.wire.run()
    assert near.get(near.index.call_back(function, 1)) == 1
    (held,) = [id for id in near.session.exports.entries if id < 0]
    assert near.session.exports.entries[held].sent == 2  # type: ignore[union-attr]
    near.get(near.index.keep_none())
    near.wire.run()
    assert first.done
    assert held not in near.session.exports.entries


def test_a_call_that_cannot_pass_leaves_no_callback_exported(
    pair: tuple[FakeDriver, FakeDriver],
) -> None:
    """Rule 1: what was counted for it is rolled back, and the next takes the same id."""
    near, _far = pair
    with pytest.raises(TypeError, match="argument"):
        near.index.call_back(_fresh(), object())
    assert [id for id in near.session.exports.entries if id < 0] == []
    assert near.get(near.index.call_back(_fresh(), 1)) == 1


def test_too_many_callbacks_are_refused_at_the_call_also_alone(wire: Wire) -> None:
    near, far = wire.link(far_index=Service(), limits=Limits(max_exports=3))
    wire.run()
    near.alone = far.alone = True
    for _ in range(2):
        near.get(near.index.keep(_fresh()))
    with pytest.raises(LimitExceeded, match="max_exports"):
        near.index.keep(_fresh())
    assert near.get(near.index.keep_none()) == 2


def test_calls_of_one_turn_beyond_max_unsent_raise(wire: Wire) -> None:
    """Rule 13: what waits in the open frame counts."""
    near, _far = wire.link(far_index=Service(), limits=Limits(max_unsent=2000))
    assert near.get(near.index.add(1, 2)) == 3
    promises: list[Any] = []

    def calls_without_end() -> None:
        while len(promises) < 1000:
            promises.append(near.index.add(len(promises), 0))

    with pytest.raises(LimitExceeded, match="max_unsent"):
        calls_without_end()
    assert 100 < len(promises) < 300
    assert [near.get(promise) for promise in promises[:3]] == [0, 1, 2]
    assert near.get(near.index.add(1, 2)) == 3
