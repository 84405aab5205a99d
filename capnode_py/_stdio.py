"""The child's side: `serve_stdio` and `stdio`.

They claim descriptors 0 and 1 for the wire, so that nothing else in the process can write to it: a
`print`, C code or a subprocess writes to stderr from then on. What was printed before is junk that
the parent skips; so import, and serve, first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from ._capnode import Capnode, Index
from ._errors import CapnodeError, ProtocolError
from ._limits import Limits
from ._peer import (
    I_co,
    Interface,
    Peer,
    Settings,
    application_name,
    check_interface,
    make_peer,
    make_settings,
)

if TYPE_CHECKING:
    import asyncio

    from ._doors import Door

EX_USAGE = 64
"""Started by hand, with nobody at the other end (sysexits.h)."""
EX_SOFTWARE = 70
"""The parent broke the protocol."""

_claimed: list[bool] = []  # filled by the one claim that a process can make


def serve_stdio(
    index: Index = None,
    *,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    nickname: str = "",
    tracebacks: bool = True,
) -> None:
    """Serve the parent process on stdin and stdout until it closes them: a plugin's last line.

    Returns at the end of input. Exits with 70 and one line on stderr after a protocol error, and
    with 64 if it was started by hand. It runs an event loop (uvloop if that is installed); within
    one, write ``async with capnode.stdio(index) as peer: await peer.wait_closed()``.

    Args:
        index, host, limits, nickname: as for `connect`.
        tracebacks: send the tracebacks of errors to the parent.

    Raises:
        RuntimeError: an event loop is running in this thread.
    """
    import asyncio

    if asyncio._get_running_loop() is not None or _in_trio():
        raise RuntimeError(
            "serve_stdio() runs an event loop of its own. Inside one, write "
            "async with capnode.stdio(index) as peer: await peer.wait_closed()"
        )
    settings = make_settings(index, host, dialect, limits, nickname, tracebacks=tracebacks)
    check_not_by_hand()
    ignore_interrupts()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        error = runner.run(_serve(settings))
    if isinstance(error, ProtocolError):
        end_serving(error)


def stdio(
    index: Index = None,
    *,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    nickname: str = "",
    tracebacks: bool = True,
    interface: Interface[I_co] = None,
) -> Door[Peer[I_co]]:
    """The parent process as a peer: `serve_stdio` for a program that has an event loop.

    Args:
        index, host, limits, nickname, interface: as for `connect`.
        tracebacks: send the tracebacks of errors to the parent.

    Raises:
        RuntimeError: stdin and stdout were claimed before.
        PeerLost, ProtocolError: there was no hello.
    """
    from ._doors import Door, opened

    check_interface(interface)
    settings = make_settings(index, host, dialect, limits, nickname, tracebacks=tracebacks)

    async def enter() -> Peer[I_co]:
        check_not_by_hand()
        peer: Peer[I_co] = await opened(make_peer(Peer, claim(), settings))
        _forward_logs(peer)
        return peer

    return Door(enter)


async def _serve(settings: Settings) -> BaseException | None:
    peer = make_peer(Peer, claim(), settings)
    try:
        await peer._driver.open()
        _forward_logs(peer)
    except CapnodeError as error:
        return error
    finally:
        await peer.wait_closed()
    return peer._session.error


def _forward_logs(peer: Peer[Any]) -> None:
    if "CAPNODE_LOGS" in os.environ:  # which costs no import where nobody asks
        from ._logs import forward_if_asked

        forward_if_asked(peer)


def _in_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


def ignore_interrupts() -> None:
    """At a terminal, the parent decides."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_serving(error: ProtocolError) -> NoReturn:
    """The parent broke the protocol: say so, and exit."""
    _say(f"{application_name()}: {error}")
    raise SystemExit(EX_SOFTWARE)


def check_not_by_hand() -> None:
    """Exit with 64 if nobody is at the other end of stdin and stdout."""
    if _claimed:
        return  # which `claim` will say
    for fd in (0, 1):
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            mode = 0
        if not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
            name = ("stdin", "stdout")[fd]
            _say(
                f"{application_name()} is a capnode plugin: it talks to the program that starts "
                f"it, and its {name} is not a pipe. Start it from Python:\n"
                f"    async with capnode_py.spawn([sys.executable, {_arguments()}]) as peer: ..."
            )
            raise SystemExit(EX_USAGE)


def _arguments() -> str:
    """How this program was started, as the arguments in a list."""
    return ", ".join(map(repr, sys.orig_argv[1:]))


def _say(text: str) -> None:
    """For a person, on the one descriptor that is not the wire."""
    sys.stderr.write(text + "\n")


def claim() -> tuple[int, int]:
    """Take stdin and stdout for the wire: private descriptors to read and to write.

    From then on descriptor 0 is empty, and descriptor 1 is stderr.

    Raises:
        RuntimeError: they were claimed before.
    """
    if _claimed:
        raise RuntimeError(
            "stdin and stdout are claimed already: one peer a process speaks on them"
        )
    _claimed.append(True)

    # dup gives descriptors that subprocesses do not inherit.
    read_fd, write_fd = os.dup(0), os.dup(1)
    if read_fd < 3 or write_fd < 3:  # stderr was closed
        raise RuntimeError("stdin, stdout and stderr must be open")
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it is None, broken or closed
        sys.stdout.flush()  # what was printed and not yet written goes to stderr
    return read_fd, write_fd
