"""`supervise`: a child process that is started again when it dies.

A life is one process and its connection, a peer of `spawn`. References belong to a life and end
with it. Nothing is called again by itself, since nobody here knows whether the call was done
before the child died; and a call that is made between two lives fails at once, instead of waiting
for a process that may not come. To wait is one line: `SupervisedPeer.wait_started`.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Unpack

import anyio
import anyio.lowlevel

from ._child import Command, SpawnOptions
from ._doors import Door
from ._errors import PeerClosed, PeerDied, PeerLost, PeerRestarted, again
from ._peer import I_co, Interface, Peer
from ._spawn import SpawnedPeer, spawn
from .driver.anyio import start_background

logger = logging.getLogger("capnode_py.supervise")

RESTART = ("on-failure", "always", "never")

# Tests put a clock of their own here.
_now = time.monotonic
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
    door = spawn(argv, interface=interface, **options)
    if restart not in RESTART:
        raise ValueError(f"restart={restart!r}: one of {', '.join(map(repr, RESTART))}")
    for name, value in (("on_start", on_start), ("on_death", on_death)):
        if value is not None and not callable(value):
            raise TypeError(f"{name}= takes a function, not {value!r}")
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


@dataclass(kw_only=True)
class Policy:
    """When a child is started again. It reads no clock: it is told the time.

    Attributes:
        restart, max_restarts, window, backoff, max_backoff: see `supervise`.
    """

    restart: str
    max_restarts: int
    window: float
    backoff: float
    max_backoff: float
    _restarts: deque[float] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if type(self.max_restarts) is not int or self.max_restarts < 0:
            raise ValueError(f"max_restarts={self.max_restarts!r}: a number, 0 or more")
        for name in ("window", "backoff", "max_backoff"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not value >= 0:
                raise ValueError(f"{name}={value!r}: seconds, 0 or more")

    def fresh(self) -> Policy:
        """For another child."""
        return Policy(
            restart=self.restart,
            max_restarts=self.max_restarts,
            window=self.window,
            backoff=self.backoff,
            max_backoff=self.max_backoff,
        )

    def wants(self, *, orderly: bool) -> bool:
        """Is one that has ended so to be started again at all?"""
        return self.restart == "always" or (self.restart == "on-failure" and not orderly)

    def delay(self, now: float) -> float | None:
        """Seconds to wait before the restart that is due now, which is counted; None: give up."""
        restarts = self._restarts
        while restarts and restarts[0] <= now - self.window:
            restarts.popleft()
        if len(restarts) >= self.max_restarts:
            return None
        restarts.append(now)
        doublings = min(len(restarts) - 1, 60)  # more would overflow
        return min(self.backoff * 2.0**doublings, self.max_backoff)

    @property
    def bound(self) -> str:
        return f"{self.max_restarts} restarts within {self.window:g} s"


class SupervisedPeer(Peer[I_co]):
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
        self._nickname = life._nickname
        self._door: Final = door
        self._policy: Final = policy
        self._on_start: Final = on_start
        self._on_death: Final = on_death
        self._scope: Final = anyio.CancelScope()
        self._closed: Final = anyio.Event()
        self._changed = anyio.Event()
        self._runner: int | None = None
        self._delay: float | None = None
        self._over: BaseException | None = None
        self.restarts = 0
        self.last_death: BaseException | None = None
        self._adopt(life)

    @property
    def returncode(self) -> int | None:
        """The exit code of the last life; None while it runs."""
        return self._life.returncode

    @property
    def is_closed(self) -> bool:
        """It is closed, or given up. Between two lives it is not."""
        return self._over is not None

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

    def _adopt(self, life: SpawnedPeer[I_co]) -> None:
        """Its references, from now on, are those of this life."""
        self._life = life
        self._driver = life._driver
        self._session = life._session
        self.pid = life.pid
        self._session.ends_as = self._judge
        if self._session.error is not None:  # it died while `on_start` returned
            self._session.error = self._judge(self._session.error)

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

    def _judge(self, error: BaseException) -> BaseException:
        """The life ends with this error: what those who wait, or come later, are told."""
        if self._over is not None:
            return error
        died = isinstance(error, PeerDied) and error.returncode == 0
        orderly = died or self._session.incoming.heard_bye
        self._delay = self._decide(error, orderly=orderly)
        if self._over is not None:
            return self._over
        self._tell_change()
        restarted = PeerRestarted(str(error), death=error)
        restarted.__cause__ = error
        return restarted

    def _decide(self, error: BaseException, *, orderly: bool) -> float | None:
        """Seconds to wait before the next start; None if there is none, and `_over` says why."""
        self.last_death = error
        if isinstance(error, PeerClosed) or not self._policy.wants(orderly=orderly):
            self._end(error)
            return None
        delay = self._policy.delay(_now())
        if delay is None:
            logger.error("%s is given up after %s: %s", self.nickname, self._policy.bound, error)
            self._end(_given_up(error, self._policy.bound))
        else:
            logger.warning("%s: starting it again in %g s", error, delay)
        return delay

    def _end(self, error: BaseException) -> None:
        """There will be no other life, and what is called on the last one says so."""
        if self._over is None:
            self._over = error
        if isinstance(self._session.error, PeerRestarted):
            self._session.error = self._over
        self._tell_change()

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


def _given_up(error: BaseException, bound: str) -> BaseException:
    """The error of the last death, as the last word."""
    told = f"{error}; it is given up after {bound}"
    if isinstance(error, PeerDied):
        last = again(error)
        last.args = (told,)
    else:
        last = PeerLost(told)
    last.__cause__ = error
    return last
