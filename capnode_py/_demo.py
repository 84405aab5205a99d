"""``capnode demo``: a walk through what it does, with a real child process.

This module is both sides. Run as a program (``python -m capnode_py._demo``) it is the child.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import textwrap
import time
import traceback
from importlib.metadata import version
from typing import Any

import capnode_py as capnode

SECONDS_A_RATE = 0.3
IN_FLIGHT = 1000


# The child's side.


class Shelf(capnode.Target):
    def __init__(self, prices: dict[str, float]) -> None:
        self._prices = prices

    def price(self, cheese: str) -> float:
        return self._prices[cheese]


class Shop(capnode.Target):
    def shelf(self, kind: str) -> Shelf:
        return Shelf({"stilton": 4.5, "gorgonzola": 3.9} if kind == "blue" else {})


class Plugin(capnode.Target):
    """What the child offers."""

    def add(self, a: int, b: int) -> int:
        return a + b

    async def paint(self, strokes: int, pause: float, on_progress: Any) -> str:
        for stroke in range(1, strokes + 1):
            await asyncio.sleep(pause)
            await on_progress(stroke, strokes)
        return f"a picture of {strokes} strokes"

    def open_shop(self) -> Shop:
        return Shop()

    def crash(self) -> None:
        print("plugin: one cheese too many", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def spawn_plugin() -> Any:
    """The child, as a door."""
    return capnode.spawn([sys.executable, "-m", "capnode_py._demo"], nickname="the demo's child")


# The parent's side.


class Screen:
    """What is shown: pleasant on a terminal, plain text without escape codes elsewhere.

    Attributes:
        live: somebody watches; a progress bar may be drawn over itself.
    """

    def __init__(self) -> None:
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self.live and not os.environ.get("NO_COLOR")
        drawn = self.live and "utf" in (sys.stdout.encoding or "").lower()
        self._line, self._full, self._empty = "━█░" if drawn else "-#."
        self._width = max(40, min(shutil.get_terminal_size().columns, 80))
        self._steps = 0

    def title(self, text: str) -> None:
        print(self._paint("1", text))

    def step(self, title: str) -> None:
        """A rule with a number and a title."""
        self._steps += 1
        head = f"{self._line * 2} {self._steps}  {title} "
        print("\n" + self._paint("1;36", head + self._line * (self._width - len(head))))

    def code(self, line: str) -> None:
        """A line of Python, which runs now."""
        print(self._paint("2", "    >>> ") + line, flush=True)

    def out(self, text: str, note: str = "") -> None:
        """A result, and what is to be said of it."""
        print(f"    {text:24}{self._paint('32', note)}".rstrip())

    def figure(self, what: str, number: float, unit: str) -> None:
        print(f"    {what:40}" + self._paint("32", f"{number:9,.0f} {unit}"))

    def say(self, text: str) -> None:
        self._wrapped(text)

    def error(self, error: BaseException) -> None:
        """An error, with the last lines of its traceback."""
        for line in "".join(traceback.format_exception_only(error)).splitlines():
            self._wrapped(line, "31")

    def progress(self, done: int, of: int) -> None:
        """Called by the child, for every step that it has done."""
        if self.live:
            full = round(30 * done / of)
            bar = self._paint("32", self._full * full) + self._paint("2", self._empty * (30 - full))
            print(f"\r    {bar} {done / of:4.0%}", end="\n" if done == of else "", flush=True)
        elif done % 5 == 0:
            self.out(f"on_progress({done}, {of})")

    def _wrapped(self, text: str, colour: str = "") -> None:
        width = self._width - 4
        for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
            print("    " + self._paint(colour, line))

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour and colour and text else text


async def walk(screen: Screen, loop_name: str) -> None:
    """The demo."""
    async with spawn_plugin() as child:
        screen.title(f"capnode {capnode.__version__}, Python {sys.version.split()[0]}, {loop_name}")
        screen.say(
            f"This process ({os.getpid()}) has started another ({child.pid}). They call each other "
            "over its stdin and stdout."
        )
        await show_call(screen, child)
        await show_progress(screen, child)
        await show_pipelining(screen, child)
        await show_crash(screen, child)
    await show_speed(screen)


async def show_call(screen: Screen, child: capnode.Peer) -> None:
    screen.step("A call")
    screen.code("await child.index.add(2, 3)")
    screen.out(repr(await child.index.add(2, 3)))


async def show_progress(screen: Screen, child: capnode.Peer) -> None:
    screen.step("A callback, with progress")
    screen.say("A function passes by reference: the child calls it here.")
    screen.code("await child.index.paint(20, pause, on_progress=progress)")
    pause = 0.03 if screen.live else 0.0
    screen.out(repr(await child.index.paint(20, pause, on_progress=screen.progress)))


async def show_pipelining(screen: Screen, child: capnode.Peer) -> None:
    screen.step("Pipelining")
    screen.say("Objects pass by reference as well. One step after another:")
    await child.ping()  # what the child still had to send is not counted below
    before = child.stats().messages_received
    screen.code("shop = await child.index.open_shop()")
    shop = await child.index.open_shop()
    screen.code("shelf = await shop.shelf('blue')")
    shelf = await shop.shelf("blue")
    screen.code("await shelf.price('stilton')")
    price = await shelf.price("stilton")
    # Each answer was waited for before the next call was made.
    trips = child.stats().messages_received - before
    screen.out(repr(price), f"{trips} round trips")

    screen.say("The same, called through promises that have no value yet:")
    await child.ping()
    before = child.stats().messages_received
    screen.code("await child.index.open_shop().shelf('blue').price('stilton')")
    price = await child.index.open_shop().shelf("blue").price("stilton")
    trips = child.stats().messages_received - before
    screen.out(repr(price), f"{trips} round trip{'s' if trips > 1 else ''}")


async def show_crash(screen: Screen, child: capnode.Peer) -> None:
    screen.step("A crash")
    screen.say("What the child writes to stderr appears here, and stays with the error.")
    screen.code("await child.index.crash()")
    try:
        await child.index.crash()
    except capnode.PeerDied as error:
        screen.error(error)


async def show_speed(screen: Screen) -> None:
    screen.step("Calls per second")
    start = time.perf_counter()
    async with spawn_plugin() as child:
        add = child.index.add
        await add(1, 2)
        spent = time.perf_counter() - start
        screen.figure("a new child, and its first answer", spent * 1000, "ms")
        screen.figure("one call after another", await rate(add, 1), "calls/s")
        screen.figure(f"{IN_FLIGHT:,} calls in flight", await rate(add, IN_FLIGHT), "calls/s")


async def rate(add: Any, in_flight: int) -> float:
    """Calls per second, with so many made before the first is awaited."""
    calls = 0
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS_A_RATE:
        for answer in [add(calls, 1) for _ in range(in_flight)]:
            await answer
        calls += in_flight
    return calls / spent


def run() -> None:
    """Show it, on uvloop if that is installed."""
    try:
        import uvloop
    except ImportError:
        factory, name = None, "asyncio"
    else:
        factory, name = uvloop.new_event_loop, f"uvloop {version('uvloop')}"
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(walk(Screen(), name))


if __name__ == "__main__":
    capnode.serve_stdio(Plugin())
