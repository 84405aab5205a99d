"""What a child does whose parent is gone, or whose event loop is stuck.

A thread waits for the wire to hang up, which it sees whatever is unread. If the program has not
come to its end some seconds later, because a handler blocks, it is interrupted as by Ctrl-C; if
that does not help, it is ended, and what it has started with it. So no child outlives its parent
for long, unless C code never lets go of the interpreter. (`PR_SET_PDEATHSIG` would do the same in
the kernel, but follows the *thread* that started the child.)

While there is work, the same thread looks every second whether the event loop turns, and says which
handler blocks it; or, if calls begin all the while, with how much the loop is busy.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

from ._log import get_logger
from .driver._base import Driver

logger = get_logger("capnode_py.stdio")

EX_UNAVAILABLE = 69
"""The parent was gone, and this program did not end by itself (sysexits.h)."""

# Tests set these.
GRACE = 5.0  # seconds from the end of the parent to the interrupt, and from there to the end
LOOKS_EVERY = 1.0  # seconds; a loop that is stuck from one look to the next is reported

_PACKAGE = os.path.join(os.path.dirname(__file__), "")
_DRIVERS = os.path.join(_PACKAGE, "driver", "")
_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")
_SITE = os.path.join(_LIBRARY, "site-packages", "")


class Watchdog:
    """See the module. It watches from now on.

    Args:
        fd: hangs up when the parent is gone; -1: nothing does.
        driver: the loop that is looked at; made in this thread.

    Attributes:
        interrupted: it has interrupted the main thread.
    """

    def __init__(self, fd: int, driver: Driver, *, has_loop: bool) -> None:
        self.interrupted = False
        self._fd = -1 if fd < 0 else os.dup(fd)
        self._stop_read, self._stop_write = os.pipe()
        self._look = Look(driver)
        self._has_loop = has_loop
        self._serving = True
        self._thread = threading.Thread(target=self._run, name="capnode watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """The connection is over, and the program may go on."""
        with contextlib.suppress(OSError):
            os.write(self._stop_write, b"\0")
        self._thread.join()
        for fd in (self._fd, self._stop_read, self._stop_write):
            if fd >= 0:
                os.close(fd)

    def stop_serving(self) -> None:
        """The program may do what it wants to do at its end. Once its main thread has ended, no
        thread of a handler keeps it alive."""
        self._serving = False

    def _run(self) -> None:
        if not self._wait_for_the_end():
            return
        if not self._stopped_within(GRACE) and self._serving:
            self._interrupt()
        while not self._stopped_within(GRACE):
            if self._serving or _main_thread_has_ended():
                _end_process()

    def _wait_for_the_end(self) -> bool:
        """Look after the loop until the parent is gone. False: it is to stop.

        While nothing comes and nothing is at work it sleeps: an idle child wakes for nobody.
        """
        poll = select.poll()
        poll.register(self._stop_read, select.POLLIN)
        awake = self._has_loop
        while True:
            if self._fd >= 0:  # that it has hung up is told unasked
                sleeps = self._has_loop and self._serving and not awake
                poll.register(self._fd, select.POLLIN if sleeps else 0)
            events = dict(poll.poll(LOOKS_EVERY * 1000 if awake else None))
            if self._stop_read in events:
                return False
            if events.get(self._fd, 0) & ~select.POLLIN:
                return True
            awake = self._has_loop and self._serving and (bool(events) or self._look.again())

    def _stopped_within(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._stop_read, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _interrupt(self) -> None:
        logger.warning(
            "the parent is gone, and %s blocks: interrupting it",
            self._look.where() or "capnode_py itself",
        )
        self.interrupted = True
        main = threading.main_thread()
        if main.is_alive() and main.ident is not None:
            signal.pthread_kill(main.ident, signal.SIGINT)


class Look:
    """A loop, looked at from another thread.

    Args:
        driver: a connection that lives there; made in this thread.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._thread_of_loop = threading.get_ident()
        self._bytes = 0
        self._asked = 0.0  # when the loop was asked to answer; 0: it is not asked
        self._began = self._progress = (0, 0)  # what had come by then, and by the last look
        self._moved = 0.0  # when a look has last seen more
        self._said_busy = self._said_blocked = False

    def again(self) -> bool:
        """Is the loop stuck? False: it has nothing to do."""
        driver = self._driver
        if self._asked:
            self._tell()
            return True
        received = driver.session.bytes_received
        if received == self._bytes and not driver.is_busy:
            return False
        self._bytes = received
        self._began = self._progress = self._come()
        self._asked = self._moved = time.monotonic()
        driver.soon(self._answer)
        return True

    def _come(self) -> tuple[int, int]:
        """How many calls have begun, one by one; and how many messages have come, by frames."""
        session = self._driver.session
        return session.exports.last_answer, session.incoming.messages

    def _tell(self) -> None:
        """The loop has not answered since the last look: what is it at?"""
        where = self.where()
        come, now = self._come(), time.monotonic()
        if come == self._progress and where is not None:
            if not self._said_blocked:
                self._said_blocked = True
                logger.warning(
                    "%s has blocked the event loop for more than %.0f s. Other calls, pings and "
                    "the end of this program wait for it: make it async, or decorate it with "
                    "@capnode.in_thread",
                    where,
                    now - self._moved,
                )
            return
        if not self._said_busy:
            self._said_busy = True
            logger.warning(
                "the event loop has been busy with %d messages for more than %.0f s, now in %s. "
                "None of them blocks it, but other calls, pings and the end of this program wait "
                "for them all: send less at once",
                max(1, *(new - old for new, old in zip(come, self._began, strict=True))),
                now - self._asked,
                where or "capnode_py itself",
            )
        self._progress, self._moved = come, now

    def _answer(self) -> None:
        if self._said_busy or self._said_blocked:
            self._said_busy = self._said_blocked = False
            logger.warning("the event loop goes on, after %.1f s", time.monotonic() - self._asked)
        self._asked = 0.0

    def where(self) -> str | None:
        """The handler that runs in the thread of the loop; None: the library is at work there."""
        innermost = sys._current_frames().get(self._thread_of_loop)
        return "something" if innermost is None else at_work(innermost)


def at_work(innermost: FrameType) -> str | None:
    """Whose code the innermost driver has called, of this stack; None: only our own.

    That is a handler, or, behind some of the engine, what the engine calls: a property, the method
    behind a facade. The library of Python serves us there.
    """
    called: list[FrameType] = []
    frame: FrameType | None = innermost
    while frame is not None and not frame.f_code.co_filename.startswith(_DRIVERS):
        called.append(frame)
        frame = frame.f_back
    if frame is None or not called:  # a task of the program's, or what has no frame
        return f"something ({_place(innermost)})"
    handler, *deeper = reversed(called)
    for inner in (handler, *deeper):
        path = inner.f_code.co_filename
        ours = path.startswith(_PACKAGE)
        if not ours and (inner is handler or not path.startswith(_LIBRARY) or _SITE in path):
            return f"{inner.f_code.co_qualname} ({_place(inner)})"
    return None


def _place(frame: FrameType) -> str:
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _main_thread_has_ended() -> bool:
    """Has it left the program, and only waits for other threads?"""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame is None or frame.f_globals is vars(threading)


def _end_process() -> NoReturn:
    """End this process, and what it has started."""
    try:
        if leads_a_session():
            os.killpg(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(EX_UNAVAILABLE)


def leads_a_session() -> bool:
    """Did `spawn` start this process? Then its group is its own."""
    return os.getsid(0) == os.getpid()
