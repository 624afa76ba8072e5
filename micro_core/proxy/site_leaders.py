"""Which node of each site receives a message, and which node of the own site sends it to other sites. Pure.

The *leader* of a site is the node with the smallest id among the nodes that have a route now. Routes to a dead node are
removed when its links are detected as dead, so leadership changes within 3 to 4 seconds, before any lease has expired.
Nodes with different tables may disagree for a moment. Then a message is sent twice or forwarded inside the site, and the
leader drops the copy by its id.
"""

from __future__ import annotations

from collections.abc import Iterable

from micro_core.contract.table import ANY_SERVICE, NETWORK_LINK, Route


def leaders_by_site(routes: Iterable[Route], *, own_site: str) -> dict[str, Route]:
    """Return the best route to the leader of each other site, by site.

    Args:
        routes: The routes of one name, best first: the interest in a topic.
        own_site: The site of this node, which is left out, because all its nodes share one broker.
    """
    leaders: dict[str, Route] = {}
    for route in routes:
        if route.link != NETWORK_LINK or route.service == ANY_SERVICE or route.site == own_site:
            continue
        # A route without a site belongs to a site of its own.
        site = route.site or route.router
        leader = leaders.get(site)
        if leader is None or route.router < leader.router:
            leaders[site] = route
    return leaders


def lesser_node(routes: Iterable[Route], *, own_site: str, node_id: str) -> str:
    """Return the leader of the own site if it is another node than `node_id`; an empty string if it is this node."""
    lesser = [
        route.router
        for route in routes
        if route.link == NETWORK_LINK
        and route.service != ANY_SERVICE
        and route.site == own_site
        and route.router < node_id
    ]
    return min(lesser, default="")
