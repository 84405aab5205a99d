"""`Capnode`: a host, which is what all its connections share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ._arguments import check_flag, check_text
from ._cap_ids import CONNECTION, REGISTERED, SHARED, CapId, Unknown, parse
from ._reach import reference_key
from ._stub import FUNCTIONS, Target

if TYPE_CHECKING:
    from ._holders import Holder
    from ._lasting import MethodRegistry
    from ._limits import Limits
    from ._peer import Peer
    from ._remote import Remote, Serializer
    from ._session import Session

Index = dict[str, Any] | Target | Callable[..., Any] | None


class Capnode:
    """A host: the index that it offers to each of its connections, and what they can reconstruct.

    Args:
        index: a dict of data and functions, a `Target`, or a function; None offers nothing. It is
            never called, and a dict is live: what is added to it later can be reached.
        registry: references whose cap_ids outlive a connection and a restart.
        serializer: for the remotes of a transport that does not carry bytes.
        nickname: names this side to the others.
        describe: tell the other side, where it asks (`help`, tab completion), what can be called
            here: names, signatures and docstrings.

    Its connections are opened by the doors, as ``listen(url, host=host)``; or by `create_remote`,
    over messages that the caller carries, as in Capnode, whose constructor this is.

    Raises:
        TypeError: an argument is none of these.
    """

    def __init__(
        self,
        index: Index = None,
        *,
        registry: MethodRegistry | None = None,
        serializer: Serializer | None = None,
        nickname: str = "",
        describe: bool = True,
    ) -> None:
        self.index = checked_index(index)
        self.registry = None if registry is None else _checked_registry(registry)
        self.serializer = None if serializer is None else _checked_serializer(serializer)
        check_text("nickname", nickname)
        check_flag("describe", describe)
        self.nickname = nickname
        self.describe = describe
        self.sessions: WeakValueDictionary[bytes, Session] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Capnode {self.nickname or 'host'}>"

    # Capnode's own face.

    def create_remote(
        self, *, limits: Limits | None = None, nickname: str = "", tracebacks: bool = False
    ) -> Remote:
        """A connection over messages that the caller carries, in the event loop that runs.

        Args:
            limits: see `Limits`. Its `hello_timeout` and `max_send_age` are the transport's affair.
            nickname: names the other side in errors and logs.
            tracebacks: send the tracebacks of our handlers' errors to the other side.

        Raises:
            CapnodeError: no event loop is running.
        """
        from ._remote import create_remote

        return create_remote(self, limits=limits, nickname=nickname, tracebacks=tracebacks)

    def clear_remote(self, remote: Peer) -> None:
        """Close the connection: running handlers finish, the other side is told, all bounded.

        ``await remote.wait_closed()`` waits for that, ``await remote.aclose()`` does both.
        """
        driver = _checked_peer(remote, "clear_remote")._driver
        driver.soon(lambda: driver.close(None))

    async def request_index(self, remote: Peer) -> Any:
        """What the other side of `remote` offers: data copied, functions as stubs."""
        return await _checked_peer(remote, "request_index").request_index()

    @property
    def registered_method_count(self) -> int:
        """How many functions and objects of this host the others hold now, over all connections.

        Each counts once, whoever holds it. The index is not counted.
        """
        held = {
            reference_key(value)
            for session in list(self.sessions.values())
            for value in session.exports.values()
            if isinstance(value, (Target, *FUNCTIONS))
        }
        return len(held)

    # What the engine asks.

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
                return session.delegation.find(parts)
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

    def hold(self, target: Target, holder: Holder) -> None:
        """The other side of a connection holds `target`."""
        from ._holders import holders

        holders.add(target, holder)

    def let_go(self, target: Target, holder: Holder) -> bool:
        """It does no more. True if nobody holds it now."""
        from ._holders import holders

        return holders.discard(target, holder)

    def gone(self, held: Iterable[tuple[Target, Holder]]) -> None:
        """The collector has found a connection that held these."""
        from ._holders import holders

        holders.gone(held)


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


def _checked_serializer(serializer: Any) -> Serializer:
    if all(callable(getattr(serializer, name, None)) for name in ("serialize", "deserialize")):
        return serializer  # type: ignore[no-any-return]
    raise TypeError(
        f"serializer= takes an object with serialize(data) and deserialize(message), not a "
        f"{type(serializer).__name__}"
    )


def _checked_peer(remote: Any, method: str) -> Peer:
    if hasattr(remote, "request_index"):
        return remote  # type: ignore[no-any-return]
    raise TypeError(
        f"{method}() takes a connection, not a {type(remote).__name__}: write "
        f"remote = host.create_remote(), and host.{method}(remote)"
    )
