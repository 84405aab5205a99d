"""`spawn`: a child process from its start until it is reaped, seen by its parent."""

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
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio

from ._capnode import Capnode, Index
from ._doors import Door, opened
from ._errors import CapnodeError, PeerDied, PeerLost
from ._limits import Limits
from ._peer import Peer, make_peer, make_settings
from .driver.anyio import DescriptorStream, start_background

logger = logging.getLogger("capnode_py.spawn")

_TAIL_LINES = 20
_JUNK_SHOWN = 500  # bytes of it, in an error
_TAIL_WAIT = 0.1  # how long an error waits for the exit code, and for the last lines of stderr
_TERM_WAIT = 0.5  # between closing its stdin, SIGTERM and SIGKILL


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
) -> Door[SpawnedPeer]:
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

    Raises:
        TypeError: argv is a str.
        OSError: the program cannot be started.
        PeerDied, PeerLost, ProtocolError: there was no hello.
    """
    if isinstance(argv, (str, bytes)):
        raise TypeError(
            "spawn takes a list, without a shell in between: "
            f"write spawn({shlex.split(os.fsdecode(argv))!r})"
        )
    command = [os.fspath(part) for part in argv]
    if not command:
        raise ValueError("spawn takes a program: write spawn([sys.executable, 'plugin.py'])")
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        nickname or _name(command),
        tracebacks=tracebacks,
        takes_junk=True,
    )

    async def enter() -> SpawnedPeer:
        ours, process, stderr = _start(command, cwd, env)
        fd = ours.detach()
        child = Child(process, command, stderr)
        peer = make_peer(SpawnedPeer, (fd, fd), settings)
        peer._child = child
        peer.pid = process.pid
        peer._driver.explain = partial(child.explain, peer)
        peer._driver.finalize = child.end
        start_background(child.forward_stderr)
        start_background(partial(child.watch, peer))
        try:
            return await opened(peer)
        except CapnodeError as error:
            child.sign(peer, error)
            raise

    return Door(enter)


class SpawnedPeer(Peer):
    """The peer of a child process."""

    _child: Child

    @property
    def returncode(self) -> int | None:
        return self._child.process.returncode


def _name(command: list[str]) -> str:
    """The script that an interpreter runs, or the program."""
    for part in command[1:]:
        if part.endswith(".py"):
            return Path(part).name
    return Path(command[0]).name if command else ""


def _start(
    command: list[str], cwd: str | os.PathLike[str] | None, env: Mapping[str, str] | None
) -> tuple[socket.socket, subprocess.Popen[bytes], int]:
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
    return ours, process, read_end


class Child:
    """A process of ours, its stderr, and its end."""

    def __init__(self, process: subprocess.Popen[bytes], command: list[str], stderr: int) -> None:
        self.process = process
        self._command = command
        self._stderr = stderr
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._exited = anyio.Event()
        self._silent = anyio.Event()

    async def forward_stderr(self) -> None:
        """Drain the child's stderr all along: into ours, and its last lines into the tail."""
        stream = DescriptorStream(self._stderr, self._stderr)
        rest = b""
        try:
            while True:
                rest += await stream.receive()
                *lines, rest = rest.split(b"\n")
                if len(rest) > 64 * 1024:  # a line that does not end
                    lines, rest = [*lines, rest], b""
                self._forward(lines)
        except (anyio.EndOfStream, anyio.ClosedResourceError, OSError):
            if rest:
                self._forward([rest])
        finally:
            self._silent.set()
            with anyio.CancelScope(shield=True):
                await stream.aclose()

    def _forward(self, lines: list[bytes]) -> None:
        text = [line.decode(errors="backslashreplace") for line in lines]
        self._tail.extend(text)
        if text and sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):  # ours is closed: the tail remains
                sys.stderr.write("\n".join(text) + "\n")

    async def watch(self, peer: Peer) -> None:
        """Reap the child. What it started may keep the stream open: the peer is lost as well."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while self.process.poll() is None:
                await anyio.wait_readable(pidfd)
        finally:
            anyio.notify_closing(pidfd)
            os.close(pidfd)
            if self.process.poll() is not None:  # else this task was cancelled with its loop
                self._exited.set()
        with anyio.move_on_after(_TAIL_WAIT):
            await peer.wait_closed()
        if not peer.is_closed:
            peer._driver.lost()

    async def explain(self, peer: Peer, error: PeerLost) -> PeerLost:
        """The stream has ended: what became of the child?"""
        greeted = peer.info is not None
        junk = b"" if greeted else peer._session.junk
        with anyio.move_on_after(_TAIL_WAIT):
            await self._exited.wait()
            await self._silent.wait()
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

    def sign(self, peer: Peer, error: CapnodeError) -> None:
        """Let a failed start say which child it was."""
        if not isinstance(error, PeerDied):
            error.add_note(f"Started as: {shlex.join(self._command)} (pid {self.process.pid})")
            self._annotate(error, peer._session.junk)

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

    async def end(self) -> None:
        """The stream is closed: see the child out. Bounded, and shielded by who calls."""
        try:
            await self._see_out()
        finally:
            if self.process.poll() is None:  # the loop is ending, and nothing can be awaited
                self._signal_group(signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_TERM_WAIT)

    async def _see_out(self) -> None:
        for wait, sent in ((_TERM_WAIT, signal.SIGTERM), (_TERM_WAIT, signal.SIGKILL)):
            with anyio.move_on_after(wait):
                await self._exited.wait()
                break
            logger.info("%s does not end: sending %s", self._what(), sent.name)
            self._signal_group(sent)
        with anyio.move_on_after(_TERM_WAIT):
            await self._exited.wait()
        if self.process.returncode is None:
            logger.warning("%s survives SIGKILL; it is left alone", self._what())
        else:
            self._signal_group(signal.SIGKILL)  # what it has started goes with it
        with anyio.move_on_after(_TAIL_WAIT):
            await self._silent.wait()
        if not self._silent.is_set():
            anyio.notify_closing(self._stderr)
            await self._silent.wait()

    def _signal_group(self, sent: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, sent)
