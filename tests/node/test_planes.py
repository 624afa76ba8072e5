"""A node is assembled once: each class of the three planes is constructed in one file, and the planes fit together."""

from __future__ import annotations

import ast
import asyncio
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.registry.memory import MemoryRegistry
from micro_core.builtin.table.memory import MemoryTable
from micro_core.builtin.transport.memory import MemoryTransport
from micro_core.contract import CountersInMemory, DriverContext
from micro_core.contract.errors import LinkLost, MicroError, Unreachable
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.contract.tunnel import DialFailed, LinkDown, LinkEvent, LinkInfo, LinkMoved, LinkUp, Sessions
from micro_core.lifecycle.closing import Closing
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.network.peer_events import PeerEvent, Resumed
from micro_core.node.composition import NodeComponents, compose
from micro_core.node.description import NodeDescription
from micro_core.node.forwarding_plane import ForwardingPlane, ForwardingSettings
from micro_core.node.link_plane import LinkPlane, LinkSettings
from micro_core.node.node import Node
from micro_core.node.registration import NodeRegistrations
from micro_core.node.routing_plane import RoutingPlane, RoutingSettings
from micro_core.proxy.routes import RouteSource
from micro_core.routing.router import Router
from micro_core.standalone.router.client import RemoteRouter
from micro_core.standalone.tunnel.client import RemoteTunnel
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.tunnel import TunnelHost

CORE = Path(__file__).parents[2] / "micro_core"

CONSTRUCTED_IN: dict[str, list[str]] = {
    "TunnelHost": ["node/link_plane.py"],
    "Network": ["node/link_plane.py"],
    "Router": ["node/routing_plane.py"],
    "Adverts": ["node/routing_plane.py"],
    "Proxy": ["node/forwarding_plane.py"],
    "Topics": ["node/forwarding_plane.py"],
    # A client has a pool of its own.
    "Pool": ["node/forwarding_plane.py", "rpc/client.py"],
    # Records of other nodes are decoded from messages.
    "NodeRecord": ["network/messages.py", "node/link_plane.py"],
    "Node": ["node/composition.py"],
    "LinkPlane": ["node/composition.py", "standalone/tunnel/process.py"],
    "RoutingPlane": ["node/composition.py", "standalone/router/process.py"],
    "ForwardingPlane": ["node/composition.py", "standalone/proxy/process.py"],
    "NodeRegistrations": ["node/node.py", "standalone/proxy/process.py"],
    "JoinedTransport": ["drivers/construction.py"],
    "JoinedRegistry": ["drivers/construction.py"],
    # `cli/client.py` cancels a single call on SIGTERM.
    "add_signal_handler": ["cli/client.py", "lifecycle/shutdown.py"],
}
"""Class or method, and the files that call it."""

PEER = "p" * 32


# ------------------------------------------------------------------ source code


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """All calls in micro_core, as (file, name of the called object, call)."""
    for path in sorted(CORE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func
                name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
                yield str(path.relative_to(CORE)), name, node


ALL_CALLS = list(calls())


def files_calling(name: str) -> list[str]:
    return [file for file, called, _ in ALL_CALLS if called == name]


@pytest.mark.parametrize(("name", "files"), CONSTRUCTED_IN.items())
def test_component_is_constructed_in_one_place(name: str, files: list[str]) -> None:
    assert files_calling(name) == files


# -------------------------------------------------------------- local and remote


def test_local_and_remote_ends_implement_the_same_protocols() -> None:
    """mypy checks the assignments of `both`; this test checks that all methods exist."""

    def both(tunnel: TunnelHost, remote: RemoteTunnel, router: Router, copy: RemoteRouter) -> list[object]:
        sessions: list[Sessions] = [tunnel, remote]
        routes: list[RouteSource] = [router, copy]
        return [*sessions, *routes]

    assert callable(both)
    for method in ("links", "unlink", "dial", "listen", "set_event_handler"):
        assert hasattr(TunnelHost, method)
        assert hasattr(RemoteTunnel, method)
    for method in ("lookup", "routes", "watch", "is_expected"):
        assert hasattr(Router, method)
        assert hasattr(RemoteRouter, method)


# ----------------------------------------------------------------------- planes


@pytest.fixture
def context() -> DriverContext:
    return DriverContext(
        node_id="n" * 32,
        network="net",
        site="eu",
        state_dir="",
        clock=SystemClock(),
        random=random.Random(1),
        logger=logging.getLogger("test.planes"),
        counters=CountersInMemory(),
    )


@pytest.fixture
def node(context: DriverContext) -> Node:
    identity = NodeIdentity.generate()
    environment = Environment(
        node_id=identity.node_id,
        clock=context.clock,
        random=context.random,
        logger=context.logger,
        counters=context.counters,
    )
    host = BrokerHost(node_id=identity.node_id, counters=context.counters, logger=context.logger)
    return compose(
        NodeComponents(
            node=NodeDescription(node_id=identity.node_id, name="eu-1", site="eu", network=f"net-{identity.node_id}"),
            environment=environment,
            links=LinkSettings(identity=identity, token="secret", incarnation=1, listeners=()),
            routing=RoutingSettings(table=MemoryTable(logger=context.logger, counters=context.counters), incarnation=1),
            forwarding=ForwardingSettings(
                transport=MemoryTransport(network="net", site="eu", random=random.Random(2)),
                broker=host.local_broker(),
            ),
            registry=MemoryRegistry(context),
            broker_host=host,
            driver_names=("tunnel:memory",),
        )
    )


def link(peer: str = PEER) -> LinkInfo:
    return LinkInfo(
        peer=peer,
        peer_name="us-1",
        site="us",
        link_id="1",
        generation=1,
        driver="memory",
        local="",
        remote="",
        dialed=True,
        rtt_s=0.01,
        rtt_variance_s=0.0,
        loss=0.0,
        queue_delay_s=0.0,
        bytes_in=0,
        bytes_out=0,
        sessions=0,
        up_since=0.0,
    )


EVENTS: list[tuple[LinkEvent, list[str]]] = [
    (LinkMoved(link()), ["proxy", "adverts", "network"]),
    (LinkUp(link()), ["adverts", "network"]),
    (LinkDown(link(), LinkLost("gone")), ["proxy", "adverts", "network"]),
    (DialFailed("memory://x", Unreachable("no answer")), ["adverts", "network"]),
]


@pytest.mark.parametrize(("event", "expected"), EVENTS, ids=[type(event).__name__ for event, _ in EVENTS])
async def test_link_event_reaches_proxy_then_adverts_then_network(
    node: Node, monkeypatch: pytest.MonkeyPatch, event: LinkEvent, expected: list[str]
) -> None:
    order: list[str] = []
    monkeypatch.setattr(node.proxy, "peer_moved", lambda peer: order.append("proxy"))
    monkeypatch.setattr(node.routing.adverts, "handle_link_event", lambda event: order.append("adverts"))
    monkeypatch.setattr(node.network, "handle_link_event", lambda event: order.append("network"))
    handle = node.tunnel._event_handler
    assert handle is not None
    handle(event)
    assert order == expected


async def test_composed_node_has_started_nothing_and_stops_without_start(node: Node) -> None:
    assert node.address == ""
    await node.stop(drain=False)
    await node.stop()
    assert node.counted() == {}


async def test_node_is_registered_while_it_runs(node: Node) -> None:
    await node.start()
    (record,) = await node.registry.instances(NETWORK_SERVICE)
    assert record.address == node.address
    assert record.metadata == {"node": node.node_id, "name": "eu-1", "site": "eu", "tunnel": ""}
    assert [one.address for one in await node.registry.instances("go.micro.broker")]
    withdrawn: list[str] = []
    deregister = node.registry.deregister

    async def note(instance: Any) -> None:
        withdrawn.append(instance.service)
        await deregister(instance)

    node.registry.deregister = note  # type: ignore[method-assign]
    await node.stop()
    assert withdrawn == ["go.micro.broker", NETWORK_SERVICE]


async def test_node_that_was_suspended_registers_and_dials_again_at_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.start()
    registered: list[str] = []
    register = node.registry.register

    async def note(instance: Any, **options: Any) -> None:
        registered.append(instance.service)
        await register(instance, **options)

    peer_events: list[PeerEvent] = []
    monkeypatch.setattr(node.registry, "register", note)
    monkeypatch.setattr(node.network._peering, "handle", peer_events.append)
    before = node.network.record.incarnation
    node.tunnel._resumed(30.0)
    async with asyncio.timeout(5.0):
        while len(registered) < 2:
            await asyncio.sleep(0)
    assert sorted(registered) == ["go.micro.broker", NETWORK_SERVICE]
    assert peer_events[0] == Resumed()
    assert node.network.record.incarnation > before
    await node.stop(drain=False)


async def test_component_that_fails_to_close_does_not_keep_others_open(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.start()

    async def fail() -> None:
        raise Unreachable("no answer")

    monkeypatch.setattr(node.router, "close", fail)
    await node.stop(drain=False)
    assert node.counted()["node_stop_failures"] == 1
    assert not node.routing.adverts._is_open
    assert not node.network._is_open


async def test_start_that_fails_closes_what_was_started(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        raise Unreachable("no answer")

    monkeypatch.setattr(node.forwarding.topics, "start", fail)
    with pytest.raises(Unreachable):
        await node.start()
    assert not node.routing.adverts._is_open
    assert not node.network._is_open
    other = MemoryTransport(network="net", site="eu", random=random.Random(3))
    with pytest.raises(Unreachable):
        await other.dial(node.address, timeout_s=0.1)
    await other.close()


class RemoteSessions:
    """The `Sessions` of another process: a list of links and of the sessions that were dialled."""

    node_id = "n" * 32

    def __init__(self) -> None:
        self.dialed: list[tuple[str, str]] = []
        self.channels: list[str] = []

    def link(self, peer: str) -> LinkInfo | None:
        return None

    def links(self) -> list[LinkInfo]:
        return [link()]

    async def unlink(self, peer: str, error: MicroError | None = None) -> None: ...

    def dial(self, channel: str, *, peer: str, priority: Any = None) -> Any:
        self.dialed.append((channel, peer))
        raise Unreachable("the session is not needed here")

    def listen(self, channel: str, accept: Any) -> Any:
        self.channels.append(channel)

        class Listener:
            def close(self) -> None: ...

        return Listener()

    def set_event_handler(self, handler: Any) -> None: ...


@pytest.fixture
def description() -> NodeDescription:
    return NodeDescription(node_id="n" * 32, name="eu-1", site="eu", network="net")


async def test_routing_plane_runs_on_the_sessions_of_another_process(
    context: DriverContext, description: NodeDescription
) -> None:
    sessions = RemoteSessions()
    table = MemoryTable(logger=context.logger, counters=context.counters)
    plane = RoutingPlane(
        RoutingSettings(table=table, incarnation=1),
        node=description,
        sessions=sessions,
        environment=Environment.from_context(context),
    )
    registry = MemoryRegistry(context)
    await registry.start()
    plane.restore()
    await plane.follow_registry(registry)
    plane.open_sessions()
    assert sessions.channels == ["advert"]
    assert sessions.dialed == [("advert", PEER)]
    plane.handle_link_event(LinkUp(link("q" * 32)))
    assert sessions.dialed[1:] == [("advert", "q" * 32)]
    await plane.close()
    await plane.close()
    await registry.close()


async def test_forwarding_plane_runs_on_routes_and_sessions_of_other_processes(
    context: DriverContext, description: NodeDescription
) -> None:
    sessions = RemoteSessions()
    copy: Any = MemoryTable(logger=context.logger, counters=context.counters)
    copy.routes = copy.list
    host = BrokerHost(node_id=description.node_id, counters=context.counters, logger=context.logger)
    transport = MemoryTransport(network="net", site="eu", random=random.Random(2))
    plane = ForwardingPlane(
        ForwardingSettings(transport=transport, broker=host.local_broker()),
        node=description,
        routes=copy,
        sessions=sessions,
        environment=Environment.from_context(context),
    )
    # Every process that runs the plane answers as the node, so also `Debug.*` and messages of other sites.
    assert {e.name for e in plane.server.endpoints} == {
        "Broker.Deliver",
        "Debug.Health",
        "Debug.Describe",
        "Debug.Stats",
    }
    assert plane.address == ""
    await plane.listen("")
    assert plane.address.startswith("memory://")
    plane.accept_sessions()
    assert sessions.channels == ["rpc"]
    with pytest.raises(Unreachable):
        plane.proxy.peer_connection(PEER)
    assert sessions.dialed == [("rpc", PEER)]
    plane.handle_link_event(LinkMoved(link()))
    await plane.close()
    await plane.close()
    await transport.close()


async def test_handlers_of_a_link_plane_precede_its_network(
    context: DriverContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = NodeIdentity.generate()
    description = NodeDescription(node_id=identity.node_id, name="eu-1", site="eu", network="net")
    plane = LinkPlane(
        LinkSettings(identity=identity, token="secret", incarnation=1, listeners=()),
        node=description,
        environment=Environment.from_context(context),
    )
    order: list[str] = []
    monkeypatch.setattr(plane.network, "handle_link_event", lambda event: order.append("network"))
    plane.add_event_handler(lambda event: order.append("first"))
    plane.add_event_handler(lambda event: order.append("second"))
    handle = plane.tunnel._event_handler
    assert handle is not None
    handle(LinkUp(link()))
    assert order == ["first", "second", "network"]


async def test_records_are_withdrawn_although_one_fails(context: DriverContext, description: NodeDescription) -> None:
    class Registry(MemoryRegistry):
        async def deregister(self, instance: Any) -> None:
            if instance.service == "fails":
                raise OSError("disk full")
            await super().deregister(instance)

    registry = Registry(context)
    await registry.start()
    registrations = NodeRegistrations(registry, node=description, lease_s=30.0, counters=context.counters)
    await registrations.add("fails", "memory://1", metadata={})
    await registrations.add("works", "memory://2", metadata={})
    closing = Closing(
        timeout_s=1.0, logger=context.logger, counters=context.counters, failure_counter="test_close_failures"
    )
    await registrations.withdraw(closing)
    assert await registry.instances("works") == []
    assert isinstance(context.counters, CountersInMemory)
    assert context.counters.values == {"test_close_failures": 1}
    await registrations.withdraw(closing)
    await registry.close()


async def test_records_are_withdrawn_although_the_first_withdrawal_is_cancelled(
    context: DriverContext, description: NodeDescription
) -> None:
    is_waiting = asyncio.Event()

    class Registry(MemoryRegistry):
        async def deregister(self, instance: Any) -> None:
            if instance.service == "hangs":
                is_waiting.set()
                await asyncio.Event().wait()
            await super().deregister(instance)

    registry = Registry(context)
    await registry.start()
    registrations = NodeRegistrations(registry, node=description, lease_s=30.0, counters=context.counters)
    await registrations.add("hangs", "memory://1", metadata={})
    await registrations.add("works", "memory://2", metadata={})
    closing = Closing(
        timeout_s=5.0, logger=context.logger, counters=context.counters, failure_counter="test_close_failures"
    )
    withdrawing = asyncio.get_running_loop().create_task(registrations.withdraw(closing))
    await is_waiting.wait()
    withdrawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await withdrawing
    assert await registry.instances("works") == []
    await registry.close()
