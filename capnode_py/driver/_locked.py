"""What callers of a blocking connection ask: under the lock, and in place.

A stub that is called blocks until its answer is here. Nearly always nothing else is to be done
meanwhile, and that takes a way of its own (`LockedSession._exchange`); else the thread drives all
connections as long as it waits (`_pump.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from os import read, write
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._cell import FULFILLED, REJECTED, Cell
from .._errors import again
from .._messages import UNUSUAL, Codec, Path
from .._reach import DESCRIBE
from .._seam import as_cell
from .._session import Session
from .._stub import Promise, Stub
from ._descriptor import SMALL_READ
from ._interrupts import edge, in_engine, polls
from ._pump import NOWHERE, Events, Place, Pump, place

if TYPE_CHECKING:
    from .blocking import BlockingDriver

_DESCRIBED_WITHIN = 1.0  # seconds that `help()` waits for the other side


class LockedSession(Session):
    """A session whose callers are threads: what stubs and promises ask is asked under the lock, and
    a call blocks.

    Who has the lock is the engine itself, or code of the user's which it runs (a property of a
    dataclass that is copied): there, a call gives a promise as everywhere in the engine.
    """

    _driver: BlockingDriver

    def __init__(self, codec: Codec, driver: BlockingDriver, **settings: Any) -> None:
        self._pump = driver._pump
        super().__init__(codec, driver, **settings)
        self._is_here = self._may_call  # asked where the lock is held already

    @staticmethod
    def _may_call() -> bool:
        return not in_engine()

    def make(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any) -> Cell:
        """Make a call, with the lock held: the cell of its answer."""
        if type(base) is Stub:
            return self._call(base._id, path, args, kwargs)
        return self._call_through(base, path, args, kwargs)

    def call(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any) -> Any:
        pump = self._pump
        lock = pump.lock
        if lock._is_owned():
            return Session.call(self, base, path, args, kwargs)
        lock.acquire()
        try:
            here = place.get()
            if (
                type(base) is Stub
                and (here is NOWHERE or here.is_plain)
                and not pump.polling
                and (pump.calm or pump.is_calm())
            ):
                return self._exchange(base._id, path, args, kwargs, here)
            try:
                if type(base) is Stub:
                    cell = self.outgoing.call(base._id, path, args, kwargs)
                else:
                    cell = self._call_through(base, path, args, kwargs)
            except Exception:
                raise
            except BaseException as error:
                self._driver.interrupted(error)
                raise
            return Promise(self, cell, ()) if here.awaits else self._value(cell, here)
        finally:
            lock.release()
            if pump.raised:
                pump.raise_noted()

    @edge
    def _exchange(self, target: int, path: Path, args: Any, kwargs: Any, here: Place) -> Any:
        """A call that is made when there is nothing else to do, and no other thread waits.

        This stands in one piece, with the poll of `Pump.poll`, for the sake of speed: what counts,
        on a processor that has just come from another process, is the number of steps. What is not
        the usual case goes on in the general way (`_value`).
        """
        exchange = self.exchange
        driver = self._driver
        pump = self._pump
        try:
            asked = exchange.ask(target, path, args, kwargs)
        except Exception:
            raise
        except BaseException as error:
            driver.interrupted(error)
            raise
        if type(asked) is not bytes:
            return self._value(asked, here)
        id = self.imports.last_question
        events: Events = ()
        written = 0
        pump.polling = True
        try:
            written = write(driver._write_fd, asked)
            if written == len(asked) and not pump.noted:
                # Releases wait for the answer, too.
                timeout = pump.timeout(None) if pump.timers else None
                try:
                    pump.lock.release()
                    events = pump.descriptors.poll(timeout)
                finally:
                    pump.lock.acquire()
                if events == driver.is_readable:
                    heard = read(driver._read_fd, SMALL_READ)
                    value = exchange.hear(id, heard)
                    if value is not UNUSUAL:
                        return value
                    driver.heard = heard
        except OSError:
            pass  # those that read and write in the general way come upon it again
        except BaseException:  # a timeout, Ctrl-C: whatever ends a wait gives it up
            pump.polling = False
            Session.cancel(self, exchange.enter(id, path))
            pump.flush()
            raise
        finally:
            pump.polling = False
            if pump.sleeping:
                pump.stir()
        if written < len(asked):
            driver.write_behind(memoryview(asked)[written:])
        return self._value(exchange.enter(id, path), here, events)

    def wait(self, base: Stub | Cell, path: Path) -> Generator[Any, Any, Any]:
        lock = self._driver.lock
        if lock._is_owned():
            return self._awaited(base, path)
        with lock:
            return self._awaited(base, path)
        yield  # what makes it a generator, as its callers ask for

    def _awaited(self, base: Stub | Cell, path: Path) -> Any:
        cell = base if type(base) is Cell and not path else as_cell(base, path)
        return self._value(cell, place.get())

    def _value(self, cell: Cell, here: Place, events: Events = ()) -> Any:
        """The value of a cell, when it is here: `Session.wait` without a loop."""
        driver = self._driver
        if cell.state < FULFILLED:
            self._start_awaiting(cell)
            try:
                driver._pump.drive(cell, here, events)
            except BaseException:  # a timeout, Ctrl-C: whatever ends a wait gives it up
                cell.awaiting -= 1
                self._stopped_awaiting(cell)
                del cell  # the traceback holds this frame: a late result would stay with it
                raise
            cell.awaiting -= 1
        if driver.starting and (cell.ours or not cell.import_id):
            fence = Cell(self)
            driver.fence(fence)
            driver._pump.drive(fence, here)
        if cell.state == REJECTED:
            raise again(cell.value)
        return cell.value

    def far_names(self, base: Stub | Cell, path: Path) -> list[str]:
        """What the other side says can be named there."""
        said = self._described(base, path)
        return list(said.get("members", ())) if said else []

    def far_doc(self, base: Stub | Cell, path: Path) -> str | None:
        """What the other side says of itself there, as text."""
        from .._describe import as_text

        said = self._described(base, path)
        return as_text(said, str(path[-1]) if path else "") if said else None

    def far_signature(self, base: Stub | Cell, path: Path) -> Any:
        """The signature of what it says can be called there."""
        from .._describe import as_signature

        said = self._described(base, path)
        return as_signature(said) if said else None

    def _described(self, base: Stub | Cell, path: Path) -> dict[str, Any] | None:
        lock = self._driver.lock
        if self._driver.forked or lock._is_owned() or place.get().awaits:
            return None
        try:
            with deadline(_DESCRIBED_WITHIN):
                said = self.call(base, (*path, DESCRIBE), None, None)
        except Exception:  # noqa: BLE001 - help() and completion go on without it
            return None
        return said if isinstance(said, dict) else None

    def promised(self, run: Callable[[], Promise]) -> Promise:
        return self._driver.bring(run)

    def dealloc(self, stub: Stub) -> None:
        self._driver.say(partial(Session.dealloc, self, stub))

    def cancel(self, cell: Cell) -> None:
        self._driver.say(partial(Session.cancel, self, cell))


def get(promise: Promise) -> Any:
    """The value of a promise, under the lock."""
    try:
        next(promise._session.wait(promise._base, promise._path))
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("a promise of a connection that is driven by an event loop")


@contextmanager
def deadline(seconds: float | None) -> Generator[None]:
    """Waits in the block are given up after so long, or at the deadline around it if that is
    earlier."""
    outer = place.get().here()
    when = None if seconds is None else monotonic() + seconds
    if when is None or (outer.deadline is not None and outer.deadline < when):
        yield
        return
    if outer.driver is not None and outer.call is None:
        with outer.driver.lock:
            outer.driver._in_full(outer)
    token = place.set(Place(outer.driver, outer.call, when, outer.awaits, outer.depth))
    try:
        yield
    finally:
        place.reset(token)


for _finalizer in (Session._note, Pump.note, Pump.wake):
    edge(_finalizer)
polls(LockedSession._exchange)
