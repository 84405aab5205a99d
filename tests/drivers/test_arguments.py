"""Wrong arguments of the doors: a clear error that names each, before anything has been started."""

from __future__ import annotations

import io
import math
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import Limits, _addresses, _doors, _spawn, _spawn_sync, _stdio, sync

pytestmark = pytest.mark.usefixtures("nothing_left")

URL = "unix:/nowhere/at/all"
ARGV = [sys.executable, "plugin.py"]


def _loop(door: Callable[..., Any], *first: Any) -> Callable[..., object]:
    """A door of the event loop: nothing can have been started before it is awaited."""
    return lambda **options: door(*first, **options)


DOORS: dict[str, Callable[..., object]] = {
    "spawn": _loop(capnode.spawn, ARGV),
    "supervise": _loop(capnode.supervise, ARGV),
    "connect": _loop(capnode.connect, URL),
    "listen": _loop(capnode.listen, URL),
    "attach": lambda **options: capnode.attach(MemoryStream(), **options),
    "pair": _loop(capnode.pair),
    "stdio": _loop(capnode.stdio),
    "serve_stdio": _loop(capnode.serve_stdio),
    "sync.spawn": _loop(sync.spawn, ARGV),
    "sync.supervise": lambda **options: sync.supervise(ARGV, **options),
    "sync.connect": _loop(sync.connect, URL),
    "sync.listen": _loop(sync.listen, URL),
    "sync.serve": _loop(sync.serve, URL),
    "sync.attach": lambda **options: sync.attach(SimpleNamespace(), **options),
    "sync.pair": _loop(sync.pair),
    "sync.serve_stdio": _loop(sync.serve_stdio),
    "create_remote": lambda **options: capnode.Capnode().create_remote(**options),
}
CHILD = {"spawn", "supervise", "sync.spawn", "sync.supervise"}
PAIR = {"pair", "sync.pair"}
REMOTE = {"create_remote"}
LISTEN = {"listen", "sync.listen", "sync.serve"}
NAMELESS = {*LISTEN, *PAIR}


class MemoryStream:
    """What looks like an anyio byte stream."""

    receive = send = send_eof = aclose = None


def _among(*doors: str) -> set[str]:
    return {*doors, *(f"sync.{door}" for door in doors)} & set(DOORS)


Case = tuple[set[str], str, Any, type[Exception], str]
ALL = set(DOORS)
TYPED = ALL - LISTEN - REMOTE - {"serve_stdio", "sync.serve_stdio"}

CASES: list[Case] = [
    (ALL - REMOTE, "index", 3, TypeError, "an index is a dict, a function or a capnode.Target"),
    (PAIR, "far_index", capnode.Target, TypeError, r"write index=Target\(\)"),
    (ALL - PAIR - REMOTE, "host", {}, TypeError, r"host= takes a capnode.Capnode, not {}: write"),
    (ALL - REMOTE - {"sync.pair"}, "dialect", 3, ValueError, "dialect=3: this version speaks"),
    (ALL - REMOTE - {"sync.pair"}, "dialect", [], ValueError, r"dialect=\[\]: this version"),
    (ALL, "limits", {"max_frame": 9}, TypeError, r"limits= takes capnode.Limits\(...\), not {'max"),
    (PAIR, "far_limits", Limits, TypeError, r"limits= takes capnode.Limits"),
    (ALL - NAMELESS, "nickname", 3, TypeError, "nickname= takes text, not 3"),
    (ALL - NAMELESS, "nickname", None, TypeError, "nickname= takes text, not None"),
    (ALL - PAIR, "tracebacks", "no", TypeError, "tracebacks= takes True or False, not 'no'"),
    (ALL - PAIR, "tracebacks", None, TypeError, "tracebacks= takes True or False, not None"),
    (ALL - PAIR - REMOTE, "application", 3, TypeError, "application= takes a name, not 3"),
    (ALL - PAIR - REMOTE, "application", "a\0", ValueError, "application='a.x00': at most 100"),
    (ALL - PAIR - REMOTE, "versions", "12", TypeError, "versions= takes a list of numbers"),
    (ALL - PAIR - REMOTE, "versions", [1.0], TypeError, "versions= takes whole numbers"),
    (
        _among("connect", "listen", "serve"),
        "allow_remote",
        "no",
        TypeError,
        "allow_remote= takes T",
    ),
    (LISTEN, "index_for", {}, TypeError, "index_for= takes a plain function of the peer, not {}"),
    ({"listen"}, "origins", ["https://a.b"], TypeError, "origins= is for ws: urls"),
    (
        ALL - LISTEN - REMOTE - _among("serve_stdio"),
        "interface",
        "Api",
        TypeError,
        "interface= tak",
    ),
    (PAIR, "far_interface", 3, TypeError, "interface= takes a class"),
    (CHILD, "cwd", 3, TypeError, "cwd= takes the path of a directory, as text or a Path, not 3"),
    (CHILD, "cwd", b"/", TypeError, "cwd= takes the path of a directory, as text or a Path, not b"),
    (CHILD, "cwd", Path("a\0b"), ValueError, r"cwd='a\\x00b': there is a NUL in it"),
    (CHILD, "cwd", "\ud800", ValueError, r"cwd='\\ud800': it cannot be encoded"),
    (CHILD, "env", [("A", "b")], TypeError, "env= takes a dict of strings, not"),
    (CHILD, "env", {"A": b"secret"}, TypeError, r"'A' is of type bytes: write str\(value\), or le"),
    (CHILD, "env", {b"A": "b"}, TypeError, "env= takes strings, and the name b'A' is none"),
    (CHILD, "env", {"A=B": "c"}, ValueError, "env= with the name 'A=B': one has no '='"),
    (CHILD, "env", {"": "c"}, ValueError, "env= with the name '': .* not empty"),
    (CHILD, "env", {"A": "secret\0"}, ValueError, "env=, the value of 'A': there is a NUL in it, "),
    (CHILD, "add_env", {"A\0": "c"}, ValueError, "add_env= with the name 'A.x00': there is a NUL"),
    (CHILD, "add_env", 3, TypeError, "add_env= takes a dict of strings, not 3"),
    (CHILD, "stderr", None, ValueError, "stderr=None: one of 'forward', .* or a function of a"),
    (CHILD, "channel", ["fd"], ValueError, r"channel=\['fd'\]: one of 'stdio', 'pipe', 'fd'"),
    (CHILD, "logs", "INFO", TypeError, "logs= takes True, or a level such as logging.INFO, not 'I"),
    (CHILD, "logs", -1, ValueError, "logs=-1: a level is 0 or more"),
    (_among("spawn"), "cdw", "/", TypeError, r"spawn\(\) got an unexpected keyword argument 'cdw'"),
    (_among("supervise"), "cdw", "/", TypeError, r"supervise\(\) got an unexpected keyword"),
    (_among("supervise"), "restart", 3, ValueError, "restart=3: one of 'on-failure', 'always'"),
    (_among("supervise"), "max_restarts", "5", ValueError, "max_restarts='5': a number, 0 or"),
    (_among("supervise"), "window", -1, ValueError, "window=-1: seconds, 0 or more"),
    (_among("supervise"), "backoff", math.nan, ValueError, "backoff=nan: seconds, 0 or more"),
    (_among("supervise"), "max_backoff", None, ValueError, "max_backoff=None: seconds"),
    (_among("supervise"), "on_start", 3, TypeError, "on_start= takes a function, not 3"),
    (_among("supervise"), "on_death", "log", TypeError, "on_death= takes a function, not 'log'"),
]


def _never(*_args: Any, **_kwargs: Any) -> Any:
    raise AssertionError("something has been started")


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong argument is found before."""
    for module, name in (
        (_spawn, "start"),
        (_spawn_sync, "start"),
        (_doors, "make_peer"),
        (_stdio, "claim"),
        (_addresses, "bound"),
        (_addresses, "connected"),
        (sync, "make"),
    ):
        monkeypatch.setattr(module, name, _never)
    monkeypatch.setattr(subprocess, "Popen", _never)


@pytest.mark.parametrize(
    ("door", "option", "wrong", "error", "told"),
    [
        pytest.param(door, *case, id=f"{door}-{case[0]}-{case[1]!r}".replace("\0", "NUL"))
        for doors, *case in CASES
        for door in sorted(doors)
    ],
)
def test_a_wrong_option_of_a_door_is_told_at_once(door, option, wrong, error, told):
    with pytest.raises(error, match=told) as caught:
        DOORS[door](**{option: wrong})
    assert type(caught.value) is error  # not some other one that inherits from it
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "error", "told"),
    [
        (None, TypeError, "spawn takes a list of the program and its arguments, not None"),
        ({"ls": "-l"}, TypeError, "spawn takes a list .* not {'ls': '-l'}"),
        ({"ls"}, TypeError, "spawn takes a list .* not {'ls'}"),
        (["ls", 3], TypeError, "and 3 is none: write '3'"),
        (["ls", None], TypeError, "and None is none$"),
        (["ls", ["-l"]], TypeError, r"and \['-l'\] is none$"),
        (["l\ud800"], ValueError, r"the argument 'l\\ud800': it cannot be encoded"),
        ([], ValueError, r"write spawn\(\[sys.executable, 'plugin.py'\]\)"),
    ],
)
@pytest.mark.parametrize(
    "door",
    [capnode.spawn, capnode.supervise, sync.spawn, sync.supervise],
    ids=["spawn", "supervise", "sync.spawn", "sync.supervise"],
)
def test_a_wrong_command_is_told_at_once(door, argv, error, told):
    with pytest.raises(error, match=told):
        door(argv)


def test_a_command_with_a_nul_is_told_at_once():
    with pytest.raises(ValueError, match=r"the argument 'a\\x00b': there is a NUL in it"):
        sync.spawn(["ls", "a\0b"])


LONG = f"unix:/{'x' * 200}"


@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        (None, TypeError, "a url is text, not None: write 'unix:/path/to/socket'"),
        (Path("/a/b"), TypeError, r"a url is text, not PosixPath\('/a/b'\): write 'unix:/path"),
        ("/a/b", ValueError, "'/a/b': write 'unix:/path/to/socket'"),
        ("unix:a/b", ValueError, "'unix:a/b': write 'unix:/path/to/socket'"),
        ("unix://a/b", ValueError, "'unix://a/b': write 'unix:/path/to/socket'"),
        ("unix:/a\0b", ValueError, r"'unix:/a\\x00b': there is a NUL in it"),
        (LONG, ValueError, "10[37] bytes at the most, and this one has 201: take a shorter folder"),
        ("tcp://127.0.0.1:x", ValueError, "'tcp://127.0.0.1:x': Port .*; write 'unix:/path"),
        ("tcp://127.0.0.1:99999", ValueError, "'tcp://127.0.0.1:99999': Port out of range"),
        ("tcp://[::1:5", ValueError, r"'tcp://\[::1:5': Invalid IPv6 URL; write"),
        ("tcp://127.0.0.1:5/a", ValueError, "a tcp: url has a host and a port, and nothing else"),
        ("tcp://me:pw@127.0.0.1:5", ValueError, "a host and a port, and nothing else"),
        (f"tcp://{'x' * 70}:5", ValueError, "label .*too long.*; write 'unix:/path"),
    ],
)
@pytest.mark.parametrize(
    "door",
    [capnode.connect, capnode.listen, sync.connect, sync.listen, sync.serve],
    ids=["connect", "listen", "sync.connect", "sync.listen", "sync.serve"],
)
def test_a_wrong_url_is_told_at_once(door, url, error, told):
    with pytest.raises(error, match=told):
        door(url)


def _pair(*files: Any) -> Callable[[], tuple[Any, ...]]:
    return lambda: files


def _listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def _closed() -> socket.socket:
    sock = socket.socket()
    sock.close()
    return sock


def _secure() -> ssl.SSLSocket:
    context = ssl.create_default_context()
    return context.wrap_socket(socket.socket(), server_hostname="localhost")


SOCKETS: list[Any] = [
    (_closed, ValueError, "takes an open socket, and this one is closed"),
    (_listening, ValueError, r"this socket listens: attach what its accept\(\) gives"),
    (lambda: socket.socket(type=socket.SOCK_DGRAM), ValueError, "this socket carries datagrams"),
    (_secure, TypeError, "past the TLS of an ssl.SSLSocket: .* attach an anyio.streams.tls.TLSSt"),
]


@pytest.mark.parametrize(
    ("stream", "error", "told"),
    [
        *SOCKETS,
        (lambda: 3, TypeError, r"an anyio ByteStream, a socket or \(reader, writer\), not a int"),
        (_pair(io.BytesIO(), io.BytesIO()), TypeError, r"\(reader, writer\), not a tuple"),
        (lambda: SimpleNamespace(receive=3, send=4), TypeError, "not a SimpleNamespace"),
    ],
)
def test_what_attach_cannot_use_is_told_at_once(stream, error, told):
    given = stream()
    with pytest.raises(error, match=told):
        _ = capnode.attach(given)
    if hasattr(given, "close"):
        given.close()


@pytest.mark.parametrize(
    ("stream", "error", "told"),
    [
        *SOCKETS,
        (lambda: 3, TypeError, r"such as \(process.stdout, process.stdin\), not a int"),
        (
            _pair(3, 4),
            TypeError,
            r"and 3 is none; an asyncio \(reader, writer\) is for capno",
        ),
        (_pair(io.BytesIO(), io.BytesIO()), ValueError, "two open files with descriptors: fileno"),
    ],
)
def test_what_attach_cannot_use_is_told_at_once_where_callers_block(stream, error, told):
    given = stream()
    with pytest.raises(error, match=told):
        sync.attach(given)
    if hasattr(given, "close"):
        given.close()


def test_the_files_of_a_pair_stay_open_if_one_of_them_is_of_no_use():
    with open(os.devnull, "rb", buffering=0) as file:
        with pytest.raises(ValueError, match="two open files with descriptors"):
            sync.attach((file, io.BytesIO()))
        assert not file.closed


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"max_frame": "1"}, TypeError, "Limits.max_frame= takes a whole number, not '1'"),
        ({"max_depth": 1.5}, TypeError, "Limits.max_depth= takes a whole number, not 1.5"),
        ({"max_exports": True}, TypeError, "Limits.max_exports= takes a whole number, not True"),
        ({"max_kept": 0}, ValueError, "Limits.max_kept=0: must be above 0, and 2..62"),
        ({"max_unsent": 1 << 70}, ValueError, "Limits.max_unsent=.*: must be above 0, and 2..62"),
        ({"hello_timeout": None}, TypeError, "Limits.hello_timeout= is a number of seconds, not N"),
        ({"hello_timeout": math.nan}, ValueError, "Limits.hello_timeout=nan: must be above 0"),
        ({"close_timeout": -1}, ValueError, "Limits.close_timeout=-1: must be above 0"),
        ({"max_send_age": True}, TypeError, "Limits.max_send_age= is a number of seconds, not T"),
        ({"max_frame": 100}, ValueError, "Limits.max_frame=100: at least 512, for a hello"),
        (
            {"low_water": 9, "high_water": 8},
            ValueError,
            "low_water=9, high_water=8: low_water",
        ),
    ],
)
def test_wrong_limits_are_told_at_once(wrong, error, told):
    with pytest.raises(error, match=told):
        Limits(**wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"nickname": 3}, "nickname= takes text, not 3"),
        ({"describe": "no"}, "describe= takes True or False, not 'no'"),
        ({"registry": {}}, "registry= takes a capnode.MethodRegistry, not a dict"),
        ({"serializer": 3}, "serializer= takes an object with serialize"),
    ],
)
def test_wrong_options_of_a_host_are_told_at_once(wrong, told):
    with pytest.raises(TypeError, match=told):
        capnode.Capnode(**wrong)


TIMES: list[Any] = [
    ("1", TypeError, "timeout= is a number of seconds, not '1'"),
    (True, TypeError, "timeout= is a number of seconds, not True"),
    (-1, ValueError, "timeout=-1: "),
    (math.nan, ValueError, "timeout=nan: "),
    (10**400, ValueError, "timeout=: more seconds than a clock can count"),
]


@pytest.mark.parametrize(("timeout", "error", "told"), TIMES)
def test_a_time_that_is_none_is_told_before_anything_is_sent(monkeypatch, timeout, error, told):
    monkeypatch.undo()
    with sync.pair(far_index={"add": lambda a, b: a + b}) as (near, _far):
        with near.pipeline() as p:
            promise = p.index.add(1, 2)
        sent = near.stats().messages_sent
        for use in (
            lambda: near.get(near.index.add, timeout=timeout),
            lambda: near.wait(promise, timeout=timeout),
            lambda: near.with_options(near.index, timeout=timeout),
            lambda: capnode.wait(promise, timeout),
        ):
            with pytest.raises(error, match=told):
                use()
        assert near.stats().messages_sent == sent
        for timeout in (None, math.inf, 60, 0.5e9):
            assert near.wait(promise, timeout=timeout) == 3
            assert capnode.wait(promise, timeout) == 3
            assert near.with_options(near.index, timeout=timeout or 1).add(2, 2) == 4
        with pytest.raises(TypeError, match=r"wait\(\) takes a promise, as in .* of type int"):
            capnode.wait(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("timeout", "error", "told"), TIMES)
def test_a_time_that_is_none_is_told_by_a_supervisor_too(timeout, error, told):
    peer: Any = sync.SupervisedPeer.__new__(sync.SupervisedPeer)  # it is asked before its life is
    with pytest.raises(error, match=told):
        peer.wait_started(timeout=timeout)
