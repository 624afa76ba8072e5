"""The driver `broker:service`: a client of the broker of this site, which is hosted by `micro broker` or by a node.

It is the same client as that of `broker:node`. The only difference is that a node with this driver hosts no broker.
"""

from __future__ import annotations

from micro_core.builtin.broker.node import NodeBrokerOptions, create
from micro_core.contract import Broker, Driver, hookimpl


@hookimpl
def micro_broker() -> Driver[Broker]:
    """Return the description of the driver."""
    return Driver(
        name="service",
        summary="Topics hosted by this site's `micro broker`.",
        options=NodeBrokerOptions,
        create=create,
        capabilities=frozenset({"queue-groups"}),
    )
