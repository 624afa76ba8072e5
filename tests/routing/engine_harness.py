"""A routing engine under manual control, with its table, its clock and the messages that it sent."""

from __future__ import annotations

import random

from micro_core.contract.table import Route, RouteKey
from micro_core.routing import messages
from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    Ack,
    Advert,
    Announce,
    Count,
    DeleteRoute,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    MessageReceived,
    NeighbourUp,
    PutRoute,
    RoutingEvent,
    RoutingMessage,
    SendMessage,
    Withdraw,
)
from micro_core.routing.options import EngineOptions

ME, LEFT, RIGHT, FAR, OTHER = ("m" * 32, "l" * 32, "r" * 32, "f" * 32, "o" * 32)
COST_US = 1_000


class EngineHarness:
    """An engine whose neighbours acknowledge everything that it sent before the test."""

    def __init__(self, *neighbours: str, seed: int = 1) -> None:
        self.engine = Engine(
            router=ME, network="n", site="s", incarnation=7, random=random.Random(seed), options=EngineOptions()
        )
        self.now = 100.0
        self.table: dict[RouteKey, Route] = {}
        self.counted: list[str] = []
        self.sent: list[tuple[str, RoutingMessage]] = []
        self.numbers: dict[str, int] = {}
        for peer in neighbours:
            self.handle(NeighbourUp(peer, COST_US))
            self.receive_advert(peer, begins=True, ends=True)
        self.acknowledge()
        self.sent.clear()

    def handle(self, event: RoutingEvent) -> list[Effect]:
        return self._apply(self.engine.handle(event, self.now))

    def receive_advert(
        self, peer: str, *entries: Announce | Withdraw, begins: bool = False, ends: bool = False, number: int = 0
    ) -> list[Effect]:
        """Process the next advert of `peer`, or the advert with the given number."""
        if not number:
            number = self.numbers[peer] = self.numbers.get(peer, 0) + 1
        return self.receive(peer, Advert(number=number, entries=entries, begins=begins, ends=ends))

    def receive(self, peer: str, message: RoutingMessage) -> list[Effect]:
        return self.handle(MessageReceived(peer, message))

    def up(self, service: str = "greeter", instance: str = "i", *, version: str = "", address: str = "") -> None:
        self.handle(
            InstanceUp(service, instance, LocalInstance(address=address or f"tcp://{instance}", version=version))
        )

    def down(self, service: str = "greeter", instance: str = "i") -> None:
        self.handle(InstanceDown(service, instance))

    def run(self, seconds: float, *, acknowledging: bool = True) -> None:
        end = self.now + seconds
        while self.engine.wake_at is not None and self.engine.wake_at <= end:
            self.now = max(self.now, self.engine.wake_at)
            self._apply(self.engine.wake(self.now))
            if acknowledging:
                self.acknowledge()
        self.now = end

    def acknowledge(self) -> None:
        for peer, message in [*self.sent]:
            if isinstance(message, Advert):
                self.receive(peer, Ack(message.number))

    def take_sent(self) -> list[tuple[str, RoutingMessage]]:
        sent, self.sent = self.sent, []
        return sent

    def take_entries(self, peer: str) -> list[Announce | Withdraw]:
        sent = self.take_sent()
        return [e for to, message in sent if to == peer and isinstance(message, Advert) for e in message.entries]

    def gateways(self, service: str = "greeter") -> list[str]:
        return sorted(route.gateway for route in self.table.values() if route.service == service)

    def _apply(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            match effect:
                case PutRoute(route):
                    self.table[route.key] = route
                case DeleteRoute(key):
                    del self.table[key]
                case SendMessage(peer, message):
                    assert messages.decode(messages.encode(message)) == message
                    self.sent.append((peer, message))
                case Count(name, _):
                    self.counted.append(name)
        return effects


def announce(
    *path: str, sequence: int = 1, incarnation: int = 1, service: str = "greeter", metric_us: int = 0
) -> Announce:
    return Announce(
        origin=path[0],
        incarnation=incarnation,
        sequence=sequence,
        service=service,
        versions=(),
        capacity=0,
        site="s",
        network="n",
        metric_us=metric_us,
        path=path,
    )


def withdraw(
    origin: str, *, sequence: int = 1, incarnation: int = 1, is_final: bool = False, service: str = "greeter"
) -> Withdraw:
    return Withdraw(origin=origin, incarnation=incarnation, sequence=sequence, service=service, is_final=is_final)
