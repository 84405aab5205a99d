"""A notebook: an IPython kernel as Jupyter starts it, with peers in its cells.

A loop runs in the kernel already, `sys.stderr` has no descriptor of its own, and Ctrl-C comes as a
signal to the process.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

import capnode_py as capnode

manager = pytest.importorskip("jupyter_client.manager", reason="jupyter_client is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

PLUGIN = Path(__file__).parent / "plugin.py"
HANGS_AFTER = 30.0


class Cell:
    """What has come of one.

    Attributes:
        printed: what stands below it, of stdout and stderr.
        elsewhere: what was printed below other cells meanwhile.
        result: its last value, as text.
        error: how it failed.
    """

    def __init__(self) -> None:
        self.printed = {"stdout": "", "stderr": ""}
        self.elsewhere = ""
        self.result: str | None = None
        self.error: str | None = None

    def take(self, kind: str, content: dict[str, Any], *, mine: bool) -> None:
        if kind == "stream" and mine:
            self.printed[content["name"]] += content["text"]
        elif kind == "stream":
            self.elsewhere += content["text"]
        elif kind == "execute_result" and mine:
            self.result = content["data"]["text/plain"]
        elif kind == "error" and mine:
            self.error = f"{content['ename']}: {content['evalue']}"


class Kernel:
    """A kernel, and its client."""

    def __init__(self, manager: Any, client: Any) -> None:
        self._manager = manager
        self._client = client

    def run(self, code: str, *, interrupt_after: str = "") -> Cell:
        """Run a cell.

        Args:
            code: its text.
            interrupt_after: press the button for it, when this has been printed.
        """
        id = self._client.execute(code, allow_stdin=False, store_history=False)
        cell = Cell()
        for kind, content, mine in self._said(id):
            cell.take(kind, content, mine=mine)
            if kind == "status" and mine and content["execution_state"] == "idle":
                return cell
            if interrupt_after and interrupt_after in "".join(
                [*cell.printed.values(), cell.elsewhere]
            ):
                interrupt_after = ""
                self._manager.interrupt_kernel()
                # A loop that sleeps sees a signal when it wakes, and any message wakes it.
                self._client.kernel_info()
        raise AssertionError(f"the cell does not end: {code}\n{vars(cell)}")

    def value(self, code: str) -> str | None:
        """The value of a cell, which prints nothing."""
        cell = self.run(code)
        assert cell.error is None, cell.error
        assert cell.printed == {"stdout": "", "stderr": ""}
        return cell.result

    def _said(self, id: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
        give_up = time.monotonic() + HANGS_AFTER
        while time.monotonic() < give_up:
            try:
                message = self._client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            mine = message["parent_header"].get("msg_id") == id
            yield message["msg_type"], message["content"], mine

    def completions(self, code: str) -> list[str]:
        """What the tab key offers behind `code`."""
        matches: list[str] = self._reply(self._client.complete(code))["matches"]
        return matches

    def inspect(self, code: str) -> str:
        """What Shift-Tab shows, behind `code`."""
        reply = self._reply(self._client.inspect(code))
        return str(reply["data"].get("text/plain", ""))

    def _reply(self, id: str) -> dict[str, Any]:
        while True:
            message = self._client.get_shell_msg(timeout=HANGS_AFTER)
            if message["parent_header"].get("msg_id") == id:
                content: dict[str, Any] = message["content"]
                return content


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("jupyter")
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(capnode.__file__).parents[1]),
        "IPYTHONDIR": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder),
        "NO_COLOR": "1",
    }
    km = manager.KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "kernel"))
    km.kernel_spec.argv[0] = sys.executable  # this Python, whatever is installed for the user
    km.start_kernel(env=env)
    client = km.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=HANGS_AFTER)
        kernel = Kernel(km, client)
        kernel.value(
            "import os, sys, capnode_py as capnode\n"
            "from capnode_py import _child\n"
            "_child._END_WAIT = 10\n"  # however busy this machine is, as in all tests
            f"command = [sys.executable, {str(PLUGIN)!r}]\n"
            "peer = capnode.sync.spawn(command)\n"
            "shelf = peer.index.shelf()\n"
            "far = await capnode.spawn(command)\n"
        )
        yield kernel
    finally:
        client.stop_channels()
        km.shutdown_kernel(now=True)
        km.cleanup_resources()


def test_a_cell_calls_and_gets_the_value(kernel):
    assert kernel.value("peer.index.add(1, 2)") == "3"
    assert kernel.value("peer") == "<Peer plugin.py: 2 imports, 1 exports>"  # and the shelf
    assert kernel.value("peer.index") == "<Stub index of plugin.py>"
    assert kernel.value("peer.index.add") == "<Promise index.add of plugin.py>"
    assert kernel.value("with peer.pipeline() as p: found = p.index.shelf().find('x')") is None
    assert kernel.value("peer.wait(found)") == "'x on the shelf'"


def test_callbacks_and_what_a_child_says_on_stderr_are_printed_below_the_cell(kernel):
    cell = kernel.run("peer.index.each([1, 2], lambda n: print('got', n))")
    assert cell.printed["stdout"] == "got 1\ngot 2\n"
    assert cell.result == "[None, None]"
    cell = kernel.run("peer.index.complain(); peer.ping()")
    assert cell.printed["stderr"] == "said on stderr\n"


def test_an_error_of_the_far_side_is_the_cells(kernel):
    cell = kernel.run("peer.index.add(1)")
    assert cell.error is not None
    assert cell.error.startswith("RemoteError[TypeError]: Library.add() missing 1 required")


def test_the_stop_button_withdraws_the_call_and_leaves_a_usable_peer(kernel):
    cell = kernel.run("peer.index.hang()", interrupt_after="it hangs")
    assert cell.error == "KeyboardInterrupt: "
    assert kernel.value("peer.index.add(1, 2)") == "3"
    kernel.value("while not peer.index.how_many_cancelled(): pass")


def test_the_tab_key_offers_what_the_far_side_does(kernel):
    offered = kernel.completions("peer.index.")
    assert {"add", "each", "shelf", "cap_id", "dealloc"} <= set(offered)
    assert not [name for name in offered if name.startswith("_")]
    assert kernel.completions("peer.index.a") == ["add"]
    assert kernel.completions("shelf.") == ["cap_id", "dealloc", "find"]
    assert {"a=", "b="} <= set(kernel.completions("peer.index.add("))


def test_help_shows_what_the_far_side_says(kernel):
    shown = kernel.inspect("peer.index.add")
    assert "peer.index.add(a: int, b: int) -> int" in shown
    assert "The sum of two numbers." in shown
    assert "shelf.find(word: str) -> str" in kernel.inspect("shelf.find(")
    printed = kernel.run("help(peer.index)").printed["stdout"]
    assert "What there is to read." in printed
    assert "add(a: int, b: int) -> int\n        The sum of two numbers." in printed


def test_the_loop_of_the_kernel_runs_async_peers(kernel):
    cell = kernel.run(
        "async with capnode.spawn(command) as short:\n"
        "    print(await short.index.each([1, 2], print))"
    )
    assert cell.printed["stdout"] == "1\n2\n[None, None]\n"
    assert kernel.value("await far.index.add(20, 22)") == "42"
    cell = kernel.run("far.index.add(1, 2) + 1")
    assert cell.error is not None
    assert cell.error.startswith("TypeError: unsupported operand")


def test_the_stop_button_cancels_an_await_and_leaves_a_usable_peer(kernel):
    cell = kernel.run("await far.index.hang()", interrupt_after="it hangs")
    assert cell.error == "CancelledError: "
    kernel.value("while not await far.index.how_many_cancelled(): pass")
    assert kernel.value("peer.index.add(1, 2)") == "3"  # the blocking one beside it


def test_a_peer_is_closed_in_a_cell(kernel):
    kernel.value("one, other = capnode.sync.spawn(command), await capnode.spawn(command)")
    kernel.value("one.close(); await other.aclose()")
    assert kernel.value("one.returncode, other.returncode") == "(0, 0)"
