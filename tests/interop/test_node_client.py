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
    "mapOfTheirs",
    "order",
    "bothWays",
    "threeParties",
    "givenUp",
    "disconnection",
    "death",
    "unknown",
)
WEB_TOO = (
    "calls",
    "values",
    "callbacks",
    "ourCapabilities",
    "map",
    "threeParties",
    "givenUp",
    "disconnection",
    "death",
)
"""What may differ where each message is one of a web socket."""
ROADS: dict[str, list[str | Path]] = {
    "stdio": [sys.executable, HERE / "api.py"],
    "websocket": [sys.executable, HERE / "api.py", "websocket"],
}


def _run(node: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [node, HERE / "client.mjs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_all_scenarios_are_run(node):
    assert json.loads(_run(node).stdout) == list(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_node_client(node, scenario):
    _check(node, scenario, "stdio")


@needs_web
@pytest.mark.parametrize("scenario", WEB_TOO)
def test_a_node_client_over_a_web_socket(node, scenario):
    _check(node, scenario, "websocket")


def _check(node: str, scenario: str, road: str) -> None:
    done = _run(node, scenario, road, *ROADS[road])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
