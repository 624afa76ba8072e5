"""Keepalives over simulated links, on virtual time: who pings, what both ends measure, suspect and dead peers, suspension."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from micro_core.contract import (
    CountersInMemory,
    LinkDown,
    LinkEvent,
    LinkLost,
    LinkMeasured,
    LinkSuspect,
    LinkUp,
    Unreachable,
)
from micro_core.lab.lab_link import LabLink
from micro_core.lab.loop import LabClock, VirtualLoop, run
from micro_core.lab.simulated_links import Conditions, SimulatedLinks
from micro_core.lifecycle.beat import next_beat
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.loop_lag import TICK_S
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.keepalive import Keepalive
from micro_core.tunnel.transport_reports import TransportReports
from micro_core.tunnel.tunnel import TunnelHost

LOG = logging.getLogger("test")


@dataclass
class End:
    """One tunnel, and the events of its links with their times."""

    host: TunnelHost
    counters: CountersInMemory
    events: list[tuple[float, LinkEvent]] = field(default_factory=list)

    def times(self, kind: type[LinkEvent]) -> list[float]:
        return [moment for moment, event in self.events if isinstance(event, kind)]


class Net:
    """Two tunnels, `a` and `b`, of which `a` has dialled `b`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.links = SimulatedLinks(random.Random(1), Conditions(delay_s=0.020))

    async def end(self, name: str) -> End:
        counters = CountersInMemory()
        host = TunnelHost(
            identity=NodeIdentity.from_private_bytes(name.encode().ljust(32, b"\0")),
            name=name,
            site=name,
            network="go.micro",
            token="secret",
            listeners=[(self.links.driver(name), name)],
            environment=Environment(
                node_id=name, clock=LabClock(self.loop), random=random.Random(name), logger=LOG, counters=counters
            ),
            incarnation=1,
        )
        end = End(host, counters)
        host.set_event_handler(lambda event: end.events.append((self.loop.time(), event)))
        await host.connect()
        return end

    async def connect(self) -> tuple[End, End]:
        self.a, self.b = await self.end("a"), await self.end("b")
        await self.a.host.link_to("lab://b")
        await asyncio.sleep(0.2)
        return self.a, self.b

    async def close(self) -> None:
        await self.a.host.close()
        await self.b.host.close()


def simulate(test: Callable[[Net], Awaitable[None]]) -> None:
    async def main() -> None:
        net = Net()
        await test(net)
        await net.close()

    run(main())


def path_rtt_s(end: End) -> float:
    (link,) = end.host.links()
    assert link.path_rtt_s is not None
    return link.path_rtt_s


def test_both_ends_know_the_round_trip_one_round_trip_after_the_handshake() -> None:
    async def test(net: Net) -> None:
        for end in await net.connect():
            (up,), (measured,) = end.times(LinkUp), end.times(LinkMeasured)
            assert measured - up == pytest.approx(0.040, abs=0.001)
            assert path_rtt_s(end) == pytest.approx(0.040, abs=0.001)

    simulate(test)


def calls_of(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[float]:
    """Return the list to which each call of a method adds the time."""
    original, calls = getattr(owner, name), []

    def method(self: Any, *arguments: Any) -> Any:
        calls.append(asyncio.get_running_loop().time())
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, method)
    return calls


def test_ends_of_a_calm_link_take_turns_and_send_nothing_but_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """This bounds what a calm node costs: per link and second one ping, its acknowledgement, and one timer."""
    wakes = calls_of(monkeypatch, Keepalive, "_wake")
    acknowledgements = calls_of(monkeypatch, Keepalive, "ping_acknowledged")

    async def test(net: Net) -> None:
        a, b = await net.connect()
        before = [(link.bytes_in, link.bytes_out) for end in (a, b) for link in end.host.links()]
        wakes.clear()
        acknowledgements.clear()
        await asyncio.sleep(100.0)
        after = [(link.bytes_in, link.bytes_out) for end in (a, b) for link in end.host.links()]
        frame_bytes = 8 + 12
        for (in_before, out_before), (in_after, out_after) in zip(before, after, strict=True):
            assert (in_after - in_before) / frame_bytes == pytest.approx(50, abs=3)
            assert (out_after - out_before) / frame_bytes == pytest.approx(50, abs=3)
        assert len(acknowledgements) == pytest.approx(100, abs=6)
        assert len(wakes) <= 110
        for end in (a, b):
            assert path_rtt_s(end) == pytest.approx(0.040, abs=0.001)

    simulate(test)


@pytest.mark.parametrize("delay_s", [0.0005, 0.020, 0.075, 0.150, 0.400])
def test_turns_last_an_interval_whatever_the_path(monkeypatch: pytest.MonkeyPatch, delay_s: float) -> None:
    pings = calls_of(monkeypatch, Keepalive, "_ping")

    async def test(net: Net) -> None:
        net.links.default_conditions = Conditions(delay_s=delay_s)
        await net.connect()
        await asyncio.sleep(10.0)
        pings.clear()
        await asyncio.sleep(100.0)
        pauses = [after - before for before, after in itertools.pairwise(pings)]
        assert len(pings) == pytest.approx(100, abs=8)
        assert max(pauses) <= 1.3
        assert min(pauses) >= 0.7

    simulate(test)


@pytest.mark.parametrize("older", ["a", "b"])
def test_end_without_acknowledgements_gets_answers(monkeypatch: pytest.MonkeyPatch, older: str) -> None:
    """As an older node, which neither sets nor knows the bits of a token."""
    original = TransportReports.__init__

    def without(self: TransportReports, link: Any) -> None:
        original(self, link)
        if link.source == older:
            self._acknowledgements = None

    monkeypatch.setattr(TransportReports, "__init__", without)

    async def test(net: Net) -> None:
        a, b = await net.connect()
        for _ in range(3):
            await asyncio.sleep(30.0)
            for end in (a, b):
                assert path_rtt_s(end) == pytest.approx(0.040, abs=0.001)
                assert end.times(LinkSuspect) == end.times(LinkDown) == []
        net.links.set("a", "b", Conditions(delay_s=0.200))
        await asyncio.sleep(6.0)
        for end in (a, b):
            assert path_rtt_s(end) == pytest.approx(0.400, abs=0.001)

    simulate(test)


def test_without_acknowledgements_a_calm_link_carries_one_ping_and_one_answer_per_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(LabLink, "watch_acknowledgement")

    async def test(net: Net) -> None:
        a, b = await net.connect()
        before = [(link.bytes_in, link.bytes_out) for end in (a, b) for link in end.host.links()]
        await asyncio.sleep(100.0)
        after = [(link.bytes_in, link.bytes_out) for end in (a, b) for link in end.host.links()]
        frame_bytes = 8 + 12
        for (in_before, out_before), (in_after, out_after) in zip(before, after, strict=True):
            assert (in_after - in_before) / frame_bytes == pytest.approx(100, abs=3)
            assert (out_after - out_before) / frame_bytes == pytest.approx(100, abs=3)
        assert path_rtt_s(b) == pytest.approx(0.040, abs=0.001), "the end that does not ping measures, too"

    simulate(test)


def test_pings_of_all_links_are_sent_at_the_beats_of_the_node_and_cause_no_further_wake_ups() -> None:
    async def test(net: Net) -> None:
        a, _ = await net.connect()
        others = [await net.end(name) for name in ("c", "d")]
        for name in ("c", "d"):
            await asyncio.sleep(0.13)
            await a.host.link_to(f"lab://{name}")
        await asyncio.sleep(3.0)
        sent: list[float] = []
        for link in a.host._links.values():

            def send(token: int, measured_s: float | None, send: Any = link.send_ping) -> None:
                sent.append(net.loop.time())
                send(token, measured_s)

            link.send_ping = send  # type: ignore[method-assign]
        await asyncio.sleep(50.0)
        assert len(sent) == pytest.approx(75, abs=4)
        beats = [(moment - next_beat(0.0, TICK_S, "a")) / TICK_S for moment in sent]
        assert [beat for beat in beats if abs(beat - round(beat)) > 1e-3] == []
        for end in others:
            await end.host.close()

    simulate(test)


@pytest.mark.parametrize("settled_s", [10.0, 10.3, 10.6, 10.9])
def test_jump_of_the_delay_is_known_at_both_ends_within_four_seconds(settled_s: float) -> None:
    async def test(net: Net) -> None:
        ends = await net.connect()
        await asyncio.sleep(settled_s)
        net.links.set("a", "b", Conditions(delay_s=0.200))
        await asyncio.sleep(4.0)
        for end in ends:
            assert path_rtt_s(end) == pytest.approx(0.400, abs=0.001)
            (link,) = end.host.links()
            assert link.queue_delay_s < 0.010, "the jump is not counted as a queue"
        net.links.set("a", "b", Conditions(delay_s=0.020))
        await asyncio.sleep(2.5)
        for end in ends:
            assert path_rtt_s(end) == pytest.approx(0.040, abs=0.001)

    simulate(test)


def test_peer_that_does_not_answer_is_suspect_early_and_dead_within_four_seconds() -> None:
    async def test(net: Net) -> None:
        a, b = await net.connect()
        await asyncio.sleep(10.0)
        cut_at = net.loop.time()
        net.links.cut("a", "b")
        net.links.cut("b", "a")
        await asyncio.sleep(4.0)
        for end in (a, b):
            (suspect,), (down,) = end.times(LinkSuspect), end.times(LinkDown)
            assert suspect - cut_at <= 2.4
            assert 2.0 <= down - cut_at <= 4.0
            assert [event.is_suspect for _, event in end.events if isinstance(event, LinkSuspect)] == [True]

    simulate(test)


def test_suspicion_ends_when_anything_arrives() -> None:
    async def test(net: Net) -> None:
        a, b = await net.connect()
        await asyncio.sleep(10.0)
        net.links.cut("b", "a")
        await asyncio.sleep(1.9)
        assert a.host.links()[0].is_suspect
        assert not b.host.links()[0].is_suspect, "the pings of a arrive"
        net.links.heal("b", "a")
        await asyncio.sleep(0.1)
        assert [event.is_suspect for _, event in a.events if isinstance(event, LinkSuspect)] == [True, False]
        assert not a.host.links()[0].is_suspect
        assert a.times(LinkDown) == []

    simulate(test)


def test_driver_that_sees_no_acknowledgements_leaves_the_suspicion_to_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As over TCP: a ping that is unanswered for 1.25 s makes the link suspect, anything that arrives ends that."""
    monkeypatch.delattr(LabLink, "watch_silence")

    async def test(net: Net) -> None:
        a, b = await net.connect()
        await asyncio.sleep(10.0)
        cut_at = net.loop.time()
        net.links.cut("a", "b")
        net.links.cut("b", "a")
        while not (a.times(LinkSuspect) and b.times(LinkSuspect)):
            await asyncio.sleep(0.01)
            assert a.times(LinkDown) == b.times(LinkDown) == []
        for end in (a, b):
            (suspect,) = end.times(LinkSuspect)
            assert 1.0 <= suspect - cut_at <= 2.4
            assert end.host.links()[0].is_suspect
            assert end.counters.values["tunnel_links_suspect"] == 1
        net.links.heal("a", "b")
        net.links.heal("b", "a")
        await asyncio.sleep(1.5)
        for end in (a, b):
            assert [event.is_suspect for _, event in end.events if isinstance(event, LinkSuspect)] == [True, False]
            assert not end.host.links()[0].is_suspect
            assert end.times(LinkDown) == []

    simulate(test)


@pytest.mark.parametrize("interval_s", [0.05, 0.2])
def test_link_with_unanswered_data_is_suspect_within_400_ms_and_clears_with_the_next_packet(interval_s: float) -> None:
    async def test(net: Net) -> None:
        a, b = await net.connect()
        b.host.listen("calls", lambda session: None)
        session = a.host.dial("calls", peer=b.host.node_id)
        for number in range(200):
            # b sends nothing but acknowledgements and the answers to pings.
            session.write(b"call")
            await asyncio.sleep(interval_s)
            assert not a.times(LinkSuspect), number
        cut_at = net.loop.time()
        net.links.cut("b", "a")
        while net.loop.time() - cut_at < 0.8:
            session.write(b"call")
            await asyncio.sleep(interval_s)
        (suspect,) = a.times(LinkSuspect)
        assert suspect - cut_at <= 0.400 + interval_s
        assert not b.times(LinkSuspect), "data of a arrives"
        healed_at = net.loop.time()
        net.links.heal("b", "a")
        session.write(b"call")
        await asyncio.sleep(1.0)
        _, cleared = a.times(LinkSuspect)
        assert cleared - healed_at <= 0.041
        assert a.counters.values["tunnel_links_suspect"] == 1

    simulate(test)


def test_ping_on_a_calm_link_makes_it_suspect_within_400_ms() -> None:
    async def test(net: Net) -> None:
        a, _ = await net.connect()
        await asyncio.sleep(10.0)
        cut_at = net.loop.time()
        net.links.cut("a", "b")
        net.links.cut("b", "a")
        await asyncio.sleep(1.6)
        (suspect,) = a.times(LinkSuspect)
        assert suspect - cut_at <= 1.1 + 0.4

    simulate(test)


def test_calm_link_is_never_suspect_whatever_the_path() -> None:
    async def test(net: Net) -> None:
        net.links.default_conditions = Conditions(delay_s=0.400, jitter_s=0.200)
        a, b = await net.connect()
        await asyncio.sleep(300.0)
        assert a.times(LinkDown) == b.times(LinkDown) == []
        assert a.times(LinkSuspect) == b.times(LinkSuspect) == []

    simulate(test)


def test_node_that_was_suspended_drops_its_links_before_it_processes_old_data() -> None:
    async def test(net: Net) -> None:
        a, b = await net.connect()
        received: list[str] = []
        b.host.listen("calls", lambda session: received.append(session.peer))
        incarnations: list[int] = []
        b.host.set_resumed_handler(incarnations.append)
        a.host.keep_linked("lab://b")
        await asyncio.sleep(10.0)
        a.host.dial("calls", peer=b.host.node_id)
        await asyncio.sleep(0.001)
        # The data is on its way when b is stopped; time goes on for 30 s before b runs again.
        net.loop._now += 30.0
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.01)
        assert received == [], "what arrived before the suspension is not processed"
        assert len(incarnations) == 1
        assert incarnations[0] > 1
        down = next(event for _, event in b.events if isinstance(event, LinkDown))
        assert isinstance(down.error, LinkLost)
        assert "was suspended for 30 s" in str(down.error)
        await asyncio.sleep(5.0)
        assert [link.peer for link in b.host.links()] == [a.host.node_id]
        assert b.counters.values["tunnel_suspensions"] == 1

    simulate(test)


def test_call_is_not_sent_on_the_links_of_before_a_suspension() -> None:
    async def test(net: Net) -> None:
        a, b = await net.connect()
        b.host.listen("calls", lambda session: None)
        session = a.host.dial("calls", peer=b.host.node_id)
        await asyncio.sleep(1.0)
        net.loop._now += 30.0
        session.write(b"outdated")
        assert a.host.links() == []
        assert len(a.times(LinkDown)) == 1

    simulate(test)


def test_session_is_not_opened_on_the_links_of_before_a_suspension() -> None:
    async def test(net: Net) -> None:
        a, b = await net.connect()
        b.host.listen("calls", lambda session: None)
        net.loop._now += 30.0
        with pytest.raises(Unreachable):
            a.host.dial("calls", peer=b.host.node_id)
        assert a.host.links() == []

    simulate(test)
