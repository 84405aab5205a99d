"""`Limits`: each bound with the attack, or the accident, that it stops."""

from __future__ import annotations

from ._arguments import check_seconds
from ._frozen import Frozen

KIB = 1024
MIB = 1024 * KIB
_ENDLESS = 1 << 62  # what no stream and no memory comes to


class Limits(Frozen):
    """The bounds of one connection. Sizes are bytes, times are seconds.

    What we accept is said in our hello, and the other side keeps to it: a message that would be
    over fails one call there. Only what arrives over a limit all the same ends the session.
    """

    max_frame: int = 128 * MIB
    """One frame. Stops a head that announces 2**60 bytes; checked before anything is allocated."""

    max_depth: int = 64
    """Containers inside each other in one value. Stops the recursion of nested, cyclic values."""

    max_exports: int = 1_000_000
    """References and unreleased answers of ours that the other side may hold. Stops a peer that
    calls for ever and never releases."""

    max_map: int = 100_000
    """Calls, reads and inner maps that one message may cause by `map`, all items taken together,
    those of maps in the map too. What they build of values is bounded by `max_frame`. Stops a
    message of some hundred bytes that makes a million calls, or a value that doubles forty times.
    """

    max_sent_back: int = 10_000
    """Calls of the other side that wait for promises of its own, to which they were sent back. The
    next is rejected. Stops a promise that depends on a call through itself, which two hosts would
    send to and fro until both are full.
    """

    high_water: int = 1 * MIB
    """Unsent bytes above which nothing new is started for this peer, and `drain` waits. Stops a
    peer that calls and does not read its answers."""

    low_water: int = 256 * KIB
    """Unsent bytes below which work goes on."""

    max_unsent: int = 256 * MIB
    """Unsent bytes above which our next call raises `LimitExceeded`. Stops us from filling our own
    memory for a peer that does not read."""

    max_kept: int = 256 * MIB
    """Bytes of calls kept while nothing new is started. Beyond it the session ends. Stops a peer
    that sends calls and never reads."""

    max_send_age: float = 120.0
    """How long unsent bytes may wait without one being taken. Stops a peer that is stuck."""

    max_junk: int = 64 * KIB
    """What a spawned child may print on its stdout before its hello (`spawn` only)."""

    hello_timeout: float = 15.0
    """How long a door waits for the other side's hello."""

    close_timeout: float = 0.5
    """How long closing waits: for running handlers, then for unsent bytes, then for the other
    side's end of stream."""

    def __post_init__(self) -> None:
        for field in self._fields:
            name, value = f"Limits.{field}", getattr(self, field)
            if type(getattr(Limits, field)) is float:
                check_seconds(name, value)
            elif type(value) is not int:
                raise TypeError(f"{name}= takes a whole number, not {value!r}")
            elif not 0 < value <= _ENDLESS:
                raise ValueError(f"{name}={value!r}: must be above 0, and 2**62 at the most")
        if self.max_frame < 512:
            raise ValueError(f"Limits.max_frame={self.max_frame}: at least 512, for a hello")
        if self.low_water > self.high_water:
            raise ValueError(
                f"Limits.low_water={self.low_water}, high_water={self.high_water}: low_water must "
                "be the lower"
            )
