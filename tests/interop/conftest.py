"""The real Cap'n Web at the other end: npm's `capnweb`, run by Node.

``npm ci`` in this folder brings it. Where it is missing these tests are skipped; with ``CI=true``
they fail, so that it is seen.
"""

from __future__ import annotations

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
    if not (HERE / "node_modules" / "capnweb").is_dir():
        return "the package capnweb is not installed: npm ci, in tests/interop"
    return ""


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node, which finds the package."""
    missing = _missing()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    return str(shutil.which("node"))
