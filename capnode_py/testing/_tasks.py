"""Coroutines without an event loop: tasks, which run a step at a time, and what they wait for."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._wire import FakeDriver


class Fence:
    """An event: ``await fence.wait()`` in a handler, ``fence.set()`` in the test."""

    def __init__(self) -> None:
        self._set = False
        self._watchers: list[Callable[[object], object]] = []

    def set(self) -> None:
        self._set = True
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher(self)

    def is_set(self) -> bool:
        return self._set

    async def wait(self) -> None:
        if not self._set:
            await self

    def watch(self, watcher: Callable[[object], object]) -> None:
        """Call `watcher(fence)` once it is set."""
        self._watchers.append(watcher)

    def __await__(self) -> Generator[Any, Any, None]:
        yield self


class Task:
    """A coroutine that one side runs, a step at a time.

    Attributes:
        done: it has returned or raised.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], driver: FakeDriver) -> None:
        self.done = False
        self._coroutine = coroutine
        self._driver = driver
        self._context: Context = copy_context()
        self._scheduled = False
        self._cancelled = False
        self._waits_for: Any = None
        self._value: Any = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Task {self._coroutine!r}{', done' if self.done else ''}>"

    def cancel(self) -> None:
        """Raise CancelledError where it waits, when it runs next."""
        if not self.done:
            self._cancelled = True
            self._schedule()

    def result(self) -> Any:
        """What it returned; raises what it raised."""
        if not self.done:
            raise AssertionError(f"{self!r} is still waiting")
        if self._error is not None:
            raise self._error
        return self._value

    def step(self) -> None:
        """Run it until it waits again, or ends."""
        wire = self._driver.wire
        outer, wire.current = wire.current, self
        cancelled, self._cancelled = self._cancelled, False
        self._scheduled = False
        self._waits_for = None
        try:
            if cancelled:
                waits_for = self._context.run(self._coroutine.throw, CancelledError())
            else:
                waits_for = self._context.run(self._coroutine.send, None)
        except StopIteration as stop:
            self.done, self._value = True, stop.value
        except BaseException as error:  # noqa: BLE001 - for `result`
            self.done, self._error = True, error
        else:
            self._waits_for = waits_for
            waits_for.watch(self.go_on)
        finally:
            wire.current = outer
            if self.done:
                self._driver.tasks.discard(self)
            else:
                self._driver.tasks.add(self)
            del self  # a traceback holds this frame, and the task the traceback

    def go_on(self, waited_for: object) -> None:
        """What it waited for is here: it runs in a later turn, as on a loop."""
        if waited_for is self._waits_for:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._driver.ready.append(self)
