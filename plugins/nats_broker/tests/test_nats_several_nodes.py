"""Sites with several nodes on one nats-server each, linked in memory: nothing is doubled, nothing durable is lost.

Nodes, services and publishers run in this process; the servers are real.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from micro_nats_broker.broker import NatsBroker
from micro_nats_broker.options import NatsOptions

from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.builtin.table.memory import MemoryTable
from micro_core.builtin.transport.memory import MemoryTransport
from micro_core.builtin.tunnel.memory import MemoryTunnel, MemoryTunnelOptions
from micro_core.contract import (
    CountersInMemory,
    DriverContext,
    Endpoint,
    EndpointKind,
    Instance,
    Link,
    LinkDriver,
    Message,
    Unreachable,
)
from micro_core.lifecycle.environment import Environment
from micro_core.network.link_targets import PeerOptions
from micro_core.node.composition import NodeComponents, compose
from micro_core.node.description import NodeDescription
from micro_core.node.forwarding_plane import ForwardingSettings
from micro_core.node.link_plane import LinkSettings
from micro_core.node.node import Node
from micro_core.node.routing_plane import RoutingSettings
from micro_core.routing.options import EngineOptions
from micro_core.routing.policy import parse as parse_policy
from micro_core.routing.router import RouterOptions
from micro_core.tunnel.identity import NodeIdentity

pytestmark = pytest.mark.timeout(120)

TOPIC = "orders"
TIMEOUT_S = 40.0

DIRECT_ROUTES = RouterOptions(engine=EngineOptions(policies=(parse_policy("*: cost=1000000"),)))
"""Each hop costs a second: otherwise, on a busy machine, a route through a third node may look shorter than the direct one."""


class Member:
    """A node of a site with its own connection to the server of the site."""

    def __init__(self, node: Node, tunnel: MemoryTunnel, broker: NatsBroker) -> None:
        self.node = node
        self.tunnel = tunnel
        self.broker = broker
        self.is_alive = True

    async def crash(self) -> None:
        """Vanish without a message: to peers, the links are silent; the server sees that the connection has ended."""
        self.is_alive = False
        for listener in self.tunnel._listeners:
            await listener.close()

        async def dial(address: str, *, timeout_s: float) -> Link:
            raise Unreachable("the process does not run any more")

        self.tunnel.dial = dial  # type: ignore[method-assign]
        for link in [*self.tunnel.links, *self.tunnel.accepted_links]:
            link.hold()
            if link.other is not None:
                link.other.hold()
        topics = self.node.forwarding.topics
        await topics._tasks.cancel()
        await self.broker._connection.close()

    async def stop(self) -> None:
        await self.node.stop(drain=False)


class TwoSites:
    """The sites `eu` and `us` with three nodes each, all linked to each other, and subscribers on both sites."""

    def __init__(self, make_site: Any, servers: dict[str, Any], options: dict[str, Any]) -> None:
        self._make_site = make_site
        self.servers = servers
        self.options = options
        self.members: dict[str, list[Member]] = {"eu": [], "us": []}
        self.received: dict[str, Counter[int]] = {}
        self.publishers: dict[str, NatsBroker] = {}
        self.published: list[int] = []
        self._registries: list[MemoryRegistry] = []
        self._brokers: list[NatsBroker] = []

    def _context(self, node_id: str, site: str) -> DriverContext:
        context: DriverContext = self._make_site.context(node_id, site)
        return replace(context, random=random.Random(node_id))

    def _broker(self, context: DriverContext, site: str) -> NatsBroker:
        return NatsBroker(NatsOptions(url=(self.servers[site].url,), retry_s=0.2, **self.options), context)

    async def start(self, count: int = 3) -> None:
        addresses: list[str] = []
        for site, members in self.members.items():
            for number in range(count):
                members.append(await self._start_node(site, f"{site}-{number}", addresses))
            members.sort(key=lambda member: member.node.node_id)
        for site in self.members:
            await self._start_client(site)
        await self.until(lambda: all(self.is_interested(member) for member in self.all_members()))

    async def _start_node(self, site: str, name: str, addresses: list[str]) -> Member:
        identity = NodeIdentity.generate()
        context = self._context(identity.node_id, site)
        tunnel = MemoryTunnel(MemoryTunnelOptions(), context)
        broker = self._broker(context, site)
        driver: LinkDriver = tunnel
        address = f"{self._make_site.network}-{name}"
        node = compose(
            NodeComponents(
                node=NodeDescription(node_id=identity.node_id, name=name, site=site, network=self._make_site.network),
                environment=Environment.from_context(context),
                links=LinkSettings(
                    identity=identity,
                    token="secret",
                    incarnation=1,
                    listeners=[(driver, address)],
                    seeds=tuple(f"memory://{other}" for other in addresses),
                    peers=PeerOptions(links_site=0, links_remote=0),
                ),
                routing=RoutingSettings(
                    table=MemoryTable(logger=context.logger, counters=context.counters),
                    incarnation=1,
                    router=DIRECT_ROUTES,
                ),
                forwarding=ForwardingSettings(
                    transport=MemoryTransport(context.network, site, random.Random(name)), broker=broker
                ),
                registry=MemoryRegistry(context),
            )
        )
        await node.start()
        addresses.append(address)
        return Member(node, tunnel, broker)

    async def _start_client(self, site: str) -> None:
        """Start a subscriber without a queue, a queue group of two members, and a publisher."""
        context = self._context(f"client-{site}", site)
        registry = MemoryRegistry(context)
        await registry.start()
        self._registries.append(registry)
        for name, queue in (("plain", ""), ("member-1", "workers"), ("member-2", "workers")):
            broker = self._broker(self._context(f"{name}-{site}", site), site)
            await broker.start()
            self._brokers.append(broker)
            counts = self.received.setdefault(f"{site}/{queue or name}", Counter())

            async def receive(topic: str, message: Message, counts: Counter[int] = counts) -> None:
                counts[int(message.headers["n"])] += 1

            await broker.subscribe(TOPIC, receive, queue=queue)
        self.publishers[site] = self._broker(context, site)
        await self.publishers[site].start()
        self._brokers.append(self.publishers[site])
        record = Instance(
            service="listener",
            id=f"listener-{site}",
            address="memory://none",
            endpoints=(Endpoint(name=TOPIC, kind=EndpointKind.SUBSCRIBER),),
        )
        await registry.register(record, lease_s=600)

    def all_members(self) -> list[Member]:
        return [member for members in self.members.values() for member in members if member.is_alive]

    def is_interested(self, member: Member) -> bool:
        """Return whether a node knows the interest of every node of the other site, and its own role."""
        node = member.node
        other = "us" if node.site == "eu" else "eu"
        alive = {one.node.node_id for one in self.members[other] if one.is_alive}
        routes = {route.router for route in node.router.lookup(f"~{TOPIC}") if route.site == other}
        is_first = node.node_id == min(one.node.node_id for one in self.members[node.site] if one.is_alive)
        topics = node.forwarding.topics
        is_subscribed = TOPIC in topics.topics() or (bool(self.options) and not is_first)
        return routes == alive and topics.is_leader is is_first and is_subscribed

    async def publish(self, site: str, count: int, pause_s: float = 0.01) -> None:
        for _ in range(count):
            number = len(self.published)
            self.published.append(number)
            await self.publishers[site].publish(TOPIC, self._make_site.message(number))
            await asyncio.sleep(pause_s)

    async def until(self, condition: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + TIMEOUT_S
        while not condition():
            if loop.time() > end:
                pytest.fail(f"missing: {self.missing()}, {self.roles()}")
            await asyncio.sleep(0.02)

    def roles(self) -> list[str]:
        """Describe the nodes, for a failed test."""
        return [
            f"{member.node.name} leads {member.node.forwarding.topics.is_leader}, sends {member.node.forwarding.topics.topics()}, "
            f"{member.node.counted()}"
            for member in self.all_members()
        ]

    async def flush(self) -> None:
        """Publish one more message per site, and wait until all have it: what was sent before it has then arrived, too."""
        markers = range(len(self.published), len(self.published) + len(self.publishers))
        for site in self.publishers:
            await self.publish(site, 1)
        await self.until(lambda: all(counts[marker] for counts in self.received.values() for marker in markers))

    def has_one_sender_per_site(self) -> bool:
        """Return whether each site has one leader, and no former leader still sends, too."""
        now = asyncio.get_running_loop().time()
        for members in self.members.values():
            topics = [member.node.forwarding.topics for member in members]
            if sum(one.is_leader for one in topics) != 1 or any(one._handover._sends_until >= now for one in topics):
                return False
        return True

    def has_everything(self) -> bool:
        return all(set(counts) == set(self.published) for counts in self.received.values())

    def doubled(self) -> dict[str, int]:
        found = {name: sum(count > 1 for count in counts.values()) for name, counts in self.received.items()}
        return {name: count for name, count in found.items() if count}

    def missing(self) -> dict[str, list[int]]:
        found = {name: [n for n in self.published if not counts[n]] for name, counts in self.received.items()}
        return {name: numbers for name, numbers in found.items() if numbers}

    def counted(self, name: str) -> int:
        total = 0
        for members in self.members.values():
            for member in members:
                counters = member.node.environment.counters
                assert isinstance(counters, CountersInMemory)
                total += counters.values.get(name, 0)
        return total

    async def close(self) -> None:
        for members in self.members.values():
            for member in members:
                await member.stop()
        await asyncio.gather(*(broker.close() for broker in self._brokers))
        for registry in self._registries:
            await registry.close()


DURABLE = {"durable": True, "max_bytes": 8_000_000}


@pytest.fixture(params=["core", "durable"])
async def sites(request: pytest.FixtureRequest, site: Any, start_server: Callable[..., Any]) -> AsyncIterator[TwoSites]:
    is_durable = request.param == "durable"
    servers = {name: start_server(jetstream=is_durable) for name in ("eu", "us")}
    made = TwoSites(site, servers, DURABLE if is_durable else {})
    await made.start()
    yield made
    await made.close()


async def test_message_reaches_each_subscriber_and_group_once(sites: TwoSites) -> None:
    # After the start, nodes that were leaders until they knew the others send for a while, too.
    await sites.until(sites.has_one_sender_per_site)
    await asyncio.gather(sites.publish("eu", 100), sites.publish("us", 100))
    await sites.until(sites.has_everything)
    await sites.flush()
    assert sites.doubled() == {}
    assert sites.counted("topics_messages_sent") == len(sites.published) == 202, sites.roles()
    assert sites.counted("topics_copies_dropped") == 0


async def test_crash_of_the_sending_leader_loses_and_doubles_nothing(sites: TwoSites) -> None:
    # Until then, other nodes send messages, too, instead of keeping them, and may send them through the node that crashes.
    await sites.until(sites.has_one_sender_per_site)
    publishing = asyncio.create_task(sites.publish("eu", 300, 0.02))
    await sites.until(lambda: len(sites.published) >= 90)
    await sites.members["eu"][0].crash()
    await publishing
    await sites.until(sites.has_everything)
    await sites.flush()
    assert sites.doubled() == {}


async def test_crash_of_the_receiving_leader_loses_only_what_was_sent_to_it(sites: TwoSites) -> None:
    publishing = asyncio.create_task(sites.publish("us", 300, 0.02))
    await sites.until(lambda: len(sites.published) >= 90)
    await sites.members["eu"][0].crash()
    await publishing
    if sites.options:
        await sites.until(sites.has_everything)
    await sites.flush()
    assert sites.doubled() == {}
    for numbers in sites.missing().values():
        # At most the 4 s in which the links are detected as dead, at 50 messages per second.
        assert numbers[-1] - numbers[0] <= 200
