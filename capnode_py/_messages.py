"""The words: messages, references, and what a dialect says of itself.

A message is a sequence whose first item is its word. Ids are told apart by their sign: the
importer chooses positive ones (questions and their answers), the exporter negative ones (objects
and promises), and 0 is the index. In a message, `target` and the ids of pull, release, cancel and
ping are ids in the *sender's import* table; the ids of resolve and reject are in the *sender's
export* table.

====================================================  ==============================================
message                                               meaning
====================================================  ==============================================
``[CALL, target, path, args?, kwargs?]``              start this, take the next positive id, answer
``[PUSH, target, path, args?, kwargs?]``              the same, but the answer is not asked for yet
``[PULL, id]``                                        answer this push
``[SEND, target, path, args, kwargs?]``               one way: no id, no answer
``[RESOLVE, id, value]``, ``[REJECT, id, error]``     the answer, or what a promise became; a reject
                                                      of an object's id: it is broken
``[RELEASE, [id, ...], [[id, n], ...]]``              given up: answers; references received n times
``[CANCEL, id]``                                      the answer is not wanted any more
``[PING, nonce, id?]``, ``[PONG, nonce]``             liveness; with an id a place in its queue
``[BYE]``                                             no more calls from me
``[ABORT, name, text]``                               you broke the protocol; the last message
``[VALUE, value, asked?]``                            nothing is called: this has the next positive
                                                      id (`Traits.values`); asked for, it is also an
                                                      answer that releases itself
``[STREAM, target, path, args]``                      a call, whose answer releases itself when it
                                                      has been sent (`Traits.streams`)
====================================================  ==============================================

Without args it is a property read; with a `Recording` in their place, a map. `path` is a list of
names and integers. Instead of an id, the target of a call may be a cap_id.
"""

# Annotations are no text here: NamedTuple would have the compiler read each, and load it for that.

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, final

from ._errors import RemoteProtocolError
from ._frozen import Frozen
from ._limits import Limits
from ._long import Encoded, Frame

CALL: Final = 1
PUSH: Final = 2
PULL: Final = 3
SEND: Final = 4
RESOLVE: Final = 5
REJECT: Final = 6
RELEASE: Final = 7
CANCEL: Final = 8
PING: Final = 9
PONG: Final = 10
BYE: Final = 11
ABORT: Final = 12
VALUE: Final = 13
STREAM: Final = 14

WORDS: Final[Mapping[int, str]] = {
    CALL: "call",
    PUSH: "push",
    PULL: "pull",
    SEND: "send",
    RESOLVE: "resolve",
    REJECT: "reject",
    RELEASE: "release",
    CANCEL: "cancel",
    PING: "ping",
    PONG: "pong",
    BYE: "bye",
    ABORT: "abort",
    VALUE: "value",
    STREAM: "stream",
}

UNNAMED: Final = "the other process"
"""How the other side is called until its hello or its door names it."""

Step = str | int
Path = tuple[Step, ...]
At = int | str
"""What a call is made on: an id, or a cap_id."""


class Mine(NamedTuple):
    """A reference to an object of the sender's, which arrives as a stub. It counts 1."""

    id: int
    cap_id: str | None = None


class Promised(NamedTuple):
    """A reference to a promise of the sender's, which will resolve it. It counts 1."""

    id: int


class Recording(NamedTuple):
    """A function for `map`, in the place of the arguments of a call: what it did with its argument
    is to be done with each item of the list that the path leads to.

    Attributes:
        captures: the references that it uses.
        instructions: values with slots in them, at least one; what the last gives is the result.
        work: what counts it, where it is done (`_replay.py`).
    """

    captures: Sequence[Any]
    instructions: Sequence[Any]
    work: Any = None


class Yours(NamedTuple):
    """A reference to an object, promise or answer of the receiver's. It counts 0.

    With a path, or for an answer or a promise, the receiver replaces it by its value. With `args`
    (only from a decoder) it is a call, and is replaced by what that returns. `settled`: it is an
    object, and no promise.
    """

    id: int
    path: Path = ()
    args: list[Any] | Recording | None = None
    settled: bool = False


class Inline(NamedTuple):
    """Not a reference after all: encode this value in its place."""

    value: Any


class Slot(NamedTuple):
    """In a `Recording`: what stands in a slot, what a path from there leads to, or what calling
    that gives.

    Attributes:
        id: 0 is the item; k what the k-th instruction gave; -k the k-th capture.
        path: from there.
        args: None for a read; a list of values, with slots in them, for a call; a `Recording`
            whose captures are slot ids, for a map inside of the map.
    """

    id: int
    path: Path = ()
    args: Any = None
    kwargs: Any = {}  # noqa: RUF012 - which nobody changes


IN_RECORDING: Final = "what the function for map does"
"""The root of a `CannotPass` for a value in a recording."""

UNUSUAL: Final = object()
"""What was looked at for the usual case only is something else: the general way is to say what."""


class Bad(NamedTuple):
    """What stands where a value could not be decoded. It rejects the one call that holds it."""

    reason: str
    content: Any = None


class InSet(NamedTuple):
    """The members of a set that holds references: a set once they have been swapped."""

    members: Sequence[Any]


def as_set(members: Sequence[Any]) -> set[Any]:
    """The set of these members; lists among them were tuples, and sets were frozen.

    Raises:
        TypeError: a member cannot stand in a set.
        ValueError: members chosen to collide, which would cost quadratic time.
    """
    frozen = [_frozen(member) for member in members]
    if len(frozen) > 16 and len({hash(member) for member in frozen}) < len(frozen) // 2:
        raise ValueError("the members of a set collide")
    return set(frozen)


def _frozen(member: Any) -> Any:
    if type(member) is list or type(member) is tuple:
        return tuple(_frozen(item) for item in member)
    return frozenset(member) if type(member) is set else member


Ref = Mine | Promised | Yours
ToRef = Callable[[Any], "Ref | Inline"]


class Traits(Frozen):
    """What a dialect can do. The engine reads these and never asks which dialect it is."""

    reuse_export_ids: bool
    """The same object is exported under the same id."""
    gapless: bool
    """Who exports takes the next id for what is new, and never leaves one out."""
    hello: bool
    """Each side opens with a hello."""
    bye: bool
    """It has a word of leave. Without, a side that hears an abort while it leaves has been heard.
    """
    calls: bool
    """It has a word that makes a call and asks for its answer in one; else that is a push and a
    pull."""
    values: bool
    """It has a word that gives an id to a value."""
    streams: bool
    """It has a word for a call whose answer releases itself."""
    one_way: bool
    """It has a word for a call that takes no id."""
    cancel: bool
    """It has a word to withdraw a call."""
    ping: bool
    """It has a position marker, which rule 5 (order across resolution) is built on. Without, a
    read of the promise stands for it, which takes the same way."""
    kwargs: bool
    """Calls carry keyword arguments."""
    cap_ids: bool
    """References can be named by cap_ids."""
    breaks: bool
    """The outcome word can also say that an object is broken."""
    text: bool
    """Its messages are lines of text; else they are bytes."""
    max_message: int
    """How many bytes of a message any correct peer takes, where no hello says it."""


@final
class Hello(Frozen):
    """What a side says first of itself.

    A side whose `application_versions` are not empty speaks to its own `application` only (see
    `agreed_version`); else the name is for error messages.
    """

    versions: Sequence[int]
    max_frame: int = Limits.max_frame
    max_depth: int = Limits.max_depth
    features: Sequence[str] = ()
    session_id: bytes = b""
    secret: bytes = b""
    application: str = ""
    application_versions: Sequence[int] = ()

    def __repr__(self) -> str:
        return self._shown(without="secret")


def agreed_version(ours: Hello, theirs: Hello) -> int | None:
    """The highest version of the application that both sides name; None if neither names any.

    The idea, and the rule of the highest, are those of HashiCorp's go-plugin.

    Raises:
        RemoteProtocolError: they are of two applications, or have no version in common. Both sides
            find that out by themselves, and say so with both lists.
    """
    mine, its = list(ours.application_versions), list(theirs.application_versions)
    if not mine and not its:
        return None
    if not mine:
        raise RemoteProtocolError(
            f"the other end speaks only to its own application, {theirs.application!r} in the "
            f"versions {its}: if this program is part of it, give this door "
            f"application={theirs.application!r} and versions="
        )
    if not its:
        raise RemoteProtocolError(
            f"the other end, {theirs.application!r}, names no application, and this side is of "
            f"{ours.application!r} in the versions {mine}: it is another program, or its door was "
            f"not given application={ours.application!r} and versions="
        )
    if ours.application != theirs.application:
        raise RemoteProtocolError(
            f"the other end is of another application, {theirs.application!r} in the versions "
            f"{its}; this side is of {ours.application!r} in the versions {mine}"
        )
    common = set(mine) & set(its)
    if not common:
        raise RemoteProtocolError(
            f"no common version of the application {ours.application!r}: this side has {mine}, "
            f"the other {its}"
        )
    return max(common)


class Lone(Protocol):
    """Writes and reads a call or an answer that has a frame to itself. See `codec.lone`."""

    def word(self, data: bytes, /) -> int | None: ...
    def write_call(
        self, target: int, path: Path, args: Sequence[Any], to_ref: ToRef, behind: int = 0, /
    ) -> bytes | None: ...
    def write_answer(self, id: int, value: Any, /) -> bytes | None: ...
    def read_call(self, data: bytes, /) -> tuple[int, list[str], list[Any], bool] | None: ...
    def read_answer(self, data: bytes, id: int, /) -> Any: ...
    def read_answer_and(
        self, data: bytes, id: int, /
    ) -> tuple[Any, list[int], list[int]] | None: ...
    def read_answer_freeing(self, data: bytes, id: int, answer: int, lent: int, /) -> Any: ...
    def write_answer_and(
        self, id: int, value: Any, answers: Sequence[int], references: Mapping[int, int], /
    ) -> bytes | None: ...
    def message(self, frame: bytes, /) -> bytes: ...


class Codec(Protocol):
    """The seam between the engine and a dialect: bytes and references, never tables.

    Encoders ask `to_ref` for anything that is not plain data, and raise `CannotPass`; they have no
    side effect of their own. Decoders leave `Ref`s, `Bad`s and `InSet`s in place of what the engine
    must look at, and say so by the mark.
    """

    traits: Traits
    features: Collection[str]
    """What both hellos name, once they have come."""
    max_depth: int
    tracebacks: bool
    where: str

    @property
    def lone(self) -> Lone | None:
        """None if the dialect has no reader of that kind."""

    @property
    def junk(self) -> bytes:
        """What stood in the stream before the hello."""

    def hello(self, hello: Hello) -> bytes: ...

    def call(self, target: At, path: Path, args: Any, kwargs: Any, to_ref: ToRef, /) -> Encoded:
        """A `CALL`, whose word can still be changed by `word`. `args` None is a read, and a
        `Recording` a map."""

    def word(self, call: Encoded, word: int, /) -> Encoded:
        """The same call under another word: `PUSH` or `SEND`."""

    def value(self, value: Any, to_ref: ToRef, /) -> bytes:
        """A `VALUE`, where the traits have it."""

    def resolve(self, id: int, value: Any, to_ref: ToRef, /) -> Encoded: ...

    def reject(self, id: int, error: BaseException, /) -> bytes: ...

    def release(self, answers: list[int], references: list[tuple[int, int]], /) -> bytes: ...

    def control(self, word: int, /, *fields: Any) -> bytes:
        """Any message whose fields are plain ints, strings and lists of them."""

    def frame(self, messages: list[Encoded], /) -> Encoded:
        """Those messages as they go onto the stream."""

    def feed(self, data: bytes | memoryview, /) -> Iterable[Frame | Hello]:
        """Cut the stream. A view is not looked at again later. Raises `RemoteProtocolError` for
        what no correct peer sends."""

    @property
    def unfinished(self) -> int:
        """How many bytes have come of a frame that is not whole yet."""

    def end(self) -> None:
        """The stream has ended: raises `RemoteProtocolError` if it was in mid-frame."""

    def copy(self, values: list[Any], to_ref: ToRef, /) -> tuple[list[Any], bool]:
        """`values` encoded and decoded again, and whether the copy is marked."""

    def decode(self, frame: Frame, /) -> tuple[list[list[Any]], bool]:
        """The messages of a frame, and whether it is marked: holds references or `Bad`s."""
