"""What the two sides still hold of each other: of which type, and where it was made."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Container, Iterator
from types import FrameType
from typing import Any, Final
from weakref import WeakKeyDictionary

from . import _tables
from ._cell import STATES, Answer, Call, Cell
from ._incoming import Incoming
from ._messages import CALL, PUSH, RESOLVE, SEND, STREAM
from ._outcomes import Outcomes
from ._reach import Facade
from ._session import Session
from ._stub import Stub
from ._tables import Export, ExportTable, Import, ImportTable

_PACKAGE: Final = os.path.dirname(__file__) + os.sep

_sites: WeakKeyDictionary[ImportTable | ExportTable, dict[int, str]] = WeakKeyDictionary()


@contextlib.contextmanager
def trace_references() -> Iterator[None]:
    """Remember, for each reference and call from now on, where in the program it was made, for
    `Peer.leak_report`. It costs some microseconds for each, so it is for hunting leaks.
    """
    before, _tables.trace = _tables.trace, _remember
    try:
        yield
    finally:
        _tables.trace = before


def leak_report(session: Session, known: Container[tuple[str, int]] = ()) -> list[str]:
    """A line for each entry of the two tables but the indexes; none for a quiet connection.

    Args:
        session: whose.
        known: what is left out, of what `entries_of` gave.
    """
    imports, exports = session.imports, session.exports
    return [
        *(
            _line(imports, id, _import(id, entry))
            for id, entry in imports.entries.copy().items()
            if id and ("import", id) not in known
        ),
        *(
            _line(exports, id, _export(exports.find(id)))
            for id in exports.entries.copy()
            if id and ("export", id) not in known
        ),
    ]


def entries_of(session: Session) -> list[tuple[str, int]]:
    """The entries of the two tables but the indexes, by ``"import"`` or ``"export"`` and id."""
    return [
        *(("import", id) for id in session.imports.entries.copy() if id),
        *(("export", id) for id in session.exports.entries.copy() if id),
    ]


def _line(table: ImportTable | ExportTable, id: int, what: str) -> str:
    site = _sites.get(table, {}).get(id, "")
    return f"{what}{site and ', '}{site}"


def _import(id: int, entry: Import) -> str:
    held = entry()
    if isinstance(held, Cell):
        path = ".".join(map(str, held.path))
        return f"question {id}: {path or 'a call'}, {STATES[held.state]}"
    what = "dropped, to be released" if held is None else repr(held)
    return f"import {id}: {what}, received {entry.received} x"


def _export(entry: Export | Answer) -> str:
    if isinstance(entry, Answer):
        return f"answer {entry.id}: {STATES[entry.state]}" + (
            f", {_type(entry.value)}" if entry.value is not None else ""
        )
    if isinstance(entry.value, Cell):
        return f"export {entry.id}: a promise, {STATES[entry.value.state]}, sent {entry.sent} x"
    return f"export {entry.id}: {_type(entry.value)}, sent {entry.sent} x"


def _type(value: Any) -> str:
    """A value by its type; a function by its name; what stands for something else by that."""
    if type(value) is Stub or isinstance(value, Facade):
        return repr(value)
    name = getattr(type(value), "__qualname__", "?")
    what = getattr(value, "__qualname__", None) if callable(value) else None
    return f"{name} {what}" if isinstance(what, str) else name


def _remember(table: ImportTable | ExportTable, id: int) -> None:
    """An entry is made: find out where."""
    sites = _sites.setdefault(table, {})
    if len(sites) > 2 * len(table.entries) + 100:  # most of these are gone
        for gone in [known for known in sites if known not in table.entries]:
            del sites[gone]
    sites[id] = _site(table)


def _site(table: ImportTable | ExportTable) -> str:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code is _FINISH:
            return f"in the result of {frame.f_locals['call']!r}"
        if code is _USUAL:
            _, target, (_, _, path, _), _ = frame.f_locals["running"]
            incoming = frame.f_locals["self"]
            call = Call(incoming._session, target, tuple(path), None, None, None)
            return f"in the result of {call!r}"
        if code is _FRAME:
            return _occasion(frame.f_locals["self"], frame.f_locals["message"], table)
        if not code.co_filename.startswith(_PACKAGE):
            return f"made at {code.co_filename}:{frame.f_lineno}, in {code.co_name}"
        frame = frame.f_back
    return ""


def _occasion(incoming: Incoming, message: list[Any], table: object) -> str:
    """What came in when the entry was made."""
    word = message[0]
    if word in (CALL, PUSH, SEND, STREAM):
        path = ".".join(map(str, message[2]))
        return f"in the call of {path or 'it'}"
    if word == RESOLVE:
        entry = incoming.imports.entries.get(message[1])
        cell = None if entry is None else entry()
        path = ".".join(map(str, cell.path)) if isinstance(cell, Cell) else ""
        site = _sites.get(incoming.imports, {}).get(message[1], "")
        return f"in the answer of {path or 'a call'}" + (site and ", ") + site
    return ""


_FINISH: Final = Outcomes.finish.__code__
_FRAME: Final = Incoming.frame.__code__
_USUAL: Final = Incoming.ran.__code__
