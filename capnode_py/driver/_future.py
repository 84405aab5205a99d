"""What `submit` gives on a blocking connection: a future that a handler may wait for."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ._pump import Elapsed, place

if TYPE_CHECKING:
    from .blocking import BlockingDriver


class DrivenFuture(Future[Any]):
    """While a handler waits for it, its thread goes on with the connections.

    Otherwise the answer might never be read: the thread that runs the handler may be the one which
    serves in the background.
    """

    def __init__(self, driver: BlockingDriver) -> None:
        super().__init__()
        self._driver = driver

    def result(self, timeout: float | None = None) -> Any:
        return super().result(self._drive(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(self._drive(timeout))

    def _drive(self, timeout: float | None) -> float | None:
        """Returns what is left to wait for in the usual way."""
        if place.get().driver is None or self.done():
            return timeout
        driver = self._driver
        settled = driver.make_event()
        self.add_done_callback(lambda _: driver.bring(settled.set))
        try:
            driver.wait_for(settled, timeout)
        except Elapsed:
            return 0
        return None
