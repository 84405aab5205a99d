"""What leaves: the messages of one turn in one frame, and the releases that ride with it.

A call is encoded when it is made, but its word stays open until its frame is closed (rule: the
pull flag). A promise that by then was called through, passed on or dropped, and not awaited, goes
as a push, so that the value of a promise that only carries a pipeline never crosses; every other
goes as a call, and a plain awaited call is one message each way.
"""

from __future__ import annotations

from collections.abc import Callable

from ._cell import PULLED, PUSHED, UNDECIDED, Cell
from ._messages import PUSH, Codec
from ._tables import Import

FRAME_CLOSES_AT = 64 * 1024
"""A frame is closed at this size even in mid-turn, so that the other side can start."""

_RELEASES_A_MESSAGE = 1000  # so that a release is a small message, and
_RELEASE_SIZE = 40  # bytes for each in it, so that it is below any limit of the other side


class Outbox:
    """Messages in, frames out.

    Args:
        codec: the dialect.
        wake: asks for a flush at the end of this turn.
        wake_later: asks for one before long, unless something leaves earlier.
    """

    def __init__(
        self, codec: Codec, *, wake: Callable[[], None], wake_later: Callable[[], None]
    ) -> None:
        self._codec = codec
        self._wake = wake
        self._wake_later = wake_later
        self._open: list[bytes] = []
        self._undecided: list[tuple[int, Import]] = []  # which of `_open` are calls, and of what
        self._closed: list[bytes] = []
        self._before = 0  # how much of `size` is not in the open frame
        self._hello = b""
        self._answered: list[int] = []
        self._dropped: dict[int, int] = {}
        self.size = 0
        self.messages = 0
        self.bytes = 0
        self.max_frame = FRAME_CLOSES_AT  # what the other side takes, once its hello has said so

    def add(self, message: bytes, question: Import | None = None) -> None:
        """Append a message; a call comes with its question, whose word is still open."""
        if not self.size:
            self._wake()
        size = self.size + len(message)
        if size - self._before > self.max_frame and self._open:
            self._close_frame()
        if question is not None:
            self._undecided.append((len(self._open), question))
        self._open.append(message)
        self.size = size
        if size - self._before >= FRAME_CLOSES_AT:
            self._close_frame()

    def add_raw(self, data: bytes) -> None:
        """Bytes that are no frame: the hello, which leaves first whatever happens."""
        self._hello = data
        self.bytes += len(data)
        self.size += len(data)
        self._before += len(data)
        self._wake()

    def release_answer(self, id: int) -> None:
        """The question is settled, or was dropped."""
        if not self._answered and not self.size:
            self._wake_later()
        self._answered.append(id)

    def release_reference(self, id: int, n: int) -> None:
        """An object or promise of theirs is not held here any more."""
        if not self._dropped and not self.size:
            self._wake_later()
        self._dropped[id] = self._dropped.get(id, 0) + n

    def flush(self) -> list[bytes]:
        """The frames to be written now. Releases come last: earlier messages may name the ids."""
        if self._answered or self._dropped:
            self._add_releases()
        if self._open:
            self._close_frame()

        closed, self._closed = self._closed, []
        self.size = self._before = 0
        if self._hello:
            closed[:1] = [self._hello + (closed[0] if closed else b"")]  # in one piece
            self._hello = b""
        return closed

    def _add_releases(self) -> None:
        most = min(_RELEASES_A_MESSAGE, self.max_frame // _RELEASE_SIZE)
        if not self._dropped and len(self._answered) <= most:
            # One small message, and the frame is closed next: `add` has nothing to decide.
            self._open.append(self._codec.release(self._answered, []))
            self._answered = []
            return

        answered, self._answered = self._answered, []
        dropped, self._dropped = [[id, n] for id, n in self._dropped.items()], {}
        for start in range(0, max(len(answered), len(dropped)), most):
            end = start + most
            message = self._codec.release(answered[start:end], dropped[start:end])
            self.add(message)

    def clear(self) -> None:
        """The session is over: nothing of this is sent."""
        self._open.clear()
        self._undecided.clear()
        self._closed.clear()
        self._answered.clear()
        self._dropped.clear()
        self.size = self._before = len(self._hello)

    def _close_frame(self) -> None:
        messages = self._open
        if self._undecided:
            self._decide(messages)
        self.messages += len(messages)
        self._open = []
        self._before = self.size
        frame = self._codec.frame(messages)
        self.bytes += len(frame)
        self._closed.append(frame)

    def _decide(self, messages: list[bytes]) -> None:
        """Decide the words of the calls."""
        for position, question in self._undecided:
            cell: Cell | None = question()
            if cell is not None:  # else it was dropped
                if cell.pulled == PULLED or (cell.pulled == UNDECIDED and not cell.used):
                    cell.pulled = PULLED
                    continue
                cell.pulled = PUSHED
            messages[position] = self._codec.word(messages[position], PUSH)
        self._undecided = []
