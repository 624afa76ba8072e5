"""The endpoints for the nodes, links and graph of the network. Nodes and tunnel processes serve them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from micro_core.contract.clock import Clock
from micro_core.contract.errors import BadRequest
from micro_core.network.graph import RADIUS
from micro_core.network.network import Network
from micro_core.node.views import (
    candidate_node_view,
    connection_view,
    failing_view,
    graph_view,
    links_view,
    node_view,
)
from micro_core.routing.link_damping import LinkDampingStatus
from micro_core.rpc.server import Server

NETWORK_ENDPOINTS = ("Network.Nodes", "Network.Connections", "Network.Graph")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesRequest:
    """`radius` is in hops."""

    radius: int = RADIUS


class NetworkEndpoints:
    """Nodes, links and graph from the view of one node. `link_flaps()` returns the links that have been lost lately."""

    def __init__(
        self, *, network: Network, clock: Clock, link_flaps: Callable[[], Sequence[LinkDampingStatus]] = tuple
    ) -> None:
        self._network = network
        self._clock = clock
        self._link_flaps = link_flaps

    def add_to(self, server: Server) -> None:
        """Add NETWORK_ENDPOINTS to `server`."""
        handlers: tuple[Callable[..., Any], ...] = (self.nodes, self.connections, self.graph)
        for name, handler in zip(NETWORK_ENDPOINTS, handlers, strict=True):
            server.add(name, handler, idempotent=True)

    async def nodes(self, request: NodesRequest) -> dict[str, Any]:
        """Return the nodes within `radius` hops, nearest first. The first one is the node that answers."""
        return {"nodes": [node_view(node) for node in self._network.nodes(_radius(request))]}

    async def connections(self) -> dict[str, Any]:
        """Return the links of this node, how many it wants, and the known nodes without a link with the reason.

        A link is damped if it has been lost repeatedly: calls use it only if there is no other way.
        """
        now = self._clock.now()
        flaps = {flap.peer: flap for flap in self._link_flaps()}
        candidates = self._network.candidates()
        return {
            "connections": [connection_view(link, now, flaps.get(link.peer)) for link in self._network.links()],
            "links": links_view(self._network.sides(), self._network.max_links),
            "candidates": [candidate_node_view(candidate) for candidate in candidates],
            "failing": failing_view(candidates),
        }

    async def graph(self, request: NodesRequest) -> dict[str, Any]:
        """Return the nodes within `radius` hops, and the links between them."""
        return graph_view(self._network.nodes(_radius(request)))


def _radius(request: NodesRequest) -> int:
    if not 0 <= request.radius <= RADIUS:
        raise BadRequest(f"invalid radius {request.radius}: it must be between 0 and {RADIUS}")
    return request.radius
