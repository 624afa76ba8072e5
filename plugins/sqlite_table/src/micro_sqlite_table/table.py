"""The table: answers from memory, as the one of core does; what neighbours told is written behind, by a thread.

    change -> pending (one entry a key) -> every `flush_s`, batches of BATCH_ROUTES -> thread -> one transaction each

When writing fails, changes are not collected any longer: the node goes on in memory, and each attempt to come back opens
the file anew and writes everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from micro_core.contract import (
    DriverContext,
    MicroError,
    Route,
    RouteEvent,
    RouteEventKind,
    RouteIndex,
    RouteKey,
)
from micro_core.contract.table import NETWORK_LINK
from micro_sqlite_table.options import SqliteOptions, check, path_of
from micro_sqlite_table.route_file import Found, RouteFile, Unsound
from micro_sqlite_table.rows import Clocks

T = TypeVar("T")

BATCH_ROUTES = 1_000
"""Changes of one transaction; and routes put into memory before others get their turn."""

HEARTBEAT_S = 5.0
"""How often the file is told that the node lives, where nothing changes."""

RETRY_LAST_S = 30.0
"""The longest pause before a file that fails is tried again; it doubles up to this."""


class SqliteTable(RouteIndex):
    """Implements `micro_core.contract.table.Table`."""

    def __init__(self, options: SqliteOptions, context: DriverContext) -> None:
        check(options)
        super().__init__(logger=context.logger, counters=context.counters)
        self._options = options
        self._clock = context.clock
        self._file = RouteFile(path_of(options, context), node_id=context.node_id, network=context.network)
        self._pending: dict[RouteKey, Route | None] = {}
        """What the file does not have yet; None for a route that is gone."""
        self._kept: set[RouteKey] = set()
        """The routes that belong into the file, at most `max_rows`."""
        self._is_behind = False
        """The file has failed, or holds what it should not: all must be written anew."""
        self._is_failing = False
        self._due = asyncio.Event()
        self._closing = asyncio.Event()
        self._executor: ThreadPoolExecutor | None = None
        self._writer: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Take up what the file holds of an earlier life. A file that cannot be had is tried again later.

        Raises Conflict for the file of another node, OptionError for that of another program.
        """
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite-table")
        try:
            await self._take_up(await self._open())
        except BaseException:
            await self._let_go()
            raise
        self.watch(self._changed)
        self._writer = asyncio.get_running_loop().create_task(self._keep_writing())

    async def close(self) -> None:
        """Write what is pending and close the file; the routes stay readable. Safe to call twice."""
        writer, self._writer = self._writer, None
        self._closing.set()
        self._due.set()
        try:
            if writer is not None:
                await writer
        finally:
            await self._let_go()
            self.forget_watchers()

    async def _open(self) -> Found:
        def work() -> Found:
            self._file.open()
            return self._file.read(keep_s=self._options.keep_s, most=self._options.max_rows, clocks=self._clocks())

        try:
            return await self._in_thread(work)
        except (sqlite3.Error, OSError, Unsound) as error:
            self._failed(error)
            return Found()
        finally:
            self._tell_of_set_aside()

    async def _take_up(self, found: Found) -> None:
        if found.too_old:
            self._counters.add("sqlite_routes_too_old", found.too_old)
        if found.refused:
            self._counters.add("sqlite_rows_refused", found.refused)
            self._is_behind = True
        for place, route in enumerate(found.routes):
            self._kept.add(route.key)
            self.put(route)
            if place % BATCH_ROUTES == BATCH_ROUTES - 1:
                await asyncio.sleep(0)

    async def _let_go(self) -> None:
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

    def _changed(self, event: RouteEvent) -> None:
        route, key = event.route, event.route.key
        if route.link != NETWORK_LINK:
            # Instances of this site follow the registry.
            return
        if event.kind is RouteEventKind.DELETE:
            if key not in self._kept:
                return
            self._kept.discard(key)
        elif key not in self._kept:
            if len(self._kept) >= self._options.max_rows:
                self._counters.add("sqlite_routes_over_the_bound")
                return
            self._kept.add(key)
        if self._is_behind:
            return
        self._pending[key] = None if event.kind is RouteEventKind.DELETE else route
        self._due.set()

    # --------------------------------------------------------------------- writing

    async def _keep_writing(self) -> None:
        pause_s = self._options.flush_s
        while not self._closing.is_set():
            if not self._is_behind:
                await _at_most(HEARTBEAT_S, self._due)
            await _at_most(pause_s, self._closing)
            has_written = await self._flush()
            pause_s = self._options.flush_s if has_written else min(RETRY_LAST_S, max(1.0, 2 * pause_s))
        if self._pending:
            await self._flush()

    async def _flush(self) -> bool:
        """Write what is pending, everything where the file is behind; False where that fails."""
        self._due.clear()
        clear = self._is_behind
        try:
            if self._is_behind:
                await self._in_thread(self._file.reopen)
                self._is_behind = False
                self._pending = {route.key: route for route in self.list() if route.key in self._kept}
            while True:
                batch = {key: self._pending.pop(key) for key in [*islice(self._pending, BATCH_ROUTES)]}
                refused = await self._write(batch, clear=clear)
                clear = False
                if refused:
                    self._counters.add("sqlite_routes_unfit", refused)
                if not self._pending:
                    break
        except (sqlite3.Error, OSError, Unsound, MicroError) as error:
            self._failed(error)
            return False
        finally:
            self._tell_of_set_aside()
        if self._is_failing:
            self._is_failing = False
            self._logger.info("route file is written again", extra={"path": str(self._file.path)})
        return True

    async def _write(self, batch: dict[RouteKey, Route | None], *, clear: bool) -> int:
        return await self._in_thread(lambda: self._file.write(batch, self._clocks(), clear=clear))

    def _failed(self, error: Exception) -> None:
        """Go on in memory. Said once, until it works again."""
        self._is_behind = True
        self._pending.clear()
        self._counters.add("sqlite_file_failures")
        if not self._is_failing:
            self._is_failing = True
            self._logger.warning(
                "route file failed: routes are in memory alone until it can be written again",
                extra={"path": str(self._file.path), "reason": str(error)},
            )

    def _tell_of_set_aside(self) -> None:
        aside, self._file.set_aside_as = self._file.set_aside_as, None
        if aside is not None:
            self._counters.add("sqlite_files_set_aside")
            self._logger.warning("route file was unsound and a new one is begun", extra={"path": str(aside)})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _clocks(self) -> Clocks:
        return Clocks(self._clock.now(), self._clock.wall())


async def _at_most(seconds: float, event: asyncio.Event) -> None:
    """Wait for an event, for so long at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
