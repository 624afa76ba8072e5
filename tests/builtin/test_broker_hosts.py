"""`broker:node` on a site with several hosts: which one is used, and what a change of the host costs. On virtual time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from micro_core.builtin.broker.host import CLIENT_SILENCE_S, BrokerHost
from micro_core.builtin.broker.host_selection import (
    MAX_HOSTS,
    SETTLE_S,
    HostState,
    host_to_publish_on,
    hosts_to_connect,
)
from micro_core.builtin.broker.node import NodeBroker, NodeBrokerOptions
from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.contract import CountersInMemory, DriverContext, Instance, LinkLost, Message, MicroError, Unreachable
from micro_core.lab.lab_transport import LabTransport
from micro_core.lab.loop import LabClock, run
from micro_core.lab.process import SimulatedProcess

TOPIC = "orders"


# ------------------------------------------------------------------------ selection


def host(host_id: str, *, connected: bool = True, settled_at: float = 0.0, registered: bool = True) -> HostState:
    return HostState(host_id, host_id, is_registered=registered, is_connected=connected, settled_at=settled_at)


def chosen(now: float, *hosts: HostState) -> str:
    found = host_to_publish_on(hosts, now)
    return found.id if found is not None else ""


def test_messages_are_published_on_the_smallest_connected_id() -> None:
    assert chosen(10.0, host("c"), host("a", connected=False), host("b")) == "b"
    assert chosen(10.0) == ""


def test_new_host_is_used_once_other_clients_are_connected_to_it() -> None:
    hosts = host("a", settled_at=16.0), host("b")
    assert chosen(15.9, *hosts) == "b"
    assert chosen(16.0, *hosts) == "a"
    assert chosen(15.9, hosts[0]) == "a"


def test_host_that_withdrew_its_record_is_used_only_without_another() -> None:
    hosts = host("a", registered=False), host("b", settled_at=16.0)
    assert chosen(10.0, *hosts) == "b"
    assert chosen(10.0, hosts[0]) == "a"


def test_clients_connect_to_the_smallest_ids_and_replace_those_that_do_not_answer() -> None:
    hosts = [host(name, connected=False) for name in "edcba"]
    assert [one.id for one in hosts_to_connect(hosts)] == list("abc")[:MAX_HOSTS]
    hosts[-1].has_failed = True
    assert [one.id for one in hosts_to_connect(hosts)] == list("abcd")
    hosts[-2].is_registered = False
    assert [one.id for one in hosts_to_connect(hosts)] == list("acde")


# ----------------------------------------------------------------------------- site


class Process:
    """A process of the site, with its own transport."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.name = name
        self.counters = CountersInMemory()
        clock = LabClock(asyncio.get_running_loop(), 0.0)
        context = DriverContext(
            node_id=name,
            network="net",
            site="eu",
            state_dir="",
            clock=clock,
            random=random.Random(name),
            logger=logging.getLogger("test"),
            counters=self.counters,
        )
        self.process = SimulatedProcess(asyncio.get_running_loop(), None)
        self.transport = LabTransport("net", "eu", random.Random(name), self.process.context)
        self.registry = MemoryRegistry(context)
        self.context = replace(context, registry=self.registry, transport=self.transport)
        self.broker = NodeBroker(NodeBrokerOptions(), self.context)
        self.host: BrokerHost | None = None

    async def start(self) -> Process:
        await self.registry.start()
        return self

    async def start_host(self) -> None:
        self.host = BrokerHost(node_id=self.name, counters=self.counters, logger=logging.getLogger("test"))
        starting = self.host.start(self.transport)
        await asyncio.get_running_loop().create_task(starting, context=self.process.context.copy())
        await self.registry.register(self._record(), lease_s=1_000)

    async def stop_host(self, *, withdraw: bool) -> None:
        assert self.host is not None
        if withdraw:
            await self.registry.deregister(self._record())
            await asyncio.sleep(0.3)
        await self.host.close()

    def _record(self) -> Instance:
        assert self.host is not None
        return Instance(service="go.micro.broker", id=f"go.micro.broker-{self.name}", address=self.host.address)


class Site:
    """Hosts `a`, `b` and so on, subscribers, and a publisher."""

    def __init__(self) -> None:
        self.hosts: dict[str, Process] = {}
        self.received: dict[str, Counter[int]] = {}
        self.accepted: set[int] = set()
        self.errors: list[MicroError] = []
        self._next = 0

    async def add_host(self, name: str) -> Process:
        process = self.hosts[name] = await Process(self, name).start()
        await process.start_host()
        return process

    async def subscribe(self, name: str, *, queue: str = "") -> Process:
        process = await Process(self, name).start()
        counts = self.received.setdefault(queue or name, Counter())

        async def receive(topic: str, message: Message) -> None:
            counts[int(message.id)] += 1

        await process.broker.subscribe(TOPIC, receive, queue=queue)
        return process

    async def publish_during(self, process: Process, duration_s: float) -> None:
        pending = []
        for _ in range(int(duration_s * 20)):
            self._next += 1
            pending.append(asyncio.create_task(self._publish(process, self._next)))
            await asyncio.sleep(0.05)
        await asyncio.gather(*pending)
        await asyncio.sleep(1.0)

    async def _publish(self, process: Process, number: int) -> None:
        try:
            await process.broker.publish(TOPIC, Message(id=str(number), body=b"x"))
        except MicroError as error:
            self.errors.append(error)
        else:
            self.accepted.add(number)

    def check_nothing_lost_or_doubled(self) -> None:
        for name, counts in self.received.items():
            assert [number for number, count in counts.items() if count > 1] == [], name
            assert sorted(self.accepted.difference(counts)) == [], name


def on_site(scenario: Callable[[Site], Awaitable[None]]) -> None:
    async def body() -> None:
        site = Site()
        for name in "ab":
            await site.add_host(name)
        for name in ("plain", "other"):
            await site.subscribe(name)
        for number in range(3):
            await site.subscribe(f"member-{number}", queue="workers")
        await asyncio.sleep(1.0)
        await scenario(site)

    run(body())


def test_all_clients_use_the_host_with_the_smallest_id() -> None:
    async def scenario(site: Site) -> None:
        publisher = await Process(site, "publisher").start()
        await site.publish_during(publisher, 2.0)
        site.check_nothing_lost_or_doubled()
        assert len(site.accepted) == 40
        assert await publisher.broker._connected() is not None
        (used,) = {(await publisher.broker._connected()).address}
        host = site.hosts["a"].host
        assert host is not None
        assert used == host.address

    on_site(scenario)


@pytest.mark.parametrize("withdraw", [True, False])
def test_stopped_host_is_replaced_at_once_and_used_again_without_loss(withdraw: bool) -> None:
    async def scenario(site: Site) -> None:
        publisher = await Process(site, "publisher").start()
        publishing = asyncio.create_task(site.publish_during(publisher, 30.0))
        await asyncio.sleep(3.0)
        await site.hosts["a"].stop_host(withdraw=withdraw)
        await asyncio.sleep(5.0)
        # It returns under a new address. Clients change back to it.
        await site.hosts["a"].start_host()
        await publishing
        site.check_nothing_lost_or_doubled()
        assert len(site.errors) <= (0 if withdraw else 1)
        host = site.hosts["a"].host
        assert host is not None
        assert (await publisher.broker._connected()).address == host.address

    on_site(scenario)


def test_frozen_host_is_replaced_after_three_keepalives_and_publishing_raises() -> None:
    async def scenario(site: Site) -> None:
        publisher = await Process(site, "publisher").start()
        publishing = asyncio.create_task(site.publish_during(publisher, 40.0))
        await asyncio.sleep(3.0)
        site.hosts["a"].process.stop(15.0)
        await publishing
        site.check_nothing_lost_or_doubled()
        # Publications during the detection were not acknowledged.
        assert 0 < len(site.errors) <= 81
        assert {type(error) for error in site.errors} == {LinkLost}

    on_site(scenario)


def test_host_sends_heartbeats_so_that_its_clients_send_few_keepalives() -> None:
    async def scenario(site: Site) -> None:
        await asyncio.sleep(10.0)
        pipes = [one.pipe for process in site.hosts.values() if process.host for one in process.host._connections]
        assert pipes
        before = [pipe.received_count for pipe in pipes]
        await asyncio.sleep(40.0)
        for pipe, count in zip(pipes, before, strict=True):
            assert 40 / 4 - 1 <= pipe.received_count - count <= 40 / 4 + 2, "as many as show that the client lives"
        assert not site.errors

    on_site(scenario)


def test_member_on_a_dead_machine_leaves_its_queue_group() -> None:
    async def scenario(site: Site) -> None:
        for process in site.hosts.values():
            host = process.host
            assert host is not None
            (silent, *_) = [connection for connection in host._connections if connection._subscriptions]
            silent.pipe._socket.pause_reading()
        await asyncio.sleep(2 * CLIENT_SILENCE_S + 1.0)
        assert sum(process.counters.values.get("broker_clients_silent", 0) for process in site.hosts.values()) == 2

    on_site(scenario)


def test_client_that_started_before_all_hosts_uses_the_first_one() -> None:
    async def body() -> None:
        site = Site()
        publisher = await Process(site, "publisher").start()
        waiting = asyncio.create_task(publisher.broker.publish(TOPIC, Message(id="1", body=b"")))
        await asyncio.sleep(2.0)
        await site.add_host("b")
        await waiting
        await site.add_host("a")
        await asyncio.sleep(1.0)
        b, a = site.hosts["b"].host, site.hosts["a"].host
        assert a is not None
        assert b is not None
        assert (await publisher.broker._connected()).address == b.address
        await asyncio.sleep(SETTLE_S)
        assert (await publisher.broker._connected()).address == a.address
        await publisher.broker.close()
        with pytest.raises(Unreachable):
            await publisher.broker.publish(TOPIC, Message(id="2", body=b""))

    run(body())
