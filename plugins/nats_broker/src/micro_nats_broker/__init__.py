"""Topics over NATS servers; with JetStream, messages that wait for their subscribers."""

from __future__ import annotations

from micro_core.contract import Broker, Driver, DriverContext, hookimpl
from micro_nats_broker.options import NatsOptions


def create(options: NatsOptions, context: DriverContext) -> Broker:
    """Build the broker; nothing is opened before `start`. Raises OptionError."""
    from micro_nats_broker.broker import NatsBroker

    return NatsBroker(options, context)


@hookimpl
def micro_broker() -> Driver[Broker]:
    return Driver(
        name="nats",
        summary="Topics over NATS servers; at least once, and replayed, with JetStream.",
        options=NatsOptions,
        create=create,
        capabilities=frozenset({"queue-groups", "wildcards"}),
    )
