"""A resolver that finds the nodes of a network in DNS: SRV records (RFC 2782), or A and AAAA records."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Resolver, hookimpl
from micro_dns_resolver.options import DnsOptions


def create(options: DnsOptions, context: DriverContext) -> Resolver:
    """Build the resolver; no query is sent before `resolve`. Raises OptionError for invalid options."""
    from micro_dns_resolver.resolver import DnsResolver

    return DnsResolver(options, context)


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    """Describe the DNS resolver."""
    return Driver(
        name="dns",
        summary="Finds nodes in DNS: SRV records, or A and AAAA records.",
        options=DnsOptions,
        create=create,
        capabilities=frozenset({"priorities", "weights"}),
    )
