"""The registry: what the contract promises, over the four verbs of `store.py`."""

from __future__ import annotations

import asyncio
import secrets

from micro_core.contract import (
    BadRequest,
    Closed,
    DriverContext,
    Instance,
    RegistryWatch,
    Unreachable,
    WatchSet,
    changes,
    check_instance,
)

from micro_share_registry.options import ShareOptions
from micro_share_registry.store import Store, store_of

MAX_LEASE_S = 86_400.0


class ShareRegistry:
    """Implements `micro_core.contract.Registry`."""

    def __init__(self, options: ShareOptions, context: DriverContext) -> None:
        self._options = options
        self._context = context
        self._owner = secrets.token_hex(8)
        self._store: Store | None = None
        self._standing: dict[str, Instance] = {}
        self._watches = WatchSet(context.counters)
        self._refreshing = asyncio.Lock()
        self._poll_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._store = store_of(self._options, self._context)
        self._standing = await self._store.read()
        self._poll_task = asyncio.create_task(self._poll())

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is None or self._poll_task is None:
            return
        self._poll_task.cancel()
        await asyncio.gather(self._poll_task, return_exceptions=True)
        await self._watches.close()
        try:
            await store.remove_owned(self._owner)
        except Unreachable as error:
            # Nothing waits for a back end that is away: the leases end what could not be withdrawn.
            self._context.counters.add("share_registry_withdrawals_failed")
            self._context.logger.warning("records stay until their leases end", extra={"reason": str(error)})

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        store = self._open_store()
        if not 0 < lease_s <= MAX_LEASE_S:
            raise BadRequest(f"{lease_s!r} is not a lease", hint=f"seconds above 0, at most {MAX_LEASE_S:g}")
        # A copy, checked: what other nodes would refuse is refused here.
        await store.put(check_instance(instance), lease_s=lease_s, owner=self._owner)

    async def deregister(self, instance: Instance) -> None:
        await self._open_store().remove(instance.id)

    async def instances(self, service: str | None = None) -> list[Instance]:
        found = await self._open_store().read()
        return [instance for instance in found.values() if service in (None, instance.service)]

    async def watch(self, service: str | None = None) -> RegistryWatch:
        await self._refresh(self._open_store())
        return self._watches.open(service, self._standing.values())

    async def _poll(self) -> None:
        is_away = False
        while self._store is not None:
            await asyncio.sleep(self._options.poll_s)
            was_away = is_away
            try:
                await self._refresh(self._store)
                is_away = False
            except Unreachable as error:
                # Watchers keep what they know: a back end that is away says nothing about the services.
                is_away = True
                self._context.counters.add("share_registry_polls_failed")
                if not was_away:
                    # Once: an outage may last, and every look at it would be a line.
                    self._context.logger.warning("the back end is away", extra={"reason": str(error)})
            if was_away and not is_away:
                self._context.logger.warning("the back end is back")

    async def _refresh(self, store: Store) -> None:
        """Read everything, and tell watchers what is different. One at a time, so that events stay in order."""
        async with self._refreshing:
            found = await store.read()
            before, self._standing = self._standing, found
            for instance_id in dict.fromkeys([*before, *found]):
                self._watches.publish(changes(before.get(instance_id), found.get(instance_id)))

    def _open_store(self) -> Store:
        if self._store is None:
            raise Closed("the share registry is not started, or closed")
        return self._store
