"""Choice of the destination of calls, retries, publishing, the connection pool and the selector."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from micro_core.contract.broker import Message
from micro_core.contract.errors import (
    BadRequest,
    Closed,
    ConfigError,
    DeadlineExceeded,
    LinkLost,
    Overloaded,
    ServiceNotFound,
    TooLarge,
    Unreachable,
)
from micro_core.contract.registry import Instance
from micro_core.contract.transport import Socket
from micro_core.rpc.connection import Connection
from micro_core.rpc.pool import IDLE_CLOSE_S, Pool
from micro_core.rpc.selector import INITIAL_EJECTION_S, MAX_EJECTION_S, Selector, Strategy
from micro_core.rpc.server import Server

if TYPE_CHECKING:
    from tests.rpc.conftest import ManualClock, PairedTransport, ServiceHarness

Until = Callable[[Callable[[], bool]], Awaitable[None]]
NAME = "go.micro.srv.orders"


class CountingServer:
    """A server with one endpoint, `Orders.Place`, that counts its calls, runs `action` and answers with the server's name."""

    def __init__(self, at: str, *, idempotent: bool = False, name: str = NAME) -> None:
        self.runs = 0
        self.action: Callable[[], Awaitable[Any]] | None = None
        self.server = Server(name, at=at)
        self.server.add("Orders.Place", self.place_order, idempotent=idempotent)

    async def place_order(self) -> str:
        self.runs += 1
        if self.action is not None:
            await self.action()
        return self.server.at


async def hang() -> None:
    await asyncio.Event().wait()


async def test_unreachable_instance_is_skipped(harness: ServiceHarness) -> None:
    orders = CountingServer("one")
    await harness.serve(orders.server)
    await harness.registry.register(Instance(service=NAME, id="dead", address="memory://dead"), lease_s=30.0)
    for _ in range(20):
        assert await harness.client.call(NAME, "Orders.Place") == "one"
    assert harness.transport.dialed.count("memory://dead") <= 2, "it is ejected after a failure"


async def test_draining_instance_is_skipped(harness: ServiceHarness) -> None:
    one, two = CountingServer("one"), CountingServer("two")
    await harness.serve(one.server)
    await harness.serve(two.server)
    await one.server.drain(0.0)
    assert {await harness.client.call(NAME, "Orders.Place") for _ in range(20)} == {"two"}
    assert one.runs == 0


async def test_call_whose_handler_may_have_started_is_not_retried(harness: ServiceHarness, until: Until) -> None:
    one, two = CountingServer("one"), CountingServer("two")
    one.action = two.action = hang
    await harness.serve(one.server)
    await harness.serve(two.server)
    call = asyncio.create_task(harness.client.call(NAME, "Orders.Place", retries=5))
    await until(lambda: one.runs + two.runs == 1)
    harness.transport.sockets[0].lose(LinkLost("cut"))
    with pytest.raises(LinkLost):
        await call
    assert one.runs + two.runs == 1


@pytest.mark.parametrize("by", ["call", "endpoint"])
async def test_idempotent_call_is_retried_on_another_instance(harness: ServiceHarness, until: Until, by: str) -> None:
    servers = [CountingServer(at, idempotent=by == "endpoint") for at in ("one", "two")]
    for one in servers:
        one.action = hang
        await harness.serve(one.server)
    call = asyncio.create_task(harness.client.call(NAME, "Orders.Place", idempotent=by == "call"))
    await until(lambda: sum(one.runs for one in servers) == 1)
    first = next(one for one in servers if one.runs)
    other = next(one for one in servers if not one.runs)
    other.action = None
    harness.transport.sockets[0].lose(LinkLost("cut"))
    assert await call == other.server.at
    assert (first.runs, other.runs) == (1, 1)


async def test_last_error_is_raised_after_the_maximum_number_of_retries(harness: ServiceHarness) -> None:
    for number in range(5):
        instance = Instance(service=NAME, id=f"dead-{number}", address=f"memory://dead-{number}")
        await harness.registry.register(instance, lease_s=30.0)
    with pytest.raises(Unreachable, match="memory://dead") as caught:
        await harness.client.call(NAME, "Orders.Place", retries=2)
    assert len(set(harness.transport.dialed)) == 3
    assert caught.value.at == "client"


async def test_retries_end_at_the_deadline(harness: ServiceHarness) -> None:
    await harness.registry.register(Instance(service=NAME, id="dead", address="memory://dead"), lease_s=30.0)
    async with asyncio.timeout(2.0):
        with pytest.raises(Unreachable):
            await harness.client.call(NAME, "Orders.Place", retries=1_000_000, timeout_s=0.2)


async def test_hanging_dial_ends_at_the_deadline(harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dial(address: str, *, timeout_s: float) -> Socket:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(harness.transport, "dial", dial)
    with pytest.raises(DeadlineExceeded, match="connecting"):
        await harness.client.call(NAME, "Orders.Place", address="memory://1", timeout_s=0.05)


async def test_call_to_an_address_does_not_use_the_registry(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = CountingServer("one")
    instance = await harness.serve(orders.server)
    monkeypatch.setattr(harness.registry, "watch", None)
    assert await harness.client.call(NAME, "Orders.Place", address=instance.address) == "one"


async def test_proxy_receives_every_call(harness: ServiceHarness) -> None:
    node = CountingServer("node", name="")
    node.server.name = "go.micro.network"
    instance = await harness.serve(node.server)
    node.server.name = ""
    by_name = harness.new_client(proxy="go.micro.network")
    by_address = harness.new_client(proxy=instance.address)
    for client in (by_name, by_address):
        assert await client.call("any.service", "Orders.Place") == "node"


async def test_proxy_is_read_from_the_environment(harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICRO_PROXY", "go.micro.network")
    client = harness.new_client(proxy=None)
    with pytest.raises(ServiceNotFound, match=r"no node go\.micro\.network"):
        await client.call("any.service", "Orders.Place")


async def test_second_call_does_not_query_the_registry(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = CountingServer("one")
    await harness.serve(orders.server)
    await harness.client.call(NAME, "Orders.Place")
    monkeypatch.setattr(harness.registry, "instances", None)
    await harness.client.call(NAME, "Orders.Place")


async def test_registry_view_follows_new_and_removed_instances(harness: ServiceHarness, until: Until) -> None:
    one, two = CountingServer("one"), CountingServer("two")
    first = await harness.serve(one.server)
    assert await harness.client.call(NAME, "Orders.Place") == "one"
    await harness.serve(two.server)
    await harness.registry.deregister(first)
    view = harness.client._view
    assert view is not None
    await until(lambda: [instance.id for instance in view.find(NAME)] == [f"{NAME}-2"])
    assert await harness.client.call(NAME, "Orders.Place") == "two"


async def test_closed_client_raises_closed(harness: ServiceHarness) -> None:
    await harness.client.close()
    with pytest.raises(Closed):
        await harness.client.call(NAME, "Orders.Place")


@pytest.mark.parametrize(("service", "endpoint"), [("no spaces", "Say.Hello"), ("ok", ""), ("", "Say.Hello")])
async def test_invalid_name_is_refused_by_the_client(harness: ServiceHarness, service: str, endpoint: str) -> None:
    with pytest.raises(BadRequest):
        await harness.client.call(service, endpoint)


async def test_metadata_above_the_limit_is_refused_before_it_is_sent(harness: ServiceHarness) -> None:
    orders = CountingServer("one")
    await harness.serve(orders.server)
    with pytest.raises(TooLarge):
        await harness.client.call(NAME, "Orders.Place", metadata={str(number): "" for number in range(65)})
    with pytest.raises(TooLarge):
        await harness.client.call(NAME, "Orders.Place", metadata={"large": "x" * 20_000})
    assert orders.runs == 0


# Publishing


class RecordingBroker:
    """Stores published messages."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Message]] = []

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def publish(self, topic: str, message: Message) -> None:
        self.messages.append((topic, message))

    async def subscribe(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


async def test_message_is_published_by_the_given_broker(harness: ServiceHarness) -> None:
    broker = RecordingBroker()
    client = harness.new_client(broker=broker)
    message_id = await client.publish("orders.created", {"number": 1}, headers={"a": "b"})
    ((topic, message),) = broker.messages
    assert (topic, message.id, message.headers) == ("orders.created", message_id, {"a": "b"})
    assert len(message_id) == 32


async def test_message_is_published_by_a_call_to_the_proxy(harness: ServiceHarness) -> None:
    published: list[Any] = []

    async def publish(request: dict[str, Any]) -> None:
        if request["topic"] == "forbidden":
            raise Overloaded("full")
        published.append(request)

    server = Server("go.micro.network")
    server.add("Broker.Publish", publish)
    await harness.serve(server)
    client = harness.new_client(proxy="go.micro.network")
    message_id = await client.publish("orders.created", {"number": 1})
    assert published[0]["id"] == message_id
    assert published[0]["body"] == b"\x81\xa6number\x01"
    with pytest.raises(Overloaded):
        await client.publish("forbidden", 1)


async def test_publishing_without_a_broker_fails_with_a_hint(harness: ServiceHarness) -> None:
    with pytest.raises(ConfigError, match="MICRO_PROXY"):
        await harness.client.publish("orders.created", 1)


# The pool


def make_pool(transport: PairedTransport, clock: ManualClock, **options: Any) -> Pool:
    async def dial(address: str) -> Socket:
        return await transport.dial(address, timeout_s=1.0)

    return Pool(dial, clock=clock, random=Random(1), **options)


def accept(socket: Socket) -> None:
    Connection(socket, dialed=False)


class IgnoringOwner:
    """A stream owner that ignores everything."""

    def frame_received(self, frame: object) -> None: ...
    def connection_lost(self, error: object) -> None: ...


async def test_concurrent_callers_share_one_dial(transport: PairedTransport, manual_clock: ManualClock) -> None:
    await transport.listen("memory://a", accept)
    pool = make_pool(transport, manual_clock)
    found = await asyncio.gather(*(pool.get("memory://a", 1.0) for _ in range(10)))
    assert len(set(found)) == 1
    assert transport.dialed == ["memory://a"]
    assert pool.find("memory://a") is found[0]
    await pool.close()
    assert pool.find("memory://a") is None
    with pytest.raises(Closed):
        await pool.get("memory://a", 1.0)


async def test_cancellation_is_not_lost_while_a_dial_ends(
    transport: PairedTransport, manual_clock: ManualClock
) -> None:
    await transport.listen("memory://a", accept)
    for steps in range(10):
        pool = make_pool(transport, manual_clock)
        getting = asyncio.get_running_loop().create_task(pool.get("memory://a", 1.0))
        for _ in range(steps):
            await asyncio.sleep(0)
        if getting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await getting
        await pool.close()


async def test_failed_address_is_dialled_again_after_its_penalty(
    transport: PairedTransport, manual_clock: ManualClock
) -> None:
    pool = make_pool(transport, manual_clock)
    for _ in range(3):
        with pytest.raises(Unreachable):
            await pool.get("memory://a", 1.0)
    assert len(transport.dialed) == 1
    manual_clock.seconds += 0.2
    await transport.listen("memory://a", accept)
    assert await pool.get("memory://a", 1.0)
    await pool.close()


async def test_dead_and_draining_connections_are_replaced(
    transport: PairedTransport, manual_clock: ManualClock, until: Until
) -> None:
    far: list[Connection] = []
    await transport.listen("memory://a", lambda socket: far.append(Connection(socket, dialed=False)))
    pool = make_pool(transport, manual_clock)
    first = await pool.get("memory://a", 1.0)
    transport.sockets[0].lose(LinkLost("cut"))
    second = await pool.get("memory://a", 1.0)
    assert second is not first
    far[1].send_goaway()
    await until(lambda: not second.can_open_streams)
    third = await pool.get("memory://a", 1.0)
    assert third is not second
    assert second.error is None, "running calls can finish on it"
    pool.sweep()
    await until(lambda: second.error is not None)
    assert pool.find("memory://a") is third
    await pool.close()


async def test_idle_connection_is_closed(transport: PairedTransport, manual_clock: ManualClock, until: Until) -> None:
    await transport.listen("memory://a", accept)
    pool = make_pool(transport, manual_clock)
    connection = await pool.get("memory://a", 1.0)
    await until(lambda: connection.wire_version == 1)
    pool.sweep()
    manual_clock.seconds += IDLE_CLOSE_S - 1
    pool.sweep()
    assert connection.error is None
    manual_clock.seconds += 2
    pool.sweep()
    await until(lambda: connection.error is not None)
    await pool.close()


async def test_connection_to_a_peer_that_ignores_pings_is_aborted(
    transport: PairedTransport, manual_clock: ManualClock, until: Until
) -> None:
    await transport.listen("memory://a", accept)
    pool = make_pool(transport, manual_clock)
    connection = await pool.get("memory://a", 1.0)
    await until(lambda: connection.wire_version == 1)
    connection.open_stream(IgnoringOwner())
    for _ in range(6):
        pool.sweep()
        for _ in range(10):
            await asyncio.sleep(0)  # one iteration of the event loop, so that the peer can respond
    assert connection.error is None, "the peer responds to pings"
    peer = transport.sockets[0].peer
    assert peer is not None
    peer.pause_reading()
    for _ in range(3):
        pool.sweep()
    assert isinstance(connection.error, LinkLost)
    await pool.close()


# The selector


def instances(count: int) -> list[Instance]:
    return [Instance(service="s", id=f"s-{number}", address=f"memory://{number}") for number in range(count)]


def test_round_robin_keeps_its_order_when_instances_are_added_or_removed() -> None:
    selector, four = Selector(Random(1), Strategy.ROUND_ROBIN), instances(4)
    assert [selector.choose(four, 0.0).id for _ in range(6)] == ["s-0", "s-1", "s-2", "s-3", "s-0", "s-1"]
    assert selector.choose(four[:2] + four[3:], 0.0).id == "s-3"
    assert selector.choose(four, 0.0).id == "s-0"


def test_least_outstanding_balances_the_load() -> None:
    selector, five = Selector(Random(1)), instances(5)
    for _ in range(500):
        selector.call_started(selector.choose(five, 0.0).address)
    loads = [selector.outstanding(instance.address) for instance in five]
    assert max(loads) - min(loads) <= 5


def test_random_strategy_reaches_all_instances() -> None:
    selector, three = Selector(Random(1), Strategy.RANDOM), instances(3)
    assert {selector.choose(three, 0.0).id for _ in range(100)} == {"s-0", "s-1", "s-2"}


def test_failing_instance_is_ejected_for_a_growing_limited_time() -> None:
    selector, two = Selector(Random(1)), instances(2)
    bad, good = two
    durations = []
    now = 0.0
    for _ in range(12):
        selector.call_started(bad.address)
        selector.call_failed(bad.address, now)
        assert {selector.choose(two, now).id for _ in range(20)} == {good.id}
        started_at = now
        while selector.is_ejected(bad.address, now):
            now += 0.05
        durations.append(now - started_at)
    assert durations[0] <= INITIAL_EJECTION_S + 0.1
    assert durations[1] > durations[0]
    assert max(durations) <= MAX_EJECTION_S + 0.1
    selector.call_started(bad.address)
    selector.call_succeeded(bad.address)
    selector.call_started(bad.address)
    selector.call_failed(bad.address, now)
    assert not selector.is_ejected(bad.address, now + INITIAL_EJECTION_S), "a success resets the failures"


def test_instance_whose_ejection_ends_first_is_chosen_when_all_are_ejected() -> None:
    selector, two = Selector(Random(1)), instances(2)
    for now, instance in enumerate(two):
        selector.call_started(instance.address)
        selector.call_failed(instance.address, float(now) / 10)
    assert selector.choose(two, 0.2) == two[0]


def test_addresses_of_earlier_attempts_are_avoided_if_there_are_others() -> None:
    selector, two = Selector(Random(1)), instances(2)
    assert {selector.choose(two, 0.0, avoid=frozenset({two[0].address})).id for _ in range(20)} == {"s-1"}
    assert selector.choose(two[:1], 0.0, avoid=frozenset({two[0].address})) == two[0]
