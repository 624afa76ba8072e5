"""A watcher as a kit needs one: it reads all the time, keeps what stands, and remembers what it was told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from micro_core.contract import Instance, Registry, RegistryEvent, RegistryEventKind, RegistryWatch
from micro_core.testing.kit.waiting import fail, until, within


class Follower:
    """Follows a watch. `standing` is what the events said, with RESYNC answered by reading `instances()`."""

    def __init__(self, registry: Registry, service: str | None, patience_s: float) -> None:
        self.events: list[RegistryEvent] = []
        self.standing: dict[str, Instance] = {}
        self.resyncs = 0
        self._registry = registry
        self._service = service
        self._patience_s = patience_s
        self._is_over = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the iteration has ended."""
        return self._is_over

    async def start(self) -> Follower:
        """Open the watch and begin to read it."""
        watch = await within(self._patience_s, self._registry.watch(self._service), "watch returns")
        return self.read(watch)

    def read(self, watch: RegistryWatch) -> Follower:
        """Begin to read a watch that is open."""
        self.watch = watch
        self._task = asyncio.create_task(self._read())
        return self

    async def close(self) -> None:
        """Close the watch, whose iteration must then end."""
        await within(self._patience_s, self.watch.close(), "close of a watch returns")
        await self.ended()

    async def ended(self) -> None:
        """Wait for the iteration to end of itself."""
        assert self._task is not None
        done, _ = await asyncio.wait([self._task], timeout=self._patience_s)
        if not done:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            fail("a watch that is closed ends its iteration: it still waits")
        await self._task

    async def cancel(self) -> None:
        """Stop reading, without a promise."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def changes_of(self, instance_id: str) -> list[tuple[RegistryEventKind, Instance]]:
        """What was told of one instance, in order."""
        return [
            (event.kind, event.instance) for event in self.events if event.instance and event.instance.id == instance_id
        ]

    async def heard(self, condition: Callable[[], object], clause: str) -> None:
        """Wait until what was heard fits; fails with the clause and the reason if reading failed."""

        def look() -> object:
            if self._task is not None and self._task.done() and not self._task.cancelled():
                error = self._task.exception()
                if error is not None:
                    raise error
            return condition()

        await until(look, self._patience_s, clause)

    async def _read(self) -> None:
        async for event in self.watch:
            self.events.append(event)
            if event.kind is RegistryEventKind.RESYNC:
                self.resyncs += 1
                found = await self._registry.instances(self._service)
                self.standing = {instance.id: instance for instance in found}
            elif event.instance is None:
                fail(f"{event.kind.name} carries the record; only RESYNC has none")
            elif event.kind is RegistryEventKind.DELETED:
                self.standing.pop(event.instance.id, None)
            else:
                self.standing[event.instance.id] = event.instance
        self._is_over = True
