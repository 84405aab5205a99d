"""`map`: recorded here, replayed there. One round trip, no more rights, and bounded work."""

from __future__ import annotations

import gc
import weakref
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import capnode_py as capnode
from capnode_py import CannotPass, Limits, PeerLost, RemoteError, Target
from capnode_py._messages import CALL, Hello, Mine, Recording, Slot
from capnode_py._session import VERSIONS
from capnode_py.codec.cbor import CborCodec
from capnode_py.testing import FakeDriver, Fence, Wire


class Row(Target):
    def __init__(self, api: Api, n: int) -> None:
        self._api = api
        self._n = n

    @property
    def name(self) -> str:
        return f"row {self._n}"

    def times(self, k: int, plus: int = 0) -> int:
        self._api.log.append((self._n, k))
        return self._n * k + plus

    async def wait(self) -> int:
        self._api.log.append(f"wait {self._n}")
        try:
            await self._api.fence.wait()
        except CancelledError:
            self._api.log.append(f"cancelled {self._n}")
            raise
        return self._n

    def child(self) -> Row:
        return Row(self._api, self._n + 100)

    def fail_at(self, n: int) -> int:
        self._api.log.append(self._n)
        if self._n == n:
            raise LookupError(f"no {n}")
        return self._n


class Api(Target):
    def __init__(self) -> None:
        self.log: list[Any] = []
        self.fence = Fence()
        self.given: Any = None

    def rows(self, n: int = 3) -> list[Row]:
        return [Row(self, i) for i in range(n)]

    async def rows_later(self) -> list[Row]:
        await self.fence.wait()
        return self.rows()

    def records(self) -> list[dict[str, Any]]:
        return [{"name": f"n{i}", "tags": [i, i + 1], "row": Row(self, i)} for i in range(3)]

    def square(self, n: int) -> int:
        return n * n

    def note(self, value: Any) -> Any:
        self.log.append(value)
        return value

    def echo(self, value: Any) -> Any:
        return value

    def give(self) -> Any:
        return self.given

    @property
    def numbers(self) -> list[int]:
        return [1, 2, 3]


def linked(wire: Wire, **options: Any) -> tuple[FakeDriver, FakeDriver, Api]:
    api = Api()
    near, far = wire.link(far_index=api, **options)
    near.sent.clear()
    far.sent.clear()
    return near, far, api


def numbered(*cases: tuple[Any, ...]) -> list[Any]:
    """Cases that have no names."""
    return [pytest.param(*case, id=str(n)) for n, case in enumerate(cases)]


def recorded(function: Callable[[Any], Any], near: FakeDriver) -> Any:
    """The recording of a function, as it went over the wire."""
    near.sent.clear()
    near.index.numbers.map(function)
    near.wire.run()
    (message,) = [m for m in near.sent if m.word in ("call", "push")]
    return message.fields[2]


# What it does.


def test_a_list_is_mapped_in_one_round_trip(wire: Wire) -> None:
    near, far, _ = linked(wire)
    names = near.index.rows().map(lambda row: row.name)
    assert near.get(names) == ["row 0", "row 1", "row 2"]
    assert [word for word in near.words() if word != "release"] == ["push", "call"]
    assert far.words() == ["resolve"]


@pytest.mark.parametrize(
    ("function", "expected"),
    numbered(
        (lambda row: row.times(2), [0, 2, 4]),
        (lambda row: row.times(2, plus=1), [1, 3, 5]),
        (lambda row: row["times"](2), [0, 2, 4]),
        (lambda row: row.child().name, ["row 100", "row 101", "row 102"]),
        (lambda row: row.child().child().times(1), [200, 201, 202]),
        (lambda row: [row.name, {"k": row.times(1)}], [[f"row {n}", {"k": n}] for n in range(3)]),
        (lambda row: (row.times(3), "x"), [[0, "x"], [3, "x"], [6, "x"]]),
        (lambda row: row.times(row.times(row.times(2))), [0, 2, 16]),
        (lambda row: None, [None, None, None]),
        (lambda row: {1, 2}, [{1, 2}] * 3),
        (lambda row: [], [[], [], []]),
    ),
)
def test_what_the_function_gives_may_be_any_value_with_results_in_it(
    wire: Wire, function: Any, expected: Any
) -> None:
    near, _, _ = linked(wire)
    assert near.get(near.index.rows().map(function)) == expected


def test_items_may_be_plain_data_and_references_in_it(wire: Wire) -> None:
    near, far, _ = linked(wire)
    records = near.index.records()
    assert near.get(records.map(lambda record: record.name)) == ["n0", "n1", "n2"]
    assert near.get(records.map(lambda record: record["tags"][1])) == [1, 2, 3]
    assert near.get(records.map(lambda record: record.row.times(5))) == [0, 5, 10]
    (first, *_) = near.get(records.map(lambda record: record))
    assert (first["name"], first["tags"]) == ("n0", [0, 1])
    assert near.get(first["row"].times(1)) == 0
    assert far.counts()["resolve"] == 5


@pytest.mark.parametrize(
    ("given", "expected"),
    numbered(
        (None, None),
        ([], []),
        ((), []),
        ({"n": 4}, 4),
        ([{"n": 4}], [4]),
        (({"n": 1}, {"n": 2}), [1, 2]),
    ),
)
def test_none_gives_none_and_what_is_no_list_is_mapped_itself(
    wire: Wire, given: Any, expected: Any
) -> None:
    near, _, api = linked(wire)
    api.given = given
    assert near.get(near.index.give().map(lambda item: item.n)) == expected


def test_a_property_and_an_item_are_mapped_by_their_path(wire: Wire) -> None:
    near, _, api = linked(wire)
    api.given = {"in": [[1, 2], [3]]}
    square = near.index.square
    assert near.get(near.index.numbers.map(square)) == [1, 4, 9]
    assert near.get(near.index.give()["in"][0].map(square)) == [1, 4]


def test_maps_nest_and_use_what_is_around_them(wire: Wire) -> None:
    near, far, api = linked(wire)
    api = near.index
    result = near.get(
        api.records().map(
            lambda record: record.tags.map(
                lambda tag: {"of": record.name, "is": api.square(tag), "row": record.row.times(tag)}
            )
        )
    )
    assert result == [
        [{"of": f"n{n}", "is": t * t, "row": n * t} for t in (n, n + 1)] for n in range(3)
    ]
    assert far.counts()["resolve"] == 1


def test_a_stub_from_outside_is_called_for_each_item(wire: Wire) -> None:
    near, _, api = linked(wire)
    api.given = api.note
    note = near.get(near.index.give())
    assert near.get(near.index.numbers.map(lambda n: [note(n), note(0)])) == [
        [1, 0],
        [2, 0],
        [3, 0],
    ]
    assert api.log == [1, 0, 2, 0, 3, 0]


def test_a_function_of_this_side_can_be_passed_to_the_calls(wire: Wire) -> None:
    index = {"rows": lambda: [1, 2], "call": lambda function, n: function(n)}
    near, far = wire.link(far_index=index)
    seen: list[int] = []

    def seen_times_ten(m: int) -> int:
        seen.append(m)
        return m * 10

    api = near.index
    result = near.get(api.rows().map(lambda n: api.call(seen_times_ten, n)))
    assert result == [10, 20]
    assert seen == [1, 2]
    assert far.counts()["call"] == 2


def test_what_is_used_twice_is_captured_once(wire: Wire) -> None:
    near, _, api = linked(wire)
    api = near.index
    stub = near.get(api.rows())[0]
    got = recorded(lambda n: [api.square(n), api.echo(n), stub.times(n), stub], near)
    assert len(got.captures) == 2
    nested = recorded(lambda n: [api.square(n), api.rows().map(lambda _: api.square(n))], near)
    assert len(nested.captures) == 1
    inner = next(i.args for i in nested.instructions if isinstance(i.args, Recording))
    assert inner.captures == [-1, 0]


def test_a_promise_from_outside_is_captured_and_used_before_it_is_there(wire: Wire) -> None:
    near, _, api = linked(wire)
    late = near.index.rows_later()
    result = near.index.numbers.map(lambda n: [late[0].times(n), late[1].name, near.index.echo(n)])
    whole = near.index.numbers.map(lambda n: near.index.echo([late[2].name, n]))
    task, other = near.spawn(result), near.spawn(whole)
    wire.run()
    assert not task.done
    assert not other.done
    api.fence.set()
    wire.run()
    assert task.result() == [[0, "row 1", n] for n in (1, 2, 3)]
    assert other.result() == [["row 2", n] for n in (1, 2, 3)]


def test_a_map_waits_for_its_list_and_can_be_called_through_and_passed_on(wire: Wire) -> None:
    near, _, api = linked(wire)
    children = near.index.rows_later().map(lambda row: row.child())
    name = near.spawn(children[1].name)
    echoed = near.spawn(near.index.echo(near.index.rows_later().map(lambda row: row.name)))
    again = near.spawn(children.map(lambda child: child.child().name))
    wire.run()
    api.fence.set()
    wire.run()
    assert name.result() == "row 101"
    assert echoed.result() == ["row 0", "row 1", "row 2"]
    assert again.result() == ["row 200", "row 201", "row 202"]
    del children


def test_a_call_whose_answer_is_not_used_is_made_for_each_item_and_waited_for(wire: Wire) -> None:
    near, _, api = linked(wire)

    def note(row: Any) -> Any:
        near.index.note(row.name)
        return row.times(1)

    assert near.get(near.index.rows().map(note)) == [0, 1, 2]
    assert [entry for entry in api.log if isinstance(entry, str)] == ["row 0", "row 1", "row 2"]

    def fail(row: Any) -> Any:
        row.fail_at(1)
        return row.name

    with pytest.raises(LookupError, match="no 1"):
        near.get(near.index.rows().map(fail))


def test_lists_and_items_that_are_not_there_yet_or_live_here_are_mapped_too(wire: Wire) -> None:
    index = {"ask": lambda function: [function(), function()], "list": lambda function: function()}
    near, _ = wire.link(far_index=index)
    mine = [{"n": 5}, {"n": 6}]
    # The items are promises, of what this side answers.
    assert near.get(near.index.ask(lambda: mine[0]).map(lambda item: item.n)) == [5, 5]
    # The list itself is.
    assert near.get(near.index.list(lambda: mine).map(lambda item: item.n)) == [5, 6]


def test_a_target_that_is_no_list_is_mapped_itself_wherever_it_lives(wire: Wire) -> None:
    near, _, api = linked(wire)
    api.given = Row(api, 7)
    assert near.get(near.index.give().map(lambda row: [row.name, row.times(2)])) == ["row 7", 14]
    stub = near.get(near.index.give())
    box = near.index.echo([stub])[0]
    assert near.get(box.map(lambda row: row.name)) == "row 7"


def test_the_same_as_a_comprehension_on_a_promise_that_is_here(wire: Wire) -> None:
    """A promise of a value of this side: replayed here, by the same rules."""
    near, _, _ = linked(wire)
    mine = Api()
    home = near.index.echo(mine)
    stub_home: Any = near.get(home)
    assert stub_home is mine
    rows = home.rows()
    assert near.get(rows.map(lambda row: [row.name, row.times(2)])) == [
        ["row 0", 0],
        ["row 1", 2],
        ["row 2", 4],
    ]
    assert near.get(home.rows().map(lambda row: near.index.square(row.times(1)))) == [0, 1, 4]
    with pytest.raises(CannotPass, match="what the function for map does: a value of type object"):
        home.rows().map(lambda row: row.times(object()))
    del home, rows


# The order, errors, and the end.


@pytest.mark.parametrize("eager", [True, False])
def test_calls_are_started_in_the_order_of_the_items(wire: Wire, eager: bool) -> None:
    near, far, api = linked(wire)
    far.eager = eager
    near.get(near.index.rows(4).map(lambda row: [row.times(1), near.index.note(row.times(2))]))
    assert [entry for entry in api.log if isinstance(entry, tuple)] == [
        (n, k) for n in range(4) for k in (1, 2)
    ]
    assert [entry for entry in api.log if isinstance(entry, int)] == [0, 2, 4, 6]


def test_an_error_for_one_item_rejects_the_whole_and_begins_nothing_more(wire: Wire) -> None:
    near, _, api = linked(wire)
    with pytest.raises(LookupError, match="no 1") as caught:
        near.get(near.index.rows(4).map(lambda row: row.fail_at(1)))
    assert isinstance(caught.value, RemoteError)
    assert api.log == [0, 1]


def test_an_error_rejects_at_once_and_lets_the_other_calls_go_on(wire: Wire) -> None:
    near, _, api = linked(wire)
    task = near.spawn(near.index.rows().map(lambda row: [row.wait(), row.fail_at(2)]))
    wire.run()
    with pytest.raises(LookupError):
        task.result()
    api.fence.set()
    wire.run()
    assert "cancelled 0" not in api.log


@pytest.mark.parametrize(
    ("function", "error", "text"),
    numbered(
        (lambda record: record.nothing, KeyError, "nothing"),
        (lambda record: record.tags[7], IndexError, "range"),
        (lambda record: record.name.upper(), AttributeError, "nothing can be reached"),
        (lambda record: record.row._n, AttributeError, "underscore"),
        (lambda record: record.row["_n"], AttributeError, "private"),
        (lambda record: record.row["_api"].log, AttributeError, "private"),
        (lambda record: record.row.times["__globals__"], AttributeError, "nothing can be reached"),
        (lambda record: record.name(), TypeError, "cannot be called"),
        (lambda record: record.row.times("no", 1, 2, 3), TypeError, "positional"),
    ),
)
def test_the_other_side_reaches_no_more_than_by_calls(
    wire: Wire, function: Any, error: Any, text: str
) -> None:
    """Rule 12."""
    near, _, _ = linked(wire)
    with pytest.raises(error, match=text):
        near.get(near.index.records().map(function))
    assert near.get(near.index.square(2)) == 4


def test_what_was_lent_stays_lent(wire: Wire) -> None:
    api = Api()
    facade, revoke = capnode.revocable(api)
    near, _ = wire.link(far_index={"api": facade})
    rows = near.index.api.rows()
    kept = near.get(rows.map(lambda row: row.child()))
    assert near.get(kept[0].name) == "row 100"
    revoke("over")
    with pytest.raises(RemoteError, match="over"):
        near.get(near.index.api.rows().map(lambda row: row.name))
    with pytest.raises(RemoteError, match="over"):
        near.get(kept[0].name)


def test_a_cancelled_map_cancels_its_calls_and_begins_no_more(wire: Wire) -> None:
    near, _, api = linked(wire)
    task = near.spawn(near.index.rows().map(lambda row: row.times(row.wait())))
    wire.run()
    assert api.log == ["wait 0", "wait 1", "wait 2"]
    task.cancel()
    wire.run()
    assert sorted(api.log[3:]) == ["cancelled 0", "cancelled 1", "cancelled 2"]
    assert task.done
    api.fence.set()
    wire.run()
    assert len(api.log) == 6  # what waited for them was not called


def test_a_map_that_is_cancelled_while_its_list_is_not_there_is_never_begun(wire: Wire) -> None:
    near, _, api = linked(wire)
    promise = near.index.rows_later().map(lambda row: row.times(1))
    task = near.spawn(promise)
    wire.run()
    promise.cancel()
    wire.run()
    api.fence.set()
    wire.run()
    assert api.log == []
    with pytest.raises(RemoteError, match="cancelled"):
        task.result()


def test_a_map_inside_of_a_cancelled_one_is_cancelled(wire: Wire) -> None:
    near, _, api = linked(wire)
    rows = near.index.rows
    task = near.spawn(near.index.numbers.map(lambda n: rows(n).map(lambda row: row.wait())))
    wire.run()
    assert len(api.log) == 6
    task.cancel()
    wire.run()
    assert len([entry for entry in api.log if entry.startswith("cancelled")]) == 6


def test_a_lost_connection_ends_a_map_on_both_sides(wire: Wire) -> None:
    near, _, api = linked(wire)
    task = near.spawn(near.index.rows().map(lambda row: row.wait()))
    wire.run()
    near.hang_up()
    wire.run()
    with pytest.raises(PeerLost):
        task.result()
    assert sorted(api.log[3:]) == ["cancelled 0", "cancelled 1", "cancelled 2"]


def test_what_a_map_captures_and_makes_is_let_go(wire: Wire) -> None:
    near, far, api = linked(wire)
    children: list[weakref.ref[Row]] = []

    class Parent(Target):
        def child(self) -> Row:
            row = Row(api, 1)
            children.append(weakref.ref(row))
            return row

    api.given = [Parent(), Parent()]

    def pass_mine() -> weakref.ref[Any]:
        def mine() -> None: ...

        call = near.index.echo
        result = near.get(near.index.give().map(lambda p: [p.child().times(1), call(mine)]))
        assert result == [[1, mine], [1, mine]]
        return weakref.ref(mine)

    alive = pass_mine()
    wire.run()
    gc.collect()
    wire.run()
    assert alive() is None
    assert [child() for child in children] == [None, None]
    assert (len(near.session.exports), len(far.session.imports)) == (1, 1)


# What recording refuses.


def if_item(row: Any) -> Any:
    return 1 if row.done else 2


def compared(row: Any) -> Any:
    return row.name == "x"


def gone_through(row: Any) -> Any:
    return [tag.name for tag in row.tags]


def in_a_text(row: Any) -> Any:
    return f"{row.name}!"


@pytest.mark.parametrize(
    ("function", "text"),
    numbered(
        (if_item, r"item\.done of a map> has no value, so it cannot decide an if"),
        (lambda row: row.name and row.size, "decide an if, and"),
        (lambda row: not row.name, "decide an if"),
        (compared, "cannot be compared"),
        (lambda row: row.size < 3, "cannot be compared"),
        (lambda row: row.size + 1, "cannot be computed with"),
        (lambda row: 1 + row.size, "cannot be computed with"),
        (lambda row: row.size // 2, "cannot be computed with"),
        (lambda row: 2**row.size, "cannot be computed with"),
        (lambda row: -row.size, "cannot be computed with"),
        (lambda row: row.name % 1, "cannot be computed with"),
        (lambda row: [1, 2][row.size], "it is no number"),
        (lambda row: int(row.size), "it is no number"),
        (lambda row: range(row.size), "it is no number"),
        (gone_through, r"cannot be gone through.*\.map\(lambda each"),
        (lambda row: list(row.tags), "cannot be gone through"),
        (lambda row: len(row.tags), "cannot be gone through"),
        (lambda row: "x" in row.tags, "cannot be gone through"),
        (lambda row: dict(row), "cannot be gone through|keys"),
        (in_a_text, "cannot be written into a text"),
        (lambda row: str(row.name), "cannot be written into a text"),
        (lambda row: "%s" % row.name, "cannot be written into a text"),  # noqa: UP031
        (lambda row: {row.name: 1}, "cannot stand in a set, or be a key"),
        (lambda row: {row.name}, "cannot stand in a set"),
        (lambda row: (yield row), "returned a generator"),
        (lambda row: row.a[0:2], "slices"),
        (lambda row, other: row, "missing 1 required"),
        (7, "takes a function of one item, not 7"),
    ),
)
def test_recording_says_what_needs_a_value_and_sends_nothing(
    wire: Wire, function: Any, text: str
) -> None:
    near, _, _ = linked(wire)
    with pytest.raises(TypeError, match=text):
        near.index.numbers.map(function)
    assert near.session.backlog() == 0
    assert near.get(near.index.square(3)) == 9  # calls are calls again


def test_an_async_function_is_refused(wire: Wire) -> None:
    near, _, _ = linked(wire)

    async def named(row: Any) -> Any:
        return await row.name

    with pytest.raises(TypeError, match="takes a plain function, not an async one"):
        near.index.numbers.map(named)
    with pytest.raises(TypeError, match="has returned a coroutine"):
        near.index.numbers.map(lambda row: named(row))


def test_a_placeholder_is_of_no_use_when_its_function_has_returned(wire: Wire) -> None:
    near, _, _ = linked(wire)
    kept: list[Any] = []
    near.get(near.index.numbers.map(lambda n: kept.append(n)))
    with pytest.raises(TypeError, match="used after that map"):
        kept[0].method()
    with pytest.raises(TypeError, match="of another map, which is over"):
        near.index.numbers.map(lambda n: near.index.echo(kept[0]))
    with pytest.raises(CannotPass, match="Placeholder"):
        near.index.echo(kept[0])
    assert repr(kept[0]) == "<placeholder item of a map>"


def test_what_cannot_pass_raises_at_the_map(wire: Wire) -> None:
    near, _, _ = linked(wire)
    stub = near.get(near.index.rows())[0]
    for function, text in [
        (lambda n: object(), "what the function for map does: a value of type object"),
        (lambda n: [near.index.echo({"a": Wire})], "the class Wire"),
        (lambda n: {stub}, "a reference in a set, in map: write a list"),
    ]:
        with pytest.raises(CannotPass, match=text):
            near.index.numbers.map(function)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CannotPass, match="cyclic"):
        near.index.numbers.map(lambda n: loop)
    stub.dealloc()
    with pytest.raises(capnode.Released):
        near.index.numbers.map(lambda n: stub.times(n))
    assert near.session.backlog() == 0
    assert not near.session.exports.uncommitted


def test_an_error_of_the_function_itself_comes_out_of_map(wire: Wire) -> None:
    near, _, _ = linked(wire)
    with pytest.raises(ZeroDivisionError):
        near.index.numbers.map(lambda n: 1 / 0)
    assert near.get(near.index.square(3)) == 9


def test_what_stubs_call_map_is_the_far_sides(wire: Wire) -> None:
    near, _ = wire.link(far_index={"map": lambda n: n + 1, "in": {"map": 7}})
    assert near.get(near.index.map(1)) == 2
    assert near.get(near.index["in"]["map"]) == 7


def test_without_the_feature_map_says_so_and_nothing_is_sent(wire: Wire) -> None:
    hello = Hello(versions=VERSIONS, session_id=b"old".ljust(16), secret=b"s" * 16)
    near, far, _ = linked(wire, far_hello=hello)
    with pytest.raises(CannotPass, match=r"which the other side does not know.*await the list"):
        near.index.numbers.map(lambda n: near.index.square(n))
    with pytest.raises(CannotPass, match="does not know"):
        far.index.anything.map(lambda n: n)
    assert near.session.backlog() == 0
    assert near.get(near.index.square(3)) == 9


def test_before_the_other_sides_hello_map_is_not_known(wire: Wire) -> None:
    near, _ = wire.link(far_index=Api(), greet=False)
    with pytest.raises(CannotPass, match="does not know"):
        near.index.numbers.map(lambda n: n)
    wire.run()
    assert near.get(near.index.numbers.map(lambda n: n)) == [1, 2, 3]


# Three parties.


class Three:
    """``near -- left|right -- third``: the middle passes on what it is given."""

    right: FakeDriver

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.api = Api()
        middle: dict[str, Any] = {
            "third": lambda: self.right.index,
            "rows": lambda: self.right.index.rows(),
            "square": lambda n: n * n,
        }
        self.near, self.left = wire.link({}, middle, names=("near", "left"))
        self.right, self.third = wire.link(middle, self.api, names=("right", "third"))
        for side in wire.sides:
            side.sent.clear()


def test_a_list_of_a_third_party_is_mapped_there(wire: Wire) -> None:
    three = Three(wire)
    near = three.near
    assert near.get(near.index.rows().map(lambda row: row.times(2))) == [0, 2, 4]
    assert three.third.counts()["resolve"] == 1  # not one for each item
    assert three.right.counts()["call"] == 1
    third = near.get(near.index.third())
    assert near.get(third.numbers.map(lambda n: third.square(n))) == [1, 4, 9]
    assert three.third.counts()["resolve"] == 2


def test_captures_reach_through_the_middle(wire: Wire) -> None:
    three = Three(wire)
    near = three.near
    middles = near.index
    seen: list[int] = []

    def mine(n: int) -> int:
        seen.append(n)
        return n + 1

    third = near.get(near.index.third())
    result = near.get(
        third.rows().map(
            lambda row: [
                middles.square(row.times(3)),
                third.echo({"of": row.name}),
                third.echo(mine),
            ]
        )
    )
    assert [entry[:2] for entry in result] == [[(3 * n) ** 2, {"of": f"row {n}"}] for n in range(3)]
    assert all(entry[2] is mine for entry in result)


def test_cancelling_reaches_through_the_middle(wire: Wire) -> None:
    three = Three(wire)
    near = three.near
    task = near.spawn(near.index.rows().map(lambda row: row.wait()))
    wire.run()
    assert len(three.api.log) == 3
    task.cancel()
    wire.run()
    assert sorted(three.api.log[3:]) == ["cancelled 0", "cancelled 1", "cancelled 2"]


def test_a_third_party_that_dies_fails_the_map(wire: Wire) -> None:
    three = Three(wire)
    near = three.near
    rows = near.get(near.index.rows())
    task = near.spawn(near.index.square.map(lambda f: [rows[0].wait(), f(2)]))
    wire.run()
    three.third.hang_up()
    wire.run()
    with pytest.raises(RemoteError):
        task.result()


def test_a_middle_that_knows_map_and_a_third_party_that_does_not(wire: Wire) -> None:
    old = Hello(versions=VERSIONS, session_id=b"old".ljust(16), secret=b"s" * 16)
    right: FakeDriver
    middle: dict[str, Any] = {"rows": lambda: right.index.rows()}
    near, _ = wire.link({}, middle, names=("near", "left"))
    right, _ = wire.link(middle, Api(), far_hello=old, names=("right", "third"))
    with pytest.raises(RemoteError, match="does not know"):
        near.get(near.index.rows().map(lambda row: row.name))


# Bounds.


def test_more_instructions_than_the_limit_are_refused_before_the_first(wire: Wire) -> None:
    near, _, api = linked(wire, far_limits=Limits(max_map=10))
    task = near.index.rows(6).map(lambda row: [row.times(1), row.times(2)])
    with pytest.raises(RemoteError, match=r"more than 10 calls and reads.*Limits\.max_map"):
        near.get(task)
    assert api.log == []
    assert near.get(near.index.rows(5).map(lambda row: [row.times(1), row.times(2)]))


def test_maps_in_maps_count_together(wire: Wire) -> None:
    """A message of some hundred bytes that makes 200 x 200 x 200 calls is stopped."""
    near, far, api = linked(wire, far_limits=Limits(max_map=1000))
    api.given = list(range(200))
    call = near.index
    give = call.give
    bomb = give().map(lambda _: give().map(lambda _: give().map(lambda n: call.note(n))))
    near.flush()
    assert sum(len(frame.data) for frame in far.inbox) < 300
    with pytest.raises(RemoteError, match=r"Limits\.max_map"):
        near.get(bomb)
    assert len(api.log) <= 1000
    assert near.get(call.square(2)) == 4


def test_a_large_value_built_for_each_item_is_stopped_before_it_is_built(wire: Wire) -> None:
    near, _, api = linked(wire, far_limits=Limits(max_frame=1_000_000))
    with pytest.raises(RemoteError, match="builds values of more than 1000000 bytes"):
        near.get(near.index.rows(100).map(lambda row: [row.times(1), *[row] * 1000]))
    assert api.log == []
    assert near.get(near.index.rows(2).map(lambda row: [row.times(1), *[0] * 1000]))


@pytest.mark.parametrize("by_calls", [True, False])
def test_a_value_that_doubles_is_stopped(wire: Wire, by_calls: bool) -> None:
    near, _, api = linked(wire, far_limits=Limits(max_frame=100_000))
    api.given = {"x": 1}

    def double(item: Any) -> Any:
        for _ in range(40):
            if by_calls:
                item = near.index.echo({"a": item, "b": item})
            else:
                item = item.map(lambda inner: {"a": inner, "b": inner})
        return item.a.a.a.a.a.a.a.a

    with pytest.raises(RemoteError, match=r"builds values of more than 100000 bytes"):
        near.get(near.index.give().map(double))
    assert near.get(near.index.square(2)) == 4


def test_a_text_that_is_given_for_each_item_is_stopped(wire: Wire) -> None:
    near, _, api = linked(wire, far_limits=Limits(max_frame=100_000))
    api.given = {"text": "x" * 1000, "items": list(range(1000))}
    given = near.index.give()
    with pytest.raises(RemoteError, match="builds values of more than"):
        near.get(given["items"].map(lambda n: given.text))
    assert near.get(given["items"][0]) == 0


def test_nothing_new_is_begun_for_a_peer_that_does_not_read(wire: Wire) -> None:
    """Rule 13."""
    got: list[int] = []

    def mine(n: int, _text: str) -> int:
        got.append(n)
        return n

    text = "x" * 100
    index = {"call": lambda function, n: function(n, text), "rows": lambda: list(range(3000))}
    near, far = wire.link(far_index=index, far_limits=Limits(high_water=4000, low_water=1000))
    task = near.spawn(near.index.rows().map(lambda n: near.index.call(mine, n)))
    far.stall()
    wire.run()
    sent = far.session.backlog()
    assert 4000 < sent < 200_000  # one turn's worth, of 3000 calls
    assert got == []
    far.unstall()
    wire.run()
    assert task.result() == list(range(3000))
    assert got == list(range(3000))


def test_maps_nested_deeper_than_values_may_be_are_refused_here(wire: Wire) -> None:
    near, _, _ = linked(wire)

    def deep(levels: int) -> Callable[[Any], Any]:
        return lambda item: item.map(deep(levels - 1)) if levels else item

    assert near.get(near.index.echo(7).map(deep(8))) == 7
    with pytest.raises(CannotPass, match="nested deeper than the limit"):
        near.index.echo(7).map(deep(30))


# What no correct peer sends.


class _Reference:
    def __repr__(self) -> str:
        return "REFERENCE"


REFERENCE = _Reference()


def hostile(wire: Wire, args: Any) -> tuple[FakeDriver, FakeDriver]:
    """`far` gets a call of `numbers` with this in the place of its arguments."""
    near, far, _ = linked(wire)
    codec = CborCodec(Limits())
    codec.features = {"map"}
    message = codec.call(0, ("numbers",), args, {}, lambda _: Mine(-1))
    far.feed(bytes(codec.frame([message])))
    far.flush()
    return near, far


@pytest.mark.parametrize(
    ("recording", "text"),
    numbered(
        (Recording([], [Slot(1)]), "slot 1, which is not there"),
        (Recording([], [Slot(-1)]), "slot -1, which is not there"),
        (Recording([], [Slot(0, (), Recording([5], [Slot(0)]))]), "slot 5, which is not there"),
        (Recording([], [Slot(0, (), Recording(["x"], [Slot(0)]))]), "slot 'x'"),
        (Recording([], [REFERENCE]), "a reference beside its captures"),
        (Recording([], [[{"a": REFERENCE}]]), "a reference beside its captures"),
        (Recording([], [Slot(0, (), [REFERENCE])]), "a reference beside its captures"),
        (Recording([], [Slot(0, (), Recording([REFERENCE], [1]))]), "beside its captures"),
        ([Slot(0)], "where none can stand"),
        ([[Slot(0, (), [REFERENCE])]], "where none can stand"),
        ([Recording([REFERENCE], [Slot(0)])], "where none can stand"),
    ),
)
def test_a_malformed_function_rejects_one_call_and_its_references_are_counted(
    wire: Wire, recording: Any, text: str
) -> None:
    near, far = hostile(wire, recording)
    rejects = [message for message in far.sent if message.word == "reject"]
    assert text in rejects[0].fields[1].message
    assert far.session.error is None
    assert len(far.session.imports) == 1  # the reference was received, and is released
    released = sum(n for m in far.sent if m.word == "release" for _, n in m.fields[1])
    assert released == (1 if "REFERENCE" in repr(recording) else 0)
    near.hang_up()


@pytest.mark.parametrize(
    "fields", numbered(([],), ([[], []],), ([[]],), ([{}, [1]],), ([[], 7],), ("x",))
)
def test_what_is_no_function_for_map_is_a_malformed_call(wire: Wire, fields: Any) -> None:
    import cbor2

    near, far, _ = linked(wire)
    message = cbor2.dumps([CALL, 0, ["numbers"], cbor2.CBORTag(49376, fields)])
    far.feed(bytes(CborCodec(Limits()).frame([message])))
    assert "malformed call" in str(far.session.error)
    near.hang_up()


# The same as a comprehension.


class Data(Target):
    """Serves a list, and some functions of what is in it."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def rows(self) -> list[Any]:
        return self._rows

    async def pair(self, one: Any, other: Any) -> list[Any]:
        return [one, other]

    def size(self, value: Any) -> int:
        return len(value)


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.binary(max_size=5)
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "a": values,
            "tags": st.lists(values, max_size=4),
            "sub": st.dictionaries(st.text(), values),
        }
    ),
    max_size=6,
)

# Each works on an item and on a placeholder: `data` is the object, or its stub.
FUNCTIONS: list[Callable[[Any, Any], Any]] = [
    lambda data, row: row["a"],
    lambda data, row: row,
    lambda data, row: [row["a"], {"k": row["tags"], "c": [1, None]}],
    lambda data, row: data.size(row["tags"]),
    lambda data, row: [data.size(row["sub"]), row["a"], data.size([row["a"]])],
    lambda data, row: {"p": data.pair(row["a"], data.pair(row["tags"], 7))},
    lambda data, row: gone(row["tags"], lambda tag: data.pair(tag, row["a"])),
    lambda data, row: gone(row["tags"], lambda tag: [tag, data.size(row["tags"])]),
    lambda data, row: data.pair(row["a"], gone(row["tags"], lambda tag: {"t": tag})),
]


def gone(items: Any, function: Callable[[Any], Any]) -> Any:
    """`items`, mapped: a list here, or a placeholder."""
    return [function(item) for item in items] if isinstance(items, list) else items.map(function)


class Here(Data):
    """The same functions, called directly."""

    def pair(self, one: Any, other: Any) -> Any:
        return [one, other]


@pytest.mark.parametrize("dialect", ["cbor", "capnweb"])
@settings(max_examples=60, deadline=None)
@given(rows=rows, which=st.lists(st.sampled_from(FUNCTIONS), min_size=1, max_size=3))
def test_it_gives_what_a_comprehension_would(
    dialect: str, rows: list[Any], which: list[Any]
) -> None:
    with Wire(dialect=dialect) as wire:
        near, _ = wire.link(far_index=Data(rows))
        here = Here(rows)
        data = near.index
        got = near.get(data.rows().map(lambda row: [function(data, row) for function in which]))
        assert got == [[function(here, row) for function in which] for row in rows]
