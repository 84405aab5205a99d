"""The other half of `map`: what was recorded (`_map.py`) is done for each item.

It is done as any handler runs, and with no more rights: each call is a `Call` on its way, as if it
had come by itself, each path leads where it would lead a peer. So what the engine holds calls to
(order, reach, cancelling, release) it holds these to. What is new is how much a small message can
ask for, and `Work` counts that.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ._cell import FULFILLED, REJECTED, Call, Cell
from ._errors import LimitExceeded, RemoteProtocolError
from ._javascript import undefined
from ._limits import Limits
from ._messages import Path, Recording, Slot
from ._reach import ATOMS, DATA, DESCRIBE, copied, step_into
from ._stub import Promise

if TYPE_CHECKING:
    from .driver._base import Driver

_DEEPEST = 200  # far beyond what any peer takes (Limits.max_depth)
_A_TURN = 1000  # calls made, or values built, before others have their turn
_VALUE = 16  # bytes that a value is counted as, beside those of its text


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
        """So much has been begun. True: it is time for others."""
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
        self._each = 1  # of a turn, for an item
        self._left = 1  # what is not settled, and this itself, while it begins
        self._done = Cell(self._session)

    async def run(self, value: Any) -> Any:
        """The results, when all of them are there."""
        value = copied(value)
        if value is None or value is undefined:
            return value
        is_list = isinstance(value, (list, tuple))
        items = list(value) if is_list else [value]
        steps, size = _cost(self._instructions)
        self._each = max(steps, size // _VALUE)
        size *= len(items)
        self.work.spend(steps * len(items), size)
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
            if self.work.took(self._each):
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
