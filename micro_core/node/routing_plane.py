"""The routing plane of a node: the router, and the adverts that it exchanges with the neighbours.

It runs in the process of a node, on the tunnel of that process, or in the process of `micro router`, on the tunnel of
another process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from micro_core.contract.registry import Registry
from micro_core.contract.table import Table
from micro_core.contract.tunnel import LinkEvent, Sessions
from micro_core.lifecycle.environment import Environment
from micro_core.network.adverts import Adverts
from micro_core.node.description import NodeDescription
from micro_core.routing.router import Router, RouterOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSettings:
    """Table and options of a routing plane. The owner of the plane starts and closes the table."""

    table: Table
    incarnation: int
    """Number of this start of the router; it grows with each start."""
    router: RouterOptions = field(default_factory=RouterOptions)


class RoutingPlane:
    """The routes of a node. `sessions` is the tunnel of this process or a client of another one."""

    def __init__(
        self, settings: RoutingSettings, *, node: NodeDescription, sessions: Sessions, environment: Environment
    ) -> None:
        self.router = Router(
            network=node.network,
            site=node.site,
            table=settings.table,
            environment=environment,
            incarnation=settings.incarnation,
            options=settings.router,
        )
        self.adverts = Adverts(tunnel=sessions, router=self.router, environment=environment)
        self.router.set_sender(self.adverts.send)

    def handle_link_event(self, event: LinkEvent) -> None:
        """Follow the links of the tunnel. The code that assembles the planes adds it to the handlers of the tunnel."""
        self.adverts.handle_link_event(event)

    def restore(self) -> None:
        """Restore the stored routes, as stale routes. The table must be started, and no link may be open yet."""
        self.router.restore()

    def open_sessions(self) -> None:
        """Exchange adverts on each link from now on. Raises Conflict when their channel has a listener already."""
        self.adverts.start()

    async def follow_registry(self, registry: Registry) -> None:
        """Read the instances of the site, and follow their changes in the background."""
        await self.router.start(registry)

    async def close(self) -> None:
        """Stop the router, then close the sessions. The table keeps its routes. Safe to call twice."""
        try:
            await self.router.close()
        finally:
            await self.adverts.close()
