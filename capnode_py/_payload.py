"""What has arrived: references swapped for what they stand for, promises waited for.

Only payloads of a marked frame are walked, once. The walk counts every reference that it meets
(rule 1), also those beside and inside a `Bad`, which rejects the call afterwards.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from ._cell import REJECTED, Call, Cell, Waiting
from ._errors import CapnodeError, RemoteProtocolError
from ._messages import Bad, InSet, Mine, Promised, Recording, Ref, Slot, Yours, as_set

_REFS = (Mine, Promised, Yours)

Hole = tuple[Any, Any, Cell]
"""A container, the key or position in it, and the cell whose value belongs there."""


class Payload:
    """One walk over `root`, a list, whose items and content are swapped in place.

    Attributes:
        holes: where promises stand, in order.
        paths: those that were passed home, and what stands for the value of each.
        reads: property reads to make for them; and calls, likewise.
        ours: it names something in our own tables (rule 5).
        bad: the reason of the first value that could not be decoded, or None.
    """

    __slots__ = ("_from_ref", "bad", "holes", "ours", "paths", "reads", "root")

    def __init__(self, root: list[Any], from_ref: Callable[[Ref], Any]) -> None:
        self.root = root
        self.holes: list[Hole] = []
        self.paths: list[tuple[Yours, Cell]] = []
        self.reads: list[Call] = []
        self.ours = False
        self.bad: str | None = None
        self._from_ref = from_ref
        self._items(root, enumerate(root))

    def _items(self, container: Any, items: Any) -> None:
        for key, item in items:
            kind = type(item)
            if kind is list:
                self._items(item, enumerate(item))
            elif kind is dict:
                self._items(item, item.items())
            elif kind in _REFS:
                self._reference(container, key, item)
            elif kind is InSet:
                container[key] = self._set(item)
            elif kind is Recording and container is self.root:
                self._recording(item)
            elif kind is Slot or kind is Recording:
                self._bad("a slot or a function for map where none can stand", list(item))
            elif kind is Bad:
                self._bad(item.reason, item.content)

    def _reference(self, container: Any, key: Any, ref: Ref) -> None:
        inner: list[Hole] = []
        if type(ref) is Yours:
            self.ours = True
            if ref.args is not None:  # a call, which waits for the promises in its own arguments
                before = len(self.holes)
                if type(ref.args) is Recording:
                    self._recording(ref.args)
                else:
                    self._items(ref.args, enumerate(ref.args))
                inner = self.holes[before:]
                del self.holes[before:]
        found = self._from_ref(ref)
        if type(found) is Call:
            found.holes = inner
            self.reads.append(found)
            found = found.reply
        container[key] = found
        if isinstance(found, Cell):
            if type(ref) is Yours and ref.path and ref.args is None:
                self.paths.append((ref, found))
            self.holes.append((container, key, found))

    def _set(self, members: InSet) -> set[Any]:
        found = list(members.members)
        before = len(self.holes)
        self._items(found, enumerate(found))
        if len(self.holes) > before:
            del self.holes[before:]
            self.bad = self.bad or "a promise in a set; await it before, or pass a list"
            return set()
        try:
            return as_set(found)
        except (TypeError, ValueError) as error:
            self.bad = self.bad or f"a set that cannot be built ({error})"
            return set()

    def _recording(self, recording: Recording) -> None:
        """Its captures are the references of the message. Nobody waits for those that are promises:
        they are called through, and passed on, as such."""
        before = len(self.holes)
        self._items(recording.captures, enumerate(recording.captures))
        del self.holes[before:]
        for instruction in recording.instructions:
            self._instruction(instruction)

    def _instruction(self, item: Any) -> None:
        kind = type(item)
        if kind is list:
            for each in item:
                self._instruction(each)
        elif kind is dict:
            self._instruction(list(item.values()))
        elif kind is Slot:
            self._instruction([item.args, item.kwargs])
        elif kind is Recording:
            self._instruction([*item.captures, *item.instructions])
        elif kind in _REFS or kind is InSet or kind is Bad:
            self._bad("a function for map, with a reference beside its captures", [item])

    def _bad(self, reason: str, content: Any) -> None:
        self.bad = self.bad or reason
        content = _thawed(content)
        self._items(content, enumerate(content))


def _thawed(content: Any) -> list[Any]:
    """The content of a refused tag as a list that can be walked and written to."""
    return [_thaw(content)]


def _thaw(item: Any) -> Any:
    kind = type(item)
    if kind is tuple or kind is list or kind is frozenset or kind is Slot or kind is Recording:
        return [_thaw(member) for member in item]
    if isinstance(item, Mapping):
        return {key: _thaw(value) for key, value in item.items()}
    return item


class Holes:
    """Waits until every promise in a payload has its value, and fills it in.

    Args:
        localize: copies the value of a promise that was made here, as the wire would have; gives
            the copy in a list, and its own holes.
        done: called once, with None or with the error of the first promise that failed.
        cell: what then has its value, or runs to it; None for a one-way call.

    Attributes:
        ours: one of the values names something in our own tables (rule 5).
    """

    __slots__ = ("_cell", "_done", "_left", "_localize", "_watched", "ours")

    def __init__(
        self,
        localize: Callable[[list[Any]], tuple[list[Any], list[Hole]]],
        done: Callable[[BaseException | None], None],
        cell: Cell | None,
    ) -> None:
        # Weakly: a promise that is dropped meanwhile is released at once.
        self._cell: Callable[[], Cell | None] = _nobody if cell is None else weakref.ref(cell)
        self._localize = localize
        self._done: Callable[[BaseException | None], None] | None = done
        self._left = 0
        self._watched: list[tuple[Cell, _Fill]] = []
        self.ours = False

    def wait(self, holes: list[Hole]) -> None:
        """Wait for these; `done` may be called before this returns."""
        self._left += 1
        self._watch(holes)
        self._one_less()

    def abandon(self) -> list[Cell]:
        """Wait no more; `done` is not called. Returns what was waited for."""
        self._done = None
        watched, self._watched = self._watched, []
        for cell, watcher in watched:
            cell.unwatch(watcher)
        return [cell for cell, _ in watched]

    def _watch(self, holes: list[Hole]) -> None:
        self._left += len(holes)
        waiting = self._cell()
        circle = waiting.dependents() if waiting is not None else ()
        for container, key, cell in holes:
            if cell in circle:
                self._finish(CapnodeError("a promise that waits for itself"))
                return
            cell.pull()
            watcher = _Fill(self, container, key)
            self._watched.append((cell, watcher))
            cell.watch(watcher)

    def fill(self, container: Any, key: Any, cell: Cell) -> None:
        if self._done is None:
            return

        self.ours = self.ours or cell.ours
        if cell.state == REJECTED:
            self._finish(cell.value)
        elif cell.import_id:
            container[key] = cell.value
            self._one_less()
        else:
            try:
                copy, holes = self._localize([cell.value])
            except Exception as error:  # noqa: BLE001 - it would not have crossed either
                self._finish(error)
            else:
                container[key] = copy[0]
                self._watch(
                    [(container, key, c) if box is copy else (box, k, c) for box, k, c in holes]
                )
                self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            self._finish(None)

    def _finish(self, error: BaseException | None) -> None:
        done = self._done
        if done is not None:
            self.abandon()
            done(error)


class _Fill(Waiting):
    """The watcher of a promise in a payload."""

    __slots__ = ("_container", "_holes", "_key")

    def __init__(self, holes: Holes, container: Any, key: Any) -> None:
        self._holes = holes
        self._container = container
        self._key = key
        self.cell = holes._cell

    def __call__(self, cell: Cell, /) -> None:
        self._holes.fill(self._container, self._key, cell)


def _nobody() -> None:
    return None


def bad_payload(reason: str) -> RemoteProtocolError:
    """The error that a call with such a payload is rejected with."""
    return RemoteProtocolError(f"the other side sent a value that cannot be decoded: {reason}")


def unsettled(value: Any, promise_base: Callable[[Any], Cell | None]) -> list[Cell]:
    """The cells inside plain data that are not settled yet."""
    found: list[Cell] = []
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo.extend(item)
        else:
            cell = item if isinstance(item, Cell) else promise_base(item)
            if cell is not None and not cell.settled:
                found.append(cell)
    return found
