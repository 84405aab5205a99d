"""`Peer`: what a user holds of a connection. And how one is made of a stream."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeAlias, TypeVar, cast

from ._arguments import check_flag, check_seconds, check_text
from ._capnode import Capnode, checked_index
from ._cell import Cell
from ._errors import CapnodeError, PeerClosed, again
from ._frozen import Frozen
from ._limits import Limits
from ._messages import Codec, Hello, Path, Traits
from ._reach import Facade
from ._session import FEATURES, VERSIONS, Session
from ._stub import Promise, Stub
from .codec.cbor import CborCodec
from .codec.cbor_reader import MAX_NAME
from .driver._base import Driver, in_trio

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import TypeVar as DefaultingTypeVar

    from .driver.anyio import Stream

    I_co = DefaultingTypeVar("I_co", covariant=True, default=Any)
else:  # see _stub.py
    I_co = TypeVar("I_co", covariant=True)

Interface: TypeAlias = "Callable[..., I_co] | None"
"""What a door takes as ``interface=``: a class. Written so, since ``type[I]`` takes no Protocol."""

T = TypeVar("T")

on_made: Callable[[Any], object] | None = None
"""Called with each new peer: `capnode_py.testing` looks which of them are left open."""


class Stats(Frozen):
    """A connection in numbers. A quiet one shows 1 import and 1 export: the two indexes.

    Attributes:
        imports: what we hold of theirs: references, and questions.
        exports: what they hold of ours: references, and answers.
        questions: of the imports, calls of ours whose answer is not here, or is kept as a promise.
        answers: of the exports, calls of theirs whose answer they have not given up.
        messages_sent, messages_received: since the beginning.
        bytes_sent, bytes_received: likewise, framing and hello included.
        unsent_bytes: what waits for the other side to read.
    """

    imports: int
    exports: int
    questions: int
    answers: int
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    unsent_bytes: int


class AnyPeer(Generic[I_co]):
    """What a peer is, whether its caller awaits or blocks.

    Attributes:
        nickname: names the other side in errors and logs.
        pid: the process id of a spawned child, else None.
    """

    def __init__(self, driver: Driver, *, nickname: str = "") -> None:
        self._driver = driver
        self._session = driver.session
        self._nickname = nickname
        self.pid: int | None = None
        driver.peer = self
        if on_made is not None:
            on_made(self)

    def __repr__(self) -> str:
        stats = self.stats()
        state = "closed" if self.is_closed else f"{stats.imports} imports, {stats.exports} exports"
        try:
            self._driver.check_loop()
        except PeerClosed:
            state = "closed" if self.is_closed else "never closed, and its event loop has ended"
        return f"<Peer {self.nickname or 'unnamed'}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a peer cannot be pickled or copied: it belongs to its process. Let another one open a "
            "connection of its own, and pass it the cap_id of what it is to reach"
        )

    @property
    def nickname(self) -> str:
        return self._nickname or (self.info.application if self.info else "")

    @property
    def index(self) -> I_co:
        """The stub of the other side's index: ``await peer.index.add(1, 2)``.

        To type checkers it is what the door was given as ``interface=``, or Any.
        """
        return self._session.index  # type: ignore[return-value]  # a cast would cost a call

    @property
    def info(self) -> Hello | None:
        """What the other side's hello said."""
        return self._session.remote

    @property
    def application_version(self) -> int | None:
        """The version that was agreed on: the highest of those that both doors were given as
        ``versions=``. None if they were given none.
        """
        return self._session.application_version

    @property
    def returncode(self) -> int | None:
        """The exit code of a spawned child, negative for a signal; None while it runs."""
        return None

    @property
    def is_closed(self) -> bool:
        return self._session.error is not None

    def notify(self, target: Any, /, *args: Any, **kwargs: Any) -> None:
        """Call `target` one way: nothing comes back, not even an error.

        Raises:
            CannotPass, LimitExceeded, Released: nothing was sent.
            PeerClosed, PeerLost: the connection is over.
        """
        base, path = place_of(self._session, target, "notify")
        self._driver.say(lambda: self._session.notify(base, path, args, kwargs))

    def reconstruct(self, cap_id: str) -> Any:  # what the stub's calls give, each face says
        """A stub of what `Stub.cap_id` stands for, on any connection to the host that it is from.

        It is there at once: nothing is waited for, and calls follow in the same round trip. It
        holds the object as any stub does. If the cap_id stands for nothing (it is malformed, from
        elsewhere, or what it stood for is gone: the other side does not say which), each call on
        the stub raises a `RemoteError` that is a `LookupError`.

        Raises:
            TypeError: it is no text.
            PeerClosed, PeerLost: the connection is over.
        """
        if not isinstance(cap_id, str):
            raise TypeError(
                f"reconstruct() takes the text of a cap_id, not {type(cap_id).__name__}: write "
                "peer.reconstruct(stub.cap_id)"
            )
        return self._driver.bring(lambda: self._session.reconstruct(str(cap_id).strip()))

    def with_options(self, target: T, /, *, timeout: float) -> T:
        """A stub for the same object, whose calls and reads have a time limit, each its own.

        A call that is not answered in time raises `TimeoutError`, and is cancelled where it runs.
        Passed on, the stub is the plain one.

        Args:
            target: a stub, or a path or promise.
            timeout: seconds.

        Raises:
            TypeError, ValueError: for the arguments.
        """
        from ._options import Timed

        place_of(self._session, target, "with_options")
        check_seconds("timeout", timeout)
        driver = self._driver
        timed = Timed(driver, driver.deadlines, timeout)
        return cast(T, timed.limited(_plain(target)))

    def on_broken(self, stub: Any, function: Callable[[BaseException], Any], /) -> Watch:
        """Call ``function(error)`` once, when `stub` is broken: it was revoked over there, or the
        connection has ended. No call is needed to learn of it. If it is broken already, soon.

        It is not called for a stub that was given up before, by `dealloc` or because nobody held
        it any more.

        What is returned has a method `cancel`: then the function is not called, nor held.

        Args:
            function: a `def` or an ``async def``; it runs in the event loop of this peer.

        Raises:
            Released: the stub was given up here.
            TypeError: it is no stub of this peer, or the function cannot be called.
        """
        stub = _plain(stub)
        if type(stub) is not Stub or stub._session is not self._session:
            _refuse_facade(stub, "on_broken()")
            instead = ": await it first" if isinstance(stub, Promise) else ""
            raise TypeError(f"on_broken() takes a stub of this peer, not {stub!r}{instead}")
        if not callable(function):
            raise TypeError(f"on_broken() takes a function of the error, not {function!r}")
        watch = Watch(self._driver, stub, function)
        self._driver.bring(lambda: self._session.on_broken(stub, watch, Watch._tell))
        return watch

    def submit(self, target: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call `target` from any thread: ``peer.submit(peer.index.add, 1, 2).result()``.

        Cancelling the future, before it is done, withdraws the call.
        """
        place_of(self._session, target, "submit")
        return self._driver.outcome(lambda: target(*args, **kwargs))

    def _ping(self) -> Promise:
        cell = Cell(self._session)
        if self._session.error is None:
            self._session.ping_through(cell)
        else:
            cell.reject(self._session.error)
        return Promise(self._session, cell, ())

    def stats(self) -> Stats:
        """The tables and the traffic, now."""
        session = self._session
        return Stats(
            imports=len(session.imports),
            exports=len(session.exports),
            questions=sum(id > 0 for id in session.imports.entries.copy()),
            answers=sum(id > 0 for id in session.exports.entries.copy()),
            messages_sent=session.messages_sent,
            messages_received=session.incoming.messages,
            bytes_sent=session.bytes_sent,
            bytes_received=session.bytes_received,
            unsent_bytes=session.backlog(),
        )

    def leak_report(self) -> str:
        """A line for each reference and call that one side still holds of the other, with its
        type, and, under `capnode.trace_references`, where it was made. Empty if there is none.
        """
        from ._leaks import leak_report

        return "\n".join(leak_report(self._session))


class Peer(AnyPeer[I_co]):
    """One connection of a host. The doors make it: `spawn`, `connect`, `listen`, `stdio`, ...

    ``Peer[Api]`` is for annotations: its `index` looks like an ``Api``.

    Attributes:
        nickname: names the other side in errors and logs.
        pid: the process id of a spawned child, else None.
    """

    if TYPE_CHECKING:

        def reconstruct(self, cap_id: str) -> Stub: ...

    async def request_index(self) -> Any:
        """The other side's index as a value: data copied, functions as stubs.

        An index that is an object gives `index` itself.
        """
        return await self._session.call(self._session.index, (), None, None)

    async def ping(self) -> None:
        """Return when the other side has answered. A busy handler there does not delay it, unless
        it blocks the other side's event loop.

        Raises:
            PeerClosed, PeerLost: it did not.
        """
        await self._driver.bring(self._ping)

    async def drain(self) -> None:
        """Wait until what is to be sent has fallen below low water (`Limits.low_water`)."""
        await self._driver.drain()

    async def wait_closed(self) -> None:
        """Wait until the connection is over, and all that belongs to it is gone."""
        await self._driver.wait_closed()

    async def aclose(self) -> None:
        """Close: no new calls from us, running handlers finish, the stream ends. All bounded.

        From any task, in any order, twice. It does not raise for a peer that died.
        """
        await self._driver.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


_EXAMPLES = {
    "get": "name)",
    "pipeline": "add)",
    "notify": "log, 'text')",
    "submit": "add, 1, 2)",
    "with_options": "add, timeout=5)",
}


def _plain(target: Any) -> Any:
    """The stub itself, of one with options."""
    return target._session.plain(target) if isinstance(target, Stub) else target


def _refuse_facade(target: Any, method: str) -> None:
    if isinstance(target, Facade):
        raise TypeError(
            f"{method} takes what is on its connection, not a facade, which is here: give the stub "
            "that it stands for; or, for a call, write facade.method(...)"
        )


class Watch:
    """What `Peer.on_broken` gives."""

    __slots__ = ("__weakref__", "_driver", "_function", "_stub")

    def __init__(
        self, driver: Driver, stub: Stub, function: Callable[[BaseException], Any]
    ) -> None:
        self._driver = driver
        self._stub = weakref.ref(stub)
        self._function: Callable[[BaseException], Any] | None = function

    def __repr__(self) -> str:
        what = "cancelled" if self._function is None else repr(self._function)
        return f"<Watch: {what}>"

    def cancel(self) -> None:
        """Do not call the function, and let go of it, unless it has been called already. In any
        thread, and twice.
        """
        self._function = None
        stub = self._stub()
        if stub is not None:
            stub._unwatch(self)

    def _tell(self, error: BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop itself is ending
            self._driver.tell(self._run, again(error))

    def _run(self, error: BaseException) -> Any:
        function = self._function
        return None if function is None else function(error)


def place_of(own: Session, target: Any, method: str) -> tuple[Stub | Cell, Path]:
    """Where something far stands, for a method of a peer whose session is `own`.

    Raises:
        TypeError: it is not far, or not on this connection.
        PeerClosed, PeerLost: its own connection is over.
    """
    base: Any
    path: Path = ()
    if isinstance(target, Stub):
        base = _plain(target)
    elif isinstance(target, Promise):
        base, path = _plain(target._base), target._path
    else:
        _refuse_facade(target, f"peer.{method}()")
        raise TypeError(
            f"peer.{method}() takes something far, as in peer.{method}(peer.index."
            f"{_EXAMPLES[method]}, not a value of type {type(target).__name__}"
            + (": what a call has given is the value already" if method == "get" else "")
        )
    session = base._session if isinstance(base, Stub) else base.session
    if session is not own:
        if session.error is not None:  # of an earlier life of a child, most often
            raise again(session.error)
        raise TypeError(
            f"peer.{method}() takes what is on its own connection, and {target!r} is on another"
        )
    return base, path


DIALECTS = ("cbor", "capnweb")


class Settings(Frozen):
    """What all doors take.

    Attributes:
        host: whose connection it is.
        dialect: a name in `DIALECTS`.
        limits: see `Limits`.
        nickname: names the other side.
        tracebacks: send the tracebacks of our handlers' errors.
        takes_junk: something may stand in the stream before the hello.
        index_for: makes the index of one connection.
        application, versions: what the other side must be of, if there are any.
    """

    host: Capnode
    dialect: str
    limits: Limits
    nickname: str
    tracebacks: bool
    takes_junk: bool = False
    index_for: Callable[[Any], Any] | None = None
    application: str = ""
    versions: Sequence[int] = ()


def make_settings(
    index: Any,
    host: Capnode | None,
    dialect: str,
    limits: Limits | None,
    nickname: str,
    *,
    default_name: str = "",
    tracebacks: bool,
    takes_junk: bool = False,
    index_for: Callable[[Any], Any] | None = None,
    application: str = "",
    versions: Sequence[int] = (),
) -> Settings:
    """Check what a door was given. Without a nickname, `default_name` is it.

    Raises:
        TypeError, ValueError: with what to write instead.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect={dialect!r}: this version speaks {' and '.join(DIALECTS)}")
    given = [index is not None, host is not None, index_for is not None]
    if sum(given) > 1:
        raise TypeError("give one of index=, host= and index_for=")
    if host is not None and not isinstance(host, Capnode):
        raise TypeError(f"host= takes a capnode.Capnode, not {host!r}: write Capnode(index)")
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits= takes capnode.Limits(...), not {limits!r}")
    check_text("nickname", nickname)
    check_flag("tracebacks", tracebacks)
    if index_for is not None:
        _check_index_for(index_for)
    return Settings(
        host=Capnode(index) if host is None else host,
        dialect=dialect,
        limits=limits or Limits(),
        nickname=nickname or default_name,
        tracebacks=tracebacks,
        takes_junk=takes_junk,
        index_for=index_for,
        application=application,
        versions=_checked_versions(dialect, application, versions),
    )


def _check_index_for(index_for: Any) -> None:
    from inspect import iscoroutinefunction

    if not callable(index_for) or iscoroutinefunction(index_for):
        raise TypeError(f"index_for= takes a plain function of the peer, not {index_for!r}")


def _checked_versions(dialect: str, application: Any, versions: Any) -> tuple[int, ...]:
    if not isinstance(application, str):
        raise TypeError(f"application= takes a name, not {application!r}")
    if application and not traits_of(dialect).hello:
        raise ValueError(
            f"application={application!r}: it is said in the hello, which dialect={dialect!r} "
            "does not have"
        )
    if len(application) > MAX_NAME or not application.isprintable():
        raise ValueError(f"application={application!r}: at most {MAX_NAME} printable characters")
    if isinstance(versions, (str, bytes)) or not isinstance(versions, Iterable):
        raise TypeError(
            f"versions= takes a list of numbers, as in versions=[1, 2], not {versions!r}"
        )
    numbers = tuple(versions)
    for number in numbers:
        if type(number) is not int:
            raise TypeError(f"versions= takes whole numbers, as in versions=[1, 2], not {number!r}")
    if numbers and not application:
        raise TypeError(
            f"versions={list(numbers)} are those of an application: give its name as well, as in "
            "application='my-plugins'"
        )
    return numbers or ((1,) if application else ())


def check_interface(interface: Any) -> None:
    """A door does no more with it: it is for type checkers and editors."""
    if interface is not None and not isinstance(interface, type):
        raise TypeError(
            f"interface= takes a class, a Protocol or the other side's Target, not {interface!r}"
        )


def application_name() -> str:
    """How this process calls itself in its hello."""
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"


P = TypeVar("P", bound=AnyPeer)


Carrier: TypeAlias = "Stream | tuple[int, int] | None"
"""A stream; or two descriptors of our own, which may be the same; None: messages, which the caller
carries."""


def make_peer(
    kind: type[P],
    stream: Carrier,
    settings: Settings,
    *,
    make_driver: Callable[..., Driver] | None = None,
) -> P:
    """A peer on what carries its bytes.

    It reads from now on; `Driver.open` waits for the other side's hello.
    """
    limits = settings.limits
    codec = codec_of(settings.dialect)(
        limits,
        max_junk=limits.max_junk if settings.takes_junk else 0,
        tracebacks=settings.tracebacks,
    )
    if settings.nickname:
        codec.where = settings.nickname
    hello = Hello(
        versions=VERSIONS,
        features=FEATURES,
        max_frame=limits.max_frame,
        max_depth=limits.max_depth,
        session_id=os.urandom(16),
        secret=os.urandom(16),
        application=settings.application or settings.host.nickname or application_name(),
        application_versions=settings.versions,
    )
    host = settings.host
    index: Any = None

    driver = (make_driver or _driver_of_loop)(
        stream,
        codec=codec,
        limits=limits,
        hello=hello,
        host=host,
        get_index=host.get_index if settings.index_for is None else lambda: index,
    )
    host.sessions[hello.session_id] = driver.session
    peer = kind(driver, nickname=settings.nickname)
    if settings.index_for is not None:
        try:
            index = checked_index(settings.index_for(peer))
        except BaseException:
            driver.session.abort(PeerClosed("index_for has refused the connection"))
            raise
    if not codec.traits.hello:
        driver.session.holding.hold_index()
    return peer


def traits_of(dialect: str) -> Traits:
    """What that dialect can do."""
    codec: Any = codec_of(dialect)
    return codec.traits  # type: ignore[no-any-return]


def codec_of(dialect: str) -> Callable[..., Codec]:
    """The codec of one of `DIALECTS`. That of JavaScript is loaded when it is asked for."""
    if dialect == "capnweb":
        from .codec.capnweb import CapnwebCodec

        return CapnwebCodec
    return CborCodec


def _driver_of_loop(stream: Carrier, **parts: Any) -> Driver:
    """The driver that fits this stream in this event loop."""
    on_trio = in_trio()
    if not on_trio:
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise CapnodeError(
                "no event loop is running: open a connection inside async def main(), run by "
                "asyncio.run(main()) or trio.run(main)"
            ) from None
    if stream is None:
        from .driver.messages import MessageDriver

        return MessageDriver(**parts)
    if not isinstance(stream, tuple):
        from .driver.anyio import AnyioDriver

        return AnyioDriver(stream, **parts)
    if on_trio:
        from .driver.trio import TrioDriver

        return TrioDriver(*stream, **parts)
    from .driver.asyncio import AsyncioDriver

    return AsyncioDriver(*stream, **parts)
