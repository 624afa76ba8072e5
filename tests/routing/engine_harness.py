"""A routing engine under manual control, with its table, its clock and the messages that it sent."""

from __future__ import annotations

import random

from micro_core.contract.table import Offer
from micro_core.routing import messages
from micro_core.routing.engine import Engine
from micro_core.routing.entries import (
    CHECKSUM_MODULUS,
    Entry,
    OfferChanges,
    OfferEntry,
    OriginAnnounce,
    OriginWithdraw,
    RemovedOffer,
    list_checksum,
)
from micro_core.routing.events import (
    Ack,
    Advert,
    Count,
    Digest,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    MessageReceived,
    NeighbourUp,
    RoutingEvent,
    RoutingMessage,
    SendMessage,
    SeqnoRequest,
    SeqnoRequests,
)
from micro_core.routing.options import EngineOptions
from tests.routing.table_model import TableModel

ME, LEFT, RIGHT, FAR, OTHER = ("m" * 32, "l" * 32, "r" * 32, "f" * 32, "o" * 32)
COST_US = 1_000
MAX_TURNS = 1_000
"""Maximum number of times that an engine wakes at one moment."""


class EngineHarness:
    """An engine whose neighbours acknowledge everything that it sent before the test."""

    def __init__(self, *neighbours: str, seed: int = 1, options: EngineOptions | None = None) -> None:
        self.engine = Engine(
            router=ME, network="n", site="s", incarnation=7, random=random.Random(seed), options=options
        )
        self.now = 100.0
        self.table = TableModel()
        self.counted: list[str] = []
        self.sent: list[tuple[str, RoutingMessage]] = []
        self.numbers: dict[str, int] = {}
        for peer in neighbours:
            self.link(peer)
        self.acknowledge()
        self.sent.clear()

    def link(self, peer: str, cost_us: int = COST_US) -> None:
        self.handle(NeighbourUp(peer, cost_us))
        self.receive_advert(peer, begins=True, ends=True)

    def handle(self, event: RoutingEvent) -> list[Effect]:
        return self._apply(self.engine.handle(event, self.now))

    def receive_advert(
        self, peer: str, *entries: Entry, begins: bool = False, ends: bool = False, number: int = 0
    ) -> list[Effect]:
        """Process the next advert of `peer`, or the advert with the given number."""
        if not number:
            number = self.numbers[peer] = self.numbers.get(peer, 0) + 1
        return self.receive(peer, Advert(number=number, entries=entries, begins=begins, ends=ends))

    def receive(self, peer: str, message: RoutingMessage) -> list[Effect]:
        return self.handle(MessageReceived(peer, message))

    def learn(
        self,
        *path: str,
        metric_us: int = 0,
        sequence: int = 1,
        incarnation: int = 1,
        services: tuple[str, ...] = ("greeter",),
    ) -> list[Effect]:
        """Receive a route to the origin `path[0]` from the neighbour `path[-1]`, with its whole list of services."""
        return self.receive_advert(
            path[-1],
            announce(*path, metric_us=metric_us, sequence=sequence, incarnation=incarnation),
            offers(path[0], *services, incarnation=incarnation),
        )

    def up(
        self,
        service: str = "greeter",
        instance: str = "i",
        *,
        version: str = "",
        address: str = "",
        load_us: int = 0,
    ) -> None:
        local = LocalInstance(address=address or f"tcp://{instance}", version=version, load_us=load_us)
        self.handle(InstanceUp(service, instance, local))

    def down(self, service: str = "greeter", instance: str = "i") -> None:
        self.handle(InstanceDown(service, instance))

    def run(self, seconds: float, *, acknowledging: bool = True) -> None:
        end, turns = self.now + seconds, 0
        while self.engine.wake_at is not None and self.engine.wake_at <= end:
            turns = turns + 1 if self.engine.wake_at <= self.now else 0
            assert turns < MAX_TURNS, "the engine wakes again and again at the same moment"
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

    def sent_to(self, peer: str) -> list[Entry]:
        return [e for to, message in self.sent if to == peer and isinstance(message, Advert) for e in message.entries]

    def take_entries(self, peer: str) -> list[Entry]:
        found = self.sent_to(peer)
        self.sent = []
        return found

    def take_announced(self, peer: str) -> list[OriginAnnounce]:
        return [one for one in self.take_entries(peer) if isinstance(one, OriginAnnounce)]

    def take_requests(self) -> list[tuple[str, SeqnoRequest]]:
        sent = self.take_sent()
        return [(peer, one) for peer, m in sent if isinstance(m, SeqnoRequests) for one in m.requests]

    def gateways(self, service: str = "greeter") -> list[str]:
        return sorted(route.gateway for route in self.table.routes_to(service))

    def services(self) -> set[str]:
        return self.table.services()

    def _apply(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if self.table.apply(effect):
                continue
            match effect:
                case SendMessage(peer, message):
                    assert messages.decode(messages.encode(message)) == message
                    self.sent.append((peer, message))
                case Count(name, _):
                    self.counted.append(name)
        return effects


def announce(
    *path: str,
    sequence: int = 1,
    incarnation: int = 1,
    metric_us: int = 0,
    site: str = "s",
    is_partial: bool = False,
) -> OriginAnnounce:
    return OriginAnnounce(
        origin=path[0],
        seqno=(incarnation, sequence),
        site=site,
        network="n",
        metric_us=metric_us,
        path=path,
        is_partial=is_partial,
    )


def withdraw(
    origin: str, *, sequence: int = 1, incarnation: int = 1, is_final: bool = False, version: int = 0
) -> OriginWithdraw:
    return OriginWithdraw(origin, incarnation, sequence, is_final, version)


def offers(
    origin: str,
    *services: str,
    incarnation: int = 1,
    base: int = 0,
    removed: tuple[str, ...] = (),
    version: int = 0,
    is_end: bool = True,
) -> OfferChanges:
    """Changes of a list. Each service has a version of its own, `base` + 1 and so on."""
    changed = tuple(OfferEntry(Offer(service), base + 1 + index) for index, service in enumerate(services))
    last = version or base + len(services) + len(removed)
    gone = tuple(RemovedOffer(service, last) for service in removed)
    return OfferChanges(origin, incarnation, base, last, changed, gone, is_end)


def names_of(entries: list[Entry]) -> list[str]:
    """Return the services that the entries add or change, and those that they remove with a minus sign."""
    found = []
    for entry in entries:
        if isinstance(entry, OfferChanges):
            found += [one.offer.service for one in entry.changed]
            found += [f"-{one.service}" for one in entry.removed]
    return found


def digest_of(number: int, *entries: Entry) -> Digest:
    """Return the digest of a neighbour that has sent these announcements and lists, `number` adverts in total."""
    checksum = count = 0
    for entry in entries:
        if isinstance(entry, OriginAnnounce):
            count += 1
            checksum += entry.checksum()
        elif isinstance(entry, OfferChanges):
            checksum += list_checksum(entry.origin, entry.incarnation, entry.version)
    return Digest(number, count, checksum % CHECKSUM_MODULUS)
