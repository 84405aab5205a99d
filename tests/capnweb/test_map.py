"""`map` in this dialect: a "remap", written and read as the real package does."""

from __future__ import annotations

import json
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import CannotPass, Limits
from capnode_py.testing import Wire

from ..interop.api import Api, Counter

# What the package says for: api.fibonacci(3).map((n) => api.fibonacci(n).map((m) => api.add(n, m)))
NESTED = [
    ["push", ["pipeline", 0, ["fibonacci"], [3]]],
    [
        "push",
        [
            "remap",
            1,
            [],
            [["import", 0], ["import", 0]],
            [
                ["pipeline", -1, ["fibonacci"], [["pipeline", 0]]],
                [
                    "remap",
                    1,
                    [],
                    [["import", -2], ["import", 0]],
                    [
                        ["pipeline", -1, ["add"], [["pipeline", -2], ["pipeline", 0]]],
                        ["pipeline", 1],
                    ],
                ],
                ["pipeline", 2],
            ],
        ],
    ],
    ["pull", 2],
]


def _answers(raw: Any, *messages: Any) -> list[Any]:
    return [answer for message in messages for answer in raw.send(message)]


def test_what_the_package_says_is_done(raw):
    assert _answers(raw, *NESTED) == [["resolve", 2, [[[[]], [[1]], [[1]]]]]]


def test_what_is_said_for_a_map(web):
    near, _ = web.link(far_index=Api())
    api = near.index
    counter = Counter(0)
    numbers = api.fibonacci(3)
    promise = numbers.map(
        lambda n: [{"n": n}, api.incrementCounter(counter, n), api.fibonacci(n).map(lambda m: [m])]
    )
    said = [json.loads(line) for frame in near.session.flush() for line in frame.splitlines()]
    assert said == [
        ["push", ["pipeline", 0, ["fibonacci"], [3]]],
        [
            "push",
            [
                "remap",
                1,
                [],
                [["import", 0], ["export", -1]],
                [
                    ["pipeline", -1, ["incrementCounter"], [["pipeline", -2], ["pipeline", 0]]],
                    ["pipeline", -1, ["fibonacci"], [["pipeline", 0]]],
                    ["remap", 2, [], [], [[[["pipeline", 0]]]]],
                    [[{"n": ["pipeline", 0]}, ["pipeline", 1], ["pipeline", 3]]],
                ],
            ],
        ],
        ["pull", 2],
    ]
    del numbers, promise
    near.hang_up()


def test_the_values_of_javascript_stand_in_it(web):
    near, _ = web.link(far_index=Api())
    constant = [capnode.undefined, capnode.BigInt(2**70), ["export", -9], capnode.URL("https://a/")]
    got = near.get(near.index.fibonacci(2).map(lambda n: [n, constant, b"x"]))
    assert got == [[n, constant, b"x"] for n in (0, 1)]
    assert near.get(near.index.nothing().map(lambda n: [n])) is capnode.undefined


def test_a_promise_of_this_side_is_mapped_here(web):
    near, _ = web.link(far_index=Api())
    home = near.index.giveBackInside(Api())["it"]
    squares = home.fibonacci(4).map(lambda n: near.index.square(n))
    assert near.get(squares) == [0, 1, 1, 4]


def test_what_it_has_no_word_for_raises_at_the_map(web):
    near, _ = web.link(far_index=Api())
    with pytest.raises(CannotPass, match="has no keyword arguments"):
        near.index.fibonacci(3).map(lambda n: near.index.square(x=n))
    with pytest.raises(CannotPass, match="has no sets"):
        near.index.fibonacci(3).map(lambda n: {1, 2})
    with Wire() as other:
        native, _ = other.link(far_index=Api())
        _use_in_a_map(near.index, native.index.square(3))


def _use_in_a_map(api: Any, late: Any) -> None:
    with pytest.raises(CannotPass, match="await it before"):
        api.fibonacci(3).map(lambda n: api.add(n, late))


@pytest.mark.parametrize(
    "form",
    [
        ["remap", 0, [], [], []],
        ["remap", 0, [], []],
        ["remap", 0, [], [], [1], 2],
        ["remap", "0", [], [], [1]],
        ["remap", 0, "a", [], [1]],
        ["remap", 0, [True], [], [1]],
        ["remap", 0, [], 5, [1]],
        ["remap", 0, [], [], 5],
        ["remap", 0, [], [5], [1]],
        ["remap", 0, [], [["pipeline", 0]], [1]],
        ["remap", 0, [], [["import", 0, ["a"]]], [1]],
        ["remap", 0, [], [["import", "0"]], [1]],
        ["remap", 0, ["config"], [], [["pipeline", 1]]],
        ["remap", 0, ["config"], [], [["pipeline", -1]]],
        ["remap", 0, ["config"], [], [["pipeline", 0, [["a"]]]]],
        ["remap", 0, ["config"], [], [["frob"]]],
        ["remap", 0, ["config"], [], [["remap", 0, [], [["export", -1]], [1]]]],
    ],
    ids=str,
)
def test_a_malformed_remap_rejects_its_call_and_no_other(raw, form):
    said = _answers(raw, ["push", form], ["pull", 1])
    assert [message[:2] for message in said if message[0] != "release"] == [["reject", 1]]
    assert _answers(raw, ["push", ["pipeline", 0, ["square"], [3]]], ["pull", 2])[-1:] == [
        ["resolve", 2, 9]
    ]


@pytest.mark.parametrize(
    "form",
    [
        ["remap", 0, [], [["export", -1], ["promise", -2]], [1]],
        ["remap", 0, ["config"], [["export", -1]], [["export", -2]]],
        ["remap", 0, ["config"], [["export", -1]], [[[1, {"a": ["promise", -2]}]]]],
        ["remap", 0, ["config"], [["export", -1]], [["pipeline", 0, [], [["export", -2]]]]],
        ["remap", 0, ["config"], [], [["remap", 0, [], [["export", -1], ["export", -2]], [1]]]],
        ["remap", 0, ["config"], [["export", -1], ["export", -2]], []],
    ],
    ids=str,
)
def test_references_where_none_can_stand_are_counted_and_released(raw, form):
    said = _answers(raw, ["push", form], ["pull", 1])
    rejected = [message for message in said if message[0] == "reject"]
    released = [message for message in said if message[0] == "release"]
    assert [message[1] for message in rejected] == [1]
    assert sorted(released) == [["release", -2, 1], ["release", -1, 1]]
    assert len(raw.side.session.imports) == 1


def test_captures_are_released_when_the_map_has_run(raw):
    said = _answers(
        raw,
        ["push", ["remap", 0, [], [["export", -1]], [["pipeline", 0, ["greeting"]]]]],
        ["pull", 1],
    )
    assert sorted(said, key=str) == [["release", -1, 1], ["resolve", 1, "hello"]]


def test_a_bomb_of_maps_in_maps_is_stopped(raw):
    inner = ["remap", -1, [], [["import", -2]], [["pipeline", -1, ["square"], [["pipeline", 0]]]]]
    bomb = ["remap", 1, [], [["import", 1], ["import", 0]], [inner]]
    said = _answers(
        raw, ["push", ["pipeline", 0, ["fibonacci"], [1000]]], ["push", bomb], ["pull", 2]
    )
    assert said[0][:3] == ["reject", 2, said[0][2]]
    assert "Limits.max_map" in json.dumps(said[0])
    assert Limits().max_map == 100_000
