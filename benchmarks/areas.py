"""Compare a flat network with one that is divided into areas, in an abstract model of up to 10,000 nodes.

The result is the table of docs/design/011-areas.md. No router runs here: the model computes shortest paths, the entries
that a node has to keep, and the entries of adverts that an event causes if each router passes a change on to all neighbours
except its next hop.

Nodes lie in areas, areas on a map. A node has links to near nodes of its own area; the border nodes of an area also have
links to border nodes of the nearest areas and of one far area.

    python benchmarks/areas.py [--nodes 10000] [--areas 100] [--borders 3] [--seed 1]
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

LINKS_INSIDE = 3
"""Links that each node opens to nodes of its own area."""

NEAR_AREAS = 3
"""Nearest areas to which each border node has a link. It has one more link to a random area."""

SERVICES_PER_NODE = 2

ROUTE_BYTES, OFFER_BYTES = 850, 350
"""Memory of an origin route per neighbour, and of an offer: fits the 1,000 nodes of `routing_scale.py`, which need 3.9 GiB."""

ENTRY_US = 30
"""CPU time to receive an entry and pass it on, in microseconds: that of the start of 200 nodes in `routing_scale.py`."""

HOP_US, KILOMETRE_US = 500, 10
"""Round trip of a hop: a constant part, and 10 µs for each kilometre of the map."""

MAP_KM, AREA_KM = 10_000, 300

Graph = list[list[tuple[int, int]]]
"""For each node, its neighbours and the costs of the links in microseconds."""


@dataclass(frozen=True)
class World:
    """A network of areas. Nodes have numbers; those of area `a` are `members[a]`."""

    graph: Graph
    area_of: list[int]
    members: list[list[int]]
    borders: list[list[int]]

    @property
    def links(self) -> int:
        """Number of links."""
        return sum(map(len, self.graph)) // 2

    def links_inside(self, area: int) -> int:
        """Return the number of links between nodes of an area."""
        return sum(self.area_of[far] == area for near in self.members[area] for far, _ in self.graph[near]) // 2


def make_world(nodes: int, areas: int, borders: int, source: random.Random) -> World:
    """Place the areas on the map, the nodes in the areas, and the links."""
    centres = [(source.uniform(0, MAP_KM), source.uniform(0, MAP_KM)) for _ in range(areas)]
    area_of = [number * areas // nodes for number in range(nodes)]
    positions = [(source.gauss(centres[area][0], AREA_KM), source.gauss(centres[area][1], AREA_KM)) for area in area_of]
    members: list[list[int]] = [[] for _ in range(areas)]
    for number, area in enumerate(area_of):
        members[area].append(number)
    edges: dict[tuple[int, int], int] = {}

    def link(one: int, other: int) -> None:
        if one != other:
            cost = HOP_US + KILOMETRE_US * math.dist(positions[one], positions[other])
            edges[min(one, other), max(one, other)] = round(cost)

    for inside in members:
        for index, node in enumerate(inside[1:], 1):
            earlier = source.sample(inside[:index], min(index, 3 * LINKS_INSIDE))
            for far in sorted(earlier, key=lambda far: math.dist(positions[node], positions[far]))[:LINKS_INSIDE]:
                link(node, far)
    border_nodes = [source.sample(inside, min(borders, len(inside))) for inside in members]
    for area, nodes_of_area in enumerate(border_nodes):
        others = sorted(set(range(areas)) - {area}, key=lambda other: math.dist(centres[area], centres[other]))
        for node in nodes_of_area:
            for other in [*others[:NEAR_AREAS], *source.sample(others, min(1, len(others)))]:
                link(node, source.choice(border_nodes[other]))
    graph: Graph = [[] for _ in range(nodes)]
    for (one, other), cost in edges.items():
        graph[one].append((other, cost))
        graph[other].append((one, cost))
    return World(graph, area_of, members, border_nodes)


def distances(graph: Graph, start: int, may_pass: Callable[[int], bool] = lambda _: True) -> dict[int, int]:
    """Return the cost of the cheapest path from `start` to each node (Dijkstra's algorithm)."""
    found: dict[int, int] = {}
    queue = [(0, start)]
    while queue:
        cost, node = heapq.heappop(queue)
        if node in found:
            continue
        found[node] = cost
        for far, link_cost in graph[node]:
            if far not in found and may_pass(far):
                heapq.heappush(queue, (cost + link_cost, far))
    return found


def stretches(world: World, source: random.Random, samples: int) -> tuple[list[float], list[float]]:
    """Return how much longer than the shortest paths those over border nodes are, for random pairs of nodes.

    First with summaries at every node (the best border node of the target's area is chosen), then with summaries at
    border nodes only (calls first go to the nearest border node of the own area).
    """
    chosen, default = [], []
    for _ in range(samples):
        target = source.randrange(len(world.graph))
        area = world.area_of[target]
        shortest = distances(world.graph, target)
        inside = distances(world.graph, target, lambda node, area=area: world.area_of[node] == area)  # type: ignore[misc]
        from_border = {border: distances(world.graph, border) for border in world.borders[area]}
        for start in source.sample(range(len(world.graph)), 50):
            if world.area_of[start] == area:
                continue
            chosen.append(_over(from_border, inside, start) / shortest[start])
            own = distances(
                world.graph,
                start,
                lambda node, own=world.area_of[start]: world.area_of[node] == own,  # type: ignore[misc]
            )
            first = min(world.borders[world.area_of[start]], key=lambda border: own.get(border, 2**60))
            default.append((own[first] + _over(from_border, inside, first)) / shortest[start])
    return chosen, default


def _over(from_border: dict[int, dict[int, int]], inside: dict[int, int], start: int) -> int:
    border = min(from_border, key=lambda border: from_border[border][start])
    return from_border[border][start] + inside[border]


def flood(links: int, nodes: int) -> int:
    """Return the entries that are sent for one change: each router passes it to all neighbours except its next hop."""
    return 2 * links - (nodes - 1)


def report(world: World, source: random.Random, samples: int) -> None:
    """Print the table."""
    nodes, areas = len(world.graph), len(world.members)
    degree = 2 * world.links / nodes
    size = nodes / areas
    borders = statistics.fmean(map(len, world.borders))
    inside = statistics.fmean(flood(world.links_inside(area), len(world.members[area])) for area in range(areas))
    outside = flood(world.links, nodes)
    chosen, default = stretches(world, source, samples)

    def row(name: str, values: Iterable[str]) -> None:
        print(f"| {name} | " + " | ".join(values) + " |")

    def memory(routes: float, offers: float) -> str:
        return f"{(routes * degree * ROUTE_BYTES + offers * OFFER_BYTES) / 2**20:.1f} MiB"

    services, in_area = nodes * SERVICES_PER_NODE, size * SERVICES_PER_NODE
    summaries = size + areas * borders
    events_per_s = nodes / 3_600  # one event of each node in an hour

    def load(entries: float) -> str:
        return f"{events_per_s * entries / nodes * ENTRY_US / 1e4:.3f} %"

    print(f"{nodes:,} nodes, {areas} areas, {borders:.0f} border nodes each, {world.links:,} links\n")
    row("", ["flat", "summaries at every node", "summaries at border nodes"])
    row("---", ["---"] * 3)
    row("origins that an ordinary node knows", [f"{nodes:,}", f"{summaries:,.0f}", f"{size + borders:,.0f}"])
    row("origins that a border node knows", [f"{nodes:,}", f"{summaries:,.0f}", f"{summaries:,.0f}"])
    row("memory, ordinary node", [memory(nodes, services), memory(summaries, in_area), memory(size, in_area)])
    row("memory if every node knows every service", [memory(nodes, services), memory(summaries, services), "-"])
    row("entries sent: a node starts or fails", [f"{outside:,}", f"{inside:,.0f}", f"{inside:,.0f}"])
    row(
        "entries sent: the only instance of a service starts",
        [f"{outside:,}", f"{inside + borders * outside:,.0f}", "-"],
    )
    row("the same, asked for when called", ["-", f"{inside:,.0f} + 2 per asking node", f"{inside:,.0f} + 2"])
    row("CPU of a node if each node starts or fails once per hour", [load(outside), load(inside), load(inside)])
    row(
        "entries sent: an area is cut off",
        [f"{size * outside:,.0f}", f"{borders * outside:,.0f}", f"{borders * areas * borders * 4:,.0f}"],
    )
    row("length of paths, median", ["1.00", f"{statistics.median(chosen):.2f}", f"{statistics.median(default):.2f}"])
    row("length of paths, 99th percentile", ["1.00", _percentile(chosen), _percentile(default)])


def _percentile(values: list[float]) -> str:
    return f"{sorted(values)[int(len(values) * 0.99)]:.2f}"


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--areas", type=int, default=100)
    parser.add_argument("--borders", type=int, default=3)
    parser.add_argument("--samples", type=int, default=40, help="targets of paths, 50 starts each")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    source = random.Random(arguments.seed)
    report(make_world(arguments.nodes, arguments.areas, arguments.borders, source), source, arguments.samples)


if __name__ == "__main__":
    main()
