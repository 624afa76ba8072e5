"""Services on the local network by multicast DNS (RFC 6762, RFC 6763): a registry without a server."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Registry, hookimpl
from micro_mdns_registry.options import MdnsOptions


def create(options: MdnsOptions, context: DriverContext) -> Registry:
    """Build the registry; nothing is opened before `start`."""
    from micro_mdns_registry.registry import MdnsRegistry

    return MdnsRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    return Driver(
        name="mdns",
        summary="Services on the local network by multicast DNS, with no server.",
        options=MdnsOptions,
        create=create,
    )
