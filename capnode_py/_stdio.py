"""The child's side: `serve_stdio` and `stdio`.

They claim the wire (`_claim.py`), so that nothing else in the process can write to it: a `print`, C
code or a subprocess writes to stderr from then on. What was printed before is junk that the parent
skips; so import, and serve, first. A watchdog sees to it that the child does not outlive its
parent.
"""

from __future__ import annotations

import atexit
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ._capnode import Capnode, Index
from ._claim import claim, is_claimed, occupy_standard_descriptors, passed_descriptor
from ._errors import CapnodeError, ProtocolError
from ._limits import Limits
from ._peer import (
    AnyPeer,
    I_co,
    Interface,
    Peer,
    Settings,
    application_name,
    check_interface,
    make_peer,
    make_settings,
)
from ._watchdog import EX_UNAVAILABLE, Watchdog, leads_a_session
from .driver._base import in_trio

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from ._doors import Door
    from .driver._base import Driver

EX_USAGE = 64
"""Started by hand, with nobody at the other end (sysexits.h)."""
EX_SOFTWARE = 70
"""The parent broke the protocol."""

P = TypeVar("P", bound=AnyPeer)


def serve_stdio(
    index: Index = None,
    *,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    nickname: str = "",
    tracebacks: bool = True,
    application: str = "",
    versions: Sequence[int] = (),
) -> None:
    """Serve the parent process on stdin and stdout until it closes them: a plugin's last line.

    Returns at the end of input. Exits with 70 and one line on stderr after a protocol error, and
    with 64 if it was started by hand. It runs an event loop (uvloop if that is installed); within
    one, write ``async with capnode.stdio(index) as peer: await peer.wait_closed()``.

    When the parent is gone and a handler still blocks 5 seconds later, it is interrupted; 5 seconds
    after that the process is ended, with 69.

    Args:
        index, host, limits, nickname, application, versions: as for `connect`.
        tracebacks: send the tracebacks of errors to the parent.

    Raises:
        RuntimeError: an event loop is running in this thread; or stdin and stdout were claimed
            before.
    """
    import asyncio

    if asyncio._get_running_loop() is not None or in_trio():
        raise RuntimeError(
            "serve_stdio() runs an event loop of its own. Inside one, write "
            "async with capnode.stdio(index) as peer: await peer.wait_closed()"
        )
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        nickname,
        tracebacks=tracebacks,
        application=application,
        versions=versions,
    )
    check_not_by_hand()
    service = Service()
    with service, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(service, settings))
    service.end()


def stdio(
    index: Index = None,
    *,
    host: Capnode | None = None,
    dialect: str = "cbor",
    limits: Limits | None = None,
    nickname: str = "",
    tracebacks: bool = True,
    application: str = "",
    versions: Sequence[int] = (),
    interface: Interface[I_co] = None,
) -> Door[Peer[I_co]]:
    """The parent process as a peer: `serve_stdio` for a program that has an event loop.

    While the connection is open, Ctrl-C at the terminal is ignored: the parent decides. If the
    parent goes while something blocks the event loop, this program is ended as by `serve_stdio`.

    Args:
        index, host, limits, nickname, application, versions, interface: as for `connect`.
        tracebacks: send the tracebacks of errors to the parent.

    Raises:
        RuntimeError: stdin and stdout were claimed before.
        PeerLost, ProtocolError: there was no hello, or none of this application.
    """
    from ._doors import Door, opened

    check_interface(interface)
    settings = make_settings(
        index,
        host,
        dialect,
        limits,
        nickname,
        tracebacks=tracebacks,
        application=application,
        versions=versions,
    )

    async def enter() -> Peer[I_co]:
        check_not_by_hand()
        service = Service(goes_on=True)
        peer: Peer[I_co] = service.make_peer(Peer, settings)
        forward_logs(peer)
        return await opened(peer)

    return Door(enter)


async def _serve(service: Service, settings: Settings) -> None:
    peer = service.make_peer(Peer, settings)
    try:
        forward_logs(peer)
        await peer._driver.open()
    except CapnodeError:
        pass  # which `Service.end` tells
    finally:
        await peer.wait_closed()


class Service:
    """What is done around the one connection of a child: Ctrl-C is ignored, the watchdog watches,
    and at the end all is written.

    As a context manager it holds what blocks, and takes the watchdog's interrupt for the end.

    Args:
        goes_on: the program has a life after the connection, and gets back what was taken.
    """

    def __init__(self, *, goes_on: bool = False) -> None:
        self._goes_on = goes_on
        self._watchdog: Watchdog | None = None
        self._peer: AnyPeer[Any] | None = None
        self._before: Any = None

    def make_peer(
        self,
        kind: type[P],
        settings: Settings,
        *,
        make_driver: Callable[..., Driver] | None = None,
    ) -> P:
        """Claim the wire, and make a peer on it.

        Raises:
            RuntimeError: it was claimed before.
        """
        wire = claim()
        if threading.current_thread() is threading.main_thread() and _may_replace_handler():
            self._before = signal.signal(signal.SIGINT, self._interrupted)
        peer = make_peer(kind, wire.fds, settings, make_driver=make_driver)
        self._peer = peer
        atexit.register(self._end_what_was_started)
        self._watchdog = Watchdog(wire.watched, peer._driver, has_loop=make_driver is None)
        peer._driver.finalize = partial(self._finish, peer._driver, wire.written)
        return peer

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        if self._watchdog is not None and self._watchdog.interrupted:
            raise KeyboardInterrupt

    async def _finish(self, driver: Driver, written: Future[None] | None) -> None:
        if written is not None:
            finished = driver.make_event()
            written.add_done_callback(lambda _: driver.soon(finished.set))
            await driver.within(driver.limits.close_timeout, finished.wait)
        if self._goes_on:
            if self._watchdog is not None:
                self._watchdog.stop()
            if self._before is not None:
                signal.signal(signal.SIGINT, self._before)

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: Any, error: BaseException | None, _traceback: Any) -> None:
        watchdog = self._watchdog
        if watchdog is not None:
            watchdog.stop_serving()
            if isinstance(error, KeyboardInterrupt) and watchdog.interrupted:
                raise SystemExit(EX_UNAVAILABLE)

    def end(self) -> None:
        """Serving is over.

        Raises:
            SystemExit: the parent broke the protocol.
        """
        error = None if self._peer is None else self._peer._session.error
        if isinstance(error, ProtocolError):
            _say(f"{application_name()}: {error}")
            raise SystemExit(EX_SOFTWARE)

    def _end_what_was_started(self) -> None:
        """At the exit of a child whose parent is gone, which else would do it."""
        if self._peer is None or self._peer._session.incoming.heard_bye or not leads_a_session():
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpid(), signal.SIGTERM)


def _may_replace_handler() -> bool:
    """Is the handler of SIGINT Python's, or an event loop's, and none of the user's?"""
    handler = signal.getsignal(signal.SIGINT)
    if handler in (signal.default_int_handler, signal.SIG_DFL):
        return True
    module = getattr(getattr(handler, "func", handler), "__module__", "") or ""
    return module.partition(".")[0] in ("asyncio", "trio")


def forward_logs(peer: AnyPeer[Any]) -> None:
    """Send our log records to the parent, if it has asked for them. Called before the hello: with
    that may come a call, which logs something."""
    if "CAPNODE_LOGS" in os.environ:  # which costs no import where nobody asks
        from ._logs import forward_if_asked

        forward_if_asked(peer)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


def check_not_by_hand() -> None:
    """Exit with 64 if nobody is at the other end: stdin or stdout is a terminal, or nothing.

    Before a loop is made, which opens descriptors.
    """
    if is_claimed():
        return  # which `claim` will tell
    for fd in () if passed_descriptor() >= 0 else (0, 1):
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            mode = 0
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)):
            name = ("stdin", "stdout")[fd]
            _say(
                f"{application_name()} is a capnode plugin: it talks to the program that starts "
                f"it, and its {name} is not a pipe. Start it from Python:\n"
                f"    async with capnode_py.spawn([sys.executable, {_arguments()}]) as peer: ..."
            )
            raise SystemExit(EX_USAGE)
    occupy_standard_descriptors()


def _arguments() -> str:
    """How this program was started, as the arguments in a list."""
    return ", ".join(map(repr, sys.orig_argv[1:]))


def _say(text: str) -> None:
    """For a person, on the one descriptor that is not the wire."""
    if sys.stderr is not None:
        sys.stderr.write(text + "\n")
