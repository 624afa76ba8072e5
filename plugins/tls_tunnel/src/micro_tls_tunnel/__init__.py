"""Links between nodes over TLS 1.3 and TCP: the tunnel driver `tls`."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, LinkDriver, hookimpl
from micro_tls_tunnel.options import TlsOptions


def create(options: TlsOptions, context: DriverContext) -> LinkDriver:
    """Create the driver. `ssl` and `cryptography` are only imported when this function is called.

    Raises OptionError for invalid options.
    """
    from micro_tls_tunnel.driver import TlsTunnel

    return TlsTunnel(options, context)


@hookimpl
def micro_tunnel() -> Driver[LinkDriver]:
    """Return the description of the tunnel driver `tls`."""
    return Driver(
        name="tls",
        summary="Links over TLS 1.3 and TCP, for networks that block UDP.",
        options=TlsOptions,
        create=create,
    )
