"""Several registries as one: reads are merged, writes go to all. A registry that fails does not stop the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from micro_core.contract.driver import Counters
from micro_core.contract.errors import Closed, MicroError
from micro_core.contract.registry import Instance, Registry, RegistryEvent, RegistryEventKind, RegistryWatch
from micro_core.contract.watching import RESYNC, WatchQueue, changes
from micro_core.lifecycle.background_tasks import BackgroundTasks

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 1.0
"""Pause before a registry that failed is watched again."""


class JoinedRegistry:
    """Implements `Registry` with `registries` in order of precedence.

    If two registries have a record with the same id, the record of the earlier registry is used. An operation fails only if
    it fails in all registries; the error is that of the first one.
    """

    def __init__(self, registries: Sequence[Registry], counters: Counters) -> None:
        self._registries = list(registries)
        self._counters = counters
        self._watches: dict[_JoinedWatch, None] = {}

    async def start(self) -> None:
        """Start all registries."""
        await self._call_all([registry.start() for registry in self._registries])

    async def close(self) -> None:
        """End the watches and close all registries. Safe to call twice."""
        for watch in list(self._watches):
            await watch.close()
        await asyncio.gather(*(registry.close() for registry in self._registries), return_exceptions=True)

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Register in all registries."""
        await self._call_all([registry.register(instance, lease_s=lease_s) for registry in self._registries])

    async def deregister(self, instance: Instance) -> None:
        """Deregister in all registries."""
        await self._call_all([registry.deregister(instance) for registry in self._registries])

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return the records of all registries, one per id."""
        answers = await self._call_all([registry.instances(service) for registry in self._registries])
        merged: dict[str, Instance] = {}
        for answer in answers:
            for instance in answer:
                merged.setdefault(instance.id, instance)
        return list(merged.values())

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Watch all registries. A record is DELETED when the last registry has removed it."""
        watch = _JoinedWatch(self._registries, service, self._counters, self._watches)
        self._watches[watch] = None
        return watch

    async def _call_all(self, calls: Sequence[Awaitable[T]]) -> list[T]:
        answers = await asyncio.gather(*calls, return_exceptions=True)
        results: list[T] = []
        failure: MicroError | None = None
        for answer in answers:
            if isinstance(answer, MicroError):
                self._counters.add("registry_failures")
                log.warning("a registry failed", extra={"reason": str(answer)})
                failure = failure or answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                results.append(answer)
        if not results and failure is not None:
            raise failure
        return results


class _JoinedWatch:
    """One task per registry. The records of each registry are stored separately; the watcher sees them merged."""

    def __init__(
        self,
        registries: Sequence[Registry],
        service: str | None,
        counters: Counters,
        open_watches: dict[_JoinedWatch, None],
    ) -> None:
        self._service = service
        self._counters = counters
        self._queue = WatchQueue(service, counters=counters)
        self._records: list[dict[str, Instance]] = [{} for _ in registries]
        """The records of each registry, by instance id."""
        self._open_watches = open_watches
        self._tasks = BackgroundTasks(
            component="joined registry", logger=log, counters=counters, failure_counter="registry_failures"
        )
        for index, registry in enumerate(registries):
            self._tasks.start(self._follow(index, registry))

    def __aiter__(self) -> AsyncIterator[RegistryEvent]:
        return aiter(self._queue)

    async def close(self) -> None:
        self._open_watches.pop(self, None)
        await self._tasks.cancel()
        await self._queue.close()

    async def _follow(self, index: int, registry: Registry) -> None:
        while True:
            try:
                watch = await registry.watch(self._service)
                try:
                    await self._read(index, registry, watch)
                finally:
                    await watch.close()
            except Closed:
                return
            except MicroError as error:
                self._counters.add("registry_failures")
                log.warning("cannot watch a registry", extra={"reason": str(error)})
            await asyncio.sleep(RETRY_S)

    async def _read(self, index: int, registry: Registry, watch: RegistryWatch) -> None:
        async for event in watch:
            if event.kind is RegistryEventKind.RESYNC or event.instance is None:
                current = {instance.id: instance for instance in await registry.instances(self._service)}
                before = self._merged()
                self._records[index] = current
                self._report_changes(before)
                self._queue.offer(RESYNC)
                continue
            previous = self._merged_record(event.instance.id)
            if event.kind is RegistryEventKind.DELETED:
                self._records[index].pop(event.instance.id, None)
            else:
                self._records[index][event.instance.id] = event.instance
            for change in changes(previous, self._merged_record(event.instance.id)):
                self._queue.offer(change)

    def _merged_record(self, instance_id: str) -> Instance | None:
        for records in self._records:
            if instance_id in records:
                return records[instance_id]
        return None

    def _merged(self) -> dict[str, Instance]:
        merged: dict[str, Instance] = {}
        for records in reversed(self._records):
            merged.update(records)
        return merged

    def _report_changes(self, before: dict[str, Instance]) -> None:
        after = self._merged()
        for instance_id in {**before, **after}:
            for change in changes(before.get(instance_id), after.get(instance_id)):
                self._queue.offer(change)
