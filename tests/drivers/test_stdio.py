"""`serve_stdio` and `stdio`: the child's side, as a parent of any kind sees it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import Limits
from capnode_py._messages import ABORT, BYE, Hello
from capnode_py.codec.cbor import CborCodec

CHILDREN = Path(__file__).parent / "children"
PLUGIN = [sys.executable, str(CHILDREN / "plugin.py")]
CODEC = CborCodec(Limits())
YOUR_FAULT = CODEC.control(ABORT, "RemoteProtocolError", "your fault")
HELLO = CODEC.hello(Hello(versions=[1]))


def serve(stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run the plugin over two pipes, on this input."""
    return subprocess.run(PLUGIN, input=stdin, capture_output=True, check=False, timeout=20)


def _call(*args: Any) -> bytes:
    return CODEC.call(0, ("add",), list(args), {}, lambda value: value)


def test_a_served_child_answers_a_raw_parent_and_exits_0_at_the_end_of_input():
    done = serve(HELLO + CODEC.frame([_call(1, 2)]) + CODEC.frame([CODEC.control(BYE)]))
    assert done.returncode == 0
    assert done.stdout.startswith(b"\xd9\xd9\xf7")
    items = list(CborCodec(Limits()).feed(done.stdout))
    assert isinstance(items[0], Hello)
    messages = [message for item in items[1:] for message in CODEC.decode(item)[0]]  # type: ignore[arg-type]
    assert messages[0] == [5, 1, 3]
    assert done.stderr == b""


def test_end_of_input_without_a_word_exits_0():
    done = serve(HELLO)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("stdin", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"does not open with a hello"),
        (CODEC.hello(Hello(versions=[9])), b"no common version"),
        (HELLO + b"\x00\x01\x02", b"byte 0x00 where a frame should start"),
        (HELLO + b"\x5b\x10\x00\x00\x00\x00\x00\x00\x00", b"over the limit"),
        (HELLO + CODEC.frame([b"\x81\x18\x63"]), b"an unknown word: [99]"),
        (HELLO + CODEC.frame([CODEC.control(3, 77)]), b"id 77, which was never issued"),
        (HELLO + CODEC.frame([YOUR_FAULT]), b"RemoteProtocolError: your fault"),
        (HELLO + b"\x58\x64\x81", b"mid-frame"),
    ],
    ids=["http", "version", "garbage", "oversize", "word", "id", "abort", "cut"],
)
def test_a_protocol_error_exits_70_with_one_line(stdin, why):
    done = serve(stdin)
    assert done.returncode == 70
    assert why in done.stderr
    assert done.stderr.startswith(b"plugin.py: ")
    assert done.stderr.count(b"\n") == 1


def test_a_hello_and_the_reason_are_said_before_it_exits():
    """Both sides say which version the other offered."""
    done = serve(CODEC.hello(Hello(versions=[9])))
    items = list(CborCodec(Limits()).feed(done.stdout))
    assert isinstance(items[0], Hello)
    ((word, name, text),), _ = CODEC.decode(items[1])  # type: ignore[arg-type]
    assert (word, name) == (ABORT, "RemoteProtocolError")
    assert "speaks [1], the other [9]" in text


def test_started_by_hand_it_says_what_it_is_and_exits_64():
    done = subprocess.run(
        PLUGIN, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=20
    )
    assert done.returncode == 64
    assert b"plugin.py is a capnode plugin" in done.stderr
    assert b"capnode_py.spawn([sys.executable" in done.stderr
    assert done.stdout == b""


def test_started_on_a_terminal_it_exits_64():
    ours, terminal = pty.openpty()
    try:
        done = subprocess.run(
            PLUGIN, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, check=False, timeout=20
        )
    finally:
        os.close(ours)
        os.close(terminal)
    assert done.returncode == 64


async def test_serve_stdio_refuses_inside_a_running_loop(driver):
    with pytest.raises(RuntimeError, match=r"write\s+async with capnode.stdio\(index\) as peer"):
        capnode.serve_stdio({})


def test_serve_stdio_checks_its_index_before_it_claims_anything():
    with pytest.raises(TypeError, match="an index is"):
        capnode.serve_stdio([1])  # type: ignore[arg-type]


@pytest.mark.drivers("asyncio")
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
async def test_a_child_with_a_loop_of_its_own(driver, loop, capsys):
    if not find_spec(loop):
        pytest.skip(f"{loop} is not installed")
    argv = [sys.executable, CHILDREN / "own_loop.py", loop]
    async with capnode.spawn(argv, index={"name": lambda: "Ann"}) as peer:
        assert await peer.index.greet() == "hello Ann"
    assert peer.returncode == 0
    assert capsys.readouterr().err == "served\n"
