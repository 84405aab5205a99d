"""A child process as a peer, for scripts: whoever waits sees its stderr, and its exit."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ._errors import CapnodeError
from ._peer_sync import SpawnedPeer, make, opened, spawned_here
from ._start import Recipe, Started, request_logs, start
from .driver._pump import Pump, the_pump
from .driver.blocking import BlockingDriver

if TYPE_CHECKING:
    from ._child import Child

S = TypeVar("S", bound=SpawnedPeer)


def spawned(kind: type[S], how: Recipe) -> S:
    """The peer of a child that is started so, once its hello has come."""
    asked, withdraw = request_logs(how)
    try:
        started = start(how, asked)
    except BaseException:
        withdraw()
        raise
    try:
        pump = the_pump()
        with pump.held:
            peer = make(kind, started.fds, how.settings)
            peer.pid = started.process.pid
            peer._child = _watched(started, how, peer._driver, pump, withdraw)
        spawned_here.add(peer)
    except BaseException:
        withdraw()
        started.undo()
        raise
    try:
        return opened(peer)
    except CapnodeError as error:
        peer._child.sign(error)
        raise


def _watched(
    started: Started,
    how: Recipe,
    driver: BlockingDriver,
    pump: Pump,
    withdraw: Callable[[], object],
) -> Child:
    """The child, whose descriptors the pump looks at from now on."""
    from ._child import Child

    def outside(run: Callable[[], object]) -> None:
        pump.do(partial(driver.outside, run))

    def hear() -> None:
        if not child.hear():
            stop_hearing()

    def stop_hearing() -> None:
        pump.unwatch_reading(started.stderr)
        os.close(started.stderr)
        child.silent()

    def look() -> None:
        if child.reap():
            pump.unwatch_reading(started.pidfd)
            os.close(started.pidfd)
            pump.do(withdraw)
            pump.attend(child.lose_peer)

    child = Child(started, how, driver, outside=outside, stop_hearing=stop_hearing)
    if started.stderr >= 0:
        pump.watch_reading(started.stderr, hear)
    pump.watch_reading(started.pidfd, look)
    return child
