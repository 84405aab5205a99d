"""Ctrl-C at each line of the package in turn."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

import capnode_py as capnode

monitoring: Any = getattr(sys, "monitoring", None)
PACKAGE = str(Path(capnode.__file__).parent)

needs_monitoring = pytest.mark.skipif(monitoring is None, reason="Python 3.12 has sys.monitoring")


@contextmanager
def interrupted_at(step: int) -> Iterator[list[int]]:
    """SIGINT at one line of the package: the `step`-th that is run in the block. Yields how many
    were run."""
    count = [0]
    main = threading.get_ident()
    lines = monitoring.events.LINE

    def line(code: CodeType, _number: int) -> Any:
        if not code.co_filename.startswith(PACKAGE):
            return monitoring.DISABLE
        if threading.get_ident() == main:
            count[0] += 1
            if count[0] == step:
                # As if the signal had come in front of it.
                signal.getsignal(signal.SIGINT)(signal.SIGINT, sys._getframe(1))  # type: ignore[operator, misc]
        return None

    tool = monitoring.PROFILER_ID
    monitoring.use_tool_id(tool, "interrupts")
    monitoring.register_callback(tool, lines, line)
    monitoring.set_events(tool, lines)
    try:
        yield count
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
        monitoring.restart_events()
