"""Rules 7, 8 and 11: calls, pipelines and promises as values; each call is answered once."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import CannotPass, CapnodeError, LimitExceeded, Limits, Promise, RemoteError, Target
from capnode_py._messages import Yours
from capnode_py.testing import FakeDriver, Fence, Wire


class Account(Target):
    def __init__(self, balance: int) -> None:
        self._balance = balance

    def balance(self) -> int:
        return self._balance

    def add(self, n: int) -> Account:
        self._balance += n
        return self

    @property
    def details(self) -> dict[str, Any]:
        return {"owner": {"name": "bob"}, "last": [1, 2, 3], "nothing": None}


class Bank(Target):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def open(self, n: int = 0) -> Account:
        return Account(n)

    def take(self, *values: Any, **named: Any) -> Any:
        self.seen.append((*values, *named.values()))
        return self.seen[-1]

    def fail(self, text: str = "no") -> None:
        raise ValueError(text)


def args_of(side: FakeDriver, n: int = -1) -> Any:
    """The arguments of a call that this side has sent."""
    calls = [m.fields for m in side.sent if m.word in ("call", "push")]
    return [fields[2] for fields in calls if len(fields) > 2][n]


# Calls.


def test_calls_with_arguments_and_names(wire: Wire) -> None:
    """C1"""
    bank = Bank()
    near, _far = wire.link(far_index=bank)
    assert near.get(near.index.take(1, "a", x=None)) == [1, "a", None]
    assert near.get(near.index["take"]()) == []
    assert near.get(near.index.open(5).balance()) == 5


def test_an_unknown_method_fails_alone(wire: Wire) -> None:
    """C1, C8"""
    near, _far = wire.link(far_index=Bank())
    bad = near.spawn(near.index.nothing(1))
    good = near.spawn(near.index.open(1).balance())
    wire.run()
    with pytest.raises(AttributeError, match="nothing"):
        bad.result()
    assert good.result() == 1


def test_a_property_is_read_by_awaiting_its_path(wire: Wire) -> None:
    """C1: each await of a path reads anew."""
    index: dict[str, Any] = {"a": {"b": [1, 2]}}
    near, _far = wire.link(far_index=index)
    path = near.index.a.b[1]
    assert near.get(path) == 2
    index["a"]["b"][1] = 3
    assert near.get(path) == 3
    assert near.get(near.index.a) == {"b": [1, 3]}
    assert near.get(near.index["a"]["b"][-1]) == 3
    assert near.sent[0].fields == [0, ["a", "b", 1]]


def test_a_callback_inside_a_call(wire: Wire) -> None:
    """C3"""

    async def twice(f: Any) -> list[int]:
        return [await f(1), await f(2)]

    near, _far = wire.link(far_index={"twice": twice})
    assert near.get(near.index.twice(lambda x: x + 1)) == [2, 3]


def test_fifty_calls_deep_into_each_other(wire: Wire) -> None:
    """C3: a handler may call back into its caller."""

    async def near_down(n: int) -> int:
        return 0 if n == 0 else 1 + await near.index.down(n - 1)

    async def far_down(n: int) -> int:
        return 0 if n == 0 else 1 + await far.index.down(n - 1)

    near, far = wire.link({"down": near_down}, {"down": far_down})
    assert near.get(near.index.down(50)) == 50


def test_a_handler_that_waits_holds_up_nobody(wire: Wire) -> None:
    """C1"""

    async def slow() -> str:
        await fence.wait()
        return "slow"

    fence = Fence()
    near, _far = wire.link(far_index={"slow": slow, "fast": lambda: "fast"})
    task = near.spawn(near.index.slow())
    assert near.get(near.index.fast()) == "fast"
    assert not task.done
    fence.set()
    wire.run()
    assert task.result() == "slow"


def test_a_call_is_started_by_the_other_side_never_inside_the_calling(wire: Wire) -> None:
    """C6: also where the promise turns out to be an object of this side."""
    seen: list[int] = []
    near, _far = wire.link(far_index={"echo": lambda x: x})
    promise = near.index.echo({"note": seen.append})
    near.get(promise)
    call = promise.note(1)
    assert seen == []
    near.get(call)
    assert seen == [1]


def test_one_way_calls_take_no_id_and_get_no_answer(wire: Wire) -> None:
    """C1"""
    bank = Bank()
    near, far = wire.link(far_index=bank)
    near.peer.notify(near.index.take, 1, x=2)
    near.peer.notify(near.index.fail)
    near.peer.notify(near.index.nothing.at.all)
    wire.run()
    assert bank.seen == [(1, 2)]
    assert near.words() == ["send", "send", "send"]
    assert far.sent == []
    assert near.session.imports.last_question == 0


def test_errors_of_one_way_calls_are_logged(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """C8"""
    near, _far = wire.link(far_index=Bank())
    with caplog.at_level(logging.DEBUG, "capnode_py"):
        near.peer.notify(near.index.fail, "unheard")
        wire.run()
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.exc_info is not None
    assert "unheard" in str(record.exc_info[1])


# Pipelines.


def test_a_chain_takes_one_round_trip(wire: Wire) -> None:
    """P1, P3: one frame each way, however deep; the promises on the way may be dropped."""
    near, far = wire.link(far_index=Bank())
    promise = near.index.open(0)
    for n in range(20):
        promise = promise.add(n)
    name = near.spawn(promise.details.owner.name)
    task = near.spawn(promise.balance())
    near.flush()
    assert len(far.inbox) == 1
    far.deliver()
    assert len(near.inbox) == 1
    near.deliver()
    assert (task.result(), name.result()) == (sum(range(20)), "bob")


def test_the_value_of_a_promise_that_only_carries_a_pipeline_never_crosses(wire: Wire) -> None:
    """P14"""
    near, far = wire.link(far_index=Bank())
    promise = near.index.open(3)
    assert near.get(promise.balance()) == 3
    del promise
    wire.run()
    assert near.words()[:2] == ["push", "call"]
    assert far.words() == ["resolve"]
    assert far.sent[0].fields == [2, 3]


def test_a_pipeline_on_a_call_that_fails_fails_with_the_same_error(wire: Wire) -> None:
    """P5"""
    near, _far = wire.link(far_index=Bank())
    promise = near.index.fail("first")
    calls = [promise.a(), promise.b.c(1), promise.a().b(), promise.a]
    for call in calls:
        with pytest.raises(ValueError, match="first"):
            near.get(call)
    # The far error's traceback holds the frames of this test, since both run in one thread.
    del promise, calls, call


NOWHERE = [
    ("details", "missing"),
    ("details", "nothing", "more"),
    ("details", "last", 7),
    ("details", "last", "name"),
    ("details", "last", "0"),
    ("details", "owner", "name", 0),
    ("missing",),
    (0,),
    ("_balance",),
    ("balance", "__self__"),
]


@pytest.mark.parametrize("path", NOWHERE, ids=str)
def test_a_path_that_leads_nowhere_fails_its_call_alone(wire: Wire, path: tuple[Any, ...]) -> None:
    """P6"""
    near, _far = wire.link(far_index=Bank())
    promise = near.index.open(1)
    step = promise
    for name in path:
        step = step[name]
    for use in (step, step(), step(1).more):
        with pytest.raises((LookupError, AttributeError, TypeError)) as raised:
            near.get(use)
        assert isinstance(raised.value, RemoteError)
    assert near.get(near.index.open(2).balance()) == 2
    del raised


@pytest.mark.parametrize("name", ["owner", "last", "nothing"])
def test_plain_data_cannot_be_called(wire: Wire, name: str) -> None:
    """P6"""
    near, _far = wire.link(far_index=Bank())
    with pytest.raises(TypeError, match="call"):
        near.get(near.index.open(1).details[name]())


def test_the_same_path_twice_gives_the_same_object(wire: Wire) -> None:
    """P2"""
    near, _far = wire.link(far_index={"a": {"bank": Bank()}})
    first = near.get(near.index.a.bank)
    assert near.get(near.index.a.bank) is first


def test_a_pipeline_on_a_promise_that_has_its_value_and_on_one_that_was_dropped(
    wire: Wire,
) -> None:
    """P4, P1"""
    near, _far = wire.link(far_index=Bank())
    promise = near.index.open(3)
    account = near.get(promise)
    assert near.get(promise.balance()) == 3
    assert near.get(promise.details.last[1]) == 2
    balance = promise.balance
    del promise
    assert near.get(balance()) == 3
    assert near.get(account.balance()) == 3
    del account


def test_promises_are_awaited_any_number_of_times_by_any_number_of_tasks(wire: Wire) -> None:
    """P7"""
    near, far = wire.link(far_index=Bank())
    promise = near.index.take(1)
    tasks = [near.spawn(promise) for _ in range(3)]
    wire.run()
    tasks += [near.spawn(promise)]
    assert [task.result() for task in tasks] == [[1]] * 4
    assert far.words() == ["resolve"]


# Promises in values.


def test_a_promise_as_argument_is_its_value_when_the_handler_starts(wire: Wire) -> None:
    """P7, P10: in two calls, at any depth, resolved later."""

    async def later() -> Any:
        await fence.wait()
        return {"account": account}

    fence = Fence()
    account = Account(7)
    bank = Bank()
    near, _far = wire.link(far_index={"later": later, "take": bank.take, "bank": bank})
    promise = near.index.later()
    first = near.spawn(near.index.take(promise))
    second = near.spawn(near.index.take([{"x": promise.account}], y=promise.account.balance()))
    third = near.spawn(near.index.take("third"))
    wire.run()
    assert bank.seen == [("third",)]  # it waits for nothing
    assert args_of(near, 1) == [Yours(1)]
    fence.set()
    wire.run()
    assert {"account": account} in [seen[0] for seen in bank.seen[1:]]
    assert ([{"x": account}], 7) in bank.seen[1:]
    assert first.done
    assert second.done
    assert third.done


def test_a_promise_as_result_is_answered_when_it_settles(wire: Wire) -> None:
    """P7: a resolve never carries a bare promise."""
    far: FakeDriver

    async def later() -> str:
        await fence.wait()
        return "late"

    fence = Fence()
    near, far = wire.link(
        {"later": later},
        {"bare": lambda: far.index.later(), "inside": lambda: [far.index.later(), 1]},
    )
    bare, inside = near.spawn(near.index.bare()), near.spawn(near.index.inside())
    path = near.spawn(near.index.inside()[0])
    wire.run()
    assert not bare.done
    assert not inside.done
    fence.set()
    wire.run()
    assert (bare.result(), inside.result(), path.result()) == ("late", ["late", 1], "late")


def test_a_promise_of_a_third_party_is_passed_on_as_a_promise(wire: Wire) -> None:
    """P7: only the host of the target waits; the one between does not."""

    async def later() -> str:
        await fence.wait()
        return "late"

    fence = Fence()
    bank = Bank()
    near, far = wire.link(far_index=bank)
    third, _fourth = wire.link(far_index={"later": later}, names=("third", "fourth"))
    promise = third.index.later()
    task = near.spawn(near.index.take(promise, [promise]))
    wire.run()
    assert far.started == []
    assert len(near.session.exports) == 2  # one promise, twice
    fence.set()
    wire.run()
    assert task.result() == ["late", ["late"]]


def test_one_rejection_rejects_the_whole(wire: Wire) -> None:
    """P8, P9"""
    _far: FakeDriver

    async def fail() -> None:
        await fence.wait()
        raise KeyError("one")

    fence = Fence()
    bank = Bank()
    near, _far = wire.link(
        {"fail": fail}, {"fail": fail, "take": bank.take, "list": lambda: [1, _far.index.fail()]}
    )
    promise = near.index.fail()
    tasks = [
        near.spawn(near.index.take(1, promise)),
        near.spawn(near.index.take({"a": [promise.x]})),
        near.spawn(near.index.list()),
    ]
    wire.run()
    fence.set()
    wire.run()
    tasks.append(near.spawn(near.index.take(promise)))  # broken already
    wire.run()
    for task in tasks:
        with pytest.raises(KeyError, match="one"):
            task.result()
    assert bank.seen == []
    del promise


def test_a_settled_promise_is_passed_on_as_its_value(wire: Wire) -> None:
    """P11: never as an id that has been released."""
    bank = Bank()
    near, _far = wire.link(far_index=bank)
    promise = near.index.take(1, [2])
    near.get(promise)
    wire.run()
    assert "release" in near.words()
    assert near.get(near.index.take(promise, x=[promise])) == [[1, [2]], [[1, [2]]]]
    assert args_of(near) == [[1, [2]]]
    assert near.get(near.index.take(promise[1][0])) == [2]  # a path on it is read here


def test_a_settled_promise_of_a_reference_is_passed_on_as_that_reference(wire: Wire) -> None:
    """P10, P11, I1"""
    bank = Bank()
    near, _far = wire.link(far_index=bank)
    promise = near.index.open(1)
    account = near.get(promise)
    near.get(near.index.take(promise, promise.balance, promise.balance()))
    assert args_of(near)[0] == Yours(account._id)
    original, balance, value = bank.seen[0]
    assert isinstance(original, Account)
    assert balance == original.balance
    assert value == 1
    bank.seen.clear()


def test_a_settled_promise_crosses_to_another_connection_as_its_value(wire: Wire) -> None:
    """P11"""
    bank, other_bank = Bank(), Bank()
    near, _far = wire.link(far_index=bank)
    third, _fourth = wire.link(far_index=other_bank, names=("third", "fourth"))
    promise = near.index.open(4)
    account = near.get(promise)
    third.get(third.index.take(promise, promise.details.owner, account))
    (proxied, owner, same) = other_bank.seen[0]
    assert owner == {"name": "bob"}
    assert proxied is same
    assert _fourth.get(proxied.balance()) == 4
    other_bank.seen.clear()


def test_a_promise_of_our_own_call_that_is_not_answered_yet_goes_home(wire: Wire) -> None:
    """P10: a pipelined promise as argument names the answer at its owner."""
    bank = Bank()
    near, _far = wire.link(far_index=bank)
    near.get(near.index.take(near.index.open(1), near.index.open(2).add(3).balance()))
    account, balance = bank.seen[0]
    assert isinstance(account, Account)
    assert balance == 5
    bank.seen.clear()


def test_a_promise_that_waits_for_itself_is_rejected(wire: Wire) -> None:
    """P12"""

    class Box(Target):
        async def get(self) -> Any:
            await fence.wait()
            return kept[0]

    fence = Fence()
    kept: list[Promise] = []
    near, _far = wire.link(far_index={"echo": lambda x: x})
    promise = near.index.echo(Box())
    near.get(promise)
    kept.append(promise.get())
    task = near.spawn(kept[0])
    wire.run()
    fence.set()
    wire.run()
    with pytest.raises(CapnodeError, match="waits for itself"):
        task.result()


# Every call is answered once.


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def broken_text() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    raise BrokenError


def raiser(error: BaseException) -> Any:
    def handler() -> None:
        raise error

    return handler


def test_every_call_is_answered_once_whatever_happens_to_it(wire: Wire) -> None:
    """C2, C5, C8"""
    index: dict[str, Any] = {
        "fine": lambda: 1,
        "cyclic": cyclic,
        "object": object,
        "a_class": lambda: Bank,
        "nested": lambda: [[[object()]]],
        "surrogate": lambda: "\ud800",
        "broken_text": broken_text,
        "exit": raiser(SystemExit(3)),
        "cancelled": raiser(asyncio.CancelledError()),
        "stop": raiser(StopIteration()),
        "generator_exit": raiser(GeneratorExit()),
        "group": raiser(ExceptionGroup("g", [ValueError("x")])),
        "data": 5,
        "big": lambda: bytes(200_000),
        "wrong_arguments": lambda a: a,
    }
    near, far = wire.link(far_index=index, limits=Limits(max_frame=100_000))
    tasks = {name: near.spawn(near.index[name]()) for name in [*index, "missing"]}
    wire.run()
    outcomes = {}
    for name, task in tasks.items():
        try:
            outcomes[name] = task.result()
        except RemoteError as error:
            outcomes[name] = error
    assert outcomes.pop("fine") == 1
    assert all(isinstance(outcome, RemoteError) for outcome in outcomes.values())
    assert far.counts() == {"resolve": 1, "reject": len(index)}
    assert sorted(m.fields[0] for m in far.sent) == list(range(1, len(index) + 2))
    assert "CannotPass" in repr(outcomes["nested"].remote_type)
    assert "[0][0][0]" in str(outcomes["nested"])
    assert "LimitExceeded" in outcomes["big"].remote_type
    assert "handler was exited" in str(outcomes["exit"])
    assert "handler was cancelled" in str(outcomes["cancelled"])
    assert near.session.error is None


def test_an_answer_that_cannot_pass_says_what_to_write_instead(wire: Wire) -> None:
    """C8: CannotPass is a TypeError at both ends, and names the path."""
    near, _far = wire.link(far_index={"get": lambda: {"a": [1, object()]}})
    with pytest.raises(TypeError, match=r"\['a'\]\[1\].*pass a dict"):
        near.get(near.index.get())
    with pytest.raises(CannotPass, match=r"argument 0.*\['b'\].*pass a dict"):
        near.index.get({"b": object()})


def test_an_oversize_request_and_an_oversize_answer_fail_one_call_each(wire: Wire) -> None:
    """C5"""
    near, _far = wire.link(
        far_index={"echo": lambda x: x, "big": lambda: bytes(20_000)},
        limits=Limits(max_frame=10_000),
        far_limits=Limits(max_frame=15_000),
    )
    with pytest.raises(LimitExceeded, match="bytes"):
        near.index.echo(bytes(16_000))
    task = near.spawn(near.index.echo(bytes(12_000)))  # it passes there, and not back
    big = near.spawn(near.index.big())
    wire.run()
    for failed in (task, big):
        with pytest.raises(RemoteError, match="LimitExceeded"):
            failed.result()
    assert near.get(near.index.echo(1)) == 1


def test_just_below_the_other_sides_limit_passes(wire: Wire) -> None:
    """C5: what one side lets out, the other accepts."""
    near, _far = wire.link(far_index=lambda x: len(x), far_limits=Limits(max_frame=2_000))
    passed = refused = 0
    for size in range(1_900, 2_010):
        try:
            promise = near.index(bytes(size))
        except LimitExceeded:
            refused += 1
        else:
            assert near.get(promise) == size
            passed += 1
    assert passed
    assert refused
    assert near.session.error is None


def test_a_failure_that_nobody_looked_at_is_logged_once(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """K2, C2: where the handler ran, with its traceback, at DEBUG."""
    near, _far = wire.link(far_index=Bank())
    with caplog.at_level(logging.DEBUG, "capnode_py"):
        near.index.fail("unseen")  # dropped
        wire.run()
    (record,) = [r for r in caplog.records if r.exc_info]
    assert record.levelno == logging.DEBUG
    assert "unseen" in str(record.exc_info[1])  # type: ignore[index]
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "capnode_py"):
        with pytest.raises(ValueError, match="seen"):
            near.get(near.index.fail("seen"))
        wire.run()
    assert not [r for r in caplog.records if r.exc_info]


def test_a_call_that_was_dropped_is_delivered(wire: Wire) -> None:
    """K2, F5: dropping releases, it never cancels."""
    bank = Bank()
    near, far = wire.link(far_index=bank)
    near.index.take(1)
    near.index.open(1).add(1).add(2)
    wire.run()
    assert bank.seen == [(1,)]
    assert far.started == ["take", "open", "add", "add"]
    assert far.sent == []
    assert far.stopped == []


def test_a_path_through_a_proxy_as_argument_is_read_there(wire: Wire) -> None:
    """P7, P10: the read is forwarded to a third host, and the call waits for it."""
    middle: FakeDriver
    bank = Bank()
    near, _far = wire.link(far_index={"get": lambda: [middle.index.open(5)], "take": bank.take})
    middle, _third = wire.link(far_index=Bank(), names=("middle", "third"))
    promise = near.index.get()
    assert near.get(near.index.take(promise[0].details.owner, promise[0].balance)) is not None
    assert bank.seen[0][0] == {"name": "bob"}
    (account,) = near.get(promise)
    assert near.get(near.index.take(account.details.last[1])) == [2]
    bank.seen.clear()


class BrokenList(list):
    def __iter__(self) -> Any:
        raise RuntimeError("broken")


class BrokenNumber(int):
    def __int__(self) -> int:
        raise RuntimeError("broken")

    __index__ = __int__


class BrokenDict(dict):
    def keys(self) -> Any:
        raise RuntimeError("broken")

    items = __iter__ = keys


@capnode.by_copy
@dataclasses.dataclass
class BrokenRow:
    x: int = 1

    def __getattribute__(self, name: str) -> Any:
        if name == "x":
            raise RuntimeError("broken")
        return super().__getattribute__(name)


@pytest.mark.parametrize("broken", [BrokenList([1]), BrokenNumber(5), BrokenDict(a=1), BrokenRow])
def test_a_value_whose_own_code_raises_fails_its_call_alone(wire: Wire, broken: Any) -> None:
    """C8, T6: or passes, if that code need not run; nothing is left either way."""
    value = BrokenRow() if broken is BrokenRow else broken
    bank = Bank()
    near, far = wire.link(far_index={"get": lambda: [print, value], "take": bank.take})
    try:
        promise = near.index.take(print, value)
    except RuntimeError:
        assert near.session.backlog() == 0
    else:
        near.get(promise)
    task = near.spawn(near.index.get())
    wire.run()
    try:
        task.result()
    except RuntimeError as error:
        assert isinstance(error, RemoteError)  # noqa: PT017
    assert near.session.error is far.session.error is None
    bank.seen.clear()
    del task
