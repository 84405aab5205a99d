"""Log records between a parent and a child, of which one blocks, or both do."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator

import pytest

import capnode_py as capnode
from capnode_py._logs import MAX_WAITING

PLUGIN = """
import logging, os, sys, threading
import capnode_py as capnode

log = logging.getLogger("plugin.db")


class Plugin(capnode.Target):
    def work(self):
        log.info("not shown by default")
        log.warning("took %d ms", 12)
        try:
            raise ValueError("no such table")
        except ValueError:
            log.exception("failed")
        return os.getpid()

    def in_thread(self):
        thread = threading.Thread(target=log.warning, args=("from a thread",))
        thread.start()
        thread.join()

    def many(self, count):
        for n in range(count):
            log.warning("number %d", n)


if sys.argv[1:] == ["sync"]:
    capnode.sync.serve_stdio(Plugin())
else:
    capnode.serve_stdio(Plugin())
"""
BLOCKING = [sys.executable, "-c", PLUGIN, "sync"]
LOOPED = [sys.executable, "-c", PLUGIN]

pytestmark = pytest.mark.usefixtures("nothing_left")


class Records(logging.Handler):
    """Those that have come from a child."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "peer") or record.name == "capnode_py.logs":
            self.found.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.found]


@pytest.fixture
def records() -> Iterator[Records]:
    records = Records()
    root = logging.getLogger()
    root.addHandler(records)
    yield records
    root.removeHandler(records)


@pytest.fixture(autouse=True)
def _errors_may_be_logged(nothing_left: None) -> Iterator[None]:
    """By the child, in the parent."""
    logger = logging.getLogger("plugin.db")
    logger.propagate = False
    yield
    logger.propagate = True


@pytest.fixture
def heard(records: Records) -> Iterator[Records]:
    logger = logging.getLogger("plugin.db")
    logger.addHandler(records)
    yield records
    logger.removeHandler(records)


@pytest.mark.parametrize("child", [BLOCKING, LOOPED], ids=["blocking", "looped"])
def test_a_parent_that_blocks_gets_the_records_of_its_child(child, heard):
    with capnode.sync.spawn(child, logs=True, nickname="db") as peer:
        pid = peer.index.work()
        while len(heard.found) < 2:
            peer.ping()
        peer.index.in_thread()
        while len(heard.found) < 3:
            peer.ping()
    assert heard.texts == ["took 12 ms", "failed", "from a thread"]
    warning, error, _ = heard.found
    assert (warning.name, warning.levelname, warning.process) == ("plugin.db", "WARNING", pid)
    assert vars(warning)["peer"] == "db"
    assert "ValueError: no such table" in str(error.exc_text)


def test_a_child_that_blocks_sends_its_records_to_a_parent_in_a_loop(heard):
    async def main() -> None:
        async with capnode.spawn(BLOCKING, logs=logging.INFO) as peer:
            await peer.index.work()
            while len(heard.found) < 3:
                await peer.ping()

    level = logging.getLogger("plugin.db").level
    logging.getLogger("plugin.db").setLevel(logging.INFO)
    try:
        asyncio.run(main())
    finally:
        logging.getLogger("plugin.db").setLevel(level)
    assert heard.texts == ["not shown by default", "took 12 ms", "failed"]


def test_what_a_handler_logs_beyond_the_bound_is_dropped_and_told(heard):
    count = MAX_WAITING + 500
    with capnode.sync.spawn(BLOCKING, logs=True) as peer:
        peer.index.many(count)
        while len(heard.found) < MAX_WAITING + 1:
            peer.ping()
    numbers = [f"number {n}" for n in range(MAX_WAITING)]
    assert [text for text in heard.texts if text.startswith("number")] == numbers
    dropped = [record for record in heard.found if record.name == "capnode_py.logs"]
    assert ["500 log records were dropped" in record.getMessage() for record in dropped] == [True]
