"""The watchers of a table: they receive each change in order, also if one of them changes the table or fails."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from micro_core.contract.driver import Counters
from micro_core.contract.table import TableEvent

Watcher = Callable[[TableEvent], None]


class TableWatchers:
    """The callbacks of `Table.watch`.

    Args:
        logger: The logger of the context, for exceptions of watchers.
        counters: The counters of the context. Exceptions of watchers are counted as `table_watcher_failed`.
    """

    def __init__(self, *, logger: logging.Logger, counters: Counters) -> None:
        self._logger = logger
        self._counters = counters
        self._watchers: dict[object, Watcher] = {}
        self._pending: deque[TableEvent] = deque()
        self._is_notifying = False

    def __len__(self) -> int:
        return len(self._watchers)

    def add(self, callback: Watcher) -> Callable[[], None]:
        """Call `callback` with each event from now on. Return a function that ends this; it may be called twice."""
        token = object()
        self._watchers[token] = callback

        def end() -> None:
            self._watchers.pop(token, None)

        return end

    def clear(self) -> None:
        """Remove all watchers."""
        self._watchers.clear()

    def notify(self, event: TableEvent) -> None:
        """Call all watchers with `event`, after those events whose notification is in progress."""
        if not self._watchers:
            return
        self._pending.append(event)
        # If a watcher changes the table, its event stays queued until all watchers have received the current one.
        if self._is_notifying:
            return
        self._is_notifying = True
        try:
            while self._pending:
                current = self._pending.popleft()
                for token, callback in tuple(self._watchers.items()):
                    if token in self._watchers:
                        self._call(callback, current)
        finally:
            self._is_notifying = False

    def _call(self, callback: Watcher, event: TableEvent) -> None:
        try:
            callback(event)
        except Exception:
            # The change has taken effect, so the other watchers must be notified, too.
            self._counters.add("table_watcher_failed")
            self._logger.exception("table watcher failed")
