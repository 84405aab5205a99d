"""Log records of a child, or of any peer, in the `logging` of the other side."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import capnode_py as capnode
from capnode_py import Limits
from capnode_py._lasting import shares
from capnode_py._logs import MAX_LOGGERS, MAX_TEXT, MAX_WAITING, LogForwarder
from capnode_py._messages import Hello
from capnode_py.codec.cbor import CborCodec

TWO_DRIVERS = pytest.mark.drivers("asyncio", "trio")

PLUGIN = """
import logging, os, sys
import capnode_py as capnode

log = logging.getLogger("plugin.db")


class Plugin(capnode.Target):
    def work(self):
        print("plain", file=sys.stderr)
        log.info("not shown by default")
        log.warning("took %d ms, %r", 12, object)
        try:
            raise ValueError("no such table")
        except ValueError:
            log.exception("failed")
        return os.getpid(), os.environ.get("CAPNODE_LOGS")

    async def wait(self):
        import asyncio

        await asyncio.Event().wait()


capnode.serve_stdio(Plugin())
"""
ARGV = [sys.executable, "-c", PLUGIN]


class Records(logging.Handler):
    """Those that have come from a peer, and a way to wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []
        self._more = anyio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "peer") or record.name == "capnode_py.logs":
            self.found.append(record)
            self._more.set()

    async def until(self, count: int) -> list[logging.LogRecord]:
        while len(self.found) < count:
            self._more = anyio.Event()
            await self._more.wait()
        return self.found

    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.found]


@pytest.fixture
def root():
    """The root logger, as it is left behind."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    assert not [h for h in root.handlers if isinstance(h, LogForwarder)]
    root.handlers[:] = before
    root.setLevel(level)


@contextlib.contextmanager
def records(root: logging.Logger):
    found = Records()
    root.addHandler(found)
    yield found
    root.removeHandler(found)


@contextlib.asynccontextmanager
async def forwarding(root: logging.Logger):
    """Both ends in this program: what is logged here arrives here."""
    receiver = capnode.log_receiver("near")
    with records(root) as found:
        async with capnode.pair(index={"log": receiver}) as (_, far):
            capnode.forward_logs(far, far.index.log)
            yield found


async def test_the_records_of_a_child_arrive_as_they_were(driver, root, capsys, caplog):
    with records(root) as found:
        async with capnode.spawn(ARGV, logs=True, nickname="db") as peer:
            pid, variable = await peer.index.work()
            warning, error = await found.until(2)
    assert variable is None
    assert warning.getMessage() == "took 12 ms, <class 'object'>"
    assert (warning.name, warning.levelno, warning.levelname) == ("plugin.db", 30, "WARNING")
    assert (warning.args, warning.exc_info, warning.exc_text) == (None, None, None)
    assert (warning.process, warning.processName) == (pid, "MainProcess")
    assert (warning.funcName, warning.filename) == ("work", "<string>")
    assert warning.peer == "db"
    assert 0 <= error.created - warning.created < 20
    assert error.getMessage() == "failed"
    shown = logging.Formatter("%(name)s %(message)s").format(error)
    assert shown.startswith("plugin.db failed\nTraceback (most recent call last):\n")
    assert shown.endswith("ValueError: no such table")
    err = capsys.readouterr().err
    assert err == "plain\n"


@TWO_DRIVERS
async def test_a_level_is_that_of_the_childs_root(driver, root, caplog):
    root.setLevel(logging.DEBUG)
    with records(root) as found:
        async with capnode.spawn(ARGV, logs=logging.INFO) as peer:
            await peer.index.work()
            await found.until(3)
    assert found.texts()[0] == "not shown by default"


@TWO_DRIVERS
async def test_our_own_levels_hold_for_them(driver, root, caplog):
    logging.getLogger("plugin").setLevel(logging.ERROR)
    try:
        with records(root) as found:
            async with capnode.spawn(ARGV, logs=True) as peer:
                await peer.index.work()
                await found.until(1)
        assert found.texts() == ["failed"]
    finally:
        logging.getLogger("plugin").setLevel(logging.NOTSET)


@pytest.mark.drivers("asyncio")
async def test_nothing_is_forwarded_that_was_not_asked_for(driver, root, capsys):
    with records(root) as found:
        async with capnode.spawn(ARGV) as peer:
            await peer.index.work()
            await peer.ping()
    assert found.found == []
    assert "took 12 ms" in capsys.readouterr().err
    for wrong in ("INFO", None, 1.0):
        with pytest.raises(TypeError, match=r"logs= takes True, or a level"):
            _ = capnode.spawn(ARGV, logs=wrong)  # type: ignore[arg-type]


@TWO_DRIVERS
async def test_each_life_of_a_supervised_child_sends_its_records(driver, root, caplog):
    with records(root) as found:
        async with capnode.supervise(ARGV, logs=True, backoff=0, restart="always") as peer:
            await peer.index.work()
            await found.until(2)
            os.kill(peer.pid or 0, 9)
            with pytest.raises(capnode.PeerRestarted):
                await peer.index.wait()
            await peer.wait_started()
            pid, _ = await peer.index.work()
            await found.until(4)
            assert len(shares._shared) == 1
    assert len(shares._shared) == 0
    assert [record.process for record in found.found[2:]] == [pid, pid]


# The handler: it never recurses, blocks or fails the program.


async def test_what_waits_is_bounded_and_what_is_dropped_is_counted(driver, root):
    log = logging.getLogger("many")
    async with forwarding(root) as found:
        for n in range(MAX_WAITING + 5):
            log.warning("%d", n)
        *all_but_one, last = await found.until(MAX_WAITING + 1)
    assert {record.name for record in all_but_one} | {last.name} == {"many", "capnode_py.logs"}
    assert "near: 5 log records were dropped on their way" in found.texts()
    numbers = [r.getMessage() for r in found.found if r.name == "many"]
    assert numbers == [str(n) for n in range(MAX_WAITING)]


async def test_what_logs_while_it_is_logged_does_not_recurse(driver, root):
    log = logging.getLogger("inner")
    log.propagate = False  # pytest's handlers ask for the text as well

    class Chatty:
        def __str__(self) -> str:
            log.warning("asked for its text")
            return "chatty"

    class Broken:
        def __str__(self) -> str:
            raise ValueError("no text")

    async with forwarding(root) as found:
        (handler,) = [h for h in root.handlers if isinstance(h, LogForwarder)]
        log.handlers = [handler, found]
        log.warning("%s", Chatty())
        log.warning("%s", Broken())
        log.warning("\udcff and ü")
        log.warning("x" * 2 * MAX_TEXT)
        await found.until(4)
    texts = found.texts()
    assert "chatty" in texts
    assert "asked for its text" not in texts
    assert "\\udcff and ü" in texts
    assert "x" * MAX_TEXT in texts
    assert "near: 1 log records were dropped on their way" in texts
    log.handlers.clear()
    log.propagate = True


async def test_any_thread_may_log(driver, root):
    async with forwarding(root) as found:
        thread = threading.Thread(target=logging.getLogger("t").warning, args=("hi",), name="w")
        thread.start()
        thread.join()
        (record,) = await found.until(1)
        assert (record.getMessage(), record.threadName) == ("hi", "w")


async def test_it_ends_with_the_connection(driver, root):
    async with forwarding(root) as found:
        (handler,) = [h for h in root.handlers if isinstance(h, LogForwarder)]
        logging.getLogger("end").warning("one")
        await found.until(1)
    assert handler not in root.handlers
    logging.getLogger("end").warning("two")
    handler.handle(found.found[0])  # somebody holds it still
    assert len(found.found) == 1


@TWO_DRIVERS
async def test_a_side_that_does_not_read_is_not_written_to_without_end(driver, root):
    codec = CborCodec(Limits())
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(codec.hello(Hello(versions=[1])))
        limits = Limits(close_timeout=0.05)
        async with capnode.attach(ours, limits=limits) as peer:
            capnode.forward_logs(peer, peer.index.log)
            for n in range(3 * MAX_WAITING):
                logging.getLogger("flood").warning("%s", "x" * MAX_TEXT)
                if n % 50 == 0:
                    await anyio.lowlevel.checkpoint()
            assert limits.low_water < peer.stats().unsent_bytes < limits.high_water


def test_what_a_stranger_sends_is_checked():
    found = Records.__new__(Records)
    logging.Handler.__init__(found)
    found.found, found._more = [], anyio.Event()
    logging.getLogger().addHandler(found)
    receive: Any = capnode.log_receiver("they")
    good = ["text", None, None, "a.logger", 30, "WARNING", 1.5, 1, None, None, "/x/y.py", 3, None]
    try:
        receive([good], 0)
        (record,) = found.found
        assert (record.module, record.filename, record.msecs) == ("y", "y.py", 500)
        for position in range(len(good)):
            wrong: list[Any] = good.copy()
            wrong[position] = {}
            receive([wrong, good[:-1], "no record"], 0)
        assert len(found.found) == 1 + len(good)
        assert all(
            text == "they: 3 log records were dropped on their way" for text in found.texts()[1:]
        )
        known = len(logging.root.manager.loggerDict)
        for n in range(MAX_LOGGERS + 50):
            receive([[*good[:3], f"stranger{n}", *good[4:]]], 0)
        assert len(logging.root.manager.loggerDict) <= known + MAX_LOGGERS
    finally:
        logging.getLogger().removeHandler(found)
        for name in [n for n in logging.root.manager.loggerDict if n.startswith("stranger")]:
            del logging.root.manager.loggerDict[name]
