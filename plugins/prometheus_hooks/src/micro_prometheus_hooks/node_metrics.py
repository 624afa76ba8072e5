"""Metrics of a node, collected on request. Routes are counted as they change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from micro_core.contract import (
    LocalRouteChanged,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteChanged,
    RouteQuery,
    RunningNode,
    Table,
    TableEvent,
)

K = TypeVar("K", bound=Hashable)


class NodeMetrics(Collector):
    """The Prometheus collector of one node. It runs in the event loop and never iterates over all routes."""

    def __init__(self, node: RunningNode) -> None:
        self._node = node
        self._routes = RouteCounts(node.table)
        self._end_watch = node.table.watch(self._routes.table_changed)

    def close(self) -> None:
        """Stop watching the route table."""
        self._end_watch()

    def collect(self) -> Iterable[Metric]:
        """Return the current metrics of the node."""
        node, facts = self._node, self._node.facts()
        identity = {"id": node.node_id, "name": node.name, "site": node.site, "network": node.network_name}
        yield InfoMetricFamily("micro_node", "Identity of the node.", value=identity)
        yield GaugeMetricFamily(
            "micro_calls_in_flight", "Calls that the node is currently forwarding.", facts["in_flight"]
        )
        routes = GaugeMetricFamily("micro_routes", "Routes in the table by link (local, network).", labels=["link"])
        routes.add_metric(["local"], self._routes.local)
        routes.add_metric(["network"], self._routes.network)
        yield routes
        counted = CounterMetricFamily("micro_events", "Counters of the node.", labels=["name"])
        for name, value in node.counted().items():
            counted.add_metric([name], value)
        yield counted
        yield from self._links()

    def _links(self) -> Iterable[Metric]:
        labels = ["peer", "name", "site", "driver"]
        up = GaugeMetricFamily("micro_link_up", "1 for each open link.", labels=labels)
        rtt = GaugeMetricFamily("micro_link_rtt_seconds", "Smoothed round-trip time.", labels=labels)
        queue = GaugeMetricFamily("micro_link_queue_delay_seconds", "Time that bytes wait to be sent.", labels=labels)
        sessions = GaugeMetricFamily("micro_link_sessions", "Open sessions of the link.", labels=labels)
        sent = CounterMetricFamily(
            "micro_link_bytes", "Bytes transferred over the link.", labels=[*labels, "direction"]
        )
        for link in self._node.tunnel.links():
            values = [link.peer, link.peer_name, link.site, link.driver]
            up.add_metric(values, 1)
            if link.rtt_s is not None:
                rtt.add_metric(values, link.rtt_s)
            queue.add_metric(values, link.queue_delay_s)
            sessions.add_metric(values, link.sessions)
            sent.add_metric([*values, "in"], link.bytes_in)
            sent.add_metric([*values, "out"], link.bytes_out)
        yield from (up, rtt, queue, sessions, sent)


class RouteCounts:
    """The number of routes of a table. It is counted once and updated, since a table may have 100,000 routes."""

    def __init__(self, table: Table) -> None:
        self.local = len(table.list(RouteQuery(link="local")))
        """Routes to instances of the site."""
        self.network = 0
        """Routes to services of other sites: one per service, origin and next hop."""
        self._offered = {origin: {offer.service for offer in table.offers(origin)} for origin in table.origins()}
        self._routes_to_all: Counter[str] = Counter()
        """Number of routes to all services of each origin."""
        self._routes_to_some: Counter[tuple[str, str]] = Counter()
        """Number of routes to only some services of an origin, by origin and service, whether it is offered or not."""
        for route in table.origin_routes():
            self._origin_route_changed(None, route)

    def table_changed(self, event: TableEvent) -> None:
        """Count a change of the table."""
        match event:
            case LocalRouteChanged(before, after):
                self.local += (after is not None) - (before is not None)
            case OriginRouteChanged(route_before, route_after):
                self._origin_route_changed(route_before, route_after)
            case OffersChanged(origin, changes):
                self._offers_changed(origin, changes)

    def _offers_changed(self, origin: str, changes: Iterable[tuple[Offer | None, Offer | None]]) -> None:
        offered = self._offered.setdefault(origin, set())
        for before, after in changes:
            if before is None and after is not None:
                offered.add(after.service)
                self.network += self._routes_to_all[origin] + self._routes_to_some[origin, after.service]
            elif before is not None and after is None:
                offered.remove(before.service)
                self.network -= self._routes_to_all[origin] + self._routes_to_some[origin, before.service]
        if not offered:
            del self._offered[origin]

    def _origin_route_changed(self, before: OriginRoute | None, after: OriginRoute | None) -> None:
        for route, sign in ((before, -1), (after, 1)):
            if route is None:
                continue
            offered = self._offered.get(route.origin, set())
            if route.services is None:
                self.network += sign * len(offered)
                _add(self._routes_to_all, route.origin, sign)
                continue
            self.network += sign * len(offered & route.services)
            for service in route.services:
                _add(self._routes_to_some, (route.origin, service), sign)


def _add(counts: Counter[K], key: K, number: int) -> None:
    counts[key] += number
    if not counts[key]:
        del counts[key]
