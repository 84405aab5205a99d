"""A child process of ours: what it says, what became of it, and how it is seen out.

It runs on every driver: what waits here waits by the driver's own events.

- **Its group goes with it.** When a child has ended, its process group is killed before the child
  is reaped: until then the number is its own.
- **What it is waited for is its exit**, told by a pidfd, and never the end of a pipe, which what it
  has started may hold open.
- **Its stdout is read to the end**, also while it is seen out: a child that is stuck in a write
  does not exit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ._errors import CapnodeError, PeerDied, PeerLost
from ._log import get_logger
from ._start import Recipe, Started, as_line, signal_group
from .driver._base import LOOP_ENDED

if TYPE_CHECKING:
    from .driver._base import Driver

logger = get_logger("capnode_py.spawn")
stderr_logger = get_logger("capnode_py.child")

_TAIL_LINES = 20
_LONGEST_LINE = 64 * 1024  # what of a line on stderr is taken for a line of its own
_PIPE_READS = 32  # more than a pipe holds, unless somebody goes on writing
_JUNK_SHOWN = 500  # bytes of it, in an error
_EXIT_WAIT = 0.09  # how long an error waits for the exit code, when the stream has ended
_EXITING_WAIT = 2.0  # how long, if the kernel says that it is exiting
_READ_WAIT = 0.05  # how long, when the child has ended, for the end of the stream
_STDERR_WAIT = 0.1  # how long closing waits for the end of stderr, which another may hold open
_PF_EXITING = 4  # include/linux/sched.h
_END_WAIT = 0.5  # how long, when its stdin is closed, until SIGTERM
_TERM_WAIT = 0.5  # how long, when SIGTERM was sent, until SIGKILL
_KILL_WAIT = 0.8  # how long, when SIGKILL was sent: on a busy machine it takes its time


def _has_ended(pid: int) -> bool:
    """Has a child of ours ended? If so, it stays a zombie."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _is_exiting(pid: int) -> bool:
    """Is it on its way out? The kernel closes what a process had open before it tells the exit."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            flags = stat.read().rpartition(b")")[2].split()[6]
    except (OSError, IndexError):
        return False
    return bool(int(flags) & _PF_EXITING)


class Child:
    """A process of ours, what it says on stderr, and its end.

    Who makes one calls `hear` when its stderr is readable, until that returns False, and closes the
    descriptor; and `reap` when its pidfd is, then `lose_peer`.

    Args:
        outside: runs what may be the user's own, out of the engine.
        stop_hearing: ends the listening to stderr.
    """

    def __init__(
        self,
        started: Started,
        recipe: Recipe,
        driver: Driver,
        *,
        outside: Callable[[Callable[[], object]], object],
        stop_hearing: Callable[[], object],
    ) -> None:
        self.process = started.process
        self._stderr = started.stderr
        self._recipe = recipe
        self._driver = driver
        self._outside = outside
        self._stop_hearing = stop_hearing
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._line = b""
        self._exited = driver.make_event()
        self._silent = driver.make_event()
        if self._stderr < 0:
            self._silent.set()
        driver.explain = self._explain
        driver.finalize = self._end

    @property
    def stderr_tail(self) -> str:
        """Its last lines on stderr."""
        return "\n".join(self._tail)

    # What it is told.

    def hear(self) -> bool:
        """Its stderr may be readable: hand on what it has said. False: it has ended."""
        try:
            return self._heard(os.read(self._stderr, _LONGEST_LINE))
        except BlockingIOError:
            return True

    def _heard(self, data: bytes) -> bool:
        *lines, self._line = (self._line + data).split(b"\n")
        if self._line and (not data or len(self._line) >= _LONGEST_LINE):  # it does not end
            lines, self._line = [*lines, self._line], b""
        if lines:
            text = [line.decode(errors="backslashreplace") for line in lines]
            self._tail.extend(text)
            if self._recipe.stderr != "capture":
                self._outside(lambda: self._say(text))
        return bool(data)

    def silent(self) -> None:
        """Nobody listens to its stderr any more."""
        self._stderr = -1
        self._silent.set()

    def _say(self, lines: list[str]) -> None:
        """Hand it on. Whatever that raises, the child's stderr is read on."""
        say = self._recipe.stderr
        try:
            if say == "forward":
                if sys.stderr is not None:
                    with contextlib.suppress(OSError, ValueError):  # ours is closed: we have a tail
                        sys.stderr.write("\n".join(lines) + "\n")
            elif say == "log":
                for line in lines:
                    stderr_logger.info("%s", line, extra={"peer": self._recipe.settings.nickname})
            elif callable(say):
                for line in lines:
                    say(line)
        except Exception:
            logger.exception(_NOT_SAID["function" if callable(say) else say])

    def reap(self) -> bool:
        """Has it ended? It is no zombie then, and what it has started is ended with it."""
        if self.process.returncode is None:
            with contextlib.suppress(ChildProcessError):  # this program has reaped it by itself
                if not _has_ended(self.process.pid):
                    return False
                signal_group(self.process.pid, signal.SIGKILL)
            self.process.poll()
        self._exited.set()
        return True

    async def lose_peer(self) -> None:
        """It has ended. Who holds the stream open all the same does not hide that."""
        driver = self._driver
        if driver.is_closing:
            return
        await driver.within(_READ_WAIT, driver.wait_closed)
        if driver.session.error is None:
            driver.lost()

    def warn_if_left(self, end: str, instead: str) -> None:
        """Its loop, or the program, has ended: has anybody closed its peer?

        The warning is of the line that started it. Where warnings are errors it is one as those of
        finalizers are: it is told, and breaks nothing.
        """
        driver = self._driver
        error = driver.session.error
        if driver.asked_to_close or (error is not None and str(error) != LOOP_ENDED):
            return
        message = f"{self._what()} was never closed, and {end}: write {instead}"
        _Left(message, self._recipe.site)

    # What became of it.

    async def _explain(self, error: PeerLost) -> PeerLost:
        """The stream has ended: what became of the child?"""
        if not await self._exits_within(_EXIT_WAIT) and _is_exiting(self.process.pid):
            await self._exits_within(_EXITING_WAIT)
        self._hear_the_rest()
        greeted = not self._driver.session.wants_hello
        returncode = self.process.returncode
        if returncode is None:
            lost = PeerLost(f"{self._what()} closed its stdout, and still runs")
            lost.__cause__ = error.__cause__
        else:
            lost = self._died(returncode, greeted=greeted)
        self._annotate(lost, b"" if greeted else self._driver.session.junk)
        return lost

    async def _exits_within(self, seconds: float) -> bool:
        # On a busy machine the time is over before we have been told: so look.
        return await self._driver.within(seconds, self._exited.wait) or self.reap()

    def _hear_the_rest(self) -> None:
        """What it said before it ended stands in the pipe, and need not be waited for."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_PIPE_READS):
                if self._stderr < 0 or not self._heard(os.read(self._stderr, _LONGEST_LINE)):
                    break

    def _died(self, returncode: int, *, greeted: bool) -> PeerDied:
        name = _signal_name(-returncode) if returncode < 0 else None
        how = f"was killed by {name}" if name else f"exited with code {returncode}"
        if not greeted:
            how += f" before its hello{_HINTS.get(returncode, '')}"
        return PeerDied(
            f"{self._what()} {how}",
            pid=self.process.pid,
            returncode=returncode,
            signal=name,
            command=self._recipe.command,
            stderr_tail=self.stderr_tail,
        )

    def sign(self, error: CapnodeError) -> None:
        """Let a failed start say which child it was."""
        if not isinstance(error, PeerDied):
            command = as_line(self._recipe.command)
            error.add_note(f"Started as: {command} (pid {self.process.pid})")
            self._annotate(error, self._driver.session.junk)

    def _annotate(self, error: CapnodeError, junk: bytes) -> None:
        if junk:
            more = f" ... ({len(junk)} bytes in all)" if len(junk) > _JUNK_SHOWN else ""
            error.add_note(
                f"It wrote to its stdout, which is the wire:\n{junk[:_JUNK_SHOWN]!r}{more}"
            )
        if self._tail:
            error.add_note("Its last lines on stderr:\n" + self.stderr_tail)

    def _what(self) -> str:
        return f"the child {as_line(self._recipe.command)} (pid {self.process.pid})"

    # Seeing it out.

    async def _end(self) -> None:
        """No more is written: see the child out. Bounded, and shielded by who calls."""
        try:
            await self._see_out()
        finally:
            if not self.reap():  # the loop is ending, and nothing can be awaited
                signal_group(self.process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_KILL_WAIT)

    async def _see_out(self) -> None:
        for seconds, sent in ((_END_WAIT, signal.SIGTERM), (_TERM_WAIT, signal.SIGKILL)):
            if await self._exits_within(seconds):
                break
            logger.info("%s does not end: sending %s", self._what(), sent.name)
            signal_group(self.process.pid, sent)
            signal_group(self.process.pid, signal.SIGCONT)  # it may be stopped
        if not await self._exits_within(_KILL_WAIT):
            logger.warning("%s survives SIGKILL; it is left alone", self._what())
        if not await self._driver.within(_STDERR_WAIT, self._silent.wait):
            self._stop_hearing()
            await self._silent.wait()


class _Left:
    """Warns in its end."""

    def __init__(self, message: str, site: tuple[str, int]) -> None:
        self._message = message
        self._site = site

    def __del__(self) -> None:
        warnings.warn_explicit(self._message, ResourceWarning, *self._site)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# What to log when what a child says on stderr cannot be handed on.
_NOT_SAID: Mapping[str, str] = {
    "forward": "sys.stderr raised, to which the stderr of a child is forwarded",
    "log": "the logging of a child's stderr raised",
    "function": "the function that was given as stderr= raised",
}

# What a number says, when there was no hello.
_HINTS: Mapping[int, str] = {
    0: ": is it a plugin? The last line of one is capnode_py.serve_stdio(index)",
    126: ", as a shell does that cannot execute the program",
    127: ", as a shell does that finds no such program",
}
