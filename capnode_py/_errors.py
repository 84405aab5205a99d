"""The error tree, and how an error crosses the wire.

::

    CapnodeError
    ├── ProtocolError             the session cannot go on
    │   ├── LocalProtocolError    we broke the protocol: a bug on this side
    │   └── RemoteProtocolError   the other side did
    ├── RemoteError               a far handler raised; also a ValueError where it was one, ...
    ├── PeerClosed                this side closed the connection
    ├── PeerLost                  it ended under us (also a ConnectionError)
    │   ├── PeerDied              ... because the child process did
    │   └── PeerRestarted         ... and is started again, as `supervise` was told to
    ├── Released                  the reference was given up on this side
    ├── Revoked                   the reference was taken back by who had lent it
    ├── CannotPass                a value that cannot cross (also a TypeError), raised at the call
    └── LimitExceeded             a bound of `Limits` would be passed

An error tells whose fault it is and what to write instead.
"""

# Annotations are no text here: NamedTuple would have the compiler read each, and load it for that.

import builtins
import errno
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

_PACKAGE = os.path.dirname(__file__) + os.sep

# Far tracebacks are for reading: the innermost frames tell the story.
_MAX_FRAMES = 30
_MAX_STEPS = 12  # of a path in a text
_MAX_TEXT = 16 * 1024


class CapnodeError(Exception):
    """The base of every error that this library raises on its own account."""

    __module__ = "capnode_py"


class ProtocolError(CapnodeError):
    """The session cannot go on: bytes or messages arrived that no correct peer sends."""

    __module__ = "capnode_py"


class LocalProtocolError(ProtocolError):
    """The other side says that we broke the protocol. Please report it with its text."""

    __module__ = "capnode_py"


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol, or does not speak it."""

    __module__ = "capnode_py"


class PeerClosed(CapnodeError):
    """This side closed the connection, so what was still pending has no answer."""

    __module__ = "capnode_py"


class PeerLost(CapnodeError, ConnectionError):
    """The connection ended under us: end of stream, a reset, or the other side's goodbye."""

    __module__ = "capnode_py"


class PeerDied(PeerLost):
    """The child process ended while it was needed.

    Attributes:
        pid: the child's process id.
        returncode: its exit code, negative for a signal (as in `subprocess`); None while unknown.
        signal: the signal's name, such as ``"SIGKILL"``, if one ended it.
        command: the argument list it was started with.
        stderr_tail: its last lines on stderr.
        call: the call it hit, as text; None for the others.
    """

    __module__ = "capnode_py"

    def __init__(
        self,
        message: str,
        *,
        pid: int | None = None,
        returncode: int | None = None,
        signal: str | None = None,
        command: Sequence[str] = (),
        stderr_tail: str = "",
        call: str | None = None,
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.returncode = returncode
        self.signal = signal
        self.command = list(command)
        self.stderr_tail = stderr_tail
        self.call = call

    def __str__(self) -> str:
        return f"{self.args[0]}, during {self.call}" if self.call else str(self.args[0])


class PeerRestarted(PeerLost):
    """The supervised child died, and is started again. What was pending is not called again:
    whether it was done, nobody here knows. References of the earlier life are void; take new ones
    from the index of the new life, after ``await peer.wait_started()``.

    Attributes:
        death: why the life has ended, most often a `PeerDied`.
        call: the call it hit, as text; None for the others.
    """

    __module__ = "capnode_py"

    def __init__(self, message: str, *, death: BaseException, call: str | None = None) -> None:
        super().__init__(message)
        self.death = death
        self.call = call

    def __str__(self) -> str:
        during = f", during {self.call}" if self.call else ""
        return (
            f"{self.args[0]}{during}; it is started again, and what it held is gone: "
            "await peer.wait_started(), and begin at peer.index"
        )


class Released(CapnodeError):
    """The stub was given up here for all its holders, by `dealloc` or by leaving ``with stub:``."""

    __module__ = "capnode_py"


class LimitExceeded(CapnodeError):
    """A bound of `Limits`, ours or the other side's, would be passed. Nothing was sent."""

    __module__ = "capnode_py"


class Revoked(CapnodeError):
    """What was lent by `revocable` was taken back on this side; the text is the reason.

    At the other side it is a `RemoteError` whose `remote_type` is ``"Revoked"``.
    """

    __module__ = "capnode_py"


class CannotPass(CapnodeError, TypeError):
    """A value that cannot cross, raised at the call; nothing has been sent.

    Attributes:
        root: where the value stood: "argument" or "the result".
        path: the steps from there to the bad leaf; the first names the argument.
    """

    __module__ = "capnode_py"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str | int] = []
        self.root = "the value"

    def __str__(self) -> str:
        where, path = self.root, self.path
        if where == "argument" and path:
            where, path = f"argument {path[0]}", path[1:]
        steps = [f"[{step!r}]" for step in path]
        if len(steps) > _MAX_STEPS:
            steps[4:-2] = ["..."]
        if steps:
            where += ", at " + "".join(steps)
        return f"{where}: {self.args[0]}"


class RemoteError(CapnodeError):
    """A far handler raised. Where it was a builtin exception, this is one of that class as well.

    So ``except ValueError:`` works across processes. The far traceback, if the other side sends it,
    is in a note, which a traceback printed here shows.

    Attributes:
        remote_type: the class name over there, such as ``"ValueError"`` or ``"BankruptError"``.
        message: the text of the far exception.
        remote_traceback: the far traceback as text, or None.
        props: what else the error had over there, where the dialect tells it.
    """

    __module__ = "capnode_py"

    remote_type: str = "Exception"
    message: str = ""
    remote_traceback: str | None = None
    props: Mapping[str, Any] = MappingProxyType({})

    def __str__(self) -> str:
        if (
            self.remote_type in ("Exception", "Error")
            or type(self).__name__ == f"RemoteError[{self.remote_type}]"
        ):
            return self.message
        return f"{self.remote_type}: {self.message}" if self.message else self.remote_type


class Withdrawn(BaseException):
    """The answer is not wanted any more, and the handler was not started. Internal: it crosses as
    "handler was cancelled"."""


class FarError(NamedTuple):
    """An exception as it crosses: what the wire says of it.

    `base` is the nearest builtin class that may be mirrored, so that a user's subclass of
    ValueError is still caught as a ValueError. `code` is the name of an OSError's errno, such as
    "ENOENT", since the numbers differ between systems.
    """

    name: str
    text: str
    base: str | None
    traceback: str | None
    code: str | None = None


# Deny by default: only classes from this table are mixed in. Not StopIteration and
# StopAsyncIteration (they end loops and generators), no exception group (it needs its members),
# and nothing that is no `Exception`: a mirrored SystemExit or CancelledError would let a peer exit
# or cancel its caller.
MIRRORED: dict[str, type[Exception]] = {
    name: cls
    for name, cls in vars(builtins).items()
    if isinstance(cls, type)
    and issubclass(cls, Exception)
    and not issubclass(cls, (StopIteration, StopAsyncIteration, Warning, BaseExceptionGroup))
    and cls is not Exception
    and name == cls.__name__  # EnvironmentError and IOError are other names of OSError
}
_mirrors: dict[str, type[RemoteError]] = {}


def _mirror(base: str | None) -> type[RemoteError]:
    """`RemoteError`, or its subclass that is also the builtin class named `base`."""
    if base is None or base not in MIRRORED:
        return RemoteError

    if base not in _mirrors:
        name = f"RemoteError[{base}]"
        namespace: dict[str, Any] = {"__module__": "capnode_py"}
        if base == "MemoryError":  # it keeps some for the hour of need, and makes none of ours
            namespace["__new__"] = BaseException.__new__
        _mirrors[base] = type(name, (RemoteError, MIRRORED[base]), namespace)
    return _mirrors[base]


def to_far(error: BaseException, *, with_traceback: bool) -> FarError:
    """What the wire says of `error`.

    An error of the library itself keeps its name and is not mirrored at the other end (a PeerLost
    about a third party must not look like the loss of this peer). What is no `Exception`, a
    handler's own CancelledError or SystemExit, crosses as words.
    """
    if isinstance(error, RemoteError):  # passed on: keep the first name
        name, text, base = error.remote_type, error.message, _base_of(error)
    elif not isinstance(error, Exception):
        name = "CancelledError" if isinstance(error, Withdrawn) else type(error).__name__
        text, base = _describe_exit(error), None
    else:
        name, text, base = type(error).__name__, _text_of(error), _base_of(error)
    code = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) and base else None
    traceback = format_far(error) if with_traceback else None
    return FarError(name, text[:_MAX_TEXT], base, traceback, code)


def _describe_exit(error: BaseException) -> str:
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        return f"handler was exited by {type(error).__name__}({_text_of(error)})"
    return "handler was cancelled"


def _text_of(error: BaseException) -> str:
    try:
        if type(error) is KeyError and len(error.args) == 1:
            return f"{error.args[0]!r}"
        return str(error)
    except Exception as broken:  # noqa: BLE001 - the exception class's own, or of what it is about
        return f"<no text: its __str__ raised {type(broken).__name__}>"


def _base_of(error: Exception) -> str | None:
    if isinstance(error, CapnodeError) and not isinstance(error, (RemoteError, CannotPass)):
        return None

    for cls in type(error).__mro__:
        if MIRRORED.get(cls.__name__) is cls:
            return cls.__name__
    return None


def format_far(error: BaseException) -> str | None:
    """The traceback of `error` without the library's own outer frames, or None if it has none."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        tb = tb.tb_next
    if tb is None:  # not raised here, but passed on
        return error.remote_traceback if isinstance(error, RemoteError) else None

    try:
        from traceback import TracebackException
    except (ImportError, OSError):
        # The program is ending, or no descriptor is left to load it by, which may be the error.
        return None
    lines = TracebackException(type(error), error, tb, limit=-_MAX_FRAMES).format()
    return "".join(lines)[-_MAX_TEXT:].rstrip("\n")


def from_far(far: FarError, *, where: str) -> RemoteError:
    """The exception that a caller on this side gets, with the far traceback as a note.

    Args:
        far: what the wire said.
        where: names the other side in the note.
    """
    cls = _mirror(far.base)
    # Without __init__: those of builtin classes take other arguments.
    error: RemoteError = cls.__new__(cls)
    error.args = (far.text,)
    error.remote_type = far.name
    error.message = far.text
    error.remote_traceback = far.traceback
    number = vars(errno).get(far.code) if isinstance(error, OSError) and far.code else None
    if isinstance(error, OSError) and type(number) is int and number in errno.errorcode:
        error.errno, error.strerror = number, os.strerror(number)
    if far.traceback:
        error.add_note(f"\nRaised in {where}:\n\n{_indented(far.traceback)}")
    return error


def _indented(text: str) -> str:
    return "\n".join("  " + line if line else "" for line in text.split("\n"))


def during(error: BaseException, path: Sequence[str | int]) -> BaseException:
    """`error`, as the call of `path` is to see it: a child's death names the call that it hit."""
    if isinstance(error, (PeerDied, PeerRestarted)):
        hit = again(error)
        hit.call = ".".join(map(str, path)) or "a function"  # type: ignore[attr-defined]
        return hit
    return error


def again(error: BaseException) -> BaseException:
    """A fresh exception equal to `error`: each waiter raises its own, with its own traceback."""
    cls = type(error)
    fresh: BaseException
    try:
        fresh = cls.__new__(cls, *error.args)
    except Exception:  # noqa: BLE001 - a class with a __new__ of its own; sharing is better
        return error
    fresh.args = error.args
    fresh.__dict__.update(error.__dict__)
    if isinstance(error, OSError) and isinstance(fresh, OSError) and error.errno is not None:
        fresh.errno, fresh.strerror = error.errno, error.strerror  # those of a mirror are no args
    notes = getattr(error, "__notes__", None)
    if notes is not None:
        fresh.__notes__ = list(notes)
    fresh.__cause__ = error.__cause__
    fresh.__suppress_context__ = error.__suppress_context__
    return fresh
