"""What a handler may ask: whose call it is, a thread of its own, and to wait there."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .._arguments import checked_timeout
from .._reach import IN_THREAD, forget_found
from .._stub import Promise

if TYPE_CHECKING:
    from ._base import Driver

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

current: contextvars.ContextVar[Any] = contextvars.ContextVar("capnode_py.current_peer")

worker = threading.local()
"""`active` in a worker thread that runs a handler."""


def work(handler: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any]:
    """In a worker thread: calls are brought to the loop, and `wait` may block. The result is in a
    tuple, since trio takes no coroutine from a thread."""
    worker.active = True
    try:
        return (handler(*args, **kwargs),)
    finally:
        worker.active = False


def wait(promise: Awaitable[T], timeout: float | None = None) -> T:
    """Block until a promise has its value; for handlers decorated with `in_thread`, and for those
    of a blocking peer.

    Args:
        promise: an answer, or a path to read.
        timeout: seconds; None waits for ever.

    Raises:
        TimeoutError: it took longer; the call is then cancelled.
        RuntimeError: in the event loop's own thread, which this would block.
        TypeError, ValueError: for the arguments.
    """
    timeout = checked_timeout(timeout)
    if not isinstance(promise, Promise):
        raise TypeError(
            "wait() takes a promise, as in capnode.wait(peer.index.add(1, 2)), not a value of type "
            f"{type(promise).__name__}"
        )
    driver: Driver = promise._session._driver  # type: ignore[attr-defined]
    if driver.here():
        raise RuntimeError("wait() would block the event loop: write await promise")
    return cast(T, driver.block_on(promise, timeout))


def current_peer() -> Any:
    """The peer whose call is being handled.

    Raises:
        RuntimeError: outside a handler.
    """
    try:
        return current.get()
    except LookupError:
        raise RuntimeError(
            "current_peer() is for handlers: no call is being handled here"
        ) from None


def in_thread(function: F) -> F:
    """Run this sync handler in a worker thread (a decorator), where `wait` may block.

    Raises:
        TypeError: it is async.
    """
    if isinstance(function, (staticmethod, classmethod)):
        in_thread(function.__func__)
        return function
    if not isinstance(function, (FunctionType, functools.partial)):
        raise TypeError(f"in_thread decorates a function of yours, not {function!r}")
    from inspect import iscoroutinefunction

    if iscoroutinefunction(function):
        raise TypeError(
            f"in_thread is for sync handlers, and {function!r} is async: it runs in the "
            "event loop anyway, so leave the decorator out"
        )
    setattr(function, IN_THREAD, True)
    forget_found()
    return function
