"""`serve_stdio` and `stdio`: the child's side, as a parent of any kind sees it."""

from __future__ import annotations

import os
import pty
import signal
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
LIFE = [sys.executable, str(CHILDREN / "life.py")]
CODEC = CborCodec(Limits())
YOUR_FAULT = CODEC.control(ABORT, "RemoteProtocolError", "your fault")
HELLO = CODEC.hello(Hello(versions=[1]))


def serve(stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run the plugin over two pipes, on this input."""
    return subprocess.run(PLUGIN, input=stdin, capture_output=True, check=False, timeout=20)


def _call(*args: Any) -> bytes:
    return bytes(CODEC.call(0, ("add",), list(args), {}, lambda value: value))


def _read(fd: int) -> bytes:
    data = os.read(fd, 65536)
    assert data, "the child has ended"
    return data


def _frame(message: bytes) -> bytes:
    return bytes(CODEC.frame([message]))


def test_a_served_child_answers_a_raw_parent_and_exits_0_at_the_end_of_input():
    done = serve(HELLO + _frame(_call(1, 2)) + _frame(CODEC.control(BYE)))
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
        (HELLO + bytes(CODEC.frame([b"\x81\x18\x63"])), b"an unknown word: [99]"),
        (HELLO + bytes(CODEC.frame([CODEC.control(3, 77)])), b"id 77, which was never issued"),
        (HELLO + bytes(CODEC.frame([YOUR_FAULT])), b"RemoteProtocolError: your fault"),
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


# What stdin and stdout are.


INPUT = HELLO + bytes(CODEC.frame([_call(1, 2)])) + bytes(CODEC.frame([CODEC.control(BYE)]))


@pytest.mark.parametrize("serves", ["loop", "blocking", "own"])
def test_stdin_and_stdout_may_be_files(tmp_path, serves):
    """An event loop cannot wait for one."""
    (tmp_path / "in").write_bytes(INPUT)
    with open(tmp_path / "in", "rb") as stdin, open(tmp_path / "out", "wb") as stdout:
        done = subprocess.run(
            [*LIFE, serves],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
            timeout=20,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert _answers((tmp_path / "out").read_bytes()) == [[5, 1, 3]]


@pytest.mark.parametrize("serves", ["loop", "blocking", "own"])
def test_what_stderr_shares_is_not_unblocked(serves):
    """``2>&1``: to unblock our stdout would unblock stderr, and whoever else has it, who then loses
    what does not fit."""
    read, write = os.pipe()
    child = subprocess.Popen([*LIFE, serves], stdin=subprocess.PIPE, stdout=write, stderr=write)
    assert child.stdin is not None
    child.stdin.write(HELLO + bytes(CODEC.frame([_call(1, 2)])))
    child.stdin.flush()
    out = b""
    while not _answers(out):
        out += _read(read)
    assert os.get_blocking(write)
    child.stdin.close()
    assert child.wait(20) == 0
    os.close(write)
    os.close(read)


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_descriptor_that_is_closed_at_the_start(closed):
    """Without a wire it says so; without a stderr it serves."""
    argv = [*LIFE, "loop"]
    code = f"import os, sys; os.close({closed}); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        input=INPUT,
        capture_output=True,
        check=False,
        timeout=20,
    )
    if closed < 2:
        assert done.returncode == 64
        assert b"is not a pipe" in done.stderr
    else:
        assert done.returncode == 0
        assert _answers(done.stdout) == [[5, 1, 3]]


def _answers(out: bytes) -> list[Any]:
    items = list(CborCodec(Limits()).feed(out))
    return [
        message
        for item in items[1:]
        for message in CODEC.decode(item)[0]  # type: ignore[arg-type]
        if message[0] == 5
    ]


def test_a_stale_word_of_a_private_channel_is_not_believed():
    """Of a parent that is a plugin itself, and was started with ``channel="fd"``."""
    with open(__file__, "rb") as stale:
        word = f"{stale.fileno()}:{os.fstat(stale.fileno()).st_ino}"
        done = subprocess.run(
            [*LIFE, "loop"],
            input=INPUT,
            capture_output=True,
            check=False,
            env={**os.environ, "CAPNODE_FD": word},
            pass_fds=[stale.fileno()],
            timeout=20,
        )
    assert _answers(done.stdout) == [[5, 1, 3]]


@pytest.mark.parametrize("serves", ["loop", "blocking", "own"])
def test_ctrl_c_is_for_the_parent_to_decide(serves):
    """And what the child starts gets it as usual."""
    child = subprocess.Popen([*LIFE, serves], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(HELLO + bytes(CODEC.frame([_call(1, 2)])))
    child.stdin.flush()
    out = b""
    while not _answers(out):
        out += _read(child.stdout.fileno())
    child.send_signal(signal.SIGINT)
    child.stdin.write(bytes(CODEC.frame([_call(2, 3)])))
    child.stdin.flush()
    while len(_answers(out)) < 2:
        out += _read(child.stdout.fileno())
    ignored = [
        line
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines()
        if line.startswith("SigIgn")
    ]
    assert int(ignored[0].split()[1], 16) & 1 << (signal.SIGINT - 1) == 0
    child.stdin.close()
    child.stdout.close()
    assert child.wait(20) == 0


@pytest.mark.parametrize("serves", ["loop", "blocking", "own"])
def test_a_program_may_take_its_time_after_serving(serves):
    """The watchdog ends what hangs, and not what comes after `serve_stdio`; and a program that goes
    on has its Ctrl-C back."""
    argv = [*LIFE, serves, "after"]
    done = subprocess.run(argv, input=INPUT, capture_output=True, check=False, timeout=20)
    assert done.returncode == 0
    assert done.stderr == (b"after with Ctrl-C\n" if serves == "own" else b"after \n")
    assert _answers(done.stdout) == [[5, 1, 3]]
