"""Promises: call through them, pass them on, await them often. And the order of calls."""

from __future__ import annotations

import functools
import random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode


class Folder(capnode.Target):
    """A tree of folders, to walk by pipelining."""

    def __init__(self, name: str = "") -> None:
        self._name = name

    def open(self, name: str) -> Folder:
        return Folder(f"{self._name}/{name}")

    async def open_slowly(self, name: str) -> Folder:
        await anyio.lowlevel.checkpoint()
        return self.open(name)

    def fail(self) -> Folder:
        raise LookupError("no such folder")

    @property
    def name(self) -> str:
        return self._name

    def entries(self) -> list[Any]:
        return [{"folder": self.open("first")}, {"folder": self.open("second"), "size": 7}]

    def join(self, *parts: Any, last: Any = "") -> str:
        return "+".join(map(str, parts)) + str(last)


class Watched(Folder):
    """Notes what its caller has sent by the time it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []
        self.caller: Any = None

    def open(self, name: str) -> Folder:
        self.sent.append(self.caller.stats().messages_sent)
        return super().open(name)


# Pipelining.


async def test_calls_through_promises_take_one_round_trip(road):
    """P3."""
    root = Watched()
    near, _ = await road.open(far_index=root)
    await near.ping()
    root.caller, before = near, near.stats().messages_sent
    name = near.index.open("a").open("b").entries()[1].folder.open("c").join("x")
    size = near.index.open("a").entries()[1].size
    assert await name == "x"
    assert await size == 7
    # Seven calls, and the release of what was dropped: all before anything was answered.
    assert root.sent[0] - before == 8


async def test_a_pipeline_of_fifty_calls_takes_one_round_trip(road):
    root = Watched()
    near, _ = await road.open(far_index=root)
    await near.ping()
    root.caller, before = near, near.stats().messages_sent
    folder = functools.reduce(lambda at, n: at.open(n), range(50), near.index)
    joined = folder.join("done")
    assert await joined == "done"
    # The calls, and the release of what was dropped: all before anything was answered.
    assert root.sent[0] - before == 52
    assert await folder.name == "".join(f"/{n}" for n in range(50))


async def test_only_what_is_awaited_crosses(any_road):
    near, far = await any_road.open(far_index=Folder())
    await near.ping()
    sent, answered = near.stats().messages_sent, far.stats().messages_sent
    assert await near.index.open("a").open("b").open("c").join("x") == "x"
    # Three pushes and a call, and the release of what was dropped; one answer.
    assert near.stats().messages_sent - sent == 5
    assert far.stats().messages_sent - answered == 1


async def test_a_result_that_cannot_pass_can_still_be_called_through(any_road):
    near, _ = await any_road.open(far_index={"get": lambda: {"f": lambda: "ok", "bad": object()}})
    assert await near.index.get().f() == "ok"
    with pytest.raises(TypeError, match="pass a dict of what"):
        await near.index.get()


async def test_a_path_on_a_promise_means_what_it_means_on_its_value(any_road):
    def results() -> list[Any]:
        return [(Folder("t"), 1), {"a": [Folder("l")]}, [{"x": (5, 6)}]]

    near, _ = await any_road.open(far_index={"results": results})
    values = await near.index.results()
    assert await values[0][0].name == "t"
    assert await values[1]["a"][0].name == "l"
    promise = near.index.results()
    assert await promise[0][0].name == "t"
    assert await promise[0][1] == 1
    assert await promise[1].a[0].name == "l"
    assert await promise[2][0]["x"][-1] == 6


async def test_calls_through_a_promise_that_takes_its_time(any_road):
    near, _ = await any_road.open(far_index=Folder())
    slow = near.index.open_slowly("a").open_slowly("b")
    assert await slow.join(slow.name, last=slow.open_slowly("c").name) == "/a/b/a/b/c"


async def test_every_dependent_of_a_failed_call_gets_its_error(any_road):
    """P5."""
    near, _ = await any_road.open(far_index=Folder())
    failing = near.index.fail()
    dependents = [
        failing.open("a"),
        failing.open("a").open("b"),
        failing.name,
        failing[0]["x"],
        near.index.join(failing),
        near.index.join("a", last=[{"deep": failing}]),
        near.index.open(failing).open("b"),
    ]
    for dependent in [*dependents, failing]:
        with pytest.raises(LookupError, match="no such folder"):
            await dependent
    assert await near.index.open("a").name == "/a"


async def test_a_path_that_leads_nowhere_fails_alone(any_road):
    """P6."""
    near, _ = await any_road.open(
        far_index={"none": lambda: None, "list": lambda: [1], "f": lambda: 2}
    )
    nowhere = [near.index.none().x, near.index.list()[5], near.index.list().name()]
    nowhere += [near.index.none().x().y.z(), near.index.f()()]
    for promise in nowhere:
        with pytest.raises((AttributeError, LookupError, TypeError)):
            await promise
    assert await near.index.f() == 2


# Promises as values.


async def test_promises_in_arguments_are_their_values_to_the_handler(road):
    """P7, P10: ours and theirs, of calls and of paths, at any depth, twice in one call."""
    seen: list[Any] = []

    def see(*values: Any, **named: Any) -> None:
        seen.append((values, named))

    near, _ = await road.open(
        index={"one": lambda: 1}, far_index={"see": see, "two": lambda: [2], "folder": Folder("f")}
    )
    two = near.index.two()
    await near.index.see(two, [{"deep": two}], key=two[0], path=near.index.folder.name)
    assert seen.pop() == (([2], [{"deep": [2]}]), {"key": 2, "path": "f"})
    # A promise that the other side made, passed back to it: here far calls us, and passes it on.
    folder = near.index.folder.open("x")
    await near.index.see(folder, folder)
    (first, second), _ = seen.pop()
    assert isinstance(first, Folder)
    assert first is second


async def test_promises_of_another_connection_pass_as_their_values(any_road):
    """P7, P8."""
    near, _ = await any_road.open(far_index={"join": Folder().join})
    other, _ = await any_road.open(far_index=Folder("other"))
    promise = other.index.open("x")
    assert await near.index.join(promise.name, last=[other.index.name]) == "other/x['other']"
    with pytest.raises(LookupError, match="no such folder"):
        await near.index.join(other.index.fail())


async def test_a_settled_promise_passes_as_its_value(any_road):
    """Rule 7, P4."""
    near, _ = await any_road.open(far_index=Folder())
    name, folder, failing = near.index.name, near.index.open("a"), near.index.fail()
    answer = near.index.join("x")
    assert await answer == "x"
    await folder
    with pytest.raises(LookupError):
        await failing
    await near.ping()
    assert await near.index.join(answer, name, folder.name) == "x++/a"
    assert await folder.open("b").name == "/a/b"
    with pytest.raises(LookupError, match="no such folder"):
        await near.index.join(failing)


async def test_promises_in_results_are_their_values_to_the_awaiter(road):
    """Ours and theirs, bare and inside data."""

    async def relay(get: Any) -> Any:
        return get("a")

    near, _ = await road.open(
        far_index={
            "bare": lambda get: get("a"),
            "inside": lambda get: {"list": [get("a"), get("b")]},
            "asynchronous": relay,
            "path": lambda folder: folder.name,
            "home": lambda promise: [promise],
        }
    )

    def get(name: str) -> str:
        return name * 2

    assert await near.index.bare(get) == "aa"
    assert await near.index.inside(get) == {"list": ["aa", "bb"]}
    assert await near.index.asynchronous(get) == "aa"
    assert await near.index.path(Folder("f")) == "f"
    assert await near.index.home(near.index.bare(get)) == ["aa"]


async def test_a_failed_promise_in_a_result_fails_the_whole(any_road):
    """P9."""

    def fail() -> None:
        raise LookupError("inner")

    near, _ = await any_road.open(
        far_index={
            "bare": lambda fail: fail(),
            "inside": lambda fail: [1, {"x": fail()}],
        }
    )
    for promise in (near.index.bare(fail), near.index.inside(fail)):
        with pytest.raises(LookupError, match="inner"):
            await promise


async def test_references_inside_a_promised_value_come_home(any_road):
    near, _ = await any_road.open(far_index={"bare": lambda get: get(), "in": lambda get: [get()]})
    folder = Folder("mine")
    assert await near.index.bare(lambda: folder) is folder
    assert (await near.index["in"](lambda: {"it": folder}))[0]["it"] is folder
    assert await near.index.bare(lambda: folder).open("x").name == "mine/x"


async def test_calls_on_a_promise_of_our_own_object_keep_to_the_wires_rules(any_road):
    """Only what a peer may reach, and only what passes: also where a call turns out to be ours."""
    near, _ = await any_road.open(far_index={"echo": lambda value: value})
    mine = near.index.echo(Folder("mine"))
    assert await mine.open("x").name == "mine/x"
    with pytest.raises(AttributeError, match="private"):
        await mine["_name"]
    with pytest.raises(capnode.CannotPass):
        await mine.join(object())


# Awaiting.


@pytest.mark.loop
async def test_a_promise_can_be_awaited_again_and_by_many_tasks(any_road):
    calls: list[int] = []

    async def once() -> list[int]:
        calls.append(1)
        await anyio.lowlevel.checkpoint()
        return calls

    near, _ = await any_road.open(far_index={"once": once})
    promise, got = near.index.once(), []

    async def wait() -> None:
        got.append(await promise)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(wait)
    got.append(await promise)
    assert got == [[1]] * 11
    assert calls == [1]


async def test_an_await_after_pipelining_asks_for_the_value(any_road):
    near, _ = await any_road.open(far_index=Folder())
    folder = near.index.open("a")
    name = folder.name
    assert await name == "/a"  # by now the call has left as one whose value nobody wants
    assert isinstance(await folder, capnode.Stub)
    assert await (await folder).name == "/a"


@pytest.mark.loop
async def test_a_dropped_promise_is_delivered_and_leaves_nothing(any_road):
    """K2, F5: dropping releases, it never cancels."""
    done, finished = anyio.Event(), []

    async def work() -> Folder:
        await anyio.lowlevel.checkpoint()
        finished.append(1)
        done.set()
        return Folder()

    near, _ = await any_road.open(far_index={"work": work, "fail": lambda: 1 // 0})
    near.index.work()
    near.index.fail()
    near.index.work().open("x").open("y")
    await done.wait()
    await near.ping()
    while len(finished) < 2:
        await near.ping()


async def test_a_promise_dropped_while_its_pipeline_lives(any_road):
    """P1."""
    near, _ = await any_road.open(far_index=Folder())

    def name() -> capnode.Promise:
        folder = near.index.open_slowly("a")
        return folder.open("b").name

    assert await name() == "/a/b"


# Order.


async def test_calls_start_in_the_order_they_were_made(road):
    """Rule 6: 200 batches of sync and async handlers, calls, one-way calls and callbacks mixed."""
    seen: list[int] = []

    def synchronous(n: int) -> None:
        seen.append(n)

    async def asynchronous(n: int) -> None:
        seen.append(n)
        for _ in range(n % 3):
            await anyio.lowlevel.checkpoint()

    class Api(capnode.Target):
        sync = staticmethod(synchronous)
        slow = staticmethod(asynchronous)

        def log(self) -> Api:
            return self

    near, _ = await road.open(far_index=Api())
    choose, made, promises = random.Random(1).choice, 0, []
    batches = 200 if road.name in ("socket", "memory") else 20
    for _ in range(batches):
        log = near.index.log()
        for _ in range(8):
            method = choose([near.index.sync, near.index.slow])
            if choose([True, False]):
                promises.append(method(made))
            else:
                near.notify(method, made)
            made += 1
        del log
        await anyio.lowlevel.checkpoint()
    for promise in promises:
        await promise
    await near.ping()
    assert seen == list(range(made))


async def test_calls_through_a_promise_start_in_order_before_and_after_it_settles(road):
    """E1, E13."""
    seen: list[int] = []

    class Log(capnode.Target):
        async def add(self, n: int) -> None:
            seen.append(n)

        def add_now(self, n: int) -> None:
            seen.append(n)

    log = Log()

    async def slow_log() -> Log:
        await anyio.lowlevel.checkpoint()
        return log

    near, _ = await road.open(far_index={"log": slow_log})
    for start in range(0, 60, 6):
        promise = near.index.log()
        near.notify(promise.add, start)
        promise.add_now(start + 1)
        promise.add(start + 2)
        stub = await promise
        near.notify(stub.add_now, start + 3)
        stub.add(start + 4)
        await promise.add_now(start + 5)
    assert seen == list(range(60))


async def test_calls_keep_their_order_when_a_promise_comes_home(road):
    """Rule 5, E1 to E3: what was called through p arrives before `await p` is done."""
    near, _ = await road.open(far_index={"echo": lambda value: value, "echo_slowly": _echo_slowly})
    for echo in (near.index.echo, near.index.echo_slowly):
        seen: list[int] = []
        promise = echo(seen.append)
        for n in range(5):
            promise(n)
        mine = await promise
        assert seen == [0, 1, 2, 3, 4]
        mine(5)
        await promise(6)
        assert seen == [0, 1, 2, 3, 4, 5, 6]


async def _echo_slowly(value: Any) -> Any:
    for _ in range(3):
        await anyio.lowlevel.checkpoint()
    return value


async def test_nothing_is_pinged_when_nothing_was_pipelined(any_road):
    """E5: count the messages."""
    near, far = await any_road.open(far_index={"echo": lambda value: value})
    await near.ping()
    sent, answered = near.stats().messages_sent, far.stats().messages_sent
    assert await near.index.echo(print) is print
    assert near.stats().messages_sent - sent == 1
    assert far.stats().messages_sent - answered <= 2  # the answer, and perhaps a release


async def test_order_holds_through_a_peer_in_between(any_road):
    """E8: a third peer's calls on us, made through a peer in the middle that forwards them."""
    seen: list[int] = []

    class Log(capnode.Target):
        def add(self, n: int) -> None:
            seen.append(n)

    _, middle = await any_road.open(index={"log": Log()}, far_index={})
    right, _ = await any_road.open(far_index={"get": lambda: middle.index.log})
    for n in range(0, 20, 4):
        promise = right.index.get()
        promise.add(n)
        near_log = await promise
        near_log.add(n + 1)
        promise.add(n + 2)
        await near_log.add(n + 3)
    assert seen == list(range(20))
