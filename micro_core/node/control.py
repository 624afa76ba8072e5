"""The node as a service: `go.micro.network` answers over the same RPC as any other.

Endpoints: those of every service (Debug.*), those of the network (network_endpoints.py) and of the router (router_endpoints.py), Network.Status, and
Broker.Publish, by which a client that calls through the node also publishes through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from micro_core.contract.broker import Broker, Message
from micro_core.contract.clock import Clock
from micro_core.contract.errors import BadRequest
from micro_core.contract.names import check_topic
from micro_core.contract.table import RouteKey
from micro_core.network.network import Network
from micro_core.node.network_endpoints import NetworkEndpoints
from micro_core.node.router_endpoints import RouterEndpoints
from micro_core.proxy.topics import Topics, without_node_headers
from micro_core.routing.router import Router
from micro_core.rpc.server import Server


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
        waiting_us: Callable[[RouteKey], int],
    ) -> None:
        self._network = network
        self._router = router
        self._topics = topics
        self._broker = broker
        self._clock = clock
        self._facts = facts
        self._waiting_us = waiting_us

    def add_to(self, server: Server) -> None:
        """Serve every endpoint of this node."""
        NetworkEndpoints(network=self._network, clock=self._clock).add_to(server)
        RouterEndpoints(
            router=self._router,
            node_name=self._network.record.name,
            links=self._network.links,
            names=self._names,
            clock=self._clock,
            waiting_us=self._waiting_us,
        ).add_to(server)
        server.add("Network.Status", self.status, idempotent=True)
        server.add("Broker.Publish", Publishing(self._broker).publish)

    async def status(self) -> dict[str, Any]:
        """What this node is, and what it has counted."""
        return {**self._facts(), "topics": self._topics.topics(), "links": len(self._network.links())}

    async def _names(self) -> dict[str, str]:
        return {node.record.id: node.record.name for node in self._network.nodes()}


class Publishing:
    """Hands messages to this site's broker, for clients that call through the node."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def publish(self, request: PublishRequest) -> dict[str, Any]:
        """Hand a message to this site's broker; sites elsewhere that want it get it from there."""
        check_topic(request.topic)
        if len(request.id) != 32 or not all(digit in "0123456789abcdef" for digit in request.id):
            raise BadRequest("id: a message id is 32 hex digits")
        message = Message(id=request.id, body=request.body, content_type=request.content_type, headers=request.headers)
        await self._broker.publish(request.topic, without_node_headers(message))
        return {"id": request.id}
