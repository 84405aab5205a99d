"""What leaves: the messages of one turn in one frame, and the releases that ride with it.

A call is encoded when it is made, but its word stays open until its frame is closed (rule: the
pull flag). A promise that by then was called through, passed on or dropped, and not awaited, goes
as a push, so that the value of a promise that only carries a pipeline never crosses; every other
goes as a call, and a plain awaited call is one message each way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from ._cell import PULLED, PUSHED, UNDECIDED, Cell
from ._long import Encoded
from ._messages import PULL, PUSH, Codec, Lone
from ._tables import Import

FRAME_CLOSES_AT = 64 * 1024
"""A frame is closed at this size even in mid-turn, so that the other side can start."""

WAITS_UP_TO = 256 * 1024
"""Releases of plain answers wait for each other until they are worth a message: until the values
that are kept for them take so many bytes, where each counts as itself and `EACH_RELEASE`."""
EACH_RELEASE = 8192

_RELEASES_A_MESSAGE = 1000  # so that a release is a small message, and
_RELEASE_SIZE = 40  # bytes for each in it, so that it is below any limit of the other side


class Outbox:
    """Messages in, frames out.

    Args:
        codec: the dialect.
        wake: asks for a flush at the end of this turn.
        wake_later: asks for one before long, unless something leaves earlier.

    Attributes:
        due: how much speaks for sending the releases that wait; at `WAITS_UP_TO` they go.
        size: the bytes that wait, without releases.
        messages, bytes: what has left.
    """

    def __init__(
        self, codec: Codec, *, wake: Callable[[], None], wake_later: Callable[[], None]
    ) -> None:
        self._codec = codec
        self._pulls_apart = not codec.traits.calls
        self._wake = wake
        self._wake_later = wake_later
        self._lone = b""  # the frame of one message, which is all that waits
        self._lone_question: Import | None = None  # of a call in it
        self._lone_count = 1  # of messages, if it is one of an answer and a release
        self._open: list[Encoded] = []
        self._undecided: list[tuple[int, Import]] = []  # which of `_open` are calls, and of what
        self._closed: list[Encoded] = []
        self._before = 0  # how much of `size` is not in the open frame
        self._full = 0  # at which size that is to be closed, unless the other side takes less
        self._hello = b""
        self._answered: list[int] = []
        self._dropped: dict[int, int] = {}
        self.due = 0
        self.size = 0
        self.messages = 0
        self.bytes = 0
        self.limit(FRAME_CLOSES_AT)

    def limit(self, max_frame: int) -> None:
        """What the other side takes, as its hello has said."""
        self._max_frame = max_frame
        self._most = min(_RELEASES_A_MESSAGE, max_frame // _RELEASE_SIZE)
        self._closes_at = min(FRAME_CLOSES_AT, max_frame + 1)
        self._full = self._before + self._closes_at

    def add(self, message: Encoded, question: Import | None = None) -> None:
        """Append a message; a call comes with its question, whose word is still open."""
        size = self.size
        if not size:
            self._wake()
        elif self._lone:
            self._open_lone()
        self.size = size = size + len(message)
        full = size >= self._full
        if full:
            self._make_room(size - len(message), size)
        if question is not None:
            self._undecided.append((len(self._open), question))
        self._open.append(message)
        if full and size - self._before >= FRAME_CLOSES_AT:
            self._close_frame(size)

    def add_lone(self, frame: bytes, question: Import | None = None, messages: int = 1) -> None:
        """The same for a message that has its frame already, maybe with a release behind it, where
        nothing else waits. What this saves, if nothing else comes before the turn ends, is a list
        of messages, and a frame made of it."""
        self._lone = frame
        self._lone_question = question
        self._lone_count = messages
        self.size = len(frame)
        self._wake()

    def riding(self) -> tuple[Sequence[int], Mapping[int, int]]:
        """The releases that wait: of answers, and of references, with how often."""
        return self._answered, self._dropped

    def rode(self) -> None:
        """They stand behind a message that was made elsewhere."""
        self._answered = []
        self._dropped.clear()
        self.due = 0

    def leave(self) -> bytes | None:
        """The frame to be written now, if that is all; None: `flush` gives what leaves."""
        frame = self._lone
        if not frame or self.due >= WAITS_UP_TO:
            return None
        question = self._lone_question
        if question is not None:
            cell = question()
            if cell is None:
                return None
            if cell.pulled != PULLED:  # not yet awaited: as in `_decide`
                if cell.pulled != UNDECIDED or cell.used:
                    return None
                cell.pulled = PULLED
            self._lone_question = None  # else it would leave a note when the cell is gone
        self._lone = b""
        self.size = 0
        self.messages += self._lone_count
        self.bytes += len(frame)
        return frame

    def _open_lone(self) -> None:
        """It is not alone."""
        if self._lone_count > 1:
            self._closed.append(self._lone)
            self.messages += self._lone_count
            self.bytes += len(self._lone)
            self._lone = b""
            self._before = self.size
            self._full = self._before + self._closes_at
            return
        if self._lone_question is not None:
            self._undecided.append((0, self._lone_question))
            self._lone_question = None
        self._open.append(cast(Lone, self._codec.lone).message(self._lone))
        self._lone = b""

    def _make_room(self, before: int, size: int) -> None:
        """A message that the open frame cannot take opens the next one."""
        if self._open and size - self._before > self._max_frame:
            self._close_frame(before)

    def add_raw(self, data: bytes) -> None:
        """Bytes that are no frame: the hello, which leaves first whatever happens."""
        self._hello = data
        self.bytes += len(data)
        self.size += len(data)
        self._before += len(data)
        self._full += len(data)
        self._wake()

    def release_plain(self, id: int, size: int) -> None:
        """The question is settled, by plain data that came in `size` bytes.

        It may wait for others of its kind: the other side keeps a value for it, and no object.
        What this saves is one message there and one here for each call that is awaited alone.
        """
        if not self._answered:
            self._wake_later()
        self._answered.append(id)
        self.due += size + EACH_RELEASE

    def release_answers(self, ids: list[int]) -> None:
        """The questions are settled, or were dropped."""
        if not self._answered and not self.size:
            self._wake_later()
        self._answered += ids
        self.due = WAITS_UP_TO

    def hurry(self) -> None:
        """The releases that wait leave with the next frame."""
        self.due = WAITS_UP_TO

    def release_reference(self, id: int, n: int) -> None:
        """An object or promise of theirs is not held here any more."""
        if not self._dropped and not self.size:
            self._wake_later()
        self._dropped[id] = self._dropped.get(id, 0) + n
        self.due = WAITS_UP_TO

    def flush(self, *, due: int = 0) -> list[Encoded]:
        """The frames to be written now. Releases come last: earlier messages may name the ids.

        Args:
            due: how much must speak for sending the releases, too.
        """
        if self._lone:
            self._open_lone()
        if self.due >= due and (self._answered or self._dropped):
            self.due = 0
            self._add_releases()
        self.size = 0
        if not self._before:  # nothing but the open frame, as in nearly all turns
            return [self._frame()] if self._open else []

        closed, self._closed = self._closed, []
        if self._open:
            closed.append(self._frame())
        self._before = 0
        self._full = self._closes_at
        if self._hello:
            closed[:1] = [self._hello + (closed[0] if closed else b"")]  # in one piece
            self._hello = b""
        return closed

    def alone(self, message: bytes) -> bytes:
        """A message that nothing waits in front of, and what rides with it, to be written now."""
        answered, dropped = self._answered, self._dropped
        if self.due < WAITS_UP_TO or len(answered) + len(dropped) > self._most:
            self._open.append(message)
            return b"".join(cast(list[bytes], self.flush(due=WAITS_UP_TO)))
        messages: list[Encoded] = [message, self._codec.release(answered, list(dropped.items()))]
        answered.clear()
        dropped.clear()
        self.due = 0
        frame = cast(bytes, self._codec.frame(messages))
        self.messages += 2
        self.bytes += len(frame)
        return frame

    def _add_releases(self) -> None:
        answered, self._answered = self._answered, []
        dropped = list(self._dropped.items())
        self._dropped.clear()
        most = self._most
        if len(answered) + len(dropped) <= most:
            # One small message, and the frame is closed next: `add` has nothing to decide.
            self._open.append(self._codec.release(answered, dropped))
            return

        for start in range(0, max(len(answered), len(dropped)), most):
            end = start + most
            message = self._codec.release(answered[start:end], dropped[start:end])
            self.add(message)

    def clear(self) -> None:
        """The session is over: nothing of this is sent."""
        self._lone = b""
        self._lone_question = None
        self._open.clear()
        self._undecided.clear()
        self._closed.clear()
        self._answered.clear()
        self._dropped.clear()
        self.due = 0
        self.size = self._before = len(self._hello)
        self._full = self._before + self._closes_at

    def _close_frame(self, size: int) -> None:
        """`size`: of all that is in frames then."""
        self._closed.append(self._frame())
        self._before = size
        self._full = size + self._closes_at

    def _frame(self) -> Encoded:
        messages, self._open = self._open, []
        if self._undecided:
            self._decide(messages)
        frame = self._codec.frame(messages)
        self.messages += len(messages)
        self.bytes += len(frame)
        return frame

    def _decide(self, messages: list[Encoded]) -> None:
        """Decide the words of the calls."""
        for position, question in self._undecided:
            cell: Cell | None = question()
            if cell is not None:  # else it was dropped
                if cell.pulled == PULLED or (cell.pulled == UNDECIDED and not cell.used):
                    cell.pulled = PULLED
                    if self._pulls_apart:
                        messages.append(self._codec.control(PULL, question.id))
                    continue
                cell.pulled = PUSHED
            messages[position] = self._codec.word(messages[position], PUSH)
        self._undecided = []
