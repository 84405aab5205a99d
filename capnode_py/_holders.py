"""Who holds the targets that want to know: those whose class defines `_released`."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from ._stub import Target

Holder = tuple[object, Any]
"""Who holds a target: a key of a connection, and the id of its export; or a table here, and a key
in it."""


class Holders:
    """Who holds the targets that want to know: those whose class defines `_released`.

    A target is known by its `id`, and a connection by a key: neither is kept alive here, so that a
    connection which nobody holds is garbage, whatever its targets hold of it. A holder keeps what
    it holds alive, until it has said that it does no more.

    A target may be held over several connections, in several threads: hence the lock. It is
    re-entrant, since under it the collector may run whatever a user's finalizer does.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held: dict[int, set[Holder]] = {}
        self._gone: deque[tuple[int, Holder]] = deque()

    def __len__(self) -> int:
        with self._lock:
            self._forget_gone()
            return len(self._held)

    def add(self, target: Target, holder: Holder) -> None:
        with self._lock:
            self._forget_gone()
            self._held.setdefault(id(target), set()).add(holder)

    def discard(self, target: Target, holder: Holder) -> bool:
        """Returns whether that was the last one."""
        with self._lock:
            self._forget_gone()
            return self._discard(id(target), holder)

    def gone(self, held: Iterable[tuple[Target, Holder]]) -> None:
        """These holders are garbage, and no hook is to run: from a finalizer, so leave a note."""
        self._gone.extend([(id(target), holder) for target, holder in held])

    def _forget_gone(self) -> None:
        with contextlib.suppress(IndexError):
            while self._gone:
                self._discard(*self._gone.popleft())

    def _discard(self, key: int, holder: Holder) -> bool:
        left = self._held.get(key, set())
        left.discard(holder)
        return not left and self._held.pop(key, None) is not None


holders = Holders()
