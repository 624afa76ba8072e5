"""The hooks: measure calls, and show what a node or a service counts."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from micro_core.contract import DriverContext, Interceptor, MicroError, RunningNode, hookimpl
from micro_prometheus_hooks.calls import CallMetrics
from micro_prometheus_hooks.endpoint import Endpoint
from micro_prometheus_hooks.node_metrics import NodeMetrics
from micro_prometheus_hooks.options import PrometheusOptions


class PrometheusHooks:
    """One a process (or node) that names the plugin; its metrics are in a registry of its own."""

    def __init__(self, options: PrometheusOptions, context: DriverContext) -> None:
        self._options = options
        self._context = context
        self.registry = CollectorRegistry()
        self.endpoint = Endpoint(self.registry, context)
        self._calls: CallMetrics | None = None
        self._node: NodeMetrics | None = None

    @hookimpl
    def micro_interceptors(self, side: str) -> Sequence[Interceptor]:
        # Nobody could ask a process that shows nothing (a command, a client): there, measuring would be for nothing.
        if side == "server" and self._options.service_listen and not self.endpoint.address:
            self._show(self._options.service_listen)
        if not self.endpoint.address:
            return []
        if self._calls is None:
            self._calls = CallMetrics(self.registry, self._context.clock, self._options.max_series)
        return [self._calls.measure]

    @hookimpl
    def micro_node_started(self, node: RunningNode) -> None:
        if not self._options.listen:
            return
        self._show(self._options.listen)
        self._node = NodeMetrics(node)
        self.registry.register(self._node)

    @hookimpl
    def micro_node_stopping(self, node: RunningNode) -> None:
        del node
        if self._node is not None:
            self._node.close()
        self.endpoint.close()

    def _show(self, address: str) -> None:
        try:
            self.endpoint.open(address)
        except MicroError as error:
            # A port that is taken must not keep a node or a service from its work; it is said, and counted.
            self._context.counters.add("prometheus_endpoint_failed")
            self._context.logger.error("no metrics", extra={"reason": str(error)})  # noqa: TRY400 - a sentence, no trace
            return
        for collector in (ProcessCollector(registry=None), PlatformCollector(registry=None)):
            self.registry.register(collector)
        self._context.logger.info("metrics", extra={"address": self.endpoint.address})
