"""What a stretch of a program leaves behind: tasks, threads, children, descriptors, open peers, and
references that a peer still holds.

Each is found by comparing with what was there before, so that what belongs to a wider stretch (a
fixture of the session, the loop itself) is nobody's leak. What has been told to end gets a moment
to do so.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from weakref import ReferenceType, WeakKeyDictionary, ref

import anyio
import anyio.lowlevel

from .. import _peer
from .._errors import PeerClosed, PeerLost
from .._leaks import entries_of, leak_report, trace_references
from .._peer import AnyPeer, Peer
from ..driver._base import LOOP_ENDED
from ..driver._pump import the_pump
from ._census import (
    Census,
    coroutine_of,
    is_idle,
    is_own,
    of_child,
    of_descriptor,
    of_task,
    of_thread,
    origins_of_coroutines,
    site,
    warm_uvloop,
)
from ._wire import FakeDriver

KINDS = ("tasks", "threads", "children", "descriptors", "peers", "references")

GRACE = 2.0
"""Seconds for what has been told to end."""

_QUICK_TURNS = 100  # of the loop, in which what has been told to end mostly does
_COLLECTIONS = 10  # what one of them frees may be what holds the next, at the other side


def nothing_left(*, allow: Collection[str] = (), trace: bool = True) -> NothingLeft:
    """A block, with ``with`` or ``async with``, that raises if it leaves something behind.

        async with nothing_left():
            async with capnode.spawn([sys.executable, "plugin.py"]) as peer:
                await peer.index.add(1, 2)

    What is looked for:

    - *threads* and *children* of this process (children on Linux);
    - *peers* that were opened and not closed;
    - *references*: the entries in the tables of peers that are still open, beyond what they held
      before. With ``async with``, of the peers of this loop; with ``with``, of blocking ones;
    - with ``async with``, *tasks* of this loop;
    - with ``with``, *descriptors* (on Linux). A loop opens some for itself, so put it inside.

    Nothing is looked for if the block raises.

    Args:
        allow: kinds that may be left, by the names above.
        trace: note where references and tasks are made, which costs some microseconds for each.

    Raises:
        AssertionError: with a line for each thing that is left, and where it came from.
        ValueError: for the names in `allow`.
    """
    unknown = set(allow).difference(KINDS)
    if unknown:
        raise ValueError(f"allow={sorted(unknown)}: kinds are {', '.join(KINDS)}")
    return NothingLeft(set(KINDS).difference(allow), trace=trace)


async def check_peers_quiet(*peers: Peer, rounds: int = 20) -> None:
    """Assert that real peers hold nothing of each other but the two indexes.

    A ping is the fence: what either side has released before it has arrived after it.

    Args:
        peers: in this process; those that are closed hold nothing at all.
        rounds: how many pings to try, since giving up one thing may free another.
    """
    for attempt in range(rounds):
        held = [line for peer in peers for line in _held(peer, ())]
        if not held:
            return
        if attempt:
            gc.collect()  # only now: it is slow, and dropped cycles are rare
        for peer in peers:
            with contextlib.suppress(PeerClosed, PeerLost):
                await peer.ping()
    raise AssertionError(_told(held))


class NothingLeft:
    """See `nothing_left`. Not to be used again.

    Args:
        kinds: what to look for.
        trace: as for `nothing_left`.
    """

    def __init__(self, kinds: Collection[str], *, trace: bool = True) -> None:
        self._kinds = kinds
        self._trace = trace
        self._traces = contextlib.ExitStack()
        self._before = Census(set(), set(), set(), {})
        self._entries: dict[AnyPeer[Any], set[tuple[str, int]]] = {}
        self._serial = 0

    def begin(self) -> None:
        """From here on."""
        watch_peers()
        self._serial = _last_serial()
        self._before = Census.now(descriptors="descriptors" in self._kinds)
        self._entries = {peer: set(entries_of(peer._session)) for peer in _open_peers()}
        if self._trace:
            self._traces.enter_context(trace_references())
            self._traces.enter_context(origins_of_coroutines())

    def end(self) -> None:
        """Until here: stop to note where things come from. `check` may follow, in its own time."""
        self._traces.close()

    def check(self) -> None:
        """Assert that nothing is left."""
        give_up = time.monotonic() + GRACE
        while True:
            self._ping_blocking()
            found = self.found(here=False)
            if not found:
                return
            if time.monotonic() > give_up:
                raise AssertionError(_told(found))
            gc.collect()
            threading.Event().wait(0.005)  # threads and processes come to their ends

    async def acheck(self) -> None:
        """The same inside the loop, its tasks and peers too."""
        give_up = time.monotonic() + GRACE
        for turn in itertools.count():
            await self._ping()
            found = self.found(here=True)
            if not found:
                return
            if time.monotonic() > give_up and turn > 2 * _QUICK_TURNS:  # it had its turns, too
                raise AssertionError(_told(found))
            if turn % 10 == 9 and turn <= 10 * _COLLECTIONS:
                gc.collect()
            elif turn > _QUICK_TURNS:
                threading.Event().wait(0.002)  # and no sleep of the loop's, whose clock may stand
            await anyio.lowlevel.checkpoint()

    def found(self, *, here: bool) -> list[str]:
        """A line for each thing that is left now.

        Args:
            here: look at the tasks and peers of this loop; else at blocking peers.
        """
        now = Census.now(descriptors="descriptors" in self._kinds)
        peers = [
            peer
            for peer in list(_made)
            if _made[peer].serial > self._serial and not _was_closed(peer)
        ]
        lines: dict[str, Iterable[str]] = {}
        lines["peers"] = (f"{_of_peer(peer)}, was not closed" for peer in peers)
        lines["references"] = (
            line
            for peer in _open_peers()
            if (_is_here(peer) if here else _is_blocking(peer))
            for line in _held(peer, self._entries.get(peer, ()))
        )
        if here:
            lines["tasks"] = self._tasks(now)
        lines["threads"] = (
            of_thread(thread)
            for thread in now.threads - self._before.threads
            if not is_idle(thread)
        )
        if "peers" not in self._kinds or not peers:  # else these are theirs
            lines["children"] = map(of_child, now.children - self._before.children)
            before = self._before.descriptors
            lines["descriptors"] = (
                of_descriptor(fd, what)
                for fd, what in now.descriptors.items()
                if not here and before.get(fd) != what
            )
        return [line for kind, found in lines.items() if kind in self._kinds for line in found]

    def _tasks(self, now: Census) -> Iterator[str]:
        serving = any(map(_is_here, _open_peers()))
        for task in now.tasks - self._before.tasks:
            coroutine = coroutine_of(task)
            if not (serving and is_own(coroutine)):
                yield of_task(task, coroutine)

    async def _ping(self) -> None:
        if "references" in self._kinds:
            for peer in _open_peers():
                if _is_here(peer) and _held(peer, self._entries.get(peer, ())):
                    with contextlib.suppress(PeerClosed, PeerLost), anyio.move_on_after(GRACE):
                        await peer.ping()  # type: ignore[attr-defined]

    def _ping_blocking(self) -> None:
        if "references" in self._kinds:
            for peer in _open_peers():
                if _is_blocking(peer) and _held(peer, self._entries.get(peer, ())):
                    driver: Any = peer._driver
                    with contextlib.suppress(PeerClosed, PeerLost, TimeoutError):
                        driver.block_on(driver.bring(peer._ping), GRACE)

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
        if exc_type is None:
            self.check()

    async def __aenter__(self) -> Self:
        self.begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
        if exc_type is None:
            await self.acheck()


def _told(found: list[str]) -> str:
    return "left behind:\n  " + "\n  ".join(found)


# Peers.


class _Making(NamedTuple):
    """How a peer came to be."""

    serial: int
    site: str
    loop: ReferenceType[Any] | None


_made: WeakKeyDictionary[AnyPeer[Any], _Making] = WeakKeyDictionary()
_serials: Final = [0]


def watch_peers() -> None:
    """Note each peer from now on, and where it was made."""
    _peer.on_made = _note_peer
    the_pump()  # whose descriptors stay open
    warm_uvloop()


def _note_peer(peer: AnyPeer[Any]) -> None:
    if not isinstance(peer._driver, FakeDriver):
        _serials[0] += 1
        loop = _loop()
        _made[peer] = _Making(
            _serials[0], site(sys._getframe(1)), None if loop is None else ref(loop)
        )


def _last_serial() -> int:
    return _serials[0]


def _open_peers() -> list[AnyPeer[Any]]:
    return [peer for peer in _made if not peer.is_closed]


def _was_closed(peer: AnyPeer[Any]) -> bool:
    """By somebody, and not by the end of its loop."""
    error = peer._session.error
    return error is not None and str(error) != LOOP_ENDED


def _is_blocking(peer: AnyPeer[Any]) -> bool:
    sync = sys.modules.get("capnode_py.sync")
    return sync is not None and isinstance(peer, sync.Peer) and not peer._driver.forked


def _is_here(peer: AnyPeer[Any]) -> bool:
    """Does it live in the loop that runs here?"""
    loop, made_in = _loop(), _made[peer].loop
    return loop is not None and made_in is not None and made_in() is loop


def _loop() -> Any:
    trio = getattr(sys.modules.get("trio"), "lowlevel", None)  # None while it is being imported
    if trio is not None and trio.in_trio_run():
        return trio.current_trio_token()
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


def _held(peer: AnyPeer[Any], known: Collection[tuple[str, int]]) -> list[str]:
    """What it holds beyond that; and the index as well, if it is closed."""
    lines = [f"{_of_peer(peer)}: {line}" for line in leak_report(peer._session, known)]
    stats = peer.stats()
    if not lines and peer.is_closed and stats.imports + stats.exports:
        return [f"{_of_peer(peer)}: an index"]
    return lines


def _of_peer(peer: AnyPeer[Any]) -> str:
    child = f", with the child process {peer.pid}" if peer.pid is not None else ""
    where = _made[peer].site if peer in _made else ""
    return f"peer {peer!r}{child}{where and ', opened at '}{where}"
