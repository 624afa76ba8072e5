"""The forwarding plane of a node: the calls and messages that pass through it, and the server of its own service.

It runs in the process of a node, or in that of `micro proxy`, which uses the tunnel and the router of other processes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version

from micro_core.contract.broker import Broker
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.contract.transport import Listener, Socket, Transport
from micro_core.contract.tunnel import LinkDown, LinkEvent, LinkMoved, LinkSuspect, LinkUp, Priority, Session, Sessions
from micro_core.lifecycle.environment import Environment
from micro_core.node.description import NodeDescription
from micro_core.plugins import CORE_DISTRIBUTION
from micro_core.proxy.durable_topics import DELIVER
from micro_core.proxy.proxy import CHANNEL, Proxy
from micro_core.proxy.routes import RouteSource
from micro_core.proxy.topics import Topics
from micro_core.rpc.connection import Connection
from micro_core.rpc.debug import Debug
from micro_core.rpc.pool import Pool
from micro_core.rpc.server import Server

DIAL_TIMEOUT_S = 3.0
"""Timeout in seconds of a dial of a local instance."""

DRAIN_S = 10.0
"""Seconds that a shutdown waits for calls in progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardingSettings:
    """Drivers and options of a forwarding plane. The owner of the plane starts and closes the drivers."""

    transport: Transport
    broker: Broker
    own_services: Collection[str] = (NETWORK_SERVICE,)
    """Services that the server of the node answers."""


class ForwardingPlane:
    """The calls and messages of a node.

    `routes` is the router of this process or a copy of the table of another one; `sessions` is the tunnel of this process
    or a client of another one.
    """

    def __init__(
        self,
        settings: ForwardingSettings,
        *,
        node: NodeDescription,
        routes: RouteSource,
        sessions: Sessions,
        environment: Environment,
    ) -> None:
        self._environment = environment
        self._transport = settings.transport
        self._sessions = sessions
        self._listener: Listener | None = None
        self.server = Server(NETWORK_SERVICE, at=node.hop, counters=environment.counters)
        debug = Debug(self.server, version=version(CORE_DISTRIBUTION), instance_id=f"{NETWORK_SERVICE}-{node.node_id}")
        debug.start(environment.clock)
        self.proxy = Proxy(
            at=node.hop,
            router=routes,
            server=self.server,
            own_services=settings.own_services,
            pool=Pool(
                self._dial_instance,
                clock=environment.clock,
                random=environment.random,
                node_id=environment.node_id,
                counters=environment.counters,
            ),
            dial_session=self._dial_session,
            environment=environment,
        )
        self.topics = Topics(
            site=node.site, router=routes, proxy=self.proxy, broker=settings.broker, environment=environment
        )
        self.proxy.set_message_handler(self.topics.message_received)
        self.server.add(DELIVER, self.topics.deliver, idempotent=True)

    @property
    def address(self) -> str:
        """The address at which the node accepts calls from its site, or empty before `listen`."""
        return self._listener.address if self._listener is not None else ""

    def handle_link_event(self, event: LinkEvent) -> None:
        """Follow the links of the tunnel. The code that assembles the planes adds it to the handlers of the tunnel."""
        match event:
            case LinkSuspect(link, is_suspect):
                self.proxy.peer_suspect(link.peer, is_suspect)
            case LinkMoved(link):
                self.proxy.peer_suspect(link.peer, link.is_suspect)
                self.proxy.peer_moved(link.peer)
            case LinkUp(link):
                self.proxy.peer_suspect(link.peer, False)
            case LinkDown(link):
                self.proxy.peer_suspect(link.peer, False)
                # If the link was given up, its sessions are still open. A later link needs its own.
                self.proxy.peer_moved(link.peer)

    async def listen(self, address: str) -> None:
        """Accept calls from the site at `address`, or at a free address if it is empty. Raises Conflict, BadRequest."""
        self._listener = await self._transport.listen(address, self._accept_socket)

    def accept_sessions(self) -> None:
        """Accept calls of other nodes from now on. Raises Conflict when their channel has a listener already."""
        self._sessions.listen(CHANNEL, self.proxy.accept_session)

    async def drain(self) -> None:
        """Refuse new calls, and wait at most `DRAIN_S` each for those served here and those that pass through."""
        await self.server.drain(DRAIN_S)
        await self.proxy.drain(DRAIN_S)

    async def close(self) -> None:
        """End the calls and close their connections. Close `topics` earlier, while links are open. Safe to call twice."""
        try:
            await self.proxy.close()
        finally:
            if self._listener is not None:
                await self._listener.close()

    def _accept_socket(self, socket: Socket) -> None:
        node_id, counters = self._environment.node_id, self._environment.counters
        self.proxy.accept_socket(
            Connection(socket, dialed=False, handler=self.proxy, node_id=node_id, counters=counters)
        )

    async def _dial_instance(self, address: str) -> Socket:
        return await self._transport.dial(address, timeout_s=DIAL_TIMEOUT_S)

    def _dial_session(self, peer: str, priority: Priority) -> Session:
        return self._sessions.dial(CHANNEL, peer=peer, priority=priority)
