"""Hosts that pass references around at random, and an oracle that knows where each leads.

Every reference that a host holds is a *line*: the promise that it got first, and the value that the
promise became. Calls on a line carry its number and count up; the object that is called knows its
own name. So each arrival can be checked at once: is this the object that the line leads to (the
oracle knows, whatever the wire did), and is this the next call of that line? At the end, all that
was called on a line which leads somewhere must have arrived, and every table must be empty.

Frames are delivered one at a time, in random order between connections, and a side may for a while
take none, so that every race that the protocol permits will come about. `PROFILES` take turns: what
happens often in one is rare in another, so that also the races that need three rare things in a row
come about within a few thousand steps.
"""

from __future__ import annotations

import contextlib
import gc
import random
from asyncio import CancelledError
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from capnode_py import CannotPass, CapnodeError, Limits, Promise, Stub, Target
from capnode_py._cell import Cell
from capnode_py.testing import FakeDriver, Fence, Task, Wire

MOST_LINES = 12  # a host drops references above this, so that a long run stays small
MOST_FRAMES = 60  # on all wires together, before some are delivered
LIMITS = Limits(high_water=100, low_water=50)  # so low that a side which takes nothing is felt
PAD = bytes(150)  # which is above high water
TURN = 100  # steps of one profile


GIVES = ("give", "box", "later")
ECHOES = ("echo", "via", "boxed_via", "boxed_via")
VIA = ("own_via", "boxed_own_via", "boxed_path", "boxed_path_home", "boxed_far_path")
PATHS = ("boxed_path", "boxed_path_home", "boxed_far_path", "boxed_stub_path", "relayed")


class Profile(NamedTuple):
    """What can happen, and how often it does.

    Attributes:
        weights: of the actions, which are methods of `World`.
        loyal: how often one line is gone on with, from its first calls to its last.
        own: how often what is given away or echoed is an object of the giver's own.
        late: how often all stubs are dropped which the next frame will bring again.
        asks: what is asked for, methods of `Thing`.
        share: how often it has its turn.
    """

    weights: dict[str, int]
    loyal: float = 0.0
    own: float = 0.1
    late: float = 0.2
    asks: tuple[str, ...] = GIVES + ECHOES + VIA
    share: int = 1


_USUAL = {
    "call": 40,
    "ask": 8,
    "pass_on": 5,
    "wait_for": 8,
    "drop": 6,
    "collect": 1,
    "cancel": 2,
    "fail": 2,
    "stall": 1,
    "unstall": 4,
    "settle": 15,
    "open_fence": 4,
    "flush": 10,
    "deliver": 30,
}
_RACE = {
    "call": 15,
    "ask": 1,
    "pass_on": 1,
    "wait_for": 2,
    "drop": 1,
    "settle": 6,
    "open_fence": 1,
    "unstall": 1,
    "flush": 4,
    "deliver": 50,
}
PROFILES = {
    "everything": Profile(_USUAL),
    # Promises come home, and are called through before, while and after they do.
    "homecoming": Profile(_RACE, loyal=0.9, own=0.5, asks=ECHOES + VIA, share=2),
    # The same, while what comes is kept (rule 13), with pings and pongs among it.
    "siege": Profile(
        {**_RACE, "stall": 8, "unstall": 8}, loyal=0.9, own=0.5, asks=ECHOES + VIA, share=2
    ),
    # What is called by a path into data, at which stands a promise that leads on, and back.
    "paths": Profile(
        {**_RACE, "stall": 4, "unstall": 8},
        loyal=0.9,
        own=0.5,
        asks=PATHS,
    ),
    # Stubs die while their references are on the way again.
    "comings": Profile(
        {**_USUAL, "pass_on": 25, "drop": 15, "collect": 2, "deliver": 60}, own=0.5, late=0.8
    ),
}
"""They take turns in each world."""


class Truth:
    """What a reference leads to, as far as it is decided: an object, or what another leads to."""

    def __init__(self, thing: Thing | None = None, needs: Sequence[Truth] = ()) -> None:
        self.thing = thing
        self.needs = needs  # what must be decided before: the object that is asked, an argument
        self.same_as: Truth | None = None
        self.doomed = False  # somebody has cancelled what leads here

    def doom(self) -> None:
        """A cancel passes on along the promises that it finds; what goes through them may fail."""
        truth: Truth | None = self
        while truth is not None:
            truth.doomed = True
            truth = truth.same_as

    def is_doomed(self) -> bool:
        truth: Truth | None = self
        while truth is not None and not truth.doomed:
            truth = truth.same_as
        return truth is not None

    def waits_for(self, other: Truth) -> bool:
        """Would it be a promise that waits for itself, if `other` were to become this one?"""
        seen: set[Truth] = set()
        todo = [self]
        while todo:
            truth = todo.pop()
            if truth is other:
                return True
            if truth not in seen and truth.thing is None:
                seen.add(truth)
                todo += truth.needs if truth.same_as is None else [truth.same_as]
        return False

    def root(self) -> Truth:
        truth = self
        while truth.same_as is not None:
            truth = truth.same_as
        return truth


class Line:
    """A reference that a host holds, with what was called on it."""

    def __init__(self, world: World, number: int, ref: Any, truth: Truth) -> None:
        self.world = world
        self.number = number
        self.ref = ref
        self.truth = truth
        self.called = 0
        self.arrived = 0
        self.awaited = False
        self.box: Any = None  # the promise of the data that `ref` is a path into
        self.task: Task | None = None

    def is_read(self) -> bool:
        """A path that is being read: what is called on it meanwhile is not ordered with what will
        be called on the value that was read."""
        reads = isinstance(self.ref, Promise) and bool(self.ref._path)
        return self.awaited and reads and self.box is None

    def is_settled(self) -> bool:
        base = self.ref._base if isinstance(self.ref, Promise) else None
        return not isinstance(base, Cell) or base.settled

    def __repr__(self) -> str:
        return f"line {self.number} ({type(self.ref).__name__})"


class Thing(Target):
    """An object of a host."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self._name = name

    def pad(self, data: bytes) -> None:
        """Bytes that wait to be sent."""

    def hit(self, line: int, count: int) -> None:
        """A call whose arrival is checked."""
        self._host.world.arrived(self, line, count)

    async def hit_later(self, line: int, count: int) -> None:
        """The same, in a handler that may take a task of its own."""
        self.hit(line, count)

    def spoil(self, number: int) -> Any:
        """References that cannot cross, for what stands beside them."""
        return [self, {"in": self._host.choose(number)}, object()]

    def give(self, number: int) -> Any:
        """A reference that this host holds; the caller's line `number` then leads there."""
        return self._host.choose(number)

    def box(self, number: int) -> Any:
        """The same, inside data."""
        return {"in": [self._host.choose(number)]}

    async def later(self, number: int) -> Any:
        """The same, but the answer waits for a fence."""
        fence = Fence()
        self._host.world.fences.append(fence)
        await fence.wait()
        return self._host.choose(number)

    def take(self, refs: list[Any], number: int) -> None:
        """A reference for this host to hold, which came once or more often."""
        world = self._host.world
        if any(ref is not refs[0] for ref in refs) and world.wire.dialect == "cbor":
            world.fail_with(f"one reference came as several: {refs}")
        self._host.hold(refs[0], world.truths[number])

    async def echo(self, ref: Any, number: int, source: int) -> Any:
        """What was sent comes home."""
        self._host.world.bind(number, self._host.world.truths[source])
        return ref

    def via(self, ref: Any, number: int, source: int) -> Any:
        """The same, by way of another host, or of the one who has sent it."""
        return self._host.far_index().echo(ref, number, source)

    def boxed_via(self, ref: Any, number: int, source: int) -> Any:
        """The same, inside data: this host answers before it knows."""
        return {"in": [self.via(ref, number, source)]}

    def own_via(self, number: int, source: int) -> Any:
        """An object of this host, which goes by way of another before it is given."""
        thing = self._host.random_thing()
        self._host.world.bind(source, Truth(thing))
        return self.via(thing, number, source)

    def boxed_own_via(self, number: int, source: int) -> Any:
        """The same, inside data."""
        return {"in": [self.own_via(number, source)]}

    async def boxed_echo(self, ref: Any, number: int, source: int) -> Any:
        """What was sent comes home inside data."""
        return {"in": [await self.echo(ref, number, source)]}

    def boxed_path(self, number: int, source: int) -> Any:
        """A path into what another host answers: there stands an object of that host."""
        return {"in": [self._host.far_index().boxed_own_via(number, source)["in"][0]]}

    def boxed_path_home(self, number: int, source: int) -> Any:
        """The same, with an object of this host."""
        thing = self._host.random_thing()
        self._host.world.bind(source, Truth(thing))
        return {"in": [self._host.far_index().boxed_echo(thing, number, source)["in"][0]]}

    def relayed(self, number: int, source: int) -> Any:
        """Data that another host makes, of which this one knows nothing."""
        how = self._host.world.random.choice(("boxed_own_via", "boxed_path", "boxed_path_home"))
        return self._host.far_index()[how](number, source)

    def boxed_far_path(self, number: int, source: int) -> Any:
        """A path into such data, which therefore leads over the host that was asked for it."""
        return {"in": [self._host.far_index().relayed(number, source)["in"][0]]}

    def boxed_stub_path(self, number: int, source: int) -> Any:
        """The same, where the path begins at an object."""
        far = self._host.far_index()
        far.store(number, source)
        return {"in": [far.stored[str(number)]["in"][0]]}

    def store(self, number: int, source: int) -> None:
        """Such data, to be read by a path."""
        self._host.stored[str(number)] = self.relayed(number, source)

    @property
    def stored(self) -> dict[str, Any]:
        """All that was stored."""
        return self._host.stored


class Host:
    """Objects, lines, and a side of a connection to each other host."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.things = [Thing(self, f"{name}{n}") for n in range(3)]
        self.index = Thing(self, f"{name}-index")
        self.sides: list[FakeDriver] = []
        self.lines: list[Line] = []
        self.stored: dict[str, Any] = {}

    def hold(self, ref: Any, truth: Truth) -> Line:
        world = self.world
        world.last_line += 1
        line = Line(world, world.last_line, ref, truth)
        world.lines[line.number] = line
        self.lines.append(line)
        return line

    def choose(self, number: int) -> Any:
        """A reference to give away, and the oracle's note of it."""
        random = self.world.random
        some = self.pending() if random.random() < 0.6 else []
        some = some or self.lines
        line = random.choice(some) if some and random.random() < 0.8 else None
        if line is None or line.truth.waits_for(self.world.truths[number]):
            thing = self.random_thing()
            self.world.bind(number, Truth(thing))
            return thing
        self.world.bind(number, line.truth)
        return line.ref

    def any_line(self) -> Line:
        """A line to call on: one that it holds, or a neighbour's index."""
        random = self.world.random
        if not self.lines or random.random() < 0.15:
            side = random.choice(self.sides)
            other = self.world.host_of[id(side.other)]
            return self.hold(side.index, Truth(other.index))
        if random.random() < 0.5:  # one that was asked for lately: a race takes several calls
            line = random.choice(self.lines[-2:])
        else:
            line = random.choice(self.lines)
        return self.any_line() if line.is_read() else line

    def something(self) -> tuple[Any, Truth]:
        """A reference to send away, which may be an object of its own."""
        random = self.world.random
        if random.random() < self.world.profile.own:
            thing = self.random_thing()
            return thing, Truth(thing)
        line = self.any_line()
        return line.ref, line.truth

    def random_thing(self) -> Thing:
        return self.world.random.choice(self.things)

    def far_index(self) -> Any:
        return self.world.random.choice(self.sides).index

    def pending(self) -> list[Line]:
        """Those that are promises, on which races can turn."""
        return [line for line in self.lines if isinstance(line.ref, Promise)]


class Failure(AssertionError):
    """The oracle disagrees. In a handler it is an answer like any other, so the world notes it."""


class World:
    """Some hosts, all connected, and the oracle.

    Args:
        seed: of all that happens, or what makes all choices.
        hosts: how many; 2 or 3.
        eager: coroutine handlers start inline.
        alone: what has a frame to itself takes the short way.
        profile: the name of the only one, in place of all by turns.
        dialect: what they speak. Where the same object is another stub each time, that is not held
            against them.
    """

    def __init__(
        self,
        seed: int | random.Random,
        *,
        hosts: int = 2,
        eager: bool = True,
        alone: bool = False,
        profile: str | None = None,
        dialect: str = "cbor",
    ) -> None:
        self.random = seed if isinstance(seed, random.Random) else random.Random(seed)
        self.profiles = [PROFILES[name] for name in ([profile] if profile else PROFILES)]
        self.profile = self.profiles[0]
        self.wire = Wire(dialect=dialect)
        self.lines: dict[int, Line] = {}
        self.last_line = 0
        self.truths: dict[int, Truth] = {}
        self.last_truth = 0
        self.fences: list[Fence] = []
        self.cancelled: list[Truth] = []
        self.favourite: tuple[Host, Line] | None = None
        self.history: list[str] = []
        self.failure: Failure | None = None
        self.hosts = [Host(self, name) for name in "abc"[:hosts]]
        self.host_of: dict[int, Host] = {}
        for position, one in enumerate(self.hosts):
            for other in self.hosts[position + 1 :]:
                near, far = self.wire.link(
                    one.index,
                    other.index,
                    limits=LIMITS,
                    far_limits=LIMITS,
                    names=(one.name + other.name, other.name + one.name),
                )
                for host, side in ((one, near), (other, far)):
                    host.sides.append(side)
                    side.eager = eager
                    side.alone = alone
                    self.host_of[id(side)] = host

    def run(self, steps: int) -> None:
        """So many random steps; then everything must arrive, and everything must be let go."""
        gc.disable()  # or a seed would not give the same run twice
        try:
            for step in range(steps):
                if step % TURN == 0:
                    shares = [profile.share for profile in self.profiles]
                    (self.profile,) = self.random.choices(self.profiles, shares)
                    actions = [getattr(self, name) for name in self.profile.weights]
                    weights = list(self.profile.weights.values())
                action = self.random.choices(actions, weights)[0]
                if sum(len(side.inbox) for side in self.wire.sides) > MOST_FRAMES:
                    action = self.deliver
                action(self.random.choice(self.hosts))
                self.check_alive()
            self.finish()
        finally:
            gc.enable()

    def note(self, what: str) -> None:
        self.history.append(what)
        if len(self.history) > 300:
            del self.history[:100]

    # The oracle.

    def bind(self, number: int, truth: Truth) -> None:
        self.truths[number].same_as = truth

    def new_truth(self, *needs: Truth) -> tuple[int, Truth]:
        self.last_truth += 1
        truth = self.truths[self.last_truth] = Truth(needs=needs)
        return self.last_truth, truth

    def fail_with(self, what: str) -> NoReturn:
        failure = Failure(what)
        self.failure = self.failure or failure
        raise failure

    def arrived(self, thing: Thing, number: int, count: int) -> None:
        line = self.lines[number]
        truth = line.truth.root()
        if truth.thing is not thing:
            expected = truth.thing._name if truth.thing else "nothing yet"
            self.fail_with(
                f"{line}: call {count} came to {thing._name}, but it leads to {expected}"
            )
        may_skip = count > line.arrived and self.is_doomed(line)
        if count != line.arrived and not may_skip:
            self.fail_with(f"{line}: call {count} arrived where {line.arrived} was next")
        line.arrived = count + 1

    def is_doomed(self, line: Line) -> bool:
        """Has a cancel met what the line leads to? Then calls may fail, and none overtakes."""
        for truth in self.cancelled:
            truth.doom()
        return line.truth.is_doomed()

    def check_alive(self) -> None:
        if self.failure is not None:
            raise self.failure
        for side in self.wire.sides:
            if side.session.error is not None:
                raise Failure(f"{side.name}: the session ended: {side.session.error!r}")

    # What can happen.

    def call(self, host: Host) -> None:
        if self.random.random() >= self.profile.loyal:
            self.call_on(host, host.any_line())
        elif (favoured := self.favoured()) is not None:
            self.call_on(*favoured)
        else:
            if self.random.random() < 0.5:  # what is on the wire would only take time
                self.wire.run()
            self.ask(host)

    def favoured(self) -> tuple[Host, Line] | None:
        """The line to go on with, from its first call until some after it has become a value."""
        if self.favourite is None:
            return None
        host, line = self.favourite
        if line not in host.lines or line.is_read():
            return None
        if line.is_settled() and self.random.random() < 0.3:
            self.favourite = None
        return host, line

    def call_on(self, host: Host, line: Line) -> None:
        count = line.called
        line.called += 1
        self.note(f"{host.name}: hit {line} {count}")
        if isinstance(line.ref, Thing):
            line.ref.hit(line.number, count)
            return
        method = line.ref[self.random.choice(("hit", "hit_later"))]
        if self.random.random() < 0.7:
            method(line.number, count)
        else:
            self.side_of(host, line.ref).peer.notify(method, line.number, count)

    def ask(self, host: Host) -> None:
        """A call whose answer is a reference, to be used before it is here."""
        asked = host.any_line()
        if isinstance(asked.ref, Thing):
            return
        number, truth = self.new_truth(asked.truth)
        how = self.random.choice(self.profile.asks)
        self.note(f"{host.name}: {how} on {asked}, as truth {number}")
        if how in GIVES:
            ref = asked.ref[how](number)
        elif how in VIA + PATHS:
            ref = asked.ref[how](number, self.new_truth()[0])
        else:
            other, other_truth = host.something()
            source, same = self.new_truth()
            same.same_as = other_truth
            truth.needs = (asked.truth, other_truth)
            ref = asked.ref[how](other, number, source)

        boxed = "box" in how or how == "relayed"
        line = host.hold(ref["in"][0] if boxed else ref, truth)
        if self.favoured() is None:
            self.favourite = host, line
        if boxed and self.random.random() < 0.8:  # else the path itself will be read
            line.box = ref
        if self.random.random() < 0.05:  # in the same frame, mostly
            self.note(f"{host.name}: cancel it")
            self.cancelled.append(truth)
            ref.cancel()
        for _ in range(self.random.randrange(3)):
            self.call_on(host, line)
        if self.random.random() < 0.3:
            self.wait_on(host, line)

    def pass_on(self, host: Host) -> None:
        line = host.any_line()
        if isinstance(line.ref, Thing):
            return
        other, other_truth = host.something()
        number, truth = self.new_truth()
        truth.same_as = other_truth
        times = self.random.choice((1, 1, 2, 3))
        self.note(f"{host.name}: pass {other} to {line}, {times} times")
        line.ref.take([other] * times, number)

    def wait_for(self, host: Host) -> None:
        favoured = self.favoured() if self.random.random() < self.profile.loyal else None
        self.wait_on(*(favoured or (host, host.any_line())))

    def wait_on(self, host: Host, line: Line) -> None:
        """Go on with the value of a promise, in the place of the promise."""
        if isinstance(line.ref, Promise) and not line.awaited:
            line.awaited = True
            self.note(f"{host.name}: await {line}")
            line.task = self.side_of(host, line.ref).spawn(_become(line))

    def drop(self, host: Host) -> None:
        if len(host.lines) > MOST_LINES or (host.lines and self.random.random() < 0.3):
            chosen = self.random.choice(host.lines)
            alike = [line for line in host.lines if line.ref is chosen.ref]
            dropped = [chosen] if self.random.random() < 0.5 else alike
            self.note(f"{host.name}: drop {dropped}")
            if self.random.random() < 0.3:  # the collector will find it
                circle = [chosen.ref]
                circle.append(circle)
            for line in dropped:
                self.let_go(host, line)
            while len(host.lines) > MOST_LINES:
                self.let_go(host, self.random.choice(host.lines))

    def drop_what_comes(self, side: FakeDriver) -> None:
        """Drop the stubs that the next frame will bring again."""
        host = self.host_of[id(side)]
        coming = repr(side.coming())
        for line in host.lines[:]:
            ref = line.ref
            mine = isinstance(ref, Stub) and ref._session is side.session
            if mine and f"Mine(id={ref._id}," in coming:
                self.let_go(host, line)

    def let_go(self, host: Host, line: Line) -> None:
        host.lines.remove(line)
        line.ref = line.box = None

    def collect(self, _host: Host) -> None:
        self.note("a collection")
        gc.collect()

    def fail(self, host: Host) -> None:
        """A call that cannot be made, or one whose result cannot cross: nothing is left of it."""
        line, other = host.any_line(), host.any_line()
        if isinstance(line.ref, Thing):
            return
        if self.random.random() < 0.5:
            self.note(f"{host.name}: fail to pass {other} to {line}")
            with contextlib.suppress(CannotPass):
                line.ref.take([host.things[0], other.ref, host.things[1], object()], 0)
                raise Failure(f"{line}: an object passed that cannot")
        else:
            number, _ = self.new_truth(line.truth)
            self.note(f"{host.name}: spoil {line}, as truth {number}")
            self.side_of(host, line.ref).spawn(_ignore(line.ref.spoil(number)))

    def stall(self, host: Host) -> None:
        """The other side takes no bytes, for a while."""
        side = self.random.choice(host.sides)
        favoured = self.favoured() if self.random.random() < self.profile.loyal else None
        if favoured is not None and not isinstance(favoured[1].ref, Thing):
            near = self.side_of(favoured[0], favoured[1].ref)
            side = self.random.choice((near, near.other))
        side.stall()
        if self.random.random() < 0.7 and side.session.backlog() < len(PAD):
            side.peer.notify(side.index.pad, PAD)  # it is felt at once

    def unstall(self, _host: Host) -> None:
        stalled = [side for side in self.wire.sides if side.stalled]
        if stalled:
            self.random.choice(stalled).unstall(self.random.choice((None, None, 1)))

    def settle(self, host: Host) -> None:
        """Tasks that are new begin; else the releases that have waited leave."""
        self.random.choice(
            [side for side in self.wire.sides if side.starting] or host.sides
        ).settle()

    def cancel(self, host: Host) -> None:
        """Of a promise, or of a task that awaits one."""
        pending = host.pending()
        if not pending:
            return
        line = self.random.choice(pending)
        self.cancelled.append(line.truth)
        self.note(f"{host.name}: cancel {line}")
        if line.task is not None:
            line.task.cancel()
        elif line.box is not None:
            line.box.cancel()
        elif not line.ref._path:
            line.ref.cancel()

    def open_fence(self, _host: Host) -> None:
        if self.fences:
            fence = self.fences.pop(self.random.randrange(len(self.fences)))
            fence.set()

    def flush(self, host: Host) -> None:
        self.random.choice(host.sides).flush()

    def deliver(self, host: Host) -> None:
        waiting = [side for side in self.wire.sides if side.inbox]
        if waiting:
            side = self.random.choice(waiting)
            if self.random.random() < self.profile.late:
                self.drop_what_comes(side)
            self.note(f"to {side.name}: {side.coming()}")
            side.deliver()
        for each in host.sides if waiting else self.wire.sides:
            each.turn()

    def side_of(self, host: Host, ref: Promise | Stub) -> FakeDriver:
        return next(side for side in host.sides if side.session is ref._session)

    # The end.

    def finish(self) -> None:
        for side in self.wire.sides:
            side.unstall()
        self.wire.run()
        while self.fences:
            self.fences.pop().set()
            self.wire.run()
        self.check_alive()
        for line in self.lines.values():
            sure = line.truth.root().thing is not None
            if sure and line.arrived != line.called and not self.is_doomed(line):
                raise Failure(f"{line}: {line.called} calls made, {line.arrived} arrived")
        for host in self.hosts:
            for line in host.lines:
                line.ref = line.box = None
            host.lines.clear()
            host.stored.clear()
        self.lines.clear()
        self.wire.check_quiet()
        self.check_alive()


async def _ignore(promise: Promise) -> None:
    with contextlib.suppress(CapnodeError):
        await promise


async def _become(line: Line) -> None:
    try:
        value = await line.ref if line.box is None else (await line.box)["in"][0]
    except (CapnodeError, CancelledError):  # cancelled, or what it came from was
        return
    finally:
        line.task = line.box = None
    if line.ref is not None:
        line.ref = value
