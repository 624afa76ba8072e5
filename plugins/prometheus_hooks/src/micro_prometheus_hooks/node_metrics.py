"""What a node shows: read when Prometheus asks, but for routes, which are counted as they change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from micro_core.contract import RouteEvent, RouteEventKind, RunningNode


class NodeMetrics(Collector):
    """The collector of one node. Asked in the event loop: it walks links and counters, never routes."""

    def __init__(self, node: RunningNode) -> None:
        self._node = node
        # Counted once, then kept: there may be a hundred thousand, and Prometheus asks every few seconds.
        self._routes = Counter(route.link for route in node.table.list())
        self._end_watch = node.table.watch(self._route_changed)

    def close(self) -> None:
        """Stop counting."""
        self._end_watch()

    def collect(self) -> Iterable[Metric]:
        node, facts = self._node, self._node.facts()
        identity = {"id": node.node_id, "name": node.name, "site": node.site, "network": node.network_name}
        yield InfoMetricFamily("micro_node", "Who this is.", value=identity)
        yield GaugeMetricFamily("micro_calls_in_flight", "Calls on their way through the node.", facts["in_flight"])
        routes = GaugeMetricFamily(
            "micro_routes", "Routes in the table, local and through the network.", labels=["link"]
        )
        for link in ("local", "network"):
            routes.add_metric([link], self._routes[link])
        yield routes
        counted = CounterMetricFamily(
            "micro_events", "The node's counters: docs/reference/counters.md.", labels=["name"]
        )
        for name, value in node.counted().items():
            counted.add_metric([name], value)
        yield counted
        yield from self._links()

    def _links(self) -> Iterable[Metric]:
        labels = ["peer", "name", "site", "driver"]
        up = GaugeMetricFamily("micro_link_up", "1 for each link that stands.", labels=labels)
        rtt = GaugeMetricFamily("micro_link_rtt_seconds", "Smoothed round trip.", labels=labels)
        queue = GaugeMetricFamily("micro_link_queue_delay_seconds", "How long bytes wait to be sent.", labels=labels)
        sessions = GaugeMetricFamily("micro_link_sessions", "Sessions over the link.", labels=labels)
        sent = CounterMetricFamily("micro_link_bytes", "Bytes over the link.", labels=[*labels, "direction"])
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
