"""The driver `resolver:registry`: finds the nodes that are registered in the registry of the site.

The metadata of a node's record contain `tunnel` (addresses, separated by commas), `node` (its id) and optionally
`priority`. A node with several addresses is one candidate, because the addresses are paths to the same node.
"""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.builtin.resolver.static import split_addresses
from micro_core.contract import (
    BadRequest,
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
from micro_core.contract.names import (
    NETWORK_SERVICE,
    NODE_KEY,
    PATH_SEPARATOR,
    PRIORITY_KEY,
    TUNNEL_KEY,
    check_node_id,
)

MAX_ADDRESSES_PER_NODE = 16
"""Addresses used of one node. Further ones are counted and ignored."""

MAX_PRIORITY = 65_535
"""Maximum value of a priority, as in an SRV record (RFC 2782)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryResolverOptions:
    """Options of `resolver:registry`."""

    service: str = option(NETWORK_SERVICE, "Name under which nodes register.")
    ttl_s: float = option(10.0, "Seconds until the network resolves again.")


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
        """Do nothing: the owner of the registry starts it."""

    async def close(self) -> None:
        """Do nothing: the owner of the registry closes it."""

    async def resolve(self, network: str) -> list[Candidate]:  # noqa: ARG002 - a registry serves one network
        """Return the other nodes, lowest priority first, and in random order within the same priority.

        Raises Unreachable if the registry is not available.
        """
        found = [
            self._candidate(instance)
            for instance in await self._registry.instances(self._options.service)
            if instance.metadata.get(NODE_KEY) != self._own_node_id
        ]
        candidates = [candidate for candidate in found if candidate is not None]
        # Sorted by address first, so that the random order depends on the seed and not on the order of the registry.
        candidates.sort(key=lambda candidate: candidate.address)
        shuffled = [(candidate.priority, self._random.random(), candidate) for candidate in candidates]
        shuffled.sort(key=lambda entry: entry[:2])
        return [candidate for _, _, candidate in shuffled]

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
            node_id=_parse_node_id(instance.metadata.get(NODE_KEY, "")),
        )


def _parse_priority(text: str) -> int:
    """Return a number from 0 to MAX_PRIORITY; 0 if `text` is not a number."""
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        return 0
    return min(int(text), MAX_PRIORITY)


def _parse_node_id(text: str) -> str:
    """Return a node id; an empty text if `text` is not one."""
    try:
        return check_node_id(text)
    except BadRequest:
        return ""


def create(options: RegistryResolverOptions, context: DriverContext) -> RegistryResolver:
    """Return the resolver.

    Raises:
        ConfigError: No registry is in use.
    """
    if context.registry is None:
        raise ConfigError("the driver resolver:registry needs a registry", hint="name a registry, e.g. registry:local")
    return RegistryResolver(
        options,
        registry=context.registry,
        own_node_id=context.node_id,
        random=context.random,
        counters=context.counters,
    )


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    """Return the description of the driver."""
    return Driver(
        name="registry",
        summary="Nodes in the registry of the site.",
        options=RegistryResolverOptions,
        create=create,
        capabilities=frozenset({"priorities"}),
    )
