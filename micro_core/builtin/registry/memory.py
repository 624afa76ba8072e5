"""The driver `registry:memory`: registries of one (network, site) in one event loop share their records.

Leases use the clock of the context, so records also expire on virtual time.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from micro_core.builtin.registry.leases import LeaseBook, check_lease
from micro_core.contract import (
    Clock,
    Closed,
    Driver,
    DriverContext,
    Instance,
    NoOptions,
    Registry,
    RegistryEvent,
    RegistryWatch,
    WatchSet,
    check_instance,
    hookimpl,
)

_MIN_WAIT_S = 0.01
"""Prevents the timer from spinning with a clock of a test that does not advance."""


class _Hub:
    """The records of one (network, site). Exists while a registry or the timer of a lease refers to it.

    It belongs to one event loop, so that a second loop, or a second run on virtual time, starts without records.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self.loop = loop
        self._clock = clock
        self._book = LeaseBook()
        self._watches: list[WatchSet] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def attach(self, watches: WatchSet) -> None:
        self._watches.append(watches)

    def detach(self, watches: WatchSet) -> None:
        self._watches.remove(watches)

    def put(self, instance: Instance, *, lease_s: float, owner: object) -> None:
        self.expire()
        self._publish(self._book.put(instance, expires_at=self._clock.now() + lease_s, owner=owner))
        self._set_timer()

    def remove(self, instance_id: str) -> None:
        self._publish(self._book.remove(instance_id))

    def remove_owned(self, owner: object) -> None:
        self._publish(self._book.remove_owned(owner))

    def instances(self, service: str | None) -> list[Instance]:
        self.expire()
        return self._book.instances(service)

    def expire(self) -> None:
        self._publish(self._book.wake(self._clock.now()))

    def _publish(self, events: list[RegistryEvent]) -> None:
        for watches in self._watches:
            watches.publish(events)

    def _set_timer(self) -> None:
        wake_at = self._book.wake_at
        if wake_at is None or (self._timer is not None and self._timer_at <= wake_at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = wake_at
        self._timer = self.loop.call_later(max(wake_at - self._clock.now(), _MIN_WAIT_S), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.expire()
        self._set_timer()


_hubs: WeakValueDictionary[tuple[int, str, str], _Hub] = WeakValueDictionary()


def _hub_of(context: DriverContext) -> _Hub:
    loop = asyncio.get_running_loop()
    # The records refer to their loop, so that its id is not reused while they exist.
    key = (id(loop), context.network, context.site)
    hub = _hubs.get(key)
    if hub is None:
        hub = _hubs[key] = _Hub(loop, context.clock)
    return hub


class MemoryRegistry:
    """Implements `micro_core.contract.registry.Registry`."""

    def __init__(self, context: DriverContext) -> None:
        self._context = context
        self._hub: _Hub | None = None
        self._watches = WatchSet(context.counters)

    async def start(self) -> None:
        """Share the records of the other registries of this network and site."""
        self._hub = _hub_of(self._context)
        self._hub.attach(self._watches)

    async def close(self) -> None:
        """Remove the records that this object registered and end its watches. Safe to call twice."""
        hub, self._hub = self._hub, None
        if hub is None:
            return
        hub.detach(self._watches)
        await self._watches.close()
        hub.remove_owned(self)

    async def register(self, instance: Instance, *, lease_s: float) -> None:
        """Create, replace or renew a record. Raises BadRequest, TooLarge, Closed."""
        self._open_hub().put(check_instance(instance), lease_s=check_lease(lease_s), owner=self)

    async def deregister(self, instance: Instance) -> None:
        """Remove the record of `instance.id`, also if another object registered it. Raises Closed."""
        self._open_hub().remove(instance.id)

    async def instances(self, service: str | None = None) -> list[Instance]:
        """Return the current records of one service, or of all. Raises Closed."""
        return self._open_hub().instances(service)

    async def watch(self, service: str | None = None) -> RegistryWatch:
        """Report the changes of one service, or of all. Raises Closed."""
        return self._watches.open(service, self._open_hub().instances(service))

    def _open_hub(self) -> _Hub:
        if self._hub is None:
            raise Closed("the memory registry is not started, or closed")
        return self._hub


def create(_options: NoOptions, context: DriverContext) -> MemoryRegistry:
    """Return the registry, not started."""
    return MemoryRegistry(context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    """Return the description of the driver."""
    return Driver(
        name="memory",
        summary="Services of this process only.",
        options=NoOptions,
        create=create,
        capabilities=frozenset({"watch"}),
    )
