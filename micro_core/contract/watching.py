"""What every registry driver needs for `watch`: a bounded queue a watcher iterates, and the set of all of them.

    watches = WatchSet(context.counters)
    watch = watches.open(service, standing)          # in `watch`: CREATED for each standing record comes first
    watches.publish(changes(before, after))          # wherever a record changes
    await watches.close()                            # in `close`

To be used in one event loop. Nothing here waits for a watcher.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from micro_core.contract.driver import Counters
from micro_core.contract.registry import Instance, RegistryEvent, RegistryEventKind

MAX_PENDING_EVENTS = 1_024
"""Events that wait for one watcher, beyond the initial ones; one more and it is told to read everything anew."""

RESYNC = RegistryEvent(kind=RegistryEventKind.RESYNC, instance=None)


def changes(before: Instance | None, after: Instance | None) -> list[RegistryEvent]:
    """The events that tell watchers of a record's change; none when nothing changed. None stands for no record.

    A record that moves to another service is gone for watchers of the one and new for those of the other.
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
    """A `RegistryWatch` that a driver feeds with `offer`.

    Holds `initial` and at most `capacity` events after it. On overflow what waits is replaced by one RESYNC:
    the reader then reads `instances()` and goes on, and sees no event older than that RESYNC.
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
        """Queue `event` unless it is of another service; never waits. Ignored after the end."""
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
        """End the iteration, also one that waits. What is queued is not delivered. Safe to call twice."""
        self.end()

    def end(self) -> None:
        """`close`, for callers that cannot await."""
        if self._closed:
            return
        self._closed = True
        self._initial.clear()
        self._pending.clear()
        self._changed.set()
        if self._on_close is not None:
            self._on_close(self)


class WatchSet:
    """The open watches of one registry: what `watch` opens, `close` ends, and whatever changes a record publishes to.

    Given the context's counters, it counts events that a slow watcher has to do without.
    """

    def __init__(self, counters: Counters | None = None, *, capacity: int = MAX_PENDING_EVENTS) -> None:
        self._counters = counters
        self._capacity = capacity
        self._open: dict[WatchQueue, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, service: str | None, standing: Iterable[Instance]) -> WatchQueue:
        """A new watch that begins with one CREATED for each of `standing` that is of `service`."""
        watch = WatchQueue(
            service,
            initial=[
                RegistryEvent(kind=RegistryEventKind.CREATED, instance=instance)
                for instance in standing
                if service is None or instance.service == service
            ],
            capacity=self._capacity,
            counters=self._counters,
            on_close=lambda gone: self._open.pop(gone, None),
        )
        self._open[watch] = None
        return watch

    def publish(self, events: Iterable[RegistryEvent]) -> None:
        """Offer `events`, in order, to every open watch."""
        for event in events:
            for watch in tuple(self._open):
                watch.offer(event)

    async def close(self) -> None:
        """End every watch."""
        for watch in tuple(self._open):
            watch.end()
