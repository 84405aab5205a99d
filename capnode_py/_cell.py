"""A value that is not here yet, and a call on its way to where it runs.

=========  ==============================  =============================================
state      calls through the cell          leaves it by
=========  ==============================  =============================================
PENDING    go to its `link`, or down the   `fulfil`, `reject`, `hold`
           wire (`import_id`), or queue
HELD       queue                           `fulfil` (the pong has come), `reject`
FULFILLED  go to the value                 never
REJECTED   fail with the same error        never
=========  ==============================  =============================================

HELD is rule 5 of ``docs/protocol.md``: the value is known, but calls made through the promise may
still be on their way to it the long way round, and no later call may overtake them.

The queue is emptied in order before a watcher is told, and a call that is made meanwhile joins it.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, Protocol

from ._errors import CapnodeError
from ._messages import Path

PENDING: Final = 0
HELD: Final = 1
FULFILLED: Final = 2
REJECTED: Final = 3
STATES = ("pending", "pending", "fulfilled", "rejected")
"""The states as a user is told of them."""

# What is known of the far side's duty to send the value of a question (`Cell.pulled`).
UNDECIDED: Final = 0  # the word of the call is still open
PULLED: Final = 1  # wanted, and said
NOT_YET: Final = 2  # not wanted, and the word of the call is still open
PUSHED: Final = 3  # the call has left as a push


class Router(Protocol):
    """What a cell knows of a session."""

    def route(self, item: Call | Position, /) -> None: ...
    def forward_through(self, cell: Cell, call: Call, /) -> None: ...
    def pull(self, cell: Cell, /) -> None: ...
    def cancel(self, cell: Cell, /) -> None: ...
    def ping(self, passed: Callable[[], None], target: int | None = None, /) -> None: ...
    def answer(self, answer: Answer, /) -> None: ...
    def keep(self, answer: Answer, /) -> None: ...
    def call(self, base: Any, path: Path, args: Any, kwargs: Any, /) -> Any: ...


class Call:
    """One call on its way: queued, kept, or started.

    Attributes:
        session: whose driver runs it, if it ends at a local object.
        target: what it is made on: a local value, a stub, a promise or a cell.
        path: the names from there.
        args, kwargs: the values; `args` is None for a property read.
        holes: promises in the arguments that must settle before it can start, or None.
        waiting: what waits for those promises (`Holes`), or None.
        reply: the cell of its answer; None for a one-way call.
        started: it was given to user code.
        cancelled: its answer is not wanted any more.
        handle: the driver's means to cancel it, while it runs.
        size: the bytes it is kept for (rule 13).
    """

    __slots__ = (
        "args",
        "cancelled",
        "handle",
        "holes",
        "kwargs",
        "path",
        "reply",
        "session",
        "size",
        "started",
        "target",
        "waiting",
    )

    def __init__(
        self,
        session: Router,
        target: Any,
        path: Path,
        args: Any,
        kwargs: Any,
        reply: Cell | None,
        holes: Any = None,
    ) -> None:
        self.session = session
        self.target = target
        self.path = path
        self.args = args
        self.kwargs = kwargs
        self.reply = reply
        self.holes = holes
        self.waiting: Any = None
        self.started = False
        self.cancelled = False
        self.handle: Any = None
        self.size = 0

    def __repr__(self) -> str:
        if isinstance(self.target, FunctionType) and not self.path:
            return f"<Call {self.target.__qualname__}>"
        return f"<Call {'.'.join(map(str, self.path)) or 'it'} on {type(self.target).__name__}>"


class Position:
    """A targeted ping on its way: it queues with the calls, and `passed` tells that it came by."""

    __slots__ = ("passed", "session", "size", "target")

    def __init__(self, session: Router, target: Any, passed: Callable[[], None]) -> None:
        self.session = session
        self.target = target
        self.passed = passed
        self.size = 0


Watcher = Callable[["Cell"], object]


class Cell:
    """See the table above.

    Attributes:
        session: the session that it belongs to.
        import_id: its id in that session's import table; 0 if its value is made here.
        link: the cell that its value will come from.
        value: the value, or the exception.
        used: calls were made through it, or it was passed on (rule 5).
        ours: its value names something in our own tables (rule 5).
        pulled: see above.
        awaiting: how many tasks wait for it.
        task: the call whose outcome it will be, if that runs here.
        path: what was called, for errors.
        withdrawn: a cancel has come, but something else depends on it (rule 9).
    """

    __slots__ = (
        "__weakref__",
        "awaiting",
        "import_id",
        "link",
        "ours",
        "path",
        "pulled",
        "queue",
        "session",
        "state",
        "task",
        "used",
        "value",
        "watchers",
        "withdrawn",
    )

    def __init__(self, session: Router, import_id: int = 0, path: Path = ()) -> None:
        self.session = session
        self.import_id = import_id
        self.state: int = PENDING
        self.value: Any = None
        self.link: Cell | None = None
        self.queue: deque[Call | Position] | None = None
        self.watchers: list[Watcher] | None = None
        self.task: Call | None = None
        self.path = path
        self.pulled: int = UNDECIDED
        self.awaiting = 0
        self.used = False
        self.ours = False
        self.withdrawn = False

    @property
    def settled(self) -> bool:
        return self.state >= FULFILLED

    @property
    def wanted(self) -> bool:
        """Is somebody to be told the value?"""
        return self.pulled == PULLED

    def enqueue(self, item: Call | Position) -> None:
        """Let `item` wait for the value."""
        if self.queue is None:
            self.queue = deque()
        self.queue.append(item)

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher(cell)` once it is settled: now, if it is."""
        if self.state >= FULFILLED:
            watcher(self)
        elif self.watchers is None:
            self.watchers = [watcher]
        else:
            self.watchers.append(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        if self.watchers is not None and watcher in self.watchers:
            self.watchers.remove(watcher)

    def has_dependents(self) -> bool:
        """Does anything need it: calls made through it, promises that became it? Not the tasks that
        await it, which are the interest that a cancel withdraws."""
        watching = [
            watcher
            for watcher in self.watchers or ()
            if not isinstance(watcher, _Follower) or watcher.cell() is not None
        ]
        if len(watching) > self.awaiting:
            return True
        return any(not getattr(item, "cancelled", False) for item in self.queue or ())

    def dependents(self) -> set[Cell]:
        """Itself, and all on this side whose value waits for its own, by way of anything."""
        found: set[Cell] = set()
        todo: list[Cell] = [self]
        while todo:
            cell = todo.pop()
            if cell not in found:
                found.add(cell)
                calls = (item for item in cell.queue or () if isinstance(item, Call))
                others = (item for item in cell.watchers or () if isinstance(item, Waiting))
                waiting = [*(call.reply for call in calls), *(other.cell() for other in others)]
                todo += [each for each in waiting if each is not None]
        return found

    def unlink(self) -> Cell:
        """Stop following the cell that its value would have come from."""
        link, self.link = self.link, None
        if link is None:
            raise ValueError("it follows none")
        link.unwatch(_Follower(self))
        return link

    def pull(self) -> None:
        """The value is wanted here."""
        if self.state != PENDING:
            return
        if self.link is not None:
            self.pulled = PULLED
            self.link.pull()
        else:
            if self.pulled == PUSHED:  # else the word of its call is still open, and will say so
                self.session.pull(self)
            self.pulled = PULLED

    def hold(self, value: Any) -> None:
        """The value has come, but nobody may use it before the pong."""
        self.state = HELD
        self.value = value

    def fulfil(self, value: Any) -> None:
        """The value has come. Does nothing if the cell is settled already."""
        if self.state < FULFILLED:
            self.settle(FULFILLED, value)

    def reject(self, error: BaseException) -> None:
        """The value will never come. Does nothing if the cell is settled already."""
        if self.state < FULFILLED:
            self.settle(REJECTED, error)

    def follow(self, other: Cell) -> None:
        """Take the outcome of `other`; until then calls through this cell go to it."""
        if self.state >= FULFILLED:
            return
        if other in self.dependents():
            self.reject(CapnodeError("a promise that waits for itself"))
            return

        self.task = None
        if other.state < FULFILLED:
            self.link = other
            if self.wanted:
                other.pull()
            queue, self.queue = self.queue, None
            for item in queue or ():
                item.target = other
                item.session.route(item)
        other.watch(_Follower(self))

    def followed(self, other: Cell) -> None:
        """`other`, which this cell follows, is settled."""
        if self.state < FULFILLED:
            self.settle(other.state, other.value)

    def settle(self, state: int, value: Any) -> None:
        """It is PENDING or HELD, and is now FULFILLED or REJECTED."""
        self.value = value
        self.task = None
        if self.queue is not None:
            self._empty_queue(state)
        self.link = None
        self.state = state
        watchers = self.watchers
        if watchers is not None:
            self.watchers = None
            for watcher in watchers:
                watcher(self)

    def _empty_queue(self, state: int) -> None:
        """Send the queue on, in order, while new calls still join it at its end."""
        self.state = HELD
        settled = Cell(self.session)
        settled.state = state
        settled.value = self.value
        while self.queue:
            item = self.queue.popleft()
            item.target = settled
            item.session.route(item)
        self.queue = None


class Echo(Cell):
    """The question of a value that is only read back: there is nothing to release."""

    __slots__ = ()


class Waiting:
    """A watcher on behalf of a cell, whose value waits for the one that is watched.

    It holds it weakly: a promise that nobody here holds any more lets go of those that it waited
    for at once, without waiting for a collection.
    """

    __slots__ = ("cell",)

    cell: Callable[[], Cell | None]

    def __call__(self, watched: Cell, /) -> None:
        raise NotImplementedError


class _Follower(Waiting):
    """The watcher of a cell that follows another."""

    __slots__ = ()

    def __init__(self, cell: Cell) -> None:
        self.cell = weakref.ref(cell)

    def __call__(self, other: Cell, /) -> None:
        cell = self.cell()
        if cell is not None:
            cell.followed(other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Follower) and other.cell == self.cell

    __hash__ = None  # type: ignore[assignment]


class Answer(Cell):
    """A cell that is an entry of the export table: the far side asked, under the id it chose.

    Its `pulled` says that the other side asked for the value; `needed`, that something here did;
    `failed_here`, that a handler of ours raised its error; `once`, that it is released when it has
    been sent.
    """

    __slots__ = ("failed_here", "id", "needed", "once", "sent")

    def __init__(self, session: Router, id: int) -> None:
        Cell.__init__(self, session)
        self.id = id
        self.sent = 1
        self.needed = False
        self.failed_here = False
        self.once = False

    @property
    def wanted(self) -> bool:
        return self.needed or self.pulled == PULLED

    def pull(self) -> None:
        self.needed = True
        if self.link is not None:
            self.link.pull()

    def settle(self, state: int, value: Any) -> None:
        if self.queue is None and self.watchers is None:  # as for nearly all answers
            self.value = value
            self.task = self.link = None
            self.state = state
        else:
            Cell.settle(self, state, value)
        if self.pulled == PULLED:
            self.session.answer(self)
        elif state == FULFILLED:
            self.session.keep(self)
