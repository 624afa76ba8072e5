"""The driver `broker:memory`: topics within one process."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from micro_core.builtin.broker.hub import HubBroker
from micro_core.builtin.broker.subscribers import Subscribers
from micro_core.contract import Broker, Driver, DriverContext, NoOptions, hookimpl

_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], Subscribers]] = WeakKeyDictionary()


def _hub(network: str, site: str) -> Subscribers:
    """Return the subscribers of a network and site in the running event loop."""
    hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
    return hubs.setdefault((network, site), Subscribers())


def create(options: NoOptions, context: DriverContext) -> Broker:  # noqa: ARG001 - the signature of a driver
    """Return the broker."""
    return HubBroker(lambda: _hub(context.network, context.site), context.counters)


@hookimpl
def micro_broker() -> Driver[Broker]:
    """Return the description of the driver."""
    return Driver(
        name="memory",
        summary="Topics within one process.",
        options=NoOptions,
        create=create,
        capabilities=frozenset({"queue-groups"}),
    )
