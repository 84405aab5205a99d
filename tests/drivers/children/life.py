"""A child that dies, blocks, stops and starts others. Arguments: how it serves, and options.

``loop``, ``blocking`` or ``own`` (an event loop of its own); ``hasty`` lets its watchdog hurry;
``after`` goes on when it has served, and its watchdog may look at that before it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from typing import Any

import capnode_py as capnode
from capnode_py import _watchdog


def sleep(seconds: float) -> None:
    """Block the thread."""
    threading.Event().wait(seconds)


class _Looks:
    """A watchdog's waits, once the parent is gone: each is over when the program goes on.

    So what it would do to that, it has done when it has waited three times.
    """

    def __init__(self) -> None:
        self._stopped_within = _watchdog.Watchdog._stopped_within
        self._goes_on = threading.Event()
        self._waits = threading.Semaphore(0)

    def wait(self, watchdog: _watchdog.Watchdog) -> bool:
        while not self._goes_on.is_set():
            if self._stopped_within(watchdog, 0.01):
                return True
        self._waits.release()
        return self._stopped_within(watchdog, 0)

    def let(self) -> None:
        self._goes_on.set()
        if any(thread.name == "capnode watchdog" for thread in threading.enumerate()):
            for _ in range(3):
                self._waits.acquire()


class _Said(logging.Handler):
    """Hears the first record that has the word in it."""

    def __init__(self, word: str = "") -> None:
        super().__init__()
        self.heard = threading.Event()
        self.text = ""
        self._word = word

    def emit(self, record: logging.LogRecord) -> None:
        if self._word in record.getMessage() and not self.text:
            self.text = record.getMessage()
            self.heard.set()


_busy = _Said("busy")


class Life(capnode.Target):
    def add(self, a: int, b: int) -> int:
        return a + b

    def pid(self) -> int:
        return os.getpid()

    def version(self) -> int | None:
        return capnode.current_peer().application_version

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def cwd(self) -> str:
        return os.getcwd()

    def die(self, how: str) -> None:
        print("last words", file=sys.stderr, flush=True)
        if how == "exit":
            os._exit(3)
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "system-exit":
            raise SystemExit(3)
        os.kill(os.getpid(), getattr(signal, how))

    def block(self, seconds: float) -> str:
        sleep(seconds)
        return "rested"

    def block_until_it_is_said(self) -> str:
        """Block the loop, until the log has told so."""
        said = _Said()
        logger = logging.getLogger("capnode_py.stdio")
        logger.addHandler(said)
        try:
            assert said.heard.wait(20)
        finally:
            logger.removeHandler(said)
        return said.text

    def work_until_it_is_said(self) -> str:
        """One of many calls, each short, until the log has told that they are many."""
        logger = logging.getLogger("capnode_py.stdio")
        if not _busy.heard.is_set():
            logger.addHandler(_busy)  # which is there already, but for the first call
            sleep(0.005)
        return _busy.text

    def block_quietly(self) -> None:
        """And tell what ends it."""
        try:
            sleep(60)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            raise

    def block_stubbornly(self) -> None:
        while True:
            try:
                sleep(60)
            except BaseException as error:
                print("not", type(error).__name__, file=sys.stderr, flush=True)

    @capnode.in_thread
    def block_in_thread(self) -> None:
        sleep(60)

    async def wait_stubbornly(self) -> None:
        import asyncio

        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def wait(self) -> None:
        import asyncio

        await asyncio.Event().wait()

    def log(self, text: str) -> None:
        logging.getLogger("life").warning(text)

    def say(self, *lines: str) -> None:
        for line in lines:
            print(line, file=sys.stderr, flush=True)

    def say_on(self, fd: int, text: str) -> None:
        os.write(fd, text.encode())

    def start_grandchild(self, apart: bool) -> int:
        """With our descriptors, all of them; `apart` in a session of its own."""
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which the fork does not have
            pid = os.fork()
        if not pid:
            if apart:
                os.setsid()
            signal.alarm(60)
            os.write(write, b"\0")
            try:
                while True:
                    signal.pause()
            finally:
                os._exit(0)
        os.read(read, 1)
        return pid

    def start_sleeper(self) -> int:
        return subprocess.Popen(["sleep", "60"], close_fds=False).pid


if __name__ == "__main__":
    if "hasty" in sys.argv:
        _watchdog.GRACE, _watchdog.LOOKS_EVERY = 0.5, 0.1
    if "after" in sys.argv:
        looks = _Looks()
        dog: Any = _watchdog.Watchdog
        dog._stopped_within = lambda self, _seconds: looks.wait(self)
    application: dict[str, Any] = {}
    for argument in sys.argv[2:]:
        if argument.startswith("application="):
            application["application"] = argument.partition("=")[2]
        if argument.startswith("versions="):
            application["versions"] = [int(n) for n in argument.partition("=")[2].split(",")]
    if sys.argv[1] == "blocking":
        capnode.sync.serve_stdio(Life(), **application)
    elif sys.argv[1] == "loop":
        capnode.serve_stdio(Life(), **application)
    else:
        import asyncio

        async def main() -> None:
            async with capnode.stdio(Life(), **application) as peer:
                await peer.wait_closed()

        asyncio.run(main())
    if "after" in sys.argv:
        looks.let()
        mine = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        print("after", "with Ctrl-C" if mine else "", file=sys.stderr, flush=True)
