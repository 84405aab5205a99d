"""Who holds the targets that want to know: those whose class defines `_released`."""

from __future__ import annotations

import threading
from typing import Any

from ._stub import Target

Holder = tuple[Any, Any]
"""Who holds a target: a session and the id of its export; or a table here, and a key in it."""


class Holders:
    """Who holds the targets that want to know: those whose class defines `_released`.

    A target may be held over several connections, in several threads: hence the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, tuple[Target, set[Holder]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, target: Target, holder: Holder) -> None:
        with self._lock:
            self._held.setdefault(id(target), (target, set()))[1].add(holder)

    def discard(self, target: Target, holder: Holder) -> bool:
        """Returns whether that was the last one."""
        with self._lock:
            _, left = self._held.get(id(target), (None, set()))
            left.discard(holder)
            return not left and self._held.pop(id(target), None) is not None

    def of(self, target: Target) -> list[Holder]:
        """Who holds it now."""
        with self._lock:
            return list(self._held.get(id(target), (None, ()))[1])


holders = Holders()
