"""What the dialect is easy to get wrong with, each held to the bytes."""

from __future__ import annotations

from typing import Any

import pytest

import capnode_py as capnode
from capnode_py._leaks import leak_report
from capnode_py.testing import Fence

from .conftest import Raw


class Keeper(capnode.Target):
    def __init__(self) -> None:
        self.kept: Any = None

    def keep(self, value: Any) -> None:
        self.kept = value

    def give(self) -> Any:
        return self.kept

    def drop(self) -> None:
        self.kept = None

    def give_twice(self) -> list:
        return [self.drop, self.drop]

    async def call(self, function: Any) -> Any:
        return await function()

    def give_promise(self, function: Any) -> Any:
        return [function()]

    def fail(self) -> None:
        raise KeyError("k")


@pytest.fixture
def keeper(web) -> Raw:
    """A peer that offers a `Keeper`; its wire must be quiet in the end."""
    _, far = web.link(far_index=Keeper())
    return Raw(web, far)


def _call(name: str, *args: Any) -> list[Any]:
    return ["push", ["pipeline", 0, [name], list(args)]]


def _said(raw: Raw, *messages: Any) -> list[Any]:
    return [answer for message in messages for answer in raw.send(message)]


def test_none_is_null_and_undefined_is_undefined(keeper):
    assert _said(keeper, _call("drop"), ["pull", 1]) == [["resolve", 1, None]]
    assert _said(keeper, _call("keep", ["undefined"]), _call("give"), ["pull", 3]) == [
        ["resolve", 3, ["undefined"]]
    ]
    _said(keeper, _call("drop"), *[["release", id, 1] for id in (1, 2, 3, 4)])


def test_the_same_object_takes_a_new_id_each_time(keeper):
    assert _said(keeper, _call("give_twice"), ["pull", 1]) == [
        ["resolve", 1, [[["export", -1], ["export", -2]]]]
    ]
    assert _said(keeper, _call("give_twice"), ["pull", 2]) == [
        ["resolve", 2, [[["export", -3], ["export", -4]]]]
    ]
    releases = [["release", -id, 1] for id in (1, 2, 3, 4)]
    assert _said(keeper, *releases, ["release", 1, 1], ["release", 2, 1]) == []


def test_nothing_is_named_after_it_was_released(keeper):
    """A stub that was given up, and comes again by another id, is another stub."""
    _said(keeper, _call("keep", ["export", -1]), ["release", 1, 1])
    assert _said(keeper, _call("drop")) == [["release", -1, 1]]
    assert _said(keeper, _call("keep", ["export", -2]), _call("give"), ["pull", 4]) == [
        ["resolve", 4, ["import", -2]]
    ]
    _said(keeper, _call("drop"), *[["release", id, 1] for id in (2, 3, 4, 5)])


def test_a_read_has_no_arguments_and_a_call_without_has_an_empty_list(keeper):
    near = keeper.side.index
    read, call = near.name, near.name()
    keeper.side.spawn(read)
    said = keeper.said()
    assert ["push", ["pipeline", 0, ["name"], []]] in said
    assert ["push", ["pipeline", 0, ["name"]]] in said
    for id in (1, 2):
        keeper.send(["resolve", id, 1])
    del read, call


def test_arguments_are_not_escaped_and_arrays_in_them_are(keeper):
    promise = keeper.side.index.f([1, [2]], {"a": [3]})
    assert keeper.said()[0] == [
        "push",
        ["pipeline", 0, ["f"], [[[1, [[2]]]], {"a": [[3]]}]],
    ]
    keeper.send(["resolve", 1, [[[[1]]]]])
    assert keeper.side.get(promise) == [[1]]
    del promise


def test_streams_and_pipes_take_ids_too(keeper):
    assert _said(keeper, ["pipe"], ["stream", ["pipeline", 0, ["give"], []]]) == [
        ["resolve", 2, None]
    ]
    assert _said(keeper, _call("give"), ["pull", 3]) == [["resolve", 3, None]]
    assert _said(keeper, ["stream", ["pipeline", 1, ["write"], ["a"]]])[0][:2] == ["reject", 4]
    assert _said(keeper, ["release", 1, 1], ["release", 3, 1]) == []


def test_what_comes_by_a_stream_message_is_reported_with_the_call(keeper):
    """G6"""
    with capnode.trace_references():
        _said(keeper, ["stream", ["pipeline", 0, ["keep"], [["export", -1]]]])
        (line,) = leak_report(keeper.side.session)
    assert line.startswith("import -1: <Stub #1 of ")
    assert line.endswith("in the call of keep")
    _said(keeper, _call("drop"), ["release", 2, 1])


def test_a_result_waits_for_the_promises_in_it_and_each_is_released(keeper):
    promise = keeper.side.index.f()
    keeper.said()
    said = _said(keeper, ["resolve", 1, [[["promise", -1], ["promise", -2]]]])
    task = keeper.side.spawn(promise)
    del promise
    said += _said(keeper, ["resolve", -2, "two"])
    assert not task.done
    said += _said(keeper, ["resolve", -1, "one"])
    assert task.result() == ["one", "two"]
    assert sorted(said) == [["release", -2, 1], ["release", -1, 1], ["release", 1, 1]]


def test_a_result_that_comes_late_is_looked_at_and_given_back(keeper):
    promise = keeper.side.index.f()
    keeper.said()
    del promise
    assert keeper.said() == [["release", 1, 1]]
    assert _said(keeper, ["resolve", 1, {"a": ["export", -1], "b": [["x"]]}]) == [
        ["release", -1, 1]
    ]


def test_what_was_passed_is_held_until_the_call_ends(keeper):
    said = _said(keeper, _call("call", ["export", -1]), ["pull", 1])
    assert said == [["push", ["pipeline", -1, [], []]], ["pull", 1]]
    said = _said(keeper, ["resolve", 1, 5])
    assert sorted(map(str, said)) == sorted(
        map(str, [["resolve", 1, 5], ["release", 1, 1], ["release", -1, 1]])
    )
    _said(keeper, ["release", 1, 1])


def test_ints_are_numbers_as_far_as_those_are_exact(keeper):
    limit = 2**53 - 1
    near = keeper.side.index
    promise = near.f(limit, limit + 1, -limit, -limit - 1, 1.0, capnode.BigInt(1), True)
    (push, pull) = keeper.said()
    assert pull == ["pull", 1]
    assert push[1][3] == [
        limit,
        ["bigint", str(limit + 1)],
        -limit,
        ["bigint", str(-limit - 1)],
        1.0,
        ["bigint", "1"],
        True,
    ]
    keeper.side.feed(b'["resolve",1,[[5,5.0,5.5,9007199254740992,1e400,1e20]]]\n')
    values = keeper.side.get(promise)
    assert values == [5, 5, 5.5, 9007199254740992, float("inf"), 1e20]
    assert [type(value) for value in values] == [int, float, float, float, float, float]
    del promise


def test_a_number_that_comes_alone_is_an_int_as_far_as_it_is_exact(keeper):
    promise = keeper.side.index.f()
    keeper.said()
    keeper.side.feed(b'["resolve",1,9007199254740992]\n')
    assert type(keeper.side.get(promise)) is float
    del promise


def test_an_unknown_error_keeps_its_name(keeper):
    (answer,) = _said(keeper, _call("fail"), ["pull", 1])
    assert answer[2][:3] == ["error", "KeyError", "'k'"]
    assert answer[2][4] == {"py_type": "KeyError", "py_base": "KeyError"}
    _said(keeper, ["release", 1, 1])


def test_who_never_asks_is_not_answered_and_no_failure_is_lost(keeper, caplog):
    with caplog.at_level("DEBUG", logger="capnode_py"):
        assert _said(keeper, _call("fail")) == []
        assert _said(keeper, ["release", 1, 1]) == []
    assert "nobody looked" in caplog.text


def test_a_promise_that_was_settled_is_sent_as_its_value(keeper):
    near = keeper.side.index
    promise = near.f()
    keeper.side.spawn(promise)
    keeper.said()
    keeper.send(["resolve", 1, {"a": 1}])
    other = near.g(promise)
    assert keeper.said()[0] == ["push", ["pipeline", 0, ["g"], [{"a": 1}]]]
    keeper.send(["resolve", 2, None])
    del promise, other


def test_a_promise_of_theirs_goes_home_as_theirs(keeper):
    near = keeper.side.index
    promise = near.f()
    other = near.g(promise, near.h)
    said = keeper.said()
    assert ["push", ["pipeline", 0, ["g"], [["pipeline", 1], ["pipeline", 0, ["h"]]]]] in said
    assert ["pull", 1] not in said
    keeper.send(["resolve", 2, None])
    del promise, other


def test_the_index_is_sent_as_any_object(web):
    keeper = Keeper()
    near, far = web.link(far_index=keeper)
    keeper.keep(keeper)
    assert near.get(near.index.give()) is not near.index
    assert near.get(near.index.give().give_twice())
    near.get(near.index.drop())
    del near, far


def test_half_a_pair_crosses_as_it_is(keeper):
    promise = keeper.side.index.f("\ud800 \U0001f600", {"\udc00": 1})
    keeper.side.flush()
    (frame,) = keeper.side.other.inbox
    assert b'"\\ud800 \xf0\x9f\x98\x80",{"\\udc00":1}' in frame.data
    keeper.side.other.inbox.clear()
    keeper.send(["resolve", 1, None])
    del promise


def test_long_lists_of_one_kind_cross_as_short_ones_do(web):
    near, far = web.link(far_index={"echo": lambda value: value})
    for value in (
        list(range(1000)),
        [*range(1000), 2**53],
        [1.5] * 1000,
        [*[1.5] * 1000, float("inf")],
        ["x", None, True, 2.5] * 100,
        [*["x"] * 100, b"y"],
        [*["x"] * 100, ["y"]],
        [*[1] * 100, True],
        [*["\ud800"] * 100],
        tuple("abc" * 100),
    ):
        assert near.get(near.index.echo(value)) == list(value)
    del near, far


def test_what_was_read_by_a_path_is_forgotten_when_its_promise_is_released(web):
    """E14, T4: until then the other side can call by the path."""
    until = Fence()

    async def box() -> Any:
        await until.wait()
        return {"in": [7]}

    other, _ = web.link(far_index={"box": box}, names=("other", "third"))
    _, far = web.link(far_index=Keeper())
    raw = Raw(web, far)
    task = far.spawn(far.index.f(other.index.box()))
    assert raw.said()[0] == ["push", ["pipeline", 0, ["f"], [["promise", -1]]]]
    raw.send(["resolve", 1, [[["pipeline", -1, ["in", 0]]]]])
    assert far.session._seam.resolved_paths
    raw.send(["release", -1, 1])
    assert not far.session._seam.resolved_paths
    until.set()
    web.run()
    assert task.result() == [7]
