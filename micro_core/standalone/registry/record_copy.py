"""A copy of the records of a registry process, kept up to date by a stream that is reopened whenever it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from micro_core.contract import DriverContext, Instance, MicroError, RegistryEventKind, Unreachable, instance_from_dict
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.standalone.registry.protocol import instances_of

MAX_RECORDS = 100_000
"""Records accepted from one registry."""

INITIAL_RETRY_S = 0.05


class RecordCopy:
    """Follows the stream that `open_watch()` returns.

    The copy does not change while the registry is not available. Records that are missing when the registry is back are
    removed after `grace_s` seconds, which gives their owners time to register them again. `on_change(before, after)` is
    called for each change, `on_new_incarnation(incarnation)` in a task if a stream belongs to a registry that was started
    after the previous stream had begun. `retry_s` is the longest pause before the stream is opened again.
    """

    def __init__(
        self,
        context: DriverContext,
        *,
        open_watch: Callable[[], AbstractAsyncContextManager[Any]],
        on_change: Callable[[Instance | None, Instance | None], None],
        on_new_incarnation: Callable[[str], Coroutine[Any, Any, None]] | None = None,
        retry_s: float,
        grace_s: float,
    ) -> None:
        self.records: dict[str, Instance] = {}
        """By the id of the instance."""
        self.synced = asyncio.Event()
        """Set once the copy has been complete."""
        self.last_error = ""
        self._context = context
        self._open_watch = open_watch
        self._on_change = on_change
        self._on_new_incarnation = on_new_incarnation
        self._retry_s = retry_s
        self._grace_s = grace_s
        self._incarnation = ""
        self._missing: set[str] = set()
        self._tasks = BackgroundTasks(
            component="registry client",
            logger=context.logger,
            counters=context.counters,
            failure_counter="registry_tasks_failed",
        )

    def start(self) -> None:
        """Watch the registry in a task."""
        self._tasks.start(self._maintain_sync())

    async def close(self) -> None:
        """Stop watching. The records remain readable."""
        await self._tasks.cancel()

    async def _maintain_sync(self) -> None:
        pause_s = INITIAL_RETRY_S
        while True:
            try:
                async with self._open_watch() as stream:
                    await self._read(stream)
                pause_s = INITIAL_RETRY_S
            except MicroError as error:
                if str(error) != self.last_error:
                    self._context.logger.warning("cannot watch the registry", extra={"reason": str(error)})
                self._context.counters.add("registry_watch_failed")
                self.last_error = str(error)
            await asyncio.sleep(pause_s * self._context.random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, self._retry_s)

    async def _read(self, stream: Any) -> None:
        records: dict[str, Instance] = {}
        is_synced = False
        async for item in stream:
            if not isinstance(item, dict):
                continue
            if "synced" in item:
                is_synced = True
                self._replace_all(records)
            elif "incarnation" in item:
                self._set_incarnation(str(item["incarnation"])[:64])
            elif "records" in item:
                for instance in instances_of(item):
                    records[instance.id] = instance
                check_record_count(records)
            elif is_synced:
                self._apply_change(item)

    def _set_incarnation(self, incarnation: str) -> None:
        if incarnation != self._incarnation:
            self._incarnation = incarnation
            if self._on_new_incarnation is not None:
                # In a task, because the stream must be read in the meantime.
                self._tasks.start(self._on_new_incarnation(incarnation))

    def _replace_all(self, records: dict[str, Instance]) -> None:
        self.last_error = ""
        for instance_id, instance in records.items():
            self._put(instance_id, instance)
        self._missing = {instance_id for instance_id in self.records if instance_id not in records}
        self.synced.set()
        if self._missing:
            self._tasks.start(self._remove_missing(self._missing))

    async def _remove_missing(self, missing: set[str]) -> None:
        await asyncio.sleep(self._grace_s)
        if missing is self._missing:
            for instance_id in sorted(missing):
                self._put(instance_id, None)

    def _apply_change(self, item: dict[str, Any]) -> None:
        instance = instance_from_dict(item.get("record"))
        if item.get("kind") == RegistryEventKind.DELETED.value:
            self._put(instance.id, None)
        else:
            self._put(instance.id, instance)
            check_record_count(self.records)

    def _put(self, instance_id: str, instance: Instance | None) -> None:
        before = self.records.pop(instance_id, None)
        if instance is not None:
            self.records[instance_id] = instance
        self._missing.discard(instance_id)
        self._on_change(before, instance)


def check_record_count(records: dict[str, Instance]) -> None:
    """Limit the number of records of one registry.

    Raises:
        Unreachable: There are more than MAX_RECORDS.
    """
    if len(records) > MAX_RECORDS:
        raise Unreachable(f"the registry has more than {MAX_RECORDS} records")
