"""`supervise`: a child process that is started again when it dies.

A life is one process and its connection, a peer of `spawn`. References belong to a life and end
with it. Nothing is called again by itself, since nobody here knows whether the call was done
before the child died; and a call that is made between two lives fails at once, instead of waiting
for a process that may not come. To wait is one line: `SupervisedPeer.wait_started`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Unpack

import anyio
import anyio.lowlevel

from ._doors import Door
from ._errors import PeerClosed, PeerLost, again
from ._lives import Lives, Policy, check_callbacks
from ._log import get_logger
from ._peer import I_co, Interface, Peer
from ._spawn import SpawnedPeer, spawn
from ._start import Command, SpawnOptions, check_names
from .driver.anyio import start_background

logger = get_logger("capnode_py.supervise")

# Tests put a clock of their own here.
_sleep = anyio.sleep


def supervise(
    argv: Command,
    *,
    restart: str = "on-failure",
    max_restarts: int = 5,
    window: float = 180.0,
    backoff: float = 0.1,
    max_backoff: float = 10.0,
    on_start: Callable[[Peer[I_co]], Any] | None = None,
    on_death: Callable[[BaseException], Any] | None = None,
    interface: Interface[I_co] = None,
    **options: Unpack[SpawnOptions],
) -> Door[SupervisedPeer[I_co]]:
    """Start a child process as `spawn` does, and start it again when it dies.

    The first start raises what `spawn` raises, and is not repeated: a wrong command stays wrong.

    Args:
        argv: the program and its arguments.
        restart: ``"on-failure"``: not after exit code 0 or an orderly goodbye; ``"always"``;
            ``"never"``.
        max_restarts: so many within `window` seconds, those that fail included. At the next death
            it is given up.
        backoff: seconds before the first restart within the window. Each further one waits twice
            as long as the one before, `max_backoff` at the most.
        on_start: called with the peer of each new life, the first too, before anybody else can
            reach it: set up there what a child needs. If it raises, the start has failed.
        on_death: called with the error of each death, and of each start that failed. A restart
            waits for it, so it must not wait for the restart. Both may be ``async def``.
        interface, options: as for `spawn`.

    Raises:
        TypeError, ValueError: for the arguments.
        OSError, PeerDied, PeerLost, ProtocolError: the first start has failed.
    """
    check_names("supervise", options)
    door = spawn(argv, interface=interface, **options)
    check_callbacks(on_start=on_start, on_death=on_death)
    policy = Policy(
        restart=restart,
        max_restarts=max_restarts,
        window=window,
        backoff=backoff,
        max_backoff=max_backoff,
    )

    async def enter() -> SupervisedPeer[I_co]:
        life = await _open(door, on_start)
        peer = SupervisedPeer(life, door, policy.fresh(), on_start, on_death)
        start_background(peer._run)
        return peer

    return Door(enter)


class SupervisedPeer(Lives, Peer[I_co]):
    """A child process, whichever life it is in: what `supervise` gives.

    `index`, and all that a `Peer` has, is of the current life. References that were obtained in an
    earlier one, and calls that were pending when it ended, raise `PeerRestarted`; so does what is
    called between two lives.

    Attributes:
        restarts: how often it was started again.
        last_death: the error of the last death, or of the last start that failed; None so far.
    """

    def __init__(
        self,
        life: SpawnedPeer[I_co],
        door: Door[SpawnedPeer[I_co]],
        policy: Policy,
        on_start: Callable[[Peer[I_co]], Any] | None,
        on_death: Callable[[BaseException], Any] | None,
    ) -> None:
        # Not Peer's own: the driver belongs to the life, which is what its handlers see.
        Lives.__init__(self, policy)
        self._nickname = life._nickname
        self._door: Final = door
        self._on_start: Final = on_start
        self._on_death: Final = on_death
        self._scope: Final = anyio.CancelScope()
        self._closed: Final = anyio.Event()
        self._changed = anyio.Event()
        self._runner: int | None = None
        self._adopt(life)

    async def wait_started(self) -> None:
        """Return when there is a life: at once, or after the restart that is under way.

        How long that takes has the bounds of the policy and of `Limits.hello_timeout`; for one of
        your own, use your event loop's timeouts.

        Raises:
            PeerDied, PeerLost: it was given up; the error tells the last death.
            PeerClosed: this side has closed it.
        """
        while True:
            if self._over is not None:
                raise again(self._over)
            if not self._life.is_closed:
                return
            await self._changed.wait()

    async def wait_closed(self) -> None:
        """Wait until it is closed or given up, and the last life is gone."""
        await self._closed.wait()

    async def aclose(self) -> None:
        """Close the current life as `Peer.aclose` does, or end the restart that is under way.

        Called by `on_start` or `on_death`, it returns at once, and closes behind them.
        """
        if self._over is None:
            self._over = PeerClosed("this side has closed the connection")
        self._scope.cancel()
        if self._runner == anyio.get_current_task().id:
            return
        with anyio.CancelScope(shield=True):
            await self._closed.wait()
        await anyio.lowlevel.checkpoint_if_cancelled()

    # From life to life.

    async def _run(self) -> None:
        self._runner = anyio.get_current_task().id
        try:
            with self._scope:
                alive = True
                while alive:
                    await self._life.wait_closed()
                    alive = await self._revive()
        except Exception:
            logger.exception("a bug in capnode_py ends the supervision; please report it")
        finally:
            with anyio.CancelScope(shield=True):
                await self._life.aclose()
            self._end(self._over or PeerLost("the supervision has ended"))
            self._closed.set()

    async def _revive(self) -> bool:
        """The life is over: begin another one. False: there is none any more."""
        while True:
            await self._tell_death()
            if self._delay is None:
                return False
            await _sleep(self._delay)
            try:
                life = await _open(self._door, self._on_start)
            except Exception as error:  # noqa: BLE001 - on_start is the user's
                self._delay = self._decide(error, orderly=False)
                continue
            self.restarts += 1
            self._adopt(life)
            self._tell_change()
            logger.info("%s has started again (pid %s)", self.nickname, self.pid)
            return True

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _tell_death(self) -> None:
        if self._on_death is None or self.last_death is None:
            return
        try:
            await _call(self._on_death, again(self.last_death))
        except Exception:
            logger.exception("on_death raised")


async def _open(
    door: Door[SpawnedPeer[I_co]], on_start: Callable[[Peer[I_co]], Any] | None
) -> SpawnedPeer[I_co]:
    """A new life, set up. If that fails, or is cancelled, nothing is left of it."""
    life = await door
    if on_start is not None:
        try:
            await _call(on_start, life)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await life.aclose()
            raise
    return life


async def _call(function: Callable[..., Any], *args: Any) -> None:
    result = function(*args)
    if inspect.isawaitable(result):
        await result
