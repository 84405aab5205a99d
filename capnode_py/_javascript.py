"""Python types for what JavaScript sends and Python has no type for.

They exist so that a value comes back as what it was: a `BigInt` is an int, a `URL` a str and
`Bytes` are bytes to all who do not ask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Self, final


@final
class Undefined:
    """JavaScript's undefined: what a function gives that returns nothing. There is one."""

    __slots__ = ()
    _only: Undefined | None = None

    def __new__(cls) -> Undefined:
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "undefined"

    def __reduce__(self) -> str:
        return "undefined"


undefined: Final = Undefined()
"""JavaScript's undefined, told apart from None, which is its null. It is false."""


class BigInt(int):
    """An int that is a bigint to JavaScript. Ints that a number there cannot hold, beyond 2**53,
    cross as one without this."""

    __slots__ = ()

    def __repr__(self) -> str:
        try:
            return f"BigInt({int(self)})"
        except ValueError:  # more digits than Python writes in decimals
            return f"BigInt({hex(self)})"

    def __str__(self) -> str:
        return int.__repr__(self)


class URL(str):
    """An absolute url, a URL object to JavaScript.

    Raises:
        ValueError: JavaScript would not take it as one.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        reason = _why_no_url(text)
        if reason:
            raise ValueError(f"not an absolute url ({reason}): {text[:100]!r}")
        return super().__new__(cls, text)

    def __repr__(self) -> str:
        return f"URL({str(self)!r})"


CONTAINERS: Final[Mapping[str, str]] = {
    "Int8Array": "b",
    "Int16Array": "h",
    "Uint16Array": "H",
    "Int32Array": "i",
    "Uint32Array": "I",
    "BigInt64Array": "q",
    "BigUint64Array": "Q",
    "Float32Array": "f",
    "Float64Array": "d",
}
"""JavaScript's arrays of numbers, which arrive as `array.array` with this type code."""

_OTHER_CONTAINERS = ("ArrayBuffer", "DataView", "Uint8Array", "Uint8ClampedArray")


class Bytes(bytes):
    """Bytes that are another container to JavaScript than a Uint8Array.

    Attributes:
        container: ``"ArrayBuffer"``, ``"DataView"``, ``"Uint8ClampedArray"`` or ``"Uint8Array"``.

    Raises:
        ValueError: there is no such container of plain bytes.
    """

    container: str

    def __new__(cls, data: bytes, container: str = "ArrayBuffer") -> Self:
        if container not in _OTHER_CONTAINERS:
            raise ValueError(
                f"container={container!r} is none of {', '.join(_OTHER_CONTAINERS)}; arrays of "
                "numbers are array.array: array('h', [1, 2])"
            )
        made = super().__new__(cls, data)
        made.container = container
        return made

    def __repr__(self) -> str:
        return f"Bytes({bytes(self)!r}, {self.container!r})"


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NO_VALUE = re.compile(r"[\x00\r\n]")


class Headers(Mapping[str, str]):
    """The headers of a request or response: a Headers object to JavaScript.

    A mapping of names, in lower case, to values; a name that comes several times has its values
    joined by a comma. `pairs` has each by itself.

    Args:
        pairs: pairs of a name and a value, or a mapping.

    Raises:
        ValueError: a name or a value that no header has.
    """

    __slots__ = ("_values", "pairs")

    pairs: tuple[tuple[str, str], ...]

    def __init__(self, pairs: Mapping[str, str] | Iterable[Iterable[str]] = ()) -> None:
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        self.pairs = tuple(_header(*item) for item in items)
        self._values: dict[str, list[str]] = {}
        for name, value in self.pairs:
            self._values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> str:
        values = self._values.get(name.lower())
        if values is None:
            raise KeyError(name)
        return ", ".join(values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({list(self.pairs)!r})"


def _header(name: str, value: str) -> tuple[str, str]:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not the name of a header: {name[:100]!r}")
    if _NO_VALUE.search(value) or (value and max(value) > "\xff"):
        raise ValueError(f"not the value of a header: {value[:100]!r}")
    return name.lower(), value.strip(" \t")


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")  # at its end, it makes the host an address
_WITH_HOST = ("http", "https", "ws", "wss", "ftp")
_NO_HOST = re.compile(r"[\x00-\x20#/:<>?@\[\\\]^|%\x7f]")


def _why_no_url(text: Any) -> str:
    """What keeps JavaScript from taking it as a url; empty if nothing does.

    Stricter than the standard where that leaves much to the host: who sends a url that the other
    side refuses ends the session.
    """
    from ipaddress import ip_address
    from urllib.parse import urlsplit

    if not _SCHEME.match(text):
        return "no scheme"
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        if parts.port is not None and not 0 <= parts.port < 65536:
            return "its port"
        if host and ("[" in parts.netloc or _NUMBER.fullmatch(host.rpartition(".")[2])):
            ip_address(host)
        elif not host.isascii():
            host.encode("idna")
        elif "xn--" in host:
            host.encode().decode("idna")
    except ValueError as error:
        return str(error)
    if parts.scheme not in _WITH_HOST:
        return "" if text.isascii() else "characters that are to be quoted"
    if not host:
        return "no host"
    return "its host" if "[" not in parts.netloc and _NO_HOST.search(host) else ""
