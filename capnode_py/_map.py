"""`Promise.map`: a function that runs over there for each item, in one round trip.

**Recorded here.** The function is called once, with a `Placeholder`. Reading a name on it, calling
it, passing it to a far call, or mapping it, is noted; so is each call that it makes on a stub from
outside, which becomes a *capture*. What it returns is a value with placeholders in it. The notes
are a `Recording`: no code, only calls and paths.

**Replayed there**, as any handler runs, and with no more rights: each call is a `Call` on its way,
as if it had come by itself, each path leads where it would lead a peer. So what the engine holds
calls to (order, reach, cancelling, release) it holds these to. What is new is how much a small
message can ask for, and `Work` counts that.

The idea is Cap'n Web's, and the instructions are in its form.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ._cell import FULFILLED, REJECTED, Call, Cell
from ._errors import CannotPass, LimitExceeded, RemoteProtocolError
from ._javascript import undefined
from ._limits import Limits
from ._messages import Path, Recording, Slot, Step
from ._reach import ATOMS, DATA, DESCRIBE, copied, step_into
from ._stub import (
    FUNCTIONS,
    Promise,
    Stub,
    Target,
    checked_step,
    private_name,
    recorders,
    recording,
)

if TYPE_CHECKING:
    from .driver._base import Driver

_DEEPEST = 200  # far beyond what any peer takes (Limits.max_depth)
_A_TURN = 1000  # instructions that may be done before others have their turn
_VALUE = 16  # bytes that a value is counted as, beside those of its text


def mapped(promise: Promise, function: Callable[[Any], Any]) -> Any:
    """See `Promise.map`."""
    recorder = recording.get() if recorders else None
    if recorder is not None:
        return recorder.map(promise, (), function)
    return promise._session.call(promise._base, promise._path, record(function, None), {})


# Recording.


def record(function: Callable[[Any], Any], outer: Recorder | None) -> Recording:
    """What `function` does with its argument.

    Args:
        function: what was given to `map`.
        outer: of the map that this one stands in, if it stands in one.

    Raises:
        TypeError: it is no plain function of an item, or asks a placeholder for its value.
    """
    if not callable(function):
        raise TypeError(f"map() takes a function of one item, not {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            "map() takes a plain function, not an async one: its calls are recorded here, and "
            "made there, so there is nothing to await. Write lambda item: item.method()"
        )
    recorder = Recorder(outer)
    recorders.append(recorder)
    token = recording.set(recorder)
    try:
        return recorder.finish(function(Placeholder(recorder, 0, ())))
    finally:
        recording.reset(token)
        recorders.remove(recorder)


class Recorder:
    """Notes what one function does, while it runs.

    Args:
        outer: of the map around this one.

    Attributes:
        captures: what it uses from outside: references; of an inner map, slots of the outer one.
        instructions: the calls, in order; at the end also the result.
    """

    def __init__(self, outer: Recorder | None) -> None:
        self.outer = outer
        self.captures: list[Any] = []
        self.instructions: list[Any] = []
        self._captured: dict[object, int] = {}

    def call(self, base: Any, path: Path, args: Any, kwargs: Any) -> Placeholder:
        """A call of a stub, a promise or a placeholder: its answer is a placeholder."""
        slot = self._slot(base)
        values = [self.expression(value) for value in args]
        named = {name: self.expression(value) for name, value in kwargs.items()}
        return self._noted(Slot(slot.id, slot.path + path, values, named))

    def map(self, base: Any, path: Path, function: Callable[[Any], Any]) -> Placeholder:
        """A map in the map."""
        slot = self._slot(base)
        return self._noted(Slot(slot.id, slot.path + path, record(function, self), {}))

    def finish(self, result: Any) -> Recording:
        """The function has returned."""
        if isinstance(result, Coroutine):
            result.close()
            raise TypeError(
                "the function for map has returned a coroutine: it is to be no async one"
            )
        if isinstance(result, (Generator, AsyncGenerator)):
            raise TypeError("the function for map has returned a generator: write [a, b] in it")
        last = self.expression(result)
        if type(last) is not Slot or last != Slot(len(self.instructions)) or not last.id:
            self.instructions.append(last)
        return Recording(self.captures, self.instructions)

    def expression(self, value: Any, depth: int = 0) -> Any:
        """A value that the function passes on or returns, with slots in the place of references."""
        if depth > _DEEPEST:
            raise CannotPass("a value in map that is nested too deep, or cyclic")
        if isinstance(value, dict):
            return {key: self.expression(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.expression(item, depth + 1) for item in value]
        if type(value) is Promise:
            value, path = _known(value)
            return self._slot(value, path) if path else self.expression(value, depth + 1)
        if isinstance(value, (Placeholder, Stub, Cell, Target, *FUNCTIONS)):
            return self._slot(value)
        if isinstance(value, (set, frozenset)):
            _check_members(value)
        plain = copied(value)
        return value if plain is value else self.expression(plain, depth + 1)

    def _noted(self, instruction: Slot) -> Placeholder:
        self.instructions.append(instruction)
        return Placeholder(self, len(self.instructions), ())

    def _slot(self, value: Any, path: Path = ()) -> Slot:
        """Where a reference stands, and the path from there."""
        if type(value) is Promise:
            value, path = _known(value)
        if type(value) is Placeholder:
            return Slot(self._id_in(value._recorder, value._id), value._path + path)
        if type(value) is Stub:
            value = value._session.plain(value)
        return Slot(self._capture(value), path)

    def _capture(self, value: Any) -> int:
        """The slot of what is from outside of all maps."""
        return self._enter(id(value), self.outer._capture(value) if self.outer else value)

    def _id_in(self, recorder: Recorder, id: int) -> int:
        """The slot of a placeholder of this map, or of one around it."""
        if recorder is self:
            return id
        if self.outer is None:
            raise TypeError(
                "a placeholder of another map, which is over: it stands for an item only while "
                "the function that was given it runs"
            )
        outer_id = self.outer._id_in(recorder, id)
        return self._enter(("slot", outer_id), outer_id)

    def _enter(self, key: object, what: Any) -> int:
        known = self._captured.get(key)
        if known is None:
            self.captures.append(what)
            known = self._captured[key] = -len(self.captures)
        return known


def _known(promise: Promise) -> tuple[Any, Path]:
    """What a promise from outside rests on, as far as that is here, and the path from there."""
    base: Any = promise._base
    path = promise._path
    if type(base) is Cell and base.state == FULFILLED:
        base = base.value
        while path and isinstance(base, DATA):
            base, path = step_into(base, path[0]), path[1:]
        if type(base) is Promise:
            return Promise(base._session, base._base, base._path + path), ()
    return base, path


def _check_members(members: Any) -> None:
    for member in members:
        if isinstance(member, (tuple, frozenset)):
            _check_members(member)
        elif isinstance(member, (Stub, Promise, Target, *FUNCTIONS)):
            raise CannotPass("a reference in a set, in map: write a list")


def _refuse(what: str, instead: str) -> Callable[..., NoReturn]:
    """A method that says that a placeholder cannot do this."""

    def method(self: Placeholder, *_args: object) -> NoReturn:
        raise TypeError(
            f"{self!r} has no value, so {what}: map() calls the function once, to learn which "
            f"calls are to be made over there for each item. {instead}"
        )

    return method


_DECIDE_THERE: Final = (
    "Leave it to a far function, as in lambda item: api.choose(item); or await the list, and "
    "write a comprehension here"
)


class Placeholder:
    """What the function for `map` is given for its item, and what its calls give it.

    Names, calls and `map` on it are recorded, and it can be returned, and passed to far calls, also
    inside lists and dicts. All else would need the value, and raises.
    """

    __slots__ = ("_id", "_path", "_recorder")

    def __init__(self, recorder: Recorder, id: int, path: Path) -> None:
        self._recorder = recorder
        self._id = id
        self._path = path

    def __call__(self, /, *args: Any, **kwargs: Any) -> Placeholder:
        return self._now().call(self, (), args, kwargs)

    def __getattr__(self, name: str) -> Placeholder:
        if name[:1] == "_":
            raise private_name(name)
        return Placeholder(self._recorder, self._id, (*self._path, name))

    def __getitem__(self, step: Step) -> Placeholder:
        return Placeholder(self._recorder, self._id, (*self._path, checked_step(step)))

    def __repr__(self) -> str:
        path = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in self._path)
        return f"<placeholder {'item' if not self._id else f'answer {self._id}'}{path} of a map>"

    def map(self, function: Callable[[Any], Any], /) -> Placeholder:
        """As `Promise.map`, of a list in the item."""
        return self._now().map(self, (), function)

    def _now(self) -> Recorder:
        """Who records: the innermost function that runs."""
        recorder: Recorder | None = recording.get()
        if recorder is None:
            raise TypeError(f"{self!r} was used after that map: its function has returned")
        return recorder

    __bool__ = _refuse("it cannot decide an if, and, or, not or while", _DECIDE_THERE)
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse(
        "it cannot be compared", _DECIDE_THERE
    )
    __hash__ = _refuse("it cannot stand in a set, or be a key", "Write a list, or a list of pairs")
    __iter__ = __aiter__ = __len__ = __reversed__ = __contains__ = _refuse(
        "it cannot be gone through", "Write item.map(lambda each: ...), or item[0]"
    )
    __await__ = _refuse(
        "it cannot be awaited", "Return it, or pass it to a far call: there it is its value"
    )
    __str__ = __format__ = _refuse(
        "it cannot be written into a text", "Return what the text is to be made of"
    )
    __int__ = __float__ = __complex__ = __index__ = __round__ = __abs__ = _refuse(
        "it is no number", _DECIDE_THERE
    )
    __neg__ = __pos__ = __invert__ = __add__ = __sub__ = __mul__ = __truediv__ = _refuse(
        "it cannot be computed with", _DECIDE_THERE
    )
    __floordiv__ = __mod__ = __pow__ = __matmul__ = __and__ = __or__ = __xor__ = __add__
    __lshift__ = __rshift__ = __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __add__
    __rfloordiv__ = __rmod__ = __rpow__ = __rmatmul__ = __rand__ = __ror__ = __rxor__ = __add__
    __rlshift__ = __rrshift__ = __add__


# Replaying.


class Work:
    """What one message may still have done by `map`, in maps inside of maps too."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._steps = limits.max_map
        self._bytes = limits.max_frame
        self._in_turn = 0
        self._fence: Cell | None = None

    def spend(self, steps: int, size: int) -> None:
        """So many instructions are to be done, and values of so many bytes built.

        Raises:
            LimitExceeded: that would be too much.
        """
        self._steps -= steps
        self._bytes -= size
        if self._steps < 0:
            raise LimitExceeded(
                f"a map that does more than {self._limits.max_map} calls and reads, all items "
                "taken together (Limits.max_map of the side that runs it): let a function over "
                "there do the work for many items, or map a part of them"
            )
        if self._bytes < 0:
            raise LimitExceeded(
                f"a map that builds values of more than {self._limits.max_frame} bytes "
                "(Limits.max_frame of the side that runs it): return less for each item"
            )

    def took(self, steps: int) -> bool:
        """So many have been begun. True: it is time for others."""
        self._in_turn += steps
        return self._in_turn >= _A_TURN

    async def let_others(self, driver: Driver) -> None:
        """Let others have their turn. The maps of one message share theirs: else each of a hundred
        inner ones would have one before anybody else."""
        while self._in_turn >= _A_TURN:
            fence = self._fence
            if fence is None:
                fence = self._fence = Cell(driver.session)
                fence.watch(self._next_turn)
                driver.bring(partial(driver.fence, fence))
            await Promise(driver.session, fence, ())

    def _next_turn(self, _fence: Cell) -> None:
        self._fence = None
        self._in_turn = 0

    def weigh(self, value: Any, counted: int = 0) -> None:
        """`value` is to be copied or sent; so much of it has been counted. What stands in it many
        times costs as often, but is looked at once."""
        self.spend(0, _weight(value, {}, 0) - counted)


def _weight(value: Any, known: dict[int, int], depth: int) -> int:
    kind = type(value)
    if kind is str or kind is bytes:
        return _VALUE + len(value)
    if kind is int:
        return _VALUE + int(value.bit_length()) // 8
    if id(value) in known:
        return known[id(value)]
    plain = copied(value)
    if isinstance(plain, dict):
        items: Any = plain.values()
    elif isinstance(plain, (list, tuple, set, frozenset)):
        items = plain
    else:
        return _VALUE + (len(plain) if isinstance(plain, (str, bytes, bytearray)) else 0)
    known[id(value)] = _VALUE  # of a cycle, which will be refused
    weight = _VALUE
    if depth < _DEEPEST:
        weight += sum([_weight(item, known, depth + 1) for item in items])
    known[id(value)] = weight
    return weight


def replay(driver: Driver, recorded: Recording, value: Any) -> Coroutine[Any, Any, Any]:
    """Do with `value`, or with each of its items, what was recorded. A handler like any other: the
    driver runs what this gives, and its outcome is the outcome of the call."""
    return _Replay(driver, recorded).run(value)


class _Replay:
    """One map at work.

    Attributes:
        work: what it may still do.
    """

    def __init__(self, driver: Driver, recorded: Recording) -> None:
        self._driver = driver
        self._session: Any = driver.session
        self._captures = recorded.captures
        self._instructions = recorded.instructions
        self.work: Work = recorded.work or Work(driver.limits)
        self._cells: list[Cell] = []
        self._holes: list[tuple[Any, Any, Cell]] = []
        self._steps = 1  # for an item
        self._left = 1  # what is not settled, and this itself, while it begins
        self._done = Cell(self._session)

    async def run(self, value: Any) -> Any:
        """The results, when all of them are there."""
        value = copied(value)
        if value is None or value is undefined:
            return value
        is_list = isinstance(value, (list, tuple))
        items = list(value) if is_list else [value]
        self._steps, size = _cost(self._instructions)
        size *= len(items)
        self.work.spend(self._steps * len(items), size)
        results: list[Any] = []
        begin = partial(self._driver.as_turn, partial(self._begin, iter(items), results))
        try:
            while self._driver.bring(begin):
                await self._let_others()
            self._driver.bring(self._one_less)
            await Promise(self._session, self._done, ())
        except Exception:
            raise  # what was begun goes on: an error of one call cancels no other
        except BaseException:
            self._driver.bring(self._withdraw)
            raise
        finally:
            self._driver.bring(self._let_go)
        self.work.weigh(results, size)
        return results if is_list else results[0]

    async def _let_others(self) -> None:
        """Nothing new is begun for a peer that does not read (rule 13); and others have a turn."""
        if self._session.backlog() > self._driver.limits.high_water:
            await self._driver.drain()
        await self.work.let_others(self._driver)

    def _begin(self, items: Iterator[Any], results: list[Any]) -> bool:
        """Begin what is to be done for the items, until all are; True: others have a turn before
        it goes on."""
        for item in items:
            if self._done.settled:  # a call has failed
                break
            slots = [item]
            for instruction in self._instructions:
                slots.append(self._value(instruction, slots))
            results.append(slots[-1])
            self._note_hole(results, len(results) - 1)
            if self.work.took(self._steps):
                return True
        return False

    def _value(self, instruction: Any, slots: list[Any]) -> Any:
        """An instruction, or a value in one, with what stands in its slots."""
        kind = type(instruction)
        if kind is Slot:
            return self._slot(instruction, slots)
        if kind is list:
            made: Any = [self._value(item, slots) for item in instruction]
            for position in range(len(made)):
                self._note_hole(made, position)
            return made
        if kind is dict:
            made = {key: self._value(item, slots) for key, item in instruction.items()}
            for key in made:
                self._note_hole(made, key)
            return made
        return instruction

    def _note_hole(self, container: Any, key: Any) -> None:
        if isinstance(container[key], Cell):
            self._holes.append((container, key, container[key]))

    def _slot(self, slot: Slot, slots: list[Any]) -> Any:
        base = _now(self._in_slot(slot.id, slots))
        if slot.args is None:
            return self._read(base, slot.path)
        if type(slot.args) is Recording:
            captures = [self._in_slot(id, slots) for id in slot.args.captures]
            inner = Recording(captures, slot.args.instructions, self.work)
            return self._call(base, slot.path, inner, {}, [])
        args: Any = [self._value(each, slots) for each in slot.args]
        if not slot.kwargs and all(type(arg) in ATOMS for arg in args):  # as most are
            return self._call(base, slot.path, args, {}, [])
        args = [args, self._value(slot.kwargs, slots)]
        self.work.weigh(args)
        (args, kwargs), holes = self._session.localize(args)
        return self._call(base, slot.path, args, kwargs, holes)

    def _in_slot(self, id: Any, slots: list[Any]) -> Any:
        try:
            if type(id) is int:
                return slots[id] if id >= 0 else self._captures[-id - 1]
        except IndexError:
            pass
        raise RemoteProtocolError(f"a function for map that names slot {id!r}, which is not there")

    def _read(self, value: Any, path: Path) -> Any:
        """What a path leads to. Through plain data it costs no call."""
        for position, step in enumerate(path):
            value = copied(value)
            if not isinstance(value, DATA) or step == DESCRIBE:
                return self._call(value, path[position:], None, {}, [])
            value = _now(step_into(value, step))
        return value

    def _call(self, target: Any, path: Path, args: Any, kwargs: Any, holes: list[Any]) -> Any:
        """A call on its way, as if it had come by itself: its value, or the cell of its answer."""
        reply = Cell(self._session, 0, path)
        reply.task = call = Call(self._session, target, path, args, kwargs, reply, holes)
        self._session.route(call)
        self._await(reply)
        return _now(reply)

    def _await(self, cell: Cell) -> None:
        self._cells.append(cell)
        self._left += 1
        cell.pull()
        cell.watch(self._settled)

    def _settled(self, cell: Cell) -> None:
        if cell.state == REJECTED:
            self._done.reject(cell.value)
        self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            self._done.fulfil(None)

    def _withdraw(self) -> None:
        """Nobody wants the results any more: neither do we those of the calls. The last ones first,
        which may wait for others."""
        for cell in reversed(self._cells):
            if not cell.settled:
                cell.unwatch(self._settled)
                self._session.cancel(cell)

    def _let_go(self) -> None:
        for cell in self._cells:
            cell.unwatch(self._settled)
        for container, key, cell in self._holes:
            if cell.state == FULFILLED:
                container[key] = cell.value
        self._cells.clear()
        self._holes.clear()


def _now(value: Any) -> Any:
    """The value of a promise that has one."""
    while isinstance(value, Cell) and value.state == FULFILLED:
        value = value.value
    return value


def _cost(instructions: Any) -> tuple[int, int]:
    """For one item: how many calls, reads and maps are made, and how many bytes are built. What
    inner maps do counts when they do it."""
    steps = size = 0
    todo = list(instructions)
    while todo:
        item = todo.pop()
        size += _VALUE
        if type(item) is list:
            todo += item
        elif type(item) is dict:
            todo += item.values()
        elif type(item) is Slot:
            steps += bool(item.path) or item.args is not None
            if type(item.args) is list:
                todo += [*item.args, *item.kwargs.values()]
        elif isinstance(item, (str, bytes)):
            size += len(item)
    return max(steps, 1), size
