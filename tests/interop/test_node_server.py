"""A Python client, and a server that is the real package in Node.

Each test ends with both tables quiet: `api.quiet()` gives those over there.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

import capnode_py as capnode

from .api import Api, BankruptError, Counter
from .conftest import HERE, needs_web

pytestmark = pytest.mark.drivers("asyncio")

QUIET = {"imports": 1, "exports": 1}
WEB_TOO = (
    "test_calls_and_reads",
    "test_every_value_arrives_as_its_kind_and_comes_back_as_itself",
    "test_callbacks_are_called_kept_and_released",
    "test_map_is_one_round_trip",
    "test_map_captures_what_is_theirs_and_what_is_ours",
    "test_both_call_each_other",
    "test_three_parties",
    "test_a_call_that_is_given_up_leaves_nothing",
    "test_a_connection_that_ends_fails_what_waits",
    "test_on_every_loop",
)
"""What may differ where each message is one of a web socket."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "connect" in metafunc.fixturenames:
        roads = ["stdio", pytest.param("websocket", marks=needs_web)]
        both = metafunc.function.__name__ in WEB_TOO
        metafunc.parametrize("connect", roads if both else roads[:1], indirect=True)


@pytest.fixture
def connect(request: pytest.FixtureRequest, node: str) -> Callable[..., Any]:
    """``async with connect() as peer`` is a peer of a Node server; afterwards both are quiet."""

    @asynccontextmanager
    async def connected(index: Any = None) -> AsyncIterator[capnode.Peer]:
        async with _OPEN[request.param](node, index) as peer:
            yield peer
            if not peer.is_closed:
                assert await peer.index.quiet() == QUIET
                stats = peer.stats()
                assert (stats.imports, stats.exports) == (1, 1)

    return connected


def _stdio(node: str, index: Any) -> Any:
    return capnode.spawn([node, HERE / "server.mjs"], index=index, dialect="capnweb")


@asynccontextmanager
async def _websocket(node: str, index: Any) -> AsyncIterator[capnode.Peer]:
    command: list[str | Path] = [node, HERE / "server.mjs", "websocket"]
    async with await anyio.open_process(command, stderr=None) as server:
        assert server.stdout is not None
        url = (await server.stdout.receive()).decode().strip()
        async with capnode.connect(url, index=index, dialect="capnweb", tracebacks=True) as peer:
            yield peer
        with anyio.fail_after(5):
            assert await server.wait() == 0


_OPEN = {"stdio": _stdio, "websocket": _websocket}


async def test_calls_and_reads(connect):
    async with connect() as peer:
        api = peer.index
        assert await api.square(5) == 25
        assert await api.add("a", "b") == "ab"
        assert await api.greeting == "hello"
        assert await api.config() == {"nested": {"n": 5}, "list": [1, [2, []], 3]}
        assert await api.config().nested.n == 5
        assert await api.config().list[1][0] == 2
        assert await api.nothing() is capnode.undefined
        assert await api.echo() is capnode.undefined
        assert await api.echo(None) is None


VALUES: list[tuple[Any, str]] = [
    (None, "Null"),
    (capnode.undefined, "Undefined"),
    (True, "Boolean"),
    (0, "Number"),
    (2**53 - 1, "Number"),
    (-(2**53) + 1, "Number"),
    (2**53, "BigInt"),
    (-(2**200), "BigInt"),
    (capnode.BigInt(5), "BigInt"),
    (1.5, "Number"),
    (float("inf"), "Number"),
    (-float("inf"), "Number"),
    ("", "String"),
    ("text \N{SNOWMAN} \U0001f600 \x00 \u2028 \"'\\", "String"),
    ("half a pair \ud800", "String"),
    ([], "Array"),
    ([[]], "Array"),
    ([[1, 2], [[3]], []], "Array"),
    ({}, "Object"),
    ({"a": {"b": [{"c": None}]}, "": 1, "1": 2}, "Object"),
    (["import", 0], "Array"),
    ({"then": 1}, "Object"),
    (b"", "Uint8Array"),
    (bytes(range(256)), "Uint8Array"),
    (capnode.Bytes(b"abc", "ArrayBuffer"), "ArrayBuffer"),
    (capnode.Bytes(b"abc", "DataView"), "DataView"),
    (capnode.Bytes(b"abc", "Uint8ClampedArray"), "Uint8ClampedArray"),
    (array("b", [-1, 2]), "Int8Array"),
    (array("h", [-1, 2]), "Int16Array"),
    (array("H", [1, 2]), "Uint16Array"),
    (array("i", [-1, 2]), "Int32Array"),
    (array("I", [1, 2]), "Uint32Array"),
    (array("q", [-1, 2**62]), "BigInt64Array"),
    (array("Q", [1, 2**63]), "BigUint64Array"),
    (array("f", [1.5, -2.0]), "Float32Array"),
    (array("d", [1.1, -2.2]), "Float64Array"),
    (datetime(2026, 11, 28, 12, 30, 1, 500_000, UTC), "Date"),
    (datetime(1, 1, 1, tzinfo=UTC), "Date"),
    (capnode.URL("https://example.org/a?b#c"), "URL"),
    (capnode.Headers([("Accept", "a"), ("X-One", "1"), ("x-one", "2")]), "Headers"),
]


async def test_every_value_arrives_as_its_kind_and_comes_back_as_itself(connect):
    async with connect() as peer:
        for value, kind in VALUES:
            assert await peer.index.kind(value) == kind, value
            back = await peer.index.echo(value)
            assert type(back) is (capnode.BigInt if kind == "BigInt" else type(value)), value
            if kind == "Headers":  # which joins what comes twice
                assert dict(cast(Any, back)) == dict(value)
            else:
                assert back == value
        back = await peer.index.echo([float("nan"), (1, 2), bytearray(b"x"), 3.0])
        assert str(back[0]) == "nan"
        assert back[1:] == [[1, 2], b"x", 3]


async def test_what_javascript_cannot_hold_raises_at_the_call(connect):
    async with connect() as peer:
        for value in [{1, 2}, {"toString": 1}, {"__proto__": {"a": 1}}, 10**17000, object(), 1j]:
            with pytest.raises(capnode.CannotPass):
                peer.index.echo(value)
        with pytest.raises(capnode.CannotPass, match=r"f\({\"x\": ...}\)"):
            peer.index.echo(x=1)
        assert await peer.index.square(3) == 9


async def test_errors_come_with_class_cause_and_properties(connect):
    async with connect() as peer:
        with pytest.raises(ValueError, match="RangeError: too far") as caught:
            await peer.index.fail("RangeError", "too far")
        error: Any = caught.value
        assert (error.remote_type, error.message) == ("RangeError", "too far")
        assert error.props == {"code": 7}
        assert isinstance(error.__cause__, TypeError)
        with pytest.raises(TypeError, match="no"):
            await peer.index.fail("TypeError", "no")
        with pytest.raises(capnode.RemoteError, match="thrown: a text"):
            await peer.index.throwText()
        with pytest.raises(TypeError, match="'nope' is not a function"):
            await peer.index.nope()
        del error, caught


async def test_an_error_of_ours_is_known_there_and_keeps_its_class_on_the_way_back(connect):
    class OurTypeError(TypeError):
        pass

    async with connect() as peer:
        told = await peer.index.describeError(OurTypeError("mine"))
        assert told == {"name": "TypeError", "message": "mine", "isTypeError": True, "cause": None}
        told = await peer.index.describeError(KeyError("k"))
        assert (told["name"], told["isTypeError"]) == ("Error", False)

        for error, base in [
            (KeyError("k"), KeyError),
            (BankruptError("b"), ValueError),
            (OurTypeError("t"), TypeError),
            (SyntaxError("s"), SyntaxError),
        ]:
            back = await peer.index.echo(error)
            assert isinstance(back, base)
            assert cast(Any, back).remote_type == type(error).__name__

        def bankrupt(_x):
            raise BankruptError("no money")

        with pytest.raises(ValueError, match="BankruptError: no money"):
            await peer.index.callFunction(bankrupt, 1)


async def test_callbacks_are_called_kept_and_released(connect):
    async with connect() as peer:
        api = peer.index
        assert await api.callFunction(lambda x: x + 1, 4) == {"result": 5}

        async def double(x):
            return 2 * x

        assert await api.callTimes(double, 4) == [0, 2, 4, 6]
        await api.keep(double)
        assert await api.fire(3) == 6
        assert peer.stats().exports == 2
        await api.drop()


async def test_capabilities_of_theirs(connect):
    async with connect() as peer:
        api = peer.index
        counter = await api.makeCounter(4)
        assert await counter.increment() == 5
        assert await counter.increment(5) == 10
        assert await counter.value == 10
        assert await api.incrementCounter(counter, 1) == 11
        assert await api.incrementCounter(api.makeCounter(1), 1) == 2
        counter.dealloc()
        with pytest.raises(capnode.Released):
            counter.increment()


async def test_capabilities_of_ours_come_home_as_themselves(connect):
    async with connect() as peer:
        counter = Counter(1)
        assert await peer.index.incrementCounter(counter, 2) == 3
        assert await peer.index.giveBackInside(counter) == {"it": counter}
        assert await peer.index.giveBack(counter) is counter
        assert await peer.index.giveBack(counter).increment() == 4


async def test_pipelining_is_one_round_trip(connect):
    async with connect() as peer:
        before = peer.stats()
        counter = peer.index.makeCounter(4)
        value = counter.increment()
        again = counter.increment()
        assert (await value, await again) == (5, 6)
        # A call that only carries others is not pulled: its value never crosses.
        assert peer.stats().messages_received - before.messages_received == 2
        del counter, value, again


async def test_promises_both_ways(connect):
    async with connect() as peer:
        assert await peer.index.add(peer.index.square(2), peer.index.later(5)) == 9
        assert await peer.index.promises(lambda x: x + 1) == {"far": 21, "near": 5}
        assert await peer.index.echo([peer.index.later(1), peer.index.config().nested]) == [
            1,
            {"n": 5},
        ]
        with pytest.raises(ValueError, match="no"):
            await peer.index.square(peer.index.fail("RangeError", "no"))


async def test_map_is_one_round_trip(connect):
    async with connect() as peer:
        api = peer.index
        before = peer.stats().messages_sent
        assert await api.fibonacci(6).map(lambda n: api.square(n)) == [0, 1, 1, 4, 9, 25]
        assert peer.stats().messages_sent - before < 6  # two pushes, a pull, releases
        nested = api.fibonacci(4).map(lambda n: api.fibonacci(n).map(lambda m: [n, api.add(n, m)]))
        assert await nested == [[], [[1, 1]], [[1, 1]], [[2, 2], [2, 3]]]
        assert await api.config().map(lambda config: config.nested.n) == 5
        assert await api.echo(None).map(lambda n: api.square(n)) is None
        assert await api.nothing().map(lambda n: api.square(n)) is capnode.undefined
        shown = api.fibonacci(2).map(lambda n: {"n": n, "list": [n, [n, "text"]], "none": None})
        assert await shown == [{"n": n, "list": [n, [n, "text"]], "none": None} for n in (0, 1)]


async def _through_a_promise(api: Any) -> Any:
    later = api.makeCounter(10)
    return await api.fibonacci(3).map(lambda n: later.increment(n))


async def test_map_captures_what_is_theirs_and_what_is_ours(connect):
    async with connect() as peer:
        api = peer.index
        theirs = await api.makeCounter(0)
        assert await api.fibonacci(4).map(lambda n: theirs.increment(n)) == [0, 1, 2, 4]
        assert await _through_a_promise(api) == [10, 11, 12]
        counter = Counter(0)
        ours = api.fibonacci(3).map(lambda n: api.incrementCounter(counter, n))
        assert await ours == [0, 1, 2]
        called = api.fibonacci(3).map(lambda n: api.callFunction(lambda x: x + 1, n))
        assert await called == [{"result": 1}, {"result": 2}, {"result": 2}]
        made = await api.fibonacci(3).map(lambda n: {"counter": api.makeCounter(n)})
        assert [await each["counter"].increment() for each in made] == [1, 2, 2]
        del ours, made, called
        theirs.dealloc()


async def test_errors_in_a_map_and_what_it_cannot_say(connect):
    async with connect() as peer, capnode.pair(far_index={"slow": lambda: 7}) as (near, _):
        api = peer.index
        with pytest.raises(ValueError, match="no"):
            await api.fibonacci(3).map(lambda n: api.fail("RangeError", "no"))
        with pytest.raises(capnode.CannotPass, match="has no keyword arguments"):
            api.fibonacci(3).map(lambda n: api.square(x=n))
        slow = near.index.slow()
        with pytest.raises(capnode.CannotPass, match="await it before"):
            api.fibonacci(3).map(lambda n: api.add(n, slow))
        assert await api.square(3) == 9


async def test_promises_of_another_connection_are_sent_as_promises(connect):
    async with (
        connect() as peer,
        capnode.pair(far_index={"slow": lambda: 7}) as (near, _),
    ):
        assert await peer.index.square(near.index.slow()) == 49


async def test_calls_through_a_promise_that_comes_home_keep_their_order(connect):
    async with connect() as peer:
        heard: list[int] = []
        for _ in range(20):
            heard.clear()
            promise = peer.index.giveBack(heard.append)
            first = [promise(n) for n in range(5)]
            ours = await promise
            ours(5)
            for call in first:
                await call
            assert heard == [0, 1, 2, 3, 4, 5]
            del promise, first, ours, call


async def test_both_call_each_other(connect):
    async with connect(Api()) as peer:
        assert await peer.index.callYou("square", 6) == 36
        assert await peer.index.callYou("callYou", "square", 7) == 49
        with pytest.raises(IndexError):
            await peer.index.callYou("fail", "RangeError", "over")


async def test_three_parties(connect):
    async with connect() as one, connect() as two:
        counter = await one.index.makeCounter(1)
        assert await two.index.incrementCounter(counter, 1) == 2
        assert await two.index.incrementCounter(one.index.makeCounter(10), 1) == 11
        back = await two.index.giveBackInside(counter)
        assert await back["it"].increment() == 3
        assert await counter.value == 3
        del back, counter


async def test_three_parties_of_both_dialects(connect):
    async with connect() as js, capnode.pair(far_index=Api()) as (near, far):
        counter = await js.index.makeCounter(1)
        assert await near.index.incrementCounter(counter, 1) == 2
        ours = await near.index.makeCounter(5)
        assert await js.index.incrementCounter(ours, 1) == 6
        far_index: Any = far.index
        del counter, ours, far_index


async def test_a_call_that_is_given_up_leaves_nothing(connect):
    async with connect() as peer:
        with anyio.move_on_after(0.02):
            await peer.index.later(peer.index.hang())
        promise = peer.index.later(5)
        del promise
        peer.notify(peer.index.log, "heard")
        assert await peer.index.logged() == ["heard"]


async def test_a_connection_that_ends_fails_what_waits(connect):
    async with connect() as peer:
        hanging = peer.index.hang()
        counter = await peer.index.makeCounter(1)
        with anyio.move_on_after(0.01):
            await hanging
        await peer.aclose()
        with pytest.raises(capnode.PeerClosed):
            await hanging
        with pytest.raises(capnode.PeerClosed):
            await counter.increment()


@pytest.mark.drivers("asyncio", "uvloop", "trio")
async def test_a_child_that_dies_says_how(node):
    async with capnode.spawn(
        [node, "-e", "process.stdin.on('data', () => process.exit(3))"], dialect="capnweb"
    ) as peer:
        with pytest.raises(capnode.PeerDied, match="exited with code 3"):
            await peer.index.square(2)


@pytest.mark.drivers("asyncio", "uvloop", "trio")
async def test_on_every_loop(connect):
    async with connect(Api()) as peer:
        assert await peer.index.callFunction(lambda x: x + 1, 4) == {"result": 5}
        assert await peer.index.callYou("later", 3) == 3
        await peer.ping()


def test_without_a_loop(node, nothing_left):
    with capnode.sync.spawn([node, HERE / "server.mjs"], index=Api(), dialect="capnweb") as peer:
        assert peer.index.square(5) == 25
        assert peer.index.callFunction(lambda x: x + 1, 4) == {"result": 5}
        assert peer.index.callYou("add", 1, 2) == 3
        assert peer.get(peer.index.greeting) == "hello"
        with peer.pipeline() as p:
            value = p.index.makeCounter(4).increment()
        assert peer.get(value) == 5
        del value
        peer.ping()
        assert peer.index.quiet() == QUIET


async def test_names_that_python_keeps_for_itself_are_not_in_the_way(connect):
    async with connect({"cancel": lambda: 1, "dealloc": lambda: 2}) as peer:
        assert await peer.index.callYou("cancel") == 1
        assert await peer.index.callYou("dealloc") == 2
