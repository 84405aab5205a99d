"""What there is in a process at a moment, and how each thing of it is told: what it is, and where
it came from, as far as the interpreter knows without having been asked before.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import socket
import sys
import sysconfig
import threading
import tracemalloc
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, NamedTuple

_ORIGIN_DEPTH = 12  # frames between a coroutine's making and who asked for its task, on any loop
PACKAGE: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_LIBRARY = sysconfig.get_path("stdlib") + os.sep
_RUNNERS = re.compile(
    r"[/\\\\](?:site|dist)-packages[/\\\\]"
    r"(?:_pytest|anyio|outcome|pluggy|pytest_asyncio|pytest_trio|trio)[/\\\\]"
)
_POOLS = ("concurrent/futures/thread.py", "anyio/_backends/_asyncio.py", "_thread_cache.py")


class Census(NamedTuple):
    """What there is at a moment.

    Attributes:
        tasks: those of this loop, if one runs.
        threads: all of `threading`.
        children: pids, also of those that nobody has reaped.
        descriptors: what each is.
    """

    tasks: set[Any]
    threads: set[threading.Thread]
    children: set[int]
    descriptors: dict[int, str]

    @classmethod
    def now(cls, *, descriptors: bool = True) -> Census:
        return cls(
            current_tasks(),
            set(threading.enumerate()),
            _children(),
            _descriptors() if descriptors else {},
        )


# Where things come from.


def is_foreign(file: str) -> bool:
    """Is it of this library, of Python's, or of what runs loops and tests?"""
    if file.startswith((PACKAGE, "<frozen")) or _RUNNERS.search(file):
        return True
    return file.startswith(_LIBRARY) and "-packages" not in file


def site(frame: FrameType | None) -> str:
    while frame is not None:
        code = frame.f_code
        if not is_foreign(code.co_filename):
            return f"{code.co_filename}:{frame.f_lineno}, in {code.co_name}"
        frame = frame.f_back
    return ""


@contextlib.contextmanager
def origins_of_coroutines() -> Iterator[None]:
    """Have each coroutine of this thread know where it was made."""
    before = sys.get_coroutine_origin_tracking_depth()
    sys.set_coroutine_origin_tracking_depth(max(before, _ORIGIN_DEPTH))
    try:
        yield
    finally:
        sys.set_coroutine_origin_tracking_depth(before)


# Tasks.


def current_tasks() -> set[Any]:
    trio = getattr(sys.modules.get("trio"), "lowlevel", None)  # None while it is being imported
    if trio is not None and trio.in_trio_run():
        return set(_below(trio.current_root_task()))
    asyncio = sys.modules.get("asyncio")
    loop = None if asyncio is None else asyncio._get_running_loop()
    return set() if loop is None else set(asyncio.all_tasks(loop))  # type: ignore[union-attr]


def _below(task: Any) -> Iterator[Any]:
    if task is not None:
        yield task
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield from _below(child)


def coroutine_of(task: Any) -> Any:
    return task.get_coro() if hasattr(task, "get_coro") else task.coro


def is_own(coroutine: Any) -> bool:
    """Is it a task of a peer's, such as reads its stream?"""
    while coroutine is not None:
        code = getattr(coroutine, "cr_code", None)
        if code is not None and code.co_filename.startswith(PACKAGE):
            return True
        if code is None or not is_foreign(code.co_filename):
            return False
        coroutine = coroutine.cr_await
    return False


def of_task(task: Any, coroutine: Any) -> str:
    name = task.get_name() if hasattr(task, "get_name") else task.name
    line = f"task {name!r} of {getattr(coroutine, '__qualname__', coroutine)}"
    for file, number, function in getattr(coroutine, "cr_origin", None) or ():
        if not is_foreign(file):
            line += f", made at {file}:{number}, in {function}"
            break
    waits = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None and not is_foreign(frame.f_code.co_filename):
            waits = f", waits at {frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return line + waits


# Threads.


def _frames(thread: threading.Thread) -> list[FrameType]:
    """Where it is, innermost first."""
    frame = sys._current_frames().get(thread.ident or 0)
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found


def is_idle(thread: threading.Thread) -> bool:
    """Does it belong to a pool, and run nobody's code? Loops keep such for a while."""
    frames = [frame.f_code.co_filename for frame in _frames(thread)]
    pooled = any(file.endswith(_POOLS) for file in frames)
    pools = (_LIBRARY, "<frozen")
    return pooled and all(file.startswith(pools) or file.endswith(_POOLS) for file in frames)


def of_thread(thread: threading.Thread) -> str:
    frames = [frame for frame in _frames(thread) if not is_foreign(frame.f_code.co_filename)]
    where = ""
    if frames:
        started = frames[-1].f_code
        where = f", started in {started.co_name} at {started.co_filename}:{started.co_firstlineno}"
        where += f", now at {frames[0].f_code.co_filename}:{frames[0].f_lineno}"
    return f"thread {thread.name!r}{where}"


# Children and descriptors.


def _children() -> set[int]:
    found: set[int] = set()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):  # there are none; or this is not Linux
        return found
    for task in _listed("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
            found.update(map(int, file.read().split()))
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    if tracker is not None:  # of this process, for the rest of its life
        found.discard(getattr(tracker._resource_tracker, "_pid", None) or 0)
    return found


def of_child(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            command = file.read().replace("\0", " ").strip()
        with open(f"/proc/{pid}/stat") as file:
            name, _, rest = file.read().partition(") ")
    except OSError:
        return f"child process {pid}"
    if not command:
        command = name.partition("(")[2]
    state = ", which nobody has waited for" if rest.startswith("Z") else ""
    return f"child process {pid}: {command}{state}"


def _descriptors() -> dict[int, str]:
    found = {}
    for fd in map(int, _listed("/proc/self/fd")):
        with contextlib.suppress(OSError):  # that of the listing itself
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    if tracker is not None:
        found.pop(getattr(tracker._resource_tracker, "_fd", None) or -1, None)
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # not on Linux
        return []


def of_descriptor(fd: int, what: str) -> str:
    line = f"descriptor {fd}: {what}"
    for holder in gc.get_objects():
        with contextlib.suppress(Exception):
            if isinstance(holder, (socket.socket, io.FileIO)) and holder.fileno() == fd:
                made = tracemalloc.get_object_traceback(holder)
                where = f", opened at {made[-1]}" if made else ""
                return f"{line}, of {holder!r}{where}"
    return line


def warm_uvloop() -> None:
    """Its first loop opens descriptors for the rest of the process."""
    uvloop = sys.modules.get("uvloop")
    if uvloop is not None and not _warm:
        _warm.append(True)
        uvloop.new_event_loop().close()


_warm: Final[list[bool]] = []
