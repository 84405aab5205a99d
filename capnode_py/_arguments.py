"""Arguments of the simple kinds, checked: the error names the argument, and says what was given."""

from __future__ import annotations

import math
import os
from typing import Any


def check_text(name: str, value: Any) -> None:
    """Raises TypeError: it is no text."""
    if not isinstance(value, str):
        raise TypeError(f"{name}= takes text, not {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError: it is neither True nor False. What is said of others ("no", None) would
    count as one of them all the same."""
    if type(value) is not bool:
        raise TypeError(f"{name}= takes True or False, not {value!r}")


def check_for_system(what: str, text: str) -> None:
    """Raises ValueError: the operating system takes no such text. `what` names it, and shows it
    unless it may be secret."""
    if "\0" in text:
        raise ValueError(f"{what}: there is a NUL in it, where the system would see its end")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"{what}: it cannot be encoded ({error.reason})") from None


def check_seconds(name: str, value: Any) -> None:
    """A time that is to pass.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0, or no time at all.
    """
    _check_number(name, value)
    if not value > 0:
        raise ValueError(f"{name}={value!r}: must be above 0")


def checked_timeout(value: Any) -> float | None:
    """How long to wait: 0 only looks; None, and infinity, wait for ever.

    Raises:
        TypeError: it is no number.
        ValueError: it is below 0, or no time at all.
    """
    if value is None:
        return None
    _check_number("timeout", value)
    if not value >= 0:
        raise ValueError(f"timeout={value!r}: seconds, 0 or more; None waits for ever")
    return None if value == math.inf else value


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}= is a number of seconds, not {value!r}")
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise ValueError(f"{name}=: more seconds than a clock can count")


_BITS = 50  # a million years and more; a float has no room for any int
