"""`Capnode`: a host, which is what all its connections share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._stub import FUNCTIONS, Target

Index = dict[str, Any] | Target | Callable[..., Any] | None


class Capnode:
    """A host: the index that it offers to each of its connections.

    Args:
        index: a dict of data and functions, a `Target`, or a function; None offers nothing. It is
            never called, and a dict is live: what is added to it later can be reached.
        nickname: names this side to the others.

    Raises:
        TypeError: the index is none of these.
    """

    def __init__(self, index: Index = None, *, nickname: str = "") -> None:
        self.index = checked_index(index)
        self.nickname = nickname

    def __repr__(self) -> str:
        return f"<Capnode {self.nickname or 'host'}>"


def checked_index(index: Any) -> Any:
    """The index, or a dict of nothing for None.

    Raises:
        TypeError: it is not one.
    """
    if index is None:
        return {}
    if isinstance(index, (dict, Target, *FUNCTIONS)):
        return index
    if isinstance(index, type):
        name = index.__name__
        raise TypeError(f"an index is an object, not the class {name}: write index={name}()")
    raise TypeError(
        "an index is a dict, a function or a capnode.Target; this is a value of type "
        f"{type(index).__name__}. Write class Api(capnode.Target) to offer its public methods"
    )
