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
nothing else. The facade of a stub hands on whatever is asked of it.

What is lent may be far: then a call through the facade is a call of ours on the stub, whose outcome
comes as a promise on a cell of its own (`_Outcome`). Nothing is pipelined through that cell, as
what comes out of it is to be wrapped first.

The membrane is Mark Miller's, the caretaker David Redell's.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Generator, Iterator
from functools import partial
from types import CoroutineType, MethodType
from typing import Any, NoReturn

from ._cell import FULFILLED, REJECTED, Call, Cell
from ._errors import Revoked, again
from ._messages import Path, Step
from ._reach import FAR, Facade, callable_from_afar, copied, no_member, reach, reference_key
from ._seam import as_cell
from ._stub import FUNCTIONS, Breakable, Fate, Promise, Stub, Target, Tell

_ATOMS = (type(None), bool, int, float, str, bytes)
_DEEPEST = 200  # far beyond what any peer takes (Limits.max_depth)

Back = Callable[[Any], Any]
"""Makes of a result what is to be seen of it."""


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
        self._outcomes: weakref.WeakSet[_Outcome] = weakref.WeakSet()
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
        outcome = _Outcome(session, inner)
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


class Lent(Facade):
    """The facade of an object or a function of this process; or of another facade."""

    __slots__ = ("_inward", "_obj", "_terms")

    def __init__(self, terms: Terms, obj: Any, *, inward: bool) -> None:
        self._terms = terms
        self._obj = obj
        self._inward = inward
        self._fate = Fate()  # at once: it may be exported in one thread and revoked in another

    def __repr__(self) -> str:
        obj = self._obj
        return "<Facade, revoked>" if obj is None else f"<Facade of {type(obj).__name__}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a facade cannot be pickled or copied: it belongs to its loan")

    def _held(self) -> Any:
        """What it stands for. Raises the reason, if it was taken back."""
        obj = self._obj
        self._terms.check()
        return obj

    def _is_function(self) -> bool:
        obj = self._obj
        return obj._is_function() if isinstance(obj, Lent) else isinstance(obj, FUNCTIONS)

    # From afar.

    def _step(self, step: Step) -> Any:
        obj = self._held()
        allow = self._terms.allow
        if allow is not None and step not in allow:
            raise no_member(_innermost(obj), step)
        member, _ = reach(obj, (step,))
        return self._terms.result(member, partial(self._terms.lend, inward=self._inward))

    def _function(self) -> Callable[..., Any]:
        terms = self._terms
        function = callable_from_afar(self._held())
        if not terms.revocable:
            return function

        # A plain function, which a driver may ask whether it belongs into a thread.
        def call(*args: Any, **kwargs: Any) -> Any:
            return terms.run(function, args, kwargs, inward=self._inward)

        inner = function.__func__ if type(function) is MethodType else function
        if getattr(inner, "__capnode_in_thread__", False):
            call.__capnode_in_thread__ = True  # type: ignore[attr-defined]
        return call

    def _watch(self, owner: Any, tell: Tell) -> None:
        obj = self._obj
        if type(obj) is Stub:
            obj = obj._session.plain(obj)
        if isinstance(obj, Breakable):  # they break together
            obj._watch(self, Breakable._break)
        super()._watch(owner, tell)

    # Here.

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "_":
            raise AttributeError(f"{name!r} is private")
        return self._step(name)


def _innermost(obj: Any) -> Any:
    while isinstance(obj, Lent):
        obj = obj._held()
    return obj


class FarLent(Lent):
    """The facade of a stub. It may be asked whatever a stub may be asked, and gives promises.

    Here, too, a call on it goes by way of its session, so that there is one way.
    """

    __slots__ = ("_callable", "_session")

    _session: Any

    # As for a stub: with __getitem__ and without these, list(facade) would never end.
    __iter__ = None
    __contains__ = None

    def __init__(self, terms: Terms, obj: Stub | FarLent, *, inward: bool) -> None:
        super().__init__(terms, obj, inward=inward)
        stub = obj._session.plain(obj) if type(obj) is Stub else obj
        self._session = stub._session  # that of the connection, also for a stub with options
        self._callable = True

    def __repr__(self) -> str:
        return "<Facade, revoked>" if self._obj is None else f"<Facade of {self._obj!r}>"

    # From afar.

    def _step(self, step: Step) -> Any:
        return _FarPath(self, (step,))

    def _function(self) -> Callable[..., Any]:
        return partial(_call_far, self, ())

    def _far(self, path: Path, args: Any, kwargs: Any) -> Promise:
        """A call, or a read, of the stub; a failed promise if it is not to be."""
        promise: Promise = self._session.promised(partial(self._ask, path, args, kwargs))
        return promise

    def _ask(self, path: Path, args: Any, kwargs: Any) -> Promise:
        terms, session = self._terms, self._session
        try:
            held = self._held()
            base = held._anchor() if type(held) is FarLent else held
            engine = held._session
            allowed = self._allowed(path)
        except Exception as error:  # noqa: BLE001 - the reason may be any
            return Promise(session, _settled(session, REJECTED, error.with_traceback(None)), ())
        if allowed < len(path):
            # Beyond an allowed name there may be data; if it is an object, its facade refuses.
            first = self._far(path[:allowed], None, None)
            promise: Promise = session.call(first._base, path[allowed:], args, kwargs)
            return promise
        if args is None:
            back: Back | None = partial(terms.lend, inward=self._inward)
        else:
            args, kwargs = terms.arguments(args, kwargs, inward=self._inward)
            back = terms.back(inward=self._inward)
        return terms.outcome(engine.call(base, path, args, kwargs), back)

    def _allowed(self, path: Path) -> int:
        """How many steps of a path may be asked of the far side in one go."""
        allow = self._terms.allow
        if not path and not self._callable:
            raise TypeError("this facade cannot be called: only names on it can")
        if allow is None:
            return len(path)
        steps = 0
        for step in path:
            if step not in allow and type(step) is not int:
                break
            steps += 1
        if path and not steps:
            raise AttributeError(f"there is no {path[0]!r} to reach")
        return steps

    # Here.

    def _anchor(self) -> Cell:
        """What a call of this side is made on, so that it takes the way of those from afar."""
        return _settled(self._session, FULFILLED, self)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._session.call(self._anchor(), (), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "_":
            raise AttributeError(f"{name!r} is private")
        return self[name]

    def __getitem__(self, step: Step) -> Promise:
        return Promise(self._session, self._anchor(), ())[step]


def _call_far(facade: FarLent, path: Path, /, *args: Any, **kwargs: Any) -> Promise:
    return facade._far(path, args, kwargs)


def _settled(session: Any, state: int, value: Any) -> Cell:
    cell = Cell(session)
    cell.state, cell.value = state, value
    return cell


class _FarPath(Facade):
    """Some steps on the way through a far facade. At its end it is called, or awaited: a read."""

    __slots__ = ("_facade", "_path")

    def __init__(self, facade: FarLent, path: Path) -> None:
        self._facade = facade
        self._path = path

    def _step(self, step: Step) -> Any:
        return _FarPath(self._facade, (*self._path, step))

    def _function(self) -> Callable[..., Any]:
        return partial(_call_far, self._facade, self._path)

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._facade._far(self._path, None, None).__await__()


class _Outcome(Cell):
    """What a far call has given, as it is to be seen.

    It holds the cell of that call, and not the other way round: dropping it drops that one.
    """

    __slots__ = ("_inner",)

    def __init__(self, session: Any, inner: Cell) -> None:
        super().__init__(session)
        self._inner: Cell | None = inner

    def begin(self, back: Back | None) -> None:
        """Take the outcome of the call, when it is here."""
        inner = self._inner
        if inner is None:
            return
        watcher = partial(_take, weakref.ref(self), back)
        # To the engine the far call is what runs here; and so a cancel finds its way to it.
        self.task = task = Call(self.session, None, (), None, None, None)
        task.started = True
        task.handle = _FarTask(inner, watcher)
        inner.pull()
        inner.watch(watcher)

    def give_up(self, error: BaseException) -> None:
        """It was taken back."""
        task = self.task
        self.reject(again(error))  # a traceback on the one of the terms would hold its frames
        if task is not None and task.handle is not None:
            task.handle.cancel()
        self._inner = None


def _take(outcome: weakref.ref[_Outcome], back: Back | None, inner: Cell) -> None:
    cell = outcome()
    if cell is None:
        return
    cell._inner = None
    if inner.state == REJECTED:
        cell.reject(inner.value)
        return
    try:
        value = inner.value if back is None else back(inner.value)
    except Exception as error:  # noqa: BLE001 - the reason may be any
        cell.reject(error.with_traceback(None))
    else:
        cell.fulfil(value)


class _FarTask:
    """Stands for a far call where the engine knows a task: it can be cancelled."""

    __slots__ = ("_inner", "_watcher")

    def __init__(self, inner: Cell, watcher: Callable[[Cell], object]) -> None:
        self._inner = inner
        self._watcher = watcher

    def cancel(self) -> None:
        inner = self._inner
        inner.unwatch(self._watcher)
        if not inner.awaiting and not inner.has_dependents():
            inner.session.cancel(inner)
        inner.watch(self._watcher)
