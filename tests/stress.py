"""Real connections under random load: `python -m tests.stress --seed 1 --rounds 20`.

Both ends are real drivers, each in a thread of its own (with `--child`, the far one in a process),
over sockets that a relay between them may cut and join at random. Each end's walkers call the
other in all the ways that there are, and check what comes:

- a call says through which reference it was made, and as which one: calls on one reference start
  in their order (rules 5 and 6), and each one-way call arrives;
- each answer is what it must be; handlers of one blocking connection run one at a time;
- with `--dies`, one end closes in the midst of it, and every wait ends;
- when all is done and dropped, both tables come to hold the index alone, by themselves: nothing
  more is said. No callback is left, and no error was logged.

`tests/fuzz` knows more of what the engine must do. This is for what is around it: short ways for
frames that are alone, reads that bring half of one, threads, timers.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import itertools
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import capnode_py as capnode
from capnode_py import CapnodeError, sync

KINDS = ("blocking", "asyncio", "uvloop", "trio")
PATIENCE = 20.0
"""Seconds that an end may take to become quiet."""
HANGS_AFTER = 90.0

Effect: TypeAlias = Any
"""What a step yields: a `partial`, which is a call that is made and waited for; or a promise."""
Step: TypeAlias = Generator[Effect, Any, None]

ODD = [0, 1, 23, 24, 255, 256, 65535, 65536, 2**32, 2**63, 2**64, 10**30]
SIZES = [0, 1, 7, 23, 24, 200, 230, 250, 255, 256, 257, 300, 5000, 65490, 65520, 65540, 70_000]
NOTES = 1 << 16


CLOSE = object()
"""An effect: this end closes its connections."""


class Failed(AssertionError):
    """What must not be."""


class Asked(Exception):
    """Raised by handlers and callbacks that are asked to."""


class Node(capnode.Target):
    """What both ends offer. The `mark` of a call is its reference, and its number there."""

    def __init__(self, end: End) -> None:
        self._end = end
        self._last: dict[int, int] = {}
        self._notes: Counter[int] = Counter()
        self._kept: list[Any] = []
        end.made.add(self)

    def _begin(self, mark: int) -> None:
        """A call begins."""
        if capnode.current_peer() not in self._end.peers:
            self._end.fail("the current peer is none of this end")
        if mark >= 0:
            reference, n = divmod(mark, NOTES)
            if n <= self._last.get(reference, -1):
                self._end.fail(f"call {n} of {reference} after call {self._last[reference]}")
            self._last[reference] = n

    def echo(self, mark: int, value: Any = None, *, also: Any = None) -> Any:
        with self._end.alone():
            self._begin(mark)
        return [value, also] if also is not None else value

    async def later(self, mark: int, value: Any) -> Any:
        self._begin(mark)
        return value

    @capnode.in_thread
    def aside(self, mark: int, value: Any) -> Any:
        return value

    def note(self, mark: int) -> None:
        with self._end.alone():
            self._begin(mark)
        self._notes[mark // NOTES] += 1

    def noted(self, reference: int) -> int:
        return self._notes[reference]

    def child(self, mark: int) -> Node:
        with self._end.alone():
            self._begin(mark)
        return Node(self._end)

    def fail(self, mark: int, text: str) -> None:
        self._begin(mark)
        raise LookupError(text)

    def all(self, *values: Any) -> list[Any]:
        return list(values)

    def are_one(self, mark: int, one: Any, other: Any) -> bool:
        self._begin(mark)
        return one is other

    async def call(self, mark: int, function: Any, times: int) -> list[Any]:
        """One after the other."""
        self._begin(mark)
        return [await function(n) for n in range(times)]

    async def call_at_once(self, mark: int, function: Any, times: int) -> list[Any]:
        self._begin(mark)
        return [await promise for promise in [function(n) for n in range(times)]]

    def relay(self, mark: int, function: Any, value: Any) -> Any:
        self._begin(mark)
        return function(value)

    def tell(self, mark: int, function: Any, times: int) -> None:
        self._begin(mark)
        for n in range(times):
            capnode.current_peer().notify(function, n)

    async def nest(self, mark: int, function: Any, depth: int) -> int:
        self._begin(mark)
        return 1 + await function(self.nest, depth - 1) if depth else 0

    def keep(self, mark: int, function: Any) -> None:
        self._begin(mark)
        self._kept.append(function)

    async def call_kept(self, mark: int, times: int) -> list[Any]:
        self._begin(mark)
        return [await function(n) for n in range(times) for function in self._kept[:3]]

    def drop(self, mark: int) -> None:
        self._begin(mark)
        self._kept.clear()


class Reference:
    """A far node, and how many calls this walker has made on it: a promise, until it is a stub."""

    def __init__(self, peer: Any, far: Any, number: int) -> None:
        self.peer = peer
        self.far = far
        self.number = number
        self.notes = 0
        self.kept = False
        self._calls = itertools.count()

    def mark(self) -> int:
        return self.number * NOTES + next(self._calls)


class Walker:
    """Makes calls at random, one after the other: a task or a thread."""

    def __init__(self, end: End, seed: str, *, plain: bool, closes: bool) -> None:
        self.end = end
        self.random = random.Random(seed)
        self.held: list[Reference] = [end.reference(peer, peer.index) for peer in end.peers]
        self.said: list[str] = []
        self.plain = plain
        self._closes = closes
        self._reused = self.callback()
        self._steps: list[Callable[[Reference], Step]] = [
            *[self.echo] * 6,
            *[self.call] * 4,
            *[self.relay] * 3,
            self.fail,
            self.raise_back,
            self.twice,
            self.tell,
            self.nest,
            self.keep,
            self.call_kept,
            self.hold,
            self.home,
            self.collect,
            self.limited,
        ]
        if not plain:
            self._steps += [
                *[self.chain] * 2,
                *[self.at_once] * 2,
                self.note,
                self.promises,
                self.hold_promise,
                self.lose,
                self.cancel,
                self.across,
            ]

    def steps(self, count: int) -> Iterator[Step]:
        dies_at = self.random.randrange(count) if self._closes else -1
        for n in range(count):
            if n == dies_at:
                yield iter([CLOSE])  # type: ignore[misc]
            reference = self.random.choice(self.held)
            make = self.random.choice(self._steps)
            self.said.append(f"{make.__name__} on {reference.number}")
            yield make(reference)
            if len(self.held) > 8:
                self.release(self.random.randrange(len(self.end.peers), 8))

    def release(self, at: int) -> None:
        """Let go of a node; but where something was kept, it has to be dropped there first."""
        if not self.held[at].kept:
            del self.held[at]

    def last_steps(self) -> Iterator[Step]:
        for reference in self.held:
            self.said.append(f"the end of {reference.number}")
            yield self.finish(reference)

    def value(self) -> Any:
        choose = self.random
        kind = choose.randrange(9)
        if kind <= 1:
            return choose.randrange(30)
        if kind == 2:
            return choose.choice([1, -1]) * (choose.choice(ODD) + choose.randrange(-1, 2))
        if kind == 3:
            return choose.choice([None, True, False, 0.5, -1e300, float("inf"), {"a": {1, 2}}])
        if kind <= 5:
            size = choose.choice(SIZES) + choose.randrange(3)
            return choose.choice(["x", "\N{DEGREE SIGN}", "\N{SNOWMAN}"]) * (size // 2)
        if kind == 6:
            return choose.randbytes(choose.choice(SIZES) + choose.randrange(3))
        if kind == 7:
            return [self.value() for _ in range(choose.randrange(4))]
        return {str(n): self.value() for n in range(choose.randrange(3))}

    def callback(self) -> Any:
        """A function that gives what it got, plus 1000; of any kind."""
        made: Any
        kind = self.random.randrange(6)
        if kind <= 1:
            made = lambda n: n + 1000  # noqa: E731
        elif kind == 2:

            async def made(n: int) -> int:
                return n + 1000
        elif kind == 3:
            made = Adder().add
        elif kind == 4:
            made = partial(lambda more, n: n + more, 1000)
        else:
            index = self.random.choice(self.end.peers).index

            def made(n: int) -> Any:  # which calls, from within the call
                return index.echo(-1, n + 1000)

        self.end.made.add(getattr(made, "__self__", made))
        return made

    def check(self, got: Any, wanted: Any) -> None:
        if got != wanted or type(got) is not type(wanted):
            raise Failed(f"{str(got)[:200]!r} instead of {str(wanted)[:200]!r}")

    # Steps.

    def echo(self, on: Reference) -> Step:
        value = self.value()
        if self.random.random() < 0.1:
            got = yield partial(on.far.echo, on.mark(), value, also=1)
            self.check(got, [value, 1])
        else:
            how = self.random.choice(["echo", "echo", "echo", "later", "aside"])
            got = yield partial(getattr(on.far, how), on.mark(), value)
            self.check(got, value)

    def call(self, on: Reference) -> Step:
        function = self._reused if self.random.random() < 0.2 else self.callback()
        times = self.random.randrange(4)
        how = self.random.choice([on.far.call, on.far.call, on.far.call_at_once])
        got = yield partial(how, on.mark(), function, times)
        self.check(got, [n + 1000 for n in range(times)])

    def relay(self, on: Reference) -> Step:
        got = yield partial(on.far.relay, on.mark(), self.callback(), 7)
        self.check(got, 1007)

    def raise_back(self, on: Reference) -> Step:
        def raises(_n: int) -> None:
            raise Asked("by you")

        how = self.random.choice([on.far.call, on.far.relay])
        try:
            yield partial(how, on.mark(), raises, 2)
        except capnode.RemoteError as error:
            if "by you" not in str(error):
                raise
        else:
            raise Failed("the callback has not raised")

    def fail(self, on: Reference) -> Step:
        try:
            yield partial(on.far.fail, on.mark(), "as asked")
        except LookupError as error:
            if "as asked" not in str(error):
                raise
        else:
            raise Failed("the handler has not raised")

    def twice(self, on: Reference) -> Step:
        function = self.callback()
        got = yield partial(on.far.are_one, on.mark(), function, function)
        self.check(got, True)

    def tell(self, on: Reference) -> Step:
        seen: list[int] = []
        yield partial(on.far.tell, on.mark(), seen.append, 3)
        # What came before an answer has begun when that is here; or another thread is at it,
        # or (in trio, and for a thread that is none of the loop's) tasks that are yet to run.
        for _ in range((self.end.others_may_run or self.plain) * 1000):
            if len(seen) < 3:
                yield partial(on.far.echo, on.mark())
        self.check(seen, [0, 1, 2])

    def note(self, on: Reference) -> Step:
        on.notes += 1
        self.end.notify(on.peer, on.far.note, on.mark())
        yield partial(on.far.echo, on.mark())

    def nest(self, on: Reference) -> Step:
        async def deeper(far: Any, depth: int) -> int:
            return 1 + await far(-1, deeper, depth - 1) if depth else 0

        depth = self.random.randrange(6)
        got = yield partial(on.far.nest, on.mark(), deeper, depth)
        self.check(got, depth)

    def keep(self, on: Reference) -> Step:
        on.kept = True
        yield partial(on.far.keep, on.mark(), self.callback())

    def call_kept(self, on: Reference) -> Step:
        for n in (yield partial(on.far.call_kept, on.mark(), 2)):
            if n not in (1000, 1001):
                raise Failed(f"{n} of a kept callback")
        if self.random.random() < 0.5:
            yield partial(on.far.drop, on.mark())

    def hold(self, on: Reference) -> Step:
        stub = yield partial(on.far.child, on.mark())
        self.held.append(self.end.reference(on.peer, stub))

    def home(self, on: Reference) -> Step:
        """What goes home, and comes back, is what it was; so is a stub."""
        own = self.random.choice([Node(self.end), self._reused])
        back = yield partial(on.far.echo, on.mark(), own)
        if back is not own and back != own:
            raise Failed(f"{own!r} came home as {back!r}")
        stub = yield partial(on.far.child, on.mark())
        (again,) = yield partial(on.far.echo, on.mark(), [stub])
        if again is not stub:
            raise Failed(f"{stub!r} came back as {again!r}")

    def collect(self, on: Reference) -> Step:
        gc.collect()
        yield partial(on.far.echo, on.mark(), 1)

    def limited(self, on: Reference) -> Step:
        """Either is right: it was in time, or it was not."""
        limited = on.peer.with_options(on.far, timeout=self.random.choice([1e-6, 1e-3, 2e-3, 60]))
        times = self.random.randrange(20)
        try:
            got = yield partial(limited.call, on.mark(), self.callback(), times)
        except TimeoutError:
            return
        self.check(got, [n + 1000 for n in range(times)])

    # Steps with promises.

    def chain(self, on: Reference) -> Step:
        far = self.end.lazily(on)
        value = self.value()
        got = yield far.child(on.mark()).child(0).echo(0, value)
        self.check(got, value)

    def at_once(self, on: Reference) -> Step:
        far = self.end.lazily(on)
        value = self.value()
        promises = [far.echo(on.mark(), [n, value]) for n in range(self.random.randrange(12))]
        promises.append(far.later(on.mark(), [len(promises), value]))
        order = list(enumerate(promises))
        self.random.shuffle(order)
        for n, promise in order:
            got = yield promise
            self.check(got, [n, value])

    def promises(self, on: Reference) -> Step:
        far = self.end.lazily(on)
        value = self.value()
        got = yield far.all(far.echo(on.mark(), value), 1, far.child(on.mark()).later(0, 2))
        self.check(got, [value, 1, 2])

    def hold_promise(self, on: Reference) -> Step:
        """Calls go through it, and then to what it was, in their order."""
        promise = self.end.lazily(on).child(on.mark())
        new = self.end.reference(on.peer, promise)
        self.held.append(new)
        for _ in range(self.random.randrange(3)):
            promise.echo(new.mark())
        if self.random.random() < 0.8:
            new.far = yield promise
        got = yield partial(new.far.echo, new.mark(), 3)
        self.check(got, 3)

    def lose(self, on: Reference) -> Step:
        """Promises that nobody waits for."""
        far = self.end.lazily(on)
        far.call(on.mark(), self.callback(), 2)
        far.child(on.mark()).child(0)
        far.fail(on.mark(), "unseen")
        got = yield partial(on.far.echo, on.mark(), 4)
        self.check(got, 4)

    def cancel(self, on: Reference) -> Step:
        times = self.random.randrange(10)
        promise = self.end.lazily(on).call(on.mark(), self.callback(), times)
        for _ in range(self.random.randrange(3)):
            yield partial(on.far.echo, on.mark())
        promise.cancel()
        try:
            got = yield promise
        except CapnodeError:
            return
        self.check(got, [n + 1000 for n in range(times)])

    def across(self, on: Reference) -> Step:
        """A stub of one connection goes over another."""
        other = self.random.choice(self.held)
        if type(other.far) is capnode.Stub:
            got = yield partial(on.far.relay, on.mark(), other.far.echo, other.mark())
            self.check(got, None)

    def finish(self, on: Reference) -> Step:
        yield partial(on.far.drop, on.mark())
        if on.notes:
            got = yield partial(on.far.noted, on.number)
            self.check(got, on.notes)


class Adder:
    """Whose bound method is a callback."""

    def add(self, n: int) -> int:
        return n + 1000


class End:
    """One end: its connections, and its walkers."""

    def __init__(
        self,
        kind: str,
        side: int,
        seed: str,
        steps: int,
        control: socket.socket,
        *,
        shared: bool,
        dies: bool,
    ) -> None:
        self.kind = kind
        self.others_may_run = shared or kind == "trio"
        self.peers: list[Any] = []
        self.made: weakref.WeakSet[Any] = weakref.WeakSet()
        self.failures: list[str] = []
        self.walkers: list[Walker] = []
        self._random = random.Random(f"{seed} {side}")
        self._seed = seed
        self._side = side
        self._steps = steps
        self._control = control
        self._dies = dies
        self._numbers = itertools.count()
        self._busy: set[Any] = set()

    def fail(self, why: str) -> None:
        self.failures.append(why)

    def reference(self, peer: Any, far: Any) -> Reference:
        return Reference(peer, far, 2 * next(self._numbers) + self._side)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No other handler of this connection runs."""
        peer = capnode.current_peer()
        if peer in self._busy:
            self.fail("two handlers at once")
        self._busy.add(peer)
        os.sched_yield()  # if another thread may run, it does now
        self._busy.discard(peer)
        yield

    def lazily(self, on: Reference) -> Any:
        """The same, whose calls give promises."""
        if self.kind == "blocking" and type(on.far) is capnode.Stub:
            return on.peer.pipeline()(on.far)
        return on.far

    def notify(self, peer: Any, target: Any, *args: Any) -> None:
        peer.notify(target, *args)

    def run(self, socks: list[socket.socket]) -> None:
        """All of it. What has failed is in `failures`."""
        with logged(self.failures):
            try:
                if self.kind == "blocking":
                    self._run_blocking(socks)
                else:
                    self._run_loop(socks)
            except BaseException as error:
                self.fail("".join(traceback.format_exception(error)))
            self._control.close()

    def meet(self) -> None:
        """Wait for the other end."""
        self._control.send(b".")
        if not self._control.recv(1):
            raise Failed("the other end has failed")

    def _is_quiet(self) -> bool:
        """Do the tables hold the indexes alone? Of a connection that is over, nothing."""
        tables = (0, 0) if self._dies else (1, 1)
        return all((p.stats().imports, p.stats().exports) == tables for p in self.peers)

    def _drop(self) -> None:
        self.walkers.clear()
        gc.collect()

    def _check(self) -> None:
        """It is quiet, or has failed to become so."""
        gc.collect()
        if not self._is_quiet():
            for peer in self.peers:
                self.fail(f"{peer!r} is not quiet:\n{peer.leak_report()}")
        if self.made:
            self.fail(f"left: {list(self.made)}")

    def _make_walkers(self) -> None:
        count = self._random.choice([1, 1, 2, 3, 4])
        in_threads = self.kind != "blocking" and self._random.random() < 0.5
        self.walkers = [
            Walker(
                self,
                f"{self._seed} {self._side} {n}",
                plain=in_threads and n > 0,
                closes=self._dies and not self._side and n == 0,
            )
            for n in range(count)
        ]

    # Where callers block.

    def _run_blocking(self, socks: list[socket.socket]) -> None:
        self.peers += [sync.attach(sock, index=Root(self)) for sock in socks]
        self.meet()
        self._make_walkers()
        serves = self._random.random() < 0.3
        self.others_may_run |= serves or len(self.walkers) > 1
        if serves:
            self.peers[0].serve_background()
        first, *others = self.walkers
        threads = [threading.Thread(target=self._walk_blocking, args=(w,)) for w in others]
        del others
        for thread in threads:
            thread.start()
        self._walk_blocking(first)
        del first
        for peer in self.peers:
            peer.serve_background()
        for thread in threads:
            thread.join()
        threads.clear()
        self.meet()
        self._drop()
        self.meet()
        until = time.monotonic() + PATIENCE
        while (self.made or not self._is_quiet()) and time.monotonic() < until:
            threading.Event().wait(0.001)
            gc.collect()
        self._check()
        self.meet()
        for peer in self.peers:
            peer.close()

    def _walk_blocking(self, walker: Walker) -> None:
        with self._told(walker):
            for step in itertools.chain(walker.steps(self._steps), walker.last_steps()):
                self._do_blocking(walker, step)

    def _do_blocking(self, walker: Walker, step: Step) -> None:
        def wait(effect: Effect) -> Any:
            got = effect() if type(effect) is partial else effect
            if type(got) is capnode.Promise:
                peer = next(p for p in self.peers if p._session is _session_of(got))
                got = peer.wait(got)
            return got

        send: Callable[[], Effect] = partial(next, step)
        with contextlib.suppress(StopIteration):
            while True:
                effect = send()
                if effect is CLOSE:
                    for peer in self.peers:
                        peer.close()
                    return
                try:
                    send = partial(step.send, wait(effect))
                except Exception as error:
                    send = partial(step.throw, error)
                del effect

    @contextlib.contextmanager
    def _told(self, walker: Walker) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if self._dies and isinstance(error, CapnodeError):
                return
            error.add_note("\n".join(walker.said[-5:]))
            self.fail("".join(traceback.format_exception(error)))

    # In an event loop.

    def _run_loop(self, socks: list[socket.socket]) -> None:
        import anyio

        options = {"use_uvloop": True} if self.kind == "uvloop" else {}
        backend = "trio" if self.kind == "trio" else "asyncio"
        anyio.run(self._main, socks, backend=backend, backend_options=options)

    async def _main(self, socks: list[socket.socket]) -> None:
        import anyio
        from anyio.to_thread import run_sync

        self.peers += [await capnode.attach(sock, index=Root(self)) for sock in socks]
        await run_sync(self.meet)
        self._make_walkers()
        async with anyio.create_task_group() as group:
            for walker in self.walkers:
                if walker.plain:
                    group.start_soon(run_sync, self._walk_by_submit, walker)
                else:
                    group.start_soon(self._walk, walker)
            del walker
        await run_sync(self.meet)
        self._drop()
        await run_sync(self.meet)
        with anyio.move_on_after(PATIENCE):
            while self.made or not self._is_quiet():
                await anyio.sleep(0.001)
                gc.collect()
        self._check()
        await run_sync(self.meet)
        for peer in self.peers:
            await peer.aclose()

    async def _walk(self, walker: Walker) -> None:
        with self._told(walker):
            for step in itertools.chain(walker.steps(self._steps), walker.last_steps()):
                await self._do(step)

    async def _do(self, step: Step) -> None:
        send: Callable[[], Effect] = partial(next, step)
        with contextlib.suppress(StopIteration):
            while True:
                effect = send()
                if effect is CLOSE:
                    for peer in self.peers:
                        await peer.aclose()
                    return
                try:
                    got = await (effect() if type(effect) is partial else effect)
                except Exception as error:
                    send = partial(step.throw, error)
                else:
                    send = partial(step.send, got)
                    del got
                del effect

    def _walk_by_submit(self, walker: Walker) -> None:
        """In a thread that is none of the loop's."""

        def wait(effect: Effect) -> Any:
            peer = next(p for p in self.peers if p._session is _session_of(effect.func))
            return peer.submit(effect.func, *effect.args, **effect.keywords).result(HANGS_AFTER)

        with self._told(walker):
            for step in itertools.chain(walker.steps(self._steps), walker.last_steps()):
                send: Callable[[], Effect] = partial(next, step)
                with contextlib.suppress(StopIteration):
                    while True:
                        effect = send()
                        try:
                            send = partial(step.send, wait(effect))
                        except Exception as error:
                            send = partial(step.throw, error)
                        del effect


class Root(Node):
    """The index, which stays."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        end.made.discard(self)


def _session_of(promise: Any) -> Any:
    base = promise._base
    session = base._session if type(base) is capnode.Stub else base.session
    return getattr(session, "_session", session)  # of a stub with options


@contextlib.contextmanager
def logged(failures: list[str]) -> Iterator[None]:
    """An error that is logged is a failure; so is what a thread or a finalizer raises."""

    class Records(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            failures.append(logging.Formatter().format(record))

    records = Records(logging.ERROR)
    logging.getLogger().addHandler(records)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(records)


def relay(one: socket.socket, other: socket.socket, seed: str) -> None:
    """Carry what is written at either end to the other, cut and joined at random."""

    def carry(source: socket.socket, sink: socket.socket, seed: str) -> None:
        choose = random.Random(seed)
        with contextlib.suppress(OSError):
            while data := source.recv(choose.choice([1, 2, 3, 30, 300, 65536, 1 << 18])):
                if choose.random() < 0.2:
                    threading.Event().wait(choose.random() / 2000)  # more may come meanwhile
                at = choose.randrange(len(data) + 1) if choose.random() < 0.5 else 0
                for part in filter(None, (data[:at], data[at:])):
                    sink.sendall(part)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=carry, args=(other, one, seed + " back"))
    back.start()
    carry(one, other, seed)
    back.join()
    one.close()
    other.close()


def joined(seed: str, *, relayed: bool) -> tuple[socket.socket, socket.socket, Any]:
    """Two sockets, and the thread of what is between them."""
    if not relayed:
        return *socket.socketpair(), None
    one, one_relayed = socket.socketpair()
    other, other_relayed = socket.socketpair()
    between = threading.Thread(target=relay, args=(one_relayed, other_relayed, seed))
    between.start()
    return one, other, between


def run(
    near: str, far: str, seed: int, steps: int, *, child: bool = False, dies: bool = False
) -> list[str]:
    """One round: what has failed."""
    choose = random.Random(seed)
    name = f"{seed}"
    shared = near == far == "blocking" and not child  # then one pump is for both
    joints = [
        joined(f"{name} {n}", relayed=choose.random() < 0.4) for n in range(choose.randint(1, 2))
    ]
    near_control, far_control = socket.socketpair()
    near_end = End(near, 0, name, steps, near_control, shared=shared, dies=dies)
    threads = [threading.Thread(target=near_end.run, args=([j[0] for j in joints],))]
    failures = near_end.failures
    process = None
    if child:
        socks = [far_control, *(j[1] for j in joints)]
        fds = [sock.fileno() for sock in socks]
        numbers = ",".join(map(str, fds))
        command = f"-m tests.stress --end {numbers} --far {far} --seed {seed} --steps {steps}"
        command += " --dies" * dies
        process = subprocess.Popen(
            [sys.executable, *command.split()], pass_fds=fds, cwd=Path(__file__).parent.parent
        )
        for sock in socks:
            sock.close()
    else:
        far_end = End(far, 1, name, steps, far_control, shared=shared, dies=dies)
        threads.append(threading.Thread(target=far_end.run, args=([j[1] for j in joints],)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, _, between in joints:
        if between is not None:
            between.join()
    if process is None:
        failures += far_end.failures
    elif process.wait():
        failures.append("the child has failed")
    return failures


def run_child(far: str, seed: int, steps: int, fds: list[int], *, dies: bool) -> None:
    control, *socks = [socket.socket(fileno=fd) for fd in fds]
    end = End(far, 1, f"{seed}", steps, control, shared=False, dies=dies)
    end.run(socks)
    if end.failures:
        sys.exit("\n".join(end.failures))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1, help="each with the next seed")
    parser.add_argument("--steps", type=int, default=100, help="of each walker")
    parser.add_argument("--near", choices=KINDS, action="append")
    parser.add_argument("--far", choices=KINDS, action="append")
    parser.add_argument("--child", action="store_true", help="the far end is a process")
    parser.add_argument("--dies", action="store_true", help="in the midst of it")
    parser.add_argument("--end", help=argparse.SUPPRESS)
    options = parser.parse_args()
    faulthandler.enable()

    if options.end:
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        fds = [int(fd) for fd in options.end.split(",")]
        run_child(options.far[0], options.seed, options.steps, fds, dies=options.dies)
        return
    done = 0
    started = time.monotonic()
    for seed in range(options.seed, options.seed + options.rounds):
        for near in options.near or KINDS:
            for far in options.far or KINDS:
                faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
                where = f"--seed {seed} --steps {options.steps} --near {near} --far {far}"
                where += " --child" * options.child + " --dies" * options.dies
                print(where, end="\r", flush=True)
                failures = run(
                    near, far, seed, options.steps, child=options.child, dies=options.dies
                )
                if failures:
                    sys.exit("\n".join([*failures, f"failed: {where}"]))
                done += 1
    seconds = time.monotonic() - started
    print(f"{done} rounds from seed {options.seed}: all is well, {seconds:.0f} s")


if __name__ == "__main__":
    main()
