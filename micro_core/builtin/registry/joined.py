"""Several registries as one: reads merged, writes to all; one that is down does not stop the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from micro_core.contract.driver import Counters
from micro_core.contract.errors import Closed, MicroError
from micro_core.contract.registry import Instance, Registry, RegistryEvent, RegistryEventKind, RegistryWatch
from micro_core.contract.watching import RESYNC, WatchQueue, changes

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 1.0
"""Pause before a registry that failed is watched again."""


class JoinedRegistry:
    """The registries in order of precedence: of two records with one id, the earlier registry's counts.

    An operation fails, with the first registry's reason, only when it failed everywhere.
    """

    def __init__(self, registries: Sequence[Registry], counters: Counters) -> None:
        self._registries = list(registries)
        self._counters = counters
        self._watches: dict[_JoinedWatch, None] = {}

    async def start(self) -> None:
        await self._all([registry.start() for registry in self._registries])

    async def close(self) -> None:
        for watch in list(self._watches):
            await watch.close()
        await asyncio.gather(*(registry.close() for registry in self._registries), return_exceptions=True)

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Register everywhere."""
        await self._all([registry.register(instance, lease_s=lease_s) for registry in self._registries])

    async def deregister(self, instance: Instance) -> None:
        """Deregister everywhere."""
        await self._all([registry.deregister(instance) for registry in self._registries])

    async def instances(self, service: str | None = None) -> list[Instance]:
        """The records of all, each id once."""
        answers = await self._all([registry.instances(service) for registry in self._registries])
        merged: dict[str, Instance] = {}
        for answer in answers:
            for instance in answer:
                merged.setdefault(instance.id, instance)
        return list(merged.values())

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Follow all of them; a record is DELETED when the last registry has lost it."""
        watch = _JoinedWatch(self._registries, service, self._counters, self._watches)
        self._watches[watch] = None
        return watch

    async def _all(self, calls: Sequence[Awaitable[T]]) -> list[T]:
        answers = await asyncio.gather(*calls, return_exceptions=True)
        good: list[T] = []
        failure: MicroError | None = None
        for answer in answers:
            if isinstance(answer, MicroError):
                self._counters.add("registry_failures")
                log.warning("a registry failed", extra={"reason": str(answer)})
                failure = failure or answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                good.append(answer)
        if not good and failure is not None:
            raise failure
        return good


class _JoinedWatch:
    """One task a registry; what each knows is kept apart, what the watcher sees is merged."""

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
        self._known: list[dict[str, Instance]] = [{} for _ in registries]
        self._open_watches = open_watches
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._follow(place, registry)) for place, registry in enumerate(registries)]

    def __aiter__(self) -> AsyncIterator[RegistryEvent]:
        return aiter(self._queue)

    async def close(self) -> None:
        self._open_watches.pop(self, None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._queue.close()

    async def _follow(self, place: int, registry: Registry) -> None:
        while True:
            try:
                watch = await registry.watch(self._service)
                try:
                    await self._read(place, registry, watch)
                finally:
                    await watch.close()
            except Closed:
                return
            except MicroError as error:
                self._counters.add("registry_failures")
                log.warning("a registry cannot be watched", extra={"reason": str(error)})
            await asyncio.sleep(RETRY_S)

    async def _read(self, place: int, registry: Registry, watch: RegistryWatch) -> None:
        async for event in watch:
            if event.kind is RegistryEventKind.RESYNC or event.instance is None:
                fresh = {instance.id: instance for instance in await registry.instances(self._service)}
                before = self._merged()
                self._known[place] = fresh
                self._tell(before)
                self._queue.offer(RESYNC)
                continue
            standing = self._merged_one(event.instance.id)
            if event.kind is RegistryEventKind.DELETED:
                self._known[place].pop(event.instance.id, None)
            else:
                self._known[place][event.instance.id] = event.instance
            for change in changes(standing, self._merged_one(event.instance.id)):
                self._queue.offer(change)

    def _merged_one(self, instance_id: str) -> Instance | None:
        for known in self._known:
            if instance_id in known:
                return known[instance_id]
        return None

    def _merged(self) -> dict[str, Instance]:
        merged: dict[str, Instance] = {}
        for known in reversed(self._known):
            merged.update(known)
        return merged

    def _tell(self, before: dict[str, Instance]) -> None:
        after = self._merged()
        for instance_id in {**before, **after}:
            for change in changes(before.get(instance_id), after.get(instance_id)):
                self._queue.offer(change)
