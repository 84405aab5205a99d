"""A child's start on any driver: the options of `spawn`, checked, and a process made of them.

A child leads a session and process group of its own, so that what it starts can be ended with it.
If it cannot be started, nothing is left of the attempt.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypedDict

from ._arguments import check_for_system
from ._claim import VARIABLE
from ._frozen import Frozen
from ._peer import DIALECTS, Settings, make_settings, traits_of

if TYPE_CHECKING:
    from ._capnode import Capnode, Index
    from ._limits import Limits

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


class Recipe(Frozen):
    """How a child is started, as often as it is.

    Attributes:
        settings: of the connection.
        logs: the level of the log records that it is to send; None if none.
        site: the file and the line that asked for it.
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
    site: tuple[str, int]


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
    if logs is not False and dialect in DIALECTS and not traits_of(dialect).cap_ids:
        raise ValueError(f"logs= needs cap_ids, which dialect={dialect!r} has not: leave it out")
    if logs < 0:
        raise ValueError(f"logs={logs!r}: a level is 0 or more")
    _check_stderr(stderr)
    if channel not in tuple(_CHANNELS):
        raise ValueError(f"channel={channel!r}: one of {_either(_CHANNELS)}")
    _check_directory(cwd)
    _check_environment("env", env)
    _check_environment("add_env", add_env)
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        nickname,
        default_name=name_of(command),
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
        site=_site(),
    )


def _site() -> tuple[str, int]:
    """Where the user's own code has asked for it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return ("?", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


_PACKAGE = os.path.dirname(__file__) + os.sep


def recipe_of(door: str, argv: Command, options: SpawnOptions) -> Recipe:
    """A recipe, for a door that hands its options on.

    Raises:
        TypeError, ValueError: with what to write instead.
    """
    check_names(door, options)
    return recipe(argv, **options)


def check_names(door: str, options: Iterable[str]) -> None:
    """Raises TypeError: a door that hands its options on was given one that `spawn` has not."""
    for name in options:
        if name not in SpawnOptions.__annotations__:
            raise TypeError(f"{door}() got an unexpected keyword argument {name!r}")


def checked_command(argv: Command) -> list[str]:
    """The program and its arguments as text.

    Raises:
        TypeError, ValueError: with what to write instead.
    """
    if isinstance(argv, (str, bytes, os.PathLike)):
        raise TypeError(
            f"spawn takes a list, without a shell in between: write spawn({_as_list(argv)!r})"
        )
    given: Any = argv
    if not isinstance(given, Iterable) or isinstance(given, (Mapping, Set)):
        raise TypeError(f"spawn takes a list of the program and its arguments, not {given!r}")
    parts: Iterable[Any] = given
    command: list[str] = []
    for part in parts:
        text = os.fspath(part) if isinstance(part, (str, os.PathLike)) else None
        if not isinstance(text, str):
            raise TypeError(
                f"spawn takes a program and arguments of text, and {part!r} is none"
                f"{_instead_of(part)}"
            )
        check_for_system(f"spawn was given the argument {text!r}", text)
        command.append(text)
    if not command or not command[0]:
        raise ValueError("spawn takes a program: write spawn([sys.executable, 'plugin.py'])")
    return command


def _instead_of(part: Any) -> str:
    if isinstance(part, bytes):
        return f": write {os.fsdecode(part)!r}"
    return f": write {str(part)!r}" if isinstance(part, (int, float)) else ""


def _as_list(argv: str | bytes | os.PathLike[str]) -> list[str]:
    """What was meant by one string."""
    text = os.fsdecode(argv)
    if isinstance(argv, os.PathLike):
        return [text]
    from shlex import split

    try:
        return split(text)
    except ValueError:  # a quote that is not closed
        return text.split()


def _check_stderr(stderr: Any) -> None:
    if callable(stderr):
        from inspect import iscoroutinefunction

        if iscoroutinefunction(stderr):
            raise TypeError(f"stderr= takes a plain function of a line, not {stderr!r}")
    elif stderr not in STDERR:
        raise ValueError(f"stderr={stderr!r}: one of {_either(STDERR)}, or a function of a line")


def _check_directory(cwd: Any) -> None:
    if cwd is None:
        return
    path = os.fspath(cwd) if isinstance(cwd, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise TypeError(f"cwd= takes the path of a directory, as text or a Path, not {cwd!r}")
    check_for_system(f"cwd={path!r}", path)


def _check_environment(name: str, variables: Any) -> None:
    if variables is None:
        return
    if not isinstance(variables, Mapping):
        raise TypeError(f"{name}= takes a dict of strings, not {variables!r}")
    for key, value in variables.items():
        if not isinstance(key, str):
            raise TypeError(f"{name}= takes strings, and the name {key!r} is none")
        if not isinstance(value, str):  # which may be secret
            raise TypeError(
                f"{name}= takes strings, and {key!r} is of type {type(value).__name__}: write "
                "str(value), or leave it out"
            )
        if not key or "=" in key:
            raise ValueError(f"{name}= with the name {key!r}: one has no '=', and is not empty")
        check_for_system(f"{name}= with the name {key!r}", key)
        check_for_system(f"{name}=, the value of {key!r}", value)


def _either(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def name_of(command: list[str]) -> str:
    """The script that an interpreter runs, or the program."""
    for part in command[1:]:
        if part.endswith(".py"):
            return os.path.basename(part)
    return os.path.basename(command[0]) if command else ""


# The process.


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
    if theirs <= 2:  # one of our own is closed; the child keeps the number
        import fcntl

        low, theirs = theirs, fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(low)
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
    why = f"spawn could not start {as_line(recipe.command)}"
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


def as_line(command: Iterable[str]) -> str:
    """As one would write it in a shell."""
    from shlex import join

    return join(command)


def _close(fds: Iterable[int | None]) -> None:
    for fd in fds:
        if fd is not None and fd >= 0:
            os.close(fd)


def signal_group(pid: int, sent: signal.Signals) -> None:
    """Signal a child, and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sent)


def request_logs(how: Recipe) -> tuple[dict[str, str], Callable[[], object]]:
    """What to add to the child's environment, and what to do when it is gone."""
    if how.logs is None:
        return {}, lambda: None

    from ._logs import request, withdraw

    asked = request(how.logs, how.settings.nickname)
    return asked, partial(withdraw, asked)
