"""The dialect of Cap'n Web: a message is a line of JSON, and JavaScript speaks it.

Each message is an array. Of values, JSON's own stand for themselves; all else is an array whose
first item says what it is, so that an array of data stands inside another one: ``[[1, 2]]``.
``docs/javascript.md`` has the table of values. The protocol, and the JavaScript package of it, are
Cloudflare's: https://github.com/cloudflare/capnweb

Where that package ends the session for a value that it does not know, one call is rejected here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, cast

from .._errors import CannotPass, FarError, RemoteError, RemoteProtocolError, from_far
from .._limits import MIB, Limits
from .._long import Encoded, Frame
from .._messages import (
    ABORT,
    IN_RECORDING,
    PULL,
    PUSH,
    REJECT,
    RELEASE,
    RESOLVE,
    STREAM,
    VALUE,
    At,
    Hello,
    Path,
    Recording,
    ToRef,
    Traits,
    Yours,
)
from .capnweb_json import encoded, no_json, parsed, short
from .capnweb_reader import CALLS, STREAMS, Reader
from .capnweb_writer import LEAVES, Writer, error_text, no_kwargs, path_text, string

_TRAITS = Traits(
    reuse_export_ids=False,  # its importer counts no more than one, and would keep the rest
    gapless=False,
    hello=False,
    bye=False,
    calls=False,
    values=True,
    streams=True,
    one_way=False,
    cancel=False,
    ping=False,
    kwargs=False,
    cap_ids=False,
    breaks=False,
    text=True,
    max_message=32 * MIB,  # in UTF-16 units, of which no text has more than bytes
)

_MOST_LEVELS = 240  # of a value; the package takes 256 in a message, and ends the session for more
_PATHS = 4096  # noted, of calls made
_SHORT_PATH = 100  # letters of one
_OPENING = b"[ \t\r"  # what a message may begin with; so a peer of another dialect is known at once


class CapnwebCodec:
    """See `Codec` for the interface."""

    traits = _TRAITS
    features: Collection[str] = ()
    junk = b""
    lone = None

    def __init__(self, limits: Limits, *, max_junk: int = 0, tracebacks: bool = True) -> None:
        self.max_depth = min(limits.max_depth, _MOST_LEVELS)
        self.tracebacks = tracebacks
        self._reader = Reader()
        self._max_line = limits.max_frame
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._paths: dict[Path, str] = {}

    @property
    def where(self) -> str:
        """The other side, as its errors name it."""
        return self._reader.where

    @where.setter
    def where(self, name: str) -> None:
        self._reader.where = name

    # Writing.

    def hello(self, hello: Hello) -> bytes:
        raise NotImplementedError("this dialect has no such word")

    def call(self, target: At, path: Path, args: Any, kwargs: Any, to_ref: ToRef, /) -> bytes:
        if kwargs:
            raise no_kwargs(kwargs)
        steps = self._paths.get(path) or self._path(path)
        head = f'["push",["pipeline",{target},{steps}'
        if args is None:
            return encoded(head + "]]")
        if type(args) is Recording:
            return self._map(target, path, args, to_ref)
        parts: list[str] = []
        step = 0
        try:
            for step, value in enumerate(args):  # noqa: B007 - the error names it
                leaf = LEAVES.get(type(value))
                if leaf is not None:
                    parts.append(leaf(value))
                else:
                    parts.append(self._text(value, to_ref))
        except CannotPass as error:
            error.root = "argument"
            error.path.insert(0, step)
            raise
        return encoded(f"{head},[{','.join(parts)}]]]")

    def _map(self, target: At, path: Path, recording: Recording, to_ref: ToRef) -> bytes:
        parts = [f'["push",["remap",{target},{path_text(path)},']
        try:
            Writer(parts, to_ref, self.tracebacks).recording(recording, self.max_depth)
        except CannotPass as error:
            error.root = IN_RECORDING
            error.path.clear()
            raise
        return encoded("".join(parts) + "]]")

    def word(self, call: Encoded, word: int, /) -> Encoded:
        # A push asks for nothing: a pull does.
        return b'["stream"' + cast(bytes, call)[7:] if word == STREAM else call

    def value(self, value: Any, to_ref: ToRef, /) -> bytes:
        return encoded(f'["push",{self._text(value, to_ref)}]')

    def resolve(self, id: int, value: Any, to_ref: ToRef, /) -> bytes:
        leaf = LEAVES.get(type(value))
        try:
            text = self._text(value, to_ref) if leaf is None else leaf(value)
        except CannotPass as error:
            error.root = "the result"
            raise
        return encoded(f'["resolve",{id},{text}]')

    def reject(self, id: int, error: BaseException, /) -> bytes:
        return encoded(f'["reject",{id},{error_text(error, tracebacks=self.tracebacks)}]')

    def release(self, answers: list[int], references: list[tuple[int, int]], /) -> bytes:
        lines = [f'["release",{id},1]' for id in answers]
        lines += [f'["release",{id},{n}]' for id, n in references]
        return "\n".join(lines).encode()

    def control(self, word: int, /, *fields: Any) -> bytes:
        if word == PULL:
            return b'["pull",%d]' % fields[0]
        if word == ABORT:
            name, text = fields
            return encoded(f'["abort",["error",{string(name)},{string(text)}]]')
        raise NotImplementedError("this dialect has no such word")

    def frame(self, messages: list[Encoded], /) -> bytes:
        return b"\n".join((*map(bytes, messages), b""))

    def copy(self, values: list[Any], to_ref: ToRef, /) -> tuple[list[Any], bool]:
        parts: list[str] = []
        # The list itself and the one of a call's arguments stand around the values.
        Writer(parts, to_ref, self.tracebacks).write(values, self.max_depth + 2)
        self._reader.marked = False
        copy = self._reader.value(parsed(encoded("".join(parts))), self.max_depth + 2)
        if type(copy[0]) is Yours:  # where a recording stood
            copy[0] = copy[0].args
        return copy, self._reader.marked

    def _path(self, path: Path) -> str:
        """Programs call the same few names over and over, so short paths are noted."""
        steps = path_text(path)
        if len(steps) < _SHORT_PATH:
            if len(self._paths) == _PATHS:  # a peer that we forward for may choose them
                self._paths.clear()
            self._paths[path] = steps
        return steps

    def _text(self, value: Any, to_ref: ToRef) -> str:
        parts: list[str] = []
        Writer(parts, to_ref, self.tracebacks).write(value, self.max_depth)
        return "".join(parts)

    # Reading.

    def feed(self, data: bytes | memoryview, /) -> Iterable[bytes | Hello]:
        lines = bytes(data).split(b"\n")
        last = lines.pop()
        if self._rest and lines:
            lines[0] = b"".join((*self._rest, lines[0]))
            self._rest.clear()
            self._rest_size = 0
        if last:
            if not self._rest and last[0] not in _OPENING:
                raise no_json(last, "it begins otherwise")
            self._rest.append(last)
            self._rest_size += len(last)
        if self._rest_size > self._max_line or max(map(len, lines), default=0) > self._max_line:
            raise RemoteProtocolError(
                f"a message over the limit of {self._max_line} bytes (Limits.max_frame)"
            )
        return lines

    @property
    def unfinished(self) -> int:
        return self._rest_size

    def end(self) -> None:
        if b"".join(self._rest).strip():
            raise RemoteProtocolError(
                f"the stream ended in the middle of a line, after {self._rest_size} bytes"
            )

    def decode(self, frame: Frame, /) -> tuple[list[list[Any]], bool]:
        frame = cast(bytes, frame)  # as `feed` gives them
        self._reader.marked = False
        if frame[:1] != b"[" and not frame.strip():
            return [], False
        message = parsed(frame)
        if type(message) is not list or not message:
            raise RemoteProtocolError(f"a message that is no array with a word: {short(message)}")
        word = message[0]
        read = _WORDS.get(word) if type(word) is str else None
        if read is None:
            raise RemoteProtocolError(f"an unknown word: {short(message)}")
        return [read(self, message)], self._reader.marked

    # The words.

    def _push(self, message: list[Any]) -> list[Any]:
        return self._evaluated(PUSH, _items(message, 2)[1])

    def _stream(self, message: list[Any]) -> list[Any]:
        found = self._evaluated(STREAM, _items(message, 2)[1])
        return [*found, True] if found[0] == VALUE else found

    def _pipe(self, message: list[Any]) -> list[Any]:
        return [VALUE, self._reader.bad(STREAMS)]

    def _evaluated(self, word: int, form: Any) -> list[Any]:
        """What a push is of: mostly a call or a read, which is a message; or else any value."""
        if type(form) is list and len(form) == 4 and form[0] == "pipeline":  # as nearly all are
            _, id, path, args = form
            plain = type(id) is int and type(args) is list and type(path) is list
            if plain and len(path) == 1 and type(path[0]) is str:
                found = self._reader.items(args, self.max_depth + 1)
                return [word, id, path, args] if found is args else [VALUE, found]
        if type(form) is list and len(form) > 1 and form[0] in (*CALLS, "remap"):
            ref = self._reader.value(form, self.max_depth + 1)
            if type(ref) is Yours:
                self._reader.marked = self._reader.marked_args
                head = [word, ref.id, list(ref.path)]
                return head if ref.args is None else [*head, ref.args]
            return [VALUE, ref]
        return [VALUE, self._reader.value(form, self.max_depth)]

    def _pull(self, message: list[Any]) -> list[Any]:
        return [PULL, _items(message, 2)[1]]

    def _resolve(self, message: list[Any]) -> list[Any]:
        _, id, form = _items(message, 3)
        return [RESOLVE, id, self._reader.value(form, self.max_depth)]

    def _reject(self, message: list[Any]) -> list[Any]:
        _, id, form = _items(message, 3)
        error = self._reader.value(form, self.max_depth)
        if not self._reader.marked and not isinstance(error, RemoteError):
            # Anything can be thrown there.
            error = from_far(FarError("thrown", _words(error), None, None), where=self.where)
        return [REJECT, id, error]

    def _release(self, message: list[Any]) -> list[Any]:
        _, id, n = _items(message, 3)
        if type(id) is int and id > 0:
            if type(n) is not int or n != 1:
                raise RemoteProtocolError(f"release of id {id} by {short(n)}, which was sent once")
            return [RELEASE, [id], []]
        return [RELEASE, [], [[id, n]]]

    def _abort(self, message: list[Any]) -> list[Any]:
        error = self._reader.value(_items(message, 2)[1], self.max_depth)
        if isinstance(error, RemoteError):
            return [ABORT, error.remote_type, error.message]
        return [ABORT, "thrown", _words(error)]


_WORDS: Mapping[str, Callable[[CapnwebCodec, list[Any]], list[Any]]] = {
    "push": CapnwebCodec._push,
    "pull": CapnwebCodec._pull,
    "resolve": CapnwebCodec._resolve,
    "reject": CapnwebCodec._reject,
    "release": CapnwebCodec._release,
    "stream": CapnwebCodec._stream,
    "pipe": CapnwebCodec._pipe,
    "abort": CapnwebCodec._abort,
}


def _items(message: list[Any], count: int) -> list[Any]:
    """The first items of a message, which may have more."""
    if len(message) < count:
        raise RemoteProtocolError(f"a malformed {message[0]}: {short(message)}")
    return message[:count]


def _words(thrown: Any) -> str:
    """What was thrown, if that was no error."""
    return thrown if isinstance(thrown, str) else short(thrown)
