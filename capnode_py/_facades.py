"""What is passed on instead of what is lent: facades of what is here, and of what is far.

A facade answers for its names itself, under the terms of its loan (`_membrane.py`). That of a stub
hands on whatever is asked of it: a call through it is a call of ours on the stub, whose outcome
comes as a promise on a cell of its own (`Outcome`). Nothing is pipelined through that cell, as what
comes out of it is to be wrapped first.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, NoReturn

from ._cell import FULFILLED, REJECTED, Call, Cell
from ._errors import again
from ._messages import Path, Step
from ._reach import Facade, callable_from_afar, no_member, reach
from ._stub import FUNCTIONS, Breakable, Fate, Promise, Stub, Tell

if TYPE_CHECKING:
    from ._membrane import Terms

Back = Callable[[Any], Any]
"""Makes of a result what is to be seen of it."""


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


class Outcome(Cell):
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


def _take(outcome: weakref.ref[Outcome], back: Back | None, inner: Cell) -> None:
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
