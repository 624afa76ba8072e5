"""Metrics of a node, collected on request. Routes are counted as they change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from micro_core.contract import RouteEvent, RouteEventKind, RunningNode


class NodeMetrics(Collector):
    """The Prometheus collector of one node. It runs in the event loop and never iterates over all routes."""

    def __init__(self, node: RunningNode) -> None:
        self._node = node
        # Count routes once and update the count, since a table may have 100,000 routes.
        self._routes = Counter(route.link for route in node.table.list())
        self._end_watch = node.table.watch(self._route_changed)

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
        for link in ("local", "network"):
            routes.add_metric([link], self._routes[link])
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

    def _route_changed(self, event: RouteEvent) -> None:
        if event.kind is RouteEventKind.CREATE:
            self._routes[event.route.link] += 1
        elif event.kind is RouteEventKind.DELETE:
            self._routes[event.route.link] -= 1
