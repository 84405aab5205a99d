"""For tests: leak checks, a child process for a class of yours, and sessions on a fake wire.

What you test a plugin with:

- `nothing_left`: a block that raises if it leaves tasks, threads, children, descriptors, open peers
  or references behind; `check_peers_quiet` for some peers only;
- `argv_of`: the command of a child process that serves a class of your test;
- `capnode_py.testing.pytest_plugin`: fixtures of all this;
- `capnode_py.pair` and `capnode_py.sync.pair` join two peers without a process.

What the engine of this library is tested with, and what uses it below the drivers: `Wire` joins two
sessions without an event loop, a thread or a descriptor; see `_wire.py`.
"""

from __future__ import annotations

from ._child import argv_of
from ._leaks import NothingLeft, check_peers_quiet, nothing_left
from ._tasks import Fence, Task
from ._wire import FakeDriver, Frame, Message, Wire

__all__ = [
    "argv_of",
    "nothing_left",
    "NothingLeft",
    "check_peers_quiet",
    "Wire",
    "FakeDriver",
    "Fence",
    "Frame",
    "Message",
    "Task",
]
