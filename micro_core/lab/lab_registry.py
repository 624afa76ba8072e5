"""The registry of a site of the lab, in memory. A client of it can crash."""

from __future__ import annotations

import contextvars

from micro_core.builtin.registry.leases import check_lease
from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.contract import check_instance
from micro_core.contract.registry import Instance


class LabRegistry(MemoryRegistry):
    """The registry of a site. A client of it can crash without deregistering its records."""

    async def abandon(self) -> None:
        """Disconnect as a crashed process does: its records remain until their leases expire."""
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.detach(self._watches)
            await self._watches.close()

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew a record. Raises BadRequest, TooLarge, Closed."""
        hub = self._open_hub()
        # The timers of leases belong to no process: they also fire while the process of the caller is stopped.
        contextvars.Context().run(lambda: hub.put(check_instance(instance), lease_s=check_lease(lease_s), owner=self))

    async def deregister(self, instance: Instance) -> None:
        """Deregister an instance. After `abandon`, this has no effect."""
        if self._hub is not None:
            await super().deregister(instance)
