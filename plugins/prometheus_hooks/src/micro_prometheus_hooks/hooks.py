"""The hooks: measure calls and export the counters of a node or service."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from micro_core.contract import DriverContext, Interceptor, MicroError, RunningNode, hookimpl
from micro_prometheus_hooks.calls import CallMetrics
from micro_prometheus_hooks.endpoint import Endpoint
from micro_prometheus_hooks.node_metrics import NodeMetrics
from micro_prometheus_hooks.options import PrometheusOptions


class PrometheusHooks:
    """The plugin in one process or node, with its own Prometheus registry."""

    def __init__(self, options: PrometheusOptions, context: DriverContext) -> None:
        self._options = options
        self._context = context
        self.registry = CollectorRegistry()
        self.endpoint = Endpoint(self.registry, context)
        self._calls: CallMetrics | None = None
        self._node: NodeMetrics | None = None

    @hookimpl
    def micro_interceptors(self, side: str) -> Sequence[Interceptor]:
        """Measure calls, unless this process serves no metrics."""
        if side == "server" and self._options.service_listen and not self.endpoint.address:
            self._serve(self._options.service_listen)
        if not self.endpoint.address:
            return []
        if self._calls is None:
            self._calls = CallMetrics(self.registry, self._context.clock, self._options.max_series)
        return [self._calls.measure]

    @hookimpl
    def micro_node_started(self, node: RunningNode) -> None:
        """Serve the metrics of the node."""
        if not self._options.listen:
            return
        self._serve(self._options.listen)
        self._node = NodeMetrics(node)
        self.registry.register(self._node)

    @hookimpl
    def micro_node_stopping(self, node: RunningNode) -> None:
        """Stop serving metrics."""
        del node
        if self._node is not None:
            self._node.close()
        self.endpoint.close()

    def _serve(self, address: str) -> None:
        try:
            self.endpoint.open(address)
        except MicroError as error:
            # A port that is already in use must not prevent a node or service from starting.
            self._context.counters.add("prometheus_endpoint_failed")
            self._context.logger.error("cannot serve metrics", extra={"reason": str(error)})  # noqa: TRY400 - the traceback adds nothing
            return
        for collector in (ProcessCollector(registry=None), PlatformCollector(registry=None)):
            self.registry.register(collector)
        self._context.logger.info("serving metrics", extra={"address": self.endpoint.address})
