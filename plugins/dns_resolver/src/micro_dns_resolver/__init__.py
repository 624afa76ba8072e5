"""Nodes of a network from the DNS: SRV records (RFC 2782), or A and AAAA."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Resolver, hookimpl
from micro_dns_resolver.options import DnsOptions


def create(options: DnsOptions, context: DriverContext) -> Resolver:
    """Build the resolver; nothing is asked before `resolve`."""
    from micro_dns_resolver.resolver import DnsResolver

    return DnsResolver(options, context)


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    return Driver(
        name="dns",
        summary="Nodes of a network from SRV records of the DNS, or from A and AAAA.",
        options=DnsOptions,
        create=create,
        capabilities=frozenset({"priorities", "weights"}),
    )
