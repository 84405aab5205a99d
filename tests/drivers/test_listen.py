"""`listen` and `connect`: unix sockets and tcp on this machine."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Limits
from capnode_py._messages import Hello
from capnode_py.codec.cbor import CborCodec

TCP = "tcp://127.0.0.1:0"


@pytest.fixture(params=["unix", "tcp"])
def url(request, tmp_path):
    """Where to listen."""
    return TCP if request.param == "tcp" else f"unix:{tmp_path}/s"


def _socket_to(url: str) -> socket.socket:
    """A plain connection to a listener, of someone who is no peer."""
    if url.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(url.removeprefix("unix:"))
    else:
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        client = socket.create_connection((host, int(port)))
    return client


async def _closed_by_them(client: socket.socket) -> bytes:
    """What they say until they close."""
    client.setblocking(False)
    said = b""
    while True:
        await anyio.wait_readable(client)
        try:
            data = client.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            return said
        said += data


async def test_each_who_connects_is_served(driver, url):
    async with capnode.listen(url, index={"add": lambda a, b: a + b}) as listener:
        assert listener.peers == set()
        async with capnode.connect(listener.url) as one, capnode.connect(listener.url) as other:
            assert await one.index.add(1, 2) == 3
            assert await other.index.add(3, 4) == 7
            assert len(listener.peers) == 2
            assert "2 peers" in repr(listener)


async def test_a_listener_calls_its_clients(driver, url):
    met = anyio.Event()

    async def hello() -> str:
        met.set()
        return "hello " + await capnode.current_peer().index.name()

    async with (
        capnode.listen(url, index={"hello": hello}) as listener,
        capnode.connect(listener.url, index={"name": lambda: "Ann"}) as peer,
    ):
        assert await peer.index.hello() == "hello Ann"


async def test_index_for_makes_the_index_of_each_connection(driver, url):
    made: list[capnode.Peer] = []

    def index_for(peer: capnode.Peer) -> dict[str, Any]:
        made.append(peer)
        number = len(made)
        return {"number": lambda: number, "is_mine": lambda: capnode.current_peer() is peer}

    async with capnode.listen(url, index_for=index_for) as listener:
        for number in (1, 2):
            async with capnode.connect(listener.url) as peer:
                assert await peer.index.number() == number
                assert await peer.index.is_mine()
    assert made[0] is not made[1]
    made.clear()


async def test_an_index_for_that_raises_refuses_that_client_alone(driver, url, caplog):
    calls: list[int] = []

    def index_for(peer: capnode.Peer) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise LookupError("unknown client")
        if len(calls) == 2:
            return object()
        return {"one": lambda: 1}

    async with capnode.listen(url, index_for=index_for) as listener:
        for _ in range(2):
            with pytest.raises(capnode.CapnodeError):
                await capnode.connect(listener.url, limits=Limits(close_timeout=0.02))
        async with capnode.connect(listener.url) as peer:
            assert await peer.index.one() == 1
    assert any("unknown client" in str(record.exc_info) for record in caplog.records)


async def test_a_host_shares_its_index_with_all_its_connections(driver, url):
    host = capnode.Capnode({"n": 1}, nickname="the server")
    async with (
        capnode.listen(url, host=host) as listener,
        capnode.connect(listener.url) as one,
        capnode.connect(listener.url) as other,
    ):
        host.index["n"] = 2
        assert (await one.index.n, await other.index.n) == (2, 2)
        assert one.info is not None
        assert one.info.application == "the server"


async def test_many_clients_at_once(driver, url):
    async with capnode.listen(url, index={"double": lambda n: n * 2}) as listener:

        async def client(n: int) -> None:
            async with capnode.connect(listener.url) as peer:
                assert await peer.index.double(n) == n * 2

        async with anyio.create_task_group() as group:
            for n in range(50):
                group.start_soon(client, n)
        while listener.peers:
            await anyio.lowlevel.checkpoint()


async def test_closing_the_listener_closes_its_connections(driver, url):
    listener = await capnode.listen(url, index={"one": lambda: 1})
    one, other = await capnode.connect(listener.url), await capnode.connect(listener.url)
    assert await one.index.one() == 1
    async with anyio.create_task_group() as group:
        group.start_soon(listener.wait_closed)
        await listener.aclose()
    await listener.aclose()
    await one.wait_closed()
    with pytest.raises(capnode.PeerLost):
        await other.index.one()
    await other.aclose()
    with pytest.raises(OSError, match=r"refused|No such file"):
        await capnode.connect(listener.url)


async def test_a_listener_can_be_closed_from_a_handler(driver, url):
    """A service that is told to stop by one of its clients."""
    limits = Limits(close_timeout=0.02)
    listener = await capnode.listen(url, index={}, limits=limits)

    async def stop() -> None:
        await listener.aclose()

    listener._settings.host.index["stop"] = stop
    async with capnode.connect(listener.url, limits=limits) as peer:
        with pytest.raises(capnode.PeerLost):
            await peer.index.stop()
        await listener.wait_closed()


async def test_a_client_that_goes_is_forgotten(driver, url):
    async with capnode.listen(url, index={"one": lambda: 1}) as listener:
        async with capnode.connect(listener.url) as peer:
            assert await peer.index.one() == 1
        client = _socket_to(listener.url)
        client.close()
        while listener.peers:
            await anyio.lowlevel.checkpoint()


async def test_garbage_is_refused_and_the_others_are_served(driver, url):
    async with capnode.listen(url, index={"one": lambda: 1}) as listener:
        async with capnode.connect(listener.url) as peer:
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, b"\x16\x03\x01\x02\x00"):
                with _socket_to(listener.url) as client:
                    client.sendall(garbage)
                    said = await _closed_by_them(client)
                assert said.startswith(b"\xd9\xd9\xf7")  # our hello, and then why
            assert await peer.index.one() == 1
        while listener.peers:
            await anyio.lowlevel.checkpoint()


async def test_a_client_that_says_nothing_is_let_go(driver, url):
    limits = Limits(hello_timeout=0.02, close_timeout=0.01)
    async with capnode.listen(url, index={}, limits=limits) as listener:
        with _socket_to(listener.url) as client:
            await _closed_by_them(client)
        while listener.peers:
            await anyio.lowlevel.checkpoint()


async def test_closing_a_listener_with_a_client_that_says_nothing(driver, url):
    limits = Limits(close_timeout=0.02)
    async with capnode.listen(url, index={}, limits=limits) as listener:
        client = _socket_to(listener.url)
        while not listener.peers:
            await anyio.lowlevel.checkpoint()
    client.close()


async def test_a_closing_listener_says_goodbye_to_all_at_once(driver, url):
    """Clients that leave only when all have heard it: one after the other would take for ever."""
    heard = anyio.Event()
    leaving: list[socket.socket] = []

    async def client(listener: capnode.Listener) -> None:
        with _socket_to(listener.url) as sock:
            sock.sendall(CborCodec(Limits()).hello(Hello(versions=[1])))
            connected.append(sock)
            await _closed_by_them(sock)
            leaving.append(sock)
            if len(leaving) == 3:
                heard.set()
            await heard.wait()

    connected: list[socket.socket] = []
    listener = await capnode.listen(url, index={}, limits=Limits(close_timeout=60))
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(client, listener)
        while len(connected) < 3 or sum(peer.info is not None for peer in listener.peers) < 3:
            await anyio.lowlevel.checkpoint()
        await listener.aclose()


# Unix sockets.


async def test_a_unix_socket_is_for_this_user_only_and_removed_at_the_end(driver, tmp_path):
    path = tmp_path / "s"
    async with capnode.listen(f"unix:{path}") as listener:
        assert listener.url == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_stale_socket_file_is_replaced(driver, tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    async with (
        capnode.listen(f"unix:{path}", index={"one": lambda: 1}),
        capnode.connect(f"unix:{path}") as peer,
    ):
        assert await peer.index.one() == 1


async def test_an_address_in_use_is_refused(driver, url):
    async with capnode.listen(url, index={"one": lambda: 1}) as listener:
        with pytest.raises(OSError, match="in use") as caught:
            await capnode.listen(listener.url)
        assert caught.value.errno == errno.EADDRINUSE
        async with capnode.connect(listener.url) as peer:  # and the first one still serves
            assert await peer.index.one() == 1


async def test_a_file_that_is_no_socket_is_left_alone(driver, tmp_path):
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        await capnode.listen(f"unix:{path}")
    assert path.read_text() == "precious"


async def test_a_socket_file_that_another_has_taken_over_is_left_alone(driver, tmp_path):
    path = tmp_path / "s"
    async with capnode.listen(f"unix:{path}"):
        os.unlink(path)
        path.write_text("another's")
    assert path.read_text() == "another's"


async def test_a_relative_working_directory_does_not_matter(driver, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    async with capnode.listen(f"unix:{tmp_path}/s"):
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert not (tmp_path / "s").exists()


async def test_nobody_listening_is_told_with_the_address(driver, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        await capnode.connect(f"unix:{tmp_path}/nobody")
    assert f"{tmp_path}/nobody" in "".join(caught.value.__notes__)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await capnode.connect(f"tcp://127.0.0.1:{port}")


async def test_a_cancelled_connect_leaves_nothing(driver, tmp_path):
    """The other side accepts, and says no hello."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/s")
        silent.listen()
        with anyio.move_on_after(0.005):
            await capnode.connect(f"unix:{tmp_path}/s", limits=Limits(close_timeout=0.01))
            pytest.fail("no hello was said")


# Urls.


async def test_tcp_takes_a_free_port_and_says_which(driver):
    async with capnode.listen("tcp://localhost:0", index={"one": lambda: 1}) as listener:
        assert not listener.url.endswith(":0")
        async with capnode.connect(listener.url) as peer:
            assert peer.nickname == listener.url
            assert await peer.index.one() == 1


async def test_ipv6_loopback(driver):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with (
        capnode.listen("tcp://[::1]:0", index={"one": lambda: 1}) as listener,
        capnode.connect(listener.url) as peer,
    ):
        assert await peer.index.one() == 1


@pytest.mark.parametrize(
    "url",
    ["tcp://0.0.0.0:0", "tcp://192.0.2.1:80", "tcp://example.org:80", "tcp://[::]:0", "tcp://:80"],
)
def test_what_is_not_on_this_machine_must_be_asked_for_by_name(url):
    for door in (capnode.connect, capnode.listen):
        with pytest.raises(ValueError, match=r"allow_remote=True|write 'unix:"):
            door(url)


async def test_allow_remote_listens_on_all_addresses(driver):
    async with capnode.listen("tcp://0.0.0.0:0", index={}, allow_remote=True) as listener:
        port = listener.url.rpartition(":")[2]
        async with capnode.connect(f"tcp://127.0.0.1:{port}") as peer:
            assert await peer.request_index() == {}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "unix:relative",
        "unix:",
        "unix://host/path",
        "tcp:127.0.0.1:80",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:http",
        "tcp://127.0.0.1:99999",
        "http://127.0.0.1:80",
        "127.0.0.1:80",
        "/tmp/s",
        b"unix:/s",
        3,
        None,
    ],
)
def test_a_bad_url_teaches(url):
    for door in (capnode.connect, capnode.listen):
        with pytest.raises((TypeError, ValueError), match=r"(?i)'unix:/path|port"):
            door(url)


@pytest.mark.parametrize(
    "bad",
    [
        {"index": {}, "index_for": lambda peer: {}},
        {"host": capnode.Capnode(), "index_for": lambda peer: {}},
        {"index": {}, "host": capnode.Capnode()},
    ],
)
def test_listen_takes_one_index(bad):
    with pytest.raises(TypeError, match="give one of index=, host= and index_for="):
        _ = capnode.listen(TCP, **bad)


def test_index_for_is_a_function():
    with pytest.raises(TypeError, match="index_for"):
        _ = capnode.listen(TCP, index_for={})  # type: ignore[arg-type]
