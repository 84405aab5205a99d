"""Fixtures for pytest. In a ``conftest.py`` at the root of your tests::

    pytest_plugins = ["capnode_py.testing.pytest_plugin"]

They work in plain tests, and in ``async def`` tests under pytest-asyncio, pytest-trio and anyio's
plugin: nothing here runs a loop, it goes along in the one that runs the test.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Unpack

import anyio
import pytest

from .. import sync
from .._capnode import Index
from .._doors import C, Door, Pair, pair
from .._limits import Limits
from .._spawn import SpawnedPeer, spawn
from .._start import SpawnOptions
from ._child import argv_of
from ._leaks import KINDS, NothingLeft, watch_peers

_MARKER = "capnode_may_leave"
_INI = "capnode_leaks"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(_INI, "every test uses the fixture capnode_leaks", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{_MARKER}(*kinds): of {', '.join(KINDS)}; without any, all of them"
    )
    watch_peers()


class _Checked:
    """One test that is checked.

    Attributes:
        kinds: what it must not leave.
        open: the peers that are closed when its function returns, in the loop.
        failed: its function has raised: what it left then is no news.
        told: what it left in its loop.
    """

    def __init__(self, kinds: set[str]) -> None:
        self.kinds = kinds
        self.open = contextlib.AsyncExitStack()
        self.failed = False
        self.told = ""

    def in_loop(self, test: Callable[..., Any]) -> Callable[..., Any]:
        """A coroutine function, which looks what it leaves in its loop."""

        @functools.wraps(test)
        async def checked(*args: Any, **kwargs: Any) -> Any:
            inside = NothingLeft(self.kinds.intersection(("tasks", "references")))
            inside.begin()
            try:
                try:
                    result = await test(*args, **kwargs)
                finally:
                    inside.end()
                try:
                    await inside.acheck()
                except AssertionError as error:
                    self.told = str(error)
            finally:
                with anyio.CancelScope(shield=True):
                    await self.open.aclose()
            return result

        return checked


_checked = pytest.StashKey[_Checked]()


def _fail(told: str) -> None:
    """The message alone, without this library's traceback."""
    if told:
        pytest.fail(f"the test has {told}", pytrace=False)


def _told_by(check: NothingLeft) -> str:
    try:
        check.check()
    except AssertionError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def _capnode_leaks_everywhere(request: pytest.FixtureRequest) -> None:
    if request.config.getini(_INI):
        request.getfixturevalue("capnode_leaks")


@pytest.fixture
def capnode_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves something behind: see `nothing_left`.

    Tasks and references are looked for when its function returns, and fail it. The rest is looked
    for when its fixtures have ended as well, and is an error of its teardown. What was there before
    (what fixtures of a wider scope have opened) is not counted.
    """
    marker = request.node.get_closest_marker(_MARKER)
    allowed = () if marker is None else marker.args or KINDS
    kinds = set(KINDS).difference(allowed)
    checked = _Checked(kinds)
    check = NothingLeft(kinds.difference(("tasks", "references")))  # those are looked for before
    request.node.stash[_checked] = checked
    check.begin()
    yield
    check.end()
    if not checked.failed:
        _fail(_told_by(check))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    checked = item.stash.get(_checked, None)
    if checked is None or not isinstance(item, pytest.Function):
        return (yield)
    test = item.obj
    inside = NothingLeft(checked.kinds.intersection(("references",)))
    inside.begin()
    if inspect.iscoroutinefunction(test):
        item.obj = checked.in_loop(test)
    try:
        result = yield
    except BaseException:
        checked.failed = True
        raise
    finally:
        inside.end()
        item.obj = test
    _fail(checked.told or _told_by(inside))
    return result


# Peers that are closed by themselves: async ones in the loop, when the test function returns.


@pytest.fixture
def capnode_pair(
    request: pytest.FixtureRequest, capnode_leaks: None
) -> Callable[..., Door[Pair[Any, Any]]]:
    """``near, far = await capnode_pair(far_index=Api())``: `capnode_py.pair`, closed by the test's
    end, and checked as by `capnode_leaks`.
    """
    checked = request.node.stash[_checked]

    def open_pair(
        index: Index = None,
        far_index: Index = None,
        *,
        limits: Limits | None = None,
        far_limits: Limits | None = None,
    ) -> Door[Pair[Any, Any]]:
        return _closed_by(
            checked.open, pair(index, far_index, limits=limits, far_limits=far_limits)
        )

    return open_pair


@pytest.fixture
def capnode_child(
    request: pytest.FixtureRequest, capnode_leaks: None
) -> Callable[..., Door[SpawnedPeer[Any]]]:
    """``peer = await capnode_child(Api)``: a child process that serves ``Api()``, a class or
    function of the test's own (see `argv_of`), or a command; with the options of `spawn`. Closed
    and checked as `capnode_pair`.
    """
    checked = request.node.stash[_checked]

    def open_child(
        served: Callable[[], Any] | Sequence[str], **options: Unpack[SpawnOptions]
    ) -> Door[SpawnedPeer[Any]]:
        argv = _command(served, options)
        return _closed_by(checked.open, spawn(argv, **options))

    return open_child


@pytest.fixture
def capnode_sync_pair(capnode_leaks: None) -> Iterator[Callable[..., sync.Pair[Any, Any]]]:
    """``near, far = capnode_sync_pair(far_index=Api())``: as `capnode_pair`, for plain tests."""
    with contextlib.ExitStack() as stack:

        def open_pair(
            index: Index = None,
            far_index: Index = None,
            *,
            limits: Limits | None = None,
            far_limits: Limits | None = None,
        ) -> sync.Pair[Any, Any]:
            return stack.enter_context(
                sync.pair(index, far_index, limits=limits, far_limits=far_limits)
            )

        yield open_pair


@pytest.fixture
def capnode_sync_child(capnode_leaks: None) -> Iterator[Callable[..., sync.SpawnedPeer[Any]]]:
    """``peer = capnode_sync_child(Api)``: as `capnode_child`, for plain tests."""
    with contextlib.ExitStack() as stack:

        def open_child(
            served: Callable[[], Any] | Sequence[str], **options: Unpack[SpawnOptions]
        ) -> sync.SpawnedPeer[Any]:
            argv = _command(served, options)
            return stack.enter_context(sync.spawn(argv, **options))

        yield open_child


def _closed_by(stack: contextlib.AsyncExitStack, door: Door[C]) -> Door[C]:
    async def enter() -> C:
        return await stack.enter_async_context(door)

    return Door(enter)


def _command(served: Callable[[], Any] | Sequence[str], options: SpawnOptions) -> Sequence[str]:
    """The command of a child; what serves a class is called by its name."""
    if not callable(served):
        return served
    options.setdefault("nickname", getattr(served, "__name__", ""))
    return argv_of(served)
