"""A leader of one site takes over while the nodes of another site cannot know which messages their site has received."""

from __future__ import annotations

import asyncio

import pytest

from micro_core.lab.lab_node import SiteBroker
from micro_core.lab.loop import run
from tests.lab.two_sites import INTERVAL_S, started


@pytest.fixture(params=[SiteBroker.SHARED, SiteBroker.NODES], ids=lambda kind: kind.value)
def broker(request: pytest.FixtureRequest) -> SiteBroker:
    kind: SiteBroker = request.param
    return kind


@pytest.mark.parametrize("subscribing", [("eu", "us"), ("us",)], ids=["both", "one-way"])
@pytest.mark.parametrize("us", [1, 3], ids=["only-node", "all-nodes"])
@pytest.mark.parametrize("wait_s", [0.0, 2.0, 5.0])
def test_leader_that_dies_after_the_restart_of_another_site_doubles_nothing(
    broker: SiteBroker, us: int, wait_s: float, subscribing: tuple[str, ...]
) -> None:
    """All nodes of `us` forget what `us` has received. The new leader of `eu` sends the messages of the last seconds again."""

    async def scenario() -> None:
        sites = await started(broker, us=us, subscribing=subscribing)
        publishing = asyncio.create_task(sites.publish_during(25.0, through="eu"))
        await sites.lab.advance_time(5.0)
        await sites.restart(sites.nodes["us"], down_s=1.0)
        await sites.lab.advance_time(wait_s)
        killed_at = sites.lab.now
        await sites.nodes["eu"][0].kill(with_services=False)
        await publishing
        assert sites.lab.counted("topics_messages_taken_over")
        assert sites.doubled() == []
        assert sites.missing_s(killed_at) <= 4.0
        assert sites.missing_s(killed_at + 4.0) == 0.0
        await sites.lab.close()

    run(scenario())


@pytest.mark.parametrize("subscribing", [("eu", "us"), ("us",)], ids=["both", "one-way"])
@pytest.mark.parametrize("us", [1, 3], ids=["only-node", "all-nodes"])
@pytest.mark.parametrize("wait_s", [0.2, 1.5])
def test_leader_that_dies_before_the_restart_of_another_site_doubles_nothing(
    broker: SiteBroker, us: int, wait_s: float, subscribing: tuple[str, ...]
) -> None:
    """The nodes of `us` are restarted before the next leader of `eu` has noticed the death of its predecessor."""

    async def scenario() -> None:
        sites = await started(broker, us=us, subscribing=subscribing)
        publishing = asyncio.create_task(sites.publish_during(25.0, through="eu"))
        await sites.lab.advance_time(5.0)
        await sites.nodes["eu"][0].kill(with_services=False)
        await sites.lab.advance_time(wait_s)
        await sites.restart(sites.nodes["us"], down_s=0.5)
        restarted_at = sites.lab.now
        await publishing
        assert sites.lab.counted("topics_messages_taken_over")
        assert sites.doubled() == []
        assert sites.missing_s() <= 4.0
        assert sites.missing_s(restarted_at + 4.0) == 0.0
        await sites.lab.close()

    run(scenario())


@pytest.mark.parametrize("first", ["eu", "us"])
@pytest.mark.parametrize("wait_s", [0.5, 2.0, 5.0])
def test_leaders_that_die_while_one_site_only_receives_double_nothing(
    broker: SiteBroker, first: str, wait_s: float
) -> None:
    """The followers of `us` do not subscribe to the topic on their broker, because no other site is interested in it."""

    async def scenario() -> None:
        sites = await started(broker, subscribing=("us",))
        publishing = asyncio.create_task(sites.publish_during(25.0, through="eu"))
        await sites.lab.advance_time(5.0)
        second = "us" if first == "eu" else "eu"
        for site in (first, second):
            await sites.nodes[site][0].kill(with_services=False)
            await sites.lab.advance_time(wait_s)
        await publishing
        assert sites.lab.counted("topics_messages_taken_over")
        assert sites.doubled() == []
        assert sites.missing_count() * INTERVAL_S <= 8.0
        await sites.lab.close()

    run(scenario())


@pytest.mark.parametrize("subscribing", [("eu", "us"), ("us",)], ids=["both", "one-way"])
@pytest.mark.parametrize(("frozen_s", "killed_s"), [(4.4, 3.4), (10.0, 10.0), (10.0, 12.0)])
def test_leader_that_dies_when_the_leader_of_another_site_wakes_doubles_nothing(
    broker: SiteBroker, frozen_s: float, killed_s: float, subscribing: tuple[str, ...]
) -> None:
    """The leader of `us` did not notice what another node of its site has published while it was frozen."""

    async def scenario() -> None:
        sites = await started(broker, subscribing=subscribing)
        publishing = asyncio.create_task(sites.publish_during(30.0, through="eu"))
        await sites.lab.advance_time(5.0)
        sites.nodes["us"][0].sleep(frozen_s)
        await sites.lab.advance_time(killed_s)
        await sites.nodes["eu"][0].kill(with_services=False)
        await publishing
        assert sites.lab.counted("topics_messages_taken_over")
        assert sites.doubled() == []
        await sites.lab.close()

    run(scenario())


@pytest.mark.parametrize("subscribing", [("eu", "us"), ("us",)], ids=["both", "one-way"])
def test_leader_that_wakes_after_the_restart_of_another_site_doubles_nothing(
    broker: SiteBroker, subscribing: tuple[str, ...]
) -> None:
    """When the leader of `eu` continues, it receives messages that another node has sent before the restart of `us`."""

    async def scenario() -> None:
        sites = await started(broker, us=1, subscribing=subscribing)
        publishing = asyncio.create_task(sites.publish_during(35.0, through="eu"))
        await sites.lab.advance_time(5.0)
        sites.nodes["eu"][0].sleep(12.0)
        await sites.lab.advance_time(10.0)
        await sites.restart(sites.nodes["us"], down_s=0.5)
        restarted_at = sites.lab.now
        await publishing
        assert sites.doubled() == []
        assert sites.missing_s(restarted_at + 4.0) == 0.0
        await sites.lab.close()

    run(scenario())


@pytest.mark.parametrize("wait_s", [0.0, 2.0])
def test_leader_that_dies_when_the_leader_of_another_site_is_connected_doubles_nothing(
    broker: SiteBroker, wait_s: float
) -> None:
    """The node with the smallest id of `us` leads no other node before it is linked: another one receives the messages."""

    async def scenario() -> None:
        sites = await started(broker, subscribing=("us",))
        publishing = asyncio.create_task(sites.publish_during(20.0, through="eu"))
        await sites.lab.advance_time(1.0)
        first = sites.nodes["us"][0]
        others = [node for nodes in sites.nodes.values() for node in nodes if node is not first]
        await first.kill(with_services=False)
        sites.lab.partition([first], others)
        await first.start()
        await sites.lab.advance_time(5.0)
        sites.lab.heal([first], others)
        await sites.lab.advance_time(wait_s)
        killed_at = sites.lab.now
        await sites.nodes["eu"][0].kill(with_services=False)
        await publishing
        assert sites.lab.counted("topics_messages_taken_over")
        assert sites.doubled() == []
        assert sites.missing_s(killed_at) <= 4.0
        await sites.lab.close()

    run(scenario())
