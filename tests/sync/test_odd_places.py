"""A peer that is used where it was not expected: in signal handlers and finalizers, with times that
the system cannot sleep, by many threads as the first thing that they do, and where it cannot go."""

from __future__ import annotations

import contextvars
import copy
import gc
import pickle
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py._tables import ImportTable
from capnode_py.driver import _interrupts
from capnode_py.driver._pump import the_pump
from capnode_py.sync import SpawnedPeer

pytestmark = pytest.mark.usefixtures("nothing_left")
PLUGIN = [sys.executable, str(Path(__file__).parent / "plugin.py")]


@pytest.fixture
def looped(nothing_left: None) -> Iterator[SpawnedPeer]:
    with capnode.sync.spawn([*PLUGIN, "loop"]) as peer:
        yield peer
    assert peer.returncode == 0


@contextmanager
def _in_a_wait(handle: Callable[[], Any]) -> Iterator[threading.Event]:
    """Has it run once by the handler of a signal that comes while this thread waits. Gives whether
    that has been."""
    struck = threading.Event()
    pump, main = the_pump(), threading.get_ident()

    def handler(*_: Any) -> None:
        if pump.polling and not pump.lock._is_owned() and not struck.is_set():
            struck.set()
            handle()

    def send() -> None:
        while not struck.wait(0.005):
            signal.pthread_kill(main, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    before = signal.signal(signal.SIGUSR1, handler)
    sender.start()
    try:
        yield struck
    finally:
        struck.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def _wait_until(struck: threading.Event, peer: SpawnedPeer) -> None:
    while not struck.is_set():
        with pytest.raises(TimeoutError):
            peer.with_options(peer.index, timeout=0.2).hang()


@pytest.mark.parametrize("timeout", [1e8, 1e20, float("inf")])
def test_a_time_limit_may_be_longer_than_the_system_can_sleep(looped, timeout):
    assert looped.with_options(looped.index, timeout=timeout).add(1, 2) == 3
    assert looped.get(looped.index.add, timeout=timeout)(3, 4) == 7
    started = threading.Event()
    thread = threading.Thread(target=looped.get, args=[looped.index.add], kwargs={"timeout": 1e20})
    thread.start()
    looped.index.call(lambda _n: started.wait(0.01), 1)  # that thread polls, or sleeps
    thread.join()


def test_a_call_in_a_signal_handler_that_interrupts_a_wait_is_refused_with_the_reason(looped):
    def handler() -> None:
        looped.index.add(1, 2)

    with _in_a_wait(handler), pytest.raises(RuntimeError, match=r"peer\.notify"):
        looped.index.hang()
    assert looped.index.add(1, 2) == 3


def test_what_does_not_wait_can_be_done_in_a_signal_handler(looped):
    noted, futures = threading.Event(), []

    def handler() -> None:
        looped.notify(looped.index.relay, noted.set)
        futures.append(looped.submit(looped.index.add, 1, 2))

    with _in_a_wait(handler) as struck:
        _wait_until(struck, looped)
    assert noted.wait(10)
    assert [future.result(10) for future in futures] == [3]


def test_a_close_in_a_signal_handler_begins_and_the_wait_sees_it_through():
    with (
        capnode.sync.spawn([*PLUGIN, "loop"]) as peer,
        _in_a_wait(peer.close),
        pytest.raises(capnode.PeerClosed),
    ):
        peer.index.hang()
    assert peer.returncode == 0


def test_a_finalizer_that_strikes_in_a_wait_cannot_wait_and_harms_nobody(looped, monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(what.exc_value))

    class Held:
        def __del__(self) -> None:
            looped.index.add(1, 2)

    held = [Held()]
    with _in_a_wait(held.clear) as struck:
        _wait_until(struck, looped)
    assert [type(error) for error in told] == [RuntimeError]
    held.append(Held())
    held.clear()  # where nothing is interrupted, it can
    assert len(told) == 1
    told.clear()


def test_what_strikes_in_the_engine_is_done_when_that_is_done(looped, monkeypatch):
    """As a signal handler, or a finalizer, may: here, where an id is taken, and its message is not
    on its way yet."""
    called, promises = threading.Event(), []

    def strike() -> None:
        promises.append(looped.index.add(1, 2))
        promises.append(looped.pipeline().index.add(3, 4))
        looped.notify(looped.index.relay, called.set)
        promises.append(looped.index.add(object()))

    enter = ImportTable.enter_question
    strikes = [strike]

    def struck(*args: Any) -> Any:
        if strikes:
            strikes.pop()()
        return enter(*args)

    monkeypatch.setattr(ImportTable, "enter_question", struck)
    assert looped.index.relay(function=lambda: 5) == 5
    assert not strikes
    assert looped.wait(promises[0]) == 3
    assert looped.wait(promises[1]) == 7
    with pytest.raises(capnode.CannotPass):
        looped.wait(promises[2])
    looped.ping()
    assert called.is_set()


def test_each_module_above_the_drivers_is_known_as_one():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c.get("containers") == ["capnode_py"])
    above = {name for layer in layers[: layers.index("driver")] for name in layer.split(" | ")}
    called_by_users = {"_describe", "_map", "_options", "_stub"}
    assert {f"capnode_py.{name}" for name in above | called_by_users} == _interrupts._ABOVE


def test_a_callback_may_wait_for_a_future_in_the_thread_that_serves(looped):
    results: list[Any] = []
    done = threading.Event()

    def callback() -> None:
        results.append(looped.submit(looped.index.add, 1, 2).result())
        results.append(looped.submit(looped.index.add, 3, 4).exception())
        slow = looped.submit(looped.index.hang)
        with pytest.raises(TimeoutError):
            slow.result(0.01)
        results.append(slow.cancel())
        done.set()

    looped.serve_background()
    looped.notify(looped.index.relay, callback)
    assert done.wait(10)
    assert results == [3, None, True]


def test_a_thread_that_got_the_context_of_a_handler_is_not_that_handler(looped):
    """So its waits let no other handler start beside that one."""
    running, beside = [], []
    asked, told = threading.Event(), threading.Event()

    def first() -> None:
        running.append("first")
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=[work])
        thread.start()
        asked.wait(10)
        told.wait(0.1)  # long enough for another to start, if it may
        running.remove("first")
        thread.join()

    def work() -> None:
        looped.notify(looped.index.relay, second)
        asked.set()
        with pytest.raises(TimeoutError):
            looped.with_options(looped.index, timeout=0.2).hang()

    def second() -> None:
        beside.append(list(running))
        told.set()

    looped.index.relay(first)
    looped.serve_background()
    assert told.wait(10)
    assert beside == [[]]


def test_a_thread_that_serves_and_was_killed_can_be_started_again(looped, monkeypatch):
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: died.append(what.exc_type))

    def interrupted() -> None:
        raise KeyboardInterrupt

    looped.serve_background()
    looped.notify(looped.index.relay, interrupted)
    assert looped._server is not None
    looped._server.join()
    assert died == [KeyboardInterrupt]
    looped.serve_background()
    called = threading.Event()
    looped.notify(looped.index.relay, called.set)
    assert called.wait(10)


def test_the_first_peers_of_a_process_may_be_opened_by_many_threads_at_once(monkeypatch):
    from capnode_py.driver import _pump

    monkeypatch.setattr(_pump, "_pumps", {})
    made: list[Any] = []
    make, together = _pump.Pump, threading.Barrier(4)

    def slowly() -> Any:
        pump = make()
        made.append(pump)
        together.wait(10)  # none is the first
        return pump

    monkeypatch.setattr(_pump, "Pump", slowly)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(_pump.the_pump())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len({id(pump) for pump in found}) == 1
    found[0].discard()


def test_a_peer_cannot_be_pickled_or_copied(looped):
    for what in (looped, looped.index):
        for function in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied: it belongs to its"):
                function(what)
    gc.collect()
