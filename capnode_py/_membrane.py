"""Lending: `revocable` and `attenuate`.

Both give a facade of an object: something that answers for its names, and that is passed on instead
of it. All facades that come of one loan share its terms:

=================================  ==================  ============================================
loan                               names               what comes through the facade
=================================  ==================  ============================================
``revocable(obj)``                 all                 is lent too, both ways: a membrane
``revocable(obj, derived=False)``  all                 passes as it is, but for what a path leads to
``attenuate(obj, allow=names)``    these, everywhere   passes as it is, but for what a path leads to
=================================  ==================  ============================================

A facade is a `Target`, so it passes by reference, and `_reach.py` asks it; nothing here knows of
the wire. It behaves here as it does from afar: its members are public methods and properties, and
nothing else (`_facades.py`). What comes through is wrapped, or not, by its terms (`Terms`).

The membrane is Mark Miller's, the caretaker David Redell's.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterator
from functools import partial
from types import CoroutineType
from typing import Any

from ._errors import Revoked, again
from ._facades import Back, FarLent, Lent, Outcome
from ._reach import FAR, copied, reference_key
from ._seam import as_cell
from ._stub import FUNCTIONS, Promise, Stub, Target

_ATOMS = (type(None), bool, int, float, str, bytes)
_DEEPEST = 200  # far beyond what any peer takes (Limits.max_depth)


class Revoke(partial[None]):
    """Takes back what `revocable` has lent. It passes by reference, as any function does."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<Revoke>"

    @property
    def is_in_use(self) -> bool:
        """Is there a facade that somebody holds, here or afar, and that is not revoked?"""
        terms: Terms = self.args[0]
        return terms.in_use()


def revocable(obj: Any, *, derived: bool = True) -> tuple[Any, Revoke]:
    """Lend an object, to be taken back: ``facade, revoke = revocable(obj)``.

    Pass the facade on instead of the object. ``revoke(reason)`` ends it for all who hold it:
    running calls through it are cancelled, and fail with the reason, as later ones do; it lets go
    of the object at once; and who asked by `Peer.on_broken` is told. `reason` is a text, for a
    `Revoked`, or an exception. A second `revoke` does nothing. It may be called in any thread.

    Args:
        obj: a `Target`, a function, or a stub.
        derived: what is obtained through the facade (results, properties, and what callbacks that
            were passed in are given) is lent on the same terms, and is taken back with it. A
            facade that comes back arrives as what it stands for. If False, the results of calls
            pass as they are, and outlive it.

    Raises:
        TypeError: the object cannot be lent.
    """
    terms = Terms(revocable=True, derived=derived)
    return terms.facade(_checked(obj, "revocable")), Revoke(Terms.revoke, terms)


def attenuate(obj: Any, *, allow: Collection[str]) -> Any:
    """A facade of an object on which only these names can be reached.

    The same names, and no others, can be reached on the objects that a path leads to, such as
    those in its properties. What its methods return passes as it is: allow only methods whose
    results you want to give away, or return attenuated objects from them.

    Args:
        obj: a `Target`, or a stub.
        allow: names, such as ``{"read", "child"}``.

    Raises:
        TypeError: the object has no names, or `allow` is no set of names.
    """
    names = _checked_names(allow)
    _checked(obj, "attenuate")
    if isinstance(obj, FUNCTIONS) or (isinstance(obj, Lent) and obj._is_function()):
        raise TypeError(
            "attenuate() takes an object or a stub: a function has no names to choose from. Pass "
            "it as it is, or write capnode.revocable(function)"
        )
    facade = Terms(allow=names).facade(obj)
    if isinstance(facade, FarLent):
        facade._callable = False  # its names are lent; what they lead to may well be a function
    return facade


def _checked(obj: Any, what: str) -> Any:
    if type(obj) is Promise:
        raise TypeError(
            f"{what}() takes what is here, not a promise: await it first, as in "
            f"stub = await promise; capnode.{what}(stub)"
        )
    if type(obj) is Stub or isinstance(obj, (Target, *FUNCTIONS)):
        return obj
    if isinstance(obj, type):
        instead = f"an object, not the class: {what}({obj.__name__}())"
    elif isinstance(obj, (dict, list, tuple, set, frozenset)):
        instead = f"one object or function, not a {type(obj).__name__} of them: lend each in it"
    else:
        instead = (
            f"a capnode.Target, a function or a stub, not a value of type {type(obj).__name__}: "
            "let its class inherit from capnode.Target"
        )
    raise TypeError(f"{what}() takes {instead}")


def _checked_names(allow: Any) -> frozenset[str]:
    if isinstance(allow, str):
        raise TypeError(f"allow= takes a set of names: write allow={{{allow!r}}}")
    if not isinstance(allow, (set, frozenset, list, tuple)):
        raise TypeError(
            f"allow= takes a set of names, such as {{'read'}}, not a {type(allow).__name__}"
        )
    for name in allow:
        if type(name) is not str:
            raise TypeError(f"allow= takes names, and {name!r} is a {type(name).__name__}")
    return frozenset(allow)


class Terms:
    """The terms of one loan, and what goes on under them; any thread may use it.

    Args:
        allow: the names that can be reached; None for all.
        revocable: it can be taken back.
        derived: what comes through is lent too.

    Attributes:
        error: why it was taken back; None if it was not.
    """

    def __init__(
        self,
        *,
        allow: frozenset[str] | None = None,
        revocable: bool = False,
        derived: bool = False,
    ) -> None:
        self.allow = allow
        self.revocable = revocable
        self.derived = derived
        self.error: BaseException | None = None
        # Re-entrant: under it the collector may run whatever a user's finalizer does.
        self._lock = threading.RLock()
        self._facades: weakref.WeakValueDictionary[object, Lent] = weakref.WeakValueDictionary()
        self._outcomes: weakref.WeakSet[Outcome] = weakref.WeakSet()
        self._running: set[Callable[[], object]] = set()

    def in_use(self) -> bool:
        """Is there a facade that somebody holds?"""
        with self._lock:
            return bool(list(self._facades.values()))

    def check(self, cause: BaseException | None = None) -> None:
        """Raises the reason, if it was taken back."""
        if self.error is not None:
            raise again(self.error) from cause

    def revoke(self, reason: str | Exception = "it was taken back") -> None:
        """See `revocable`."""
        if not isinstance(reason, (str, Exception)):
            raise TypeError(
                f"a reason is a text or an exception, not {reason!r}: write revoke('not paid')"
            )
        error = Revoked(reason) if isinstance(reason, str) else again(reason)
        with self._lock:
            if self.error is not None:
                return
            self.error = error
            facades = list(self._facades.values())
            running, self._running = self._running, set()
            outcomes = list(self._outcomes)
            self._facades.clear()
            self._outcomes.clear()
        for facade in facades:
            facade._obj = None
        for stop in running:
            stop()
        for outcome in outcomes:
            outcome.session.bring_soon(partial(outcome.give_up, error))  # type: ignore[attr-defined]
        for facade in facades:
            facade._break(error)

    # What is lent.

    def facade(self, obj: Any, *, inward: bool = False) -> Lent:
        """The facade of an object: the same one, for as long as somebody holds it.

        Args:
            inward: it came in from outside, as an argument, and is seen by what is lent.
        """
        key = inward, id(obj) if type(obj) is Stub else reference_key(obj)
        with self._lock:
            self.check()
            found = self._facades.get(key)
            if found is None:
                kind = FarLent if type(obj) in (Stub, FarLent) else Lent
                found = self._facades[key] = kind(self, obj, inward=inward)
            return found

    def lend(self, value: Any, *, inward: bool, depth: int = 0) -> Any:
        """A value that goes through: references in it become facades, and facades that go back
        what they stand for. What holds neither stays the very value."""
        if isinstance(value, _ATOMS):
            return value
        if isinstance(value, Lent) and value._terms is self:
            return value if value._inward == inward else value._held()

        plain = copied(value)
        if plain is not value:
            lent = self.lend(plain, inward=inward, depth=depth)
            return value if lent is plain else lent
        if type(value) is Promise:
            return self.outcome(value, partial(self.lend, inward=inward))
        if isinstance(value, FUNCTIONS):
            return self.facade(value, inward=inward) if self.revocable else value
        if type(value) is Stub or (isinstance(value, Target) and not inward):
            # A Target that goes inward is an object of this process, which what is lent may know.
            return self.facade(value, inward=inward)
        if isinstance(value, (dict, list, tuple, set, frozenset)):
            return self._lend_inside(value, inward=inward, depth=depth + 1)
        return value

    def _lend_inside(self, value: Any, *, inward: bool, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError(f"a value of more than {_DEEPEST} containers inside each other")
        items = list(value.values() if isinstance(value, dict) else value)
        lent = [self.lend(item, inward=inward, depth=depth) for item in items]
        if all(one is other for one, other in zip(items, lent, strict=True)):
            return value
        if isinstance(value, dict):
            return dict(zip(value, lent, strict=True))
        for kind in (list, tuple, frozenset):
            if isinstance(value, kind):
                return kind(lent)
        return set(lent)

    # Calls.

    def run(
        self, function: Callable[..., Any], args: Any, kwargs: Any, *, inward: bool = False
    ) -> Any:
        """Call what is lent."""
        self.check()
        args, kwargs = self.arguments(args, kwargs, inward=inward)
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            self.check(error)
            raise
        return self.result(result, self.back(inward=inward))

    def arguments(self, args: Any, kwargs: Any, *, inward: bool) -> tuple[Any, Any]:
        """The arguments of a call, as what is lent is to see them."""
        if not self.derived:
            return args, kwargs
        return (
            [self.lend(arg, inward=not inward) for arg in args],
            {name: self.lend(arg, inward=not inward) for name, arg in kwargs.items()},
        )

    def back(self, *, inward: bool) -> Back | None:
        """What is made of the result of a call."""
        return partial(self.lend, inward=inward) if self.derived else None

    def result(self, result: Any, back: Back | None) -> Any:
        """What a call, or a property, has given; an awaitable for an awaitable."""
        if type(result) is Promise:
            return self.outcome(result, back)
        if type(result) is CoroutineType or (
            hasattr(type(result), "__await__") and not isinstance(result, FAR)
        ):
            awaited: Any = self._awaited(_Handed(result), back)
            awaited.__qualname__ = getattr(result, "__qualname__", awaited.__qualname__)
            return awaited
        self.check()
        return result if back is None else back(result)

    async def _awaited(self, handed: _Handed, back: Back | None) -> Any:
        self.check()
        try:
            with self._until_revoked():
                value = await handed.take()
        except Exception as error:
            self.check(error)
            raise
        self.check()
        return value if back is None else back(value)

    @contextlib.contextmanager
    def _until_revoked(self) -> Iterator[None]:
        """Cancel what runs inside, as its event loop cancels, when it is taken back. In an event
        loop that we do not know it runs to its end."""
        from anyio import CancelScope

        try:
            scope = CancelScope()
        except RuntimeError:
            yield
            return
        from .driver.anyio import call_soon

        stop = partial(_cancel, call_soon(), scope)
        with self._lock:
            self._running.add(stop)
            if self.error is not None:
                scope.cancel()
        try:
            with scope:
                yield
        finally:
            with self._lock:
                self._running.discard(stop)

    def outcome(self, promise: Promise, back: Back | None) -> Promise:
        """The promise of a far call, as it is to be seen."""
        if back is None and not self.revocable:
            return promise
        inner = as_cell(promise._base, promise._path)
        session: Any = inner.session
        outcome = Outcome(session, inner)
        outcome.begin(back)
        with self._lock:
            if self.error is None:
                self._outcomes.add(outcome)
        if self.error is not None:
            outcome.give_up(self.error)
        return Promise(session, outcome, ())


class _Handed:
    """What a coroutine is to await, when it begins. If it never does, nobody else closes that."""

    __slots__ = ("_awaitable",)

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self._awaitable: Awaitable[Any] | None = awaitable

    def take(self) -> Awaitable[Any]:
        awaitable, self._awaitable = self._awaitable, None
        if awaitable is None:
            raise RuntimeError("it was awaited already")
        return awaitable

    def __del__(self) -> None:
        if type(self._awaitable) is CoroutineType:
            self._awaitable.close()


def _cancel(soon: Callable[[Callable[[], object]], object], scope: Any) -> None:
    with contextlib.suppress(RuntimeError):  # its loop is gone, and all that ran there
        soon(scope.cancel)
