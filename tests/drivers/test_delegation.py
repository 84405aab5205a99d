"""Delegation between real processes, and `_released` on every driver."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Capnode, Target, _lasting

HOST = [sys.executable, str(Path(__file__).parent / "children" / "lasting.py")]


class Account(Target):
    def __init__(self) -> None:
        self._balance = 0

    def put(self, amount: int) -> int:
        self._balance += amount
        return self._balance


async def test_a_third_party_reconstructs_what_another_client_holds(driver, tmp_path):
    account = Account()
    url = f"unix:{tmp_path}/s"
    async with (
        capnode.listen(url, index=lambda: account),
        capnode.connect(url) as alice,
        capnode.connect(url) as bob,
    ):
        stub = await alice.index()
        assert await stub.put(1) == 1
        lent = bob.reconstruct(stub.cap_id)
        assert lent is not stub
        assert await lent.put(2) == 3
        with pytest.raises(LookupError):
            await bob.reconstruct(stub.cap_id[:-8] + "AAAAAAAA").put(4)
        assert await stub.put(4) == 7


@pytest.mark.drivers("asyncio", "trio")
async def test_a_registered_reference_outlives_its_process(driver, tmp_path):
    url = f"unix:{tmp_path}/s"
    async with capnode.spawn([*HOST, url, "a secret of the registry"]) as host:
        async with capnode.connect(await host.index.url()) as peer:
            counter = await peer.index.counter()
            cap_id = str(counter.cap_id)
            assert await counter.add(1) == 1
        assert host.pid is not None
        os.kill(host.pid, signal.SIGKILL)
        await host.wait_closed()

    async with (
        capnode.spawn([*HOST, url, "a secret of the registry"]) as host,
        capnode.connect(await host.index.url()) as peer,
    ):
        assert await peer.reconstruct(cap_id).add(2) == 2
        assert (await peer.index.counter()).cap_id == cap_id

    async with (
        capnode.spawn([*HOST, url, "another secret altogether"]) as host,
        capnode.connect(await host.index.url()) as peer,
    ):
        with pytest.raises(LookupError):
            await peer.reconstruct(cap_id).add(2)


class Session(Target):
    """What a server makes for each client."""

    def __init__(self, log: list[str], gone: anyio.Event) -> None:
        self._log = log
        self._gone = gone

    def hello(self) -> str:
        return "hello"

    async def _released(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._log.append(f"gone from {capnode.current_peer().nickname}")
        self._gone.set()


async def test_the_hook_of_a_clients_index_runs_when_the_client_has_left(driver, tmp_path):
    log: list[str] = []
    url = f"unix:{tmp_path}/s"
    gone = anyio.Event()
    async with capnode.listen(url, index_for=lambda peer: Session(log, gone)):
        async with capnode.connect(url) as peer:
            assert await peer.index.hello() == "hello"
            assert log == []
        await gone.wait()
    assert len(log) == 1


async def test_closing_waits_for_the_hooks(driver):
    log: list[str] = []
    async with capnode.pair(far_index=Session(log, anyio.Event())) as (near, _far):
        assert await near.index.hello() == "hello"
    assert log == ["gone from near"]


@pytest.mark.loop
async def test_the_hook_runs_when_the_last_stub_is_dropped(any_road):
    log: list[str] = []
    gone = anyio.Event()
    near, _far = await any_road.open(far_index=Capnode(lambda: Session(log, gone)).index)
    stub = await near.index()
    assert await stub.hello() == "hello"
    del stub
    await gone.wait()
    assert len(log) == 1


async def test_a_share_is_let_go_when_its_time_is_over(driver):
    """Without anybody asking for it."""
    log: list[str] = []
    gone = anyio.Event()

    class Shared(Target):
        async def _released(self) -> None:
            await anyio.lowlevel.checkpoint()
            log.append("gone")
            gone.set()

    capnode.share(Shared(), ttl=0.001)
    await gone.wait()
    assert log == ["gone"]


async def test_a_timer_that_wakes_early_is_set_again(driver, monkeypatch):
    """uvloop's may, by a millisecond."""
    gone = anyio.Event()
    runs: list[Any] = []

    class Shared(Target):
        def _released(self) -> None:
            gone.set()

    with monkeypatch.context() as patch:
        patch.setattr(_lasting, "_call_later", lambda _seconds, run: runs.append(run))
        capnode.share(Shared(), ttl=0.02)
    (run,) = runs
    run()
    await gone.wait()


async def test_many_shares_need_one_timer(driver, monkeypatch):
    timers: list[float] = []
    monkeypatch.setattr(_lasting, "_call_later", lambda seconds, _run: timers.append(seconds))
    cap_ids = [capnode.share(print, ttl=ttl) for ttl in (math.inf, *range(60, 160))]
    assert len(timers) == 2
    for cap_id in cap_ids:
        capnode.unshare(cap_id)


async def test_an_async_hook_of_what_was_registered_runs_in_the_event_loop(driver):
    gone = anyio.Event()

    class Registered(Target):
        async def _released(self) -> None:
            await anyio.lowlevel.checkpoint()
            gone.set()

    registry = capnode.MethodRegistry()
    registry.register(Registered(), "it")
    registry.unregister("it")
    await gone.wait()
