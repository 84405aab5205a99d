"""``interface=`` on the blocking face: calls give the values themselves.

Checked as `test_interface.py` is, where mypy runs over the tests.
"""

from __future__ import annotations

import socket
import sys
from concurrent.futures import Future
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, assert_type

import pytest

import capnode_py as capnode
from capnode_py import Promise, Target, sync

from . import blocking_shop, far_shop, shop
from .test_interface import stubs

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("nothing_left")


class Calculator(Target):
    """All its methods are plain: the class says what its far face is to one who blocks."""

    def add(self, a: int, b: int) -> int:
        return a + b

    def itself(self) -> Calculator:
        return self

    @property
    def theme(self) -> str:
        return "dark"


class Face(Protocol):
    """A face written by hand."""

    def add(self, a: int, b: int) -> int: ...
    @property
    def theme(self) -> Promise[str]: ...


def test_a_target_with_plain_methods_is_its_own_interface():
    with sync.pair(far_index=Calculator(), interface=Calculator) as (near, far):
        assert_type(near, sync.Peer[Calculator])
        assert_type(far, sync.Peer[Any])
        assert assert_type(near.index.add(1, 2), int) == 3
        assert assert_type(near.index.itself().add(1, 2), int) == 3
        assert assert_type(near.get(near.index.theme), str) == "dark"
        assert assert_type(near.with_options(near.index, timeout=5).add(1, 2), int) == 3
        future = assert_type(near.submit(near.index.add, 1, b=2), Future[int])
        assert future.result(10) == 3
        near.notify(near.index.add, 1, 2)


def test_a_pipeline_has_the_face_of_the_peer_until_it_is_waited_for():
    with sync.pair(far_index=Calculator(), interface=Calculator) as (near, _far):
        with near.pipeline() as p:
            total = p.index.itself().add(1, 2)
            other = p(near.index.add)(1, 2)
        assert assert_type(near.wait(total), int) == 3
        assert assert_type(near.wait(other), int) == 3


def test_a_pipeline_can_be_given_the_face_whose_calls_give_promises():
    with sync.pair(far_index=shop.Shop(), interface=blocking_shop.Shop) as (near, _far):
        with near.pipeline(far_shop.Shop) as p:
            size = assert_type(p.index.table("all").where("a").size, Promise[int])
            total = assert_type(p.index.total(2, Decimal(3)), Promise[Decimal])
        assert assert_type(near.wait(size), int) == 2
        assert assert_type(near.wait(total, timeout=5), Decimal) == 6
        with pytest.raises(TypeError, match="interface= takes a class"):
            near.pipeline(shop.Shop())  # type: ignore[call-overload]


def test_the_written_face_of_a_target_is_typed():
    def tell(table: blocking_shop.Table) -> int:
        return assert_type(near.get(table.size), int)

    with sync.pair(far_index=shop.Shop(), interface=blocking_shop.Shop) as (near, _far):
        index = near.index
        assert assert_type(index.total(2, Decimal(3)), Decimal) == 6
        table = assert_type(index.table("all").where("a", b=1), blocking_shop.Table)
        assert assert_type(near.get(table.size), int) == 2
        assert assert_type(near.get(table.first), list[int | str]) == [1, "row"]
        assert assert_type(table.rows(), list[dict[str, Any]]) == [{"id": 1}, {"id": 2}]
        assert index.join(table, table.size) == 4
        text = index.each([1, 2], tell)
        assert assert_type(text(3), str) == "3"
        assert_type(near.submit(index.find, "x"), Future[blocking_shop.Table | None]).result(10)


def test_calls_on_a_stub_of_the_blocking_face_give_values():
    def tell(stub: sync.Stub) -> int:
        return int(assert_type(stub.add(1, 2), Any))

    index = {
        "calculator": lambda: Calculator(),
        "add": lambda a, b: a + b,
        "call": lambda f, x: f(x),
    }
    with sync.pair(far_index=index) as (near, _far):
        calculator: sync.Stub = near.index.calculator()
        assert isinstance(calculator, capnode.Stub)
        again = assert_type(near.reconstruct(calculator.cap_id), sync.Stub)
        assert assert_type(again.add(1, 2), Any) == 3
        assert near.get(again.theme) == "dark"
        assert again["add"](2, 2) == 4
        assert assert_type(near.with_options(again, timeout=5), sync.Stub).add(3, 3) == 6
        assert near.submit(again.add, 4, 4).result(10) == 8
        assert near.index.call(tell, calculator) == 3
        with near.pipeline() as p:
            total = p(again).add(5, 5)
        assert near.wait(total) == 10
        with again:
            pass
        with pytest.raises(capnode.Released):
            again.add(1, 1)
        add: sync.Stub = near.reconstruct(near.get(near.index.add).cap_id)
        assert assert_type(add(1, 1), Any) == 2


def test_every_blocking_door_takes_an_interface(tmp_path):
    argv = [sys.executable, str(ROOT / "tests/drivers/children/plugin.py")]
    with sync.spawn(argv, interface=Face) as child:
        assert_type(child, sync.SpawnedPeer[Face])
        assert assert_type(child.index.add(1, 2), int) == 3
    with (
        sync.listen(f"unix:{tmp_path}/s", index=Calculator()) as listener,
        sync.connect(listener.url, interface=Calculator) as peer,
    ):
        assert_type(peer, sync.Peer[Calculator])
        assert peer.index.add(1, 2) == 3


def _types_of_the_other_doors(stream: socket.socket) -> None:
    assert_type(sync.attach(stream, interface=Face), sync.Peer[Face])
    assert_type(sync.attach(stream), sync.Peer[Any])
    assert_type(sync.connect("unix:/s"), sync.Peer[Any])
    assert_type(sync.spawn(["x"]), sync.SpawnedPeer[Any])
    assert_type(sync.pair(far_interface=Face)[1], sync.Peer[Face])


def _untyped(peer: sync.Peer) -> None:
    assert_type(peer.index.add(1), Any)
    assert_type(peer.get(peer.index.theme), Any)
    assert_type(peer.submit(peer.index.add, 1), Future[Any])
    assert_type(peer.pipeline().index.add(1), Any)


async def _stubs_of_the_async_face(peer: capnode.Peer, remote: capnode.Remote) -> None:
    assert_type(peer.reconstruct("cap"), capnode.Stub)
    assert_type(remote.reconstruct("cap"), capnode.Stub)
    await assert_type(peer.reconstruct("cap")(1), Promise[Any])


def _wrong_uses(peer: sync.Peer[blocking_shop.Shop], typed: sync.Peer[Calculator]) -> None:
    """Each would be an error at run time, or give something else than the line expects."""
    peer.reconstruct(1)  # type: ignore[arg-type]
    _stub: capnode.Stub = peer.reconstruct("cap")  # type: ignore[assignment]
    peer.index.nothing()  # type: ignore[attr-defined]
    peer.index.table(1)  # type: ignore[arg-type]
    _name: str = peer.index.total(1)  # type: ignore[assignment]
    _size: int = peer.index.table().size  # type: ignore[assignment]
    typed.submit(typed.index.add, "1", 2)  # type: ignore[arg-type]
    typed.submit(typed.index.add, 1)  # type: ignore[call-arg]
    typed.pipeline().index.nothing()  # type: ignore[attr-defined]
    other: sync.Peer[Calculator] = peer  # type: ignore[assignment]
    _any: sync.Peer = other


def test_an_interface_is_a_class():
    instance: Any = Calculator()
    for door in (
        lambda: sync.spawn(["true"], interface=instance),
        lambda: sync.connect("unix:/s", interface=instance),
        lambda: sync.attach(None, interface=instance),
        lambda: sync.pair(interface=instance),
        lambda: sync.pair(far_interface=instance),
    ):
        with pytest.raises(TypeError, match="interface= takes a class"):
            door()


def test_the_blocking_face_is_written_with_values_as_results(tmp_path):
    written = Path(blocking_shop.__file__).read_text()
    assert capnode.interface_of(shop.Shop, blocking=True) == written
    (tmp_path / "plugin.py").write_text(
        "import capnode_py as capnode\n"
        "class Notes(capnode.Target):\n"
        "    def add(self, text: str) -> int: ...\n"
    )
    done = stubs("--sync", "plugin:Notes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "    def add(self, text: str | Promise[str]) -> int: ...\n" in done.stdout
