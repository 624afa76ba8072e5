"""The record of an instance in the registry: registered, renewed periodically, and withdrawn."""

from __future__ import annotations

import asyncio
import logging
import random as random_source

from micro_core.contract.clock import Random
from micro_core.contract.driver import Counters
from micro_core.contract.errors import MicroError
from micro_core.contract.registry import Instance, Registry
from micro_core.lifecycle.background_tasks import BackgroundTasks

log = logging.getLogger(__name__)

LEASE_S = 30.0
"""Duration of the lease: how long the registry keeps the record of an instance that does not renew it."""

RETRY_S = 1.0
"""Maximum pause after a failed renewal. It is short because the lease continues to run out."""


class Registration:
    """Keeps `instance` registered in `registry` until `close`.

    The lease is renewed after about a third of `lease_s` seconds, with jitter. Failed renewals are counted, logged and
    repeated.
    """

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
        self._tasks = BackgroundTasks(
            component="registration", logger=log, counters=counters, failure_counter="lease_renewals_failed"
        )

    async def start(self) -> None:
        """Register the record and begin to renew its lease.

        Raises:
            Unreachable: The registry cannot be reached.
            TooLarge: The record exceeds a limit of the registry.
            BadRequest: A field of the record is invalid.
        """
        await self._registry.register(self.instance, lease_s=self._lease_s)
        self._tasks.start(self._renew())

    async def update(self, instance: Instance) -> None:
        """Replace the record by `instance`, which has the same id. If this fails, the next renewal sends the new record."""
        self.instance = instance
        try:
            await self._registry.register(instance, lease_s=self._lease_s)
        except MicroError as error:
            self._counters.add("lease_renewals_failed")
            log.warning("the record of %s was not updated: %s", instance.id, error)

    async def close(self) -> None:
        """Stop renewing and withdraw the record. If this fails, its lease expires. Safe to call twice, and before `start`."""
        if len(self._tasks) == 0:
            return
        await self._tasks.cancel()
        try:
            await self._registry.deregister(self.instance)
        except MicroError as error:
            log.warning("the record of %s was not withdrawn and will expire: %s", self.instance.id, error)

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
            except Exception:  # a bug of a driver must not end the renewals
                failed = True
                self._counters.add("lease_renewals_failed")
                log.exception("the lease of %s was not renewed: unexpected error", self.instance.id)
