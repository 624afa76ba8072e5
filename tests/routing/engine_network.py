"""Several routing engines on virtual time, joined by links with a delay that deliver in order and may break."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

from micro_core.contract.table import Route
from micro_core.routing import messages
from micro_core.routing.engine import Engine
from micro_core.routing.events import (
    Advert,
    Count,
    DeleteOriginRoute,
    Effect,
    InstanceDown,
    InstanceUp,
    LocalInstance,
    MessageReceived,
    NeighbourCost,
    NeighbourDown,
    NeighbourUp,
    PutOriginRoute,
    RoutingMessage,
    SendMessage,
    Solicit,
)
from micro_core.routing.options import EngineOptions
from tests.routing.table_model import TableModel

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
COST_US = 1_000


def node_id(number: int) -> str:
    return ALPHABET[number] * 32


class EngineNetwork:
    """Engines with their tables and links, and a clock."""

    def __init__(self, size: int, seed: int = 1, options: EngineOptions | None = None) -> None:
        self.random = random.Random(seed)
        self.options = options
        self.max_delay_s = 0.05
        self.is_checking_loops = False
        """Check after every step that there are no loops."""
        self.now = 0.0
        self.engines: dict[str, Engine] = {}
        self.tables: dict[str, TableModel] = {}
        self.links: dict[frozenset[str], int] = {}
        self.counted: Counter[str] = Counter()
        self.sent: list[tuple[str, str, RoutingMessage]] = []
        self.drop: list[type] = []
        self._queue: list[tuple[float, int, str, str, bytes, int]] = []
        self._order = itertools.count()
        self._last: dict[tuple[str, str], float] = {}
        self._generation = itertools.count(1)
        self._incarnation = itertools.count(1)
        for number in range(size):
            self.boot(node_id(number))

    def boot(self, name: str) -> None:
        self.engines[name] = Engine(
            router=name,
            network="go.micro",
            site=name[:4],
            incarnation=next(self._incarnation),
            random=random.Random(self.random.random()),
            options=self.options,
        )
        self.tables[name] = TableModel()

    # ---------------------------------------------------------------- events

    def link(self, a: str, b: str, cost_us: int = COST_US) -> None:
        self.links[frozenset((a, b))] = next(self._generation)
        for node, other in ((a, b), (b, a)):
            self._do(node, self.engines[node].handle(NeighbourUp(other, cost_us), self.now))

    def cost(self, a: str, b: str, cost_us: int) -> None:
        """Change the cost of the link at `a`. It must be measured twice."""
        for _ in range(2):
            self._do(a, self.engines[a].handle(NeighbourCost(b, cost_us), self.now))

    def move(self, a: str, b: str, *, forgetful: str = "") -> None:
        """Replace the link: both sides send their full table, and messages in flight on the old link are lost.

        The side named by `forgetful` has noticed the loss of the old link before.
        """
        self.links[frozenset((a, b))] = next(self._generation)
        for node, other in ((a, b), (b, a)):
            if node == forgetful:
                self._do(node, self.engines[node].handle(NeighbourDown(other), self.now))
                self._do(node, self.engines[node].handle(NeighbourUp(other, COST_US), self.now))
            else:
                self._do(node, self.engines[node].handle(MessageReceived(other, Solicit()), self.now))

    def cut(self, a: str, b: str) -> None:
        if self.links.pop(frozenset((a, b)), None) is None:
            return
        for node, other in ((a, b), (b, a)):
            self._do(node, self.engines[node].handle(NeighbourDown(other), self.now))

    def up(self, name: str, service: str, instance: str = "i", address: str = "") -> None:
        local = LocalInstance(address=address or f"tcp://{name[:4]}/{instance}")
        self._do(name, self.engines[name].handle(InstanceUp(service, f"{service}-{instance}", local), self.now))

    def down(self, name: str, service: str, instance: str = "i") -> None:
        self._do(name, self.engines[name].handle(InstanceDown(service, f"{service}-{instance}"), self.now))

    def restart(self, name: str) -> None:
        neighbours = [next(iter(pair - {name})) for pair in self.links if name in pair]
        for other in neighbours:
            self.cut(name, other)
        self.boot(name)
        for other in neighbours:
            self.link(name, other)

    # ------------------------------------------------------------------------ time

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            wakes = [(e.wake_at, name) for name, e in self.engines.items() if e.wake_at is not None]
            wake_at, waking = min(wakes, default=(float("inf"), ""))
            arrival = self._queue[0][0] if self._queue else float("inf")
            if min(wake_at, arrival) > end:
                self.now = end
                return
            if arrival <= wake_at:
                self.now = max(self.now, arrival)
                _, _, sender, to, payload, generation = heapq.heappop(self._queue)
                if self.links.get(frozenset((sender, to))) == generation:
                    event = MessageReceived(sender, messages.decode(payload))
                    self._do(to, self.engines[to].handle(event, self.now))
            else:
                self.now = max(self.now, wake_at)
                self._do(waking, self.engines[waking].wake(self.now))

    def _do(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            if self.tables[name].apply(effect):
                continue
            match effect:
                case Count(what, amount):
                    self.counted[what] += amount
                case SendMessage(peer, message):
                    self._send(name, peer, message)
        if self.is_checking_loops and any(type(one) in (PutOriginRoute, DeleteOriginRoute) for one in effects):
            self.check_loops()

    def _send(self, name: str, peer: str, message: RoutingMessage) -> None:
        generation = self.links.get(frozenset((name, peer)))
        if generation is None:
            return
        self.sent.append((name, peer, message))
        if type(message) in self.drop:
            self.drop.remove(type(message))
            return
        when = max(self.now + self.random.uniform(0.001, self.max_delay_s), self._last.get((name, peer), 0.0))
        self._last[name, peer] = when
        heapq.heappush(self._queue, (when, next(self._order), name, peer, messages.encode(message), generation))

    # ------------------------------------------------------------------ queries

    def routes(self, name: str, service: str) -> list[Route]:
        return self.tables[name].routes_to(service)

    def adverts(self, since: int = 0) -> list[Advert]:
        return [message for _, _, message in self.sent[since:] if isinstance(message, Advert) and message.entries]

    def connected(self, name: str) -> set[str]:
        reached, frontier = {name}, [name]
        while frontier:
            node = frontier.pop()
            for pair in self.links:
                if node in pair:
                    (other,) = pair - {node}
                    if other not in reached:
                        reached.add(other)
                        frontier.append(other)
        return reached

    def check_tables(self) -> None:
        """Check that all tables are correct. To be called when no changes are pending."""
        offered = {
            (name, service): bool(own.instances)
            for name, engine in self.engines.items()
            for service, own in engine._origin.services.items()
        }
        for name in self.engines:
            reachable = self.connected(name)
            expected = {
                (origin, service)
                for (origin, service), is_running in offered.items()
                if is_running and origin in reachable
            }
            known = {(route.router, route.service) for route in self.tables[name].routes()}
            assert known == expected, f"wrong or missing routes at {name[:4]}: {known ^ expected}"
            for origin, service in expected:
                self.follow(name, origin, service)

    def check_loops(self) -> None:
        """Check that calls cannot go round in circles, whichever of the installed routes each router uses."""
        hops: dict[str, dict[str, set[str]]] = {}
        for name, table in self.tables.items():
            for key in table.origins:
                if frozenset((name, key.gateway)) in self.links:
                    hops.setdefault(key.origin, {}).setdefault(name, set()).add(key.gateway)
        for origin, edges in hops.items():
            state: dict[str, int] = {}

            def visit(
                node: str, origin: str = origin, edges: dict[str, set[str]] = edges, state: dict[str, int] = state
            ) -> None:
                state[node] = 1
                for after in sorted(edges.get(node, ())):
                    assert state.get(after) != 1, f"loop towards {origin[:2]} at {node[:2]} and {after[:2]}"
                    if after not in state:
                        visit(after)
                state[node] = 2

            for node in sorted(edges):
                if node not in state:
                    visit(node)

    def follow(self, name: str, origin: str, service: str) -> int:
        """Follow the best route of each node to the origin. Returns the metric of the first one."""
        node, passed = name, [name]
        while node != origin:
            best = next(route for route in self.routes(node, service) if route.router == origin)
            assert frozenset((node, best.gateway)) in self.links, "route over a closed link"
            node = best.gateway
            assert node not in passed, f"loop: {passed}"
            passed.append(node)
        routes = [route for route in self.routes(name, service) if route.router == origin]
        return routes[0].metric


def line(size: int) -> tuple[EngineNetwork, list[str]]:
    net = EngineNetwork(size)
    names = [node_id(number) for number in range(size)]
    for a, b in itertools.pairwise(names):
        net.link(a, b)
    net.run(2)
    return net, names
