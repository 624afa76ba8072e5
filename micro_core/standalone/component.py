"""The base of the standalone components: one component of a node, or a service of its site, as a process of its own."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from micro_core.config import Settings
from micro_core.contract.driver import CountersInMemory
from micro_core.drivers.runtime import Runtime, build_runtime
from micro_core.lifecycle.closing import Closing
from micro_core.plugins import Catalog
from micro_core.standalone.discovery import Report

CLOSE_TIMEOUT_S = 15.0
"""Timeout in seconds of one step of a shutdown. A service waits up to ten seconds for its calls in progress."""


class Component(ABC):
    """A standalone component. `address` is where it listens; empty for the default of the component.

    `report` receives sentences for the operator while the component runs.
    """

    def __init__(
        self, settings: Settings, *, address: str = "", report: Report, catalog: Catalog | None = None
    ) -> None:
        self._settings = settings
        self._catalog = catalog if catalog is not None else Catalog.discover()
        self._listen_address = address
        self._report = report
        self._counters = CountersInMemory()
        self._stack = AsyncExitStack()
        self._closing = Closing(
            timeout_s=CLOSE_TIMEOUT_S,
            logger=logging.getLogger("micro.components"),
            counters=self._counters,
            failure_counter="component_stop_failures",
        )
        self.address = ""
        """The address at which the component accepts calls, once it has started."""
        self.introduction: list[str] = []
        """The lines that are printed when the component has started."""

    @abstractmethod
    async def start(self) -> None:
        """Start the component. Waits for other components of the node that it needs. Call `stop` also after a failure."""

    async def stop(self) -> None:
        """Deregister, finish the calls in progress and close everything. Safe to call at any time, and twice."""
        await self._stack.aclose()

    async def _start_runtime(self) -> Runtime:
        """Start the transport and the registry that the settings select."""
        runtime = await build_runtime(self._settings, catalog=self._catalog, counters=self._counters)
        self._close_later(runtime.close)
        return runtime

    def _close_later(self, close: Callable[[], Awaitable[Any]]) -> None:
        """Run `close()` when the component stops, before everything that was passed to this method earlier."""
        self._closing.push(self._stack, close)
