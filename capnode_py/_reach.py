"""What a peer may reach, and what passes by reference. Deny by default, one reason a branch.

On a `Target`: public methods and properties of the class, nothing from `object`, no underscore, no
instance attributes. On a dict: its keys. On a list: integers. On anything else: nothing; never
`getattr`. Error texts do not list what exists.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any, TypeVar

from ._cell import Cell
from ._errors import CannotPass
from ._messages import Path, Step
from ._stub import FUNCTIONS, Breakable, Promise, Stub, Target

FAR = (Stub, Promise, Cell)

# The members of a Target's class that a peer may name.
_METHODS: tuple[Any, ...] = (
    types.FunctionType,
    staticmethod,
    classmethod,
    functools.partialmethod,
    type(functools.lru_cache(lambda: None)),
)
_PROPERTIES = (property, functools.cached_property)

DATA = (dict, list, tuple)
"""What a path leads through as it would on the other side, where it arrives by copy."""

ATOMS = frozenset((type(None), bool, int, float, str))
"""What is the same here and there, and need not be copied."""

_MISSING: Any = object()
_PRIVATE = ("", "_")

IN_THREAD = "__capnode_in_thread__"
"""The attribute of a function that is to run in a worker thread."""

DESCRIBE = "_describe"
"""The step that asks what is here: it is taken as private unless the host describes itself."""

T = TypeVar("T")


class AskedToDescribe(AttributeError):
    """A path ends in `DESCRIBE`; `value` is what stands before. Who does not describe it raises
    this as it is, as for any private name."""

    def __init__(self, value: Any) -> None:
        super().__init__(f"{DESCRIBE!r} is private")
        self.value = value


class Facade(Target, Breakable):
    """A Target that answers for its names itself, as `_facades.py` has them.

    It is asked where the usual way has found nothing, so that this costs the usual way nothing.
    """

    __slots__ = ("_fate",)

    def _step(self, step: Step, /) -> Any:
        """What one step of a path leads to.

        Raises:
            AttributeError, LookupError, TypeError: nothing.
        """
        raise NotImplementedError

    def _function(self) -> Callable[..., Any]:
        """What a call of the facade itself calls.

        Raises:
            TypeError: it cannot be called.
        """
        raise NotImplementedError


def step_into(value: Any, step: Step) -> Any:
    """One step into plain data. Runs no user code.

    Raises:
        LookupError: there is nothing.
        TypeError: a list takes integers only.
    """
    if isinstance(value, dict):
        found = dict.get(value, step, _MISSING)
        if found is _MISSING:
            raise KeyError(step)
        return found

    if type(step) is not int:
        raise TypeError(f"a list is indexed by integers, not by {step!r}")
    return (
        tuple.__getitem__(value, step)
        if isinstance(value, tuple)
        else list.__getitem__(value, step)
    )


def reach(value: Any, path: Path) -> tuple[Any, Path]:
    """Follow `path` from `value` until its end, or until a far reference, which takes the rest.

    Runs user code: properties.

    Raises:
        AttributeError, LookupError, TypeError: there is nothing that a peer may reach.
    """
    if len(path) == 1 and isinstance(value, Target) and type(value) not in _copied:
        return _member(value, path[0]), ()  # as nearly all calls are

    for position, step in enumerate(path):
        if isinstance(value, FAR):
            return value, path[position:]

        value = copied(value)
        if isinstance(value, Target):
            value = _member(value, step)
        elif isinstance(value, DATA):
            if step == DESCRIBE and isinstance(value, dict) and step not in value:
                raise AskedToDescribe(value)
            value = step_into(value, step)
        elif step == DESCRIBE and isinstance(value, FUNCTIONS):
            raise AskedToDescribe(value)
        else:
            kind = type(value).__name__
            raise AttributeError(f"nothing can be reached on a value of type {kind}: {step!r}")
    return value, ()


def plain_function(value: Any, path: list[Any]) -> Callable[..., Any] | None:
    """What a usual call is for: a method of a `Target`, a function in a dict, or a function.

    None: it is something else, and `reach` and `callable_from_afar` say what. This runs no user
    code, and costs a third of those two; for what was found before, a tenth.
    """
    kind = type(value)
    if len(path) == 1:
        try:
            known = _found.get((kind, path[0]))
        except TypeError:
            return None  # a step that is no name
        # Faster to ask than the `__dict__` of the class.
        if known is not None and known is getattr(kind, path[0], _MISSING):
            return MethodType(known, value)

    found: Any
    owner: type | None = None
    if kind is FunctionType:
        return None if path or getattr(value, IN_THREAD, False) else value
    if len(path) != 1 or type(name := path[0]) is not str:
        return None
    if kind is dict:
        found = value.get(name)
    elif name[:1] in _PRIVATE or kind in _copied or not issubclass(kind, Target):
        return None
    else:
        for owner in kind.__mro__:
            members = owner.__dict__
            if name in members:
                found = members[name]
                break
        else:
            return None
    if type(found) is not FunctionType or owner is Target or getattr(found, IN_THREAD, False):
        return None
    if owner is None:
        return found
    if owner is kind:
        if len(_found) >= _MOST_FOUND:  # it holds their classes
            _found.clear()
        _found[kind, name] = found
    return MethodType(found, value)


def forget_found() -> None:
    """What makes a method a usual one has been changed by a decorator."""
    _found.clear()


def callable_from_afar(value: Any) -> Callable[..., Any]:
    """`value`, if a peer may call it: what passes by reference as a function.

    Raises:
        TypeError: it is something else, even if it has a `__call__`.
    """
    if isinstance(value, FUNCTIONS):
        return value
    if isinstance(value, Facade):
        return value._function()
    raise TypeError(f"a value of type {type(value).__name__} cannot be called")


def _member(target: Target, step: Step) -> Any:
    if type(step) is not str:
        if isinstance(target, Facade):
            return target._step(step)
        raise TypeError(f"a {type(target).__name__} is reached by names, not by {step!r}")
    if not step or step[0] == "_":
        if isinstance(target, Facade):
            return target._step(step)
        if step == DESCRIBE:
            raise AskedToDescribe(target)
        raise AttributeError(f"{step!r} is private")

    for cls in type(target).__mro__:
        member = cls.__dict__.get(step, _MISSING)
        if member is _MISSING or cls is Target or cls is object:
            continue
        if isinstance(member, _METHODS):
            return member.__get__(target, type(target))
        if isinstance(member, _PROPERTIES):
            return getattr(target, step)
        break  # a class attribute, a nested class, a slot: not meant to be called from afar
    if isinstance(target, Facade):
        return target._step(step)
    raise no_member(target, step)


def no_member(target: Any, step: Step) -> AttributeError:
    """The same text for what is not there and for what is not to be reached."""
    return AttributeError(f"{type(target).__name__} has no method or property {step!r} to reach")


def public_members(kind: type[Target]) -> dict[str, Any]:
    """The methods and properties of a class that a peer may name."""
    members: dict[str, Any] = {}
    for cls in reversed(kind.__mro__):
        if cls is Target or cls is object:
            continue
        for name, member in cls.__dict__.items():
            if name[:1] != "_" and isinstance(member, (*_METHODS, *_PROPERTIES)):
                members[name] = member
            else:
                members.pop(name, None)
    return members


def reference_key(value: Any) -> object:
    """What makes two exports one: the object; for a bound method its object and its function.

    Raises:
        CannotPass: the value passes neither by copy nor by reference.
    """
    if type(value) is FunctionType:
        return id(value)
    if isinstance(value, types.MethodType):
        return id(value.__self__), id(value.__func__)

    if isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
        owner = value.__self__
        if owner is not None and not isinstance(owner, types.ModuleType):
            return id(owner), value.__name__
        return id(value)

    if isinstance(value, (Target, *FUNCTIONS)):
        return id(value)
    raise CannotPass(_why_not(value))


def _why_not(value: Any) -> str:
    """Why it does not pass, and what to write instead."""
    from dataclasses import is_dataclass
    from enum import Enum

    if isinstance(value, type):
        what = f"the class {value.__name__}: pass a function that makes one, "
        return f"{what}lambda *args: {value.__name__}(*args)"
    if isinstance(value, types.CoroutineType):
        return "a coroutine: await it first, or pass the function"
    if isinstance(value, (types.GeneratorType, types.AsyncGeneratorType)):
        return "a generator: pass list(it), or a function that gives the next item"

    name = f"a value of type {type(value).__name__}"
    if is_dataclass(value) or isinstance(value, Enum):
        return f"{name}: decorate its class with @capnode.by_copy to pass its fields by copy"
    if instead := _instead_of(value):
        return f"{name}: {instead}"
    if callable(value):
        return f"{name}: only functions and methods pass; write lambda *args: f(*args)"
    if type(value).__module__ in sys.stdlib_module_names:
        return f"{name}: pass a dict of what the other side needs, or a function that uses it here"
    return (
        f"{name}: let its class inherit from capnode.Target to pass a reference, or pass a dict of "
        "what the other side needs"
    )


def _instead_of(value: Any) -> str:
    """What to write for a value of the standard library that does not pass."""
    from collections import abc, deque
    from datetime import date, time, timedelta
    from io import IOBase
    from os import PathLike

    from ._javascript import Undefined

    instead: tuple[tuple[tuple[type, ...], str], ...] = (
        ((date, time), "write value.isoformat()"),
        ((timedelta,), "write value.total_seconds()"),
        ((PathLike,), "write str(value)"),
        ((Undefined,), "only JavaScript has it; write None"),
        ((complex,), "write [value.real, value.imag]"),
        ((abc.Sequence, abc.Set, abc.ValuesView, deque), "write list(value)"),
        ((abc.Mapping,), "write dict(value)"),
        ((IOBase,), "pass its methods, {'read': f.read, 'write': f.write}"),
    )
    return next((write for kinds, write in instead if isinstance(value, kinds)), "")


def held_targets(value: Any) -> list[Target]:
    """The targets in `value` whose class defines `_released`: who holds `value` holds them."""
    if isinstance(value, Target):  # as what is answered mostly is, which calls go through
        return [value] if callable(getattr(type(value), "_released", None)) else []
    found: list[Target] = []
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, types.MethodType):
            item = item.__self__
        if isinstance(item, Target):
            if callable(getattr(type(item), "_released", None)) and item not in found:
                found.append(item)
        elif isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo.extend(item)
    return found


_copied: dict[type, Callable[[Any], Any]] = {}

_found: dict[tuple[type, Any], FunctionType] = {}
"""The methods that `plain_function` found, in the class itself: usual while they stand there."""
_MOST_FOUND = 1000


def by_copy(cls: type[T]) -> type[T]:
    """Let instances of a dataclass or an enum pass by copy (a class decorator).

    A dataclass arrives as a dict of its fields, an enum member as its value.

    Raises:
        TypeError: the class is neither.
    """
    from dataclasses import fields, is_dataclass
    from enum import Enum

    forget_found()
    if issubclass(cls, Enum):
        _copied[cls] = attrgetter("value")
    elif is_dataclass(cls):
        names = [field.name for field in fields(cls)]
        _copied[cls] = lambda value: {name: getattr(value, name) for name in names}
    else:
        raise TypeError(f"by_copy takes a dataclass or an enum, not {cls.__name__}")
    return cls


def is_copied(cls: type) -> bool:
    """Do instances of this class pass by copy?"""
    return cls in _copied


def is_method(member: Any) -> bool:
    """Is this, in the `__dict__` of a Target's class, a method?"""
    return isinstance(member, _METHODS)


def is_property(member: Any) -> bool:
    """Likewise, a property?"""
    return isinstance(member, _PROPERTIES)


def copied(value: Any) -> Any:
    """The plain data that stands for `value`, or `value` itself if its class is not `by_copy`."""
    copy = _copied.get(type(value))
    return value if copy is None else copy(value)
