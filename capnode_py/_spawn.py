"""`spawn`: a child process, called over its stdin and stdout."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import anyio

from ._capnode import Capnode, Index
from ._child import Child, checked_command, name_of, start
from ._doors import Door, opened
from ._errors import CapnodeError
from ._limits import Limits
from ._peer import I_co, Interface, Peer, Settings, check_interface, make_peer, make_settings
from .driver.anyio import DescriptorStream, start_background


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    index: Index = None,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    nickname: str = "",
    tracebacks: bool = True,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    interface: Interface[I_co] = None,
    logs: bool | int = False,
) -> Door[SpawnedPeer[I_co]]:
    """Start a child process that serves its stdin and stdout (`serve_stdio`), and be its peer.

    The child gets a session and process group of its own. What it writes to stderr is forwarded to
    ours, and its last lines are kept for errors.

    Args:
        argv: the program and its arguments: ``[sys.executable, "plugin.py"]``.
        index: what we offer to the child; or `host`, whose connection it is.
        limits: see `Limits`.
        nickname: names the child in errors and logs; its script's name by default.
        tracebacks: send the tracebacks of our handlers' errors to the child.
        cwd: the child's working directory.
        env: added to our environment for the child.
        interface: what `Peer.index` is to type checkers and editors: a Protocol, or the child's
            `Target` class.
        logs: True has the child's log records arrive in our `logging`; a level such as
            ``logging.INFO`` makes that the level of its root logger, too.

    Raises:
        TypeError: argv is a str.
        OSError: the program cannot be started.
        PeerDied, PeerLost, ProtocolError: there was no hello.
    """
    command = checked_command(argv)
    check_interface(interface)
    if type(logs) not in (bool, int):
        raise TypeError(f"logs= takes True, or a level such as logging.INFO, not {logs!r}")
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        nickname or name_of(command),
        tracebacks=tracebacks,
        takes_junk=True,
    )

    async def enter() -> SpawnedPeer[I_co]:
        asked, withdraw = _request_logs(settings, logs)
        try:
            fd, process, stderr = start(command, cwd, {**(env or {}), **asked})
        except BaseException:
            withdraw()
            raise
        peer: SpawnedPeer[I_co] = make_peer(SpawnedPeer, (fd, fd), settings)
        stop_hearing = partial(anyio.notify_closing, stderr)
        child = peer._child = Child(process, command, peer._driver, stop_hearing=stop_hearing)
        peer.pid = process.pid
        start_background(partial(_hear, child, stderr))
        start_background(partial(_watch, child, process, withdraw))
        try:
            return await opened(peer)
        except CapnodeError as error:
            child.sign(error)
            raise

    return Door(enter)


def _request_logs(settings: Settings, logs: int) -> tuple[dict[str, str], Callable[[], object]]:
    """What to add to the child's environment, and what to do when it is gone."""
    if logs is False:
        return {}, lambda: None

    from ._logs import request, withdraw

    asked = request(0 if logs is True else logs, settings.nickname)
    return asked, partial(withdraw, asked)


class SpawnedPeer(Peer[I_co]):
    """The peer of a child process."""

    _child: Child

    @property
    def returncode(self) -> int | None:
        return self._child.process.returncode


async def _hear(child: Child, stderr: int) -> None:
    """Drain the child's stderr all along."""
    stream = DescriptorStream(stderr, stderr)
    try:
        while True:
            child.heard(await stream.receive())
    except (anyio.EndOfStream, anyio.ClosedResourceError, OSError):
        pass
    finally:
        child.silent()
        with anyio.CancelScope(shield=True):
            await stream.aclose()


async def _watch(
    child: Child, process: subprocess.Popen[bytes], gone: Callable[[], object]
) -> None:
    """Reap the child."""
    pidfd = os.pidfd_open(process.pid)
    try:
        while not child.reap():
            await anyio.wait_readable(pidfd)
    finally:
        anyio.notify_closing(pidfd)
        os.close(pidfd)
        child.reap()
        gone()
    await child.lose_peer()
