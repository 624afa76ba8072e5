"""Links between nodes over QUIC: the tunnel driver `quic`."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, LinkDriver, hookimpl
from micro_quic_tunnel.options import QuicOptions


def create(options: QuicOptions, context: DriverContext) -> LinkDriver:
    """Create the driver. aioquic is only imported when this function is called. Raises OptionError for invalid options."""
    from micro_quic_tunnel.driver import QuicTunnel

    return QuicTunnel(options, context)


@hookimpl
def micro_tunnel() -> Driver[LinkDriver]:
    """Return the description of the tunnel driver `quic`."""
    return Driver(
        name="quic",
        summary="Encrypted links with four lanes over QUIC, on one UDP port.",
        options=QuicOptions,
        create=create,
        capabilities=frozenset({"lanes"}),
    )
