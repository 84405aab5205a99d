"""The floor: the frames of a call and of its answer on the same loop and channel, and no RPC.

Both ends put bytes into frames and take them out again, and do no more: nothing is encoded or
decoded, no id is looked up. Each caller is given the content of its own frame, since a caller who
does not learn of the answer is none. A frame is written by itself, as soon as it is made; in the
floor that is called joined, those of one turn are written together.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from typing import NoReturn

from .subject import ROOT, Subject, run

_READ_SIZE = 64 * 1024
_HEAD = 0x40  # the head of a frame of less than 24 bytes: this, and their number
_LONGEST = 24
_HEADS = [bytes((_HEAD + size,)) for size in range(_LONGEST)]


class Floor(Subject):
    """The parent's end."""

    name = "floor"
    loops = frozenset(("uvloop", "asyncio"))
    joins = False

    async def open(self) -> None:
        self._call, answer = _contents()
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs
                [sys.executable, "-m", __name__, self.loop, answer.hex(), str(self.joins)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                cwd=ROOT,
            )
        self.pid = self._child.pid
        self._fd = ours.detach()
        os.set_blocking(self._fd, False)
        self._rest = b""
        self._unsent: list[bytes] = []
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(self._loop, self._fd)
        self._loop.add_reader(self._fd, self._readable)

    async def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._child.wait()

    async def calls(self, n: int) -> None:
        for _ in range(n):
            await self._exchange()

    async def in_flight(self, n: int, window: int) -> bool:
        for _ in range(n // window):
            await asyncio.gather(*[self._exchange() for _ in range(window)])
        return True

    async def _exchange(self) -> bytes:
        if not self.joins:
            self._writer.write(_framed(self._call))
        else:
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent.append(_framed(self._call))
        future = self._loop.create_future()
        self._waiting.append(future)
        return await future

    def _flush(self) -> None:
        data = b"".join(self._unsent)
        self._unsent.clear()
        self._writer.write(data)

    def _readable(self) -> None:
        contents, self._rest = _cut(self._rest + os.read(self._fd, _READ_SIZE))
        for content in contents:
            self._waiting.popleft().set_result(content)


class JoinedFloor(Floor):
    name = "floor, joined"
    joins = True


class Writer:
    """Writes to a descriptor; what that does not take at once waits in a queue."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop = loop
        self._fd = fd
        self._waiting: deque[bytes] = deque()

    def write(self, data: bytes) -> None:
        if self._waiting:
            self._waiting.append(data)
            return
        rest = self._write(data)
        if rest:
            self._waiting.append(rest)
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        while self._waiting:
            rest = self._write(self._waiting[0])
            if rest:
                self._waiting[0] = rest
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._fd)

    def _write(self, data: bytes) -> bytes:
        """Returns what the descriptor did not take."""
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            return data
        return data[written:] if written < len(data) else b""


def _contents() -> tuple[bytes, bytes]:
    """What the real frames of a call and its answer hold, late enough for an id of three bytes."""
    from capnode_py import Limits
    from capnode_py.codec.cbor import CborCodec

    codec = CborCodec(Limits())
    call = bytes(codec.frame([codec.call(0, ("add",), (1, 2), {}, _no_references)]))
    answer = bytes(codec.frame([codec.resolve(1000, 3, _no_references)]))
    assert max(len(call), len(answer)) <= _LONGEST
    return call[1:], answer[1:]


def _no_references(value: object) -> NoReturn:
    raise AssertionError(f"{value!r} is plain data")


def call_and_answer() -> tuple[bytes, bytes]:
    """The frames of a call and of its answer."""
    call, answer = _contents()
    return _framed(call), _framed(answer)


def _framed(content: bytes) -> bytes:
    return _HEADS[len(content)] + content


def _cut(data: bytes) -> tuple[list[bytes], bytes]:
    """The contents of the frames that are whole, and the bytes after them."""
    contents = []
    position = 0
    size = len(data)
    while position < size:
        end = position + 1 + data[position] - _HEAD
        if end > size:
            break
        contents.append(data[position + 1 : end])
        position = end
    return contents, data[position:]


async def _echo() -> None:
    """The child's end: an answer for each frame, until the stream ends."""
    answer = bytes.fromhex(sys.argv[2])
    joins = sys.argv[3] == "True"
    loop = asyncio.get_running_loop()
    writer = Writer(loop, 1)
    ended = loop.create_future()
    rest = b""

    def readable() -> None:
        nonlocal rest
        data = os.read(0, _READ_SIZE)
        if not data:
            loop.remove_reader(0)
            ended.set_result(None)
            return
        contents, rest = _cut(rest + data)
        if not joins:
            for _ in contents:
                writer.write(_framed(answer))
        elif contents:
            writer.write(b"".join([_framed(answer) for _ in contents]))

    os.set_blocking(0, False)
    loop.add_reader(0, readable)
    await ended


if __name__ == "__main__":
    run(sys.argv[1], _echo)
