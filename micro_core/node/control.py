"""The node as a service: `go.micro.network` answers over the same RPC as any other.

Endpoints: Network.Nodes, Network.Connections, Network.Services, Network.Routes, Network.Graph, Network.Status, and
Broker.Publish, by which a client that calls through the node also publishes through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from micro_core.network.graph import RADIUS
from micro_core.network.network import Network
from micro_core.node.views import connection_view, graph_view, node_view, route_view, services_view
from micro_core.proxy.topics import Topics, unmarked
from micro_core.routing.router import Router
from micro_core.rpc.server import Server
from micro_core.spec.broker import Broker, Message
from micro_core.spec.clock import Clock
from micro_core.spec.errors import BadRequest
from micro_core.spec.names import INTEREST_PREFIX, check_topic
from micro_core.spec.table import RouteQuery

SERVICE = "go.micro.network"
"""The name under which every node registers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesRequest:
    radius: int = RADIUS


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesRequest:
    """A filter; empty fields match all. `topics` shows interests in topics too."""

    service: str = ""
    address: str = ""
    gateway: str = ""
    router: str = ""
    network: str = ""
    link: str = ""
    topics: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRequest:
    topic: str
    id: str
    body: bytes
    content_type: str = "application/msgpack"
    headers: dict[str, str] = field(default_factory=dict)


class Control:
    """Answers for one node; `facts()` is what the node says of its own making (name, plugins, addresses)."""

    def __init__(
        self,
        *,
        network: Network,
        router: Router,
        topics: Topics,
        broker: Broker,
        clock: Clock,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        self._network = network
        self._router = router
        self._topics = topics
        self._broker = broker
        self._clock = clock
        self._facts = facts

    def add_to(self, server: Server) -> None:
        """Serve every endpoint of this node."""
        for name, handler in (
            ("Network.Nodes", self.nodes),
            ("Network.Connections", self.connections),
            ("Network.Services", self.services),
            ("Network.Routes", self.routes),
            ("Network.Graph", self.graph),
            ("Network.Status", self.status),
        ):
            server.add(name, handler, idempotent=True)
        server.add("Broker.Publish", self.publish)

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

    async def services(self) -> dict[str, Any]:
        """Every service that can be called from here."""
        return {"services": services_view(self._router.table.list())}

    async def routes(self, request: RoutesRequest) -> dict[str, Any]:
        """The route table, best first within a service."""
        query = RouteQuery(
            service=request.service,
            address=request.address,
            gateway=request.gateway,
            router=request.router,
            network=request.network,
            link=request.link,
        )
        now, names = self._clock.now(), self._names()
        wanted = [
            route
            for route in self._router.table.list(query)
            if request.topics or not route.service.startswith(INTEREST_PREFIX)
        ]
        return {"routes": [route_view(route, names, now) for route in wanted]}

    async def graph(self, request: NodesRequest) -> dict[str, Any]:
        """Nodes within sight, and the links between them."""
        return graph_view(self._network.nodes(_radius(request)))

    async def status(self) -> dict[str, Any]:
        """What this node is, and what it has counted."""
        return {**self._facts(), "topics": self._topics.topics(), "links": len(self._network.links())}

    async def publish(self, request: PublishRequest) -> dict[str, Any]:
        """Hand a message to this site's broker; sites elsewhere that want it get it from there."""
        check_topic(request.topic)
        if len(request.id) != 32 or not all(digit in "0123456789abcdef" for digit in request.id):
            raise BadRequest("id: a message id is 32 hex digits")
        message = Message(id=request.id, body=request.body, content_type=request.content_type, headers=request.headers)
        await self._broker.publish(request.topic, unmarked(message))
        return {"id": request.id}

    def _names(self) -> dict[str, str]:
        return {node.record.id: node.record.name for node in self._network.nodes()}


def _radius(request: NodesRequest) -> int:
    if not 0 <= request.radius <= RADIUS:
        raise BadRequest(f"radius: from 0 to {RADIUS}, not {request.radius}")
    return request.radius
