"""`Promise.map`: a function that runs over there for each item, in one round trip.

It is recorded here: called once, with a `Placeholder`. Reading a name on that, calling it, passing
it to a far call, or mapping it, is noted; so is each call that the function makes on a stub from
outside, which becomes a *capture*. What it returns is a value with placeholders in it. The notes
are a `Recording`: no code, only calls and paths. `_replay.py` is the other half.

The idea is Cap'n Web's, and the instructions are in its form.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Final, NoReturn

from ._cell import FULFILLED, Cell
from ._errors import CannotPass
from ._messages import Path, Recording, Slot, Step
from ._reach import DATA, copied, step_into
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

_DEEPEST = 200  # far beyond what any peer takes (Limits.max_depth)


def mapped(promise: Promise, function: Callable[[Any], Any]) -> Any:
    """See `Promise.map`."""
    recorder = recording.get() if recorders else None
    if recorder is not None:
        return recorder.map(promise, (), function)
    return promise._session.call(promise._base, promise._path, record(function, None), {})


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
    from inspect import iscoroutinefunction

    if iscoroutinefunction(function):
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
