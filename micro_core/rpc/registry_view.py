"""A local copy of the registry, kept current by a watch, so that calls need no request to the registry."""

from __future__ import annotations

import asyncio
import logging

from micro_core.contract.driver import Counters
from micro_core.contract.errors import MicroError
from micro_core.contract.registry import Instance, Registry, RegistryEventKind, RegistryWatch
from micro_core.lifecycle.background_tasks import BackgroundTasks

log = logging.getLogger(__name__)

INITIAL_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
"""Pause before a watch that ended is opened again. It doubles from INITIAL_PAUSE_S to MAX_PAUSE_S."""


class RegistryView:
    """The instances of every service, by name.

    While the registry is unreachable, the view keeps the last known instances. The selector ejects those that have
    stopped meanwhile.
    """

    def __init__(self, registry: Registry, counters: Counters) -> None:
        self._registry = registry
        self._counters = counters
        self._by_service: dict[str, dict[str, Instance]] = {}
        self._lists: dict[str, tuple[Instance, ...]] = {}
        self._watch: RegistryWatch | None = None
        self._tasks = BackgroundTasks(
            component="registry view",
            logger=log,
            counters=counters,
            failure_counter="registry_view_tasks_failed",
        )
        self._is_open = False
        self._starting = asyncio.Lock()

    async def close(self) -> None:
        """Close the watch. Safe to call twice."""
        await self._tasks.cancel()
        await self._end_watch()

    def find(self, service: str) -> tuple[Instance, ...]:
        """Return the known instances of `service`, without I/O."""
        found = self._lists.get(service)
        if found is None:
            records = self._by_service.get(service)
            if not records:
                return ()
            found = self._lists[service] = tuple(records.values())
        return found

    async def look_up(self, service: str) -> tuple[Instance, ...]:
        """Read the instances of `service`, which `find` does not know yet, from the registry.

        The first look-up also opens the watch.

        Raises:
            Unreachable: The registry cannot be reached.
        """
        if not self._is_open:
            async with self._starting:
                if not self._is_open:
                    await self._open()
        found = tuple(await self._registry.instances(service))
        for instance in found:
            self._put(instance)
        return found

    async def _open(self) -> None:
        # The watch is opened before the records are read, so that it reports the changes between the two steps.
        self._watch = await self._registry.watch()
        try:
            await self._read_all()
        except BaseException:
            await self._end_watch()
            raise
        self._is_open = True
        self._tasks.start(self._follow())

    async def _follow(self) -> None:
        pause_s = INITIAL_PAUSE_S
        while True:
            try:
                if self._watch is None:
                    self._watch = await self._registry.watch()
                    await self._read_all()
                    pause_s = INITIAL_PAUSE_S
                await self._read_watch(self._watch)
            except MicroError as error:
                log.info("the watch of the registry ended", extra={"reason": str(error)})
            except Exception:  # an unexpected error must not end the view
                log.exception("the watch of the registry failed: unexpected error")
            self._counters.add("registry_watch_restarts")
            await self._end_watch()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)

    async def _read_watch(self, watch: RegistryWatch) -> None:
        async for event in watch:
            if event.kind is RegistryEventKind.RESYNC or event.instance is None:
                await self._read_all()
            elif event.kind is RegistryEventKind.DELETED:
                self._remove(event.instance)
            else:
                self._put(event.instance)

    async def _read_all(self) -> None:
        records = await self._registry.instances()
        self._by_service.clear()
        self._lists.clear()
        for instance in records:
            self._put(instance)

    def _put(self, instance: Instance) -> None:
        self._by_service.setdefault(instance.service, {})[instance.id] = instance
        self._lists.pop(instance.service, None)

    def _remove(self, instance: Instance) -> None:
        records = self._by_service.get(instance.service)
        if records is not None and records.pop(instance.id, None) is not None:
            self._lists.pop(instance.service, None)
            if not records:
                del self._by_service[instance.service]

    async def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            try:
                await watch.close()
            except MicroError as error:
                log.info("the watch of the registry was not closed", extra={"reason": str(error)})
