"""The far face of what it was written from: `capnode stubs --sync tests.typed.shop:Shop`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import builtins
    import decimal

    import tests.typed.shop
    from capnode_py import Promise


class Shop(Protocol):
    def table(self, name: str | Promise[str] = "all") -> Table: ...

    def find(self, name: str | Promise[str]) -> Table | None: ...

    def total(
        self,
        a: int | Promise[int],
        b: decimal.Decimal | Promise[decimal.Decimal] = ...,
    ) -> decimal.Decimal: ...

    def paint(self, colour: tests.typed.shop.Colour | Promise[tests.typed.shop.Colour]) -> str: ...

    def each(
        self,
        items: Sequence[int] | Promise[Sequence[int]],
        tell: Callable[[Table], int | Awaitable[int]]
        | Promise[Callable[[Table], int | Awaitable[int]]],
        by: Literal["a", 1] | Promise[Literal["a", 1]] = 1,
    ) -> Callable[[int], str]: ...

    def join(self, left: Table | Promise[Table], right: int | Promise[int]) -> int: ...

    def cannot_be_found(self, path: Any) -> Any: ...

    def untyped(self, x: Any, y: Any = ...) -> Any: ...

    def bare(self, x: dict[str, Any] | Promise[dict[str, Any]]) -> list[Any]: ...

    def list(self) -> builtins.list[int]: ...

    def promise(self) -> int: ...

    def version(self) -> str: ...

    def make(self) -> Shop: ...

    def three(self, *args: Any, **kwargs: Any) -> Any: ...

    def cached(self, n: int | Promise[int]) -> int: ...


class Table(Protocol):
    """Rows of a kind."""

    def close(self, *, hard: bool | Promise[bool] = False) -> None:
        """Close it."""
        ...

    def where(
        self,
        key: str | Promise[str],
        /,
        *more: str | Promise[str],
        **wanted: Any,
    ) -> Table: ...

    def rows(self) -> list[dict[str, Any]]:
        """The rows.

        Each is a "dict"; this is a backslash: \\
        """
        ...

    @property
    def size(self) -> Promise[int]: ...

    @property
    def first(self) -> Promise[list[int | str]]: ...
