"""`capnode.sync`: calls that block, pipelines, futures, and what a script may do to its peer."""

from __future__ import annotations

import asyncio
import inspect
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

import capnode_py as capnode
from capnode_py._describe import as_signature
from capnode_py.sync import Peer

pytestmark = pytest.mark.usefixtures("nothing_left")


PLUGIN = [sys.executable, str(Path(__file__).parent / "plugin.py")]


class Api(capnode.Target):
    """What the far side offers."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, a: int, b: int) -> int:
        """The sum."""
        return a + b

    @property
    def settings(self) -> dict[str, Any]:
        return {"theme": "dark"}

    def log(self, what: Any) -> None:
        self.seen.append(what)

    def call(self, function: Any, *args: Any) -> Any:
        return function(*args)

    async def call_async(self, function: Any, *args: Any) -> Any:
        return await function(*args)

    def nest(self, function: Any, depth: int) -> int:
        return function(self.nest, depth - 1) + 1 if depth else 0

    def itself(self) -> Api:
        return self

    def fail(self) -> None:
        raise ValueError("bad value")

    async def needs_a_loop(self) -> None:
        await asyncio.sleep(0)

    async def waits_for_something(self) -> None:
        await asyncio.sleep(1)

    async def waits_by_anyio(self) -> None:
        await anyio.sleep(1)


def _held(*peers: Peer) -> list[tuple[int, int]]:
    for _ in range(3):  # a release here can lead to one there
        for peer in peers:
            peer.ping()
    return [(peer.stats().imports, peer.stats().exports) for peer in peers]


def test_a_call_blocks_and_gives_the_value():
    with capnode.sync.pair(far_index=Api()) as (near, far):
        assert near.index.add(1, b=2) == 3
        assert near.get(near.index.settings.theme) == "dark"
        with pytest.raises(ValueError, match="bad value"):
            near.index.fail()
        assert near.request_index() is near.index
        assert _held(near, far) == [(1, 1), (1, 1)]
    assert near.is_closed


def test_callbacks_run_on_the_thread_that_waits():
    threads = []

    def callback(value: int) -> int:
        threads.append(threading.current_thread())
        assert capnode.current_peer() is near
        return value * 10

    with capnode.sync.pair(far_index=Api()) as (near, far):
        assert near.index.call(callback, 1) == 10
        assert near.index.call_async(callback, 2) == 20
        assert threads == [threading.current_thread()] * 2
        assert _held(near, far) == [(1, 1), (1, 1)]


def test_calls_that_nest_too_deep_are_an_error_and_the_peer_lives():
    def again(far_nest: Any, depth: int) -> int:
        return far_nest(again, depth)

    with capnode.sync.pair(far_index=Api()) as (near, _far):
        with pytest.raises(capnode.RemoteError, match="wait inside of each other"):
            near.index.nest(again, 100_000)
        assert near.index.add(1, 2) == 3


def test_what_was_called_before_the_answer_is_started_before_the_call_returns():
    seen: list[int] = []

    class Teller(capnode.Target):
        def tell(self, listener: Any) -> None:
            for n in range(3):
                capnode.current_peer().notify(listener, n)

    with capnode.sync.pair(far_index=Teller()) as (near, _far):
        near.index.tell(seen.append)
        assert seen == [0, 1, 2]


def test_an_async_handler_that_needs_a_loop_is_refused_with_the_reason():
    with capnode.sync.pair(far_index=Api()) as (near, _far):
        with pytest.raises(RuntimeError, match="takes an event loop"):
            near.index.needs_a_loop()
        with pytest.raises(RuntimeError, match=r"asks for an event loop .* write a sync handler"):
            near.index.waits_for_something()
        with pytest.raises(RuntimeError, match="asks for an event loop"):
            near.index.waits_by_anyio()
        assert near.index.add(1, 2) == 3


def test_a_pipeline_takes_one_round_trip_and_its_promises_can_be_waited_for():
    with capnode.sync.pair(far_index=Api()) as (near, far):
        before = near.stats()
        with near.pipeline() as p:
            first = p.index.itself()
            total = first.add(p.index.add(1, 2), 3)
            theme = p(near.index.settings).theme
            assert isinstance(total, capnode.Promise)
            assert near.stats().messages_sent == before.messages_sent
        assert near.wait(total, timeout=5) == 6
        assert near.get(theme) == "dark"
        assert near.index.add(total, 1) == 7
        del first, total, theme
        assert _held(near, far) == [(1, 1), (1, 1)]


def test_calls_of_a_pipeline_may_have_a_time_limit_each():
    with capnode.sync.spawn([*PLUGIN, "loop"]) as peer:
        p = peer.pipeline()
        quick = p(peer.with_options(peer.index, timeout=0.05))
        slow = [
            quick.hang(),
            peer.with_options(p.index, timeout=0.05).hang(),
            peer.with_options(p.index.hang, timeout=0.05)(),
        ]
        patient = peer.with_options(p.index, timeout=3600)
        added, opened = patient.add(1, 2), patient.open_session().name()
        assert all(isinstance(promise, capnode.Promise) for promise in (*slow, added, opened))
        assert peer.wait(added) == 3
        assert peer.wait(opened) == "session"
        for promise in slow:
            with pytest.raises(TimeoutError):
                peer.wait(promise)
        with pytest.raises(TimeoutError):
            peer.wait(peer.with_options(p.index.hang(), timeout=0.05))
        assert peer.wait(patient.add)(3, 4) == 7
        assert repr(p) == "<Pipeline to plugin.py>"
        del quick, slow, patient, added, opened, promise


def test_a_notification_is_sent_at_once():
    api = Api()
    with capnode.sync.pair(far_index=api) as (near, far):
        near.notify(near.index.log, "hello")
        far.ping()
        assert api.seen == ["hello"]


def test_help_and_completion_show_what_the_far_side_says(capsys):
    with capnode.sync.pair(far_index=Api()) as (near, far):
        assert {"add", "settings", "nest"} <= set(dir(near.index))
        assert "_private" not in dir(near.index)
        help(near.index)
        assert "add(a: int, b: int) -> int\n" in capsys.readouterr().out
        help(near.index.add)
        assert "The sum." in capsys.readouterr().out
        assert near.index.call(lambda stub: stub.__doc__, near.index) is not None
        with pytest.raises(AttributeError, match="underscore"):
            _ = near.index._repr_html_
        assert _held(near, far) == [(1, 1), (1, 1)]


def test_a_far_signature_is_what_editors_see_and_is_never_evaluated():
    class Signatures(capnode.Target):
        def many(
            self, a: int, /, b: str = "x", *rest: list[int], k: int | None = None, **more: Any
        ):
            pass

        def none(self) -> None:
            pass

        def untold(self, a: Any = object()) -> None:  # noqa: B008 - its default cannot be written
            pass

    with capnode.sync.pair(far_index=Signatures()) as (near, far):
        many = inspect.signature(near.index.many)
        said = "(a: int, /, b: str = 'x', *rest: list[int], k: int | None = None, **more: Any)"
        assert str(many) == said
        assert str(inspect.signature(near.index.none)) == "() -> None"
        generic = "(*args: 'Any', **kwargs: 'Any') -> 'Promise'"
        assert str(inspect.signature(near.index.untold)) == generic
        assert str(inspect.signature(near.index.nothing)) == generic
        assert _held(near, far) == [(1, 1), (1, 1)]
    assert list(inspect.signature(capnode.Stub).parameters) == ["session", "id"]


@pytest.mark.parametrize(
    "said",
    ["(a=print('evaluated'))", "(...)", "): pass\ndef g(", "(" * 1000, "(" * 5000, 7, None, "\0"],
)
def test_what_is_no_signature_is_none(said, capsys):
    shown = as_signature({"signature": said})
    assert shown is None or str(shown) == said
    assert capsys.readouterr().out == ""


def test_what_is_not_read_yet_says_how_to():
    with capnode.sync.pair(far_index=Api()) as (near, _far):
        with pytest.raises(TypeError, match=r"did you forget await, or peer\.get\(\)\?"):
            bool(near.index.settings.theme)
        with near.pipeline() as p:
            assert "add" in dir(p.index)
            with pytest.raises(TypeError, match=r"or peer\.get\(\)"):
                bool(p.index.add(1, 2))
        with pytest.raises(TypeError, match=r"as in stub = peer\.get\(promise\.settings\)"):
            _ = near.index.settings.cap_id
        with pytest.raises(TypeError, match="has given is the value already"):
            near.get(near.index.add(1, 2))


def test_a_door_of_the_loop_says_what_to_write_in_a_script():
    door: Any = capnode.pair()
    with pytest.raises(TypeError, match=r"with capnode\.sync\.spawn"):
        door.__enter__()
    with pytest.raises(AttributeError, match=r"peer = await capnode\.spawn"):
        _ = door.index


def test_a_host_can_keep_what_it_offers_to_itself():
    class Secret(capnode.Target):
        def secret(self) -> None:
            """Not told."""

    far_index = capnode.Capnode(Secret(), describe=False)
    one, other = socket.socketpair()
    served = threading.Thread(target=_serve, args=(other, far_index))
    served.start()
    with capnode.sync.attach(one) as near:
        assert "secret" not in dir(near.index)
        assert "Not told" not in str(near.index.__doc__)
        with pytest.raises(AttributeError, match="private"):
            near.get(near.index["_describe"])
    served.join()


def _serve(end: socket.socket, host: capnode.Capnode) -> None:
    with capnode.sync.attach(end, host=host) as peer:
        peer.serve_forever()


def test_what_is_described_is_what_can_be_reached():
    from capnode_py._describe import describe

    said = describe({"add": Api().add, "n": 1, "_x": len, "not a name": len})
    assert said == {"doc": "", "members": {"add": describe(Api().add), "n": {"doc": ""}}}
    assert set(describe(Api())["members"]) == {
        name for name in vars(Api) if not name.startswith("_")
    }


# map


def test_a_pipeline_maps_in_one_round_trip(nothing_left: None) -> None:
    index = {
        "rows": lambda: [{"name": "a", "n": 1}, {"name": "b", "n": 2}],
        "square": lambda n: n * n,
        "some": [3, 4],
    }
    with capnode.sync.pair(far_index=index) as (peer, _):
        with peer.pipeline() as p:
            names = p.index.rows().map(lambda row: row.name)
            squares = p.index.rows().map(lambda row: [row.name, peer.index.square(row.n)])
        assert peer.get(names) == ["a", "b"]
        assert peer.get(squares) == [["a", 1], ["b", 4]]
        # Of a path, it blocks and gives the value, as a call does.
        assert peer.index.some.map(lambda n: peer.index.square(n)) == [9, 16]
        assert peer.index.square(5) == 25
