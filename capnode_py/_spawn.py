"""`spawn`: a child process, called over its stdin and stdout."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio

from ._capnode import Capnode, Index
from ._child import Child
from ._doors import Door, opened
from ._errors import CapnodeError, PeerClosed
from ._limits import Limits
from ._peer import I_co, Interface, Peer, check_interface, make_peer
from ._start import Channel, Command, Recipe, Started, Stderr, recipe, request_logs, start
from .driver._base import LOOP_ENDED, in_trio
from .driver.anyio import start_background

if TYPE_CHECKING:
    from .driver._base import Driver

_ENDING_WAIT = 5.0  # more than it takes to see a child out


def spawn(
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
    interface: Interface[I_co] = None,
    logs: bool | int = False,
) -> Door[SpawnedPeer[I_co]]:
    """Start a child process that serves its stdin and stdout (`serve_stdio`), and be its peer.

    The child gets a session and process group of its own, which are ended with it. Nothing but its
    stdin, stdout and stderr is needed of it: it may be a wrapper (``["ssh", host, "plugin"]``).

    Args:
        argv: the program and its arguments: ``[sys.executable, "plugin.py"]``.
        index: what we offer to the child; or `host`, whose connection it is.
        limits: see `Limits`.
        nickname: names the child in errors and logs; its script's name by default.
        tracebacks: send the tracebacks of our handlers' errors to the child.
        application, versions: as for `connect`.
        cwd: the child's working directory.
        env: the child's environment, as in `subprocess`; None: ours.
        add_env: added to it.
        stderr: where goes what the child writes to its stderr: ``"forward"``, to our `sys.stderr`;
            ``"inherit"``, to our descriptor 2; ``"log"``, line by line to the logger
            ``capnode_py.child``, at INFO; ``"capture"``, nowhere else; or a function of a line.
            But for "inherit", its last lines are in errors, and in `SpawnedPeer.stderr_tail`.
        channel: ``"stdio"``: a socket that is its stdin and stdout; ``"pipe"``: two pipes, for a
            program that can do nothing with a socket; ``"fd"``: a socket besides, which
            `serve_stdio` finds by itself. Its stdin and stdout are then ours.
        interface: what `Peer.index` is to type checkers and editors: a Protocol, or the child's
            `Target` class.
        logs: True has the child's log records arrive in our `logging`; a level such as
            ``logging.INFO`` makes that the level of its root logger, too.

    Raises:
        TypeError, ValueError: for the arguments; argv is a str.
        OSError: the program cannot be started.
        PeerDied, PeerLost, ProtocolError: there was no hello, or none of this application.
        NotImplementedError: not on this platform.
    """
    check_interface(interface)
    how = recipe(
        argv,
        index=index,
        host=host,
        dialect=dialect,
        limits=limits,
        nickname=nickname,
        tracebacks=tracebacks,
        application=application,
        versions=versions,
        cwd=cwd,
        env=env,
        add_env=add_env,
        stderr=stderr,
        channel=channel,
        logs=logs,
    )

    async def enter() -> SpawnedPeer[I_co]:
        asked, withdraw = request_logs(how)
        try:
            started = start(how, asked)
        except BaseException:
            withdraw()
            raise
        try:
            peer: SpawnedPeer[I_co] = make_peer(SpawnedPeer, started.fds, how.settings)
        except BaseException:
            withdraw()
            started.undo()
            raise
        child = peer._adopt(started, how)
        if started.stderr >= 0:
            start_background(partial(_hear, child, started.stderr))
        start_background(partial(_watch, child, started.pidfd, withdraw, peer._driver))
        try:
            return await opened(peer)
        except CapnodeError as error:
            child.sign(error)
            raise

    return Door(enter)


class SpawnedPeer(Peer[I_co]):
    """The peer of a child process."""

    _child: Child

    def _adopt(self, started: Started, how: Recipe) -> Child:
        self.pid = started.process.pid
        self._child = Child(
            started,
            how,
            self._driver,
            outside=_at_once,
            stop_hearing=partial(anyio.notify_closing, started.stderr),
        )
        return self._child

    @property
    def returncode(self) -> int | None:
        return self._child.process.returncode

    @property
    def stderr_tail(self) -> str:
        """Its last lines on stderr."""
        return self._child.stderr_tail


def _at_once(run: Callable[[], object]) -> object:
    return run()


async def _hear(child: Child, stderr: int) -> None:
    """Drain the child's stderr all along."""
    try:
        while child.hear():
            await anyio.wait_readable(stderr)
    except (anyio.ClosedResourceError, OSError):
        pass
    finally:
        child.silent()
        anyio.notify_closing(stderr)
        os.close(stderr)


async def _watch(child: Child, pidfd: int, gone: Callable[[], object], driver: Driver) -> None:
    """Reap the child. When the loop ends, it ends: nobody may have closed its peer."""

    async def ended() -> None:
        while not child.reap():
            await anyio.wait_readable(pidfd)

    async def seen_out() -> None:
        await driver.within(_ENDING_WAIT, ended)
        await driver.wait_closed()
        child.warn_if_left(
            "its event loop has ended",
            "async with capnode.spawn(...) as peer, or await peer.aclose()",
        )

    try:
        await ended()
    except anyio.get_cancelled_exc_class():
        if not in_trio():  # else its own task does that
            driver.close(PeerClosed(LOOP_ENDED))
        await driver.shielded(seen_out)
        raise
    finally:
        anyio.notify_closing(pidfd)
        os.close(pidfd)
        child.reap()
        gone()
    await child.lose_peer()
