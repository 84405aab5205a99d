"""What README and docs say is so: their code runs, their bytes are the codec's, their names exist.

In README and guide a fenced python block whose first line is ``# name.py`` is a file; any other is
run as the body of an async function, with `peer` connected to the section's plugin.py. A text block
behind it holds what was printed, with ``...`` for what differs; one that begins with ``$ python``
is a run of that file. Each section starts in an empty folder.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import importlib.util
import inspect
import io
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import cbor2
import pytest

import capnode_py as capnode
from capnode_py import Limits
from capnode_py._cap_ids import of_export
from capnode_py._errors import FarError, from_far
from capnode_py._messages import (
    CALL,
    PUSH,
    REJECT,
    RESOLVE,
    SEND,
    Hello,
    Mine,
    Promised,
    Recording,
    Slot,
    Yours,
)
from capnode_py.codec.cbor import CborCodec
from capnode_py.codec.cbor_writer import TAG_ERROR, TAG_RECORDING, TAG_REF
from capnode_py.testing import FakeDriver, Wire

ROOT = Path(__file__).parents[1]
PACKAGE = Path(capnode.__file__).parent
PROTOCOL = (ROOT / "docs/protocol.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


class Block(NamedTuple):
    language: str
    text: str
    line: int
    scenario: str = ""


@pytest.fixture(autouse=True)
def _same_log_level():
    """The guide sets it."""
    logger = logging.getLogger("capnode_py")
    level = logger.level
    yield
    logger.setLevel(level)


def blocks(text: str) -> Iterator[Block]:
    found = re.compile(
        r"(?:<!-- scenario: (?P<scenario>\w+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
        re.MULTILINE | re.DOTALL,
    )
    for match in found.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(match["language"], match["text"], line, match["scenario"] or "")


# README and guide.


def sections(name: str) -> Iterator[Any]:
    text = (ROOT / name).read_text()
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        title = part.splitlines()[0].lstrip("# ")
        first = text.count("\n", 0, text.index(part))
        found = [block._replace(line=block.line + first) for block in blocks(part)]
        if any(block.language == "python" for block in found):
            yield pytest.param(name, found, id=f"{Path(name).stem}: {title}")


@pytest.mark.parametrize(("page", "found"), [*sections("README.md"), *sections("docs/guide.md")])
def test_the_code_of_a_section_does_what_is_shown(page, found, tmp_path, monkeypatch):
    if "import trio" in "".join(block.text for block in found):
        found = [b for b in found if trio_installed() or "trio" not in b.text]
    if not importlib.util.find_spec("websockets"):  # an extra
        found = [b for b in found if "ws://" not in b.text]
    monkeypatch.chdir(tmp_path)
    with asyncio.Runner() as runner:
        runner.run(Reader(page, found).read())


def trio_installed() -> bool:
    return importlib.util.find_spec("trio") is not None


class Reader:
    """Does what a reader of a section would do."""

    def __init__(self, page: str, found: list[Block]) -> None:
        self._page = page
        self._blocks = found
        self._files: set[str] = set()
        self._names: dict[str, Any] = {"capnode": capnode, "asyncio": asyncio, "sys": sys}

    async def read(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for block, after in zip(self._blocks, [*self._blocks[1:], None], strict=True):
                shown = after.text if after is not None and after.language == "text" else None
                if block.language == "python":
                    if not self._save(block):
                        await self._connect(stack)
                        self._compare(block, await self._run(block), shown)
                elif block.language == "text" and block.text.startswith("$ python "):
                    self._compare(block, await asyncio.to_thread(run_file, block.text), block.text)

    def _save(self, block: Block) -> bool:
        """Save a block that is a file; False if it is none."""
        name = re.match(r"# (\w+\.py)\n", block.text)
        if name:
            self._files.add(name[1])
            Path(name[1]).write_text(block.text)
        return name is not None

    async def _connect(self, stack: contextlib.AsyncExitStack) -> None:
        if "peer" not in self._names and "plugin.py" in self._files:
            door = capnode.spawn([sys.executable, "plugin.py"])
            self._names["peer"] = await stack.enter_async_context(door)

    async def _run(self, block: Block) -> str:
        code = compile(
            "\n" * (block.line - 1) + block.text,
            str(ROOT / self._page),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        )
        with contextlib.redirect_stdout(io.StringIO()) as out:
            result = eval(code, self._names)
            if inspect.isawaitable(result):
                await result
        return out.getvalue()

    def _compare(self, block: Block, got: str, shown: str | None) -> None:
        checker = doctest.OutputChecker()
        got = re.sub(r"^ *[~^]+\n", "", got, flags=re.MULTILINE)  # not the same on every Python
        if not checker.check_output(shown or "", got, doctest.ELLIPSIS):
            pytest.fail(f"{self._page}:{block.line} shows\n{shown}\nand it is\n{got}", False)


def run_file(shown: str) -> str:
    command = shown.splitlines()[0]
    argv = [sys.executable, *command.split()[2:]]
    done = subprocess.run(
        argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30
    )
    return f"{command}\n{done.stdout}"


def test_the_first_screen_of_the_readme_is_short():
    readme = (ROOT / "README.md").read_text()
    for name in ("plugin.py", "script.py"):
        block = next(b for b in blocks(readme) if b.text.startswith(f"# {name}\n"))
        assert len([line for line in block.text.splitlines()[1:] if line.strip()]) <= 5
    first_screen = "\n".join(readme.splitlines()[:50])
    for command in (
        "python3 -m venv .venv && .venv/bin/pip install '.[uvloop]' && .venv/bin/capnode demo",
        "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox",
    ):
        assert command in first_screen


@pytest.mark.parametrize("page", ["README.md", *sorted(p.name for p in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(page):
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# The bytes of docs/protocol.md.


class Ref(NamedTuple):
    fields: Any


class Opaque:
    """Hides a reference from the encoder, which would take a NamedTuple for a tuple."""

    def __init__(self, ref: Mine | Promised | Yours) -> None:
        self.ref = ref


def notation(text: str) -> Any:
    """CBOR's diagnostic notation, with references as `Opaque` and errors as exceptions."""
    text = re.sub(r"h'([0-9a-f]*)'", r"bytes.fromhex('\1')", text)
    text = re.sub(r"\b(\d+)\(", r"tag(\1, ", text)
    names = {
        "null": None,
        "true": True,
        "false": False,
        "tag": cbor2.CBORTag,
        "ref": lambda fields: slot(*fields[1:]) if fields[0] == 3 else Opaque(reference(*fields)),
        "map": lambda fields: Recording(*fields),
        "error": lambda fields: from_far(FarError(*fields), where="far"),
    }
    return eval(text, names)


def reference(kind: int, id: int, path: list[str | int] | None = None) -> Mine | Promised | Yours:
    if kind == 2:
        return Yours(id, tuple(path or ()))
    return Mine(id) if kind == 0 else Promised(id)


def slot(id: int, path: Any = (), *rest: Any) -> Slot:
    return Slot(id, tuple(path), *rest)


def to_ref(value: Any) -> Any:
    assert isinstance(value, Opaque)
    return value.ref


def encode(message: list[Any]) -> bytes:
    """A message, by the method of the codec that writes such."""
    codec = CborCodec(Limits(), tracebacks=False)
    codec.features = {"map"}
    word, *fields = message
    if word in (CALL, PUSH, SEND):
        target, path, *rest = fields
        args, kwargs = (*rest, None, None)[:2]
        return bytes(codec.word(codec.call(target, tuple(path), args, kwargs or {}, to_ref), word))
    if word == RESOLVE:
        id, value = fields
        return bytes(codec.resolve(id, value, to_ref))
    if word == REJECT:
        id, error = fields
        return codec.reject(id, error)
    return codec.control(word, *fields)


def plain(value: Any) -> Any:
    """What can be compared: references as the codec leaves them, errors by what they say."""
    if isinstance(value, Opaque):
        return value.ref
    if isinstance(value, capnode.RemoteError):
        return type(value), value.remote_type, value.message, value.remote_traceback
    if isinstance(value, (list, Recording, Slot)):
        return [plain(item) for item in value]
    return value


def examples(language: str) -> list[Any]:
    """(hex, notation) of each example in blocks of this language; `hex` may take several lines."""
    return [
        pytest.param(raw, text, id=f"{block.line}-{number}: {text[:50]}")
        for block in blocks(PROTOCOL)
        if block.language == language
        for number, (raw, text) in enumerate(lines(block.text), 1)
    ]


def lines(text: str) -> Iterator[tuple[bytes, str]]:
    raw = shown = ""
    for line in text.splitlines():
        match = re.fullmatch(r"(?:[AB]: )?\s*((?:[0-9a-f]{2}(?: |$))*)\s*(.*)", line)
        assert match is not None, line
        starts = re.match(r"[AB]: |[0-9a-f]{2} ", line) is not None
        if starts and raw:
            yield bytes.fromhex(raw), shown
            raw = shown = ""
        raw += match[1] + " "
        shown += match[2].strip() + " " if match[2] else ""
    yield bytes.fromhex(raw), shown


@pytest.mark.parametrize(("raw", "text"), examples("hex"))
def test_the_bytes_of_the_protocol_page_are_what_the_codec_writes_and_reads(raw, text):
    codec = CborCodec(Limits())
    meant = notation(text)
    if isinstance(meant, list):
        assert encode(meant) == raw
        (read,), _ = codec.decode(b"\x81" + raw)
    else:
        head = bytes(codec.resolve(1, None, to_ref))[:-1]
        assert CborCodec(Limits(), tracebacks=False).resolve(1, meant, to_ref) == head + raw
        ((_, _, read),), _ = codec.decode(b"\x81" + head + raw)
    assert plain(read) == plain(meant)


@pytest.mark.parametrize(("raw", "text"), examples("wire"))
def test_the_frames_of_the_protocol_page_hold_what_it_says(raw, text):
    codec = CborCodec(Limits())
    meant = notation(text)
    if isinstance(meant, dict):
        (hello,) = codec.feed(raw)
        assert isinstance(hello, Hello)
        assert codec.hello(hello) == raw
        assert cbor2.loads(raw[5:]) == meant
        return
    assert codec.frame([encode(message) for message in meant]) == raw
    hello = Hello(versions=[1], max_frame=1000, max_depth=64)
    _, frame = codec.feed(codec.hello(hello) + raw)
    assert isinstance(frame, bytes)
    messages, _ = codec.decode(frame)
    assert plain(messages) == plain(meant)


VALUES = re.findall(r"^\| `(.+?)` \| `([0-9a-f ]+)` \| `(.+)` \|$", PROTOCOL, re.MULTILINE)


@pytest.mark.parametrize(("value", "raw", "text"), VALUES)
def test_the_table_of_values_is_what_the_codec_writes_and_reads(value, raw, text):
    codec = CborCodec(Limits())
    meant = eval(value, {"datetime": datetime, "UTC": UTC, "Decimal": Decimal, "UUID": UUID})
    message = bytes(codec.resolve(1, meant, to_ref))
    assert message[3:] == bytes.fromhex(raw)
    ((_, _, read),), _ = codec.decode(b"\x81" + message)
    assert (type(read), read) == (type(meant), meant)
    assert cbor2.dumps(notation(text)) == bytes.fromhex(raw)


def test_the_cap_ids_of_the_protocol_page_are_what_both_sides_compute():
    shown = re.findall(r"^\| (0|-\d+) \| `(cap\.c\.[^`]+)` \|$", PROTOCOL, re.MULTILINE)
    assert [int(id) for id, _ in shown] == [0, -1, -300]
    for id, cap_id in shown:
        assert of_export(b"\x01" * 16, b"\x11" * 16, int(id)) == cap_id


def test_the_tags_of_the_protocol_page_are_the_codecs():
    said = " ".join(PROTOCOL.split())
    assert f"`ref(...)` ({TAG_REF}) and `error(...)` ({TAG_ERROR})" in said
    assert f"a third as `map(...)` ({TAG_RECORDING})" in said


# Its conversations.


class Opened(capnode.Target):
    def query(self, text):
        return text.upper()


class Index(capnode.Target):
    def add(self, a, b):
        return a + b

    def open(self, _name):
        return Opened()

    def shelf(self):
        return [Opened(), Opened()]

    async def each(self, items, function):
        for item in items:
            await function(item)
        return len(items)

    def echo(self, value):
        return value


async def call(a: FakeDriver) -> None:
    assert await a.index.add(1, 2) == 3


async def an_object(a: FakeDriver) -> None:
    opened = await a.index.open("bob")
    assert await opened.query("x") == "X"


async def pipeline(a: FakeDriver) -> None:
    assert await a.index.open("bob").query("x") == "X"


async def callback(a: FakeDriver) -> None:
    assert await a.index.each([1, 2], lambda item: item * 10) == 2


async def a_map(a: FakeDriver) -> None:
    assert await a.index.shelf().map(lambda opened: opened.query("x")) == ["X", "X"]


async def barrier(a: FakeDriver) -> None:
    got: list[str] = []
    function = got.append
    promise = a.index.echo(function)
    promise("early")
    assert await promise == function
    assert got == ["early"]


async def send(a: FakeDriver) -> None:
    a.peer.notify(a.index.add, 1, 2)
    await a.peer.ping()


SCENARIOS: dict[str, Callable[[FakeDriver], Any]] = {
    "call": call,
    "object": an_object,
    "pipeline": pipeline,
    "callback": callback,
    "map": a_map,
    "barrier": barrier,
    "send": send,
}


@pytest.mark.parametrize("block", [b for b in blocks(PROTOCOL) if b.scenario], ids=lambda b: b[3])
def test_the_conversations_of_the_protocol_page_go_like_that(block):
    said: list[tuple[str, bytes]] = []
    with Wire() as wire:
        a, b = wire.link(far_index=Index(), names=("A", "B"))
        for side in (a, b):
            overhear(side, said)
        a.get(SCENARIOS[block.scenario](a))
        wire.run()
    speakers = re.findall(r"^([AB]): ", block.text, re.MULTILINE)
    assert said == [(who, raw) for who, (raw, _) in zip(speakers, lines(block.text), strict=True)]


def overhear(side: FakeDriver, said: list[tuple[str, bytes]]) -> None:
    put = side._put

    def spy(frame: Any) -> None:
        said.append((side.name, frame.data))
        put(frame)

    side._put = spy  # type: ignore[method-assign]


def test_every_scenario_is_shown():
    assert {b.scenario for b in blocks(PROTOCOL) if b.scenario} == set(SCENARIOS)


# The names of docs/architecture.md.


def defined_in(path: Path) -> set[str]:
    """The functions and classes of a module, as ``name`` and ``Class.name``."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{n.name}" for n in inner}
    return names


NAMED = sorted(set(re.findall(r"`([\w/]+\.py): ([\w.]+)`", ARCHITECTURE)))


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_what_the_architecture_page_names_exists(module, name):
    assert name in defined_in(PACKAGE / module)


def test_the_architecture_page_follows_a_call_by_names():
    assert len(NAMED) > 50


def test_the_architecture_page_has_a_line_for_every_module():
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", ARCHITECTURE, re.MULTILINE)
    there = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert sorted(listed) == sorted(there - {"codec/__init__.py", "driver/__init__.py"})
