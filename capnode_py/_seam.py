"""The seam between the engine and a codec: `to_ref`, `from_ref`, and copying without a wire."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Container, Iterable
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, cast

from ._cap_ids import Unknown
from ._cell import FULFILLED, HELD, PENDING, PULLED, Call, Cell
from ._errors import CannotPass, Released
from ._messages import Codec, Inline, Mine, Path, Promised, Ref, Yours
from ._payload import Hole, Payload
from ._reach import FAR, copied, reference_key, step_into
from ._stub import Promise, Stub, Target
from ._tables import Export, ExportTable, ImportTable, PathNode, PathTable

if TYPE_CHECKING:
    from ._session import Session


_new: Any = tuple.__new__  # makes a NamedTuple in a third of the time


class Host(Protocol):
    """What the engine asks of whose connection it is.

    Attributes:
        describe: the other side may be told what can be called here.
    """

    describe: bool

    def find(self, cap_id: str, /) -> Any:
        """What a cap_id stands for. Raises `Unknown`."""

    def lasting(self, key: object, /) -> str | None:
        """The cap_id under which the value with this `reference_key` is registered."""

    def hold(self, target: Target, holder: tuple[object, int], /) -> None:
        """The other side holds `target`; `holder` is a key of the connection, and the id of the
        entry of the export table."""

    def let_go(self, target: Target, holder: tuple[object, int], /) -> bool:
        """It does no more. True if nobody holds it now."""

    def gone(self, held: Iterable[tuple[Target, tuple[object, int]]], /) -> None:
        """The connection is garbage, and held these: from a finalizer."""


class Seam:
    """References of one session: from values, and to values.

    Args:
        session: whose stubs and cells they are.
        get_index: what is offered on this connection, live.
        host: knows cap_ids.

    Attributes:
        reads: what the paths in the message in hand were announced as, by what they are paths of.
        resolved_paths: what stands for the paths that promises of theirs have come to.
    """

    def __init__(
        self,
        session: Session,
        codec: Codec,
        imports: ImportTable,
        exports: ExportTable,
        get_index: Callable[[], Any],
        host: Host,
    ) -> None:
        self._session = session
        self._codec = codec
        self._imports = imports
        self._exports = exports
        self.get_index = get_index
        self._make_stub = partial(Stub, session)
        self._host = host
        self.reads: dict[tuple[int, Path], Cell] = {}
        self.resolved_paths = PathTable(exports.max)
        self._named: weakref.WeakValueDictionary[str, Stub] = weakref.WeakValueDictionary()
        # Those of a stub that was reconstructed, and came as a reference since.
        self.other_ids: weakref.WeakKeyDictionary[Stub, set[int]] = weakref.WeakKeyDictionary()

    def to_ref(self, value: Any) -> Ref | Inline:
        """What stands on the wire for a value that is no plain data.

        Raises:
            CannotPass, LimitExceeded, Released: it cannot cross.
        """
        if type(value) is FunctionType:  # a callback, as most are
            return self._mine(id(value), value)
        if type(value) is Promise:
            base = value._base
            return self._promise(
                base._session.plain(base) if type(base) is Stub else base, value._path
            )
        if isinstance(value, Cell):
            return self._promise(value, ())
        if type(value) is Stub:
            value = value._session.plain(value)
            if value._session is self._session:
                return self._home(value, ())

        plain = copied(value)
        if plain is not value:
            return Inline(plain)
        if type(value) is Stub:
            _check_here(value._session)
        return self._mine(id(value) if type(value) is Stub else reference_key(value), value)

    def _mine(self, key: object, value: Any) -> Mine:
        cap_id = self._host.lasting(key)
        if value is self.get_index() and self._exports.reuse:
            return Mine(0, cap_id)
        return _new(Mine, (self._exports.send(key, value).id, cap_id))  # type: ignore[no-any-return]

    def _home(self, stub: Stub, path: Path) -> Yours:
        if not self._session.holds(stub):
            raise Released("a stub in the value was given up here (dealloc)")
        return Yours(stub._id, path, None, not path)

    def _promise(self, base: Stub | Cell, path: Path) -> Ref | Inline:
        place = id(base), path
        while isinstance(base, Cell) and base.state == PENDING and base.link is not None:
            base = base.link
        if isinstance(base, Stub):
            if base._session is self._session:
                return self._home(base, path)
        elif base.session is self._session and base.import_id and base.state in (PENDING, HELD):
            base.used = True
            return Yours(base.import_id, path)

        _check_here(base._session if isinstance(base, Stub) else base.session)
        cell = as_cell(base, path)
        if cell.state == FULFILLED:  # rule 7: never as an id that we have released
            return Inline(cell.value)
        if path:
            self.reads[place] = cell
        return Promised(self._exports.send(id(cell), cell).id)

    def announced(self, value: Any) -> Any:
        """A copy of what was sent, with what its paths were announced as in the place of the paths:
        what goes through them from now on goes that way (rule 5)."""
        if type(value) is Promise:
            cell = self.reads.get((id(value._base), value._path))
            return value if cell is None else Promise(cast(Any, cell.session), cell, ())
        plain = copied(value)
        if isinstance(plain, dict):
            return {key: self.announced(item) for key, item in plain.items()}
        if isinstance(plain, (list, tuple)):
            return [self.announced(item) for item in plain]
        return value

    def from_ref(self, ref: Ref) -> Any:
        """What a reference in a payload stands for; a `Call` is a read that is yet to be made.

        Raises:
            RemoteProtocolError: it names what cannot be.
        """
        if isinstance(ref, Mine):
            if ref.cap_id is not None:
                return self._lasting(ref.id, ref.cap_id)
            if ref.id == 0:
                return self._session.index
            return self._imports.receive(ref.id, self._make_stub, Stub)
        if isinstance(ref, Promised):
            return self._imports.receive(ref.id, self._promised, Cell)

        target, path = self.found(ref.id, ref.path)
        if not path and ref.args is None:
            return target
        kwargs: dict[str, Any] | None = None if ref.args is None else {}
        return Call(self._session, target, path, ref.args, kwargs, Cell(self._session))

    def found(self, id: Any, path: Path) -> tuple[Any, Path]:
        """What the other side means by a path on `id`: where to begin, and the steps from there.

        Raises:
            RemoteProtocolError: never issued, or released.
        """
        target = self.exported(id)
        if path and self.resolved_paths:
            cell, steps = self.resolved_paths.find(id, path)
            if cell is not None:
                return cell, path[steps:]
        return target, path

    def is_promise(self, id: int) -> bool:
        """Is this id of ours an answer or a promise, and no object?"""
        return isinstance(self.exported(id), Cell)

    def as_resolved(self, id: int, value: Any) -> Any:
        """The value that `id` is about to have over there, with what stands for its paths already
        in their place: calls by them go there, so it must not be announced as anything else."""
        paths = self.resolved_paths.under(id)
        if paths is None:
            return value
        kept = {item.reply for item in self._session.kept if isinstance(item, Call)}
        value = _replaced(value, paths, kept)  # a read that is kept has not come by here yet
        self._exports.revise(id, value)
        return value

    def _lasting(self, id: int, cap_id: str) -> Stub:
        """The stub of what is registered over there: the one that was reconstructed, if it was."""
        known = self.named(cap_id)
        stub: Stub
        if id == 0:
            stub = self._session.index
        elif known is None:
            stub = self._imports.receive(id, self._make_stub, Stub)
        else:
            stub = self._imports.receive(id, lambda _: known, Stub)
            self.other_ids.setdefault(stub, set()).add(id)
        self.name(stub, cap_id)
        return stub

    def name(self, stub: Stub, cap_id: str) -> None:
        """This is the stub for that cap_id."""
        if stub._cap_id is not None and stub._cap_id != cap_id:
            self._named.pop(stub._cap_id, None)
        stub._cap_id = cap_id
        self._named[cap_id] = stub

    def named(self, cap_id: str) -> Stub | None:
        """The stub that we hold for a cap_id on this connection, if there is one."""
        stub = self._named.get(cap_id)
        return None if stub is None or not self._session.holds(stub) else stub

    def _promised(self, id: int) -> Cell:
        cell = Cell(self._session, id)
        cell.pulled = PULLED  # it is resolved unasked
        return cell

    def exported(self, id: Any) -> Any:
        """The object, promise or answer that the other side means by `id`.

        Raises:
            RemoteProtocolError: never issued, or released.
        """
        entry = self._exports.find(id)
        if entry.id == 0:
            return self.get_index()
        return entry.value if isinstance(entry, Export) else entry

    def reconstructed(self, cap_id: str) -> Any:
        """What the other side means by a cap_id; for nothing, a promise that has failed."""
        try:
            return self._host.find(cap_id)
        except Unknown as error:
            nothing = Cell(self._session)
            nothing.reject(LookupError(str(error)))
            return nothing

    def clear(self) -> None:
        """The session is over."""
        self._named.clear()
        self.resolved_paths.clear()

    def localize(self, values: list[Any]) -> tuple[list[Any], list[Hole]]:
        """A copy as the wire would have made it, and where promises stand in it.

        What turns out to be called on this side passes by the same rules as what crosses.

        Raises:
            CannotPass: it would not have crossed either.
        """
        kept: list[Any] = []

        def keep(value: Any) -> Ref | Inline:
            plain = copied(value)
            if plain is not value:
                return Inline(plain)
            if not isinstance(value, FAR):
                reference_key(value)
            kept.append(value)
            return Mine(-len(kept))

        def take(ref: Ref) -> Any:
            value = kept[-ref.id - 1]
            return as_cell(value._base, value._path) if type(value) is Promise else value

        copy, marked = self._codec.copy(values, keep)
        return copy, Payload(copy, take).holes if marked else []


def _replaced(value: Any, paths: PathNode, but: Container[Cell | None]) -> Any:
    """A copy of plain data with these in the place of what stood there, `but` for some."""
    cell = paths.cell
    if cell is not None and cell not in but:
        return Promise(cast(Any, cell.session), cell, ())
    plain = copied(value)
    if isinstance(plain, dict):
        copy: Any = dict(plain)
    elif isinstance(plain, (list, tuple)):
        copy = list(plain)
    else:
        return value
    for step, node in paths.steps.items():
        with contextlib.suppress(LookupError, TypeError):
            copy[step] = _replaced(step_into(copy, step), node, but)
    return copy


def _check_here(session: Any) -> None:
    """Raises `CannotPass` for a reference of a connection that lives elsewhere."""
    if not session.is_here():
        raise CannotPass(
            "a reference of a connection in another thread or event loop: pass its value, or a "
            "function that uses peer.submit"
        )


def as_cell(base: Stub | Cell, path: Path) -> Cell:
    """The cell behind a promise; a path is read for it."""
    if isinstance(base, Cell) and not path:
        return base
    session = base._session if isinstance(base, Stub) else base.session
    cell: Cell = session.call(base, path, None, None)._base
    return cell
