"""`import capnode_py` is cheap: what doors and drivers need comes with them."""

from __future__ import annotations

import subprocess
import sys


def test_the_import_loads_no_event_loop_and_nothing_optional() -> None:
    heavy = ["asyncio", "anyio", "cbor2", "socket", "threading", "trio", "uvloop"]
    code = f"import sys, capnode_py; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
