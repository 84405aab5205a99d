"""References that outlive a connection: `MethodRegistry`, `share` and `unshare`."""

from __future__ import annotations

import heapq
import inspect
import math
import secrets
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from ._arguments import check_seconds
from ._cap_ids import CapId, Unknown, at_random, of_name, parse
from ._holders import Holder, holders
from ._log import get_logger
from ._reach import held_targets, reference_key
from ._stub import FUNCTIONS, Promise, Stub, Target

logger = get_logger("capnode_py.host")

_SHORTEST_SECRET = 16


def _hold(value: Any, holder: Holder) -> None:
    for target in held_targets(value):
        holders.add(target, holder)


def _let_go(value: Any, holder: Holder) -> None:
    """Let a value go outside of any connection: its hook, if it is to run, runs here and now."""
    for target in held_targets(value):
        if holders.discard(target, holder):
            try:
                waits = target._released()  # type: ignore[attr-defined]
                if inspect.iscoroutine(waits):
                    _finish(waits)
            except Exception:
                logger.exception("%s._released() raised", type(target).__name__)


def _finish(hook: Coroutine[Any, Any, None]) -> None:
    """Run an async hook, in the event loop that runs here."""
    from .driver.anyio import start_background

    async def run() -> None:
        try:
            await hook
        except Exception:
            logger.exception("an async _released() raised")

    try:
        start_background(run)
    except RuntimeError:
        hook.close()
        raise TypeError("an async _released() needs an event loop: write a plain def") from None


def _checked_reference(value: Any, what: str) -> Any:
    """A value that can be passed by reference.

    Raises:
        TypeError: it cannot, or is not here yet.
    """
    if type(value) is Promise:
        raise TypeError(f"{what} takes what is here: await the promise first")
    if type(value) is Stub:
        return value._session.plain(value)
    if isinstance(value, (Target, *FUNCTIONS)):
        return value
    raise TypeError(
        f"{what} takes a function, a capnode.Target or a stub, not a value of type "
        f"{type(value).__name__}"
    )


class MethodRegistry:
    """References that last: each has a cap_id that outlives connections, and this process.

    Args:
        secret: at least 16 bytes, kept where the next process finds it: the same secret and name
            give the same cap_id. None makes a new one, whose cap_ids end with this process.

    Raises:
        TypeError, ValueError: for the secret.

    The idea is E's sturdyref; the name is Capnode's.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        if secret is None:
            secret = secrets.token_bytes(32)
        if not isinstance(secret, bytes):
            raise TypeError(
                f"secret= takes bytes, not {type(secret).__name__}: write secrets.token_bytes(32) "
                "once, and keep it"
            )
        if len(secret) < _SHORTEST_SECRET:
            raise ValueError(
                f"a secret of {len(secret)} bytes can be guessed: at least {_SHORTEST_SECRET}, "
                "as of secrets.token_bytes(32)"
            )
        self._secret = secret
        self._named: dict[str, tuple[CapId, Any]] = {}
        self._by_place: dict[bytes, str] = {}
        self._by_key: dict[object, list[CapId]] = {}  # an object may have several names

    def __len__(self) -> int:
        return len(self._named)

    def __repr__(self) -> str:
        return f"<MethodRegistry: {len(self)} references>"

    def register(self, obj: Any, name: str) -> CapId:
        """Let `obj` be reconstructed by its cap_id, which is returned, until `unregister`.

        Args:
            obj: a function, a `Target` or a stub; the registry holds it.
            name: what names it in the next process, too.

        Raises:
            TypeError: it cannot pass by reference, or is a promise.
            ValueError: another object has this name.
        """
        obj = _checked_reference(obj, "register()")
        if not isinstance(name, str):
            raise TypeError(f"a name is a str, not {type(name).__name__}")
        key = id(obj) if type(obj) is Stub else reference_key(obj)
        cap_id = of_name(self._secret, name)
        if cap_id in self._by_key.get(key, ()):
            return cap_id
        if name in self._named:
            raise ValueError(f"{name!r} is registered already: unregister({name!r}) it first")
        self._named[name] = cap_id, obj
        self._by_place[parse(cap_id).place] = name
        self._by_key.setdefault(key, []).append(cap_id)
        _hold(obj, (self, name))
        return cap_id

    def unregister(self, name: str) -> None:
        """End the cap_id of a name. References that were made with it go on.

        Raises:
            KeyError: nothing is registered under it.
        """
        cap_id, obj = self._named.pop(name)
        del self._by_place[parse(cap_id).place]
        key = id(obj) if type(obj) is Stub else reference_key(obj)
        self._by_key[key].remove(cap_id)
        if not self._by_key[key]:
            del self._by_key[key]
        _let_go(obj, (self, name))

    def find(self, cap_id: str) -> Any:
        """What a cap_id stands for.

        Raises:
            Unknown: nothing here.
        """
        parts = parse(cap_id)
        name = self._by_place.get(parts.place)
        if name is None or not parts.proves(parse(self._named[name][0]).proof):
            raise Unknown
        return self._named[name][1]

    def lasting(self, key: object) -> CapId | None:
        """The cap_id of the value with this `reference_key`: of its first name."""
        cap_ids = self._by_key.get(key)
        return None if cap_ids is None else cap_ids[0]


class Shares:
    """What is shared in this process, each until its time is over. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # what is let go may run a user's hook, which may share
        self._shared: dict[bytes, tuple[CapId, Any, float | None]] = {}
        self._ends: list[tuple[float, bytes]] = []
        # When the timer of each event loop runs out, which may have ended since.
        self._wakes_at: WeakKeyDictionary[object, float] = WeakKeyDictionary()

    def add(self, value: Any, ttl: float | None) -> CapId:
        """A new cap_id for a value; `ttl` in seconds."""
        self._drop_expired()
        cap_id = at_random()
        place = parse(cap_id).place
        end = None if ttl is None else time.monotonic() + min(ttl, _NEVER)
        _hold(value, (self, place))
        with self._lock:
            self._shared[place] = cap_id, value, end
            if end is not None:
                heapq.heappush(self._ends, (end, place))
                self._set_timer()
        return cap_id

    def find(self, cap_id: str) -> Any:
        """What it stands for.

        Raises:
            Unknown: nothing, or nothing any more.
        """
        self._drop_expired()
        parts = parse(cap_id)
        shared = self._shared.get(parts.place)
        if shared is None or not parts.proves(parse(shared[0]).proof):
            raise Unknown
        return shared[1]

    def remove(self, cap_id: str) -> None:
        """End it, if it has not ended yet."""
        try:
            self.find(cap_id)
        except Unknown:
            return
        self._remove(parse(cap_id).place)

    def _remove(self, place: bytes) -> None:
        with self._lock:
            shared = self._shared.pop(place, None)
            if len(self._ends) > 2 * len(self._shared) + 100:  # most of these ended early
                self._ends = [end for end in self._ends if end[1] in self._shared]
                heapq.heapify(self._ends)
        if shared is not None:
            _let_go(shared[1], (self, place))

    def _drop_expired(self) -> None:
        now = time.monotonic()
        over = []
        with self._lock:
            while self._ends and self._ends[0][0] <= now:
                over.append(heapq.heappop(self._ends)[1])
        for place in over:
            self._remove(place)

    def _set_timer(self) -> None:
        """One for each event loop, for the first end. Without a loop, who comes next looks."""
        loop = _running_loop()
        with self._lock:
            while self._ends and self._ends[0][1] not in self._shared:  # it ended early
                heapq.heappop(self._ends)
            if loop is None or not self._ends:
                return
            at = self._ends[0][0]
            if at < self._wakes_at.get(loop, math.inf):
                self._wakes_at[loop] = at
                seconds = max(at - time.monotonic(), 0.0)
                _call_later(min(seconds, _LONGEST_TIMER), partial(self._time_is_up, at))

    def _time_is_up(self, at: float) -> None:
        loop = _running_loop()
        if loop is not None and self._wakes_at.get(loop) == at:  # else another timer is set
            del self._wakes_at[loop]
        self._drop_expired()
        self._set_timer()  # a loop may also wake us early


_NEVER = 1e10  # seconds, that is 300 years
_LONGEST_TIMER = 24 * 3600.0  # what every loop can do


def _running_loop() -> object | None:
    from .driver._base import in_trio

    if in_trio():
        import trio

        return trio.lowlevel.current_trio_token()
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _call_later(seconds: float, run: Callable[[], None]) -> None:
    """Call it in the event loop that runs here."""
    from .driver._base import in_trio
    from .driver.anyio import start_background

    if in_trio():

        async def wait() -> None:
            import trio

            await trio.sleep(seconds)
            run()

        start_background(wait)
    else:
        import asyncio

        asyncio.get_running_loop().call_later(seconds, run)


shares = Shares()


def share(value: Any, *, ttl: float | None = None) -> CapId:
    """A random cap_id for a function, an object or a stub, good on every connection to this
    process, until `ttl` seconds are over or `unshare` is called.

    What is shared is held here meanwhile. References that were made with the cap_id outlive it; to
    end those too, share the facade of `revocable`.

    Raises:
        TypeError: the value cannot pass by reference, or is a promise.
        ValueError: `ttl` is not positive.
    """
    value = _checked_reference(value, "share()")
    if ttl is not None:
        check_seconds("ttl", ttl)
    return shares.add(value, ttl)


def unshare(cap_id: str) -> None:
    """End a cap_id that `share` gave. One that has ended already, or was none, is left alone.

    Raises:
        TypeError: it is no text.
    """
    if not isinstance(cap_id, str):
        raise TypeError(f"unshare() takes the cap_id that share() gave, not {cap_id!r}")
    shares.remove(cap_id)
