"""When a child is started again, and what its callers are told: the half of `supervise` that does
not wait, and so is the same on every driver.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._errors import PeerClosed, PeerDied, PeerLost, PeerRestarted, again
from ._log import get_logger

if TYPE_CHECKING:
    pass

logger = get_logger("capnode_py.supervise")

RESTART = ("on-failure", "always", "never")

# Tests put a clock of their own here.
_now = time.monotonic


def check_callbacks(**functions: Any) -> None:
    """What a user gives to be called.

    Raises:
        TypeError: one cannot be.
    """
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name}= takes a function, not {value!r}")


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
        if self.restart not in RESTART:
            names = ", ".join(map(repr, RESTART))
            raise ValueError(f"restart={self.restart!r}: one of {names}")
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


class Lives:
    """A child from life to life: of each, `judge` is told how it ended. For a `Peer`, which has the
    face of one.

    Attributes:
        restarts: how often it was started again.
        last_death: the error of the last death, or of the last start that failed; None so far.
    """

    nickname: Any
    _life: Any
    _driver: Any
    _session: Any

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._delay: float | None = None
        self._over: BaseException | None = None
        self.restarts = 0
        self.last_death: BaseException | None = None

    @property
    def returncode(self) -> int | None:
        """The exit code of the last life; None while it runs."""
        code: int | None = self._life.returncode
        return code

    @property
    def stderr_tail(self) -> str:
        """The last lines of the last life on stderr."""
        tail: str = self._life.stderr_tail
        return tail

    @property
    def is_closed(self) -> bool:
        """It is closed, or given up. Between two lives it is not."""
        return self._over is not None

    @abstractmethod
    def _tell_change(self) -> None:
        """A life has begun, or has ended."""

    def _adopt(self, life: Any) -> None:
        """Its references, from now on, are those of this life."""
        self._life = life
        self._driver = life._driver
        self._session = life._session
        self.pid = life.pid
        self._session.ends_as = self._judge
        if self._session.error is not None:  # it died while `on_start` returned
            self._session.error = self._judge(self._session.error)

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
