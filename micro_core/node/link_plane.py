"""The link plane of a node: the tunnel, and the network that decides which links to keep.

It runs in the process of a node, or in that of `micro tunnel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from micro_core.contract.resolver import Resolver
from micro_core.contract.tunnel import LinkDriver, LinkEvent, LinkEventHandler
from micro_core.lifecycle.environment import Environment
from micro_core.network.link_targets import PeerOptions
from micro_core.network.messages import NodeRecord
from micro_core.network.network import Network
from micro_core.node.description import NodeDescription
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.tunnel import TunnelHost, TunnelOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Identity, drivers and options of a link plane. The owner of the plane starts and closes the resolvers."""

    identity: NodeIdentity
    token: str
    """The token of the network. Nodes with another token are not linked."""
    incarnation: int
    """The incarnation of the node: a number that is higher after each start."""
    next_incarnation: Callable[[], int] | None = None
    """Returns the incarnation after a suspension of the process; by default, the present one plus 1."""
    listeners: Sequence[tuple[LinkDriver, str | None]]
    """Tunnel drivers, each with the address at which it listens, or None for a driver that only dials."""
    resolvers: Sequence[Resolver] = ()
    seeds: Sequence[str] = ()
    """Addresses of nodes that are always kept linked."""
    peers: PeerOptions = field(default_factory=PeerOptions)
    tunnel: TunnelOptions = field(default_factory=TunnelOptions)


class LinkPlane:
    """The links of a node. Other planes use `tunnel` through the Protocol `Sessions`."""

    def __init__(self, settings: LinkSettings, *, node: NodeDescription, environment: Environment) -> None:
        self.tunnel = TunnelHost(
            identity=settings.identity,
            name=node.name,
            site=node.site,
            network=node.network,
            token=settings.token,
            listeners=settings.listeners,
            environment=environment,
            incarnation=settings.incarnation,
            next_incarnation=settings.next_incarnation,
            options=settings.tunnel,
        )
        self.network = Network(
            name=node.network,
            record=NodeRecord(
                id=node.node_id,
                name=node.name,
                site=node.site,
                addresses=(),
                incarnation=settings.incarnation,
                sequence=1,
            ),
            tunnel=self.tunnel,
            resolvers=settings.resolvers,
            seeds=settings.seeds,
            environment=environment,
            options=settings.peers,
        )
        self._handlers: list[LinkEventHandler] = []
        self._resumed_handlers: list[Callable[[int], None]] = []
        self.tunnel.set_event_handler(self._dispatch)
        self.tunnel.set_resumed_handler(self._resumed)

    def add_event_handler(self, handler: LinkEventHandler) -> None:
        """Call `handler` with each later link event.

        Handlers are called in the order in which they were added. The network follows last, because it may dial or
        close links in response.
        """
        self._handlers.append(handler)

    def add_resumed_handler(self, handler: Callable[[int], None]) -> None:
        """Call `handler(incarnation)` after each suspension of the process, before the links are reported as lost."""
        self._resumed_handlers.append(handler)

    def _resumed(self, incarnation: int) -> None:
        self.network.resumed(incarnation)
        for handler in self._resumed_handlers:
            handler(incarnation)

    def _dispatch(self, event: LinkEvent) -> None:
        for handler in self._handlers:
            handler(event)
        self.network.handle_link_event(event)

    async def connect(self) -> None:
        """Listen, and keep links to the seeds and the resolved nodes. Raises Conflict when an address is in use."""
        await self.network.connect()

    async def close(self) -> None:
        """Announce to the neighbours that this node leaves, then close every link. Safe to call twice."""
        await self.network.close()
