"""What a tunnel's process answers of the network: nodes, links, graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from micro_core.contract.clock import Clock
from micro_core.contract.errors import BadRequest
from micro_core.network.graph import RADIUS
from micro_core.network.network import Network
from micro_core.node.views import connection_view, graph_view, node_view
from micro_core.rpc.server import Server

NETWORK_ENDPOINTS = ("Network.Nodes", "Network.Connections", "Network.Graph")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesRequest:
    radius: int = RADIUS


class NetworkEndpoints:
    """Nodes, links, graph, as one node sees them."""

    def __init__(self, *, network: Network, clock: Clock) -> None:
        self._network = network
        self._clock = clock

    def add_to(self, server: Server) -> None:
        """Serve NETWORK_ENDPOINTS."""
        handlers: tuple[Callable[..., Any], ...] = (self.nodes, self.connections, self.graph)
        for name, handler in zip(NETWORK_ENDPOINTS, handlers, strict=True):
            server.add(name, handler, idempotent=True)

    async def nodes(self, request: NodesRequest) -> dict[str, Any]:
        """The nodes within sight, nearest first; the first is the node that answers."""
        return {"nodes": [node_view(node) for node in self._network.nodes(_radius(request))]}

    async def connections(self) -> dict[str, Any]:
        """The links of this node, and the addresses it would like to be linked to."""
        now = self._clock.now()
        failing = [
            {"address": address, "reason": reason} for address, reason in sorted(self._network.dial_failures().items())
        ]
        return {"connections": [connection_view(link, now) for link in self._network.links()], "failing": failing}

    async def graph(self, request: NodesRequest) -> dict[str, Any]:
        """Nodes within sight, and the links between them."""
        return graph_view(self._network.nodes(_radius(request)))


def _radius(request: NodesRequest) -> int:
    if not 0 <= request.radius <= RADIUS:
        raise BadRequest(f"radius: from 0 to {RADIUS}, not {request.radius}")
    return request.radius
