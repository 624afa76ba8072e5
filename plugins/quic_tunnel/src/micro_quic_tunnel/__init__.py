"""Links between nodes over QUIC: the tunnel driver `quic`."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, LinkDriver, hookimpl
from micro_quic_tunnel.options import QuicOptions


def create(options: QuicOptions, context: DriverContext) -> LinkDriver:
    """Build the driver; aioquic is imported here and not before."""
    from micro_quic_tunnel.driver import QuicTunnel

    return QuicTunnel(options, context)


@hookimpl
def micro_tunnel() -> Driver[LinkDriver]:
    return Driver(
        name="quic",
        summary="Links over QUIC: encrypted, four lanes, one UDP port.",
        options=QuicOptions,
        create=create,
        capabilities=frozenset({"lanes"}),
    )
