"""A record kept in the registry: registered, renewed until it is closed, withdrawn."""

from __future__ import annotations

import asyncio
import logging
import random as random_source

from micro_core.contract.clock import Random
from micro_core.contract.driver import Counters
from micro_core.contract.errors import MicroError
from micro_core.contract.registry import Instance, Registry

log = logging.getLogger(__name__)

LEASE_S = 30.0
"""How long the registry believes in an instance that has stopped renewing."""

RETRY_S = 1.0
"""Pause after a renewal that failed: the lease may be running out while the registry is away."""


class Registration:
    """Keeps `instance` in `registry`, renewing its lease at a third of its time, with jitter."""

    def __init__(
        self,
        registry: Registry,
        instance: Instance,
        *,
        lease_s: float = LEASE_S,
        counters: Counters,
        random: Random | None = None,
    ) -> None:
        self.instance = instance
        self._registry = registry
        self._lease_s = lease_s
        self._counters = counters
        self._random: Random = random if random is not None else random_source.Random()  # noqa: S311 - jitter
        self._renewing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register. Raises Unreachable when the registry is away, TooLarge when the record does not fit it."""
        await self._registry.register(self.instance, lease_s=self._lease_s)
        self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def update(self, instance: Instance) -> None:
        """Tell another record under the same id; where that fails, the next renewal tells it."""
        self.instance = instance
        try:
            await self._registry.register(instance, lease_s=self._lease_s)
        except MicroError as error:
            self._counters.add("lease_renewals_failed")
            log.warning("the record of %s was not updated: %s", instance.id, error)

    async def close(self) -> None:
        """Withdraw; where that fails, the lease runs out. Safe to call twice, and before `start`."""
        if self._renewing is None:
            return
        renewing, self._renewing = self._renewing, None
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        try:
            await self._registry.deregister(self.instance)
        except MicroError as error:
            log.warning("not withdrawn; the lease will run out: %s", error)

    async def _renew(self) -> None:
        failed = False
        while True:
            period_s = min(RETRY_S, self._lease_s / 10) if failed else self._lease_s / 3
            await asyncio.sleep(period_s * self._random.uniform(0.8, 1.0))
            try:
                await self._registry.register(self.instance, lease_s=self._lease_s)
                failed = False
            except MicroError as error:
                failed = True
                self._counters.add("lease_renewals_failed")
                log.warning("the lease of %s was not renewed: %s", self.instance.id, error)
            except Exception:  # the task's root: a driver's bug must not end the renewing
                failed = True
                self._counters.add("lease_renewals_failed")
                log.exception("the lease of %s was not renewed", self.instance.id)
