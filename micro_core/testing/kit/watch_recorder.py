"""A reader of registry watches that records all events and the resulting set of records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from micro_core.contract import Instance, Registry, RegistryEvent, RegistryEventKind, RegistryWatch
from micro_core.testing.kit.waiting import fail, until, within


class WatchRecorder:
    """Reads a watch in a task of its own.

    `records` holds the instances according to the events received so far. After a RESYNC event they are read from
    `instances()`, as the contract asks of watchers.
    """

    def __init__(self, registry: Registry, service: str | None, timeout_s: float) -> None:
        self.events: list[RegistryEvent] = []
        self.records: dict[str, Instance] = {}
        self.resyncs = 0
        self._registry = registry
        self._service = service
        self._timeout_s = timeout_s
        self._has_ended = False
        self._task: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the iteration of the watch has ended."""
        return self._has_ended

    async def start(self) -> WatchRecorder:
        """Open the watch and start to read it."""
        watch = await within(self._timeout_s, self._registry.watch(self._service), "watch returns")
        return self.read(watch)

    def read(self, watch: RegistryWatch) -> WatchRecorder:
        """Start to read an open watch."""
        self.watch = watch
        self._task = asyncio.create_task(self._read())
        return self

    async def close(self) -> None:
        """Close the watch and check that its iteration ends."""
        await within(self._timeout_s, self.watch.close(), "close of a watch returns")
        await self.expect_end()

    async def expect_end(self) -> None:
        """Wait for the end of the iteration, and fail if it does not end."""
        assert self._task is not None
        done, _ = await asyncio.wait([self._task], timeout=self._timeout_s)
        if not done:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            fail("the iteration of a closed watch ends: it still waits for events")
        await self._task

    async def cancel(self) -> None:
        """Stop reading, without a check."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def changes_of(self, instance_id: str) -> list[tuple[RegistryEventKind, Instance]]:
        """Return the received events of one instance in order, as (kind, instance)."""
        return [
            (event.kind, event.instance) for event in self.events if event.instance and event.instance.id == instance_id
        ]

    async def wait_until(self, condition: Callable[[], object], clause: str) -> None:
        """Wait until `condition()` is true; fail with `clause` on a timeout. Raises the error of the reading task, if any."""

        def check() -> object:
            if self._task is not None and self._task.done() and not self._task.cancelled():
                error = self._task.exception()
                if error is not None:
                    raise error
            return condition()

        await until(check, self._timeout_s, clause)

    async def _read(self) -> None:
        async for event in self.watch:
            self.events.append(event)
            if event.kind is RegistryEventKind.RESYNC:
                self.resyncs += 1
                found = await self._registry.instances(self._service)
                self.records = {instance.id: instance for instance in found}
            elif event.instance is None:
                fail(f"an event other than RESYNC carries a record: {event.kind.name} had none")
            elif event.kind is RegistryEventKind.DELETED:
                self.records.pop(event.instance.id, None)
            else:
                self.records[event.instance.id] = event.instance
        self._has_ended = True
