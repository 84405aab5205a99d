"""The tables of a session: ids, counts, release, rollback. References and objects, never bytes.

Counting (rule 1): sent = received + references in flight + releases in flight. Each occurrence of
a `mine` or a `promise` in a payload counts 1. It is committed when the message is encoded whole,
and rolled back otherwise. At 0 the entry is gone.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from ._cap_ids import redacted
from ._cell import FULFILLED, PULLED, REJECTED, UNDECIDED, Answer, Call, Cell
from ._errors import LimitExceeded, RemoteProtocolError
from ._messages import CALL, Path, Step, Yours
from ._stub import Stub

trace: Callable[[Any, int], None] | None = None
"""Told of each new entry, its table and its id, while leaks are hunted."""


class Import(weakref.ref[Any]):
    """An entry of the import table: a weak reference to the stub or the cell that we hold.

    The collector calls back with this very object, so it is its own note (rule 3): stale unless it
    is still the table's entry.
    """

    __slots__ = ("id", "received")

    id: int
    received: int


class ImportTable:
    """What we hold of theirs: objects and promises (ids they chose), questions (ids we chose)."""

    def __init__(self, note: Callable[[Import], None], *, gapless: bool = True) -> None:
        self._note = note
        self.gapless = gapless
        self.entries: dict[int, Import] = {}
        self.last_question = 0
        self._lowest = 0

    def __len__(self) -> int:
        return len(self.entries)

    def pin(self, index: Stub) -> None:
        """Enter the other side's index, which is never released."""
        self._enter(0, index, 0)

    def add_question(self, cell: Cell) -> Import:
        """Enter the question of a call that has been encoded, under the next positive id."""
        self.last_question = cell.import_id = self.last_question + 1
        return self.enter_question(cell)

    def enter_question(self, cell: Cell) -> Import:
        """The same under an id that was taken before."""
        id = cell.import_id
        self.entries[id] = entry = Import(cell, self._note)
        entry.id = id
        entry.received = 1
        if trace is not None:
            trace(self, id)
        return entry

    def receive(self, id: int, make: Callable[[int], Stub | Cell], kind: type) -> Any:
        """One occurrence of a reference: the one stub or cell that stands for it here.

        Raises:
            RemoteProtocolError: an id that the other side cannot have chosen.
        """
        entry = self.entries.get(id)
        if entry is not None and (held := entry()) is not None:
            if type(held) is not kind:
                raise RemoteProtocolError(f"id {id} came as an object and as a promise")
            entry.received += 1
            return held

        new = self._lowest - 1
        if id == new:
            self._lowest = id
        elif id >= 0 or (id < new and self.gapless):
            raise RemoteProtocolError(f"id {id} where a new reference takes {new}")
        else:
            self._lowest = min(self._lowest, id)
        made = make(id)
        self._enter(id, made, 1 if entry is None else entry.received + 1)
        return made

    def _enter(self, id: int, held: Stub | Cell, received: int) -> Import:
        entry = Import(held, self._note)
        entry.id = id
        entry.received = received
        self.entries[id] = entry
        if trace is not None:
            trace(self, id)
        return entry

    def adopt(self, stub: Stub) -> None:
        """Let a question belong to this stub, which stands for its answer, instead of a cell."""
        self._enter(stub._id, stub, 1)

    def was_issued(self, id: Any) -> bool:
        """Did this id ever stand for a question of ours, or a reference of theirs?"""
        return type(id) is int and id != 0 and self._lowest <= id <= self.last_question

    def clear(self) -> list[Any]:
        """The session is over: what was held."""
        held = [entry() for entry in self.entries.values()]
        self.entries.clear()
        return held


class Export:
    """An entry of the export table under an id that we chose: an object, or a promise's cell."""

    __slots__ = ("announced", "id", "key", "sent", "value")

    def __init__(self, id: int, key: object, value: Any) -> None:
        self.id = id
        self.key = key
        self.value = value
        self.sent = 0
        self.announced = False


Running = list[Any]
Done = tuple[Any, int]
"""The answer of a usual call (`Incoming._usual_call`): first its function, target and message, and
the `Answer` that it has become, or None, or `QUEUED`; then its value, and `pulled` if that was
sent. Most are not named before they are released, and need be no more than this; one that is
becomes an `Answer` (`ExportTable.find`)."""
QUEUED = object()
"""It waits for its start."""


class ExportTable:
    """What they hold of ours: objects and promises (ids we chose), answers (ids they chose)."""

    def __init__(self, session: Any, max_exports: int, *, reuse: bool = True) -> None:
        self._session = session
        self.max = max_exports
        self.reuse = reuse
        self.entries: dict[int, Export | Answer | Running | Done] = {}
        self._by_key: dict[object, Export] = {}
        self.last_answer = 0
        self.last_export = 0
        self.uncommitted: list[Export] = []
        self.entries[0] = Export(0, None, None)  # the index, pinned; its value is the host's

    def __len__(self) -> int:
        return len(self.entries)

    def values(self) -> list[Any]:
        """What stands behind the entries: objects, cells of promises, what answers have come to."""
        entries = list(self.entries.values())
        done = [entry[0] for entry in entries if isinstance(entry, tuple)]
        return done + [entry.value for entry in entries if isinstance(entry, (Export, Answer))]

    def add_answer(self) -> Answer:
        """Enter the answer of a call that has come, under the next positive id.

        Raises:
            RemoteProtocolError: the other side calls and never releases.
        """
        if len(self.entries) >= self.max:
            raise RemoteProtocolError(
                f"more than {self.max} answers and references held (Limits.max_exports)"
            )
        self.last_answer += 1
        answer = Answer(self._session, self.last_answer)
        self.entries[self.last_answer] = answer
        if trace is not None:
            trace(self, answer.id)
        return answer

    def find(self, id: Any) -> Export | Answer:
        """The entry of an id that came in.

        Raises:
            RemoteProtocolError: never issued, or released: the two sides do not count alike.
        """
        entry = self.entries.get(id) if type(id) is int else None
        if entry is None:
            raise RemoteProtocolError(
                f"id {redacted(id)!r}, which was never issued, or was released"
            )
        if isinstance(entry, (tuple, list)):
            entry = self.entries[id] = self.in_full(id, entry)
        return entry

    def in_full(self, id: int, entry: Running | Done) -> Answer:
        """The answer that `entry` stands for."""
        if isinstance(entry, list) and type(entry[3]) is Answer:
            return entry[3]
        answer = Answer(self._session, id)
        if isinstance(entry, tuple):
            answer.state = FULFILLED
            answer.value, answer.pulled = entry
        else:
            _, target, (word, _, path, args), queued = entry
            answer.pulled = PULLED if word == CALL else UNDECIDED
            answer.task = call = Call(self._session, target, tuple(path), args, {}, answer)
            call.started = queued is None
            entry[3] = answer
        return answer

    def revise(self, id: int, value: Any) -> None:
        """From now on `id`, an answer or a promise, leads to this, which is what was sent."""
        entry = self.entries.get(id)
        if isinstance(entry, (tuple, list)):
            self.entries[id] = value, PULLED
        elif entry is not None:
            entry.value = value

    def send(self, key: object, value: Any) -> Export:
        """One occurrence in the message that is being encoded. If that goes out, take it out of
        `uncommitted`; else `rollback`.

        The message begins at what `uncommitted` holds before; encoding may nest.

        Raises:
            LimitExceeded: the other side holds too much of ours already.
        """
        entry = self._by_key.get(key)
        if entry is None:
            if len(self.entries) >= self.max:
                raise LimitExceeded(
                    f"the other side holds {self.max} of our references (Limits.max_exports): "
                    "does it keep stubs that it could drop?"
                )
            self.last_export -= 1
            entry = Export(self.last_export, key, value)
            self.entries[entry.id] = entry
            if self.reuse:
                self._by_key[key] = entry
            if trace is not None:
                trace(self, entry.id)
        entry.sent += 1
        self.uncommitted.append(entry)
        return entry

    def rollback(self, mark: int) -> None:
        """The message could not be encoded: nothing was sent."""
        while len(self.uncommitted) > mark:
            entry = self.uncommitted.pop()
            entry.sent -= 1
            if entry.sent == 0:
                self._forget(entry)
                if entry.id == self.last_export:
                    self.last_export += 1

    def release(self, id: Any, n: Any) -> Export | Answer | None:
        """The other side gives `n` occurrences up. Returns the entry if that was the last.

        Raises:
            RemoteProtocolError: it does not hold so many.
        """
        entry = self.entries.get(id)
        if type(entry) is not Export:
            entry = self.find(id)
        if type(n) is not int or not 1 <= n <= entry.sent or id == 0:
            raise RemoteProtocolError(
                f"release of id {id} by {n!r}, of which {entry.sent} were sent"
            )
        entry.sent -= n
        if entry.sent:
            return None
        self._forget(entry)
        return entry

    def give_up(self, export: Export) -> None:
        """The same, where it is known that it holds but one."""
        export.sent = 0
        del self.entries[export.id]
        if self._by_key.get(export.key) is export:
            del self._by_key[export.key]

    def told(self, entry: Export) -> None:
        """The outcome of a promise has been sent: who gets the promise anew, gets a new id."""
        self._by_key.pop(entry.key, None)

    def release_answers(self, ids: list[Any]) -> list[Answer]:
        """The other side gives answers up; each is held once. Returns those that are errors.

        Raises:
            RemoteProtocolError: it does not hold one of them.
        """
        rejected: list[Answer] = []
        for id in ids:
            if type(id) is not int or id < 1:
                raise RemoteProtocolError(f"release of id {id!r} as an answer")
            entry = self.entries.pop(id, None)
            if entry is None:
                raise RemoteProtocolError(f"id {id}, which was never issued, or was released")
            if type(entry) is Answer and entry.state == REJECTED:
                rejected.append(entry)
        return rejected

    def _forget(self, entry: Export | Answer) -> None:
        del self.entries[entry.id]
        if type(entry) is Export and self._by_key.get(entry.key) is entry:
            del self._by_key[entry.key]

    def clear(self) -> None:
        """The session is over: let go of everything."""
        self.entries.clear()
        self._by_key.clear()
        self.uncommitted.clear()


class PathTable:
    """What stands for the paths on what is ours that promises of the other side have come to.

    What is called through such a promise comes by the path, until our ping has come through. It
    goes to what was read by that path, and does not seek its own way, which may lead over the
    other side again: what is called on the value after the pong would overtake it (rule 5).
    What begins at an answer or a promise stays as long as that: it is what the path was read as.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._roots: dict[int, PathNode] = {}
        self._of: dict[int, list[Yours]] = {}
        self._lasting: Counter[int] = Counter()

    def __bool__(self) -> bool:
        return bool(self._roots)

    def __contains__(self, promise: int) -> bool:
        return promise in self._of

    def add(
        self, promise: int, paths: list[tuple[Yours, Cell]], lasting: Callable[[int], bool]
    ) -> None:
        """The promise under this id has come to these. `lasting` tells of an id whether what
        begins there stays.

        Raises:
            RemoteProtocolError: the other side names ever more paths on what it does not release.
        """
        self._of[promise] = [ref for ref, _ in paths if not lasting(ref.id)]
        for ref, cell in paths:
            node = self._roots.setdefault(ref.id, PathNode())
            for step in ref.path:
                node = node.steps.setdefault(step, PathNode())
            if node.cell is None and lasting(ref.id):
                self._lasting[ref.id] += 1
            node.cell = cell
            node.users += 1
        if self._lasting.total() > self._most:
            raise RemoteProtocolError(
                f"more than {self._most} paths on answers not yet released (Limits.max_exports)"
            )

    def forget(self, promise: int) -> None:
        """Nothing is called any more that must come in order with what came by its paths."""
        for ref in self._of.pop(promise, ()):
            if ref.id not in self._roots:
                continue
            nodes = [self._roots[ref.id]]
            for step in ref.path:
                nodes.append(nodes[-1].steps[step])
            nodes[-1].users -= 1
            for step in reversed(ref.path):
                node = nodes.pop()
                if node.users:
                    break
                node.cell = None
                if not node.steps:
                    del nodes[-1].steps[step]
            if not self._roots[ref.id].steps:
                del self._roots[ref.id]

    def drop(self, id: int) -> None:
        """The other side gives `id` up, and with it the paths that begin there."""
        self._roots.pop(id, None)
        del self._lasting[id]

    def under(self, id: int) -> PathNode | None:
        """Those that begin at `id`."""
        return self._roots.get(id)

    def find(self, id: int, path: Path) -> tuple[Cell | None, int]:
        """What stands for the longest beginning of `path` that is known, and its length."""
        found: tuple[Cell | None, int] = None, 0
        node = self._roots.get(id)
        for length, step in enumerate(path, 1):
            node = None if node is None else node.steps.get(step)
            if node is None:
                break
            if node.cell is not None:
                found = node.cell, length
        return found

    def clear(self) -> None:
        """The session is over."""
        self._roots.clear()
        self._of.clear()
        self._lasting.clear()


class PathNode:
    """A step of such paths: what stands for those that end here, and for how many promises."""

    __slots__ = ("cell", "steps", "users")

    def __init__(self) -> None:
        self.cell: Cell | None = None
        self.users = 0
        self.steps: dict[Step, PathNode] = {}
