"""What a node shows of itself, as plain maps with stable names: the answers of its service and of `--json`.

Pure. Times are seconds, round trips and metrics microseconds where the name says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from micro_core.network.graph import GraphNode
from micro_core.spec.names import INTEREST_PREFIX
from micro_core.spec.table import LOCAL_LINK, Route
from micro_core.spec.tunnel import LinkInfo


def node_view(node: GraphNode) -> dict[str, Any]:
    record = node.record
    return {
        "id": record.id,
        "name": record.name,
        "site": record.site,
        "address": ",".join(record.addresses),
        "hops": node.hops,
        "age_s": round(node.age_s, 1),
    }


def graph_view(nodes: Sequence[GraphNode]) -> dict[str, Any]:
    """Nodes, and each link between two of them once."""
    shown = {node.record.id for node in nodes}
    links: dict[tuple[str, str], int] = {}
    for node in nodes:
        for neighbour, cost_us in node.record.neighbours:
            if neighbour in shown:
                ends = (min(node.record.id, neighbour), max(node.record.id, neighbour))
                links[ends] = max(cost_us, links.get(ends, 0))
    return {
        "nodes": [node_view(node) for node in nodes],
        "links": [{"from": ends[0], "to": ends[1], "cost_us": cost_us} for ends, cost_us in sorted(links.items())],
    }


def connection_view(link: LinkInfo, now: float) -> dict[str, Any]:
    return {
        "id": link.peer,
        "name": link.peer_name,
        "site": link.site,
        "driver": link.driver,
        "address": link.remote,
        "direction": "out" if link.dialed else "in",
        "rtt_us": _microseconds(link.rtt_s),
        "rtt_variance_us": _microseconds(link.rtt_variance_s),
        "loss": link.loss,
        "queue_delay_us": _microseconds(link.queue_delay_s),
        "bytes_in": link.bytes_in,
        "bytes_out": link.bytes_out,
        "sessions": link.sessions,
        "generation": link.generation,
        "up_s": round(now - link.up_since, 1),
    }


def route_view(route: Route, names: dict[str, str], now: float) -> dict[str, Any]:
    """`names` are those of the nodes in sight, by id."""
    return {
        "service": route.service,
        "address": route.address,
        "gateway": route.gateway,
        "gateway_name": names.get(route.gateway, ""),
        "network": route.network,
        "router": route.router,
        "router_name": names.get(route.router, ""),
        "site": route.site,
        "link": route.link,
        "metric": route.metric,
        "hops": route.hops,
        "version": route.version,
        "expires_s": None if route.expires_at is None else round(route.expires_at - now, 1),
    }


def services_view(routes: Iterable[Route]) -> list[dict[str, Any]]:
    """Each service once, with its best route's figures and the sites it is on; interests in topics left out."""
    found: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.service.startswith(INTEREST_PREFIX):
            continue
        entry = found.setdefault(
            route.service,
            {"service": route.service, "sites": [], "routes": 0, "local": False, "metric": route.metric},
        )
        entry["routes"] += 1
        entry["metric"] = min(entry["metric"], route.metric)
        entry["local"] = entry["local"] or route.link == LOCAL_LINK
        if route.site and route.site not in entry["sites"]:
            entry["sites"].append(route.site)
    for entry in found.values():
        entry["sites"].sort()
    return [found[name] for name in sorted(found)]


def _microseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e6)
