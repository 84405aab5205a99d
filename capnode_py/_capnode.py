"""`Capnode`: a host, which is what all its connections share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ._cap_ids import CONNECTION, REGISTERED, SHARED, CapId, Unknown, parse
from ._stub import FUNCTIONS, Target

if TYPE_CHECKING:
    from ._lasting import MethodRegistry
    from ._session import Session

Index = dict[str, Any] | Target | Callable[..., Any] | None


class Capnode:
    """A host: the index that it offers to each of its connections, and what they can reconstruct.

    Args:
        index: a dict of data and functions, a `Target`, or a function; None offers nothing. It is
            never called, and a dict is live: what is added to it later can be reached.
        registry: references whose cap_ids outlive a connection and a restart.
        nickname: names this side to the others.

    Raises:
        TypeError: the index or the registry is none of these.
    """

    def __init__(
        self, index: Index = None, *, registry: MethodRegistry | None = None, nickname: str = ""
    ) -> None:
        self.index = checked_index(index)
        self.registry = None if registry is None else _checked_registry(registry)
        self.nickname = nickname
        self.sessions: WeakValueDictionary[bytes, Session] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Capnode {self.nickname or 'host'}>"

    def get_index(self) -> Any:
        """The index, as it is now."""
        return self.index

    def find(self, cap_id: str) -> Any:
        """What a cap_id stands for, in any of this host's connections.

        Raises:
            Unknown: nothing; it is not said why.
        """
        parts = parse(cap_id)
        if parts.kind == CONNECTION:
            session = self.sessions.get(parts.place)
            if session is not None:
                return session.find_export(parts)
        elif parts.kind == REGISTERED:
            if self.registry is not None:
                return self.registry.find(cap_id)
        elif parts.kind == SHARED:
            from ._lasting import shares

            return shares.find(cap_id)
        raise Unknown

    def lasting(self, key: object) -> CapId | None:
        """The cap_id under which the value with this `reference_key` is registered."""
        return None if self.registry is None else self.registry.lasting(key)

    def hold(self, target: Target, session: Session, id: int) -> None:
        """The other side of `session` holds `target`, by this entry of the export table."""
        from ._holders import holders

        holders.add(target, (session, id))

    def let_go(self, target: Target, session: Session, id: int) -> bool:
        """It does no more. True if nobody holds it now."""
        from ._holders import holders

        return holders.discard(target, (session, id))


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


def _checked_registry(registry: Any) -> MethodRegistry:
    from ._lasting import MethodRegistry

    if isinstance(registry, MethodRegistry):
        return registry
    raise TypeError(
        f"registry= takes a capnode.MethodRegistry, not a {type(registry).__name__}: write "
        "MethodRegistry(secret=...), and register(obj, name) what is to last"
    )
