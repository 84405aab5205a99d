"""Ctrl-C while the engine is at work: it waits until that is done.

Python raises a KeyboardInterrupt between any two steps of the main thread. In the midst of the
engine that would leave a session half changed, with nothing to do but to end it. So while a
blocking connection is open, a handler of ours stands in the place of Python's own:

- in code of the user's it raises at once, as ever, in handlers too;
- in the engine, or where a thread lets go of the lock and takes it again, it leaves a note, and
  wakes the poll. The wait that is under way then raises, and withdraws its call; or, if there is
  none, whoever lets go of the lock does, when the engine is done;
- in a finalizer, where an exception would be lost, it leaves that note, too.

A program that has a handler of its own for SIGINT keeps it. If that raises in the engine, the
session ends, and says why.

What such a handler, or a finalizer, asks of a peer may come in the midst of a poll of the same
thread, which cannot go on before the other is done. So there nothing can be waited for
(`in_own_poll`). Or it comes in the midst of the engine, where an id may be taken and its message
not yet be out: then it is done when the engine is (`in_engine`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

from .._outgoing import Outgoing

F = TypeVar("F", bound=Callable[..., Any])

_edges: set[CodeType] = set()


def edge(function: F) -> F:
    """It lets go of the lock and takes it again: there, too, an interrupt waits (a decorator)."""
    _edges.add(function.__code__)
    return function


_polls: set[CodeType] = set()
_ABOVE = frozenset(
    f"capnode_py.{name}"
    for name in (
        "__main__",
        "_addresses",
        "_capnode",
        "_child",
        "_claim",
        "_demo",
        "_describe",
        "_doors",
        "_facades",
        "_holders",
        "_interface",
        "_lasting",
        "_leaks",
        "_listen",
        "_lives",
        "_logs",
        "_map",
        "_membrane",
        "_options",
        "_peer",
        "_peer_sync",
        "_remote",
        "_spawn",
        "_spawn_sync",
        "_start",
        "_stdio",
        "_stub",
        "_supervise",
        "_supervise_sync",
        "_watchdog",
        "_websocket",
        "sync",
        "testing",
    )
)
"""What stands above the drivers, or is called by users: there nothing is half done."""


def polls(function: F) -> F:
    """It polls, and calls no code of the user's by itself (a decorator)."""
    _polls.add(function.__code__)
    return function


def in_own_poll() -> bool:
    """Has the caller struck in the midst of a poll of its thread?

    The stack tells, so that those who poll need not say it each time.
    """
    above = sys._getframe(1)
    frame = above.f_back
    while frame is not None:
        if frame.f_code in _polls and (not _is_ours(above) or _is_above(above)):
            return True
        above, frame = frame, frame.f_back
    return False


_copies = {Outgoing.encode.__code__, Outgoing.value.__code__}
_calls_out: set[CodeType] = set()


def calls_out(function: F) -> F:
    """It runs code of the user's, without the lock (a decorator)."""
    _calls_out.add(function.__code__)
    return function


def in_engine() -> bool:
    """Has the caller, who has the lock, struck in the midst of the engine?

    Not so the code of a value that is copied: it is run where it may call. Nor what is called by
    the face of the library, which takes the lock first.
    """
    frame = _below(_below(sys._getframe(1), ours=True), ours=False)
    if frame is None or frame.f_code in _calls_out:
        return False
    copying: FrameType | None = frame  # maybe it copies a value for a call
    while copying is not None and _is_copying(copying):
        copying = copying.f_back
    if copying is not frame and copying is not None and copying.f_code in _copies:
        return False
    while frame is not None and _is_ours(frame):
        if not _is_above(frame):
            return True
        frame = frame.f_back
    return False


def _below(frame: FrameType | None, *, ours: bool) -> FrameType | None:
    """The first frame that is not of this kind."""
    while frame is not None:
        if _is_ours(frame) is not ours:
            return frame
        frame = frame.f_back
    return None


def _is_copying(frame: FrameType) -> bool:
    name: str = frame.f_globals["__name__"]
    return name in _COPYING or (name.startswith("capnode_py.codec.") and name != _LONE)


_COPYING = ("capnode_py._reach", "capnode_py._seam")
_LONE = "capnode_py.codec.lone"  # copies no value of a user's class


def _is_above(frame: FrameType) -> bool:
    name: str = frame.f_globals["__name__"]
    return name in _ABOVE or name.startswith("capnode_py.testing.")


def _is_ours(frame: FrameType) -> bool:
    name: str = frame.f_globals.get("__name__") or ""
    return name.startswith("capnode_py.")


class Guard:
    """Has our handler in place while there are connections.

    Args:
        is_busy: is this thread in the engine?
        note: leave a note.
    """

    def __init__(self, is_busy: Callable[[], bool], note: Callable[[], None]) -> None:
        self._is_busy = is_busy
        self._note = note
        self._connections = 0

    def opened(self) -> None:
        """One more connection."""
        import signal  # not before, since it takes a while

        self._connections += 1
        if self._can_change() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupted)

    def closed(self) -> None:
        """One less."""
        self._connections -= 1
        if not self._connections:
            self.give_back()

    def give_back(self) -> None:
        """Python's own handler stands in its place again."""
        import signal

        # Compared, as each look at a method is another object.
        if self._can_change() and signal.getsignal(signal.SIGINT) == self._interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @staticmethod
    def _can_change() -> bool:
        return threading.current_thread() is threading.main_thread()

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        from signal import default_int_handler

        if self._is_busy() or (frame is not None and frame.f_code in _edges):
            self._note()
        else:
            default_int_handler(number, frame)
