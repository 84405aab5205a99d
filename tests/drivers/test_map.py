"""`map` on every driver and road; its rules are in tests/engine/test_map.py."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Limits, RemoteError


class Row(capnode.Target):
    def __init__(self, n: int) -> None:
        self._n = n

    @property
    def name(self) -> str:
        return f"row {self._n}"

    def plus(self, k: int) -> int:
        return self._n + k

    async def plus_later(self, k: int) -> int:
        await anyio.lowlevel.checkpoint()
        return self._n + k


class Table(capnode.Target):
    def __init__(self) -> None:
        self.log: list[Any] = []

    def rows(self, n: int = 3) -> list[Row]:
        return [Row(i) for i in range(n)]

    async def rows_later(self, n: int = 3) -> list[Row]:
        await anyio.lowlevel.checkpoint()
        return self.rows(n)

    def numbers(self, n: int) -> list[int]:
        return list(range(n))

    def note(self, n: int) -> int:
        self.log.append(n)
        return n

    async def note_later(self, n: int) -> int:
        self.log.append(n)
        await anyio.lowlevel.checkpoint()
        return n

    async def call(self, function: Any, n: int) -> Any:
        return await function(n)

    def fail(self, n: int) -> None:
        raise LookupError(f"no {n}")

    @property
    def some(self) -> list[int]:
        return [1, 2, 3]


class AwaitingTable(Table):
    """Its handlers wait as those of a blocking peer do as well."""

    async def rows_later(self, n: int = 3) -> list[Row]:
        return self.rows(n)


async def test_a_list_is_mapped_over_there(road):
    near, _ = await road.open(far_index=AwaitingTable())
    index = near.index
    assert await index.rows().map(lambda row: row.name) == ["row 0", "row 1", "row 2"]
    assert await index.rows_later().map(lambda row: row.plus(5)) == [5, 6, 7]
    assert await capnode.Promise.map(index.some, lambda n: index.note(n)) == [1, 2, 3]
    nested = index.rows(2).map(lambda row: index.numbers(2).map(lambda k: row.plus(k)))
    assert await nested == [[0, 1], [1, 2]]
    assert await index.rows(0).map(lambda row: row.name) == []


async def test_functions_of_this_side_are_called_for_each_item(road):
    near, _ = await road.open(far_index=Table())
    index, seen = near.index, []

    async def mine(n: int) -> int:
        seen.append(n)
        return n * 10

    assert await index.numbers(4).map(lambda n: index.call(mine, n)) == [0, 10, 20, 30]
    assert seen == [0, 1, 2, 3]


async def test_many_items_are_done_in_order(any_road):
    table = Table()
    near, _ = await any_road.open(far_index=table)
    index = near.index
    many = list(range(5000))
    assert await index.numbers(5000).map(lambda n: index.note(n)) == many
    assert table.log == many
    assert len(await index.rows(2500).map(lambda row: [row.name, row.plus(1)])) == 2500


@pytest.mark.loop
async def test_async_calls_of_the_items_run_side_by_side_and_start_in_order(any_road):
    table = Table()
    near, _ = await any_road.open(far_index=table)
    index = near.index
    many = list(range(2500))
    assert await index.numbers(2500).map(lambda n: index.note_later(n)) == many
    assert table.log == many


async def test_an_error_of_one_item_is_the_error_of_the_map(any_road):
    near, _ = await any_road.open(far_index=Table())
    with pytest.raises(LookupError, match="no 0") as caught:
        await near.index.numbers(3).map(lambda n: near.index.fail(n))
    assert isinstance(caught.value, RemoteError)
    assert "in fail" in caught.value.__notes__[0]


@pytest.mark.loop
async def test_a_map_whose_time_is_over_cancels_what_runs_for_it(any_road):
    events: list[str] = []

    async def wait(n: int) -> None:
        events.append(f"begun {n}")
        try:
            await anyio.sleep_forever()
        except BaseException:
            events.append(f"cancelled {n}")
            done.set()
            raise

    done = anyio.Event()
    near, _ = await any_road.open(far_index={"rows": lambda: [0, 1], "wait": wait})
    with anyio.move_on_after(0.05):
        await near.index.rows().map(lambda n: near.index.wait(n))
    await done.wait()
    await near.ping()
    assert events[:2] == ["begun 0", "begun 1"]
    assert sorted(events[2:]) == ["cancelled 0", "cancelled 1"]


@pytest.mark.loop
async def test_closing_waits_for_a_map_that_is_about_to_be_done(any_road):
    near, far = await any_road.open(far_index=Table())
    promise = near.index.numbers(10).map(lambda n: near.index.note_later(n))
    outcome: list[Any] = []

    async def get() -> None:
        outcome.append(await promise)

    async with anyio.create_task_group() as group:
        group.start_soon(get)
        await near.ping()
        await far.aclose()
    assert outcome == [list(range(10))]


@pytest.mark.loop
async def test_others_have_their_turns_while_much_is_done(any_road):
    """Also when it is maps in a map that do it."""
    table = Table()
    near, _ = await any_road.open(far_index=table)
    index = near.index

    async def much() -> None:
        numbers = index.numbers(200)
        assert len(await numbers.map(lambda _: numbers.map(lambda n: index.note(n)))) == 200

    assert await _turns_of_others(table, index, much, 40_000) > 1


@pytest.mark.loop
async def test_values_that_are_built_take_turns_as_calls_do(any_road):
    table = Table()
    near, _ = await any_road.open(far_index=table)
    index = near.index

    async def much() -> None:
        values = index.numbers(200).map(lambda n: [index.note(n), *[n] * 500])
        assert len(await values) == 200

    assert await _turns_of_others(table, index, much, 200) > 1


async def _turns_of_others(table: Table, index: Any, much: Any, calls: int) -> int:
    """How many calls are answered while a map makes so many."""
    counts: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(much)
        while len(table.log) < calls:
            await index.numbers(1)
            counts.append(len(table.log))
    return len([count for count in counts if 0 < count < calls])


async def test_both_sides_map_lists_of_each_other(any_road):
    here, there = Table(), Table()
    near, far = await any_road.open(index=here, far_index=there)
    assert await near.index.rows().map(lambda row: row.plus(1)) == [1, 2, 3]
    assert await far.index.rows().map(lambda row: row.plus(2)) == [2, 3, 4]


async def test_the_limit_of_the_side_that_runs_it_counts(any_road):
    table = Table()
    near, _ = await any_road.open(
        far_index=table, limits=Limits(max_map=1), far_limits=Limits(max_map=7)
    )
    assert len(await near.index.numbers(7).map(lambda n: near.index.note(n))) == 7
    with pytest.raises(RemoteError, match="more than 7 calls and reads"):
        await near.index.numbers(9).map(lambda n: near.index.note(n))
    assert len(table.log) == 7


async def test_a_map_has_a_time_limit_as_a_call_has(any_road):
    near, _ = await any_road.open(far_index=Table())
    quick = near.with_options(near.index, timeout=10)
    assert await quick.rows().map(lambda row: row.plus(1)) == [1, 2, 3]


@pytest.mark.drivers("asyncio", "trio")
async def test_a_handler_in_a_thread_may_map(any_road):
    near, far = await any_road.open(index=Table(), far_index={"work": _work})
    assert await near.index.work() == [10, 11, 12]
    del far


@capnode.in_thread
def _work() -> Any:
    peer = capnode.current_peer()
    return capnode.wait(peer.index.rows().map(lambda row: row.plus(10)))
