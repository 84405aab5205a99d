"""A child process of ours: how it is started, what became of it, and how it is seen out.

It runs on every driver: what waits here waits by the driver's own events.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ._errors import CapnodeError, PeerDied, PeerLost
from .driver._base import Driver

logger = logging.getLogger("capnode_py.spawn")

_TAIL_LINES = 20
_JUNK_SHOWN = 500  # bytes of it, in an error
_TAIL_WAIT = 0.1  # how long an error waits for the exit code, and for the last lines of stderr
_TERM_WAIT = 0.5  # between closing its stdin, SIGTERM and SIGKILL


def checked_command(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The program and its arguments as text.

    Raises:
        TypeError, ValueError: with what to write instead.
    """
    if isinstance(argv, (str, bytes)):
        raise TypeError(
            "spawn takes a list, without a shell in between: "
            f"write spawn({shlex.split(os.fsdecode(argv))!r})"
        )
    command = [os.fspath(part) for part in argv]
    if not command:
        raise ValueError("spawn takes a program: write spawn([sys.executable, 'plugin.py'])")
    return command


def name_of(command: list[str]) -> str:
    """The script that an interpreter runs, or the program."""
    for part in command[1:]:
        if part.endswith(".py"):
            return Path(part).name
    return Path(command[0]).name if command else ""


def start(
    command: list[str], cwd: str | os.PathLike[str] | None, env: Mapping[str, str] | None
) -> tuple[int, subprocess.Popen[bytes], int]:
    """Start it: our end of its stdin and stdout, the process, and our end of its stderr."""
    if not hasattr(os, "pidfd_open"):
        raise NotImplementedError("spawn has been run on Linux only, where a process has a pidfd")

    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            command,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=write_end,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    except BaseException as error:
        ours.close()
        os.close(read_end)
        if isinstance(error, OSError):
            error.add_note(f"spawn could not start {shlex.join(command)}")
        raise
    finally:
        theirs.close()
        os.close(write_end)
    return ours.detach(), process, read_end


class Child:
    """A process of ours, what it says on stderr, and its end.

    Who makes one tells it what comes from stderr (`heard`, `silent`) and when to look for its exit
    (`reap`, then `lose_peer`), and gives it a way to stop listening to stderr.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        command: list[str],
        driver: Driver,
        *,
        stop_hearing: Callable[[], None],
    ) -> None:
        self.process = process
        self._command = command
        self._driver = driver
        self._stop_hearing = stop_hearing
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._line = b""
        self._exited = driver.make_event()
        self._silent = driver.make_event()
        driver.explain = self._explain
        driver.finalize = self._end

    # What it is told.

    def heard(self, data: bytes) -> None:
        """It wrote to its stderr: forward it to ours, and keep its last lines."""
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > 64 * 1024:  # a line that does not end
            lines, self._line = [*lines, self._line], b""
        self._forward(lines)

    def silent(self) -> None:
        """Its stderr has ended."""
        if self._line:
            self._forward([self._line])
        self._silent.set()

    def _forward(self, lines: list[bytes]) -> None:
        text = [line.decode(errors="backslashreplace") for line in lines]
        self._tail.extend(text)
        if text and sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # ours is closed: the tail remains
                sys.stderr.write("\n".join(text) + "\n")

    def reap(self) -> bool:
        """Has it ended? It is no zombie then."""
        if self.process.poll() is None:
            return False
        self._exited.set()
        return True

    async def lose_peer(self) -> None:
        """It has ended. What it started may keep the stream open: the peer is lost as well."""
        driver = self._driver
        if driver.is_closing:
            return
        await driver.within(_TAIL_WAIT, driver.wait_closed)
        if driver.session.error is None:
            driver.lost()

    # What became of it.

    async def _explain(self, error: PeerLost) -> PeerLost:
        """The stream has ended: what became of the child?"""
        session = self._driver.session
        greeted = session.remote is not None
        junk = b"" if greeted else session.junk
        await self._driver.within(_TAIL_WAIT, self._last_words)
        tail = "\n".join(self._tail)
        returncode = self.process.returncode
        if returncode is None:
            lost = PeerLost(f"{self._what()} closed its stdout, and still runs")
            lost.__cause__ = error.__cause__
        else:
            name = signal.Signals(-returncode).name if returncode < 0 else None
            how = f"was killed by {name}" if name else f"exited with code {returncode}"
            lost = PeerDied(
                f"{self._what()} {how}{'' if greeted else ' before its hello'}",
                pid=self.process.pid,
                returncode=returncode,
                signal=name,
                command=self._command,
                stderr_tail=tail,
            )
        self._annotate(lost, junk)
        return lost

    async def _last_words(self) -> None:
        await self._exited.wait()
        await self._silent.wait()

    def sign(self, error: CapnodeError) -> None:
        """Let a failed start say which child it was."""
        if not isinstance(error, PeerDied):
            error.add_note(f"Started as: {shlex.join(self._command)} (pid {self.process.pid})")
            self._annotate(error, self._driver.session.junk)

    def _annotate(self, error: CapnodeError, junk: bytes) -> None:
        if junk:
            more = f" ... ({len(junk)} bytes in all)" if len(junk) > _JUNK_SHOWN else ""
            error.add_note(
                f"It wrote to its stdout, which is the wire:\n{junk[:_JUNK_SHOWN]!r}{more}"
            )
        if self._tail:
            error.add_note("Its last lines on stderr:\n" + "\n".join(self._tail))

    def _what(self) -> str:
        return f"the child {shlex.join(self._command)} (pid {self.process.pid})"

    # Seeing it out.

    async def _end(self) -> None:
        """The stream is closed: see the child out. Bounded, and shielded by who calls."""
        try:
            await self._see_out()
        finally:
            if self.process.poll() is None:  # the loop is ending, and nothing can be awaited
                self._signal_group(signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_TERM_WAIT)

    async def _see_out(self) -> None:
        within, exited = self._driver.within, self._exited.wait
        for sent in (signal.SIGTERM, signal.SIGKILL):
            if await within(_TERM_WAIT, exited):
                break
            logger.info("%s does not end: sending %s", self._what(), sent.name)
            self._signal_group(sent)
        await within(_TERM_WAIT, exited)
        if self.process.returncode is None:
            logger.warning("%s survives SIGKILL; it is left alone", self._what())
        else:
            self._signal_group(signal.SIGKILL)  # what it has started goes with it
        if not await within(_TAIL_WAIT, self._silent.wait):
            self._stop_hearing()
            await self._silent.wait()

    def _signal_group(self, sent: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, sent)
