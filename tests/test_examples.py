"""The examples do what they say, as processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ABOUT_SUMMARIZE = "The first sentence. `ask` is a function of yours, for a question to your user."
EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*command: str | Path) -> tuple[str, str]:
    """The output, and what went to stderr, of a script that ends well."""
    argv = [sys.executable, *map(str, command)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_plugin_tells_its_progress_and_can_be_stopped():
    out, err = run(EXAMPLES / "progress/script.py")
    assert out.splitlines() == [
        "1 of 4",
        "2 of 4",
        "3 of 4",
        "4 of 4",
        "['thumb-ant.png', 'thumb-bee.png', 'thumb-cat.png', 'thumb-dog.png']",
        "1 of 4",
        "2 of 4",
        "stopped",
    ]
    # What the plugin prints reaches the script's stderr, and never the wire.
    assert err.splitlines() == ["4 made", "2 made"]


def test_an_event_emitter_calls_who_subscribed_until_it_unsubscribes():
    out, err = run(EXAMPLES / "events/script.py")
    assert out.splitlines() == [
        "version 1",
        "now: {'sky': 'clear', 'wind': 3}",
        "2 listeners",
        "1 listener",
        "log: ['clear', 'grey']",
    ]
    assert err == ""


@pytest.mark.parametrize("command", [[], [sys.executable, EXAMPLES / "stdio_tool/tool.py"]])
def test_a_tool_behind_stdio_describes_itself_and_asks_its_user(command):
    out, err = run(EXAMPLES / "stdio_tool/script.py", *command)
    assert out.splitlines() == [
        "count_words(text): How often each word stands in a text.",
        f"summarize(text, ask): {ABOUT_SUMMARIZE}",
        "{'cat': 1, 'dog.': 1, 'it': 1, 'ran.': 1, 'saw': 1, 'the': 2}",
        "the tool asks: in capitals?",
        "THE CAT SAW THE DOG",
        "refused: 'int' object has no attribute 'lower'",
    ]
    assert err == ""


def test_pipelining_takes_one_round_trip_where_steps_take_three():
    out, err = run(EXAMPLES / "pipelining/script.py")
    assert out.splitlines() == [
        "line 7 of a.txt - 3 round trips",
        "line 7 of a.txt - 1 round trip",
        "b.txt - 1 round trip",
    ]
    assert err == ""


def test_two_services_on_a_unix_socket_call_each_other(tmp_path):
    socket = tmp_path / "warehouse"
    warehouse = subprocess.Popen(
        [sys.executable, EXAMPLES / "unix_socket/warehouse.py", socket],
        stdout=subprocess.PIPE,
        text=True,
    )
    with warehouse:
        try:
            assert warehouse.stdout is not None
            assert warehouse.stdout.readline() == "listening\n"
            for name, left in ("corner", 7), ("station", 4):
                out, err = run(EXAMPLES / "unix_socket/shop.py", socket, name)
                assert out.splitlines() == [
                    f"welcome, {name}",
                    f"{name} hears: {left} of tea left",
                    "got 3",
                    f"refused: only {left} of tea left",
                ]
                assert err == ""
        finally:
            warehouse.kill()


def test_two_queues_carry_a_connection_to_a_child_process():
    out, err = run(EXAMPLES / "queue_transport.py")
    assert out.splitlines() == ["{'bee': 3, 'wasp': 4}"]
    assert err == ""


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: str(path.relative_to(EXAMPLES))
)
def test_an_example_is_read_at_one_glance(path):
    assert len(path.read_text().splitlines()) < 40
