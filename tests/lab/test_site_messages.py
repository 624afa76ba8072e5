"""Messages between sites with several nodes each: nothing is doubled, and little is lost when a leader dies or freezes."""

from __future__ import annotations

import asyncio

import msgpack
import pytest

from micro_core.lab.lab_node import SiteBroker
from micro_core.lab.loop import run
from micro_core.lab.net import Lab
from micro_core.routing.router import RouterOptions
from micro_core.wire.header import EventHeader
from tests.lab.two_sites import TOPIC, started


@pytest.fixture(params=[SiteBroker.SHARED, SiteBroker.NODES], ids=lambda kind: kind.value)
def broker(request: pytest.FixtureRequest) -> SiteBroker:
    kind: SiteBroker = request.param
    return kind


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


def test_message_for_a_node_that_does_not_lead_its_site_is_passed_to_the_leader(broker: SiteBroker) -> None:
    """Two nodes of `eu` send the same message, each to the node that leads `us` as far as it knows."""

    async def scenario() -> None:
        sites = await started(broker)
        body = msgpack.packb({"id": "from-both"})
        for node in sites.nodes["us"][:2]:
            header = EventHeader(TOPIC, "a" * 32, targets=(node.id,), origin=sites.nodes["eu"][0].id)
            node.node.forwarding.topics.message_received(header, body)
        await sites.lab.advance_time(2.0)
        received = {subscriber: counts["from-both"] for subscriber, counts in sites.received.items()}
        assert received == {subscriber: int(subscriber[0] == "us") for subscriber in received}
        assert sites.nodes["us"][1].counted("topics_messages_passed_to_leader") == 1
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
