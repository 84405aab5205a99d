"""The far face of what it was written from: `capnode stubs tests.typed.shop:Shop`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import builtins
    import decimal

    import tests.typed.shop
    from capnode_py import Promise


class Shop(Protocol):
    def table(self, name: str | Promise[str] = "all") -> PromisedTable: ...

    def find(self, name: str | Promise[str]) -> Promise[Table | None]: ...

    def total(
        self,
        a: int | Promise[int],
        b: decimal.Decimal | Promise[decimal.Decimal] = ...,
    ) -> Promise[decimal.Decimal]: ...

    def paint(
        self,
        colour: tests.typed.shop.Colour | Promise[tests.typed.shop.Colour],
    ) -> Promise[str]: ...

    def each(
        self,
        items: Sequence[int] | Promise[Sequence[int]],
        tell: Callable[[Table], int | Awaitable[int]]
        | Promise[Callable[[Table], int | Awaitable[int]]],
        by: Literal["a", 1] | Promise[Literal["a", 1]] = 1,
    ) -> Promise[Callable[[int], Promise[str]]]: ...

    def join(self, left: Table | Promise[Table], right: int | Promise[int]) -> Promise[int]: ...

    def cannot_be_found(self, path: Any) -> Promise[Any]: ...

    def untyped(self, x: Any, y: Any = ...) -> Promise[Any]: ...

    def bare(self, x: dict[str, Any] | Promise[dict[str, Any]]) -> Promise[list[Any]]: ...

    def list(self) -> Promise[builtins.list[int]]: ...

    def promise(self) -> Promise[int]: ...

    def version(self) -> Promise[str]: ...

    def make(self) -> PromisedShop: ...

    def three(self, *args: Any, **kwargs: Any) -> Promise[Any]: ...

    def cached(self, n: int | Promise[int]) -> Promise[int]: ...


class PromisedShop(Shop, Awaitable[Shop], Protocol):
    """A `Shop` that is not here yet: await it, or call through it."""

    def cancel(self) -> None: ...


class Table(Protocol):
    """Rows of a kind."""

    def close(self, *, hard: bool | Promise[bool] = False) -> Promise[None]:
        """Close it."""
        ...

    def where(
        self,
        key: str | Promise[str],
        /,
        *more: str | Promise[str],
        **wanted: Any,
    ) -> PromisedTable: ...

    def rows(self) -> Promise[list[dict[str, Any]]]:
        """The rows.

        Each is a "dict"; this is a backslash: \\
        """
        ...

    @property
    def size(self) -> Promise[int]: ...

    @property
    def first(self) -> Promise[list[int | str]]: ...


class PromisedTable(Table, Awaitable[Table], Protocol):
    """A `Table` that is not here yet: await it, or call through it."""

    def cancel(self) -> None: ...
