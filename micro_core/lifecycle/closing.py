"""Closes the components of a process: each within a time limit, and all of them even if one fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from micro_core.contract.driver import Counters
from micro_core.contract.errors import MicroError


class Closing:
    """Closes components with a time limit, e.g. as callbacks of an `AsyncExitStack`.

    A component that raises MicroError or OSError, or exceeds `timeout_s` seconds, is logged and counted under
    `failure_counter`, and the next one is closed. Other exceptions are errors in the program and are raised.
    """

    def __init__(self, *, timeout_s: float, logger: logging.Logger, counters: Counters, failure_counter: str) -> None:
        self._timeout_s = timeout_s
        self._logger = logger
        self._counters = counters
        self._failure_counter = failure_counter

    async def close(self, close: Callable[[], Awaitable[Any]]) -> None:
        """Run `close()` within the time limit. Cancellation of the caller is passed on to `close()` and raised."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await close()
        except (MicroError, TimeoutError, OSError) as error:
            self._counters.add(self._failure_counter)
            self._logger.warning("component not closed cleanly", extra={"reason": str(error) or "timeout"})

    def push(self, stack: AsyncExitStack, close: Callable[[], Awaitable[Any]]) -> None:
        """Run `close()` within the time limit when `stack` is closed, before all callbacks that it contains now."""
        stack.push_async_callback(self.close, close)
