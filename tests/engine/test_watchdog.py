"""Whom the watchdog tells to block the loop, of what stands on the stack of its thread."""

from __future__ import annotations

import json.encoder
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, ClassVar

import pytest

import capnode_py
from capnode_py import _watchdog
from capnode_py._watchdog import Watchdog, at_work

PACKAGE = Path(capnode_py.__file__).parent
DRIVER = str(PACKAGE / "driver" / "_base.py")
SESSION = str(PACKAGE / "_session.py")
CODEC = str(PACKAGE / "codec" / "cbor.py")
FACADE = str(PACKAGE / "_membrane.py")
JSON = json.encoder.__file__
INSTALLED = str(Path(subprocess.__file__).parent / "site-packages" / "shop.py")
PLUGIN = "/somewhere/plugin.py"


def stack(*files: str) -> FrameType:
    """The innermost frame of calls through these files."""
    call: Callable[[], Any] = sys._getframe
    for file in reversed(files):
        scope: dict[str, Any] = {"call": call}
        exec(compile("def called(): return call()", file, "exec"), scope)
        call = scope["called"]
    frame: FrameType = call()
    return frame


@pytest.mark.parametrize(
    "files",
    [
        (SESSION,),
        (SESSION, CODEC),
        (CODEC, JSON),
    ],
    ids=["receive", "decode", "json"],
)
def test_none_of_our_own_code_is_told_to_block(files):
    assert at_work(stack(PLUGIN, DRIVER, *files)) is None


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ((PLUGIN,), "called (plugin.py:1)"),
        ((PLUGIN, SESSION, CODEC), "called (plugin.py:1)"),
        ((PLUGIN, JSON), "called (plugin.py:1)"),
        ((SESSION, FACADE, PLUGIN), "called (plugin.py:1)"),
        ((SESSION, FACADE, INSTALLED), "called (shop.py:1)"),
        ((subprocess.__file__,), "called (subprocess.py:1)"),
        ((), "something (_base.py:1)"),
    ],
    ids=["handler", "calls us", "calls json", "facade", "installed", "of the library", "builtin"],
)
def test_a_handler_is_told_whatever_it_is_at(files, told):
    assert at_work(stack("/an/event/loop.py", DRIVER, *files)) == told


def test_a_task_of_the_program_is_told_by_its_place():
    assert at_work(stack("/an/event/loop.py", PLUGIN)) == "something (plugin.py:1)"


class Poll:
    """`select.poll`, by a script: what each poll finds. Notes how each was asked to wait."""

    script: ClassVar[list[Callable[[Poll], list[tuple[int, int]]]]] = []
    waits: ClassVar[list[tuple[float | None, bool]]] = []
    """For how long, and whether it was to be told of what comes."""

    def __init__(self) -> None:
        self.fds: dict[int, int] = {}

    def register(self, fd: int, mask: int) -> None:
        self.fds[fd] = mask

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        self.waits.append((timeout, bool(list(self.fds.values())[1])))
        return self.script.pop(0)(self)


def test_a_watchdog_whose_child_is_idle_sleeps_until_something_comes(monkeypatch):
    session = SimpleNamespace(
        bytes_received=0,
        exports=SimpleNamespace(last_answer=0),
        incoming=SimpleNamespace(messages=0),
    )
    driver: Any = SimpleNamespace(session=session, is_busy=False, soon=lambda answer: answer())

    def nothing(_poll: Poll) -> list[tuple[int, int]]:
        return []

    def wire(poll: Poll) -> list[tuple[int, int]]:
        session.bytes_received += 10
        return [(list(poll.fds)[1], select.POLLIN)]

    def stop(poll: Poll) -> list[tuple[int, int]]:
        return [(next(iter(poll.fds)), select.POLLIN)]

    monkeypatch.setattr(Poll, "script", [nothing, wire, nothing, nothing, stop])
    monkeypatch.setattr(Poll, "waits", [])
    monkeypatch.setattr(_watchdog, "select", SimpleNamespace(poll=Poll, POLLIN=select.POLLIN))
    read, write = os.pipe()
    Watchdog(read, driver, has_loop=True).stop()
    os.close(read)
    os.close(write)
    looks, sleeps = (1000.0, False), (None, True)
    assert Poll.waits == [looks, sleeps, looks, looks, sleeps]
