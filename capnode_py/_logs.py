"""Log records of one program in the `logging` of another: on the way, and at both ends.

The parent makes a receiver, and hands its cap_id to the child in the environment (`request`); the
child's door finds it there (`forward_if_asked`). Neither side's index knows of it, and a child
that does not care is not disturbed.

A handler runs wherever something is logged: in any thread, under any lock, in the middle of this
library. So it makes a plain list of the record and leaves; what sends it runs in the event loop.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ._errors import CapnodeError
from ._lasting import share, unshare
from ._peer import AnyPeer

logger = logging.getLogger("capnode_py.logs")

VARIABLE = "CAPNODE_LOGS"
"""Of a child's environment: the level, and the cap_id of the receiver."""

MAX_WAITING = 1000
"""Records that wait to be sent. Stops a child that logs, and whose parent does not read, from
filling its memory."""

MAX_TEXT = 16 * 1024
"""Characters of one text of a record."""

MAX_LOGGERS = 1000
"""Loggers that one peer can have made here. `logging` keeps each for ever."""

_BATCH = 16  # with the longest texts, about `Limits.low_water`

# What of a record crosses, besides its text: in this order.
_FIELDS: Final = (
    ("name", str),
    ("levelno", int),
    ("levelname", str),
    ("created", float),
    ("process", int),
    ("processName", str),
    ("threadName", str),
    ("pathname", str),
    ("lineno", int),
    ("funcName", str),
)
_OPTIONAL: Final = (*_FIELDS[4:7], _FIELDS[9])  # None where logging was told not to find it out


def forward_logs(
    peer: AnyPeer[Any], receiver: Any, *, level: int = logging.NOTSET
) -> logging.Handler:
    """Send the log records of this program to the other side, until the connection ends.

    A child does so by itself when its parent asked for it, by ``spawn(..., logs=True)``.

    Args:
        peer: the connection.
        receiver: a far `log_receiver`: ``peer.index.log``.
        level: of the handler that is added to the root logger.

    Returns:
        The handler: for ``addFilter``, or for ``removeHandler`` to stop it.
    """
    handler = LogForwarder(peer, receiver, level)
    logging.getLogger().addHandler(handler)
    peer.on_broken(peer._session.index, handler.end)
    return handler


def log_receiver(name: str = "") -> Callable[[Any, Any], None]:
    """A function to be passed to the other side, which hands the records that it is sent by
    `forward_logs` to the `logging` of this program.

    Args:
        name: is the attribute ``peer`` of each record, for formats: ``"%(peer)s %(message)s"``.
    """
    loggers: set[str] = set()
    return partial(_receive, name, loggers)


class LogForwarder(logging.Handler):
    """See `forward_logs`. It never blocks, never raises, and never logs."""

    def __init__(self, peer: AnyPeer[Any], receiver: Any, level: int) -> None:
        super().__init__(level)
        self._peer: Final = peer
        self._receiver: Final = receiver
        self._driver: Final = peer._driver
        self._process: Final = os.getpid()
        self._here: Final = threading.local()
        self._waiting: deque[list[Any]] = deque()
        self._dropped = 0
        self._flushing = False

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._process:  # a fork: the connection is not its
            return
        if getattr(self._here, "busy", False):  # what it does itself is logged, which would not end
            return
        source = getattr(record, "peer_session", None)
        if source == id(self._driver.session) or (source and record.process == self._process):
            return  # it has come from there, or has come home: it would go round for ever
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._here.busy = True
        try:
            self._waiting.append(_packed(record))
            if not self._flushing:
                self._flushing = True
                self._driver.from_anywhere(self._flush)
        except Exception:  # noqa: BLE001 - of a __str__ in the arguments, most often
            self._dropped += 1
        finally:
            self._here.busy = False

    def end(self, _error: BaseException | None = None) -> None:
        """The connection is over."""
        logging.getLogger().removeHandler(self)
        self._waiting.clear()

    def _flush(self) -> None:
        """In the loop: send what waits, as long as the other side reads."""
        session, limits = self._driver.session, self._driver.limits
        self._here.busy = True
        self._flushing = False
        try:
            while self._waiting and session.error is None:
                if session.backlog() > limits.low_water:
                    self._flushing = True
                    self._driver.background(self._flush_later)
                    return
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                dropped, self._dropped = self._dropped, 0
                self._peer.notify(self._receiver, batch, dropped)
        except CapnodeError:  # we are closing, or it is given up: nobody is there to be told
            self._waiting.clear()
        finally:
            self._here.busy = False

    async def _flush_later(self) -> None:
        await self._driver.drain()
        self._flush()


def _packed(record: logging.LogRecord) -> list[Any]:
    """A record as plain data: its arguments merged, its exception as text."""
    exception = record.exc_text
    if record.exc_info and not exception:
        exception = logging.Formatter().formatException(record.exc_info)
    packed = [
        record.getMessage()[:MAX_TEXT],
        exception[-MAX_TEXT:] if exception else None,
        str(record.stack_info)[-MAX_TEXT:] if record.stack_info else None,
        *(getattr(record, name) for name, _ in _FIELDS),
    ]
    return [_whole(value) if isinstance(value, str) else value for value in packed]


def _whole(text: str) -> str:
    """Without half characters, as in names of files, which cannot cross."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _receive(peer: str, loggers: set[str], records: Any, dropped: Any) -> None:
    """Hand records of the other side to the logging of this. They are a stranger's, so far."""
    from .driver._handlers import current

    source = current.get(None)
    session = 0 if source is None else id(source._session)
    for packed in records:
        values = _checked(packed)
        if values is None:
            dropped += 1
            continue
        name = values["name"]
        if name not in loggers and len(loggers) >= MAX_LOGGERS:
            name = logger.name
        loggers.add(name)
        found = logging.getLogger(name)
        if found.isEnabledFor(values["levelno"]):
            record = logging.makeLogRecord(values)
            record.peer, record.peer_session = peer, session
            found.handle(record)
    if dropped:
        logger.warning("%s: %d log records were dropped on their way", peer or "a peer", dropped)


def _checked(packed: Any) -> dict[str, Any] | None:
    """The attributes of a record, or None if it is none."""
    if type(packed) is not list or len(packed) != 3 + len(_FIELDS):
        return None
    message, exception, stack, *rest = packed
    if type(message) is not str or not all(
        text is None or type(text) is str for text in (exception, stack)
    ):
        return None
    values: dict[str, Any] = {"msg": message, "args": None}
    values |= {"exc_text": exception, "stack_info": stack}
    for field, value in zip(_FIELDS, rest, strict=True):
        name, kind = field
        if type(value) is not kind and not (value is None and field in _OPTIONAL):
            return None
        values[name] = value
    path = values["pathname"]
    values["filename"] = os.path.basename(path)
    values["module"] = os.path.splitext(values["filename"])[0]
    values["msecs"] = values["created"] % 1 * 1000
    return values


# Between a parent and its child.


def request(level: int, name: str) -> dict[str, str]:
    """What to add to the environment of the child of this name, so that it sends its records.

    `withdraw` it, when the child is gone.
    """
    return {VARIABLE: f"{level:d}:{share(log_receiver(name))}"}


def withdraw(asked: dict[str, str]) -> None:
    """End what `request` gave."""
    unshare(asked[VARIABLE].partition(":")[2])


def forward_if_asked(peer: AnyPeer[Any]) -> None:
    """Send our records to the parent, if it has asked for them. What we start is not asked."""
    level, _, cap_id = os.environ.pop(VARIABLE, "").partition(":")
    if not cap_id or not level.isdigit():
        return
    if int(level):
        logging.getLogger().setLevel(int(level))
    forward_logs(peer, peer.reconstruct(cap_id), level=int(level))
