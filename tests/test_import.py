"""`import capnode_py` is cheap: what doors and drivers need comes with them.

Held by names, since times drift. What takes how long is told by
``python -X importtime -c 'import capnode_py'``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Modules of the standard library that load many others, or take a millisecond or more.
HEAVY = {
    *("anyio", "asyncio", "trio", "uvloop"),
    *("ast", "base64", "concurrent", "dataclasses", "decimal", "inspect", "ipaddress", "json"),
    *("logging", "pathlib", "re", "secrets", "shlex", "ssl", "string", "tempfile", "traceback"),
    *("urllib", "uuid"),
}

CHILD = """
import sys
from typing import ForwardRef
import capnode_py

class Plugin(capnode_py.Target):
    def loaded(self):
        return list(sys.modules)

    def compiled(self):
        return [
            kind.__qualname__
            for name, module in list(sys.modules.items())
            if name.startswith("capnode_py")
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, tuple)
            if ForwardRef in map(type, kind.__annotations__.values())
        ]

    def add(self, a, b):
        return a + b

    def apply(self, function, *values):
        return [function(value) for value in values]

if __name__ == "__main__":
    capnode_py.sync.serve_stdio(Plugin())
"""

PARENT = """
import sys
from capnode_py.sync import spawn

with spawn([sys.executable, sys.argv[1]]) as peer:
    assert peer.index.add(1, 2) == 3
    assert peer.index.apply(lambda value: -value, 1, 2) == [-1, -2]
    there = peer.index.loaded()
    assert peer.index.compiled() == [], "their annotations are text, for which a compiler is loaded"
print(*there)
print(*sys.modules)
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-P", "-c", code, *arguments]  # the package that is under test
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def heavy(loaded: str, *needed: str) -> set[str]:
    """Which heavy modules are among these, but for what these that are needed load themselves?"""
    by_those = run(f"import sys, {', '.join(needed)}; print(*sys.modules)")
    return set(loaded.split()) & HEAVY - set(by_those.split())


def test_the_import_loads_no_event_loop_and_nothing_heavy() -> None:
    loaded = run("import sys, capnode_py; print(*sys.modules)")
    assert heavy(loaded, "typing", "weakref") == set()
    unopened = {"cbor2", "signal", "socket", "subprocess", "threading", "capnode_py.driver"}
    assert "capnode_py" in loaded.split()
    assert unopened & set(loaded.split()) == set()


def test_the_doors_for_scripts_load_what_they_open_with_when_they_do() -> None:
    loaded = run("import sys; from capnode_py.sync import *; print(*sys.modules)")
    assert "capnode_py.driver.blocking" in loaded.split()
    assert heavy(loaded, "cbor2", "threading") == set()
    assert {"signal", "socket", "subprocess"} & set(loaded.split()) == set()


def test_a_parent_that_blocks_and_its_child_load_nothing_heavy(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(CHILD)
    there, here = run(PARENT, str(plugin)).splitlines()
    assert "capnode_py.driver.blocking" in here.split()
    assert "capnode_py.driver.blocking" in there.split()
    assert heavy(here, "cbor2", "signal", "socket", "subprocess", "threading") == set()
    assert heavy(there, "cbor2", "signal", "threading") == set()
    assert {"socket", "subprocess"} & set(there.split()) == set()


def test_what_is_loaded_late_is_done_without_where_the_program_is_ending() -> None:
    run(
        """
import sys
from capnode_py._errors import format_far
from capnode_py._log import get_logger

sys.meta_path = None  # as the interpreter has it then
get_logger("capnode_py").warning("unheard")
try:
    raise ValueError
except ValueError as error:
    assert format_far(error) is None
"""
    )
