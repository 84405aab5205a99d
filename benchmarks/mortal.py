"""The child of ``benchmarks.child``, which loads nothing that it does not need."""

from __future__ import annotations

import os
import sys

import capnode_py as capnode


class Mortal(capnode.Target):
    def add(self, a: int, b: int) -> int:
        return a + b

    def die(self, how: str) -> None:
        if how == "held" and not os.fork():
            hold()
        if how == "stdout":
            close_all()
        if how in ("exit", "held"):
            os._exit(3)
        import signal

        os.kill(os.getpid(), getattr(signal, how))

    def block(self) -> None:
        wait()

    def refuse(self) -> None:
        while True:
            try:
                wait()
            except BaseException:  # noqa: BLE001 - that is what it does
                continue


def hold() -> None:
    """Keep all that is open so, in another session, for a while."""
    import signal

    os.setsid()
    signal.alarm(2)
    while True:
        signal.pause()


def close_all() -> None:
    """Close the wire by hand, and go on."""
    for fd in range(3, 64):
        try:
            os.close(fd)
        except OSError:
            continue
    wait()


def wait() -> None:
    import threading

    threading.Event().wait(600)


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        capnode.serve_stdio(Mortal())
    else:
        capnode.sync.serve_stdio(Mortal())
