"""`supervise` for callers that block. There is no thread underneath: who waits for the next life
starts it, in `SupervisedPeer.wait_started`; or the thread of `Peer.serve_background` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from threading import current_thread, get_ident
from time import monotonic
from typing import Any, Final, Unpack

from ._arguments import checked_timeout
from ._errors import CapnodeError, PeerClosed, again
from ._lives import Lives, Policy, check_callbacks
from ._log import get_logger
from ._peer import I_co, Interface, check_interface
from ._peer_sync import Peer, SpawnedPeer
from ._spawn_sync import spawned
from ._start import Command, SpawnOptions, recipe_of
from .driver._locked import deadline
from .driver._pump import Elapsed, Event, Place, complete, place, the_pump

logger = get_logger("capnode_py.supervise")


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
) -> SupervisedPeer[I_co]:
    """`capnode_py.supervise`, for callers that block: ``with supervise([...]) as peer:``.

    A death is noticed while a thread waits, or serves. The child is then started again by
    `SupervisedPeer.wait_started`, or by the thread of `Peer.serve_background`.

    Args:
        argv: the program and its arguments.
        restart, max_restarts, window, backoff, max_backoff: as for `capnode_py.supervise`.
        on_start, on_death: likewise; they run on a thread that waits. Both may be ``async def``, of
            which the first may await calls of its peer, and nothing else.
        interface, options: as for `spawn`.

    Raises:
        TypeError, ValueError: for the arguments.
        OSError, PeerDied, PeerLost, ProtocolError: the first start has failed.
    """
    check_interface(interface)
    how = recipe_of("supervise", argv, options)
    check_callbacks(on_start=on_start, on_death=on_death)
    policy = Policy(
        restart=restart,
        max_restarts=max_restarts,
        window=window,
        backoff=backoff,
        max_backoff=max_backoff,
    )
    kind: type[SpawnedPeer[I_co]] = SpawnedPeer
    begin = partial(_open, partial(spawned, kind, how), on_start)
    return SupervisedPeer(begin(), begin, policy, on_death)


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
        begin: Callable[[], SpawnedPeer[I_co]],
        policy: Policy,
        on_death: Callable[[BaseException], Any] | None,
    ) -> None:
        # Not Peer's own: the driver belongs to the life, which is what its handlers see.
        Lives.__init__(self, policy)
        self._nickname = life._nickname
        self._begin: Final = begin
        self._on_death: Final = on_death
        self._pump: Final = the_pump()
        self._changed = self._pump.event()
        self._told: Event | None = None
        self._due = 0.0
        self._reviver: int | None = None
        self._server = None
        with self._pump:
            self._adopt(life)

    def wait_started(self, *, timeout: float | None = None) -> None:
        """Return when there is a life: at once; or start the next one, when its time has come.

        Args:
            timeout: seconds; None waits as long as the policy and `Limits.hello_timeout` let it.

        Raises:
            PeerDied, PeerLost: it was given up; the error tells the last death.
            PeerClosed: this side has closed it.
            TimeoutError: it took longer.
        """
        timeout = checked_timeout(timeout)
        try:
            with deadline(timeout):
                while not self._has_started():
                    self._revive()
        except Elapsed:
            raise TimeoutError(f"no new life within {timeout:g} s") from None

    def serve_forever(self) -> None:
        """Answer the child, and start it again when it dies, until it is closed or given up."""
        while True:
            self._life.serve_forever()
            try:
                self.wait_started()
            except CapnodeError:
                if self._over is None:
                    raise
                return

    wait_closed = serve_forever

    def close(self) -> None:
        """Close the current life as `Peer.close` does, or end the restart that is under way."""
        if self._driver.forked:
            return
        with self._pump:
            self._end(self._over or PeerClosed("this side has closed the connection"))
            life = self._life
        life.close()
        with self._pump.held:
            while self._reviver not in (None, get_ident()):
                self._pump.wait(self._changed)
        if self._server is not None and self._server is not current_thread():
            self._server.join()

    # From life to life.

    def _has_started(self) -> bool:
        """Is there a life? False: this thread is to begin one."""
        with self._pump.held:
            while True:
                if self._over is not None:
                    raise again(self._over)
                if not self._life.is_closed:
                    return True
                if self._reviver is None:
                    self._reviver = get_ident()
                    return False
                if self._reviver == get_ident():
                    raise RuntimeError(
                        "this thread is just starting the child again, further down its stack: "
                        "on_start, on_death and callbacks cannot wait for that"
                    )
                self._pump.wait(self._changed)

    def _revive(self) -> None:
        try:
            if self._told is not None:
                self._pump.wait(self._told)
            self._life.wait_closed()
            changed = self._changed
            if self._over is not None or self._wait(changed, self._due - monotonic()):
                return
            try:
                life = self._begin()
            except Elapsed:
                raise
            except Exception as error:  # noqa: BLE001 - on_start is the user's
                with self._pump:
                    self._decide(error, orderly=False)
                return
            with self._pump:
                late = self._over is not None
                if not late:
                    self.restarts += 1
                    self._adopt(life)
            if late:
                life.close()
            else:
                logger.info("%s has started again (pid %s)", self.nickname, self.pid)
        finally:
            with self._pump:
                self._reviver = None
                self._tell_change()

    def _wait(self, event: Event, seconds: float) -> bool:
        """Wait for it for so long at the most; False if that was too short."""
        return bool(complete(self._driver.within(max(seconds, 0), event.wait)))

    def _decide(self, error: BaseException, *, orderly: bool) -> float | None:
        delay = super()._decide(error, orderly=orderly)
        self._due = monotonic() + (delay or 0)
        if self._on_death is not None:
            self._told = self._pump.event()
            self._driver.tell(self._tell_death, self._on_death, again(error), self._told)
        return delay

    async def _tell_death(self, function: Callable[..., Any], error: Any, told: Event) -> None:
        try:
            result = function(error)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("on_death raised")
        finally:
            with self._pump:
                told.set()

    def _tell_change(self) -> None:
        self._changed.set()
        self._changed = self._pump.event()


def _open(
    start: Callable[[], SpawnedPeer[I_co]], on_start: Callable[[Peer[I_co]], Any] | None
) -> SpawnedPeer[I_co]:
    """A new life, set up. If that fails, nothing is left of it."""
    life = start()
    if on_start is not None:
        try:
            result = on_start(life)
            if inspect.isawaitable(result):
                _complete(result)
        except BaseException:
            life.close()
            raise
    return life


def _complete(awaitable: Any) -> None:
    """Run what the user has written for a loop: its calls give promises, to be awaited."""

    async def awaited() -> None:
        await awaitable

    here = place.get()
    token = place.set(Place(here.driver, here.call, here.deadline, awaits=True, depth=here.depth))
    try:
        complete(awaited())
    finally:
        place.reset(token)
