"""What a user holds: `Stub`, `Promise`, `Target`.

Far names stay free: on a stub only `cap_id` and `dealloc` are ours, on a promise also `map` and
`cancel`; every other public name is the far side's. A name that begins with an underscore raises
here, since IPython, copy, pickle and mock ask for such names to learn about a *local* object.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, Self, final
from weakref import WeakKeyDictionary

from ._cell import STATES, Cell
from ._messages import Path, Step

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    R_co = TypeVar("R_co", covariant=True, default=Any)
else:  # typing has no defaults before Python 3.13, and only type checkers ask for this one
    from typing import TypeVar

    R_co = TypeVar("R_co", covariant=True)

FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodWrapperType,
    functools.partial,
)
"""What passes by reference as a function, and can be called from afar."""


recorders: list[Any] = []
"""Those that record a function for `map` now (`_map.py`), in any thread: none, nearly always."""
recording: ContextVar[Any] = ContextVar("capnode_py.recording", default=None)
"""The one that records here."""

GIVEN_UP: Final = 1 << 80
"""The id of a stub that was given up: no id of any table."""

CLOSING: Final = "this peer is closing, and makes no new calls"


class Target:
    """Subclass it to be passed by reference: its public methods and properties are callable from
    afar. Instance attributes, underscore names and what `object` defines are not.

    The idea is Cap'n Web's RpcTarget and E's Far.
    """

    __slots__ = ("__weakref__",)


Tell = Callable[[Any, BaseException], object]
"""Told of a break: what asked to be told, and the error."""


class Breakable:
    """A reference that may break, once, and then tells those who asked: a stub, or a facade."""

    __slots__ = ()  # `_fate` is a slot of each subclass, which may have another base

    _fate: Fate | BaseException

    def _watch(self, owner: Any, tell: Tell) -> None:
        """Call ``tell(owner, error)`` when it breaks: now, if it has.

        An owner asks once, is held weakly, and is not told if it is gone.
        """
        fate = self._future()
        if fate is not None:
            fate.owners[owner] = tell
            if self._fate is fate or fate.owners.pop(owner, None) is None:
                return  # the last: it has broken in between, in another thread, and tells
        tell(owner, self._fate)  # type: ignore[arg-type]

    def _keep(self, owner: object, value: object = None) -> None:
        """Hold both until this breaks, or is gone, or the owner does not ask any more."""
        fate = self._future()
        if fate is not None:
            fate.kept[owner] = value

    def _unwatch(self, owner: object) -> None:
        """This owner does not ask any more. In any thread."""
        fate = getattr(self, "_fate", None)
        if type(fate) is Fate:
            fate.owners.pop(owner, None)
            fate.kept.pop(owner, None)

    def _forget(self) -> None:
        """It was given up: nobody is told any more, and nothing is held for them."""
        if type(getattr(self, "_fate", None)) is Fate:
            del self._fate

    def _future(self) -> Fate | None:
        """Who is to be told; None if it is broken."""
        fate = getattr(self, "_fate", None)
        if fate is None:  # of a stub, which lives in one thread; a facade has one from the first
            fate = self._fate = Fate()  # type: ignore[misc]
        return fate if type(fate) is Fate else None

    def _break(self, error: BaseException) -> None:
        """It is broken from now on, and who asked is told. Only the first error counts."""
        fate = getattr(self, "_fate", None)
        if isinstance(fate, BaseException):
            return
        self._fate = error  # type: ignore[misc]
        if fate is not None:
            for ref in fate.owners.keyrefs():  # a list, made in one go: others may still ask
                owner = ref()
                tell = None if owner is None else fate.owners.pop(owner, None)
                if tell is not None:
                    tell(owner, error)

    @property
    def _broken(self) -> BaseException | None:
        """Why it is broken; None if it is not."""
        fate = getattr(self, "_fate", None)
        return fate if isinstance(fate, BaseException) else None


class Fate:
    """Who asked to be told of a break, each with how; and who is held until then, with what."""

    __slots__ = ("kept", "owners")

    def __init__(self) -> None:
        self.owners: WeakKeyDictionary[Any, Tell] = WeakKeyDictionary()
        self.kept: dict[Any, Any] = {}


class Engine(Protocol):
    """What a stub knows of its session."""

    def call(self, base: Stub | Cell, path: Path, args: Any, kwargs: Any, /) -> Promise: ...
    def wait(self, base: Stub | Cell, path: Path, /) -> Generator[Any, Any, Any]: ...
    def dealloc(self, stub: Stub, /) -> None: ...
    def cap_id(self, stub: Stub, /) -> str: ...
    def cancel(self, cell: Cell, /) -> None: ...
    def plain(self, stub: Stub, /) -> Stub: ...
    def describe(self, stub: Stub, path: str = "", /) -> str: ...
    @property
    def where(self) -> str: ...


@final
class Stub(Breakable):
    """A far function or object that was received.

    Call it, or a name on it: ``await stub(1)``, ``await stub.method(1)``. ``stub.name`` and
    ``stub["name"]`` are paths, which can be awaited (a property read), called, or passed on. It is
    not awaitable itself. The same far object is the same stub, so it hashes and compares as an
    object; `dealloc` therefore ends it for all its holders in this process.
    """

    __slots__ = ("__weakref__", "_cap_id", "_fate", "_id", "_session")

    _session: Any
    _id: int
    _cap_id: str | None

    # With __getitem__ and without these, list(stub) and "x" in stub would never end.
    __iter__ = None
    __contains__ = None

    def __init__(self, session: Engine, id: int) -> None:
        self._session = session
        self._id = id
        self._cap_id = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Promise:
        session = self._session
        if recorders:
            session = recording.get() or session
        return session.call(self, (), args, kwargs)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Promise:
        if name[:1] == "_":
            raise private_name(name)
        return Promise(self._session, self, (name,))

    def __getitem__(self, step: Step) -> Promise:
        return Promise(self._session, self, (checked_step(step),))

    def __dir__(self) -> list[str]:
        return _names(self, self, ())

    def __repr__(self) -> str:
        return f"<Stub {self._session.describe(self)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.dealloc()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stub cannot be pickled or copied: it belongs to its connection")

    @property
    def cap_id(self) -> str:
        """Unguessable text that stands for this reference: another client of the same host hands
        it to its `peer.reconstruct`. Computed here, without a message; not shown by `repr`.

        It pins nothing: it lives while we hold the reference on this connection, or, for what the
        host has registered, as long as that.

        Raises:
            Released: the reference was given up here.
            PeerClosed, PeerLost: the connection is over, and the cap_id with it.
        """
        return self._session.cap_id(self)  # type: ignore[no-any-return]

    def dealloc(self) -> None:
        """Give the reference up now, for all its holders in this process. Idempotent.

        A later use raises `Released`. What was called before is still delivered.
        """
        self._session.dealloc(self)


@final
class Promise(Generic[R_co]):
    """A path on a stub, or the answer of a call.

    Await it to read or to get; call through it, before it is here, without waiting; pass it on as
    an argument or a result. It may be awaited any number of times, by any number of tasks; each
    await of a *path* reads anew. Dropping it gives it up, and never cancels the call.

    ``Promise[int]`` is for annotations: it gives an int.

    The idea is E's and Cap'n Proto's promise pipelining.
    """

    __slots__ = ("_base", "_path", "_session")

    __iter__ = None
    __contains__ = None

    def __init__(self, session: Engine, base: Stub | Cell, path: Path) -> None:
        self._session: Engine = session
        self._base = base
        self._path = path

    def __call__(self, /, *args: Any, **kwargs: Any) -> Promise:
        if recorders and (recorder := recording.get()) is not None:
            return recorder.call(self, (), args, kwargs)  # type: ignore[no-any-return]
        return self._session.call(self._base, self._path, args, kwargs)

    def __getattr__(self, name: str) -> Promise:
        if name[:1] == "_":
            raise private_name(name)
        return Promise(self._session, self._base, (*self._path, name))

    def __getitem__(self, step: Step) -> Promise:
        return Promise(self._session, self._base, (*self._path, checked_step(step)))

    def __dir__(self) -> list[str]:
        return _names(self, self._base, self._path)

    def __await__(self) -> Generator[Any, Any, R_co]:
        return self._session.wait(self._base, self._path)

    def __bool__(self) -> bool:
        blocks = ", or peer.get()" if hasattr(self._session, "far_names") else ""
        raise TypeError(f"{self!r} is not here yet: did you forget await{blocks}?")

    def __repr__(self) -> str:
        path = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in self._path)
        if isinstance(self._base, Stub):
            return f"<Promise {self._session.describe(self._base, path)}>"
        what = f"{path} of" if path else "of"
        return f"<Promise {what} {self._session.where}: {STATES[self._base.state]}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Promise cannot be pickled or copied: it belongs to its connection")

    @property
    def cap_id(self) -> NoReturn:
        """A promise has none, since it is not known what it will be.

        Raises:
            TypeError: always, with what to write.
        """
        name = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in self._path)
        instead = f"await it first, as in stub = await promise{name}"
        if hasattr(self._session, "far_names"):  # where callers block
            instead = f"read it first, as in stub = peer.get(promise{name})"
        raise TypeError(f"{self!r} is not here yet, and has no cap_id: {instead}; stub.cap_id")

    def map(self, function: Callable[[Any], Any], /) -> Promise:
        """What `function` makes of each item of the list that this is, or will be: one round trip,
        ``names = await peer.index.rows().map(lambda row: row.name)``.

        The function is called once, here, with a placeholder. What it does with that is recorded,
        and done over there for each item: paths, calls on the item, calls on stubs from outside,
        maps of lists in the item. It returns a value with such results in it. It has no side
        effect but far calls, each of which is made for each item, whether or not its answer is
        used.

        None gives None. What is no list gives one result, for itself. If a call fails for one item,
        the whole fails with its error.

        Raises:
            TypeError: the function needs the value of its item here, in an `if` for instance.
            CannotPass, LimitExceeded, Released: as for a call. Nothing was sent.
        """
        from ._map import mapped

        return mapped(self, function)  # type: ignore[no-any-return]

    def cancel(self) -> None:
        """Withdraw this side's interest in the answer.

        The far handler is cancelled, once, when nothing else depends on it; who awaits the promise
        gets what the far side then answers. On a path there is nothing to cancel.
        """
        if not isinstance(self._base, Stub) and not self._path:
            self._session.cancel(self._base)


def _names(held: Any, base: Stub | Cell, path: Path) -> list[str]:
    """What can be named on it; where callers block (a REPL, a notebook) the far side says more."""
    ask = getattr(held._session, "far_names", None)
    return sorted({*object.__dir__(held), *(ask(base, path) if ask else ())})


class _FarDoc:
    """The `__doc__` of a class whose instances stand for something far: where callers block,
    `help(stub)` shows what the other side says of it."""

    def __init__(self, doc: str | None) -> None:
        self._doc = doc

    def __get__(self, held: Any, _kind: type) -> str | None:
        if held is None:
            return self._doc
        return _asked(held, "far_doc") or self._doc


class _FarSignature:
    """Likewise what `inspect.signature` shows, and so editors and REPLs."""

    def __get__(self, held: Any, _kind: type) -> Any:
        signature = None if held is None else _asked(held, "far_signature")
        if signature is None:
            raise AttributeError("__signature__")
        return signature


def _asked(held: Any, what: str) -> Any:
    ask = getattr(held._session, what, None)
    base, path = (held, ()) if isinstance(held, Stub) else (held._base, held._path)
    return ask(base, path) if ask else None


Stub.__doc__ = _FarDoc(Stub.__doc__)  # type: ignore[assignment]
Promise.__doc__ = _FarDoc(Promise.__doc__)  # type: ignore[assignment]
Stub.__signature__ = _FarSignature()  # type: ignore[attr-defined]
Promise.__signature__ = _FarSignature()  # type: ignore[attr-defined]


def checked_step(step: Step) -> Step:
    if type(step) is str or type(step) is int:
        return step
    raise TypeError(
        f"a path step is a str or an int, not {type(step).__name__}; slices and tuples do not cross"
    )


def private_name(name: str) -> AttributeError:
    return AttributeError(
        f"{name!r}: underscore names are not asked of the far side. If it has such a dict key, "
        f"write [{name!r}]"
    )
