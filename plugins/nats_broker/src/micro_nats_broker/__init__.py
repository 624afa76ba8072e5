"""A broker over NATS servers; with JetStream, messages are stored for their subscribers."""

from __future__ import annotations

from micro_core.contract import Broker, Driver, DriverContext, hookimpl
from micro_nats_broker.options import NatsOptions


def create(options: NatsOptions, context: DriverContext) -> Broker:
    """Build the broker; `start` connects. Raises OptionError for invalid options."""
    from micro_nats_broker.broker import NatsBroker

    return NatsBroker(options, context)


@hookimpl
def micro_broker() -> Driver[Broker]:
    """Describe the NATS broker."""
    return Driver(
        name="nats",
        summary="Carries topics over NATS servers; with JetStream, at least once and with replay.",
        options=NatsOptions,
        create=create,
        capabilities=frozenset({"queue-groups", "wildcards"}),
    )
