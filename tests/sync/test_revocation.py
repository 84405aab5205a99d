"""Lending on connections that block: what `revocable` and `attenuate` promise needs no loop."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py import RemoteError, Revoked

pytestmark = pytest.mark.usefixtures("nothing_left")


class File(capnode.Target):
    """Something to lend."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.begun = threading.Event()
        self.go = threading.Event()

    def read(self) -> str:
        return "text"

    def itself(self) -> File:
        return self

    @property
    def parent(self) -> dict[str, Any]:
        return {"of": self}

    def call(self, function: Callable[[], Any]) -> str:
        function()
        self.ended.append("done")
        return "done"

    async def call_async(self, function: Callable[[], Any]) -> str:
        await function()
        self.ended.append("done")
        return "done"

    def block(self) -> str:
        self.begun.set()
        self.go.wait(10)
        self.ended.append("done")
        return "done"


Lent = tuple[Any, File, Callable[..., Any], type[Exception]]


@pytest.fixture(params=["afar", "a stub", "a stub with a time limit"])
def lent(request: pytest.FixtureRequest) -> Any:
    """What is lent, from the side of who has it; the object; `revoke`; what a call then raises."""
    file = File()
    if request.param == "afar":
        facade, revoke = capnode.revocable(file)
        with capnode.sync.pair(far_index=facade) as (near, _):
            yield near.index, file, revoke, RemoteError
    else:
        with capnode.sync.pair(far_index=file) as (near, _):
            stub = near.index
            if request.param != "a stub":
                stub = near.with_options(stub, timeout=60)
            facade, revoke = capnode.revocable(stub)
            yield facade, file, revoke, Revoked


def test_a_facade_works_until_it_is_taken_back_and_so_does_what_came_through_it(lent: Lent):
    """M8"""
    facade, _, revoke, kind = lent
    derived = facade.itself()
    assert facade.read() == derived.read() == derived.itself().read() == "text"
    revoke("enough")
    for call in (facade.read, derived.read, facade.itself, lambda: derived.call(print)):
        with pytest.raises(kind, match="enough"):
            call()


@pytest.mark.parametrize("name", ["call", "call_async"])
def test_a_call_in_whose_midst_it_is_taken_back_fails_with_the_reason(lent: Lent, name: str):
    """M8, M10: on this very thread, by a callback of the call."""
    facade, _, revoke, kind = lent
    with pytest.raises(kind, match="enough"):
        getattr(facade, name)(lambda: revoke("enough") or "back")
    with pytest.raises(kind, match="enough"):
        facade.read()


def test_a_call_that_runs_while_another_thread_takes_it_back_fails_with_the_reason():
    """M8, M10: it runs to its end, since a thread cannot be stopped; its result is not told."""
    file = File()
    facade, revoke = capnode.revocable(file)
    with capnode.sync.pair(far_index=facade) as (near, _):

        def take_back() -> None:
            file.begun.wait(10)
            revoke("enough")
            file.go.set()

        thread = threading.Thread(target=take_back)
        thread.start()
        with pytest.raises(RemoteError, match="enough"):
            near.index.block()
        thread.join()
        assert file.ended == ["done"]


@pytest.mark.parametrize("derived", [True, False])
def test_what_was_derived_ends_with_it_only_if_that_is_so(derived: bool):
    """M8, M10: the plain caretaker is not transitive."""
    facade, revoke = capnode.revocable(File(), derived=derived)
    with capnode.sync.pair(far_index=facade) as (near, _):
        given = near.index.parent["of"]
        kept = near.get(given)
        result = near.index.itself()
        revoke("enough")
        if derived:
            with pytest.raises(RemoteError, match="enough"):
                result.read()
        else:
            assert result.read() == "text"
        with pytest.raises(RemoteError, match="enough"):
            kept.read()


def test_the_object_is_let_go_at_once():
    """M11"""
    file = File()
    alive = weakref.ref(file)
    facade, revoke = capnode.revocable(file)
    with capnode.sync.pair(far_index=facade) as (near, _):
        assert near.index.read() == "text"
        del file
        assert revoke.is_in_use
        revoke("enough")
        gc.collect()
        assert alive() is None


def test_a_holder_is_told_as_soon_as_it_looks_at_the_connection_without_a_call():
    """M12"""
    file = File()
    facade, revoke = capnode.revocable(file)
    given = [facade]
    with capnode.sync.pair(far_index={"get": given.pop}) as (near, far):
        stub = near.index.get()
        told: list[Any] = []
        near.on_broken(stub, lambda error: told.append((str(error), capnode.current_peer())))
        cancelled = near.on_broken(stub, told.append)
        cancelled.cancel()
        revoke("enough")
        far.ping()  # what is said of it is on the way by then
        near.ping()
        assert told == [("Revoked: enough", near)]
        late: list[str] = []
        near.on_broken(stub, lambda error: late.append(str(error)))
        near.ping()
        assert late == ["Revoked: enough"]


def test_a_holder_is_told_while_it_waits_for_something_else():
    """M12: by another thread's revoke, with the call that waits unharmed."""
    file, other = File(), File()
    facade, revoke = capnode.revocable(file)
    given = [facade]
    with capnode.sync.pair(far_index={"get": given.pop, "other": lambda: other}) as (near, _):
        stub = near.index.get()
        told = threading.Event()
        near.on_broken(stub, lambda _error: told.set())

        def take_back() -> None:
            other.begun.wait(10)
            revoke("enough")
            other.go.set()

        thread = threading.Thread(target=take_back)
        thread.start()
        assert near.index.other().block() == "done"
        thread.join()
        near.ping()
        assert told.is_set()


def test_who_asked_is_told_of_the_end_of_the_connection():
    """M12, D1"""
    code = "import capnode_py, os; capnode_py.serve_stdio({'crash': lambda: os._exit(3)})"
    with capnode.sync.spawn([sys.executable, "-c", code]) as peer:
        told: list[BaseException] = []
        peer.on_broken(peer.index, told.append)
        with pytest.raises(capnode.PeerDied):
            peer.index.crash()
    (error,) = told
    assert isinstance(error, capnode.PeerDied)
    assert error.returncode == 3


def test_one_loan_is_taken_back_from_blocking_and_other_holders_alike():
    """M8, M12: the same facade over a connection that blocks, and over one in an event loop."""
    facade, revoke = capnode.revocable(File())
    ready = threading.Event()
    elsewhere: list[str] = []

    async def other_loop() -> None:
        async with capnode.pair(far_index={"get": [facade].pop}) as (mine, _):
            theirs = await mine.index.get()
            done = asyncio.Event()

            def tell(error: BaseException) -> None:
                elsewhere.append(str(error))
                done.set()

            mine.on_broken(theirs, tell)
            assert await theirs.read() == "text"
            ready.set()
            await done.wait()
            with pytest.raises(RemoteError, match="enough"):
                await theirs.read()

    thread = threading.Thread(target=lambda: asyncio.run(other_loop()))
    thread.start()
    with capnode.sync.pair(far_index=facade) as (near, _):
        assert near.index.read() == "text"
        ready.wait(10)
        revoke("enough")
        with pytest.raises(RemoteError, match="enough"):
            near.index.read()
    thread.join()
    assert elsewhere == ["Revoked: enough"]


def test_a_revoke_can_be_handed_on_and_called_from_afar():
    """M8"""
    facade, revoke = capnode.revocable(File())
    with capnode.sync.pair(far_index={"lend": lambda: [facade, revoke]}) as (near, _):
        file, take_back = near.index.lend()
        assert file.read() == "text"
        take_back("given back")
        with pytest.raises(RemoteError, match="given back"):
            file.read()


def test_only_the_allowed_names_can_be_reached():
    """Also by a path, through a pipeline, and behind a second facade."""
    facade, revoke = capnode.revocable(capnode.attenuate(File(), allow={"read", "parent"}))
    with capnode.sync.pair(far_index=facade) as (near, _):
        assert near.index.read() == near.index.parent["of"].read() == "text"
        for call in (near.index.call, near.index.itself, near.index.parent["of"].itself):
            with pytest.raises(AttributeError):
                call()
        with near.pipeline() as later:
            denied = later.index.itself().read()
        with pytest.raises(AttributeError):
            near.get(denied)
        revoke("enough")
        with pytest.raises(RemoteError, match="enough"):
            near.index.read()


def test_less_than_all_of_a_stub_can_be_lent_and_called_and_passed_on():
    """What blocks is the call on the facade, as on the stub."""
    with capnode.sync.pair(far_index=File()) as (near, _):
        reader = capnode.attenuate(near.index, allow={"read", "parent"})
        assert reader.read() == "text"
        assert near.get(reader.parent["of"]).read() == "text"
        with pytest.raises(AttributeError):
            reader.itself()
        assert near.index.call(reader.read) == "done"
        with near.pipeline() as later:
            read = later.index.itself().read()
        assert near.get(read) == "text"


def test_a_lent_stub_may_be_called_in_any_thread():
    """M8"""
    with capnode.sync.pair(far_index=File()) as (near, _):
        facade, revoke = capnode.revocable(near.index)
        results: list[Any] = []

        def use() -> None:
            results.append(facade.itself().read())
            revoke("enough")
            try:
                facade.read()
            except Revoked as error:
                results.append(str(error))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert results == ["text", "enough"]
