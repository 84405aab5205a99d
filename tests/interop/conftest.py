"""The real Cap'n Web at the other end: npm's `capnweb`, run by Node.

``npm ci`` in this folder brings it. Where it is missing these tests are skipped; with ``CI=true``
they fail, so that it is seen.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent

needs_web = pytest.mark.skipif(
    find_spec("websockets") is None, reason="the extra `web` is not installed"
)


def _missing() -> str:
    """What is not there; empty if all is."""
    if shutil.which("node") is None:
        return "Node is not installed"
    needed = json.loads((HERE / "package.json").read_text())["dependencies"]
    lacking = [name for name in needed if not (HERE / "node_modules" / name).is_dir()]
    return f"npm ci, in tests/interop, would bring {', '.join(lacking)}" if lacking else ""


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node, which finds the package."""
    missing = _missing()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    return str(shutil.which("node"))
