"""Two sites with several nodes each, whose subscribers count what they receive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from micro_core.contract.errors import MicroError
from micro_core.lab.lab_node import LabNode, SiteBroker
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.rpc.service import Service

TOPIC = "orders"
INTERVAL_S = 0.1
"""Pause between two messages of a publisher."""


class Sites:
    """Two sites, all nodes linked to each other, with subscribers on some sites and a publisher on each site."""

    def __init__(
        self, seed: int, broker: SiteBroker, counts: Mapping[str, int], subscribing: Collection[str] = ("eu", "us")
    ) -> None:
        self.broker = broker
        self.counts = counts
        """Number of nodes of each site."""
        self.subscribing = subscribing
        """The sites with subscribers."""
        self.lab = Lab(seed, options=LabOptions(registry_lease_s=30.0))
        self.nodes: dict[str, list[LabNode]] = {}
        self.received: dict[tuple[str, str], Counter[str]] = {}
        """Number of deliveries of each message, by subscriber: its site, and the name of its queue group or of itself."""
        self.published: dict[str, float] = {}
        """Time of publication of the messages that a broker has accepted, by id."""
        self.refused = 0

    async def start(self) -> None:
        names: list[str] = []
        for site, count in self.counts.items():
            self.nodes[site] = []
            for number in range(count):
                name = f"{site}-{number}"
                self.nodes[site].append(await self.lab.add(name, site=site, links=names, broker=self.broker))
                names.append(name)
            # In the order of their ids: the first one is the leader.
            self.nodes[site].sort(key=lambda node: node.id)
        for site in self.subscribing:
            nodes = self.nodes[site]
            # Services of the last node of the site. They survive in all tests, even if the node does not.
            for name in ("plain-1", "plain-2"):
                await self.subscribe(nodes[-1], name)
            for number in range(2):
                await self.subscribe(nodes[-1], f"member-{number}", queue="workers")
        await self.lab.advance_time(12.0)

    async def subscribe(self, node: LabNode, name: str, *, queue: str = "") -> None:
        counts = self.received.setdefault((node.site, queue or name), Counter())
        service = Service(f"listener.{name}")

        async def receive(message: dict[str, Any]) -> None:
            counts[message["id"]] += 1

        service.subscriber(TOPIC, queue=queue)(receive)
        await node.serve(service)

    async def publish_during(self, duration_s: float, *, through: str = "") -> None:
        """Publish on both sites, or on the site `through`, for `duration_s` virtual seconds."""
        sites = [through] if through else sorted(self.nodes)
        end = self.lab.now + duration_s
        pending: list[asyncio.Task[None]] = []
        number = 0
        while self.lab.now < end:
            for site in sites:
                number += 1
                pending.append(asyncio.create_task(self._publish(self.nodes[site][-1], f"{site}-{number}")))
            await self.lab.advance_time(INTERVAL_S)
        await asyncio.gather(*pending)
        await self.lab.advance_time(8.0)

    async def _publish(self, node: LabNode, message_id: str) -> None:
        at = self.lab.now
        try:
            await node.publish(TOPIC, {"id": message_id})
        except MicroError:
            self.refused += 1
        else:
            self.published[message_id] = at

    def doubled(self) -> list[tuple[tuple[str, str], str]]:
        return [
            (subscriber, message_id)
            for subscriber, counts in self.received.items()
            for message_id, count in counts.items()
            if count > 1
        ]

    def missing_s(self, since: float = 0.0) -> float:
        """Return the seconds between the first and the last message accepted after `since` that any subscriber has missed."""
        times = [
            at
            for message_id, at in self.published.items()
            for counts in self.received.values()
            if at >= since and not counts[message_id]
        ]
        return max(times) - min(times) if times else 0.0

    def missing_count(self) -> int:
        """Return the number of accepted messages that any subscriber has missed."""
        return sum(any(not counts[one] for counts in self.received.values()) for one in self.published)

    async def restart(self, nodes: Sequence[LabNode], *, down_s: float) -> None:
        """Kill nodes at the same time, without their services, and start them again after `down_s`."""
        for node in nodes:
            await node.kill(with_services=False)
        await self.lab.advance_time(down_s)
        for node in nodes:
            await node.start()


async def started(
    broker: SiteBroker, seed: int = 1, *, eu: int = 3, us: int = 3, subscribing: Collection[str] = ("eu", "us")
) -> Sites:
    sites = Sites(seed, broker, {"eu": eu, "us": us}, subscribing)
    await sites.start()
    return sites
