"""`ws:` urls: who may connect, what crosses, and what a WebSocket can do to us.

The peers' own tests run over the road "websocket" as over any other. Here the other end is mostly
the client or server of the websockets library, as a program that is no capnode peer would use it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Limits, PeerLost, RemoteProtocolError
from capnode_py._messages import BYE, Hello
from capnode_py.codec.cbor import CborCodec

websockets = pytest.importorskip("websockets", reason="the extra `web` is not installed")

API = "ws://127.0.0.1:0/api"
DIALECTS = pytest.mark.parametrize("dialect", ["cbor", "capnweb"])


class Api(capnode.Target):
    def __init__(self) -> None:
        self.release = anyio.Event()

    def add(self, a: int, b: int) -> int:
        return a + b

    async def call(self, function: Any, value: Any) -> Any:
        return await function(value)

    async def wait(self) -> str:
        await self.release.wait()
        return "done"

    def numbers(self) -> list[int]:
        return [1, 2, 3]

    def echo(self, value: Any) -> Any:
        return value


@contextlib.asynccontextmanager
async def served(**options: Any) -> AsyncIterator[capnode.Listener]:
    options.setdefault("index", Api())
    async with capnode.listen(API, **options) as listener:
        yield listener


def held(peer: capnode.Peer) -> tuple[int, int]:
    stats = peer.stats()
    return stats.imports, stats.exports


@contextlib.asynccontextmanager
async def raw(url: str, **options: Any) -> AsyncIterator[Any]:
    """A client of the library, on asyncio."""
    from websockets.asyncio.client import connect

    async with connect(url, proxy=None, **options) as client:
        yield client


def socket_to(url: str) -> socket.socket:
    host, _, port = url.removeprefix("ws://").partition("/")[0].rpartition(":")
    return socket.create_connection((host, int(port)))


async def until_closed(client: socket.socket) -> bytes:
    client.setblocking(False)
    said = b""
    while True:
        await anyio.wait_readable(client)
        with contextlib.suppress(ConnectionResetError):
            data = client.recv(65536)
            if data:
                said += data
                continue
        return said


# Peers.


@DIALECTS
async def test_two_peers_over_a_web_socket(driver, dialect):
    async with served(dialect=dialect) as listener:
        assert listener.url.startswith("ws://127.0.0.1:")
        assert listener.url.endswith("/api")
        async with capnode.connect(listener.url, dialect=dialect) as peer:
            assert await peer.index.add(1, 2) == 3
            assert await peer.index.call(lambda value: value * 2, 4) == 8
            assert await peer.index.numbers().map(lambda n: peer.index.add(n, 1)) == [2, 3, 4]
            text = "line one\nline two \u2028 é"
            assert await peer.index.echo([text, "x" * 200_000]) == [text, "x" * 200_000]
            (served_peer,) = listener.peers
            with anyio.fail_after(10):
                while {held(peer), held(served_peer)} != {(1, 1)}:
                    await anyio.lowlevel.checkpoint()


@DIALECTS
async def test_a_peer_that_closes_lets_running_calls_finish(driver, dialect):
    api = Api()
    async with served(index=api, dialect=dialect) as listener:
        peer = await capnode.connect(listener.url, dialect=dialect)
        outcome: list[Any] = []

        async def ask() -> None:
            with contextlib.suppress(PeerLost):
                outcome.append(await peer.index.wait())

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await peer.ping()
            (far,) = listener.peers
            api.release.set()
            await far.aclose()
        assert outcome == ["done"]
        await peer.wait_closed()


@DIALECTS
async def test_a_closed_listener_closes_its_peers(driver, dialect):
    async with served(dialect=dialect) as listener:
        peer = await capnode.connect(listener.url, dialect=dialect)
        await peer.ping()
    await peer.wait_closed()
    with pytest.raises(PeerLost, match="closed"):
        await peer.index.add(1, 2)


async def test_a_listener_that_closes_ends_handshakes_that_go_on(driver):
    with contextlib.ExitStack() as stack:
        async with served() as listener:
            client = stack.enter_context(socket_to(listener.url))
            client.sendall(b"GET /api HTTP/1.1\r\nHost: x\r\n")
            with anyio.fail_after(10):
                while not listener._handshakes:
                    await anyio.lowlevel.checkpoint()
        assert await until_closed(client) == b""


# Who may connect.


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ((), None, True),
        ((), "http://evil.example", False),
        ((), "http://127.0.0.1:8000", False),
        ((), "null", False),
        (["https://my.site"], "https://my.site", True),
        (["https://my.site"], None, True),
        (["https://my.site"], "https://my.site.evil.example", False),
        (["https://my.site"], "http://my.site", False),
        (["*"], "http://evil.example", True),
    ],
)
@pytest.mark.drivers("asyncio")
async def test_a_web_page_may_connect_only_if_its_origin_was_named(
    driver, origins, origin, allowed
):
    from websockets.exceptions import InvalidStatus

    async with served(dialect="capnweb", origins=origins) as listener:
        if allowed:
            async with raw(listener.url, origin=origin) as client:
                await client.send('["push",["pipeline",0,["add"],[1,2]]]')
                await client.send('["pull",1]')
                assert json.loads(await client.recv()) == ["resolve", 1, 3]
        else:
            with pytest.raises(InvalidStatus, match="403"):
                async with raw(listener.url, origin=origin):
                    pass
            assert listener.peers == set()


@pytest.mark.parametrize(
    ("origins", "error"),
    [
        ("https://my.site", TypeError),
        (7, TypeError),
        (["my.site"], ValueError),
        (["https://my.site/"], ValueError),
        (["https://*.my.site"], ValueError),
        ([b"https://my.site"], ValueError),
    ],
)
def test_what_is_no_origin_is_refused(origins, error):
    with pytest.raises(error, match="origins="):
        _ = capnode.listen(API, origins=origins)


def test_origins_are_for_web_sockets():
    with pytest.raises(TypeError, match="origins= is for ws: urls"):
        _ = capnode.listen("tcp://127.0.0.1:0", origins=["https://my.site"])


@pytest.mark.parametrize("door", [capnode.connect, capnode.listen])
def test_a_web_socket_stays_on_this_machine_unless_insisted(door):
    with pytest.raises(ValueError, match="allow_remote=True"):
        _ = door("ws://192.0.2.1:80/api")
    _ = door("ws://192.0.2.1:80/api", allow_remote=True)  # which opens nothing yet


@pytest.mark.parametrize(
    "url", ["ws:///api", "ws://127.0.0.1:x/", "ws://h/#a", "http://127.0.0.1/"]
)
def test_a_malformed_url_says_what_to_write(url):
    with pytest.raises(ValueError, match=r"ws://127\.0\.0\.1:port/path|Port could not"):
        _ = capnode.connect(url, allow_remote=True)


def test_tls_is_for_a_server_in_front():
    with pytest.raises(ValueError, match="let a web server in front of it speak TLS"):
        _ = capnode.listen("wss://127.0.0.1:0/api")


def test_callers_that_block_are_told():
    for door in (capnode.sync.connect, capnode.sync.listen):
        with pytest.raises(NotImplementedError, match="speaks no WebSocket"):
            door("ws://127.0.0.1:1/api")


@pytest.mark.parametrize("door", [capnode.connect, capnode.listen])
def test_without_the_extra_its_name_is_told(door, monkeypatch):
    monkeypatch.setattr("capnode_py._websocket.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'capnode_py\[web\]'"):
        door(API)


# Handshakes that fail.


async def test_another_path_is_not_served(driver):
    async with served() as listener:
        url = listener.url
        with pytest.raises(PeerLost, match=r"gives no WebSocket here: 404 Not Found \(Nothing is"):
            await capnode.connect(url.replace("/api", "/other"))
        async with capnode.connect(url + "?token=1") as peer:
            assert await peer.index.add(1, 2) == 3


async def test_sides_of_different_dialects_are_told(driver):
    async with served(dialect="capnweb") as listener:
        with pytest.raises(RemoteProtocolError, match="write dialect='capnweb'"):
            await capnode.connect(listener.url)
    async with served() as listener:
        with pytest.raises(PeerLost, match=r"400 Bad Request .*subprotocol"):
            await capnode.connect(listener.url, dialect="capnweb")


async def test_a_server_that_is_none_is_told(driver):
    async with capnode.listen("tcp://127.0.0.1:0") as listener:  # which says hello, in CBOR
        url = listener.url.replace("tcp:", "ws:")
        with pytest.raises(RemoteProtocolError, match="is no WebSocket server"):
            await capnode.connect(url)


async def test_a_server_that_says_nothing_is_given_up(driver):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(PeerLost, match=r"no handshake of a WebSocket within 0.05 s"):
            await capnode.connect(url, limits=Limits(hello_timeout=0.05))


async def test_nobody_listens_there(driver):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        await capnode.connect(f"ws://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 426 "),
        (b"POST /api HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 40"),
        (b"\xd9\xd9\xf7 a hello of CBOR\n\n", b""),
        (b"GET /" + b"x" * 100_000, b"HTTP/1.1 414"),
        (b"GET /api HTTP/1.1\r\n" + b"a: b\r\n" * 10_000, b"HTTP/1.1 4"),
        (b"GET /api HTTP/1.1\r\n", b""),
        (b"", b""),
    ],
    ids=["http", "post", "cbor", "long", "headers", "cut", "nothing"],
)
async def test_what_is_no_handshake_is_refused_and_others_are_served(driver, said, answer):
    async with served(limits=Limits(hello_timeout=0.2)) as listener:
        with socket_to(listener.url) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(said)
            got = await until_closed(client)
        assert got.startswith(answer)
        async with capnode.connect(listener.url) as peer:
            assert await peer.index.add(1, 2) == 3
        assert len(listener.peers) <= 1


# What crosses.


@pytest.mark.drivers("asyncio")
async def test_a_message_of_cap_n_web_is_one_of_text(driver):
    async with served(dialect="capnweb") as listener, raw(listener.url) as client:
        await client.send('["push",\n ["pipeline", 0,["add"],[1,\r\n2]]]')  # white space is JSON's
        await client.send(['["pull"', ",", "1]"])  # in fragments
        assert await client.recv() == '["resolve",1,3]'
        for _ in range(2):
            await client.send('["push",["pipeline",0,["add"],[1,1]]]')
        await client.send('["pull",2]')
        await client.send('["pull",3]')
        got = [json.loads(await client.recv()) for _ in range(2)]
        assert got == [["resolve", 2, 2], ["resolve", 3, 2]]
        await client.close()
        assert client.close_code == 1000


@pytest.mark.drivers("asyncio")
async def test_a_message_of_the_native_dialect_is_binary_and_an_empty_one_is_the_end(driver):
    codec = CborCodec(Limits())
    hello = codec.hello(Hello(versions=[1], session_id=b"1" * 16, secret=b"2" * 16))
    call = codec.call(0, ("add",), [1, 2], {}, lambda ref: ref)
    async with served() as listener:
        async with raw(listener.url, subprotocols=["capnode"]) as client:
            assert client.subprotocol == "capnode"
            assert (await client.recv())[:3] == b"\xd9\xd9\xf7"
            await client.send(hello + codec.frame([call]))
            assert await client.recv() == b"\x45\x81\x83\x05\x01\x03"
            await client.send(codec.frame([codec.control(BYE)]))
            await client.send(b"")
            messages = [message async for message in client]
        assert messages == [b"\x43\x81\x81\x0b", b""]  # its bye, and its end
        assert client.close_code == 1000


@pytest.mark.drivers("asyncio")
async def test_pings_are_answered_while_a_handler_waits(driver):
    api = Api()
    async with served(index=api, dialect="capnweb") as listener, raw(listener.url) as client:
        await client.send('["push",["pipeline",0,["wait"],[]]]')
        await client.send('["pull",1]')
        for _ in range(3):
            pong = await client.ping(b"are you there")
            await pong
        api.release.set()
        assert await client.recv() == '["resolve",1,"done"]'


# What a WebSocket can do to us.


@pytest.mark.parametrize(
    ("dialect", "said", "why"),
    [
        ("capnweb", b"binary", "1003.*a binary message where this dialect has text"),
        ("capnweb", "not json", "is not JSON"),
        ("cbor", "text", "1003.*a message of text where this dialect has binary"),
        ("cbor", b"\xff\xff\xff", "does not open with a hello"),
    ],
)
@pytest.mark.drivers("asyncio")
async def test_a_message_that_makes_no_sense_ends_that_connection(driver, dialect, said, why):
    from websockets.exceptions import ConnectionClosed

    def index_for(peer: capnode.Peer) -> Any:
        peers.append(peer)
        return {"add": lambda a, b: a + b}

    peers: list[capnode.Peer] = []
    names = None if dialect == "capnweb" else ["capnode"]
    async with capnode.listen(API, index_for=index_for, dialect=dialect) as listener:
        other = await capnode.connect(listener.url, dialect=dialect)
        async with raw(listener.url, subprotocols=names) as client:
            await client.send(said)
            heard: list[Any] = []
            with contextlib.suppress(ConnectionClosed):
                while True:
                    heard.append(await client.recv())
            told = f"{heard!r} {client.close_code} {client.close_reason}"
        await peers[1].wait_closed()
        with pytest.raises(capnode.CapnodeError) as caught:
            await peers[1].index.anything()
        assert await other.index.add(1, 2) == 3
        await other.aclose()
    assert re.search(why, told) or re.search(why.rpartition("*")[2], str(caught.value))


@DIALECTS
async def test_a_message_over_the_limit_is_refused_by_its_head(driver, dialect):
    """Nothing is allocated for it: only the head is ever sent."""
    async with served(dialect=dialect, limits=Limits(max_frame=10_000)) as listener:
        with socket_to(listener.url) as client:
            client.sendall(handshake("" if dialect == "capnweb" else "capnode"))
            opcode = 0x81 if dialect == "capnweb" else 0x82
            client.sendall(bytes((opcode, 0xFF)) + (1 << 40).to_bytes(8, "big") + b"mask")
            said = await until_closed(client)
        assert (1009).to_bytes(2, "big") in said
        async with capnode.connect(listener.url, dialect=dialect) as peer:
            assert await peer.index.add(1, 2) == 3


@DIALECTS
async def test_many_small_fragments_are_bounded_as_one_message(driver, dialect):
    async with served(dialect=dialect, limits=Limits(max_frame=10_000)) as listener:
        with socket_to(listener.url) as client:
            client.sendall(handshake("" if dialect == "capnweb" else "capnode"))
            first = 0x01 if dialect == "capnweb" else 0x02
            fragment = b"\xfe" + (1000).to_bytes(2, "big") + b"\0\0\0\0" + b"[" * 1000
            with contextlib.suppress(ConnectionError):
                client.sendall(bytes((first,)) + fragment)
                for _ in range(20):
                    client.sendall(b"\x00" + fragment)
            said = await until_closed(client)
        assert (1009).to_bytes(2, "big") in said or b"abort" in said


def handshake(subprotocol: str) -> bytes:
    lines = [
        "GET /api HTTP/1.1",
        "Host: x",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
    ]
    if subprotocol:
        lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
    return "\r\n".join([*lines, "", ""]).encode()


def frame(opcode: int, data: bytes) -> bytes:
    """A small frame of a client; the mask is zero."""
    return bytes((opcode, 0x80 | len(data))) + b"\0\0\0\0" + data


@pytest.mark.parametrize("how", ["lost", "closed"])
@DIALECTS
async def test_a_web_socket_that_ends_in_mid_message_loses_the_peer(driver, dialect, how):
    peers: list[capnode.Peer] = []

    def index_for(peer: capnode.Peer) -> Any:
        peers.append(peer)
        return {}

    async with capnode.listen(API, index_for=index_for, dialect=dialect) as listener:
        with socket_to(listener.url) as client:
            client.sendall(handshake("" if dialect == "capnweb" else "capnode"))
            client.sendall(frame(0x01 if dialect == "capnweb" else 0x02, b'["pu'))
            if how == "closed":
                client.sendall(frame(0x88, b"\x03\xe8"))
            else:
                client.shutdown(socket.SHUT_WR)
            await until_closed(client)
        (peer,) = peers
        await peer.wait_closed()
        with pytest.raises(capnode.CapnodeError) as caught:
            await peer.index.anything()
        assert isinstance(caught.value, (PeerLost, RemoteProtocolError))


async def test_who_pings_and_does_not_read_is_ended(driver):
    """The pongs are not kept for ever; and reading does not wait for them."""
    async with served(dialect="capnweb") as listener:
        with socket_to(listener.url) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(handshake(""))
            client.setblocking(False)
            pings = frame(0x89, b"x" * 125) * 100
            with anyio.fail_after(20), contextlib.suppress(ConnectionError):
                while True:
                    await anyio.wait_writable(client)
                    with contextlib.suppress(BlockingIOError):
                        client.send(pings)
        async with capnode.connect(listener.url, dialect="capnweb") as peer:
            assert await peer.index.add(1, 2) == 3


@pytest.mark.parametrize("code", [1000, 1001, 1008, 3000])
@pytest.mark.drivers("asyncio")
async def test_how_the_other_side_closes_is_told(driver, code):
    async with served(dialect="capnweb") as listener:
        async with raw(listener.url) as client:
            await client.send('["push",["pipeline",0,["numbers"],[]]]')
            with anyio.fail_after(10):
                while not listener.peers:
                    await anyio.lowlevel.checkpoint()
            (peer,) = listener.peers
            await client.close(code, "over")
            await peer.wait_closed()
        expected = (
            "closed the connection" if code in (1000, 1001) else rf"closed with .*{code}.*over"
        )
        with pytest.raises(PeerLost, match=expected):
            await peer.index.anything()


async def test_what_may_be_secret_in_a_url_is_not_shown(driver):
    async with served(dialect="capnweb") as listener:
        url = listener.url.replace("127.0.0.1", "ann:password@127.0.0.1") + "?token=abc"
        async with capnode.connect(url, dialect="capnweb") as peer:
            assert await peer.index.add(1, 2) == 3
            assert peer.nickname == listener.url
        with pytest.raises(PeerLost) as caught:
            await capnode.connect(url.replace("/api", "/other"), dialect="capnweb")
        assert "password" not in str(caught.value)
        assert "token" not in str(caught.value)


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Any:
    """A certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run(
            [*command, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl makes no certificate here")
    return files


@pytest.mark.drivers("asyncio")
async def test_a_server_behind_tls(driver, certificate, monkeypatch):
    """Such as a Cap'n Web server anywhere on the web. One that cannot be trusted is refused."""
    from websockets.asyncio.server import serve

    async def answer(connection: Any) -> None:
        async for message in connection:
            if json.loads(message)[0] == "pull":
                await connection.send(json.dumps(["resolve", json.loads(message)[1], "hello"]))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with serve(answer, "127.0.0.1", 0, ssl=context) as server:
        url = f"wss://localhost:{server.sockets[0].getsockname()[1]}/api"
        with pytest.raises(OSError, match="certificate"):
            await capnode.connect(url, dialect="capnweb")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        async with capnode.connect(url, dialect="capnweb") as peer:
            assert await peer.index.anything() == "hello"
