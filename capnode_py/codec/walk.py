"""One walk over a value, as either dialect writes it: who writes what, how deep, and what is told
of what cannot pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any, ClassVar, Generic, TypeVar

from .._errors import CannotPass
from .._messages import ToRef

Part = TypeVar("Part")


class Walk(ABC, Generic[Part]):
    """Appends to `parts` what a value is. `depth` counts down the containers that may still be
    opened."""

    __slots__ = ("_parts", "_to_ref", "_tracebacks")

    leaves: ClassVar[Mapping[type, Callable[[Any], Any]]]
    """The types that make up most messages, found by exact type."""

    def __init__(self, parts: list[Part], to_ref: ToRef, tracebacks: bool) -> None:
        self._parts = parts
        self._to_ref = to_ref
        self._tracebacks = tracebacks

    def write(self, value: Any, depth: int) -> None:
        """Append `value`."""
        kind = type(value)
        leaf = self.leaves.get(kind)
        if leaf is not None:
            self._parts.append(leaf(value))
        elif kind is list or kind is tuple:
            self._list(value, depth)
        elif kind is dict:
            self._dict(value, depth)
        elif kind is bytes:
            self._bytes(value)
        elif kind is FunctionType or kind is MethodType:  # as callbacks are: not to be looked for
            self._ref(value, depth)
        else:
            self._other(value, depth)

    @abstractmethod
    def _list(self, value: Any, depth: int) -> None: ...

    @abstractmethod
    def _dict(self, value: Any, depth: int) -> None: ...

    @abstractmethod
    def _bytes(self, value: Any) -> None: ...

    @abstractmethod
    def _ref(self, value: Any, depth: int) -> None: ...

    @abstractmethod
    def _other(self, value: Any, depth: int) -> None:
        """Subclasses as their base type, and what else the dialect and the engine know."""


def too_deep() -> CannotPass:
    """There is no depth left."""
    return CannotPass(
        "nested deeper than the limit (Limits.max_depth of either side), or cyclic; "
        "pass an object by reference instead: class Node(capnode.Target)"
    )


def no_key(key: Any) -> CannotPass:
    """A dict has a key that is no text."""
    return CannotPass(
        f"a dict key of type {type(key).__name__}; keys are str: "
        "write {str(key): value} or a list of pairs"
    )


def step_to(key: Any) -> str | int:
    """How the way to what cannot pass names a key."""
    return key if isinstance(key, (str, int)) else repr(key)


def no_zone() -> CannotPass:
    """A datetime is no point in time."""
    return CannotPass(
        "a datetime without a time zone; write value.astimezone() or "
        "value.replace(tzinfo=timezone.utc)"
    )
