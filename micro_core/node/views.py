"""The answers of the service of a node and of `--json`, as maps with stable keys.

Pure. The suffix of a key is its unit: seconds (`_s`) or microseconds (`_us`). Metrics are in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from micro_core.contract.names import INTEREST_PREFIX
from micro_core.contract.table import LOCAL_LINK, Route
from micro_core.contract.tunnel import LinkInfo
from micro_core.network.graph import GraphNode
from micro_core.network.peer_status import CandidateStatus, SideStatus
from micro_core.routing.damping import DampingPolicy, FlapStatus
from micro_core.routing.explain import RouteCandidate
from micro_core.routing.journal import Change
from micro_core.routing.link_damping import LinkDampingStatus
from micro_core.routing.metric import loss_penalty_us


def node_view(node: GraphNode) -> dict[str, Any]:
    """Return one node of the graph."""
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
    """Return nodes, and each link between two of them once."""
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


def connection_view(link: LinkInfo, now: float, flap: LinkDampingStatus | None = None) -> dict[str, Any]:
    """Return one link. `now` is in seconds of `Clock.now`. `flap` contains its recent losses, if there are any."""
    reuse_at = flap.reuse_at if flap is not None else None
    return {
        "id": link.peer,
        "name": link.peer_name,
        "site": link.site,
        "driver": link.driver,
        "why": link.why,
        "address": link.remote,
        "direction": "out" if link.dialed else "in",
        "rtt_us": _microseconds(link.rtt_s),
        "rtt_variance_us": _microseconds(link.rtt_variance_s),
        "path_rtt_us": _microseconds(link.path_rtt_s),
        "is_suspect": link.is_suspect,
        "is_closing": link.is_closing,
        "loss": link.loss,
        "queue_delay_us": _microseconds(link.queue_delay_s),
        "bytes_in": link.bytes_in,
        "bytes_out": link.bytes_out,
        "sessions": link.sessions,
        "generation": link.generation,
        "up_s": round(now - link.up_since, 1),
        "losses": flap.losses if flap is not None else 0,
        "is_damped": flap is not None and flap.is_damped,
        "reuse_in_s": None if reuse_at is None else round(max(0.0, reuse_at - now), 1),
    }


def links_view(sides: Sequence[SideStatus], max_links: int) -> dict[str, Any]:
    """Return how many links the node wants and has, inside its site and to other sites."""
    counts = {"site" if side.is_own_site else "remote": {"wanted": side.wanted, "open": side.open} for side in sides}
    return {**counts, "max": max_links}


def candidate_node_view(candidate: CandidateStatus) -> dict[str, Any]:
    """Return one node without a link, or one address whose node is unknown, and why there is no link."""
    return {
        "id": candidate.node,
        "name": candidate.name,
        "site": candidate.site,
        "addresses": list(candidate.addresses),
        "state": candidate.state,
        "why": candidate.why,
        "retry_s": None if candidate.retry_s is None else round(candidate.retry_s, 1),
        "rtt_us": _microseconds(candidate.rtt_s),
        "is_reachable": candidate.is_reachable,
    }


def failing_view(candidates: Sequence[CandidateStatus]) -> list[dict[str, Any]]:
    """Return the addresses without a link at which the last attempt failed, with the reason."""
    return [
        {"address": candidate.addresses[0], "reason": candidate.why}
        for candidate in candidates
        if candidate.state == "failing"
    ]


def route_view(route: Route, names: dict[str, str], now: float) -> dict[str, Any]:
    """Return one route. `names` contains the names of known nodes by id."""
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
        "stale": route.is_stale,
        "expires_s": None if route.expires_at is None else round(route.expires_at - now, 1),
    }


def candidate_view(
    candidate: RouteCandidate, names: dict[str, str], link: LinkInfo | None, configured_us: int
) -> dict[str, Any]:
    """Return one route candidate of a service.

    `link` is the link to its next hop, None if there is none. `configured_us` is the configured cost of that link.
    """
    terms = None
    if link is not None:
        terms = {
            "rtt_us": _microseconds(link.path_rtt_s),
            "queue_delay_us": _microseconds(link.queue_delay_s),
            "loss_penalty_us": loss_penalty_us(link.loss),
            "configured_us": configured_us,
        }
    return {
        "status": candidate.status.value,
        "why": candidate.why,
        "router": candidate.origin,
        "router_name": names.get(candidate.origin, ""),
        "site": candidate.site,
        "gateway": candidate.via,
        "gateway_name": names.get(candidate.via, ""),
        "address": candidate.address,
        "path": [names.get(node, node) for node in candidate.path],
        "announced_us": candidate.announced_us,
        "load_us": candidate.load_us,
        "waiting_us": candidate.waiting_us,
        "link_us": candidate.link_us,
        "link_terms": terms,
        "total_us": candidate.total_us,
        "versions": list(candidate.versions),
        "stale_for_s": None if candidate.stale_for_s is None else round(candidate.stale_for_s, 1),
    }


CURVE_STEP_S = 10.0
CURVE_STEPS = 13
"""Number of points in the forecast of a penalty, `CURVE_STEP_S` seconds apart: two minutes."""


def damping_view(policy: DampingPolicy) -> dict[str, Any]:
    """Return the thresholds of the penalties."""
    return {
        "suppress": policy.suppress,
        "reuse": policy.reuse,
        "half_life_s": policy.half_life_s,
        "max_suppress_s": policy.max_suppress_s,
        "dry_run": policy.dry_run,
    }


def flap_view(flap: FlapStatus, policy: DampingPolicy, now: float) -> dict[str, Any]:
    """Return the penalty of a service. `curve` is a forecast without further flaps, starting now."""
    return {
        "service": flap.service,
        "penalty": round(flap.penalty),
        "losses": flap.losses,
        "is_suppressed": flap.is_suppressed,
        "suppressed_for_s": round(flap.suppressed_for_s, 1),
        "reuse_in_s": None if flap.reuse_at is None else round(flap.reuse_at - now, 1),
        "curve_step_s": CURVE_STEP_S,
        "curve": [
            round(flap.penalty * 0.5 ** (step * CURVE_STEP_S / policy.half_life_s)) for step in range(CURVE_STEPS)
        ],
    }


def observed_view(flap: FlapStatus) -> dict[str, Any]:
    """Return the penalty of a service of another origin. Only its origin can suppress it."""
    return {"service": flap.service, "penalty": round(flap.penalty), "losses": flap.losses}


def change_view(change: Change, names: dict[str, str]) -> dict[str, Any]:
    """Return one change of the route table. `names` contains the names of known nodes by id."""
    route = change.route
    kind = "created" if change.before is None else "deleted" if change.after is None else "updated"
    return {
        "number": change.number,
        "at": change.at,
        "kind": kind,
        "service": route.service,
        "router": route.router,
        "router_name": names.get(route.router, ""),
        "gateway": route.gateway,
        "gateway_name": names.get(route.gateway, ""),
        "address": route.address,
        "metric": route.metric,
        "metric_before": None if change.before is None else change.before.metric,
    }


def services_view(routes: Iterable[Route]) -> list[dict[str, Any]]:
    """Return each service once, with its sites and the metric of its best route. Interest in topics is omitted."""
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
