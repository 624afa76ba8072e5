"""Messages between sites with several nodes each: nothing is doubled, and little is lost when a leader dies or freezes."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from micro_core.contract.errors import MicroError
from micro_core.lab.lab_node import LabNode, SiteBroker
from micro_core.lab.loop import run
from micro_core.lab.net import Lab
from micro_core.lab.options import LabOptions
from micro_core.routing.router import RouterOptions
from micro_core.rpc.service import Service

TOPIC = "orders"
INTERVAL_S = 0.1
"""Pause between two messages of a publisher."""


@pytest.fixture(params=[SiteBroker.SHARED, SiteBroker.NODES], ids=lambda kind: kind.value)
def broker(request: pytest.FixtureRequest) -> SiteBroker:
    kind: SiteBroker = request.param
    return kind


class Sites:
    """Two sites of three nodes each, all linked to each other, with subscribers and a publisher on each site."""

    def __init__(self, seed: int, broker: SiteBroker) -> None:
        self.broker = broker
        self.lab = Lab(seed, options=LabOptions(registry_lease_s=30.0))
        self.nodes: dict[str, list[LabNode]] = {}
        self.received: dict[tuple[str, str], Counter[str]] = {}
        """Number of deliveries of each message, by subscriber: its site, and the name of its queue group or of itself."""
        self.published: dict[str, float] = {}
        """Time of publication of the messages that a broker has accepted, by id."""
        self.refused = 0

    async def start(self) -> None:
        names: list[str] = []
        for site in ("eu", "us"):
            self.nodes[site] = []
            for number in range(3):
                name = f"{site}-{number}"
                self.nodes[site].append(await self.lab.add(name, site=site, links=names, broker=self.broker))
                names.append(name)
            # In the order of their ids: the first one is the leader.
            self.nodes[site].sort(key=lambda node: node.id)
        for nodes in self.nodes.values():
            # Services of the last node of the site, which survives in all tests.
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

    def missing_s(self) -> float:
        """Return the seconds between the first and the last accepted message that any subscriber has missed."""
        times = [
            at
            for message_id, at in self.published.items()
            for counts in self.received.values()
            if not counts[message_id]
        ]
        return max(times) - min(times) if times else 0.0


async def started(broker: SiteBroker, seed: int = 1) -> Sites:
    sites = Sites(seed, broker)
    await sites.start()
    return sites


def test_calm_network_neither_doubles_nor_loses_messages(broker: SiteBroker) -> None:
    async def scenario() -> None:
        sites = await started(broker)
        before = sites.lab.counted("topics_messages_sent")
        await sites.publish_during(10.0)
        assert sites.doubled() == []
        assert sites.missing_s() == 0.0
        assert len(sites.published) == 200
        # One copy of each message for the only other site, and none dropped there.
        assert sites.lab.counted("topics_messages_sent") - before == 200
        assert sites.lab.counted("topics_copies_dropped") == 0
        await sites.lab.close()

    run(scenario())


@pytest.mark.parametrize("seed", range(2))
def test_killed_leader_costs_only_messages_sent_to_it(broker: SiteBroker, seed: int) -> None:
    """The leader of one site dies without a message: `us` loses what was sent to it, `eu` loses nothing of `us`."""

    async def scenario() -> None:
        sites = await started(broker, seed)
        publishing = asyncio.create_task(sites.publish_during(20.0))
        await sites.lab.advance_time(5.0)
        await sites.nodes["us"][0].kill(with_services=False)
        await publishing
        assert sites.doubled() == []
        assert sites.missing_s() <= 4.0
        from_us = [one for one in sites.published if one.startswith("us")]
        for (site, _), counts in sites.received.items():
            if site == "eu":
                assert [one for one in from_us if not counts[one]] == []
        await sites.lab.close()

    run(scenario())


@pytest.mark.parametrize("seed", range(2))
def test_frozen_leader_that_continues_doubles_nothing(broker: SiteBroker, seed: int) -> None:
    """The leader of one site stops for 20 s. When it continues, it handles everything that arrived in between."""

    async def scenario() -> None:
        sites = await started(broker, seed)
        frozen = sites.nodes["us"][0]
        publishing = asyncio.create_task(sites.publish_during(35.0))
        await sites.lab.advance_time(5.0)
        frozen.sleep(20.0)
        await publishing
        assert sites.doubled() == []
        assert sites.missing_s() <= 4.0
        # It leads again, and nothing was lost when it took over.
        assert frozen.node.forwarding.topics.is_leader
        from_us = [one for one in sites.published if one.startswith("us")]
        for (site, _), counts in sites.received.items():
            if site == "eu":
                assert [one for one in from_us if not counts[one]] == []
        await sites.lab.close()

    run(scenario())


@pytest.mark.parametrize("seed", range(2))
def test_leaders_of_both_sites_that_die_at_once_double_nothing(broker: SiteBroker, seed: int) -> None:
    """The new leader of `eu` sends the messages of the last seconds again, to the new leader of `us`."""

    async def scenario() -> None:
        sites = await started(broker, seed)
        publishing = asyncio.create_task(sites.publish_during(20.0))
        await sites.lab.advance_time(5.0)
        await sites.nodes["us"][0].kill(with_services=False)
        await sites.lab.advance_time(0.5)
        await sites.nodes["eu"][0].kill(with_services=False)
        await publishing
        assert sites.lab.counted("topics_messages_taken_over")
        assert sites.doubled() == []
        assert sites.missing_s() <= 4.0
        await sites.lab.close()

    run(scenario())


def test_rolling_restart_neither_doubles_nor_loses_messages(broker: SiteBroker) -> None:
    """A node that has just been restarted receives messages that its site has already."""

    async def scenario() -> None:
        sites = await started(broker)
        publishing = asyncio.create_task(sites.publish_during(30.0))
        await sites.lab.advance_time(3.0)
        for site in ("us", "eu"):
            for node in sites.nodes[site][:2]:
                await node.stop()
                await sites.lab.advance_time(1.0)
                await node.start()
                await sites.lab.advance_time(2.5)
        await publishing
        assert sites.lab.counted("topics_messages_taken_over")
        assert sites.doubled() == []
        assert sites.missing_s() == 0.0
        await sites.lab.close()

    run(scenario())


def test_interest_in_a_topic_has_no_default_route() -> None:
    async def scenario() -> None:
        lab = Lab()
        gateway = await lab.add("gateway", router=RouterOptions(is_gateway=True))
        node = await lab.add("node", links=[gateway])
        await lab.advance_time(3.0)
        assert [route.service for route in node.node.router.lookup("unknown")] == ["*"]
        assert list(node.node.router.lookup("~unknown")) == []
        await lab.close()

    run(scenario())
