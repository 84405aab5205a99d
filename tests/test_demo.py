"""``capnode demo`` shows what it promises, on a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import pty
import re
import subprocess
import sys

import pytest

from capnode_py._demo import Screen

DEMO = [sys.executable, "-m", "capnode_py", "demo"]


def on_a_terminal() -> str:
    """What the demo writes to a terminal."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    demo = subprocess.Popen(DEMO, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    seen = b""
    with demo:
        try:
            while data := os.read(ours, 65536):
                seen += data
        except OSError:  # Linux says EIO when the last writer has gone
            pass
        finally:
            os.close(ours)
    assert demo.returncode == 0
    return seen.decode()


@pytest.fixture(scope="module")
def plain() -> str:
    demo = subprocess.run(DEMO, check=False, capture_output=True, text=True, timeout=30)
    assert demo.returncode == 0, demo.stderr
    # The child's last words, forwarded as they were written.
    assert demo.stderr == "plugin: one cheese too many\n"
    return demo.stdout


def test_it_is_plain_text_where_nobody_watches(plain):
    assert plain.isascii()
    assert not re.search(r"[^\x20-\x7e\n]", plain)
    assert max(map(len, plain.splitlines())) <= 80


def test_all_parts_are_there_in_order(plain):
    parts = re.findall(r"^-- \d  (.+?) -+$", plain, re.MULTILINE)
    assert parts == [
        "A call",
        "A callback, with progress",
        "Pipelining",
        "A crash",
        "Calls per second",
    ]


def test_the_callback_is_called_by_the_child(plain):
    assert "    on_progress(5, 20)\n" in plain
    assert "    on_progress(20, 20)\n    'a picture of 20 strokes'\n" in plain


def test_pipelining_saves_the_round_trips_that_are_counted(plain):
    assert re.findall(r"4\.5 +(\d+) round trips?$", plain, re.MULTILINE) == ["3", "1"]


def test_the_crash_is_an_error_that_says_who_died_how_and_with_which_last_words(plain):
    story = " ".join(plain.split())
    assert re.search(
        r"capnode_py\.PeerDied: the child \S+ -m capnode_py\._demo \(pid \d+\) was killed by "
        r"SIGKILL.* Its last lines on stderr: plugin: one cheese too many",
        story,
    )


def test_it_ends_with_calls_per_second(plain):
    one, many = re.findall(r"([\d,]+) calls/s$", plain, re.MULTILINE)
    assert plain.endswith(f"{many} calls/s\n")
    assert int(one.replace(",", "")) > 0


def test_it_runs_on_uvloop_where_that_is_installed(plain):
    installed = importlib.util.find_spec("uvloop") is not None
    assert ("uvloop" in plain.splitlines()[0]) == installed


def test_a_terminal_sees_a_progress_bar_in_colour():
    coloured = on_a_terminal()
    bars = re.findall(r"\r[^\r\n]*?([█░\x1b\[0-9;m]+)[^\r\n]*%", coloured)
    assert len(bars) == 20
    assert [bars[0].count("█"), bars[-1].count("█")] == [2, 30]
    assert "\x1b[1;36m" in coloured
    assert coloured.count("\x1b[") == 2 * coloured.count("\x1b[0m")  # every colour ends


def test_no_color_keeps_the_progress_bar_and_drops_the_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    seen = shown_on(Terminal())
    assert "\x1b" not in seen
    assert "\r    " + "█" * 15 + "░" * 15 + "  50%" in seen


def test_a_terminal_that_cannot_draw_gets_ascii():
    terminal = Terminal()
    terminal.encoding = "ascii"
    seen = shown_on(terminal)
    assert seen.isascii()
    assert "#" * 15 in seen


def test_a_dumb_terminal_gets_plain_text(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    seen = shown_on(Terminal())
    assert seen.isascii()
    assert "\x1b" not in seen
    assert "on_progress(5, 10)" in seen


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown_on(terminal: Terminal) -> str:
    """Everything that a screen can show."""
    with contextlib.redirect_stdout(terminal):
        screen = Screen()
        screen.title("title")
        screen.step("step")
        screen.code("code")
        screen.out("result", "note")
        screen.figure("figure", 1.0, "unit")
        screen.error(ValueError("error"))
        for done in range(1, 11):
            screen.progress(done, 10)
    return terminal.getvalue()


def test_a_reader_that_goes_early_is_no_error():
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    assert demo.stderr is not None
    with demo:
        assert demo.stdout.readline().startswith("capnode ")
        demo.stdout.close()
        assert demo.stderr.read() in ("", "plugin: one cheese too many\n")
    assert demo.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--version"], 0, r"capnode \d+\.\d+\.\d+\n"),
        (["--help"], 0, r"(?s)usage: capnode .*\bdemo\b"),
        ([], 2, r"(?s)usage: capnode .*\bdemo\b"),
    ],
)
def test_the_command_line_explains_itself(arguments, code, said):
    command = [sys.executable, "-m", "capnode_py", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == code
    assert re.match(said, done.stdout)
