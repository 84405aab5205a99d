"""The interactive prompt, on a terminal: calls, callbacks, completion, help, Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import capnode_py as capnode

PLUGIN = Path(__file__).parent / "plugin.py"
HANGS_AFTER = 20.0


class Prompt:
    """A ``python -i``, typed at."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._shown = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def read(self, seconds: float = HANGS_AFTER) -> str:
        """What is shown next; nothing, if that takes too long."""
        if seconds <= 0 or not select.select([self._terminal], [], [], seconds)[0]:
            return ""
        return os.read(self._terminal, 4096).decode()

    def expect(self, pattern: str) -> str:
        """What is shown up to this, which is waited for."""
        give_up = time.monotonic() + HANGS_AFTER
        while not (found := re.search(pattern, self._shown)):
            shown = self.read(give_up - time.monotonic())
            if not shown:
                raise AssertionError(f"no {pattern!r} in {self._shown!r}")
            self._shown += shown
        before = self._shown[: found.end()]
        self._shown = self._shown[found.end() :]
        return before

    def run(self, line: str, expected: str) -> str:
        """Type a line; what is shown, up to this and the next prompt."""
        self.type(line + "\n")
        shown = self.expect(expected)
        return shown + self.expect(r">>> $")


@pytest.fixture
def prompt(tmp_path: Path) -> Iterator[Prompt]:
    ours, theirs = pty.openpty()
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(capnode.__file__).parents[1]),
        "TERM": "dumb",
        "PYTHON_BASIC_REPL": "1",  # readline, as on all Pythons
        "PYTHON_COLORS": "0",
        "PAGER": "cat",
        "MANPAGER": "cat",
        "HOME": str(tmp_path),
        "INPUTRC": os.devnull,
    }
    start = (
        "import sys, capnode_py as capnode; "
        f"peer = capnode.sync.spawn([sys.executable, {str(PLUGIN)!r}])"
    )
    process = subprocess.Popen(
        [sys.executable, "-q", "-i", "-c", start],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - one system call
    )
    os.close(theirs)
    prompt = Prompt(ours)
    try:
        prompt.expect(r">>> $")
        yield prompt
        prompt.type("raise SystemExit(7)\n")
        with contextlib.suppress(OSError):  # the end of a terminal
            while prompt.read():
                pass
        assert process.wait(HANGS_AFTER) == 7  # with the peer still open
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _take_terminal() -> None:
    """In the child: the terminal is its own, so that Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_calls_callbacks_and_help_at_the_prompt(prompt):
    prompt.run("peer.index.add(1, 2)", r"\r\n3\r\n")
    prompt.run("peer.index.each([1, 2], print)", r"\r\n1\r\n2\r\n\[None, None\]\r\n")
    prompt.run("peer.index", r"\r\n<Stub index of plugin.py>\r\n")
    shown = prompt.run("help(peer.index)", r"How many|how_many_cancelled\(\) -> int")
    assert "add(a: int, b: int) -> int" in shown
    assert "What there is to read." in shown
    prompt.run("help(peer.index.add)", r"The sum of two numbers\.")
    prompt.run("peer.index.complain(); peer.ping()", r"said on stderr\r\n")
    prompt.run("peer.index.add('x', 2)", r"RemoteError\[TypeError\]: can only concatenate")


def test_ctrl_c_while_a_call_waits_leaves_a_usable_peer(prompt):
    prompt.type("peer.index.hang()\n")
    prompt.expect(r"it hangs\r?\n")
    prompt.type("\x03")
    prompt.expect(r"KeyboardInterrupt\r\n>>> $")
    prompt.run("peer.index.add(1, 2)", r"\r\n3\r\n")
    until = "next(n for n in iter(peer.index.how_many_cancelled, None) if n)"
    prompt.run(until, r"\r\n1\r\n")


@pytest.mark.skipif(find_spec("readline") is None, reason="this Python has no readline")
def test_tab_completes_what_the_far_side_offers(prompt):
    prompt.type("peer.index.ad\t")
    prompt.expect(r"peer\.index\.add\(")
    prompt.run("20, 22)", r"\r\n42\r\n")
    prompt.run("shelf = peer.index.shelf()", r"\r\n")
    prompt.type("shelf.fi\t")
    prompt.expect(r"shelf\.find\(")
    prompt.run("'rain')", r"'rain on the shelf'\r\n")
