"""The table: lookups are answered from memory; a thread writes origin routes and offers to the file in the background.

    change -> pending (one entry per key) -> every `flush_s`, batches of BATCH_ROWS -> thread -> one transaction each

After a failed write, changes are no longer collected and the node continues in memory. Each retry opens the file again and
writes all routes and offers.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from micro_core.contract import (
    DriverContext,
    LocalRouteChanged,
    MicroError,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteChanged,
    OriginRouteKey,
    RouteIndex,
    TableEvent,
)
from micro_sqlite_table.options import SqliteOptions, check_options, file_path
from micro_sqlite_table.route_file import Changes, CorruptFileError, LoadedRoutes, RouteFile
from micro_sqlite_table.rows import Clocks, OfferKey

T = TypeVar("T")
K = TypeVar("K")

BATCH_ROWS = 1_000
"""Maximum number of changes per transaction, and of rows loaded before the event loop may run other tasks."""

HEARTBEAT_S = 5.0
"""Seconds between two updates of the `alive_at` entry while no routes change."""

MAX_RETRY_S = 30.0
"""Longest pause in seconds before a failed file is retried; the pause doubles up to this value."""


class _RowLimit(Generic[K]):
    """Decides which of the known keys are in the file: the first `max_rows` ones. Only the others are remembered."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._stored = 0
        self._others: set[K] = set()

    def add(self, key: K) -> bool:
        """Add a new key. Return whether it belongs in the file."""
        if self._stored >= self._max_rows:
            self._others.add(key)
            return False
        self._stored += 1
        return True

    def discard(self, key: K) -> bool:
        """Remove a known key. Return whether it was in the file."""
        if key in self._others:
            self._others.discard(key)
            return False
        self._stored -= 1
        return True

    def contains(self, key: K) -> bool:
        """Return whether a known key belongs in the file."""
        return key not in self._others


class SqliteTable(RouteIndex):
    """Implements `micro_core.contract.table.Table`."""

    def __init__(self, options: SqliteOptions, context: DriverContext) -> None:
        check_options(options)
        super().__init__(logger=context.logger, counters=context.counters)
        self._options = options
        self._clock = context.clock
        self._file = RouteFile(file_path(options, context), node_id=context.node_id, network=context.network)
        self._unwritten = Changes()
        """Changes that are not in the file yet."""
        self._stored_routes = _RowLimit[OriginRouteKey](options.max_rows)
        self._stored_offers = _RowLimit[OfferKey](options.max_rows)
        self._must_rewrite = False
        """Whether the file must be rewritten completely, because it failed or contained invalid rows."""
        self._is_failing = False
        self._due = asyncio.Event()
        self._closing = asyncio.Event()
        self._executor: ThreadPoolExecutor | None = None
        self._writer: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------- lifecycle

    async def start(self) -> None:
        """Load the routes of the previous run. A file that cannot be opened is retried in the background.

        Raises Conflict if the file belongs to another node or is in use, OptionError if another program has created it.
        """
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite-table")
        try:
            await self._load(await self._open())
        except BaseException:
            await self._close_file()
            raise
        self.watch(self._changed)
        self._writer = asyncio.get_running_loop().create_task(self._keep_writing())

    async def close(self) -> None:
        """Write pending changes and close the file. The routes stay readable. Safe to call twice."""
        writer, self._writer = self._writer, None
        self._closing.set()
        self._due.set()
        try:
            if writer is not None:
                await writer
        finally:
            await self._close_file()
            self.forget_watchers()

    async def _open(self) -> LoadedRoutes:
        def work() -> LoadedRoutes:
            self._file.open()
            return self._file.read(keep_s=self._options.keep_s, max_rows=self._options.max_rows, clocks=self._clocks())

        try:
            return await self._in_thread(work)
        except (sqlite3.Error, OSError, CorruptFileError) as error:
            self._failed(error)
            return LoadedRoutes()
        finally:
            self._report_set_aside()

    async def _load(self, loaded: LoadedRoutes) -> None:
        if loaded.too_old:
            self._counters.add("sqlite_routes_too_old", loaded.too_old)
        if loaded.refused:
            self._counters.add("sqlite_rows_refused", loaded.refused)
            self._must_rewrite = True
        for index, route in enumerate(loaded.routes):
            self._stored_routes.add(route.key)
            self.put_origin_route(route)
            if index % BATCH_ROWS == BATCH_ROWS - 1:
                await asyncio.sleep(0)
        for origin, offers in loaded.offers:
            for start in range(0, len(offers), BATCH_ROWS):
                batch = offers[start : start + BATCH_ROWS]
                for offer in batch:
                    self._stored_offers.add((origin, offer.service))
                self.change_offers(origin, batch)
                await asyncio.sleep(0)

    async def _close_file(self) -> None:
        executor, self._executor = self._executor, None
        if executor is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(executor, self._file.close)
        except sqlite3.Error as error:
            self._counters.add("sqlite_close_failures")
            self._logger.warning("route file did not close cleanly", extra={"reason": str(error)})
        finally:
            executor.shutdown(wait=False)

    # --------------------------------------------------------------------- changes

    def _changed(self, event: TableEvent) -> None:
        match event:
            case OriginRouteChanged(before, after):
                self._route_changed(before, after)
            case OffersChanged(origin, changes):
                for offer_before, offer_after in changes:
                    self._offer_changed(origin, offer_before, offer_after)
            case LocalRouteChanged():
                # Routes to instances of this site come from the registry.
                return
        if len(self._unwritten):
            self._due.set()

    def _route_changed(self, before: OriginRoute | None, after: OriginRoute | None) -> None:
        route = after or before
        if route is not None and self._must_write(self._stored_routes, route.key, before, after):
            self._unwritten.routes[route.key] = after

    def _offer_changed(self, origin: str, before: Offer | None, after: Offer | None) -> None:
        offer = after or before
        if offer is not None and self._must_write(self._stored_offers, (origin, offer.service), before, after):
            self._unwritten.offers[origin, offer.service] = after

    def _must_write(self, stored: _RowLimit[K], key: K, before: object, after: object) -> bool:
        if after is None:
            was_stored = stored.discard(key)
            return was_stored and not self._must_rewrite
        if before is None and not stored.add(key):
            self._counters.add("sqlite_routes_over_limit")
        return stored.contains(key) and not self._must_rewrite

    # --------------------------------------------------------------------- writing

    async def _keep_writing(self) -> None:
        pause_s = self._options.flush_s
        while not self._closing.is_set():
            if not self._must_rewrite:
                await _wait(self._due, HEARTBEAT_S)
            await _wait(self._closing, pause_s)
            has_written = await self._flush()
            pause_s = self._options.flush_s if has_written else min(MAX_RETRY_S, max(1.0, 2 * pause_s))
        if self._unwritten:
            await self._flush()

    async def _flush(self) -> bool:
        """Write pending changes, or all routes if the file must be rewritten; return whether that succeeded."""
        self._due.clear()
        clear = self._must_rewrite
        try:
            if self._must_rewrite:
                await self._in_thread(self._file.reopen)
                self._must_rewrite = False
                self._unwritten = self._everything()
            while True:
                batch = self._unwritten.pop_batch(BATCH_ROWS)
                refused = await self._write(batch, clear=clear)
                clear = False
                if refused:
                    self._counters.add("sqlite_routes_invalid", refused)
                if not self._unwritten:
                    break
        except (sqlite3.Error, OSError, CorruptFileError, MicroError) as error:
            self._failed(error)
            return False
        finally:
            self._report_set_aside()
        if self._is_failing:
            self._is_failing = False
            self._logger.info("route file recovered", extra={"path": str(self._file.path)})
        return True

    def _everything(self) -> Changes:
        changes = Changes()
        changes.routes.update(
            (route.key, route) for route in self.origin_routes() if self._stored_routes.contains(route.key)
        )
        # Including origins without a route now, since their later changes contain the changed offers only.
        for origin in self.origins():
            for offer in self.offers(origin):
                if self._stored_offers.contains((origin, offer.service)):
                    changes.offers[origin, offer.service] = offer
        return changes

    async def _write(self, batch: Changes, *, clear: bool) -> int:
        return await self._in_thread(lambda: self._file.write(batch, self._clocks(), clear=clear))

    def _failed(self, error: Exception) -> None:
        """Continue in memory; log the first failure until the file works again."""
        self._must_rewrite = True
        self._unwritten.clear()
        self._counters.add("sqlite_file_failures")
        if not self._is_failing:
            self._is_failing = True
            self._logger.warning(
                "route file failed: routes are kept in memory only until it recovers",
                extra={"path": str(self._file.path), "reason": str(error)},
            )

    def _report_set_aside(self) -> None:
        if self._file.was_replaced:
            self._file.was_replaced = False
            self._counters.add("sqlite_files_replaced")
            self._logger.info("route file of an earlier version replaced", extra={"path": str(self._file.path)})
        aside, self._file.set_aside_as = self._file.set_aside_as, None
        if aside is not None:
            self._counters.add("sqlite_files_set_aside")
            self._logger.warning("corrupt route file set aside, new file created", extra={"path": str(aside)})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _clocks(self) -> Clocks:
        return Clocks(self._clock.now(), self._clock.wall())


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, but not longer than `timeout_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
