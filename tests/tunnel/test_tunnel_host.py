"""Tunnels of several nodes in one process, over links with four lanes and with one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from micro_core.builtin.tunnel.memory import MemoryTunnel, MemoryTunnelOptions
from micro_core.contract import (
    Closed,
    Conflict,
    CountersInMemory,
    DialFailed,
    DialMode,
    DialSucceeded,
    DriverContext,
    LinkDown,
    LinkEvent,
    LinkLost,
    LinkMeasured,
    LinkSuspect,
    LinkUp,
    MicroError,
    Priority,
    Session,
    Unauthorized,
    Unreachable,
)
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.system_clock import SystemClock
from micro_core.tunnel import gradual_end
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.path_selection import PathOptions
from micro_core.tunnel.tunnel import TunnelHost, TunnelOptions
from micro_core.wire import limits

TIMEOUT_S = 5.0


class Reader:
    """A receiver that records what it receives."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.data = bytearray()
        self.error: MicroError | None = None
        self.is_paused = False
        self.pauses = 0
        session.start(self)

    def data_received(self, data: bytes) -> None:
        self.data += data

    def pause_writing(self) -> None:
        self.is_paused = True
        self.pauses += 1

    def resume_writing(self) -> None:
        self.is_paused = False

    def socket_lost(self, error: MicroError) -> None:
        assert self.error is None, "socket_lost was called twice"
        self.error = error


async def until(condition: Callable[[], bool], what: str = "it") -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0)
    assert condition(), what


class Nodes:
    """Creates tunnels that listen at the name of their node."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.hosts: list[TunnelHost] = []
        self.drivers: dict[str, MemoryTunnel] = {}

    async def node(
        self, name: str, *, network: str = "go.micro", token: str = "secret", incarnation: int = 1, **options: Any
    ) -> TunnelHost:
        identity = NodeIdentity.from_private_bytes(name.encode().ljust(32, b"\0"))
        counters = CountersInMemory()
        source = random.Random(len(self.hosts))
        context = DriverContext(
            node_id=name,
            network=network,
            site="test",
            state_dir="",
            clock=SystemClock(),
            random=source,
            logger=logging.getLogger("test"),
            counters=counters,
        )
        driver = MemoryTunnel(MemoryTunnelOptions(lanes=self.lanes), context)
        host = TunnelHost(
            identity=identity,
            name=name,
            site="test",
            network=network,
            token=token,
            listeners=[(driver, name)],
            environment=Environment.from_context(context),
            incarnation=incarnation,
            options=TunnelOptions(paths=PathOptions(redial_initial_s=0.001, redial_max_s=0.01), **options),
        )
        await host.connect()
        self.hosts.append(host)
        self.drivers[name] = driver
        return host


@pytest.fixture(params=[4, 1], ids=["four-lanes", "one-lane"])
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    made = Nodes(request.param)
    yield made
    for host in made.hosts:
        await host.close()


@pytest.fixture
def pair(nodes: Nodes) -> Callable[[], Awaitable[tuple[TunnelHost, TunnelHost]]]:
    async def make() -> tuple[TunnelHost, TunnelHost]:
        a, b = await nodes.node("a"), await nodes.node("b")
        await a.link_to("memory://b")
        await until(lambda: bool(b.links()))
        return a, b

    return make


Pair = Callable[[], Awaitable[tuple[TunnelHost, TunnelHost]]]


def connect(
    dialler: TunnelHost, listener: TunnelHost, priority: Priority = Priority.CALLS
) -> tuple[Reader, list[Reader]]:
    accepted: list[Reader] = []
    listener.listen("test", lambda session: accepted.append(Reader(session)))
    return Reader(dialler.dial("test", peer=listener.node_id, priority=priority)), accepted


async def test_both_ends_report_the_same_link(pair: Pair) -> None:
    a, b = await pair()
    (at_a,), (at_b,) = a.links(), b.links()
    assert (at_a.peer, at_a.peer_name, at_a.dialed) == (b.node_id, "b", True)
    assert (at_b.peer, at_b.peer_name, at_b.dialed) == (a.node_id, "a", False)
    assert at_a.generation == at_b.generation


@pytest.mark.parametrize("direction", ["dialler opens", "acceptor opens"])
async def test_either_end_of_a_link_opens_and_accepts_sessions(pair: Pair, direction: str) -> None:
    a, b = await pair()
    opener, server = (a, b) if direction == "dialler opens" else (b, a)
    near, accepted = connect(opener, server)
    near.session.write(b"question")
    await until(lambda: bool(accepted) and accepted[0].data == b"question")
    accepted[0].session.write(b"answer")
    await until(lambda: near.data == b"answer")
    assert accepted[0].session.peer == opener.node_id


@pytest.mark.parametrize("priority", list(Priority))
async def test_large_transfer_arrives_complete_and_in_order(pair: Pair, priority: Priority) -> None:
    a, b = await pair()
    near, accepted = connect(a, b, priority)
    sent = random.Random(7).randbytes(5 * limits.SESSION_WINDOW_BYTES)
    near.session.write(sent)
    await until(lambda: bool(accepted) and len(accepted[0].data) == len(sent))
    assert accepted[0].data == sent


async def test_receiver_that_stops_reading_buffers_at_most_one_window(pair: Pair) -> None:
    a, b = await pair()
    near, accepted = connect(a, b)
    near.session.write(b"x")
    await until(lambda: bool(accepted))
    accepted[0].session.pause_reading()
    near.session.write(bytes(4 * limits.SESSION_WINDOW_BYTES))
    assert near.is_paused
    (far,) = [session for link in b._links.values() for session in link.sessions.values()]
    for _ in range(2_000):
        await asyncio.sleep(0)
    assert sum(len(chunk) for chunk in far._buffered) <= limits.SESSION_WINDOW_BYTES
    accepted[0].session.resume_reading()
    await until(lambda: len(accepted[0].data) == 1 + 4 * limits.SESSION_WINDOW_BYTES)
    assert not near.is_paused


async def test_unread_session_does_not_delay_other_sessions(pair: Pair) -> None:
    a, b = await pair()
    near, accepted = connect(a, b)
    near.session.write(b"x")
    await until(lambda: bool(accepted))
    accepted[0].session.pause_reading()
    near.session.write(bytes(4 * limits.SESSION_WINDOW_BYTES))
    other = Reader(a.dial("test", peer=b.node_id))
    other.session.write(b"hello")
    await until(lambda: len(accepted) == 2 and accepted[1].data == b"hello")


async def test_lower_priorities_leave_buffer_space_to_higher_ones_on_a_blocked_link(nodes: Nodes, pair: Pair) -> None:
    a, b = await pair()
    connect(a, b)
    (link,) = [link for link in nodes.drivers["a"].links if link._error is None]
    link.hold()
    buffered: list[int] = []
    sessions = []
    for priority in (Priority.BULK, Priority.EVENTS, Priority.CALLS, Priority.CONTROL):
        session = Reader(a.dial("test", peer=b.node_id, priority=priority))
        sessions.append(session)
        session.session.write(bytes(limits.SESSION_WINDOW_BYTES))
        for _ in range(20):
            await asyncio.sleep(0)
        buffered.append(sum(link.buffered_bytes(lane) for lane in range(link.lane_count)))
    assert buffered == sorted(buffered)
    assert len(set(buffered)) == 4, "each priority found space that the lower ones had left"
    link.release()


async def test_session_on_a_channel_without_listener_is_refused_with_a_reason(pair: Pair) -> None:
    a, b = await pair()
    reader = Reader(a.dial("nowhere", peer=b.node_id))
    await until(lambda: reader.error is not None)
    assert isinstance(reader.error, Unreachable)
    assert "nowhere" in str(reader.error)


async def test_data_written_before_close_arrives_before_the_end(pair: Pair) -> None:
    a, b = await pair()
    near, accepted = connect(a, b)
    near.session.write(bytes(2 * limits.SESSION_WINDOW_BYTES))
    await near.session.close()
    await near.session.close()
    await until(lambda: bool(accepted) and accepted[0].error is not None)
    assert len(accepted[0].data) == 2 * limits.SESSION_WINDOW_BYTES
    assert isinstance(near.error, Closed)


async def test_sessions_end_with_their_link_at_once(nodes: Nodes, pair: Pair) -> None:
    a, b = await pair()
    near, accepted = connect(a, b)
    near.session.write(b"x")
    await until(lambda: bool(accepted))
    down: list[str] = []
    a.set_event_handler(lambda event: down.append(event.link.peer_name) if isinstance(event, LinkDown) else None)
    nodes.drivers["a"].links[0].cut()
    assert isinstance(near.error, LinkLost)
    assert isinstance(accepted[0].error, LinkLost)
    assert down == ["b"]
    with pytest.raises(Unreachable):
        a.dial("test", peer=b.node_id)


async def test_multicast_reaches_every_listening_peer_exactly_once(nodes: Nodes) -> None:
    hub = await nodes.node("hub")
    received: dict[str, list[tuple[str, bytes]]] = {}
    for name in ("one", "two", "silent"):
        spoke = await nodes.node(name)
        received[name] = []
        if name != "silent":
            spoke.subscribe("topic", lambda peer, payload, name=name: received[name].append((peer, payload)))  # type: ignore[misc]
        await spoke.link_to("memory://hub")
    await until(lambda: hub.send("topic", b"probe", mode=DialMode.MULTICAST) == 2)
    await until(lambda: all((hub.node_id, b"probe") in received[name] for name in ("one", "two")))
    for entries in received.values():
        entries.clear()
    for number in range(50):
        assert hub.send("topic", b"%d" % number, mode=DialMode.MULTICAST) == 2
    await until(lambda: all(len(received[name]) >= 50 for name in ("one", "two")))
    expected = [(hub.node_id, b"%d" % number) for number in range(50)]
    assert received == {"one": expected, "two": expected, "silent": []}


async def test_broadcast_reaches_every_link_and_is_counted_without_receiver(pair: Pair) -> None:
    a, b = await pair()
    assert a.send("anything", b"x", mode=DialMode.BROADCAST) == 1
    await until(lambda: b._counters.values.get("tunnel_messages_unwanted") == 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("other", "reason"),
    [({"network": "another"}, "network"), ({"token": "wrong"}, "token")],
    ids=["another-network", "wrong-token"],
)
async def test_node_with_another_network_or_token_is_refused_with_a_reason(
    nodes: Nodes, other: dict[str, str], reason: str
) -> None:
    a, b = await nodes.node("a"), await nodes.node("b", **other)  # type: ignore[arg-type]
    with pytest.raises(Unauthorized, match=reason):
        await a.link_to("memory://b")
    await until(lambda: not b._pending)
    assert a.links() == b.links() == []


async def test_node_does_not_link_to_itself(nodes: Nodes) -> None:
    a = await nodes.node("a")
    with pytest.raises(Unauthorized, match="itself"):
        await a.link_to("memory://a")


async def test_second_dial_replaces_the_link_at_both_ends(pair: Pair) -> None:
    a, b = await pair()
    near, _ = connect(a, b)
    await a.link_to("memory://b")
    await until(lambda: near.error is not None)
    await until(lambda: len(b.links()) == 1 and a.links()[0].generation == b.links()[0].generation == 2)
    assert isinstance(near.error, LinkLost)


async def test_nodes_that_dial_each_other_at_once_keep_the_same_link(nodes: Nodes) -> None:
    a, b = await nodes.node("a"), await nodes.node("b")
    await asyncio.gather(a.link_to("memory://b"), b.link_to("memory://a"), return_exceptions=True)
    await until(lambda: len(a.links()) == 1 and len(b.links()) == 1)
    await until(lambda: a.links()[0].dialed is not b.links()[0].dialed)
    near, accepted = connect(a, b)
    near.session.write(b"x")
    await until(lambda: bool(accepted) and accepted[0].data == b"x")


async def test_later_incarnation_of_a_peer_replaces_the_earlier(nodes: Nodes) -> None:
    a = await nodes.node("a")
    await nodes.node("b", incarnation=1)
    await a.link_to("memory://b")
    nodes.hosts[1]._open_listeners[0]
    await nodes.hosts[1]._open_listeners[0].close()
    again = await nodes.node("b", incarnation=2)
    await again.link_to("memory://a")
    await until(lambda: len(again.links()) == 1)
    near, accepted = connect(a, again)
    near.session.write(b"x")
    await until(lambda: bool(accepted) and accepted[0].data == b"x")


async def test_broken_link_is_dialled_again(nodes: Nodes, pair: Pair) -> None:
    a, b = await nodes.node("a"), await nodes.node("b")
    failures: list[str] = []
    a.set_event_handler(lambda event: failures.append(event.address) if isinstance(event, DialFailed) else None)
    a.keep_linked("memory://b")
    a.keep_linked("memory://b")
    await until(lambda: bool(a.links()))
    nodes.drivers["a"].links[-1].cut()
    assert a.links() == []
    await until(lambda: bool(a.links()))
    a.stop_dialing("memory://b")
    assert b.node_id == a.links()[0].peer


async def test_silent_peer_is_detected_as_dead(nodes: Nodes) -> None:
    a = await nodes.node("a", keepalive_s=0.02)
    await nodes.node("b", keepalive_s=60.0)
    await a.link_to("memory://b")
    lost: list[MicroError] = []
    a.set_event_handler(lambda event: lost.append(event.error) if isinstance(event, LinkDown) else None)
    for link in nodes.drivers["a"].links:
        assert link.other is not None
        link.other.receive = lambda lane, data: None  # type: ignore[method-assign]
        link.receive = lambda lane, data: None  # type: ignore[method-assign]
    await until(lambda: bool(lost))
    assert "nothing received" in str(lost[0])


async def test_channel_has_at_most_one_listener(pair: Pair) -> None:
    _, b = await pair()
    listener = b.listen("test", lambda session: None)
    with pytest.raises(Conflict):
        b.listen("test", lambda session: None)
    listener.close()
    b.listen("test", lambda session: None)


async def test_close_leaves_no_task_running(nodes: Nodes) -> None:
    before = asyncio.all_tasks()
    a, b = await nodes.node("a"), await nodes.node("b")
    a.keep_linked("memory://b")
    b.keep_linked("memory://nowhere")
    await until(lambda: bool(a.links()))
    connect(a, b)
    await a.close()
    await b.close()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before


class DelayedReceiver:
    """Wraps the receiver of a link: what follows the first chunk is delivered later, joined to one chunk per lane."""

    def __init__(self, receiver: Any) -> None:
        self.receiver = receiver
        self.has_hello = False
        self.waiting: dict[int, bytes] = {}

    def data_received(self, lane: int, data: bytes) -> None:
        if not self.has_hello:
            self.has_hello = True
            self.receiver.data_received(lane, data)
            return
        if not self.waiting:
            asyncio.get_running_loop().call_later(0.01, self.deliver)
        self.waiting[lane] = self.waiting.get(lane, b"") + data

    def deliver(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for lane, data in waiting.items():
            self.receiver.data_received(lane, data)

    def lane_writable(self, lane: int) -> None:
        self.receiver.lane_writable(lane)

    def link_lost(self, error: MicroError) -> None:
        self.receiver.link_lost(error)


async def test_link_event_precedes_a_session_that_follows_the_proof_immediately(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MemoryTunnel.listen

    async def listen(driver: MemoryTunnel, address: str, accept: Callable[[Any], None]) -> Any:
        def accept_joined(link: Any) -> None:
            start = link.start
            monkeypatch.setattr(link, "start", lambda receiver: start(DelayedReceiver(receiver)))
            accept(link)

        return await original(driver, address, accept_joined)

    monkeypatch.setattr(MemoryTunnel, "listen", listen)
    a, b = await nodes.node("a"), await nodes.node("b")
    received: list[str] = []
    sessions: list[Reader] = []

    # The dialling end completes its handshake first and may open a session at once.
    def open_session(event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            sessions.append(Reader(a.dial("early", peer=event.link.peer)))

    a.set_event_handler(open_session)
    b.set_event_handler(lambda event: received.append("link") if isinstance(event, LinkUp) else None)
    b.listen("early", lambda session: received.append("session"))
    await a.link_to("memory://b")
    await until(lambda: len(received) == 2)
    assert received == ["link", "session"]


def outcomes_of(host: TunnelHost) -> list[DialSucceeded | DialFailed]:
    found: list[DialSucceeded | DialFailed] = []
    host.set_event_handler(lambda event: found.append(event) if isinstance(event, DialSucceeded | DialFailed) else None)
    return found


async def test_single_dial_ends_in_one_outcome_and_does_not_link_again(nodes: Nodes) -> None:
    a, b = await nodes.node("a"), await nodes.node("b")
    outcomes = outcomes_of(a)
    a.dial_once("memory://b")
    await until(lambda: bool(outcomes))
    assert outcomes == [DialSucceeded("memory://b", b.node_id, was_linked=False)]
    await a.unlink(b.node_id)
    await asyncio.sleep(0.1)
    assert a.links() == []
    assert len(outcomes) == 1
    a.dial_once("memory://b")
    await until(lambda: len(outcomes) == 2)
    assert len(a.links()) == 1


async def test_single_dial_has_one_outcome_though_the_peer_replaces_its_link(nodes: Nodes) -> None:
    """Of two links dialled by both nodes, the one that the node with the smaller id dialled is kept."""
    small, large = sorted([await nodes.node("a"), await nodes.node("b")], key=lambda host: host.node_id)
    address = "memory://" + next(name for name, host in zip("ab", nodes.hosts, strict=True) if host is small)
    back = "memory://" + next(name for name, host in zip("ab", nodes.hosts, strict=True) if host is large)
    outcomes = outcomes_of(large)
    large.dial_once(address)
    await until(lambda: bool(outcomes))
    assert large.links()[0].dialed_address == address
    await small.link_to(back)
    await until(lambda: not large.links()[0].dialed_address)
    await asyncio.sleep(0.05)
    assert outcomes == [DialSucceeded(address, small.node_id, was_linked=False)]


async def test_single_dial_of_a_linked_node_ends_with_its_outcome(nodes: Nodes) -> None:
    a, b = await nodes.node("a"), await nodes.node("b")
    await b.link_to("memory://a")
    await until(lambda: bool(a.links()))
    outcomes = outcomes_of(a)
    a.dial_once("memory://b")
    await until(lambda: bool(outcomes))
    for link in [*nodes.drivers["a"].links, *nodes.drivers["b"].links]:
        link.cut()
    await until(lambda: not a.links() and not b.links())
    await asyncio.sleep(0.1)
    assert a.links() == [], "the dial has ended"
    assert outcomes == [DialSucceeded("memory://b", b.node_id, was_linked=True)]


async def test_link_that_is_given_up_carries_its_sessions_to_their_end(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant in ("DRAIN_S", "IDLE_CHECK_S"):
        monkeypatch.setattr(gradual_end, constant, 0.05)
    a, b = await nodes.node("a"), await nodes.node("b")
    events: list[LinkEvent] = []
    a.set_event_handler(events.append)
    accepted: list[Reader] = []
    b.listen("calls", lambda session: accepted.append(Reader(session)))
    controls: list[Reader] = []
    b.listen("control", lambda session: controls.append(Reader(session)))
    await a.link_to("memory://b")
    control = Reader(a.dial("control", peer=b.node_id, priority=Priority.CONTROL))
    answers = Reader(a.dial("calls", peer=b.node_id))
    await until(lambda: bool(accepted))
    requests = accepted[0]
    error = LinkLost("given up")
    a.drain(b.node_id, error)
    b.drain(a.node_id, error)
    b.drain(a.node_id, error)
    requests.session.write(b"before")
    await until(lambda: answers.data == b"before")
    assert a.links()[0].is_suspect, "whatever arrives on it"
    await until(lambda: not a.links() and not b.links())
    kinds = [type(event) for event in events if not isinstance(event, LinkMeasured | DialSucceeded)]
    assert kinds == [LinkUp, LinkSuspect, LinkDown]
    with pytest.raises(Unreachable):
        a.dial("calls", peer=b.node_id)
    answers.session.write(b"request")
    await until(lambda: requests.data == b"request")
    requests.session.write(b" and after")
    await until(lambda: answers.data == b"before and after")
    assert control.error is None
    await answers.session.close()
    await until(lambda: not a._retired and not b._retired)
    assert control.error is not None


async def test_link_that_is_given_up_ends_after_a_while_although_it_is_used_and_the_peer_does_not_respond(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant in ("DRAIN_S", "IDLE_CHECK_S", "GIVEN_UP_S"):
        monkeypatch.setattr(gradual_end, constant, 0.05)
    a, b = await nodes.node("a"), await nodes.node("b")
    readers: list[Reader] = []
    b.listen("calls", lambda session: readers.append(Reader(session)))
    await a.link_to("memory://b")
    answers = Reader(a.dial("calls", peer=b.node_id))
    a.drain(b.node_id, LinkLost("given up"))
    await until(lambda: answers.error is not None)
    assert answers.error is not None
    assert answers.error.detail == "given up"
    assert not a.links()
    assert isinstance(a._counters, CountersInMemory)
    assert a._counters.values["tunnel_links_retired_in_use"] == 1
    await until(lambda: not b.links())


async def test_single_dial_of_a_linked_node_reports_the_node_under_any_spelling(nodes: Nodes) -> None:
    a, b = await nodes.node("a"), await nodes.node("b")
    outcomes = outcomes_of(a)
    await b.link_to("memory://a")
    await until(lambda: bool(a.links()))
    (link,) = a.links()
    for spelling in ("memory://b", "b"):
        a.dial_once(spelling)
        await until(lambda spelling=spelling: bool(outcomes) and outcomes[-1].address == spelling)  # type: ignore[misc]
    assert outcomes == [DialSucceeded(spelling, b.node_id, was_linked=True) for spelling in ("memory://b", "b")]
    assert [current.link_id for current in a.links()] == [link.link_id]


async def test_single_dial_that_fails_is_reported_once(nodes: Nodes) -> None:
    a = await nodes.node("a")
    outcomes = outcomes_of(a)
    a.dial_once("memory://nowhere")
    a.dial_once("carrier-pigeon://b")
    await asyncio.sleep(0.1)
    assert [(outcome.address, type(outcome)) for outcome in outcomes] == [
        ("carrier-pigeon://b", DialFailed),
        ("memory://nowhere", DialFailed),
    ]


async def test_unexpected_error_of_a_driver_is_an_outcome(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await nodes.node("a")
    outcomes = outcomes_of(a)

    async def dial(_address: str, *, timeout_s: float) -> Any:
        raise ZeroDivisionError("driver bug")

    monkeypatch.setattr(nodes.drivers["a"], "dial", dial)
    a.dial_once("memory://b")
    await until(lambda: bool(outcomes))
    (outcome,) = outcomes
    assert isinstance(outcome, DialFailed)
    assert "driver bug" in outcome.error.detail


async def test_kept_address_whose_node_dials_this_one_reports_that_it_is_linked(nodes: Nodes) -> None:
    a, b = await nodes.node("a"), await nodes.node("b")
    outcomes = outcomes_of(a)
    await b.link_to("memory://a")
    a.keep_linked("memory://b")
    await until(lambda: bool(outcomes))
    assert outcomes == [DialSucceeded("memory://b", b.node_id, was_linked=True)]


async def test_probe_names_the_node_and_leaves_no_link(nodes: Nodes) -> None:
    a, b = await nodes.node("a"), await nodes.node("b")
    events: list[LinkEvent] = []
    a.set_event_handler(events.append)
    b.set_event_handler(events.append)
    found = await a.probe("b")
    assert (found.peer, found.name, found.site) == (b.node_id, "b", "test")
    assert 0.0 <= found.rtt_s < TIMEOUT_S
    await until(lambda: not a._pending and not b._pending)
    assert not events
    assert a.links() == b.links() == []
    assert b._counters.values == {"tunnel_probes": 1}  # type: ignore[attr-defined]
    # A linked node answers, too.
    await a.link_to("memory://b")
    assert (await a.probe("memory://b")).peer == b.node_id
    assert len(a.links()) == 1


async def test_probe_of_this_node_or_of_another_network_or_without_answer_fails(nodes: Nodes) -> None:
    a, _ = await nodes.node("a"), await nodes.node("b", network="another")
    with pytest.raises(Unauthorized, match="itself"):
        await a.probe("memory://a")
    with pytest.raises(Unauthorized, match="network"):
        await a.probe("memory://b")
    with pytest.raises(Unreachable):
        await a.probe("memory://nowhere")
