"""Ctrl-C, wherever it strikes: it is raised, and leaves a usable peer."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import capnode_py as capnode
from capnode_py.driver._pump import the_pump
from tests.interrupts import interrupted_at, needs_monitoring

pytestmark = pytest.mark.usefixtures("nothing_left")
PLUGIN = [sys.executable, str(Path(__file__).parent / "plugin.py"), "sync"]


class Api(capnode.Target):
    def add(self, a: int, b: int) -> int:
        return a + b

    def call(self, function: Any, *args: Any) -> Any:
        return function(*args)


def _every_line(peer: Any, run: Callable[[], Any], *, finalizes: bool = True) -> int:
    """Run it with an interrupt at each of its lines in turn; how many there were.

    In a finalizer nothing can be raised: then the next call does it, if `run` makes none.
    """
    for step in range(1, 10_000):
        raised = False
        with interrupted_at(step) as count:
            try:
                run()
            except KeyboardInterrupt:
                raised = True
        if not raised and count[0] >= step:
            if not finalizes:
                the_pump().raised.clear()  # or it would end this run of tests
                pytest.fail(f"the interrupt at line {step} was not raised")
            with pytest.raises(KeyboardInterrupt):
                peer.index.add(1, 2)
        if count[0] < step:
            return step
        assert peer.index.add(step, 1) == step + 1
    raise AssertionError("it does not end")


@needs_monitoring
def test_an_interrupt_at_any_line_of_a_call_leaves_a_usable_peer():
    with capnode.sync.spawn(PLUGIN) as peer:
        peer.index.add(1, 2)
        assert _every_line(peer, lambda: peer.index.add(1, 2), finalizes=False) > 40


@needs_monitoring
def test_an_interrupt_at_any_line_of_a_callback_leaves_a_usable_peer():
    with capnode.sync.spawn(PLUGIN) as peer:
        peer.index.call(lambda n: n, 1)
        assert _every_line(peer, lambda: peer.index.call(lambda n: n, 1)) > 100


@needs_monitoring
def test_an_interrupt_at_any_line_of_a_pipeline_leaves_a_usable_peer():
    def run() -> None:
        with peer.pipeline() as p:
            first, second = p.index.add(1, 2), p.index.add(3, 4)
        assert peer.wait(second) + peer.get(first) == 10

    with capnode.sync.spawn(PLUGIN) as peer:
        run()
        assert _every_line(peer, run) > 100


def test_an_interrupt_in_a_handler_is_raised_there_and_in_the_wait_below_it():
    seen: list[str] = []

    def interrupted() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            seen.append("there")
            raise

    with capnode.sync.pair(far_index=Api()) as (near, _far):
        with pytest.raises(KeyboardInterrupt):
            near.index.call(interrupted)
        assert seen == ["there"]
        assert near.index.add(1, 2) == 3


def test_an_interrupt_in_code_that_the_engine_runs_waits_until_it_is_done():
    @capnode.by_copy
    @dataclasses.dataclass
    class Copied:
        n: int

        def __getattribute__(self, name: str) -> Any:
            if name == "n":
                signal.raise_signal(signal.SIGINT)
                seen.append("went on")
            return super().__getattribute__(name)

    seen: list[str] = []
    with capnode.sync.pair(far_index=Api()) as (near, _far):
        with pytest.raises(KeyboardInterrupt):
            near.index.add(Copied(1), 2)
        assert seen == ["went on"]
        assert near.index.add(1, 2) == 3


def test_an_interrupt_while_another_thread_reads_ends_the_wait_of_the_main_one():
    with capnode.sync.spawn([*PLUGIN[:-1], "loop"]) as peer:
        peer.serve_background()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come in either
            peer.notify(peer.index.interrupt_parent)
            peer.index.hang()
        assert peer.index.add(1, 2) == 3


def test_an_interrupt_ends_serving_and_the_peer_can_go_on():
    with capnode.sync.spawn(PLUGIN) as peer:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come in either
            peer.notify(peer.index.interrupt_parent)
            peer.serve_forever()
        assert peer.index.add(1, 2) == 3


def test_python_s_own_handler_is_back_when_the_last_connection_is_closed():
    with capnode.sync.pair() as (_near, _far):
        with capnode.sync.pair() as (_one, _other):
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_s_own_stays():
    def handler(_number: int, _frame: Any) -> None: ...

    before = signal.signal(signal.SIGINT, handler)
    try:
        with capnode.sync.pair():
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
