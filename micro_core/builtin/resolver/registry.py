"""The resolver role from the site's registry: nodes register as a service and say where their tunnel listens.

A node's record carries `tunnel` (addresses, separated by commas), `node` (its id) and perhaps `priority`. A node is one
candidate, whatever the number of its addresses: they are ways to the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.builtin.resolver.static import split_addresses
from micro_core.contract import (
    Candidate,
    ConfigError,
    Counters,
    Driver,
    DriverContext,
    Instance,
    OptionError,
    Registry,
    Resolver,
    hookimpl,
    option,
)
from micro_core.contract.clock import Random
from micro_core.contract.names import NETWORK_SERVICE, NODE_KEY, PATH_SEPARATOR

TUNNEL_KEY = "tunnel"
PRIORITY_KEY = "priority"

MAX_ADDRESSES_PER_NODE = 16
"""Addresses believed of one node: a node listens with few drivers on few interfaces."""

MAX_PRIORITY = 65_535
"""As in an SRV record (RFC 2782)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryResolverOptions:
    """Options of the registry resolver."""

    service: str = option(NETWORK_SERVICE, "Name of the service as which nodes register.")
    ttl_s: float = option(10.0, "Seconds until the network asks again.")


class RegistryResolver:
    """Implements `micro_core.contract.resolver.Resolver`."""

    def __init__(
        self,
        options: RegistryResolverOptions,
        *,
        registry: Registry,
        own_node_id: str,
        random: Random,
        counters: Counters,
    ) -> None:
        self._options = options
        self._registry = registry
        self._own_node_id = own_node_id
        self._random = random
        self._counters = counters

    async def start(self) -> None:
        """The registry is started by whoever owns it."""

    async def close(self) -> None:
        """The registry is closed by whoever owns it."""

    async def resolve(self, network: str) -> list[Candidate]:  # noqa: ARG002 - a registry serves one network
        """Other nodes' addresses, lowest priority first, in random order among equals.

        Raises Unreachable when the registry is away.
        """
        found = [
            self._candidate(instance)
            for instance in await self._registry.instances(self._options.service)
            if instance.metadata.get(NODE_KEY) != self._own_node_id
        ]
        candidates = [candidate for candidate in found if candidate is not None]
        # Sorted by address first, so that the draw is a function of the seed and not of the registry's order.
        candidates.sort(key=lambda candidate: candidate.address)
        drawn = [(candidate.priority, self._random.random(), candidate) for candidate in candidates]
        drawn.sort(key=lambda entry: entry[:2])
        return [candidate for _, _, candidate in drawn]

    def _candidate(self, instance: Instance) -> Candidate | None:
        try:
            addresses = split_addresses(instance.metadata.get(TUNNEL_KEY, ""))
        except OptionError:
            self._counters.add("resolver_records_malformed")
            return None
        if len(addresses) > MAX_ADDRESSES_PER_NODE:
            self._counters.add("resolver_addresses_dropped", len(addresses) - MAX_ADDRESSES_PER_NODE)
        if not addresses:
            return None
        return Candidate(
            address=PATH_SEPARATOR.join(addresses[:MAX_ADDRESSES_PER_NODE]),
            priority=_parse_priority(instance.metadata.get(PRIORITY_KEY, "")),
            ttl_s=self._options.ttl_s,
        )


def _parse_priority(text: str) -> int:
    """A number from 0 to MAX_PRIORITY, or 0 for anything else."""
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        return 0
    return min(int(text), MAX_PRIORITY)


def create(options: RegistryResolverOptions, context: DriverContext) -> RegistryResolver:
    """Build the resolver; raises ConfigError where no registry is in use."""
    if context.registry is None:
        raise ConfigError(
            "the registry resolver has no registry to ask", hint="choose a registry, as in registry:local"
        )
    return RegistryResolver(
        options,
        registry=context.registry,
        own_node_id=context.node_id,
        random=context.random,
        counters=context.counters,
    )


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    return Driver(
        name="registry",
        summary="Nodes that the site's registry knows.",
        options=RegistryResolverOptions,
        create=create,
        capabilities=frozenset({"priorities"}),
    )
