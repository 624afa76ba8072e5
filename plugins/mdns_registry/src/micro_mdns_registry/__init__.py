"""Services on the local network by multicast DNS (RFC 6762, RFC 6763): a registry without a server."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Registry, hookimpl
from micro_mdns_registry.options import MdnsOptions


def create(options: MdnsOptions, context: DriverContext) -> Registry:
    """Create the registry. Sockets are only opened by `start`. Raises OptionError for invalid options."""
    from micro_mdns_registry.registry import MdnsRegistry

    return MdnsRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    """Return the description of the registry driver `mdns`."""
    return Driver(
        name="mdns",
        summary="Services on the local network by multicast DNS, without a server.",
        options=MdnsOptions,
        create=create,
    )
