"""The broker role as a client of the site's broker, whoever hosts it: `micro broker`, or a node.

The client is that of `broker:node`. The difference is what it means to a node: with this one it hosts no broker itself.
"""

from __future__ import annotations

from micro_core.builtin.broker.node import NodeBrokerOptions, create
from micro_core.contract import Broker, Driver, hookimpl


@hookimpl
def micro_broker() -> Driver[Broker]:
    return Driver(
        name="service",
        summary="Topics hosted by this site's `micro broker`.",
        options=NodeBrokerOptions,
        create=create,
        capabilities=frozenset({"queue-groups"}),
    )
