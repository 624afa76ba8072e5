"""Networks whose nodes find and choose their links by the real code: resolvers, the registry of the site, no seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from micro_core.builtin.resolver.registry import RegistryResolver, RegistryResolverOptions
from micro_core.contract.driver import CountersInMemory
from micro_core.lab.directory import LabResolver, Spelling, stale_addresses
from micro_core.lab.lab_node import LabNode, ResolverMaker, SiteBroker
from micro_core.lab.net import Lab
from micro_core.lab.simulated_links import Conditions

PORT = 8085

WITHIN_SITE = Conditions(delay_s=0.00025)
"""Within a site: a round trip of 0.5 ms."""

CLOUD_RTTS_S: Mapping[tuple[int, int], float] = {
    (0, 1): 0.040,
    (0, 2): 0.005,
    (0, 3): 0.150,
    (1, 2): 0.060,
    (1, 3): 0.100,
    (2, 3): 0.140,
}
"""Round trips between the four clouds, in seconds."""

CLOUD_LOSS = 0.005
"""Loss on the paths between clouds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """A site: its nodes, its broker, and how its nodes find others."""

    name: str
    nodes: int = 3
    broker: SiteBroker = SiteBroker.NODES
    is_behind_nat: bool = False
    """Other sites cannot dial its nodes."""
    spelling: Spelling = Spelling.BARE
    """How the directory writes addresses in the answers to its nodes."""
    has_directory: bool = True
    """Whether its nodes query the directory."""
    has_registry_resolver: bool = False
    """Whether its nodes also query the registry of the site."""
    only: tuple[str, ...] | None = None
    """Names of the nodes that the directory lists for its nodes. None means all."""


async def add_sites(lab: Lab, plans: Sequence[SitePlan], *, stale: int = 0) -> list[list[LabNode]]:
    """Create the nodes of all sites at the same virtual time. The directory lists all of them before the first one starts.

    The nodes of a site named x are x1, x2 and so on. Addresses are those of a private network.

    Args:
        lab: The lab.
        plans: The sites.
        stale: Number of additional addresses in the directory at which no node ever was.
    """
    lab.directory.stale = [*lab.directory.stale, *stale_addresses(stale)]
    addresses: dict[str, str] = {}
    first = len(lab.nodes)
    for number, plan in enumerate(plans, first):
        for index in range(1, plan.nodes + 1):
            addresses[f"{plan.name}{index}"] = f"10.{number // 250}.{number % 250}.{index}:{PORT}"
    lab.directory.addresses.update(addresses)
    for plan in plans:
        lab.links.set_between_sites(plan.name, plan.name, WITHIN_SITE)
    groups: list[list[LabNode]] = []
    for plan in plans:
        group = []
        for index in range(1, plan.nodes + 1):
            name = f"{plan.name}{index}"
            node = await lab.add(
                name,
                site=plan.name,
                resolvers=_resolvers(plan),
                address=addresses[name],
                broker=plan.broker,
                is_behind_nat=plan.is_behind_nat,
            )
            group.append(node)
        groups.append(group)
    return groups


def _resolvers(plan: SitePlan) -> list[ResolverMaker]:
    def directory(node: LabNode) -> LabResolver:
        return LabResolver(
            node.lab.directory,
            own=node.name,
            scheme=node.lab.options.schemes[0],
            source=node.random("directory"),
            spelling=plan.spelling,
            only=plan.only,
        )

    def registry(node: LabNode) -> RegistryResolver:
        return RegistryResolver(
            RegistryResolverOptions(),
            registry=node.registry,
            own_node_id=node.id,
            random=node.random("registry resolver"),
            counters=CountersInMemory(),
        )

    makers: list[ResolverMaker] = []
    if plan.has_directory:
        makers.append(directory)
    if plan.has_registry_resolver:
        makers.append(registry)
    return makers


def set_cloud_paths(lab: Lab, sites: Sequence[str], rtts_s: Mapping[tuple[int, int], float] = CLOUD_RTTS_S) -> None:
    """Set the delays and the loss between clouds. `rtts_s` are round trips by the indexes of two sites."""
    for (one, other), rtt_s in rtts_s.items():
        if max(one, other) < len(sites):
            lab.links.set_between_sites(sites[one], sites[other], Conditions(delay_s=rtt_s / 2, loss=CLOUD_LOSS))


async def four_clouds(
    lab: Lab,
    size: int = 3,
    *,
    broker: SiteBroker = SiteBroker.NODES,
    spelling: Spelling = Spelling.MIXED,
    stale: int = 0,
) -> list[list[LabNode]]:
    """Create four clouds of `size` nodes, c1 to c4, with the round trips `CLOUD_RTTS_S` and some loss between them."""
    names = [f"c{number}-" for number in range(1, 5)]
    set_cloud_paths(lab, names)
    plans = [
        SitePlan(name=name, nodes=size, broker=broker, spelling=spelling, has_registry_resolver=True) for name in names
    ]
    return await add_sites(lab, plans, stale=stale)


async def many_sites(
    lab: Lab,
    count: int = 30,
    *,
    nodes: int = 1,
    behind_nat: int = 0,
    spelling: Spelling = Spelling.BARE,
    stale: int = 0,
) -> list[list[LabNode]]:
    """Create `count` sites with round trips of 5 to 150 ms between them. The last `behind_nat` of them are behind NATs."""
    names = [f"s{number:02}-" for number in range(count)]
    for one, other in itertools.combinations(names, 2):
        rtt_s = lab.random.uniform(0.005, 0.150)
        lab.links.set_between_sites(one, other, Conditions(delay_s=rtt_s / 2, loss=CLOUD_LOSS))
    plans = [
        SitePlan(
            name=name,
            nodes=nodes,
            broker=SiteBroker.NODES,
            is_behind_nat=index >= count - behind_nat,
            spelling=spelling,
            has_registry_resolver=nodes > 1,
        )
        for index, name in enumerate(names)
    ]
    return await add_sites(lab, plans, stale=stale)


def flat(groups: Iterable[Iterable[LabNode]]) -> list[LabNode]:
    """Return the nodes of all groups."""
    return [node for group in groups for node in group]
