"""The code that the docs show for JavaScript runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import HERE

ROOT = HERE.parents[1]
PLUGIN = ROOT / "examples" / "node_plugin" / "plugin.mjs"


def _blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(node: str, tmp_path: Path) -> Path:
    """A folder in which the package is installed."""
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    return tmp_path


def _run(folder: Path, *command: str | Path) -> list[str]:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_the_example_runs(folder):
    for file in (PLUGIN, PLUGIN.with_name("script.py")):
        (folder / file.name).write_text(file.read_text())
    assert _run(folder, sys.executable, "script.py") == ["half way", "HELLO!"]


@pytest.mark.parametrize("page", ["README.md", "docs/javascript.md"])
def test_a_page_shows_the_plugin_of_the_example(page):
    assert _blocks(page, "js")[0] == PLUGIN.read_text()


def test_a_python_plugin_of_a_node_program(node, folder):
    tool = next(block for block in _blocks("docs/javascript.md", "python") if "# tool.py" in block)
    client = _blocks("docs/javascript.md", "js")[1].replace('"python3"', repr(sys.executable))
    (folder / "tool.py").write_text(tool)
    (folder / "client.mjs").write_text(client)
    assert _run(folder, node, "client.mjs") == ["3 words", "{ a: 2, b: 1 }"]
