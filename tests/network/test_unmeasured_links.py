"""A link carries routes only after its first measurement. Adverts with a tunnel and a router of the test, on virtual time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from micro_core.contract import (
    CountersInMemory,
    LinkDown,
    LinkInfo,
    LinkLost,
    LinkMeasured,
    LinkMoved,
    LinkSuspect,
    LinkUp,
)
from micro_core.contract.errors import Malformed, MicroError
from micro_core.lab.loop import LabClock, run
from micro_core.lifecycle.environment import Environment
from micro_core.network.adverts import MAX_HELD_MESSAGES, MAX_WAIT_S, Adverts
from micro_core.network.message_session import frame_message
from micro_core.routing.metric import UNMEASURED_RTT_S

PEER = "peer"
UNMEASURED = LinkInfo(
    peer=PEER,
    peer_name="us-1",
    site="us",
    link_id="1",
    generation=1,
    driver="memory",
    local="",
    remote="",
    dialed=True,
    rtt_s=None,
    rtt_variance_s=None,
    loss=0.0,
    queue_delay_s=0.0,
    bytes_in=0,
    bytes_out=0,
    sessions=0,
    up_since=0.0,
)
MEASURED = replace(UNMEASURED, rtt_s=0.080, path_rtt_s=0.080)


class FakeSession:
    peer = PEER
    receiver: Any = None

    def start(self, receiver: Any) -> None:
        self.receiver = receiver

    def write(self, data: bytes) -> None:
        pass

    async def close(self) -> None:
        pass


class FakeListener:
    def close(self) -> None:
        pass


@dataclass
class FakeTunnel:
    current: dict[str, LinkInfo] = field(default_factory=dict)
    unlinked: list[str] = field(default_factory=list)
    accept: Any = None

    def links(self) -> list[LinkInfo]:
        return [*self.current.values()]

    def link(self, peer: str) -> LinkInfo | None:
        return self.current.get(peer)

    def dial(self, channel: str, *, peer: str, priority: Any) -> FakeSession:
        return FakeSession()

    def listen(self, channel: str, accept: Any) -> Any:
        self.accept = accept
        return FakeListener()

    async def unlink(self, peer: str, error: MicroError | None = None) -> None:
        self.unlinked.append(peer)


@dataclass
class FakeRouter:
    """Records what a router is called with."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def link_opened(self, peer: str) -> None:
        self.calls.append(("opened",))

    def neighbour_up(self, peer: str, cost_us: int, *, name: str, site: str) -> None:
        self.calls.append(("up", cost_us))

    def neighbour_cost(self, peer: str, cost_us: int) -> None:
        self.calls.append(("cost", cost_us))

    def neighbour_costs(self, costs_us: Mapping[str, int]) -> None:
        self.calls.extend(("cost", cost_us) for cost_us in costs_us.values())

    def neighbour_suspect(self, peer: str, *, is_suspect: bool, is_closing: bool = False) -> None:
        self.calls.append(("closing",) if is_closing else ("suspect", is_suspect))

    def neighbour_down(self, peer: str, *, is_graceful: bool = False) -> None:
        self.calls.append(("down gracefully",) if is_graceful else ("down",))

    def receive(self, peer: str, payload: bytes) -> None:
        if payload == b"malformed":
            raise Malformed("invalid")
        self.calls.append(("received", payload))

    def send_full_table(self, peer: str) -> None:
        self.calls.append(("full table",))


class Setting:
    """Adverts that are started, with a link that is up and not measured."""

    def __init__(self) -> None:
        self.tunnel, self.router, self.counters = FakeTunnel(), FakeRouter(), CountersInMemory()
        environment = Environment(
            node_id="own",
            clock=LabClock(asyncio.get_running_loop()),
            random=random.Random(1),
            logger=logging.getLogger("test"),
            counters=self.counters,
        )
        tunnel: Any = self.tunnel
        router: Any = self.router
        self.adverts = Adverts(tunnel=tunnel, router=router, environment=environment)
        self.adverts.start()
        self.tunnel.current[PEER] = UNMEASURED
        self.adverts.handle_link_event(LinkUp(UNMEASURED))

    def measure(self, link: LinkInfo = MEASURED) -> None:
        self.tunnel.current[PEER] = link
        self.adverts.handle_link_event(LinkMeasured(link))

    def receive(self, *payloads: bytes) -> None:
        session = FakeSession()
        self.tunnel.accept(session)
        for payload in payloads:
            session.receiver.data_received(frame_message(payload))


def simulate(test: Callable[[Setting], Awaitable[None]]) -> None:
    async def main() -> None:
        setting = Setting()
        await test(setting)
        await setting.adverts.close()

    run(main())


def test_router_learns_of_a_link_with_its_first_measurement() -> None:
    async def test(setting: Setting) -> None:
        await asyncio.sleep(1.5)
        assert setting.router.calls == [("opened",)]
        assert setting.adverts.link_cost_us(PEER) is None
        setting.measure()
        assert setting.router.calls == [("opened",), ("up", 80_000)]
        assert setting.adverts.link_cost_us(PEER) == 80_000
        await asyncio.sleep(MAX_WAIT_S)
        assert [call for call in setting.router.calls if call[0] == "up"] == [("up", 80_000)]

    simulate(test)


def test_measured_link_carries_routes_immediately() -> None:
    async def test(setting: Setting) -> None:
        setting.router.calls.clear()
        setting.adverts.handle_link_event(LinkUp(replace(MEASURED, peer="other")))
        assert setting.router.calls == [("up", 80_000)]

    simulate(test)


def test_link_that_cannot_be_measured_gets_a_pessimistic_cost() -> None:
    async def test(setting: Setting) -> None:
        await asyncio.sleep(MAX_WAIT_S + 0.1)
        assert setting.router.calls == [("opened",), ("up", round(UNMEASURED_RTT_S * 1e6))]
        assert setting.counters.values["network_links_unmeasured"] == 1
        setting.measure()
        assert setting.router.calls[-1] == ("cost", 80_000)

    simulate(test)


def test_messages_of_a_peer_that_measured_earlier_are_processed_in_order_after_the_measurement() -> None:
    async def test(setting: Setting) -> None:
        setting.receive(b"one", b"two")
        assert setting.router.calls == [("opened",)]
        setting.measure()
        setting.receive(b"three")
        assert setting.router.calls[1:] == [
            ("up", 80_000),
            ("received", b"one"),
            ("received", b"two"),
            ("received", b"three"),
        ]

    simulate(test)


def test_number_of_held_messages_is_limited() -> None:
    async def test(setting: Setting) -> None:
        setting.receive(*[b"x"] * MAX_HELD_MESSAGES)
        assert setting.router.calls == [("opened",)]
        setting.receive(b"last")
        assert setting.router.calls[1] == ("up", round(UNMEASURED_RTT_S * 1e6))
        assert len(setting.router.calls) == 2 + MAX_HELD_MESSAGES + 1

    simulate(test)


def test_malformed_held_message_closes_the_link() -> None:
    async def test(setting: Setting) -> None:
        setting.receive(b"malformed", b"two")
        setting.measure()
        await asyncio.sleep(0.1)
        assert setting.tunnel.unlinked == [PEER]
        assert ("received", b"two") not in setting.router.calls

    simulate(test)


def test_link_that_is_given_up_is_reported_to_the_router() -> None:
    async def test(setting: Setting) -> None:
        setting.measure()
        setting.adverts.handle_link_event(LinkSuspect(replace(MEASURED, is_suspect=True, is_closing=True), True))
        assert setting.router.calls[-1] == ("closing",)

    simulate(test)


def test_end_of_a_link_that_was_given_up_does_not_count_as_loss() -> None:
    async def test(setting: Setting) -> None:
        setting.measure()
        setting.adverts.handle_link_event(LinkDown(replace(MEASURED, is_closing=True), LinkLost("given up")))
        assert setting.router.calls[-1] == ("down gracefully",)

    simulate(test)


def test_link_that_ends_before_its_measurement_is_forgotten() -> None:
    async def test(setting: Setting) -> None:
        setting.receive(b"one")
        del setting.tunnel.current[PEER]
        setting.adverts.handle_link_event(LinkDown(UNMEASURED, LinkLost("gone")))
        setting.adverts.handle_link_event(LinkMeasured(MEASURED))
        await asyncio.sleep(MAX_WAIT_S + 0.1)
        assert setting.router.calls == [("opened",), ("down",)]

    simulate(test)


def test_unmeasured_link_that_moves_still_waits() -> None:
    async def test(setting: Setting) -> None:
        setting.adverts.handle_link_event(LinkMoved(replace(UNMEASURED, generation=2)))
        await asyncio.sleep(0.5)
        assert "up" not in [call[0] for call in setting.router.calls]
        setting.measure()
        assert setting.router.calls[-1] == ("up", 80_000)

    simulate(test)


def test_cost_is_read_every_second() -> None:
    async def test(setting: Setting) -> None:
        setting.measure()
        setting.tunnel.current[PEER] = replace(MEASURED, path_rtt_s=0.400)
        await asyncio.sleep(1.6)
        assert setting.router.calls[-1] == ("cost", 400_000)

    simulate(test)
