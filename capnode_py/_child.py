"""A child process of ours: how it is started, what became of it, and how it is seen out.

It runs on every driver: what waits here waits by the driver's own events.

- **Its group goes with it.** A child leads a session and process group of its own. When it has
  ended, the group is killed before the child is reaped: until then the number is its own.
- **What it is waited for is its exit**, told by a pidfd, and never the end of a pipe, which what it
  has started may hold open.
- **Its stdout is read to the end**, also while it is seen out: a child that is stuck in a write
  does not exit.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypedDict

from ._claim import VARIABLE
from ._errors import CapnodeError, PeerDied, PeerLost
from ._peer import Settings, make_settings

if TYPE_CHECKING:
    from ._capnode import Capnode, Index
    from ._limits import Limits
    from .driver._base import Driver

logger = logging.getLogger("capnode_py.spawn")
stderr_logger = logging.getLogger("capnode_py.child")

_TAIL_LINES = 20
_LONGEST_LINE = 64 * 1024  # what of a line on stderr is taken for a line of its own
_PIPE_READS = 32  # more than a pipe holds, unless somebody goes on writing
_JUNK_SHOWN = 500  # bytes of it, in an error
_EXIT_WAIT = 0.09  # how long an error waits for the exit code, when the stream has ended
_EXITING_WAIT = 2.0  # how long, if the kernel says that it is exiting
_READ_WAIT = 0.05  # how long, when the child has ended, for the end of the stream
_STDERR_WAIT = 0.1  # how long closing waits for the end of stderr, which another may hold open
_PF_EXITING = 4  # include/linux/sched.h
_TERM_WAIT = 0.5  # between closing its stdin, SIGTERM and SIGKILL

Command: TypeAlias = "Sequence[str | os.PathLike[str]]"
Stderr: TypeAlias = "Literal['forward', 'inherit', 'log', 'capture'] | Callable[[str], object]"
Channel: TypeAlias = Literal["stdio", "pipe", "fd"]

STDERR = ("forward", "inherit", "log", "capture")


class SpawnOptions(TypedDict, total=False):
    """The options of `capnode_py.spawn`, which says what they mean, for the doors that hand them
    on. A test holds the two together."""

    index: Index
    host: Capnode | None
    dialect: str
    limits: Limits | None
    nickname: str
    tracebacks: bool
    application: str
    versions: Sequence[int]
    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    add_env: Mapping[str, str] | None
    stderr: Stderr
    channel: Channel
    logs: bool | int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a child is started, as often as it is.

    Attributes:
        settings: of the connection.
        logs: the level of the log records that it is to send; None if none.
        The others: see `capnode_py.spawn`.
    """

    command: list[str]
    settings: Settings
    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    add_env: Mapping[str, str]
    stderr: Stderr
    channel: Channel
    logs: int | None


def recipe(
    argv: Command,
    *,
    index: Index = None,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    nickname: str = "",
    tracebacks: bool = True,
    application: str = "",
    versions: Sequence[int] = (),
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    add_env: Mapping[str, str] | None = None,
    stderr: Stderr = "forward",
    channel: Channel = "stdio",
    logs: bool | int = False,
) -> Recipe:
    """Check what `spawn` was given.

    Raises:
        TypeError, ValueError: with what to write instead.
    """
    command = checked_command(argv)
    if type(logs) not in (bool, int):
        raise TypeError(f"logs= takes True, or a level such as logging.INFO, not {logs!r}")
    _check_stderr(stderr)
    if channel not in _CHANNELS:
        raise ValueError(f"channel={channel!r}: one of {_either(_CHANNELS)}")
    _check_environment("env", env)
    _check_environment("add_env", add_env)
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        nickname or name_of(command),
        tracebacks=tracebacks,
        takes_junk=channel != "fd",
        application=application,
        versions=versions,
    )
    return Recipe(
        command=command,
        settings=settings,
        cwd=cwd,
        env=env,
        add_env=add_env or {},
        stderr=stderr,
        channel=channel,
        logs=None if logs is False else 0 if logs is True else logs,
    )


def checked_command(argv: Command) -> list[str]:
    """The program and its arguments as text.

    Raises:
        TypeError, ValueError: with what to write instead.
    """
    if isinstance(argv, (str, bytes, os.PathLike)):
        raise TypeError(
            "spawn takes a list, without a shell in between: "
            f"write spawn({shlex.split(os.fsdecode(argv))!r})"
        )
    command = [os.fspath(part) for part in argv]
    if not command:
        raise ValueError("spawn takes a program: write spawn([sys.executable, 'plugin.py'])")
    return command


def _check_stderr(stderr: Any) -> None:
    if callable(stderr):
        if inspect.iscoroutinefunction(stderr):
            raise TypeError(f"stderr= takes a plain function of a line, not {stderr!r}")
    elif stderr not in STDERR:
        raise ValueError(f"stderr={stderr!r}: one of {_either(STDERR)}, or a function of a line")


def _check_environment(name: str, variables: Any) -> None:
    if variables is None:
        return
    if not isinstance(variables, Mapping):
        raise TypeError(f"{name}= takes a dict of strings, not {variables!r}")
    for key, value in variables.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{name}= takes strings: {key!r} is {value!r}")


def _either(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def name_of(command: list[str]) -> str:
    """The script that an interpreter runs, or the program."""
    for part in command[1:]:
        if part.endswith(".py"):
            return Path(part).name
    return Path(command[0]).name if command else ""


# Its start.


class Ends(NamedTuple):
    """Of what lies between a parent and its child.

    Attributes:
        ours: descriptors to read and to write, which may be the same.
        theirs: the child's stdin and stdout; None: it shares ours.
        passed: one that the child gets besides; -1: none.
    """

    ours: tuple[int, int]
    theirs: tuple[int | None, int | None]
    passed: int = -1


def _socket_ends() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def _stdio_ends() -> Ends:
    ours, theirs = _socket_ends()
    return Ends((ours, ours), (theirs, theirs))


def _pipe_ends() -> Ends:
    stdin, write_fd = os.pipe()
    try:
        read_fd, stdout = os.pipe()
    except BaseException:
        _close({stdin, write_fd})
        raise
    return Ends((read_fd, write_fd), (stdin, stdout))


def _private_ends() -> Ends:
    ours, theirs = _socket_ends()
    return Ends((ours, ours), (None, None), theirs)


_CHANNELS: Mapping[str, Callable[[], Ends]] = {
    "stdio": _stdio_ends,
    "pipe": _pipe_ends,
    "fd": _private_ends,
}


class Started(NamedTuple):
    """A child that runs.

    Attributes:
        fds: our end of the wire.
        stderr: our end of its stderr, which does not block; -1: it writes to ours.
        pidfd: is readable when it has ended.
    """

    process: subprocess.Popen[bytes]
    fds: tuple[int, int]
    stderr: int
    pidfd: int

    def undo(self) -> None:
        """Leave nothing of it, at once."""
        signal_group(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _close({*self.fds, self.stderr, self.pidfd})


def start(recipe: Recipe, private: Mapping[str, str]) -> Started:
    """Start it. `private` is added to its environment.

    Raises:
        OSError: it cannot be started, and nothing is left.
        NotImplementedError: not on this platform.
    """
    if not hasattr(os, "pidfd_open"):
        raise NotImplementedError(
            "spawn has been run on Linux only, whose pidfds it waits for: elsewhere, start the "
            "program by yourself, and connect() to it"
        )

    ends = _CHANNELS[recipe.channel]()
    read_stderr = write_stderr = pidfd = -1
    process: subprocess.Popen[bytes] | None = None
    try:
        if recipe.stderr != "inherit":
            read_stderr, write_stderr = os.pipe()
            os.set_blocking(read_stderr, False)
        process = subprocess.Popen(
            recipe.command,
            stdin=ends.theirs[0],
            stdout=ends.theirs[1],
            stderr=None if write_stderr < 0 else write_stderr,
            pass_fds=() if ends.passed < 0 else (ends.passed,),
            cwd=recipe.cwd,
            env=_environment(recipe, {**private, **_told(ends.passed)}),
            start_new_session=True,
        )
        pidfd = os.pidfd_open(process.pid)
        return Started(process, ends.ours, read_stderr, pidfd)
    except BaseException as error:
        if process is not None:
            Started(process, ends.ours, read_stderr, pidfd).undo()
        else:
            _close({*ends.ours, read_stderr})
        if isinstance(error, OSError):
            error.add_note(_why_not_started(recipe, error))
        raise
    finally:
        _close({*ends.theirs, ends.passed, write_stderr})


def _environment(recipe: Recipe, private: Mapping[str, str]) -> Mapping[str, str] | None:
    if recipe.env is None and not recipe.add_env and not private:
        return None  # which costs nothing
    return {**(os.environ if recipe.env is None else recipe.env), **recipe.add_env, **private}


def _told(passed: int) -> dict[str, str]:
    if passed < 0:
        return {}
    return {VARIABLE: f"{passed}:{os.fstat(passed).st_ino}"}


def _why_not_started(recipe: Recipe, error: OSError) -> str:
    program = recipe.command[0]
    why = f"spawn could not start {shlex.join(recipe.command)}"
    if recipe.cwd is not None and error.filename == recipe.cwd:
        return f"{why}: cwd= is no directory that can be entered"
    if error.errno == errno.ENOENT:
        where = "there" if os.sep in program else "on PATH"
        return f"{why}: no program of that name is {where}, or its interpreter (#!) is missing"
    if error.errno in (errno.EACCES, errno.ENOEXEC):
        return (
            f"{why}: {program} cannot be executed. A file of Python is started by "
            f"spawn([sys.executable, {program!r}])"
        )
    return why


def _close(fds: Iterable[int | None]) -> None:
    for fd in fds:
        if fd is not None and fd >= 0:
            os.close(fd)


def signal_group(pid: int, sent: signal.Signals) -> None:
    """Signal a child, and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sent)


def _has_ended(pid: int) -> bool:
    """Has a child of ours ended? If so, it stays a zombie."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _is_exiting(pid: int) -> bool:
    """Is it on its way out? The kernel closes what a process had open before it tells the exit."""
    try:
        flags = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[6]
    except (OSError, IndexError):
        return False
    return bool(int(flags) & _PF_EXITING)


def request_logs(how: Recipe) -> tuple[dict[str, str], Callable[[], object]]:
    """What to add to the child's environment, and what to do when it is gone."""
    if how.logs is None:
        return {}, lambda: None

    from ._logs import request, withdraw

    asked = request(how.logs, how.settings.nickname)
    return asked, partial(withdraw, asked)


# What becomes of it.


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
        say = self._recipe.stderr
        if say == "forward":
            if sys.stderr is not None:
                with contextlib.suppress(OSError, ValueError):  # ours is closed: the tail remains
                    sys.stderr.write("\n".join(lines) + "\n")
        elif say == "log":
            for line in lines:
                stderr_logger.info("%s", line, extra={"peer": self._recipe.settings.nickname})
        elif callable(say):
            try:
                for line in lines:
                    say(line)
            except Exception:
                logger.exception("the function that was given as stderr= raised")

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
            command = shlex.join(self._recipe.command)
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
        return f"the child {shlex.join(self._recipe.command)} (pid {self.process.pid})"

    # Seeing it out.

    async def _end(self) -> None:
        """No more is written: see the child out. Bounded, and shielded by who calls."""
        try:
            await self._see_out()
        finally:
            if not self.reap():  # the loop is ending, and nothing can be awaited
                signal_group(self.process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_TERM_WAIT)

    async def _see_out(self) -> None:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            if await self._exits_within(_TERM_WAIT):
                break
            logger.info("%s does not end: sending %s", self._what(), sent.name)
            signal_group(self.process.pid, sent)
            signal_group(self.process.pid, signal.SIGCONT)  # it may be stopped
        if not await self._exits_within(_TERM_WAIT):
            logger.warning("%s survives SIGKILL; it is left alone", self._what())
        if not await self._driver.within(_STDERR_WAIT, self._silent.wait):
            self._stop_hearing()
            await self._silent.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# What a number says, when there was no hello.
_HINTS: Mapping[int, str] = {
    0: ": is it a plugin? The last line of one is capnode_py.serve_stdio(index)",
    126: ", as a shell does that cannot execute the program",
    127: ", as a shell does that finds no such program",
}
