"""A client that is the real package in Node, and a Python server: client.mjs has the scenarios."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import HERE, needs_web

SCENARIOS = (
    "calls",
    "values",
    "errors",
    "callbacks",
    "theirCapabilities",
    "ourCapabilities",
    "pipelining",
    "promises",
    "map",
    "order",
    "bothWays",
    "threeParties",
    "givenUp",
    "disconnection",
    "death",
    "unknown",
)
ROADS: dict[str, list[str | Path]] = {
    "stdio": [sys.executable, HERE / "api.py"],
    "websocket": [sys.executable, HERE / "api.py", "websocket"],
}


def _run(node: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [node, HERE / "client.mjs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_all_scenarios_are_run(node):
    assert json.loads(_run(node).stdout) == list(SCENARIOS)


@pytest.mark.parametrize(
    "road", [pytest.param(road, marks=needs_web if road == "websocket" else ()) for road in ROADS]
)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_node_client(node, scenario, road):
    done = _run(node, scenario, road, *ROADS[road])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
