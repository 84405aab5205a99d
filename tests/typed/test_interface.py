"""``interface=``: what `peer.index` is to type checkers, and how a far face is written down.

The types are checked where mypy runs over the tests, in the `types` stage: there an `assert_type`
that is not so is an error, and so is a ``type: ignore`` on a line that has become right.
"""

from __future__ import annotations

import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, assert_type

import pytest

import capnode_py as capnode
from capnode_py import Peer, Promise, Target
from capnode_py._spawn import SpawnedPeer

from . import far_shop, shop

ROOT = Path(__file__).parents[2]


class Calculator(Protocol):
    """A face written by hand."""

    async def add(self, a: int, b: int) -> int: ...
    def open(self, name: str) -> Promise[Calculator]: ...
    @property
    def theme(self) -> Promise[str]: ...


class Async(Target):
    """All its methods are async: the class says what its far face is."""

    async def add(self, a: int, b: int) -> int:
        return a + b


async def test_the_far_face_of_a_target_is_typed(driver):
    told: list[Any] = []

    def tell(table: far_shop.Table) -> int:
        told.append(table)
        return 1

    async with capnode.pair(far_index=shop.Shop(), interface=far_shop.Shop) as (near, far):
        assert_type(near, Peer[far_shop.Shop])
        assert_type(far, Peer[Any])
        index = near.index
        total = assert_type(index.total(2, Decimal(3)), Promise[Decimal])
        assert assert_type(await total, Decimal) == 6

        # Through a promise, and a promise as an argument.
        table = assert_type(index.table("all").where("a", b=1), far_shop.PromisedTable)
        assert assert_type(await table.size, int) == 2
        assert assert_type(await table.first, list[int | str]) == [1, "row"]
        assert assert_type(await table.rows(), list[dict[str, Any]]) == [{"id": 1}, {"id": 2}]
        assert await index.join(table, table.size) == 4
        assert_type(await table, far_shop.Table)
        found = await index.find("x")
        assert_type(found, far_shop.Table | None)
        assert found is not None
        assert await found.size == 0

        # Functions: ours may be plain, theirs are stubs.
        text = await index.each([1, 2], tell)
        assert assert_type(await text(3), str) == "3"
        assert len(told) == 2
        del told[:], table, found, text

        near.notify(index.list)
        assert assert_type(await near.with_options(index, timeout=5).list(), list[int]) == [1, 2]


async def test_an_async_target_is_its_own_interface(driver):
    async with capnode.pair(far_index=Async(), interface=Async) as (near, _far):
        assert assert_type(await near.index.add(1, 2), int) == 3


@pytest.mark.drivers("asyncio")
async def test_every_door_takes_an_interface(driver, tmp_path):
    argv = [sys.executable, str(ROOT / "tests/drivers/children/plugin.py")]
    async with capnode.spawn(argv, interface=Calculator) as child:
        assert_type(child, SpawnedPeer[Calculator])
        assert assert_type(await child.index.add(1, 2), int) == 3
    async with (
        capnode.listen(f"unix:{tmp_path}/s", index=Async()) as listener,
        capnode.connect(listener.url, interface=Async) as peer,
    ):
        assert_type(peer, Peer[Async])
        assert await peer.index.add(1, 2) == 3


async def _types_of_the_other_doors(stream: Any) -> None:
    assert_type(await capnode.attach(stream, interface=Calculator), Peer[Calculator])
    assert_type(await capnode.attach(stream), Peer[Any])
    assert_type(await capnode.stdio(interface=Calculator), Peer[Calculator])
    assert_type(await capnode.connect("unix:/s"), Peer[Any])
    assert_type((await capnode.pair(far_interface=Async))[1], Peer[Async])


async def _wrong_uses(peer: Peer[far_shop.Shop], plain: Peer[shop.Shop]) -> None:
    """Each would be an error at run time, or give something else than the line expects."""
    peer.index.nothing()  # type: ignore[attr-defined]
    await peer.index.table(1)  # type: ignore[arg-type]
    await peer.index.table("a", "b")  # type: ignore[call-arg]
    _name: str = await peer.index.total(1)  # type: ignore[assignment]
    _sum = peer.index.cached(1) + 1  # type: ignore[operator]
    _size: int = peer.index.table().size  # type: ignore[assignment]
    peer.index.table().where("a").rowz()  # type: ignore[attr-defined]
    await peer.index.each([1], lambda: 1)  # type: ignore[arg-type, misc]
    await plain.index.join(shop.Table(), 1)  # type: ignore[misc]
    other: Peer[Calculator] = peer  # type: ignore[assignment]
    _any: Peer = other
    _ = capnode.spwan  # type: ignore[attr-defined]
    _ = capnode.sync.spwan  # type: ignore[attr-defined]


def _a_waited_for_promise_has_its_type(promise: Promise[int], face: far_shop.Shop) -> None:
    assert_type(capnode.wait(promise), int)
    assert_type(capnode.wait(face.table()), far_shop.Table)


@pytest.mark.drivers("asyncio")
async def test_an_interface_is_a_class(driver):
    instance: Any = Async()
    for door in (
        lambda: capnode.spawn(["true"], interface=instance),
        lambda: capnode.connect("unix:/s", interface=instance),
        lambda: capnode.attach(None, interface=instance),
        lambda: capnode.stdio(interface=instance),
        lambda: capnode.pair(interface=instance),
        lambda: capnode.pair(far_interface=instance),
    ):
        with pytest.raises(TypeError, match="interface= takes a class"):
            door()


def test_the_far_face_is_written_with_names_signatures_and_docstrings():
    assert capnode.interface_of(shop.Shop) == Path(far_shop.__file__).read_text()


def test_only_the_faces_of_targets_are_written():
    for wrong in (shop.Row, shop.Shop(), 1):
        with pytest.raises(TypeError, match="inherit from Target"):
            capnode.interface_of(wrong)  # type: ignore[arg-type]


def test_two_classes_of_one_name_have_two_faces():
    one, other = (type("Same", (Target,), {"f": lambda self: None}) for _ in range(2))
    text = capnode.interface_of(one, other)
    assert "class Same(Protocol)" in text
    assert "class Same_(Protocol)" in text


def stubs(*names: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # From the tree or from where it is installed, as this process has it.
    env = {**os.environ, "PYTHONPATH": str(Path(capnode.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "capnode_py", "stubs", *names],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )


def test_the_command_writes_a_face_and_leaves_out_what_importing_prints(tmp_path):
    (tmp_path / "plugin.py").write_text(
        "import capnode_py as capnode\n"
        "print('noise')\n"
        "class Notes(capnode.Target):\n"
        "    def add(self, text: str) -> int: ...\n"
    )
    done = stubs("plugin:Notes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "noise\n"
    assert "    def add(self, text: str | Promise[str]) -> Promise[int]: ...\n" in done.stdout
    compile(done.stdout, "far.py", "exec")


def test_the_command_says_what_it_cannot_do(tmp_path):
    (tmp_path / "served.py").write_text("import capnode_py\ncapnode_py.serve_stdio({})\n")
    for name, said in (
        ("served:Notes", "if __name__ == '__main__':"),
        ("nowhere:Notes", "No module named 'nowhere'"),
        ("served", "write module:Class"),
        ("json:loads", "inherit from Target"),
        ("json:nothing", "nothing"),
    ):
        done = stubs(name, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr
