"""The service of a node, `go.micro.network`, which is called like any other service.

Its endpoints are those of every service (`Debug.*`), of the network (`network_endpoints.py`) and of the router
(`router_endpoints.py`), `Network.Status`, and `Broker.Publish`, with which clients that call through the node also publish.
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
from micro_core.proxy.message_headers import without_node_headers
from micro_core.proxy.topics import Topics
from micro_core.routing.router import Router
from micro_core.rpc.server import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRequest:
    """A message for a topic, with a unique id of 32 lowercase hex digits."""

    topic: str
    id: str
    body: bytes
    content_type: str = "application/msgpack"
    headers: dict[str, str] = field(default_factory=dict)


class Control:
    """The endpoints of one node. `facts()` returns its name, drivers, addresses and counters."""

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
        """Add all endpoints to `server`."""
        NetworkEndpoints(network=self._network, clock=self._clock, link_flaps=self._router.link_flaps).add_to(server)
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
        """Return name, addresses, drivers, topics and counters of this node."""
        return {**self._facts(), "topics": self._topics.topics(), "links": len(self._network.links())}

    async def _names(self) -> dict[str, str]:
        return {node.record.id: node.record.name for node in self._network.nodes()}


class Publishing:
    """Publishes messages on the broker of the site, for clients that call through the node."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def publish(self, request: PublishRequest) -> dict[str, Any]:
        """Publish a message on the broker of this site. Other sites with subscribers receive it from there.

        Raises:
            BadRequest: the topic or the id is invalid.
        """
        check_topic(request.topic)
        if len(request.id) != 32 or not all(digit in "0123456789abcdef" for digit in request.id):
            raise BadRequest("invalid message id: it must be 32 lowercase hex digits")
        message = Message(id=request.id, body=request.body, content_type=request.content_type, headers=request.headers)
        await self._broker.publish(request.topic, without_node_headers(message))
        return {"id": request.id}
