"""The process of one contender: it does what the table asks for, and says how long it took.

``python -m benchmarks.worker NAME FD``: a line of JSON for each request on that descriptor, and one
for each answer.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from .contenders import entry
from .contenders.base import Cannot, Contender

_ONCE = 0.02  # seconds that tell how often something can be done in a run


class Worker:
    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._often: dict[str, int] = {}

    async def time(self, method: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Do it for about so long. Gives how long one takes, and what the CPU did for it."""
        if "size" in arguments:
            arguments = {"data": os.urandom(arguments["size"])}
        do = getattr(self._contender, method)
        key = f"{method} {arguments.get('window') or arguments.get('times') or ''}" + str(
            len(arguments.get("data", b""))
        )
        unit = arguments.get("window", 1)
        if key not in self._often:
            n = unit
            while True:
                started = time.perf_counter()
                await do(n, **arguments)
                took = time.perf_counter() - started
                if took >= min(_ONCE, seconds):
                    break
                n *= 4
            self._often[key] = max(int(n * seconds / took) // unit * unit, unit)

        n = self._often[key]
        gc.collect()
        before = cpu_of(os.getpid()), cpu_of(self._contender.pid)
        started = time.perf_counter()
        await do(n, **arguments)
        took = time.perf_counter() - started
        after = cpu_of(os.getpid()), cpu_of(self._contender.pid)
        here, there = ((late - early) / n for early, late in zip(before, after, strict=True))
        return {"seconds": took / n, "here": here, "there": there, "n": n}

    async def first(self) -> dict[str, Any]:
        """A new child, until it has answered one call."""
        fresh = self._contender.fresh()
        started = time.perf_counter()
        await fresh.open()
        await fresh.call(1)
        took = time.perf_counter() - started
        await fresh.close()
        return {"seconds": took}

    async def references(self, n: int = 0) -> dict[str, Any]:
        """The bytes that one takes on either side, when many are held; the seconds of taking and
        of dropping one."""
        contender = self._contender
        n = n or contender.holds
        await contender.hold(n // 10)  # what is made once and stays
        await contender.drop()
        before = memory_of(os.getpid()), memory_of(contender.pid)
        started = time.perf_counter()
        await contender.hold(n)
        took = time.perf_counter() - started
        await contender.call(1)
        after = memory_of(os.getpid()), memory_of(contender.pid)
        started = time.perf_counter()
        await contender.drop()
        dropped = time.perf_counter() - started
        here, there = ((late - early) / n for early, late in zip(before, after, strict=True))
        return {"here": here, "there": there, "take": took / n, "drop": dropped / n}

    async def peak(self, size: int) -> dict[str, Any]:
        """The largest memory of both processes while a value of this size is echoed twice."""
        await self._contender.echo(2, os.urandom(size))
        return {"here": peak_of(os.getpid()), "there": peak_of(self._contender.pid)}

    async def counted(self, n: int) -> dict[str, Any]:
        """So many calls, one after the other; the messages that were counted, if they are."""
        before = self._contender.messages()
        await self._contender.call(n)
        after = self._contender.messages()
        if before is None or after is None:
            return {}
        return {"sent": (after[0] - before[0]) / n, "received": (after[1] - before[1]) / n}

    async def pids(self) -> dict[str, Any]:
        return {"here": os.getpid(), "there": self._contender.pid}


def cpu_of(pid: int) -> float:
    """The seconds that all threads of a process have run."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:  # it has ended
            continue
    return total / 1e9


def memory_of(pid: int) -> int:
    """The bytes of a process that are its own."""
    gc.collect()
    fields = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in fields[1:]}
    return (sizes["Private_Dirty"] + sizes["Private_Clean"]) * 1024


def peak_of(pid: int) -> int:
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


async def serve(contender: Contender, control: Any) -> None:
    await contender.open()
    await contender.call(1)  # a child may still be starting
    worker = Worker(contender)
    _say(control, {"ready": True})
    for line in control:
        request = json.loads(line)
        if request["do"] == "close":
            break
        try:
            answer = await getattr(worker, request.pop("do"))(**request)
        except Cannot as error:
            answer = {"cannot": str(error)}
        except Exception as error:  # noqa: BLE001 - it is a cell of the table
            answer = {"cannot": f"{type(error).__name__}: {error}"[:200], "broken": True}
        _say(control, answer)
    await contender.close()
    _say(control, {"closed": True})


def _say(control: Any, answer: dict[str, Any]) -> None:
    control.write(json.dumps(answer) + "\n")
    control.flush()


def main() -> None:
    name, fd = sys.argv[1:]
    control = socket.socket(fileno=int(fd)).makefile("rw")
    contender = entry(name).make()
    contender.run(lambda: serve(contender, control))


if __name__ == "__main__":
    main()
