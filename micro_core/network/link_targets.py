"""Which nodes to link to, to exchange and to give up: pure functions of the known nodes.

A node keeps links to a few nodes of its own site and to a few of other sites: to distinct sites first, and to near nodes
first. In a large network one link is chosen at random, because links to near nodes alone would make paths long (small
worlds; HyParView keeps random links for the same reason).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from micro_core.contract.clock import Random
from micro_core.network.peer_table import KnownNode

SIMILAR_RATIO = 1.3
SIMILAR_S = 0.002
"""Nodes within this factor plus this number of seconds of the nearest count as equally near. One of them is chosen at
random, so that not all nodes of a site link to the same one."""

EXCHANGE_RATIO = 0.7
"""A link is exchanged only for a node whose round-trip time is at most this share of that of the link."""

MIN_EXCHANGE_S = 0.003
"""A link is exchanged only if the round-trip time becomes shorter by at least this number of seconds."""

SURPLUS = 2
"""Number of dialled links above the wanted number that are kept."""

MIN_DEGREE = 3
"""A link is given up only if its node has at least this number of links according to its record."""

MIN_OUTWARD = 2
"""Number of links to other sites that a site must keep when the last link of this node to it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """The number of links to keep, and the interval between queries of the resolvers.

    With `links_site=0, links_remote=0` only the seeds are linked, and the links of other nodes are accepted: no other node
    is dialled, not even an unreachable one.
    """

    links_site: int = 2
    """Number of links to nodes of the own site, accepted links included."""

    links_remote: int = 2
    """Number of links to nodes of other sites, accepted links included."""

    max_links: int = 64
    """Number of links above which accepted links are closed. A site's only link is not closed for this."""

    resolve_s: float = 60.0
    """Seconds between two queries of the resolvers while no link and no node is missing."""

    resolve_when_short_s: float = 5.0
    """Seconds between two queries while a link or a node is missing, and minimum time between two queries."""

    exchange_s: float = 60.0
    """Seconds between two checks whether a link can be exchanged for one to a nearer node."""

    @property
    def is_static(self) -> bool:
        """Whether only the seeds are linked."""
        return self.links_site == 0 and self.links_remote == 0


@dataclass(frozen=True, slots=True)
class Side:
    """The links inside the own site, or those to other sites: how many are wanted, and how many there are."""

    is_own_site: bool
    wanted: int
    open: int
    in_progress: int

    @property
    def missing(self) -> int:
        """Number of links to dial."""
        return max(0, self.wanted - self.open - self.in_progress)


def choose(
    pool: Sequence[KnownNode], side: Side, used_sites: Collection[str], site_count: int, random: Random
) -> tuple[KnownNode, bool] | None:
    """Return the node to link to next, and whether it was chosen at random. None if `pool` is empty.

    Args:
        pool: The nodes of this side that can be linked.
        side: The numbers of links.
        used_sites: Other sites with a link.
        site_count: Number of other sites that are known.
        random: Chooses between equals.
    """
    if not pool:
        return None
    unused = pool if side.is_own_site else [node for node in pool if node.site not in used_sites]
    best = sorted(unused or pool, key=lambda node: (_rtt_s(node), node.id))
    is_last = side.missing == 1 and side.wanted >= 2
    if is_last and not side.is_own_site and site_count > 2 * side.wanted:
        return best[random.randrange(0, len(best))], True
    limit_s = _rtt_s(best[0]) * SIMILAR_RATIO + SIMILAR_S
    similar = [node for node in best if _rtt_s(node) <= limit_s] or best[:1]
    return similar[random.randrange(0, len(similar))], False


def well_linked_sites(nodes: Iterable[KnownNode], own_id: str) -> frozenset[str]:
    """Return the sites that keep at least `MIN_OUTWARD` links to other sites when this node closes one of them.

    This is known from the records of the nodes. Links to nodes whose site is unknown do not count.
    """
    site_of = {node.id: node.site for node in nodes}
    outward = Counter(
        site
        for node in nodes
        if (site := site_of[node.id])
        for neighbour in node.neighbours
        if neighbour == own_id or site_of.get(neighbour, site) != site
    )
    return frozenset(site for site, count in outward.items() if count > MIN_OUTWARD)


def find_exchange(
    linked: Sequence[KnownNode], pool: Sequence[KnownNode], well_linked: Collection[str]
) -> tuple[KnownNode, KnownNode] | None:
    """Return a link to give up and the nearer node to link to instead, or None if no exchange is worth it.

    The last link to a site is exchanged only for another one to it, or if the site has enough links of its own.

    Args:
        linked: All linked nodes of one side.
        pool: The nodes of the same side that can be linked and whose round-trip time was measured.
        well_linked: The result of `well_linked_sites`.
    """
    sites = Counter(node.site for node in linked)
    for worst in sorted(_given_up(linked), key=lambda node: (-_rtt_s(node), node.id)):
        limit_s = min(_rtt_s(worst) * EXCHANGE_RATIO, _rtt_s(worst) - MIN_EXCHANGE_S)
        is_spare = sites[worst.site] > 1 or worst.site in well_linked
        better = [node for node in pool if _rtt_s(node) <= limit_s and (is_spare or node.site == worst.site)]
        if better:
            return worst, min(better, key=lambda node: (_rtt_s(node), node.id))
    return None


def find_surplus(linked: Sequence[KnownNode], wanted: int) -> KnownNode | None:
    """Return the link to give up because there are many more than wanted on one side, or None."""
    sites = Counter(node.site for node in linked)
    dialled = [node for node in _given_up(linked) if sites[node.site] > 1]
    if len(linked) <= wanted + SURPLUS or not dialled:
        return None
    return max(dialled, key=lambda node: (_rtt_s(node), node.id))


def find_eviction(linked: Sequence[KnownNode], max_links: int, well_linked: Collection[str]) -> KnownNode | None:
    """Return the accepted link to close because there are more than `max_links`, or None.

    A link that is the only one to its site is closed if the site has enough links of its own. Other such links are closed
    only above twice the limit, and then the newest one.
    """
    if len(linked) <= max_links:
        return None
    accepted = [node for node in linked if node.link is not None and node.link.address is None]
    sites = Counter(node.site for node in linked)
    spare = [node for node in accepted if sites[node.site] > 1]
    spare = spare or [node for node in accepted if node.site in well_linked]
    if spare:
        return max(spare, key=lambda node: (_rtt_s(node), _up_since(node), node.id))
    if len(linked) > 2 * max_links and accepted:
        return max(accepted, key=lambda node: (_up_since(node), node.id))
    return None


def _given_up(linked: Sequence[KnownNode]) -> list[KnownNode]:
    """Return the links that this node may give up: it dialled them, and the node at the other end has others."""
    return [
        node
        for node in linked
        if node.link is not None
        and node.link.address is not None
        and not node.is_random
        and len(node.neighbours) >= MIN_DEGREE
        and not any(address.is_seed for address in node.addresses.values())
    ]


def _rtt_s(node: KnownNode) -> float:
    return node.rtt_s if node.rtt_s is not None else 1.0


def _up_since(node: KnownNode) -> float:
    return node.link.up_since if node.link is not None else 0.0
