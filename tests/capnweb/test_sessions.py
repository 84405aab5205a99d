"""Whole sessions as the real package was heard to hold them, with a peer of ours at either end.

At either end it says what the package says, message for message. Their order among each other may
differ, and errors are equal to errors.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py.testing import Wire

from ..interop.api import Counter as OurCounter
from .conftest import FencedApi, Raw, recorded
from .test_probes import _class_of

SESSIONS = {record["session"]: record["messages"] for record in recorded("sessions.jsonl")}

BYTES = bytes(range(1, 9))
VALUES: list[Any] = [
    None,
    capnode.undefined,
    True,
    0,
    -1.5,
    2**53 - 1,
    1e300,
    float("inf"),
    -float("inf"),
    float("nan"),
    capnode.BigInt(5),
    -(2**70),
    "",
    "text \N{SNOWMAN} \U0001f600",
    [],
    [[1], [[]]],
    {},
    {"a": {"b": [None]}},
    BYTES,
    capnode.Bytes(BYTES),
    capnode.Bytes(BYTES, "DataView"),
    array("h", BYTES),
    array("Q", BYTES),
    array("f", [1.5, -2]),
    datetime.fromtimestamp(1764333000.5, UTC),
    capnode.URL("https://example.org/a?b#c"),
    capnode.Headers({"Accept": "a"}),
]


def _fail(_x: Any) -> None:
    raise ValueError("mine")


class Sessions:
    """What the client does in each session. What it holds is given up at the end."""

    async def call(self, api: Any) -> None:
        assert await api.square(5) == 25

    async def read(self, api: Any) -> None:
        assert await api.greeting == "hello"
        assert await api.config().nested.n == 5

    async def values(self, api: Any) -> None:
        for value in VALUES:
            back = await api.echo(value)
            assert (type(back), str(back)) == (type(back), str(value)) or back == value

    async def nothing(self, api: Any) -> None:
        assert await api.nothing() is capnode.undefined

    async def fails(self, api: Any) -> None:
        with pytest.raises(TypeError):
            await api.fail("TypeError", "no")
        with pytest.raises(capnode.RemoteError):
            await api.nope()

    async def pipelined(self, api: Any) -> None:
        counter = api.makeCounter(4)
        assert await counter.increment() == 5
        assert await counter.increment(5) == 10

    async def theirCapability(self, api: Any) -> None:  # noqa: N802
        counter = await api.makeCounter(4)
        assert await counter.increment() == 5
        assert await counter.value == 5
        assert await api.incrementCounter(counter, 1) == 6

    async def callback(self, api: Any) -> None:
        assert await api.callFunction(lambda x: x + 1, 4) == {"result": 5}
        assert await api.callTimes(lambda x: 2 * x, 3) == [0, 2, 4]

    async def callbackKept(self, api: Any) -> None:  # noqa: N802
        await api.keep(lambda x: 2 * x)
        assert await api.fire(3) == 6
        await api.drop()

    async def callbackFails(self, api: Any) -> None:  # noqa: N802
        with pytest.raises(capnode.RemoteError):
            await api.callFunction(_fail, 1)

    async def ourCapabilityBack(self, api: Any) -> None:  # noqa: N802
        counter = OurCounter(1)
        assert await api.giveBackInside(counter) == {"it": counter}

    async def sameStubTwice(self, api: Any) -> None:  # noqa: N802
        counter = OurCounter(1)
        assert await api.incrementCounter(counter, 1) == 2
        assert await api.incrementCounter(counter, 1) == 3

    async def promiseArgument(self, api: Any) -> None:  # noqa: N802
        assert await api.square(api.square(2)) == 16

    async def promiseArgumentFails(self, api: Any) -> None:  # noqa: N802
        with pytest.raises(TypeError):
            await api.square(api.fail("TypeError", "no"))

    async def promiseInResult(self, api: Any) -> None:  # noqa: N802
        assert await api.promises(lambda x: x + 1) == {"far": 21, "near": 5}

    async def map(self, api: Any) -> None:
        numbers = api.fibonacci(4)
        squares = await numbers.map(lambda n: {"n": n, "square": api.square(n)})
        assert squares == [{"n": n, "square": n * n} for n in (0, 1, 1, 2)]

    async def bothWays(self, api: Any) -> None:  # noqa: N802
        assert await api.callYou("square", 6) == 36


PLAYED = [name for name in vars(Sessions) if not name.startswith("_")]
NOT_PLAYED = {
    "localPromiseArgument": "a promise here is an answer of a connection",
    "unawaited": "what nobody has awaited by the end of the turn is asked for all the same",
    "givenUpInFlight": "likewise, as seen from the server",
}

OTHERWISE: dict[str, tuple[str, dict[str, int]]] = {
    # What a server of ours says more, or less.
    "givenUpInFlight": ("nobody wants that answer", {"['resolve', 1, 5]": -1}),
}
NOT_SERVED = {
    "promiseInResult": "a promise of the client's goes home as its own",
    "map": "its results are sent when they are there, and not as promises",
}


def test_each_session_is_played_or_not_for_a_reason():
    assert sorted(SESSIONS) == sorted([*PLAYED, *NOT_PLAYED])


@pytest.mark.parametrize("session", [name for name in SESSIONS if name not in NOT_SERVED])
def test_a_server_of_ours_answers_as_the_real_package(session):
    wire = Wire(dialect="capnweb")
    api = FencedApi()
    _, far = wire.link(far_index=api)
    raw = Raw(wire, far)
    ours: list[Any] = []
    for record in SESSIONS[session]:
        if record["from"] == "client":
            ours += raw.send(record["message"])
    api.fence.set()
    ours += raw.said()
    expected = _classes(session, "server")
    expected.update(OTHERWISE.get(session, ("", {}))[1])
    assert Counter(map(_class_of, ours)) == +expected
    assert far.session.error is None
    assert (len(far.session.imports), len(far.session.exports)) == (1, 1)


@pytest.mark.parametrize("session", PLAYED)
def test_a_client_of_ours_says_what_the_real_package_says(session):
    wire = Wire(dialect="capnweb")
    near, _ = wire.link(FencedApi())
    raw = Raw(wire, near)
    play: Callable[[Any], Awaitable[None]] = getattr(Sessions(), session)
    task = near.spawn(play(near.index))
    ours = raw.said()
    for record in SESSIONS[session]:
        if record["from"] == "server":
            ours += raw.send(record["message"])
    task.result()
    del task
    ours += raw.said()
    assert Counter(map(_class_of, ours)) == _classes(session, "client")
    assert (len(near.session.imports), len(near.session.exports)) == (1, 1)


def _classes(session: str, side: str) -> Counter[str]:
    messages = (record["message"] for record in SESSIONS[session] if record["from"] == side)
    return Counter(map(_class_of, messages))
