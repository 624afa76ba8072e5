"""The registry: the guarantees of the contract, implemented with the four operations of `store.py`."""

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
        self._current: dict[str, Instance] = {}
        self._watches = WatchSet(context.counters)
        self._refreshing = asyncio.Lock()
        self._poll_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._store = store_of(self._options, self._context)
        self._current = await self._store.read()
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
            # The records expire with their leases, so `close` does not wait until the back end is available again.
            self._context.counters.add("share_registry_withdrawals_failed")
            self._context.logger.warning("withdrawal failed; the leases will expire", extra={"reason": str(error)})

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        store = self._open_store()
        if not 0 < lease_s <= MAX_LEASE_S:
            raise BadRequest(f"lease_s = {lease_s!r} is out of range (more than 0, at most {MAX_LEASE_S:g} seconds)")
        # Stores a checked copy, and refuses a record that other nodes would refuse.
        await store.put(check_instance(instance), lease_s=lease_s, owner=self._owner)

    async def deregister(self, instance: Instance) -> None:
        await self._open_store().remove(instance.id)

    async def instances(self, service: str | None = None) -> list[Instance]:
        found = await self._open_store().read()
        return [instance for instance in found.values() if service in (None, instance.service)]

    async def watch(self, service: str | None = None) -> RegistryWatch:
        await self._refresh(self._open_store())
        return self._watches.open(service, self._current.values())

    async def _poll(self) -> None:
        is_unavailable = False
        while self._store is not None:
            await asyncio.sleep(self._options.poll_s)
            was_unavailable = is_unavailable
            try:
                await self._refresh(self._store)
                is_unavailable = False
            except Unreachable as error:
                # Watchers keep their records: the services may still be running.
                is_unavailable = True
                self._context.counters.add("share_registry_polls_failed")
                if not was_unavailable:
                    # Logged once per outage, not once per read.
                    self._context.logger.warning("registry back end is unavailable", extra={"reason": str(error)})
            if was_unavailable and not is_unavailable:
                self._context.logger.warning("registry back end is available again")

    async def _refresh(self, store: Store) -> None:
        """Read all records and send the differences to the watchers. The lock keeps the events in order."""
        async with self._refreshing:
            found = await store.read()
            before, self._current = self._current, found
            for instance_id in dict.fromkeys([*before, *found]):
                self._watches.publish(changes(before.get(instance_id), found.get(instance_id)))

    def _open_store(self) -> Store:
        if self._store is None:
            raise Closed("the share registry is not started or already closed")
        return self._store
