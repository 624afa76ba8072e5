"""Where calls go, and what is sent a second time."""

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
    from tests.rpc.conftest import HandClock, PairedTransport, Rig

Until = Callable[[Callable[[], bool]], Awaitable[None]]
NAME = "go.micro.srv.orders"


class Recorder:
    """A server that counts its runs and does as it is told."""

    def __init__(self, at: str, *, idempotent: bool = False, name: str = NAME) -> None:
        self.runs = 0
        self.act: Callable[[], Awaitable[Any]] | None = None
        self.server = Server(name, at=at)
        self.server.add("Orders.Place", self.place, idempotent=idempotent)

    async def place(self) -> str:
        self.runs += 1
        if self.act is not None:
            await self.act()
        return self.server.at


async def hang() -> None:
    await asyncio.Event().wait()


async def test_an_instance_that_cannot_be_dialled_is_passed_over(rig: Rig) -> None:
    recorder = Recorder("one")
    await rig.serve(recorder.server)
    await rig.registry.register(Instance(service=NAME, id="dead", address="memory://dead"), lease_s=30.0)
    for _ in range(20):
        assert await rig.client.call(NAME, "Orders.Place") == "one"
    assert rig.transport.dialed.count("memory://dead") <= 2, "it rests after a failure"


async def test_a_draining_instance_is_passed_over(rig: Rig) -> None:
    one, two = Recorder("one"), Recorder("two")
    await rig.serve(one.server)
    await rig.serve(two.server)
    await one.server.drain(0.0)
    assert {await rig.client.call(NAME, "Orders.Place") for _ in range(20)} == {"two"}
    assert one.runs == 0


async def test_a_call_that_may_have_begun_is_never_sent_again(rig: Rig, until: Until) -> None:
    one, two = Recorder("one"), Recorder("two")
    one.act = two.act = hang
    await rig.serve(one.server)
    await rig.serve(two.server)
    call = asyncio.create_task(rig.client.call(NAME, "Orders.Place", retries=5))
    await until(lambda: one.runs + two.runs == 1)
    rig.transport.sockets[0].lose(LinkLost("cut"))
    with pytest.raises(LinkLost):
        await call
    assert one.runs + two.runs == 1


@pytest.mark.parametrize("by", ["call", "endpoint"])
async def test_an_idempotent_call_is_sent_again_elsewhere(rig: Rig, until: Until, by: str) -> None:
    recorders = [Recorder(at, idempotent=by == "endpoint") for at in ("one", "two")]
    for recorder in recorders:
        recorder.act = hang
        await rig.serve(recorder.server)
    call = asyncio.create_task(rig.client.call(NAME, "Orders.Place", idempotent=by == "call"))
    await until(lambda: sum(recorder.runs for recorder in recorders) == 1)
    first = next(recorder for recorder in recorders if recorder.runs)
    other = next(recorder for recorder in recorders if not recorder.runs)
    other.act = None
    rig.transport.sockets[0].lose(LinkLost("cut"))
    assert await call == other.server.at
    assert (first.runs, other.runs) == (1, 1)


async def test_retries_stop_at_their_bound_and_raise_the_last_error(rig: Rig) -> None:
    for number in range(5):
        instance = Instance(service=NAME, id=f"dead-{number}", address=f"memory://dead-{number}")
        await rig.registry.register(instance, lease_s=30.0)
    with pytest.raises(Unreachable, match="nobody listens") as caught:
        await rig.client.call(NAME, "Orders.Place", retries=2)
    assert len(set(rig.transport.dialed)) == 3
    assert caught.value.at == "client"


async def test_retries_end_with_the_deadline(rig: Rig) -> None:
    await rig.registry.register(Instance(service=NAME, id="dead", address="memory://dead"), lease_s=30.0)
    async with asyncio.timeout(2.0):
        with pytest.raises(Unreachable):
            await rig.client.call(NAME, "Orders.Place", retries=1_000_000, timeout_s=0.2)


async def test_a_dial_that_hangs_ends_with_the_deadline(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dial(address: str, *, timeout_s: float) -> Socket:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(rig.transport, "dial", dial)
    with pytest.raises(DeadlineExceeded, match="connecting"):
        await rig.client.call(NAME, "Orders.Place", address="memory://1", timeout_s=0.05)


async def test_an_address_is_called_without_asking_the_registry(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder("one")
    instance = await rig.serve(recorder.server)
    monkeypatch.setattr(rig.registry, "watch", None)
    assert await rig.client.call(NAME, "Orders.Place", address=instance.address) == "one"


async def test_with_a_proxy_every_call_goes_to_it(rig: Rig) -> None:
    node = Recorder("node", name="")
    node.server.name = "go.micro.network"
    instance = await rig.serve(node.server)
    node.server.name = ""
    by_name = rig.new_client(proxy="go.micro.network")
    by_address = rig.new_client(proxy=instance.address)
    for client in (by_name, by_address):
        assert await client.call("any.service", "Orders.Place") == "node"


async def test_the_proxy_comes_from_the_environment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICRO_PROXY", "go.micro.network")
    client = rig.new_client(proxy=None)
    with pytest.raises(ServiceNotFound, match=r"no node go\.micro\.network"):
        await client.call("any.service", "Orders.Place")


async def test_a_call_costs_no_registry_round_trip_after_the_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder("one")
    await rig.serve(recorder.server)
    await rig.client.call(NAME, "Orders.Place")
    monkeypatch.setattr(rig.registry, "instances", None)
    await rig.client.call(NAME, "Orders.Place")


async def test_instances_that_come_and_go_are_followed(rig: Rig, until: Until) -> None:
    one, two = Recorder("one"), Recorder("two")
    first = await rig.serve(one.server)
    assert await rig.client.call(NAME, "Orders.Place") == "one"
    await rig.serve(two.server)
    await rig.registry.deregister(first)
    view = rig.client._view
    assert view is not None
    await until(lambda: [instance.id for instance in view.find(NAME)] == [f"{NAME}-2"])
    assert await rig.client.call(NAME, "Orders.Place") == "two"


async def test_a_closed_client_says_so(rig: Rig) -> None:
    await rig.client.close()
    with pytest.raises(Closed):
        await rig.client.call(NAME, "Orders.Place")


@pytest.mark.parametrize(("service", "endpoint"), [("no spaces", "Say.Hello"), ("ok", ""), ("", "Say.Hello")])
async def test_names_are_checked_where_they_enter(rig: Rig, service: str, endpoint: str) -> None:
    with pytest.raises(BadRequest):
        await rig.client.call(service, endpoint)


async def test_too_much_metadata_is_refused_before_it_is_sent(rig: Rig) -> None:
    recorder = Recorder("one")
    await rig.serve(recorder.server)
    with pytest.raises(TooLarge):
        await rig.client.call(NAME, "Orders.Place", metadata={str(number): "" for number in range(65)})
    with pytest.raises(TooLarge):
        await rig.client.call(NAME, "Orders.Place", metadata={"large": "x" * 20_000})
    assert recorder.runs == 0


# Publishing


class Taken:
    def __init__(self) -> None:
        self.messages: list[tuple[str, Message]] = []

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def publish(self, topic: str, message: Message) -> None:
        self.messages.append((topic, message))

    async def subscribe(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


async def test_a_message_is_published_through_the_broker_that_was_handed_in(rig: Rig) -> None:
    broker = Taken()
    client = rig.new_client(broker=broker)
    message_id = await client.publish("orders.created", {"number": 1}, headers={"a": "b"})
    ((topic, message),) = broker.messages
    assert (topic, message.id, message.headers) == ("orders.created", message_id, {"a": "b"})
    assert len(message_id) == 32


async def test_with_a_proxy_a_message_is_published_by_a_call_to_the_node(rig: Rig) -> None:
    published: list[Any] = []

    async def publish(request: dict[str, Any]) -> None:
        if request["topic"] == "forbidden":
            raise Overloaded("full")
        published.append(request)

    server = Server("go.micro.network")
    server.add("Broker.Publish", publish)
    await rig.serve(server)
    client = rig.new_client(proxy="go.micro.network")
    message_id = await client.publish("orders.created", {"number": 1})
    assert published[0]["id"] == message_id
    assert published[0]["body"] == b"\x81\xa6number\x01"
    with pytest.raises(Overloaded):
        await client.publish("forbidden", 1)


async def test_without_any_broker_publishing_says_what_to_do(rig: Rig) -> None:
    with pytest.raises(ConfigError, match="MICRO_PROXY"):
        await rig.client.publish("orders.created", 1)


# The pool


def make_pool(transport: PairedTransport, clock: HandClock, **options: Any) -> Pool:
    async def dial(address: str) -> Socket:
        return await transport.dial(address, timeout_s=1.0)

    return Pool(dial, clock=clock, random=Random(1), **options)


def answer(socket: Socket) -> None:
    Connection(socket, dialed=False)


class _Owner:
    def frame_received(self, frame: object) -> None: ...
    def connection_lost(self, error: object) -> None: ...


async def test_all_who_want_one_address_share_one_dial(transport: PairedTransport, hand_clock: HandClock) -> None:
    await transport.listen("memory://a", answer)
    pool = make_pool(transport, hand_clock)
    found = await asyncio.gather(*(pool.get("memory://a", 1.0) for _ in range(10)))
    assert len(set(found)) == 1
    assert transport.dialed == ["memory://a"]
    assert pool.find("memory://a") is found[0]
    await pool.close()
    assert pool.find("memory://a") is None
    with pytest.raises(Closed):
        await pool.get("memory://a", 1.0)


async def test_a_failed_address_rests_and_is_then_dialled_again(
    transport: PairedTransport, hand_clock: HandClock
) -> None:
    pool = make_pool(transport, hand_clock)
    for _ in range(3):
        with pytest.raises(Unreachable):
            await pool.get("memory://a", 1.0)
    assert len(transport.dialed) == 1
    hand_clock.seconds += 0.2
    await transport.listen("memory://a", answer)
    assert await pool.get("memory://a", 1.0)
    await pool.close()


async def test_dead_and_draining_connections_are_replaced(
    transport: PairedTransport, hand_clock: HandClock, until: Until
) -> None:
    far: list[Connection] = []
    await transport.listen("memory://a", lambda socket: far.append(Connection(socket, dialed=False)))
    pool = make_pool(transport, hand_clock)
    first = await pool.get("memory://a", 1.0)
    transport.sockets[0].lose(LinkLost("cut"))
    second = await pool.get("memory://a", 1.0)
    assert second is not first
    far[1].send_goaway()
    await until(lambda: not second.can_open_streams)
    third = await pool.get("memory://a", 1.0)
    assert third is not second
    assert second.error is None, "calls on it are finished"
    pool.sweep()
    await until(lambda: second.error is not None)
    assert pool.find("memory://a") is third
    await pool.close()


async def test_an_idle_connection_is_closed_after_a_while(
    transport: PairedTransport, hand_clock: HandClock, until: Until
) -> None:
    await transport.listen("memory://a", answer)
    pool = make_pool(transport, hand_clock)
    connection = await pool.get("memory://a", 1.0)
    await until(lambda: connection.wire_version == 1)
    pool.sweep()
    hand_clock.seconds += IDLE_CLOSE_S - 1
    pool.sweep()
    assert connection.error is None
    hand_clock.seconds += 2
    pool.sweep()
    await until(lambda: connection.error is not None)
    await pool.close()


async def test_a_peer_that_answers_nothing_not_even_a_ping_is_cut_off(
    transport: PairedTransport, hand_clock: HandClock, until: Until
) -> None:
    await transport.listen("memory://a", answer)
    pool = make_pool(transport, hand_clock)
    connection = await pool.get("memory://a", 1.0)
    await until(lambda: connection.wire_version == 1)
    connection.open_stream(_Owner())
    for _ in range(6):
        pool.sweep()
        for _ in range(10):
            await asyncio.sleep(0)  # lets the peer answer
    assert connection.error is None, "the peer answers pings"
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


def test_round_robin_takes_turns_across_calls_whoever_comes_or_goes() -> None:
    selector, all_four = Selector(Random(1), Strategy.ROUND_ROBIN), instances(4)
    assert [selector.choose(all_four, 0.0).id for _ in range(6)] == ["s-0", "s-1", "s-2", "s-3", "s-0", "s-1"]
    assert selector.choose(all_four[:2] + all_four[3:], 0.0).id == "s-3"
    assert selector.choose(all_four, 0.0).id == "s-0"


def test_least_outstanding_keeps_the_load_even() -> None:
    selector, all_of_them = Selector(Random(1)), instances(5)
    for _ in range(500):
        selector.call_started(selector.choose(all_of_them, 0.0).address)
    loads = [selector.outstanding(instance.address) for instance in all_of_them]
    assert max(loads) - min(loads) <= 5


def test_random_reaches_everybody() -> None:
    selector, some = Selector(Random(1), Strategy.RANDOM), instances(3)
    assert {selector.choose(some, 0.0).id for _ in range(100)} == {"s-0", "s-1", "s-2"}


def test_a_failing_instance_rests_for_a_time_that_grows_to_a_bound() -> None:
    selector, two = Selector(Random(1)), instances(2)
    bad, good = two
    rests = []
    now = 0.0
    for _ in range(12):
        selector.call_started(bad.address)
        selector.call_failed(bad.address, now)
        assert {selector.choose(two, now).id for _ in range(20)} == {good.id}
        begun = now
        while selector.is_ejected(bad.address, now):
            now += 0.05
        rests.append(now - begun)
    assert rests[0] <= INITIAL_EJECTION_S + 0.1
    assert rests[1] > rests[0]
    assert max(rests) <= MAX_EJECTION_S + 0.1
    selector.call_started(bad.address)
    selector.call_succeeded(bad.address)
    selector.call_started(bad.address)
    selector.call_failed(bad.address, now)
    assert not selector.is_ejected(bad.address, now + INITIAL_EJECTION_S), "one success forgives"


def test_when_all_rest_the_first_to_come_back_is_tried() -> None:
    selector, two = Selector(Random(1)), instances(2)
    for now, instance in enumerate(two):
        selector.call_started(instance.address)
        selector.call_failed(instance.address, float(now) / 10)
    assert selector.choose(two, 0.2) == two[0]


def test_what_was_tried_is_avoided_while_there_are_others() -> None:
    selector, two = Selector(Random(1)), instances(2)
    assert {selector.choose(two, 0.0, avoid=frozenset({two[0].address})).id for _ in range(20)} == {"s-1"}
    assert selector.choose(two[:1], 0.0, avoid=frozenset({two[0].address})) == two[0]
