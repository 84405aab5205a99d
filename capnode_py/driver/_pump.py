"""Where the blocking connections of a process wait: a thread that waits drives them all.

There is no event loop and no helper thread. A thread that waits for one answer polls the
descriptors of every blocking connection, reads, starts the calls that have come, and returns when
its answer is there. While it waits it may so run handlers, which may wait in their turn.

- **One lock** guards all sessions: connections of one process hand references to each other. It is
  held while the engine works, and let go while a thread polls, sleeps, or runs code of the user's.
- **One thread polls.** Others that wait sleep until its poll returns; then one of them may be the
  next. So nobody sleeps while nobody polls, and no answer is missed when a thread leaves.
- **Jobs** are what the engine asked to be started: run first in, first out, never inside of the
  engine, by any thread that waits. **Errands** are what belongs to a connection and not to a
  caller, such as its end: they come after, and wait in place.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from .._cell import FULFILLED, PENDING, Call
from .._errors import CapnodeError, Withdrawn
from ._interrupts import Guard, edge, in_own_poll, polls

if TYPE_CHECKING:
    from .blocking import BlockingDriver

STOPPED = object()
"""The handle of a call whose handler is to stop: where it waits next, that wait raises."""


Events = Sequence[tuple[int, int]]
"""Descriptors, each with what may be done with it, as `select.poll` says it."""


_LONGEST_POLL = 24 * 3600.0
"""Seconds: the system counts them in milliseconds, of which it takes but so many."""


_IN_OWN_POLL = (
    "this code, a signal handler or a finalizer (__del__), has interrupted its own thread, which "
    "waits for a peer already: it cannot wait there as well. Write peer.notify(...) or "
    "peer.submit(...), which do not wait; or leave a note, and call when the wait is over"
)


class Settling(Protocol):
    """What can be waited for: a cell, or an `Event`."""

    @property
    def state(self) -> int: ...


class Elapsed(TimeoutError):
    """A deadline has passed. Internal: who set it says in its own words what took too long."""


class Place:
    """What a thread is doing, where it makes a call.

    Attributes:
        driver, call: the handler that runs, or None.
        deadline: when a wait is to be given up, or None.
        awaits: calls give promises, to be awaited: inside an ``async def``, or a pipeline.
        depth: how many handlers are below on this stack.
        entry: of a usual call, its id and its entry: it has no `call` until its handler waits.
        thread: the one that made it, of a handler.
    """

    __slots__ = ("awaits", "call", "deadline", "depth", "driver", "entry", "thread")

    def __init__(
        self,
        driver: BlockingDriver | None = None,
        call: Call | None = None,
        deadline: float | None = None,
        awaits: bool = False,  # noqa: FBT001, FBT002 - one is made for each handler: names cost
        depth: int = 0,
        entry: Any = None,
    ) -> None:
        self.driver = driver
        self.call = call
        self.deadline = deadline
        self.awaits = awaits
        self.depth = depth
        self.entry = entry
        self.thread = 0 if driver is None else get_ident()

    def here(self) -> Place:
        """This; or, in a thread that a handler has given its context, the same without it: who
        waits there is not the handler."""
        if self.driver is None or self.thread == get_ident():
            return self
        return Place(None, None, self.deadline, self.awaits, self.depth)

    @property
    def is_plain(self) -> bool:
        """Is a wait here just that, and nothing to be looked at but its answer?"""
        return not (
            self.awaits
            or self.deadline is not None
            or (self.driver is not None and self.driver.starting)
            or (self.call is not None and self.call.handle is STOPPED)
        )


NOWHERE = Place()
"""Where no handler runs, and nothing else is to be known."""
place: ContextVar[Place] = ContextVar("capnode_py.place", default=NOWHERE)


class Event:
    """What the coroutines of `Driver` wait for; waiting blocks in place."""

    __slots__ = ("_pump", "state")

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self.state: int = PENDING

    def set(self) -> None:
        self.state = FULFILLED
        self._pump.stir()

    async def wait(self) -> None:
        self._pump.wait(self)


class Timer:
    """See `Pump.later`."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[], object]) -> None:
        self.run: Callable[[], object] | None = run

    def cancel(self) -> None:
        self.run = None


class Pump:
    """See the module.

    Attributes:
        lock: guards this and all sessions; `drive` is called with it held, once.
        jobs, errands: what is to be done (`do`, `attend`).
        noted: connections for which the collector has left a note.
        unflushed: connections that have something to write (`flush_soon`).
        releasing: connections that have releases alone to send, and when that is to be.
        raised: for a thread, by its id, what it is to raise once the engine is done.
        held: the lock, as a context.
        calm: there are no jobs, errands and unflushed ones; False if that is to be looked at.
        polling: a thread polls; `sleeping`: how many others wait.
        descriptors: what is polled.
    """

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()
        self.jobs: deque[Callable[[], object]] = deque()
        self.errands: deque[Callable[[], Coroutine[Any, Any, None]]] = deque()
        self.noted: deque[BlockingDriver] = deque()
        self.unflushed: deque[BlockingDriver] = deque()
        self.releasing: deque[tuple[float, BlockingDriver]] = deque()
        self.calm = True
        self._changed = threading.Condition(self.lock)
        self.raised: dict[int, BaseException] = {}
        self.held = _Held(self)
        self.guard = Guard(lambda: bool(self.lock._is_owned()), self._interrupted)
        self.sleeping = 0
        self.polling = False
        self.descriptors = select.poll()
        self._readers: dict[int, Callable[[], object]] = {}
        self._lanes: dict[int, BlockingDriver] = {}
        self._writers: dict[int, Callable[[], object]] = {}
        self.timers: list[tuple[float, int, Timer]] = []
        self._serial = itertools.count()
        # Kept for the life of the process: a finalizer may write to it at any moment.
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self.watch_reading(self._wake_read, self._woken)

    # What is done by a thread that does not wait.

    def __enter__(self) -> None:
        """For a short piece of work on a session, after which what is to be sent is sent."""
        self.lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.flush()
            if self.jobs or self.errands:
                self.stir()
        finally:
            self.lock.release()
            if self.raised:
                self.raise_noted()

    def do(self, job: Callable[[], object]) -> None:
        """Have a thread that waits run this."""
        self.jobs.append(job)
        self.calm = False

    def attend(self, errand: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have a thread that waits run this, when there are no jobs."""
        self.errands.append(errand)
        self.calm = False

    def flush_soon(self, driver: BlockingDriver) -> None:
        """It has something to write."""
        self.unflushed.append(driver)
        self.calm = False

    def is_calm(self) -> bool:
        """Look at it."""
        self.calm = not (self.jobs or self.errands or self.unflushed)
        return self.calm

    def flush(self) -> None:
        """Write what there is to write, as far as it is taken."""
        while self.unflushed:
            self.unflushed.popleft().flush()

    @property
    def is_shared(self) -> bool:
        """Does another thread poll, or sleep?"""
        return self.polling or self.sleeping > 0

    def stir(self) -> None:
        """Something may have changed for those who wait."""
        if self.polling:
            self.wake()
        if self.sleeping:
            self._changed.notify_all()

    def wake(self) -> None:
        """Let the poll return. From any thread, at any moment; takes no lock."""
        with contextlib.suppress(OSError):  # full: it will return
            os.write(self._wake_write, b"\0")

    def note(self, driver: BlockingDriver) -> None:
        """The collector has left a note for this connection. From any thread, at any moment."""
        self.noted.append(driver)
        if self.polling:
            self.wake()

    def drain_notes(self) -> None:
        """Look at the notes, which may lead to something to write."""
        while self.noted:
            self.noted.popleft().drain_notes()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    # Descriptors and time.

    def watch_reading(
        self, fd: int, ready: Callable[[], object], lane: BlockingDriver | None = None
    ) -> None:
        """Call `ready()` when there is something to read; or, if that is all there is, have the
        `lane` serve it."""
        self._readers[fd] = ready
        if lane is not None:
            self._lanes[fd] = lane
        self._watch(fd)

    def unwatch_reading(self, fd: int) -> None:
        self._lanes.pop(fd, None)
        if self._readers.pop(fd, None) is not None:
            self._watch(fd)

    def watch_writing(self, fd: int, ready: Callable[[], object]) -> None:
        self._writers[fd] = ready
        self._watch(fd)

    def unwatch_writing(self, fd: int) -> None:
        if self._writers.pop(fd, None) is not None:
            self._watch(fd)

    def _watch(self, fd: int) -> None:
        mask = (fd in self._readers and select.POLLIN) | (fd in self._writers and select.POLLOUT)
        if mask:
            self.descriptors.register(fd, mask)
        else:
            self.descriptors.unregister(fd)
        if self.polling:
            self.wake()

    def later(self, seconds: float, run: Callable[[], object]) -> Timer:
        """Call `run()` then, or when a thread next waits."""
        timer = Timer(run)
        heapq.heappush(self.timers, (monotonic() + seconds, next(self._serial), timer))
        if self.polling:
            self.wake()
        return timer

    def _run_timers(self, now: float) -> None:
        while self.timers and self.timers[0][0] <= now:
            run = heapq.heappop(self.timers)[2].run
            if run is not None:
                run()
        while self.releasing and self.releasing[0][0] <= now:
            self.releasing.popleft()[1].flush_releases()

    # Waiting.

    def event(self) -> Event:
        """A new event."""
        return Event(self)

    def wait(self, until: Settling) -> None:
        """`drive`, with the lock held or not."""
        if self.lock._is_owned():
            self.drive(until, place.get())
        else:
            with self.lock:
                self.drive(until, place.get())

    def drive(self, until: Settling, here: Place, events: Events = ()) -> None:
        """Wait until it is settled, and do meanwhile whatever there is to do.

        The calls that came before its settling are started before this returns.

        Args:
            here: the place of the caller.
            events: of a poll, which are to be handled first.

        Raises:
            Elapsed: the deadline of this place has passed.
            Withdrawn: the caller of the handler that waits here does not want its answer any more.
        """
        here = here.here()
        deadline = here.deadline
        if here.driver is not None:
            here.driver.pause(here)
        call = here.call
        turned = False
        try:
            if events:
                self._serve(until, deadline, events)
            while until.state < FULFILLED:
                if self.raised:
                    self.raise_noted()
                # A wait of a handler whose caller has gone, or one that has taken too long, ends.
                if call is not None and call.handle is STOPPED:
                    call.handle = None
                    raise Withdrawn
                if turned and deadline is not None and monotonic() >= deadline:
                    raise Elapsed
                if self.jobs:
                    self.jobs.popleft()()
                elif self.errands:
                    self._run_errand()
                elif self.polling:
                    self._sleep(deadline)
                    turned = True
                else:
                    self._turn(until, deadline)
                    turned = True
            for _ in range(len(self.jobs)):
                if self.jobs:  # else a handler that waits has run them
                    self.jobs.popleft()()
            if self.raised:
                self.raise_noted()
        finally:
            if self.unflushed:
                self.flush()
            if here.driver is not None:
                here.driver.resume()

    def may_wait(self) -> bool:
        """Can this thread wait here? Not in the engine, nor in the midst of a poll of its own."""
        return not (self.lock._is_owned() or (self.polling and in_own_poll()))

    def raise_soon(self, error: BaseException) -> None:
        """Let the innermost wait of this thread raise it, once the engine is done; or, if it does
        not wait, this thread when it lets go of the lock."""
        self.raised[get_ident()] = error

    def raise_noted(self) -> None:
        """Raise it, if there is something for this thread to raise."""
        error = self.raised.pop(get_ident(), None)
        if error is not None:
            raise error

    def _interrupted(self) -> None:
        """Ctrl-C, in the midst of the engine, or in one of our waits. In the main thread."""
        self.raise_soon(KeyboardInterrupt())
        self.wake()

    def _run_errand(self) -> None:
        errand = self.errands.popleft()
        token = place.set(Place())
        try:
            complete(errand())
        finally:
            place.reset(token)

    @edge
    def _sleep(self, deadline: float | None) -> None:
        """Another thread polls: wait until something has changed."""
        if in_own_poll():
            raise RuntimeError(_IN_OWN_POLL)
        self.flush()
        self.sleeping += 1
        try:
            self._changed.wait(None if deadline is None else _until(deadline))
        finally:
            self.sleeping -= 1

    def _turn(self, until: Settling, deadline: float | None) -> None:
        """Write, poll, and read."""
        if self.noted:
            self.drain_notes()
        while self.unflushed:
            self.unflushed.popleft().flush()
        self._serve(until, deadline, self.poll(deadline))
        if self.timers or self.releasing:
            self._run_timers(monotonic())

    def _serve(self, until: Settling, deadline: float | None, events: Events) -> None:
        lane = self._lanes.get(events[0][0]) if len(events) == 1 else None
        if lane is not None and events == lane.is_readable:
            lane.serve(until, deadline)
        else:
            self.handle(events)

    @polls
    @edge
    def poll(self, deadline: float | None) -> Events:
        """Wait for a descriptor, with the lock let go: no other thread polls."""
        self.polling = True
        if self.noted:  # looked at behind the flag: later ones will wake the poll
            self.polling = False
            return ()
        timeout = self.timeout(deadline)
        try:
            self.lock.release()
            return self.descriptors.poll(timeout)
        finally:
            self.lock.acquire()
            self.polling = False
            if self.sleeping:
                self._changed.notify_all()

    def timeout(self, deadline: float | None) -> float | None:
        """How long a poll may take, in milliseconds."""
        when = self.timers[0][0] if self.timers else None
        if self.releasing and (when is None or self.releasing[0][0] < when):
            when = self.releasing[0][0]
        if deadline is not None and (when is None or deadline < when):
            when = deadline
        return None if when is None else _until(when) * 1000

    def handle(self, events: Events) -> None:
        """Read and write where that can be done. If another thread polls by now, since a handler
        has run here meanwhile, what is left is its own: it will see it, and what it waits for may
        be known to itself alone (`LockedSession._exchange`)."""
        for fd, event in events:
            if self.polling:
                return
            if event == select.POLLIN and fd in self._readers:
                self._readers[fd]()
                continue
            reader, writer = self._readers.get(fd), self._writers.get(fd)
            if reader is not None and event & ~select.POLLOUT:
                reader()
            if writer is not None and event & ~select.POLLIN:
                writer()

    # A fork.

    def forked(self) -> None:
        """This process is a fork of the one whose connections these are: they are not ours."""
        self.polling = False
        self.lock = _Forked()
        self.guard.give_back()
        self.discard()

    def discard(self) -> None:
        """Close what it has open; nobody in this process uses it."""
        self._readers.pop(self._wake_read)
        for fd in {*self._readers, *self._writers, self._wake_read, self._wake_write}:
            with contextlib.suppress(OSError):
                os.close(fd)


def _until(when: float) -> float:
    """Seconds to sleep, if until then; who wakes too early looks at the clock, and sleeps on."""
    return min(max(when - monotonic(), 0.0), _LONGEST_POLL)


class _Held:
    """The lock, for who waits, or does nothing that is to be sent."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump

    def __enter__(self) -> None:
        self._pump.lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        pump = self._pump
        pump.lock.release()
        if pump.raised:
            pump.raise_noted()


class _Forked:
    """Stands for the lock, which nobody in this process can take."""

    def __enter__(self) -> NoReturn:
        raise CapnodeError(
            "this connection belongs to the process that this one was forked from, and goes on "
            "there: open one of its own in the fork, or start the program anew (spawn)"
        )

    acquire = __enter__

    def __exit__(self, *exc_info: object) -> None: ...
    def release(self) -> None: ...
    def _is_owned(self) -> bool:
        return False


def complete(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits in place, if at all.

    Raises:
        RuntimeError: it wants an event loop.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError(
        f"an async handler waits for {waits_for!r}, which takes an event loop, and this peer is a "
        "blocking one: await only what it calls here, write a sync handler, or open the connection "
        "in an event loop with the doors of capnode_py"
    )


_pumps: dict[None, Pump] = {}


def the_pump() -> Pump:
    """The one of this process."""
    pump = _pumps.get(None)
    if pump is None:
        made = Pump()
        pump = _pumps.setdefault(None, made)  # another thread may have been faster
        if pump is not made:
            made.discard()
    return pump


def _forget_after_fork() -> None:
    pump = _pumps.pop(None, None)
    if pump is not None:
        pump.forked()
    place.set(Place())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
