"""Targets with all that a signature can say; `far_shop.py` is what is written of them."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache, partialmethod
from typing import TYPE_CHECKING, Any, Literal, Self

import capnode_py as capnode

if TYPE_CHECKING:
    from pathlib import Path


@capnode.by_copy
@dataclass
class Row:
    id: int


@capnode.by_copy
class Colour(enum.Enum):
    RED = "red"


class Closable(capnode.Target):
    def close(self, *, hard: bool = False) -> None:
        """Close it."""


class Table(Closable):
    """Rows of a kind."""

    limit = 3

    def __init__(self, *rows: Row) -> None:
        self._rows = list(rows)

    def where(self, key: str, /, *more: str, **wanted: Any) -> Self:
        return self

    def rows(self) -> list[Row]:
        """The rows.

        Each is a "dict"; this is a backslash: \\
        """
        return self._rows

    @property
    def size(self) -> int:
        return len(self._rows)

    @cached_property
    def first(self) -> tuple[int, str]:
        return self._rows[0].id, "row"


class Shop(capnode.Target):
    def table(self, name: str = "all") -> Table:
        return Table(Row(1), Row(2))

    def find(self, name: str) -> Table | None:
        return Table() if name else None

    async def total(self, a: int, b: Decimal = Decimal(1)) -> Decimal:
        return a * b

    def paint(self, colour: Colour) -> Colour:
        return Colour(colour)

    async def each(
        self, items: Sequence[int], tell: Callable[[Table], Awaitable[int]], by: Literal["a", 1] = 1
    ) -> Callable[[int], str]:
        for _item in items:
            await tell(Table())
        return lambda n: str(n)

    def join(self, left: Table, right: int) -> int:
        return left.size + right

    def cannot_be_found(self, path: Path) -> Path:
        return path

    def untyped(self, x, y=...):
        return x

    def bare(self, x: dict) -> tuple:
        return tuple(x)

    def list(self) -> list[int]:
        return [1, 2]

    def promise(self) -> Awaitable[int]:
        raise NotImplementedError

    @staticmethod
    def version() -> str:
        return "1"

    @classmethod
    def make(cls) -> Shop:
        return cls()

    three = partialmethod(total, 3)

    @lru_cache  # noqa: B019 - it is the signature that counts
    def cached(self, n: int) -> int:
        return n

    def _hidden(self) -> int:
        return 0
