"""`Peer`, for scripts: its methods block, and only a `Pipeline` has calls that do not."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
    cast,
    final,
    overload,
)
from weakref import WeakSet

from ._arguments import check_seconds, checked_timeout
from ._cell import Cell
from ._messages import Path, Step
from ._peer import AnyPeer, I_co, Settings, check_interface, make_peer, place_of
from ._stub import Promise
from ._stub import Stub as AnyStub
from .driver._locked import LockedSession
from .driver._pump import complete, the_pump
from .driver.blocking import BlockingDriver

Q = ParamSpec("Q")
T = TypeVar("T")

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ._child import Child

    @final
    class Stub:
        """`capnode_py.Stub`, as type checkers see it where callers block: its calls give values,
        and its paths are what `Peer.get` reads. At run time it is that class itself.
        """

        def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...
        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, step: Step) -> Any: ...
        def __enter__(self) -> Self: ...
        def __exit__(self, *exc_info: object) -> None: ...
        @property
        def cap_id(self) -> str: ...
        def dealloc(self) -> None: ...

else:
    Stub = AnyStub


class Peer(AnyPeer[I_co]):
    """One connection, for callers that block: ``peer.index.add(1, 2)`` gives 3.

    What the other side calls is run while a thread waits here: by that thread, in order, one call
    at a time, also fifty deep. It may be used from several threads; with `serve_background` the
    other side is answered while none of them waits.

    ``Peer[Api]`` is for annotations: its `index` looks like an ``Api``, whose methods give values.

    Attributes:
        nickname: names the other side in errors and logs.
        pid: the process id of a spawned child, else None.
    """

    __module__ = "capnode_py.sync"

    _driver: BlockingDriver

    def __init__(self, driver: BlockingDriver, *, nickname: str = "") -> None:
        super().__init__(driver, nickname=nickname)
        self._server: threading.Thread | None = None

    if TYPE_CHECKING:

        def reconstruct(self, cap_id: str) -> Stub: ...

    @overload
    def get(self, far: Awaitable[T], *, timeout: float | None = None) -> T: ...
    @overload
    def get(self, far: T, *, timeout: float | None = None) -> T: ...

    def get(self, far: Any, *, timeout: float | None = None) -> Any:
        """Read a path: ``peer.get(peer.index.settings.theme)``; or wait for a promise.

        Args:
            far: a path on a stub, or a promise of a `pipeline`.
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: it took longer; the call is withdrawn.
            CapnodeError: what the far side raised, or that it is gone.
        """
        place_of(self._session, far, "get")
        timeout = checked_timeout(timeout)
        if isinstance(far, AnyStub):
            far = Promise(far._session, far, ())
        return self._driver.block_on(far, timeout)

    wait = get

    def with_options(self, target: T, /, *, timeout: float) -> T:
        if isinstance(target, Promise) and isinstance(target._session, _View):  # of a pipeline
            base, path = place_of(self._session, target, "with_options")
            check_seconds("timeout", timeout)
            view = _TimedView(self._driver.session, timeout)
            return cast(T, Promise(view, base, path))
        return super().with_options(target, timeout=timeout)

    with_options.__doc__ = AnyPeer.with_options.__doc__

    def request_index(self) -> Any:
        """The other side's index as a value: data copied, functions as stubs.

        An index that is an object gives `index` itself.
        """
        return self.get(self._session.index)

    @overload
    def pipeline(self, interface: None = None) -> Pipeline[I_co]: ...
    @overload
    def pipeline(self, interface: Callable[..., T]) -> Pipeline[T]: ...

    def pipeline(self, interface: Any = None) -> Pipeline[Any]:
        """Calls that do not wait: see `Pipeline`.

        Args:
            interface: what `Pipeline.index` is to type checkers: the far face of the other side
                whose methods give promises. Without it, the face that `index` has, as if they gave
                values.
        """
        check_interface(interface)
        return Pipeline(self._driver.session)

    def submit(self, target: Callable[Q, T], /, *args: Q.args, **kwargs: Q.kwargs) -> Future[T]:
        """Call `target`, and go on: ``peer.submit(peer.index.slow, 10).result()``.

        The other side is served in the background from then on (`serve_background`), so that the
        future comes to its result by itself. Cancelling it, before that, withdraws the call.
        """
        future = super().submit(target, *args, **kwargs)
        self.serve_background()
        return future

    def ping(self) -> None:
        """Return when the other side has answered.

        Raises:
            PeerClosed, PeerLost: it did not.
        """
        self._driver.block_on(self._driver.bring(self._ping), None)

    def drain(self) -> None:
        """Wait until what is to be sent has fallen below low water (`Limits.low_water`)."""
        self._complete(self._driver.drain)

    def serve_forever(self) -> None:
        """Answer the other side until the connection ends: the last line of a worker."""
        self._complete(self._driver.wait_closed)

    wait_closed = serve_forever

    def serve_background(self) -> None:
        """Answer the other side from a daemon thread, whether or not another thread waits."""
        with self._driver.held:
            if not (self._server is not None and self._server.is_alive()) and not self.is_closed:
                self._server = threading.Thread(
                    target=self.serve_forever, name=f"capnode {self.nickname}", daemon=True
                )
                self._server.start()

    def close(self) -> None:
        """Close: no new calls from us, running handlers finish, the stream ends. All bounded.

        From any thread, in any order, twice. It does not raise for a peer that died. In a fork it
        does nothing: the connection goes on in the process that opened it. Where nothing can wait,
        in a signal handler or a finalizer that interrupts a wait, it begins, and that wait, or
        the next, sees it through.
        """
        driver = self._driver
        if driver.forked:
            return
        if not driver.may_wait():
            driver.close_soon()
            return
        self._complete(driver.aclose)
        if self._server is not None and self._server is not threading.current_thread():
            self._server.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _complete(self, run: Callable[[], Any]) -> None:
        self._driver.check_may_wait()
        with self._driver.held:
            complete(run())


class Pipeline(Generic[I_co]):
    """Calls that give promises at once, and leave together: one round trip for the lot.

        with peer.pipeline() as p:
            rows = p.index.open("bob").query("x")
        peer.wait(rows)

    Only calls on what `p` gives do so: `p.index`, and ``p(stub)``. A promise can be called through,
    passed to a call, and waited for, before and after the end of the block, at which all is sent.
    """

    __module__ = "capnode_py.sync"

    def __init__(self, session: LockedSession) -> None:
        self._view = _View(session)

    @property
    def index(self) -> I_co:
        """The other side's index."""
        index: Any = self._view.session.index
        return self(index)  # type: ignore[no-any-return]

    def __call__(self, far: T) -> T:
        """A stub or a path, on which calls give promises."""
        base, path = place_of(self._view.session, far, "pipeline")
        view = self._view
        seconds = getattr(cast(Any, far)._session, "seconds", None)  # of a stub with a time limit
        if seconds is not None:
            view = _TimedView(view.session, seconds)
        return cast(T, Promise(view, base, path))

    def __repr__(self) -> str:
        return f"<Pipeline to {self._view.where}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with the_pump():
            pass


class _View:
    """A session, as the promises of a pipeline see it: calls give promises of the same kind."""

    def __init__(self, session: LockedSession) -> None:
        self.session = session
        self.wait = session.wait
        self.plain = session.plain
        self.forward = session.forward
        self.dealloc = session.dealloc
        self.cap_id = session.cap_id
        self.cancel = session.cancel
        self.is_here = session.is_here
        self.describe = session.describe
        self.far_names, self.far_doc = session.far_names, session.far_doc
        self.far_signature = session.far_signature

    @property
    def where(self) -> str:
        return self.session.where

    @property
    def _driver(self) -> BlockingDriver:
        return self.session._driver

    def call(self, base: AnyStub | Cell, path: Path, args: Any, kwargs: Any) -> Promise:
        if self.session.is_here():
            return Promise(self, self.session.call(base, path, args, kwargs)._base, ())
        with self._driver.held:  # nothing is sent yet
            return Promise(self, self.session.make(base, path, args, kwargs), ())


class _TimedView(_View):
    """Likewise of calls with a time limit."""

    def __init__(self, session: LockedSession, seconds: float) -> None:
        super().__init__(session)
        self.seconds = seconds
        self.wait = self._wait

    def call(self, base: AnyStub | Cell, path: Path, args: Any, kwargs: Any) -> Promise:
        driver = self._driver
        with driver.held:
            promise = super().call(base, path, args, kwargs)
            driver.deadlines.add(cast(Cell, promise._base), self.seconds)
        return promise

    def _wait(self, base: AnyStub | Cell, path: Path) -> Generator[Any, Any, Any]:
        with self._driver.held:
            if isinstance(base, Cell) and not path:
                self._driver.deadlines.add(base, self.seconds)
            else:  # what is read is a call of its own
                base = self.call(base, path, None, None)._base
            return self.session.wait(base, ())


class SpawnedPeer(Peer[I_co]):
    """The peer of a child process."""

    __module__ = "capnode_py.sync"

    _child: Child

    @property
    def returncode(self) -> int | None:
        return self._child.process.returncode

    @property
    def stderr_tail(self) -> str:
        """Its last lines on stderr."""
        return self._child.stderr_tail


spawned_here: WeakSet[SpawnedPeer] = WeakSet()


@atexit.register
def _warn_of_children() -> None:
    """The program ends: which children has nobody closed?"""
    for peer in list(spawned_here):
        if not peer._driver.forked:
            peer._child.warn_if_left(
                "the program ends", "with capnode.sync.spawn(...) as peer, or peer.close()"
            )


P = TypeVar("P", bound=Peer)


def make(kind: type[P], fds: tuple[int, int], settings: Settings) -> P:
    """A peer on two descriptors of our own, which may be the same."""
    with the_pump().held:  # another thread may poll, and hear of it
        return make_peer(kind, fds, settings, make_driver=BlockingDriver)


def opened(peer: P) -> P:
    """Wait for the hello; if it does not come, or Ctrl-C does, leave nothing behind."""
    driver = peer._driver
    with driver.held:
        try:
            complete(driver.open())
        except BaseException:
            complete(driver.abandon())
            raise
    return peer
