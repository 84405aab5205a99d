"""Loggers, for which `logging` is loaded when something is said.

With what it stands on it is a tenth of all that a script loads which calls a child, and most have
nothing to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from logging import Logger


def get_logger(name: str) -> Logger:
    """What `logging.getLogger` gives, or as good as that."""
    return cast("Logger", _Later(name))


class _Later:
    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        try:
            from logging import getLogger
        except (ImportError, OSError):
            # The program is ending, or no descriptor is left to load it by, which may be the news.
            return _unsaid
        return getattr(getLogger(self._name), name)


def _unsaid(*_args: Any, **_options: Any) -> None:
    pass
