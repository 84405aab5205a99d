"""Whom the watchdog tells to block the loop, of what stands on the stack of its thread."""

from __future__ import annotations

import json.encoder
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import capnode_py
from capnode_py._watchdog import at_work

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
