"""Errors: what a far handler raises arrives as what it was, with the story of how it happened."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import traceback
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import PeerClosed, PeerDied, PeerLost, ProtocolError, RemoteError
from capnode_py._errors import MIRRORED


class BankruptError(ValueError):
    """A user's subclass of a builtin."""


class StrangeError(Exception):
    """A user's class whose instances are made in another way than others."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(code)
        self.reason = reason

    def __str__(self) -> str:
        return f"strange {self.reason}"


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Nameless:
    def __repr__(self) -> str:
        raise RuntimeError("no name")


class GreedyError(KeyError, OSError):
    """Two builtins at once: the nearest counts."""


def raiser(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return fail


def slow_raiser(error: BaseException) -> Any:
    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    return fail


RAISED = [
    (ValueError("bad value"), ValueError, "bad value"),
    (ValueError(), ValueError, ""),
    (KeyError("key"), KeyError, "'key'"),
    (KeyError("key", 2), LookupError, "('key', 2)"),
    (ZeroDivisionError("division by zero"), ArithmeticError, "division by zero"),
    (FileNotFoundError(2, "No such file", "x"), OSError, "[Errno 2] No such file: 'x'"),
    (OSError("plain"), OSError, "plain"),
    (TimeoutError("too late"), TimeoutError, "too late"),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), ValueError, "can't decode byte"),
    (NotImplementedError("later"), RuntimeError, "later"),
    (AssertionError("claim"), AssertionError, "claim"),
    (EOFError("end"), EOFError, "end"),
    (BankruptError("no money"), ValueError, "BankruptError: no money"),
    (StrangeError(1, reason="matter"), RemoteError, "StrangeError: strange matter"),
    (MuteError(), RemoteError, "MuteError: <no text: its __str__ raised RuntimeError>"),
    (Exception("just that"), RemoteError, "just that"),
    (StopIteration(3), RemoteError, ""),
    (StopAsyncIteration("end"), RemoteError, "end"),
    (ExceptionGroup("many", [ValueError("one")]), RemoteError, "many (1 sub-exception)"),
    (SystemExit(3), RemoteError, "handler was exited by SystemExit(3)"),
    (GeneratorExit(), RemoteError, "handler"),
    (asyncio.CancelledError(), RemoteError, "handler was cancelled"),
    (ValueError("\ud800 surrogate"), ValueError, "surrogate"),
    (ValueError("x" * 100_000), ValueError, "xxx"),
    (GreedyError("g"), KeyError, "g"),
]


async def test_an_error_arrives_as_what_it_was(any_road, subtests):
    """C2."""
    errors = [error for error, _, _ in RAISED]
    near, _ = await any_road.open(
        far_index={"now": [*map(raiser, errors)], "slow": [*map(slow_raiser, errors)]}
    )
    for n, (error, caught_as, text) in enumerate(RAISED):
        with subtests.test(repr(error)[:50]):
            for fail in (near.index.now[n], near.index.slow[n]):
                with pytest.raises(RemoteError) as caught:
                    await fail()
                _check(caught.value, error, caught_as, text)
            error.__traceback__ = None  # it would hold this test's frames


def _check(caught: RemoteError, error: BaseException, caught_as: type, text: str) -> None:
    assert isinstance(caught, caught_as)
    assert text in str(caught)
    if not isinstance(error, StopIteration):  # Python makes RuntimeErrors of it in coroutines
        assert caught.remote_type == type(error).__name__
    never = (StopIteration, StopAsyncIteration, ExceptionGroup, ConnectionError)
    assert not isinstance(caught, never)


async def test_each_builtin_error_arrives_as_itself_and_is_raised_afresh(any_road):
    near, _ = await any_road.open(far_index={"fail": _fail})
    for name in sorted(MIRRORED):
        for _ in range(2):
            with pytest.raises(MIRRORED[name]) as raised:
                await near.index.fail(name)
            assert type(raised.value).__name__ == f"RemoteError[{name}]"
    del raised


def _fail(name: str) -> None:
    raise MIRRORED[name].__new__(MIRRORED[name])


async def test_the_code_of_an_os_error_arrives(any_road):
    """C2: by its name, since numbers differ between systems; also from a host further away."""

    def fail(number: Any) -> None:
        raise OSError(number, "over there", "a file") if number else OSError("no number")

    middle, _ = await any_road.open(far_index=fail)
    near, _ = await any_road.open(far_index={"fail": fail, "further": lambda n: middle.index(n)})
    for call in (near.index.fail, near.index.further):
        with pytest.raises(FileNotFoundError) as missing:
            await call(errno.ENOENT)
        assert (missing.value.errno, missing.value.strerror) == (2, os.strerror(2))
        with pytest.raises(OSError, match="over there") as full:
            await call(errno.ENOSPC)
        assert full.value.errno == errno.ENOSPC
        for unknown in (None, 99_999):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the class is the point
                await call(unknown)
            assert caught.value.errno is None


async def test_key_errors_text_is_not_quoted_twice(any_road):
    near, _ = await any_road.open(far_index={"fail": raiser(KeyError("name"))})
    with pytest.raises(KeyError) as caught:
        await near.index.fail()
    assert caught.value.message == "'name'"  # type: ignore[attr-defined]
    assert str(caught.value) in ("'name'", "KeyError: 'name'")


async def test_a_key_that_cannot_be_shown_fails_its_call_only(any_road):
    near, _ = await any_road.open(
        far_index={"fail": raiser(KeyError(Nameless())), "one": lambda: 1}
    )
    with pytest.raises(KeyError, match="no text: its __str__ raised RuntimeError"):
        await near.index.fail()
    assert await near.index.one() == 1


async def test_the_librarys_own_errors_are_not_mirrored(any_road):
    """The loss of a third party must not look like the loss of this peer."""
    errors = [PeerLost("gone"), PeerClosed("closed"), ProtocolError("p"), PeerDied("died", pid=1)]
    near, _ = await any_road.open(far_index={"errors": [raiser(error) for error in errors]})
    for position, error in enumerate(errors):
        with pytest.raises(RemoteError) as caught:
            await near.index.errors[position]()
        assert not isinstance(caught.value, (PeerLost, PeerClosed, ProtocolError, OSError))
        assert str(caught.value).startswith(type(error).__name__)
    assert not near.is_closed


async def test_the_far_traceback_is_a_note_that_shows_where_it_happened(road):
    def inner(amount: int) -> None:
        raise BankruptError(f"{amount} is too much")

    async def withdraw(amount: int) -> None:
        inner(amount)

    near, _ = await road.open(far_index={"withdraw": withdraw})
    with pytest.raises(ValueError, match="100 is too much") as caught:
        await near.index.withdraw(100)
    shown = "".join(traceback.format_exception(caught.value))
    assert 'raise BankruptError(f"{amount} is too much")' in shown
    assert "inner(amount)" in shown
    assert "BankruptError: 100 is too much" in shown
    assert "near.index.withdraw(100)" in shown  # our side of the story
    remote = caught.value.remote_traceback  # type: ignore[attr-defined]
    assert "/capnode_py/" not in remote  # the library's frames tell nobody anything
    assert "Raised in far" in shown
    assert shown.index("near.index.withdraw(100)") < shown.index("inner(amount)")


async def test_an_error_through_two_hops_reads_as_one_story(any_road):
    """C2: near asks middle, which asks far: the text shows each step once, and the first cause."""

    def dig() -> None:
        raise LookupError("no gold")

    middle, _ = await any_road.open(far_index={"dig": dig})

    async def ask() -> Any:
        return await middle.index.dig()

    async def explain() -> Any:
        try:
            return await middle.index.dig()
        except LookupError as error:
            raise RuntimeError("the mine is empty") from error

    near, _ = await any_road.open(
        far_index={"ask": ask, "explain": explain, "pass_on": lambda: middle.index.dig()}
    )
    for call in (near.index.ask, near.index.pass_on):
        with pytest.raises(LookupError, match="no gold") as caught:
            await call()
        shown = "".join(traceback.format_exception(caught.value))
        assert shown.count('raise LookupError("no gold")') == 1
        assert shown.count("no gold") <= 6
        assert caught.value.remote_type == "LookupError"  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="the mine is empty") as explained:
        await near.index.explain()
    shown = "".join(traceback.format_exception(explained.value))
    assert 'raise LookupError("no gold")' in shown
    assert "direct cause" in shown


async def test_an_error_of_our_own_callback_comes_back_as_a_far_one(any_road):
    """It went to the other side and back: its text is there once."""

    def fail() -> None:
        raise BankruptError("mine")

    async def call(it: Any) -> Any:
        return await it()

    near, _ = await any_road.open(far_index={"call": call})
    with pytest.raises(ValueError, match="mine") as caught:
        await near.index.call(fail)
    assert caught.value.remote_type == "BankruptError"  # type: ignore[attr-defined]
    shown = "".join(traceback.format_exception(caught.value))
    assert 'raise BankruptError("mine")' in shown


async def test_tracebacks_cross_a_network_only_when_asked(driver, tmp_path):
    """C2."""
    for wanted in (False, True):
        url = f"unix:{tmp_path}/{wanted}"
        async with (
            capnode.listen(url, index={"fail": raiser(ValueError("x"))}, tracebacks=wanted),
            capnode.connect(url) as peer,
        ):
            with pytest.raises(ValueError, match="x") as caught:
                await peer.index.fail()
            remote = caught.value.remote_traceback  # type: ignore[attr-defined]
            assert (remote is not None) is wanted


@pytest.mark.loop
async def test_each_waiter_gets_a_fresh_exception(any_road):
    caught: list[BaseException] = []
    near, _ = await any_road.open(far_index={"fail": slow_raiser(LookupError("once"))})
    promise = near.index.fail()

    async def wait() -> None:
        try:
            await promise
        except LookupError as error:
            caught.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(wait)
    await wait()
    await wait()
    assert len({id(error) for error in caught}) == 5
    assert {str(error) for error in caught} == {"once"}
    depths = {len(traceback.extract_tb(error.__traceback__)) for error in caught}
    assert len(depths) == 1  # a shared one would have grown with each raise
    assert all(error.__notes__ == caught[0].__notes__ for error in caught)


async def test_a_failure_nobody_looked_at_is_logged_once_where_it_ran(any_road, caplog):
    caplog.set_level(logging.DEBUG, "capnode_py")
    near, _ = await any_road.open(far_index={"fail": raiser(LookupError("unseen"))})
    near.notify(near.index.fail)
    near.index.fail()["x"]()  # goes as a push, and is dropped
    await near.ping()
    await near.ping()
    await near.ping()
    logged = [record for record in caplog.records if record.exc_info]
    assert len(logged) == 2
    assert {record.levelno for record in logged} == {logging.DEBUG}
    assert all("unseen" in str(record.exc_info and record.exc_info[1]) for record in logged)


async def test_an_error_in_a_property_or_in_iteration_fails_that_call_alone(any_road):
    class Odd(capnode.Target):
        @property
        def broken(self) -> None:
            raise AttributeError("inner attribute")

        def exit(self) -> None:
            raise SystemExit(1)

    near, _ = await any_road.open(far_index=Odd())
    with pytest.raises(AttributeError, match="inner attribute"):
        await near.index.broken
    with pytest.raises(RemoteError, match="exited"):
        await near.index.exit()
    with pytest.raises(AttributeError):
        await near.index.missing()


async def test_a_base_exception_of_a_users_fails_the_call_alone(any_road):
    class Abort(BaseException):
        pass

    near, _ = await any_road.open(
        far_index={"now": raiser(Abort("a")), "slow": slow_raiser(Abort("b")), "ok": lambda: "ok"}
    )
    for fail in (near.index.now, near.index.slow):
        with pytest.raises(RemoteError):
            await fail()
    assert await near.index.ok() == "ok"


@pytest.mark.loop
async def test_an_exception_group_crosses_with_its_members_in_the_text(any_road):
    async def fail() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(slow_raiser(ValueError("first member")))

    near, _ = await any_road.open(far_index={"fail": fail})
    with pytest.raises(RemoteError) as caught:
        await near.index.fail()
    assert "first member" in "".join(traceback.format_exception(caught.value))
