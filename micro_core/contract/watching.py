"""Bounded watches for registry drivers: `WatchSet` implements the `watch` method of a registry.

    watches = WatchSet(context.counters)
    watch = watches.open(service, existing)          # in `watch`: begins with CREATED for each existing record
    watches.publish(changes(before, after))          # after each change of a record
    await watches.close()                            # in `close`

Use a set in one event loop only. No method waits for a watcher.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from micro_core.contract.driver import Counters
from micro_core.contract.registry import Instance, RegistryEvent, RegistryEventKind

MAX_PENDING_EVENTS = 1_024
"""Maximum number of queued events per watcher, in addition to the initial ones. One more event replaces all by RESYNC."""

RESYNC = RegistryEvent(kind=RegistryEventKind.RESYNC, instance=None)


def changes(before: Instance | None, after: Instance | None) -> list[RegistryEvent]:
    """Return the events that describe the change of a record from `before` to `after`.

    None means that there is no record. The list is empty if both are equal. If the service of a record changes, the record
    is deleted for watchers of the old service and created for watchers of the new one.
    """
    if before == after:
        return []
    if before is not None and after is not None and before.service == after.service:
        return [RegistryEvent(kind=RegistryEventKind.UPDATED, instance=after)]
    events = []
    if before is not None:
        events.append(RegistryEvent(kind=RegistryEventKind.DELETED, instance=before))
    if after is not None:
        events.append(RegistryEvent(kind=RegistryEventKind.CREATED, instance=after))
    return events


class WatchQueue:
    """A `RegistryWatch` to which a driver adds events with `offer`.

    The queue contains the `initial` events and at most `capacity` later ones. On overflow, all queued later events are
    replaced by one RESYNC. The consumer then reads `instances()`, and receives no event that is older than the RESYNC.

    Args:
        service: Only events of this service are queued; None for all services.
        initial: Events with which the watch begins. They are not counted towards `capacity`.
        capacity: Maximum number of queued later events.
        counters: Receives `registry_watch_events_dropped`.
        on_close: Called once when the watch is closed.
    """

    def __init__(
        self,
        service: str | None = None,
        *,
        initial: Iterable[RegistryEvent] = (),
        capacity: int = MAX_PENDING_EVENTS,
        counters: Counters | None = None,
        on_close: Callable[[WatchQueue], None] | None = None,
    ) -> None:
        self.service = service
        self._initial = deque(initial)
        self._pending: deque[RegistryEvent] = deque()
        self._capacity = capacity
        self._counters = counters
        self._on_close = on_close
        self._changed = asyncio.Event()
        self._closed = False

    def offer(self, event: RegistryEvent) -> None:
        """Queue `event` unless it belongs to another service or the watch is closed. Never waits."""
        if self._closed:
            return
        if self.service is not None and event.instance is not None and event.instance.service != self.service:
            return
        if len(self._pending) >= self._capacity:
            if self._counters is not None:
                self._counters.add("registry_watch_events_dropped", len(self._pending) + 1)
            self._pending.clear()
            event = RESYNC
        self._pending.append(event)
        self._changed.set()

    def __aiter__(self) -> AsyncIterator[RegistryEvent]:
        return self

    async def __anext__(self) -> RegistryEvent:
        while not self._closed:
            if self._initial:
                return self._initial.popleft()
            if self._pending:
                return self._pending.popleft()
            self._changed.clear()
            await self._changed.wait()
        raise StopAsyncIteration

    async def close(self) -> None:
        """End the iteration, also in a consumer that is waiting. Queued events are dropped. Safe to call twice."""
        self.end()

    def end(self) -> None:
        """Do the same as `close`, for callers that cannot await."""
        if self._closed:
            return
        self._closed = True
        self._initial.clear()
        self._pending.clear()
        self._changed.set()
        if self._on_close is not None:
            self._on_close(self)


class WatchSet:
    """The open watches of one registry.

    Args:
        counters: Receives `registry_watch_events_dropped`, the number of events dropped because a watcher was too slow.
        capacity: Maximum number of queued events per watcher, in addition to the initial ones.
    """

    def __init__(self, counters: Counters | None = None, *, capacity: int = MAX_PENDING_EVENTS) -> None:
        self._counters = counters
        self._capacity = capacity
        self._open: dict[WatchQueue, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, service: str | None, existing: Iterable[Instance]) -> WatchQueue:
        """Open a watch that begins with CREATED for each of the `existing` records that belongs to `service`."""
        watch = WatchQueue(
            service,
            initial=[
                RegistryEvent(kind=RegistryEventKind.CREATED, instance=instance)
                for instance in existing
                if service is None or instance.service == service
            ],
            capacity=self._capacity,
            counters=self._counters,
            on_close=lambda closed: self._open.pop(closed, None),
        )
        self._open[watch] = None
        return watch

    def publish(self, events: Iterable[RegistryEvent]) -> None:
        """Queue `events`, in order, in every open watch."""
        for event in events:
            for watch in tuple(self._open):
                watch.offer(event)

    async def close(self) -> None:
        """End every watch."""
        for watch in tuple(self._open):
            watch.end()
