"""The wire of a child: its stdin and stdout, claimed for good, or a socket from its parent.

- **The claim.** Descriptors 0 and 1 are copied to private ones, which what the child starts does
  not inherit; then 1 becomes stderr, and 0 the empty device. So nothing else in the process can
  write to the wire, in Python, in C or as a subprocess. It is never undone: a buffer that is
  written out at exit would stand on the wire.
- **Not blocking.** That is a property of what is behind a descriptor, which all who have a copy of
  it share: a shell, or our own stderr after ``2>&1``. It is set on a socket or pipe that is nobody
  else's in this process. On anything else, and on files, which an event loop cannot wait for, the
  bytes are carried by threads.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
import threading
from typing import TYPE_CHECKING

from ._frozen import Frozen

if TYPE_CHECKING:
    from concurrent.futures import Future

VARIABLE = "CAPNODE_FD"
"""Of a child's environment, under ``channel="fd"``: its descriptor, and the inode behind it, by
which the child knows that the number is not a stale one."""

_claimed: list[bool] = []  # filled by the one claim that a process can make

_CARRIED = 64 * 1024  # bytes at a time, by a thread


class Wire(Frozen):
    """What the parent is spoken to by.

    Attributes:
        fds: to read and to write; they may be the same, and need not block.
        watched: hangs up when the parent is gone; -1: nothing does.
        written: is done when all that was written to `fds` has left; None: it leaves at once.
    """

    fds: tuple[int, int]
    watched: int
    written: Future[None] | None = None


def is_claimed() -> bool:
    """Has this process claimed its wire?"""
    return bool(_claimed)


def claim() -> Wire:
    """Take the wire.

    Raises:
        RuntimeError: it was taken before.
    """
    if sys.platform != "linux":
        raise NotImplementedError("stdin and stdout have been served on Linux only")
    if _claimed:
        raise RuntimeError(
            "stdin and stdout are claimed already: one peer a process speaks on them"
        )
    _claimed.append(True)

    passed = passed_descriptor()
    if passed >= 0:
        del os.environ[VARIABLE]
        os.set_inheritable(passed, False)
        return Wire(fds=(passed, passed), watched=passed)

    import fcntl

    read_fd, write_fd = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(2, 1)
    os.dup2(null, 0)
    os.close(null)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it is None, broken or closed
        sys.stdout.flush()  # what was printed and not yet written goes to stderr
    return _unblocked(read_fd, write_fd)


def occupy_standard_descriptors() -> None:
    """Let those that are closed be the empty device, before something else takes their numbers."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)


def passed_descriptor() -> int:
    """The socket that the parent has passed (``channel="fd"``), or -1."""
    number, _, inode = os.environ.get(VARIABLE, "").partition(":")
    if not number.isdecimal() or not inode.isdecimal():
        return -1
    try:
        found = os.fstat(int(number))
    except OSError:
        return -1
    # Else the variable was inherited from our parent, who was the one that it is for.
    is_it = stat.S_ISSOCK(found.st_mode) and found.st_ino == int(inode)
    return int(number) if is_it else -1


def _unblocked(read_fd: int, write_fd: int) -> Wire:
    watched = read_fd if _is_stream(read_fd) else -1
    written: Future[None] | None = None
    if not _is_stream(read_fd) or _is_shared(read_fd):
        read_fd = _carried_in(read_fd)
    if not _is_stream(write_fd) or _is_shared(write_fd):
        write_fd, written = _carried_out(write_fd)
    return Wire(fds=(read_fd, write_fd), watched=watched, written=written)


def _is_stream(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _is_shared(fd: int) -> bool:
    """Is our stderr the same thing, which is then not to be unblocked?"""
    return os.path.samestat(os.fstat(fd), os.fstat(2))


def _carried_in(fd: int) -> int:
    from socket import socketpair

    ours, theirs = socketpair()

    def carry() -> None:
        with contextlib.suppress(OSError), theirs:  # until the wire is closed
            while data := _read(fd):
                theirs.sendall(data)

    threading.Thread(target=carry, name="capnode stdin", daemon=True).start()
    return ours.detach()


def _carried_out(fd: int) -> tuple[int, Future[None]]:
    from concurrent.futures import Future
    from socket import socketpair

    ours, theirs = socketpair()
    written: Future[None] = Future()

    def carry() -> None:
        try:
            with contextlib.suppress(OSError), theirs:  # until nobody reads
                while data := theirs.recv(_CARRIED):
                    _write(fd, data)
        finally:
            os.close(fd)
            written.set_result(None)

    threading.Thread(target=carry, name="capnode stdout", daemon=True).start()
    return ours.detach(), written


# Somebody else may have unblocked it.


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _CARRIED)
        except BlockingIOError:
            _wait(fd, select.POLLIN)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            _wait(fd, select.POLLOUT)


def _wait(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()
