"""Capnode's own face: connections over messages that the caller carries, with the examples of its
README."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import io
import re
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Capnode, Limits, Remote, stream_from_remote
from capnode_py._holders import holders
from capnode_py.testing import check_peers_quiet

PATIENT = Limits(close_timeout=100)  # a test in which closing waits for it hangs
GARBAGE = b"\xd9\xd9\xf7\x41\xff"


def join(one: Remote, other: Remote) -> None:
    one.add_remote_message_listener(other.receive_message)
    other.add_remote_message_listener(one.receive_message)


@contextlib.asynccontextmanager
async def joined(
    host: Capnode, client: Capnode | None = None, **options: Any
) -> AsyncIterator[tuple[Remote, Remote]]:
    """A connection between two hosts: the remote of either. Both tables are empty at its end."""
    remote = host.create_remote(limits=PATIENT, **options)
    remote2 = (client or Capnode()).create_remote(limits=PATIENT)
    join(remote, remote2)
    yield remote, remote2
    await check_peers_quiet(remote, remote2)
    await remote.aclose()
    await remote2.wait_closed()


# The examples of Capnode's README, and its tests.


def transform(text):
    return re.sub("[aeiou]{2,}", "oo", text).upper()


async def test_a_server_and_its_clients_talk_over_streams():
    served = []

    async def serve(stream: anyio.abc.ByteStream) -> None:
        host = Capnode(index={"transform": transform})
        remote = host.create_remote()
        served.append(remote)
        await stream_from_remote(remote).pump(stream)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)

        client = Capnode()
        remote = client.create_remote()
        stream = await anyio.connect_tcp("127.0.0.1", port)
        group.start_soon(stream_from_remote(remote).pump, stream)
        index = await client.request_index(remote)
        assert await index["transform"]("beep") == "BOOP"

        # Who speaks the protocol on the stream itself is a client too.
        async with capnode.connect(f"tcp://127.0.0.1:{port}") as peer:
            assert await peer.index.transform("a moo") == "A MOO"

        del index
        await check_peers_quiet(remote, served[0])
        await remote.aclose()
        for one in served:
            await one.wait_closed()
        group.cancel_scope.cancel()


async def test_who_is_told_a_cap_id_reconstructs_what_it_stands_for():
    async def baz():
        return "bam"

    host = Capnode(index={"foo": "bar", "baz": baz, "bork": None}, nickname="host")
    client1, client2 = Capnode(nickname="client1"), Capnode(nickname="client2")
    async with joined(host, client1) as (_, remote1), joined(host, client2) as (_, remote2):
        api = await client1.request_index(remote1)
        baz1 = api["baz"]
        cap_id = str(baz1.cap_id)  # as text, by whatever way

        baz2 = remote2.reconstruct(cap_id)
        assert baz1 != baz2
        assert await baz2() == "bam"
        assert host.registered_method_count == 1  # two hold it, and it is one
        del api, baz1, baz2


async def test_a_registry_restores_functions_in_the_next_host():
    cap_ids = []
    for _ in range(2):  # as the next process would
        registry = capnode.MethodRegistry(secret=b"the same sixteen bytes")
        cap_ids.append(str(registry.register(transform, "transform")))
        async with joined(Capnode(registry=registry)) as (_, remote2):
            assert await remote2.reconstruct(cap_ids[0])("beep") == "BOOP"
    assert cap_ids[0] == cap_ids[1]


async def test_a_cap_id_of_the_index_waits_for_the_hello():
    async with joined(Capnode(index={"transform": transform})) as (_, remote2):
        with pytest.raises(capnode.CapnodeError, match=r"has not come: await peer.ping\(\)"):
            _ = remote2.index.cap_id
        await remote2.ping()
        assert remote2.reconstruct(remote2.index.cap_id) is remote2.index


async def test_an_index_arrives_with_its_data_its_functions_and_its_nothings():
    async def baz():
        return "bam"

    def on(event, callback):
        callback(event, "hello!")

    api = {"foo": "bar", "baz": baz, "bork": None, "on": on}
    host, client = Capnode(index=api), Capnode()
    async with joined(host, client) as (_, remote2):
        remote_api = await client.request_index(remote2)
        assert remote_api is not api
        assert list(remote_api) == list(api)
        assert remote_api["foo"] == "bar"
        assert remote_api["bork"] is None
        assert await remote_api["baz"]() == "bam"
        assert host.registered_method_count == 2

        events = []
        heard = anyio.Event()

        def callback(event, data):
            events.append((event, data))
            heard.set()

        await remote_api["on"]("data", callback)
        await heard.wait()
        assert events == [("data", "hello!")]
        del remote_api


async def test_a_listener_that_was_passed_is_called_later():
    listeners = []

    async def subscribe(listener):
        listeners.append(listener)
        return "OKAY!"

    host, client = Capnode(index={"subscribe": subscribe}), Capnode()
    async with joined(host, client) as (_, remote2):
        api = await client.request_index(remote2)
        heard: list = []
        assert await api["subscribe"](heard.append) == "OKAY!"
        assert heard == []
        await listeners.pop()("foo")
        assert heard == ["foo"]
        del api


async def test_functions_go_back_and_forth():
    said = []

    async def greet(greeting):
        said.append(greeting)
        return {"value": "very well, and you?", "reply": said.append}

    host, client = Capnode(index={"greet": greet}), Capnode()
    async with joined(host, client) as (_, remote2):
        api = await client.request_index(remote2)
        answer = await api["greet"]("how do you do?")
        assert answer["value"] == "very well, and you?"
        await answer["reply"]("jolly well indeed.")
        assert said == ["how do you do?", "jolly well indeed."]
        del api, answer


async def test_a_function_that_is_given_up_is_registered_no_more():
    async def receive_events(emitter):
        await emitter["on"]("data", received.append)

    received: list = []
    counts = []
    host, client = Capnode(index={"receive_events": receive_events}), Capnode()
    async with joined(host, client) as (_, remote2):

        async def on(event, listener):
            assert event == "data"
            await listener("foo")
            counts.append(host.registered_method_count)
            listener.dealloc()
            await remote2.ping()
            counts.append(host.registered_method_count)

        api = await client.request_index(remote2)
        await api["receive_events"]({"on": on})
        assert received == ["foo"]
        assert counts == [2, 1]
        del api
    assert host.registered_method_count == client.registered_method_count == 0


async def test_streams_of_remotes_are_pumped_into_each_other():
    async def baz():
        return "bam"

    host = Capnode(index={"foo": "bar", "baz": baz, "bork": None}, nickname="cap1")
    client = Capnode(nickname="cap2")
    remote, remote2 = host.create_remote(), client.create_remote()
    async with anyio.create_task_group() as group:
        group.start_soon(stream_from_remote(remote).pump, stream_from_remote(remote2))
        api = await client.request_index(remote2)
        assert list(api) == ["foo", "baz", "bork"]
        assert await api["baz"]() == "bam"
        del api
        await check_peers_quiet(remote, remote2)
        client.clear_remote(remote2)  # the other follows, both streams end, and so does the pump
    await remote.wait_closed()
    await remote2.wait_closed()


class Connection:
    """One end of a transport that somebody wrote: events in, `send` out."""

    def __init__(self) -> None:
        self.other: Connection
        self._handlers: dict[str, Callable[..., None]] = {}

    def on(self, event: str, handler: Callable[..., None]) -> None:
        self._handlers[event] = handler

    def send(self, message: Any) -> None:
        self.other._handlers["message"](message)

    def end(self) -> None:
        for side in (self, self.other):
            side._handlers["end"]()


def new_connection(host: Capnode, connection: Connection) -> Remote:
    """What an application writes for its transport."""
    remote = host.create_remote()
    connection.on("message", remote.receive_message)
    connection.on("end", lambda: remote.receive_message(b""))
    remote.add_remote_message_listener(connection.send)
    return remote


async def test_any_transport_carries_a_connection_and_ends_it():
    here, there = Connection(), Connection()
    here.other, there.other = there, here
    host, client = Capnode(index={"transform": transform}), Capnode()
    served, remote = new_connection(host, here), new_connection(client, there)
    assert await remote.index.transform("beep") == "BOOP"
    waiting = remote.index.transform("lost")
    here.end()
    await served.wait_closed()
    await remote.wait_closed()
    with pytest.raises(capnode.PeerLost, match="the other side closed the connection"):
        await waiting


# cap_wrap.


async def test_cap_wrap_copies_data_and_makes_functions_async():
    async def baz():
        return "bam"

    api = {"foo": ["bar"], "baz": baz, "bork": None}
    wrapped = await capnode.cap_wrap(api)
    assert wrapped is not api
    assert wrapped["foo"] == ["bar"]
    assert wrapped["foo"] is not api["foo"]
    assert wrapped["bork"] is None
    assert await wrapped["baz"]() == "bam"

    hello = await capnode.cap_wrap(lambda: "Hello!")
    answer = hello()
    assert isinstance(answer, capnode.Promise)
    assert await answer == "Hello!"
    assert await capnode.cap_wrap([1, (2, 3)]) == [1, [2, 3]]


async def test_what_cap_wrap_gives_is_called_as_from_afar():
    class Account(capnode.Target):
        balance = 10

        def take(self, notes, confirm):
            notes.append("taken")
            return confirm(self)

        def fail(self):
            raise ValueError("no")

        def leak(self):
            return object()

    account = Account()
    wrapped = await capnode.cap_wrap(account)
    notes: list = []
    confirmed = []

    def confirm(who):
        confirmed.append(who)
        return "sure"

    assert await wrapped.take(notes, confirm) == "sure"
    assert notes == []  # the handler had a copy
    assert confirmed == [wrapped]  # and what it called was a stub, as what that was given is one
    with pytest.raises(capnode.RemoteError) as caught:
        await wrapped.fail()
    assert isinstance(caught.value, ValueError)
    assert "raise ValueError" in "".join(caught.value.__notes__)
    with pytest.raises(capnode.RemoteError, match="the result: a value of type object"):
        await wrapped.leak()
    with pytest.raises(capnode.RemoteError, match="balance"):
        await wrapped.balance
    confirmed.clear()


async def test_cap_wrap_says_where_something_stands_that_cannot_pass():
    with pytest.raises(capnode.CannotPass, match=r"^the value, at \['a'\]\[1\]: a value of type"):
        await capnode.cap_wrap({"a": [1, object()]})


async def test_cap_wrap_lets_go_of_each_function_whose_stub_is_dropped():
    def one():
        return 1

    def two():
        return 2

    freed = [anyio.Event(), anyio.Event()]
    weakref.finalize(one, freed[0].set)
    weakref.finalize(two, freed[1].set)
    wrapped = await capnode.cap_wrap({"one": one, "two": two})
    session = weakref.ref(wrapped["one"]._session)
    del one, two, wrapped["one"]
    await freed[0].wait()  # while the other one is held
    assert await wrapped["two"]() == 2
    del wrapped
    await freed[1].wait()
    while session() is not None:  # nothing had to be closed
        gc.collect()
        await anyio.lowlevel.checkpoint()


@pytest.mark.drivers("asyncio")
async def test_what_outlives_its_event_loop_is_lost():
    def in_a_loop(make: Callable[[], Awaitable[Any]]) -> Any:
        async def main():
            return await make()

        with asyncio.Runner() as runner:
            return runner.run(main())

    async def make() -> tuple[Any, Remote]:
        return await capnode.cap_wrap(transform), Capnode().create_remote()

    async def use(stub: Any, remote: Remote) -> None:
        with pytest.raises(capnode.PeerLost, match="the event loop of this connection has ended"):
            await stub("beep")
        remote.receive_message(b"nobody is there to read it")
        with pytest.raises(capnode.PeerLost, match="event loop"):
            await remote.request_index()
        await remote.aclose()

    def in_two_loops() -> None:
        made = in_a_loop(make)
        in_a_loop(lambda: use(*made))

    await asyncio.to_thread(in_two_loops)


# Messages.


async def test_what_was_sent_before_there_is_a_listener_comes_first():
    host, client = Capnode(index={"log": print}), Capnode()
    remote, remote2 = host.create_remote(), client.create_remote()
    seen: list[int] = []
    host.index = {"log": seen.append}
    for number in range(3):
        remote2.notify(remote2.index.log, number)
        await anyio.lowlevel.checkpoint()  # a message each
    answer = remote2.index.log(3)
    await anyio.lowlevel.checkpoint()
    remote2.add_remote_message_listener(remote.receive_message)
    remote.add_remote_message_listener(remote2.receive_message)
    await answer
    assert seen == [0, 1, 2, 3]
    del answer
    await check_peers_quiet(remote, remote2)
    await remote.aclose()
    await remote2.wait_closed()


async def test_what_nobody_carries_is_bounded():
    remote = Capnode().create_remote(limits=Limits(max_unsent=10_000, close_timeout=100))
    for _ in range(10):
        remote.notify(remote.index.write, bytes(1000))
    with pytest.raises(capnode.LimitExceeded, match="max_unsent"):
        remote.notify(remote.index.write, b"")
    await remote.aclose()  # at once: nobody is there to tell


async def test_a_message_is_bytes_of_whole_items_and_each_listener_gets_all():
    copies: list[bytes] = []
    host = Capnode(index={"transform": transform})
    async with joined(host) as (_, remote2):
        await remote2.ping()
        remote2.add_remote_message_listener(copies.append)
        remote2.add_remote_message_listener(copies.append)  # the same: called once
        assert await remote2.index.transform("beep") == "BOOP"
        assert [type(copy) for copy in copies] == [bytes]
        assert copies[0][0] - 0x40 + 1 == len(copies[0])

        remote2.remove_remote_message_listener(copies.append)
        remote2.remove_remote_message_listener(copies.append)  # it is not there: nothing happens
        assert await remote2.index.transform("beep") == "BOOP"
        assert len(copies) == 1


async def test_a_flood_of_messages_leaves_the_loop_its_turns():
    frames: list[bytes] = []
    seen: list[None] = []

    def again():
        seen.append(None)
        if not enough.is_set() and len(seen) < 10_000:
            remote.receive_message(frames[0])  # of a one-way call: it takes no id

    enough = anyio.Event()
    async with joined(Capnode(index={"again": again})) as (remote, remote2):
        await remote2.ping()
        remote2.add_remote_message_listener(frames.append)
        remote2.notify(remote2.index.again)
        while len(seen) < 3:
            await anyio.lowlevel.checkpoint()
        enough.set()
        assert len(seen) < 10_000
        remote2.remove_remote_message_listener(frames.append)


async def test_several_items_may_come_in_one_message():
    host, client = Capnode(index={"transform": transform}), Capnode()
    remote, remote2 = host.create_remote(), client.create_remote()
    remote.add_remote_message_listener(remote2.receive_message)
    waiting: list[bytes] = []
    remote2.add_remote_message_listener(waiting.append)
    while not waiting:
        await anyio.lowlevel.checkpoint()
    answer = remote2.index.transform("beep")
    while len(waiting) < 2:
        await anyio.lowlevel.checkpoint()
    buffer = bytearray(b"".join(waiting))
    remote.receive_message(buffer)
    buffer.clear()  # it was copied
    remote2.remove_remote_message_listener(waiting.append)
    remote2.add_remote_message_listener(remote.receive_message)
    assert await answer == "BOOP"
    del answer
    await check_peers_quiet(remote, remote2)
    await remote.aclose()
    await remote2.wait_closed()


class Gate:
    """An async listener that lets nothing through until it is opened."""

    def __init__(self, receive: Callable[[Any], None]) -> None:
        self._receive = receive
        self._opened = anyio.Event()
        self.waiting = anyio.Event()

    async def send(self, message: bytes) -> None:
        self.waiting.set()
        await self._opened.wait()
        self._receive(message)

    def open(self) -> None:
        self._opened.set()


@contextlib.asynccontextmanager
async def joined_by_a_gate(
    host: Capnode, index: dict[str, Any]
) -> AsyncIterator[tuple[Remote, Remote, Gate]]:
    """As `joined`; what the second one sends waits at a gate, and much is from 50 kB on."""
    limits = Limits(low_water=10_000, high_water=50_000, close_timeout=100)
    remote, remote2 = host.create_remote(), Capnode(index=index).create_remote(limits=limits)
    gate = Gate(remote.receive_message)
    remote2.add_remote_message_listener(gate.send)
    remote.add_remote_message_listener(remote2.receive_message)
    yield remote, remote2, gate
    await check_peers_quiet(remote, remote2)
    await remote2.aclose()
    await remote.wait_closed()


async def test_an_async_listener_is_awaited_before_the_next_message():
    seen: list[int] = []
    host = Capnode(index={"log": lambda data: seen.append(len(data))})
    async with joined_by_a_gate(host, {}) as (_, remote2, gate):
        for size in range(100_000, 100_003):
            remote2.notify(remote2.index.log, bytes(size))
        await gate.waiting.wait()
        assert remote2.stats().unsent_bytes > 300_000

        async with anyio.create_task_group() as group:

            async def drain() -> None:
                await remote2.drain()
                drained.append(remote2.stats().unsent_bytes)

            drained: list[int] = []
            group.start_soon(drain)
            await anyio.lowlevel.checkpoint()
            assert drained == []
            gate.open()
        assert drained[0] <= 10_000
        await remote2.ping()
        assert seen == [100_000, 100_001, 100_002]


async def test_calls_wait_while_much_is_unsent_and_let_go_of_what_they_held():
    started = []
    freed = anyio.Event()
    host = Capnode(index={"log": len})

    def callback() -> None:
        pass

    weakref.finalize(callback, freed.set)
    index = {"take": lambda function: started.append(type(function))}
    async with joined_by_a_gate(host, index) as (remote, remote2, gate):
        remote2.notify(remote2.index.log, bytes(100_000))
        await gate.waiting.wait()
        remote.notify(remote.index.take, callback)
        del callback
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert started == []
        gate.open()
        await freed.wait()  # nothing else is said that it could go with
        assert started == [capnode.Stub]


async def test_a_listener_that_raises_has_lost_the_connection():
    async def refuse(message):
        raise OSError("no route")

    def raise_at_once(message):
        raise OSError("no route")

    for listener in refuse, raise_at_once:
        remote = Capnode().create_remote()
        remote.add_remote_message_listener(listener)
        with pytest.raises(capnode.PeerLost, match="no route") as caught:
            await remote.request_index()
        assert isinstance(caught.value.__cause__, OSError)
        await remote.wait_closed()


async def test_messages_come_in_from_any_thread():
    host = Capnode(index={"transform": transform})
    remote, remote2 = host.create_remote(), Capnode().create_remote()
    threads = []

    def in_a_thread(receive: Callable[[Any], None]) -> Callable[[Any], None]:
        def carry(message: Any) -> None:
            thread = threading.Thread(target=receive, args=[message])
            threads.append(thread)
            thread.start()
            thread.join()  # in order

        return carry

    remote.add_remote_message_listener(in_a_thread(remote2.receive_message))
    remote2.add_remote_message_listener(in_a_thread(remote.receive_message))
    assert await remote2.index.transform("beep") == "BOOP"
    assert threads
    await check_peers_quiet(remote, remote2)
    await remote.aclose()
    await remote2.wait_closed()


# What a transport may do wrong.


async def test_what_is_no_message_is_refused_where_it_is_given():
    remote = Capnode().create_remote()
    with pytest.raises(TypeError, match=r"a message is bytes, not str.*serializer="):
        remote.receive_message("text")
    assert not remote.is_closed
    await remote.aclose()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda message: GARBAGE, "hello"),
        (lambda message: message[:-1], "ended in mid-frame.*stream_from_remote"),
        (lambda message: message[:2], "ended in mid-frame"),
        (lambda message: b"{}", "does not open with a hello"),
    ],
    ids=["garbage", "cut", "cut in the magic", "another protocol"],
)
async def test_what_makes_no_sense_ends_the_connection_on_both_sides(spoil, why):
    remote, remote2 = Capnode().create_remote(), Capnode().create_remote()
    remote2.add_remote_message_listener(lambda m: remote.receive_message(spoil(m) if m else m))
    remote.add_remote_message_listener(remote2.receive_message)
    with pytest.raises(capnode.RemoteProtocolError, match=why):
        await remote.request_index()
    with pytest.raises(capnode.LocalProtocolError):
        await remote2.request_index()
    await remote.wait_closed()
    await remote2.wait_closed()
    remote.receive_message(b"what comes after the end is dropped")
    await anyio.lowlevel.checkpoint()


async def test_a_call_that_comes_after_the_end_is_not_run():
    calls: list[bytes] = []
    frames: list[bytes] = []
    remote = Capnode(index={"log": calls.append}).create_remote()
    remote2 = Capnode().create_remote()
    join(remote, remote2)
    await remote2.ping()
    remote2.add_remote_message_listener(frames.append)
    await remote2.index.log(b"in time")
    await check_peers_quiet(remote, remote2)
    await remote.aclose()
    await remote2.wait_closed()
    remote.receive_message(frames[0])
    for _ in range(10):
        await anyio.lowlevel.checkpoint()
    assert calls == [b"in time"]
    assert remote.stats().exports == 0


async def test_a_cut_message_is_no_error_of_a_stream():
    host = Capnode(index={"transform": transform})
    remote, remote2 = host.create_remote(), Capnode().create_remote()
    stream, stream2 = stream_from_remote(remote), stream_from_remote(remote2)

    async def relay(source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream) -> None:
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                await sink.send(await source.receive(1))
                await sink.send(b"")  # is nothing, and not the end
        with pytest.raises(anyio.EndOfStream):  # and it stays so
            await source.receive()
        await sink.send_eof()

    async with anyio.create_task_group() as group:
        group.start_soon(relay, stream, stream2)
        group.start_soon(relay, stream2, stream)
        assert await remote2.index.transform("beep") == "BOOP"
        await check_peers_quiet(remote, remote2)
        await remote2.aclose()
    await remote.wait_closed()
    await stream.aclose()
    await stream2.aclose()


async def test_a_peer_can_be_attached_to_the_stream_of_a_remote():
    host = Capnode(index={"echo": lambda value: value})
    remote = host.create_remote()
    async with capnode.attach(stream_from_remote(remote)) as peer:
        big = bytes(2_000_000)  # more than a stream keeps: its reader is waited for
        assert await peer.index.echo(big) == big
        await check_peers_quiet(peer, remote)
    await remote.wait_closed()


async def test_what_a_stream_does_not_get_rid_of_waits_in_the_connection():
    remote = Capnode().create_remote(limits=Limits(low_water=1000))
    stream = stream_from_remote(remote)
    for _ in range(10):
        remote.notify(remote.index.write, bytes(100_000))
        await anyio.lowlevel.checkpoint()
    assert remote.stats().unsent_bytes > 500_000
    async with anyio.create_task_group() as group:

        async def receive() -> None:
            async for _ in stream:
                pass

        group.start_soon(receive)
        await remote.drain()
        await stream.send_eof()
    await stream.aclose()
    await remote.wait_closed()


async def test_a_stream_that_is_closed_breaks_its_connection_off():
    remote = Capnode().create_remote()
    stream = stream_from_remote(remote)
    greeted = anyio.Event()
    async with anyio.create_task_group() as group:

        async def receive() -> None:
            with contextlib.suppress(anyio.ClosedResourceError):
                while await stream.receive():
                    greeted.set()

        group.start_soon(receive)
        await greeted.wait()
        await stream.aclose()
        await stream.aclose()
    with pytest.raises(capnode.PeerLost):
        await remote.request_index()
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send(b"late")
    await remote.wait_closed()


async def test_a_stream_whose_connection_is_over_takes_nothing_more():
    remote = Capnode().create_remote()
    stream = stream_from_remote(remote)
    remote.receive_message(b"")
    await remote.wait_closed()
    with pytest.raises(anyio.BrokenResourceError):
        await stream.send(b"late")
    await stream.aclose()


async def test_a_pump_ends_with_the_stream_that_breaks():
    class Broken(anyio.abc.ByteStream):
        closed = False

        async def receive(self, max_bytes: int = 65536) -> bytes:
            raise anyio.BrokenResourceError

        async def send(self, item: bytes) -> None:
            await anyio.lowlevel.checkpoint()

        async def send_eof(self) -> None:
            await anyio.lowlevel.checkpoint()

        async def aclose(self) -> None:
            self.closed = True

    remote = Capnode().create_remote()
    broken = Broken()
    await stream_from_remote(remote).pump(broken)
    assert broken.closed
    await remote.wait_closed()


# Serializers.


class Base64:
    """For a transport of text."""

    def serialize(self, data: bytes) -> str:
        return base64.b64encode(data).decode()

    def deserialize(self, message: str) -> bytes:
        return base64.b64decode(message, validate=True)


async def test_a_serializer_lets_text_carry_the_messages():
    serializer: capnode.Serializer = Base64()
    host = Capnode(index={"transform": transform}, serializer=serializer)
    texts: list = []
    async with joined(host, Capnode(serializer=serializer)) as (remote, remote2):
        remote.add_remote_message_listener(texts.append)
        assert await remote2.index.transform("beep") == "BOOP"
    assert [type(text) for text in texts] == [str] * len(texts)
    assert texts[-1] == ""  # the end of the stream


async def test_what_a_serializer_cannot_read_ends_the_connection():
    remote = Capnode(serializer=Base64()).create_remote()
    remote.receive_message("?!")
    with pytest.raises(capnode.RemoteProtocolError, match="the serializer cannot read") as caught:
        await remote.request_index()
    assert isinstance(caught.value.__cause__, ValueError)
    await remote.wait_closed()


def test_a_serializer_has_both_directions():
    class Half:
        serialize = staticmethod(bytes)

    with pytest.raises(TypeError, match=r"serializer= takes an object with .* not a Half"):
        Capnode(serializer=Half())  # type: ignore[arg-type]


# The life of a remote.


async def test_clear_remote_ends_one_connection_and_leaves_the_others():
    started, release = anyio.Event(), anyio.Event()

    async def slow():
        started.set()
        await release.wait()
        return "done"

    host = Capnode(index={"slow": slow, "transform": transform})
    remote, remote2 = host.create_remote(), Capnode().create_remote()
    join(remote, remote2)
    transport = Connection()
    remote.add_remote_message_listener(partial(print, transport, file=io.StringIO()))
    gone = weakref.ref(transport)
    del transport
    async with joined(host) as (_, other), anyio.create_task_group() as group:

        async def call() -> None:
            assert await remote2.index.slow() == "done"

        group.start_soon(call)
        await started.wait()
        host.clear_remote(remote)
        release.set()  # a running handler finishes, and its answer is sent
        await remote.wait_closed()
        await remote2.wait_closed()
        with pytest.raises(capnode.PeerClosed):
            await remote.request_index()
        with pytest.raises(capnode.PeerLost, match="said bye"):
            await remote2.index.transform("beep")
        host.clear_remote(remote)  # twice is once
        assert gone() is None  # of the transport nothing is kept
        assert await other.index.transform("beep") == "BOOP"
    assert host.registered_method_count == 0


async def test_a_time_limit_on_a_remote_ends_with_it():
    async def wait():
        await anyio.sleep_forever()

    remote, remote2 = Capnode(index={"wait": wait}).create_remote(), Capnode().create_remote()
    join(remote, remote2)
    answer = remote2.with_options(remote2.index, timeout=1000).wait()
    with pytest.raises(TimeoutError):
        await remote2.with_options(remote2.index, timeout=0.01).wait()
    await remote2.aclose()
    with pytest.raises(capnode.PeerClosed):
        await answer
    await remote.wait_closed()


async def test_methods_are_counted_over_all_connections_of_a_host():
    class Account(capnode.Target):
        pass

    shared, account = transform, Account()
    host = Capnode(index={"get": lambda *which: [(shared, account)[n] for n in which]})
    async with joined(host) as (_, one), joined(host) as (_, two):
        stubs = [*await one.index.get(0, 1), *await two.index.get(0, 0)]
        assert host.registered_method_count == 2
        stubs.pop(1).dealloc()
        await one.ping()
        assert host.registered_method_count == 1
        stubs.pop(0).dealloc()
        await one.ping()
        assert host.registered_method_count == 1  # the other client holds it
        stubs.clear()


async def test_a_remote_that_everybody_drops_is_gone():
    host = Capnode(index={"transform": transform})
    remote, remote2 = host.create_remote(), Capnode().create_remote()
    join(remote, remote2)
    assert await remote2.index.transform("beep") == "BOOP"
    await check_peers_quiet(remote, remote2)
    gone = [weakref.ref(remote), weakref.ref(remote2)]
    del remote, remote2
    while any(ref() is not None for ref in gone):  # what they had on their minds takes a while
        gc.collect()
        await anyio.lowlevel.checkpoint()
    assert len(host.sessions) == 0


class Hooked(capnode.Target):
    """Keeps what it is given, and wants to know when nobody holds it any more."""

    def __init__(self, log: list[object]) -> None:
        self._log = log
        self._kept: list[Any] = []

    def keep(self, value: Any) -> None:
        self._kept.append(value)

    def _released(self) -> None:
        self._log.append(self)


async def abandon(host: Capnode, value: Any) -> weakref.ref[Remote]:
    """A connection that nobody closes, which holds a `Hooked`, which holds `value`."""
    remote, remote2 = host.create_remote(), Capnode().create_remote()
    join(remote, remote2)
    hooked = await remote2.index["get"]()
    await hooked.keep(value)
    vars(remote2)["held"] = hooked  # goes with it
    return weakref.ref(remote)


@pytest.mark.parametrize("lives_on", [False, True])
async def test_a_remote_that_everybody_drops_lets_go_of_what_wants_to_know(lives_on):
    log: list[Any] = []
    made: list[Hooked] = []

    def get() -> Hooked:
        hooked = Hooked(log)
        if lives_on:
            made.append(hooked)
        return hooked

    host = Capnode({"get": get})
    # A stub that it holds keeps the connection, if it is held itself.
    gone = await abandon(host, None if lives_on else transform)
    while not log:
        gc.collect()
        await anyio.lowlevel.checkpoint()
    assert len(log) == 1
    log.pop()._kept.clear()
    while gone() is not None or len(host.sessions):
        gc.collect()
        await anyio.lowlevel.checkpoint()
    assert len(holders) == 0


async def test_who_holds_a_target_does_not_keep_a_connection_that_everybody_drops():
    """Its index is held by two; the other one is still there."""
    log: list[object] = []
    index = Hooked(log)
    host = Capnode(index)
    remote, remote2 = host.create_remote(), Capnode().create_remote()
    join(remote, remote2)
    await remote2.index.keep(1)
    dropped, dropped2 = host.create_remote(), Capnode().create_remote()
    join(dropped, dropped2)
    await dropped2.index.keep(2)
    gone = weakref.ref(dropped)
    del dropped, dropped2
    while gone() is not None:
        gc.collect()
        await anyio.lowlevel.checkpoint()
    assert log == []
    await remote2.aclose()
    await remote.wait_closed()
    assert log == [index]
    assert len(holders) == 0


@pytest.mark.drivers("asyncio")
def test_what_outlives_its_event_loop_is_held_by_nobody():
    """And no hook runs, as there is nothing to run it in."""
    log: list[object] = []
    index = Hooked(log)

    async def main() -> None:
        host = Capnode({"get": lambda: index})
        await abandon(host, None)

    gc.disable()  # not before the loop is gone
    try:
        asyncio.run(main())
        assert len(holders) == 1
        gc.collect()
    finally:
        gc.enable()
    assert len(holders) == 0
    assert log == []


async def test_a_remote_is_a_peer_that_names_itself():
    host = Capnode(index={"transform": transform}, nickname="server")
    async with joined(host, nickname="browser") as (remote, remote2):
        await remote2.ping()
        assert repr(remote) == "<Remote browser: 1 imports, 1 exports>"
        assert repr(remote2) == "<Remote server: 1 imports, 1 exports>"
        assert isinstance(remote, capnode.Peer)


def test_a_remote_needs_an_event_loop():
    with pytest.raises(capnode.CapnodeError, match=r"no event loop is running.*async def main"):
        Capnode().create_remote()


async def test_what_is_no_remote_is_refused():
    host = Capnode()
    with pytest.raises(TypeError, match=r"request_index\(\) takes a connection, not a NoneType"):
        await host.request_index(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"clear_remote\(\) takes a connection, not a str"):
        host.clear_remote("remote")  # type: ignore[arg-type]
