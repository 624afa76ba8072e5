"""The graph of nodes to three hops: link state of neighbours, by origin incarnation and sequence.

Every node tells its own links; nobody tells trees, so a message grows with the number of nodes near by and not
with the number of paths. Records carry their age: what its origin no longer renews dies, however often others
repeat it. Pure: callers pass `now`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from micro_core.network.messages import NodeRecord

RADIUS = 3
"""Hops beyond which nothing is kept, as in the founding article."""

MAX_AGE_S = 180.0
"""A record not renewed for this long is dropped; origins renew at a third of it. A node that dies is out of sight long before,
since its neighbours say at once that the link is gone: this is for what nobody says anything about any more."""

MAX_NODES = 10_000
"""Records kept; more are refused and counted by the caller."""


@dataclass(slots=True)
class _Held:
    record: NodeRecord
    born_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNode:
    """A node in sight, `hops` from here (0 is this node)."""

    record: NodeRecord
    hops: int
    age_s: float


class Graph:
    """What this node knows of the nodes around it."""

    def __init__(self, own: NodeRecord) -> None:
        self.own = own
        self._held: dict[str, _Held] = {}
        self._untold: dict[str, None] = {}
        """Nodes whose record the neighbours have not been told: it is new, or was out of reach so far."""
        self._distances: dict[str, int] | None = None
        """As they were found last; None when links have changed since."""

    def set_own(self, record: NodeRecord) -> None:
        if record.neighbours != self.own.neighbours:
            self._distances = None
        self.own = record

    def receive(self, records: tuple[NodeRecord, ...], now: float) -> list[NodeRecord]:
        """Take records in; return what is to be told to the other neighbours now: see `news`.

        Own id, older versions and records past their age are no news.
        """
        for record in records:
            if record.id == self.own.id or record.age_s >= MAX_AGE_S:
                continue
            held = self._held.get(record.id)
            if held is not None and held.record.version >= record.version:
                continue
            if held is None and len(self._held) >= MAX_NODES:
                continue
            if held is None or held.record.neighbours != record.neighbours:
                self._distances = None
            self._held[record.id] = _Held(record, now - record.age_s)
            self._untold[record.id] = None
        return self.news()

    def news(self) -> list[NodeRecord]:
        """The records within reach that the neighbours have not been told; each is returned once.

        A record may come before the one that leads to it, and a new link brings nearer what was too far: what is out of
        reach waits here.
        """
        if not self._untold:
            return []
        distances = self.distances()
        near = [node_id for node_id in self._untold if distances.get(node_id, RADIUS) < RADIUS]
        for node_id in near:
            del self._untold[node_id]
        return [self._held[node_id].record for node_id in near]

    def is_news(self, node_id: str, version: tuple[int, int]) -> bool:
        """Whether a record of this version would change anything: most copies come late, by other ways."""
        held = self._held.get(node_id)
        return node_id != self.own.id and (held is None or version > held.record.version)

    def is_arrival(self, record: NodeRecord) -> bool:
        """Whether a record tells of a node, or a life of it, that was not known."""
        held = self._held.get(record.id)
        return held is None or record.incarnation > held.record.incarnation

    def forget(self, node_id: str, incarnation: int) -> bool:
        """Drop a node that said `close`; False when a later life of it is already known."""
        held = self._held.get(node_id)
        if held is None or held.record.incarnation > incarnation:
            return False
        del self._held[node_id]
        self._untold.pop(node_id, None)
        self._distances = None
        return True

    def expire(self, now: float) -> list[str]:
        """Drop what is too old or no longer within reach; returns the ids."""
        near = self.distances()
        gone = [
            node_id
            for node_id, held in self._held.items()
            if now - held.born_at >= MAX_AGE_S or (node_id not in near and now - held.born_at >= MAX_AGE_S / 3)
        ]
        for node_id in gone:
            del self._held[node_id]
            self._untold.pop(node_id, None)
            self._distances = None
        return gone

    def wake_at(self) -> float | None:
        """When the next record is too old."""
        return min((held.born_at + MAX_AGE_S for held in self._held.values()), default=None)

    def distances(self) -> dict[str, int]:
        """Hops to each node within the radius, by breadth first over links that either end reports."""
        if self._distances is None:
            self._distances = self._search()
        return self._distances

    def _search(self) -> dict[str, int]:
        distance = {self.own.id: 0}
        queue = deque([self.own.id])
        while queue:
            here = queue.popleft()
            if distance[here] >= RADIUS:
                continue
            record = self.own if here == self.own.id else held.record if (held := self._held.get(here)) else None
            if record is None:
                continue
            for neighbour, _cost in record.neighbours:
                if neighbour not in distance:
                    distance[neighbour] = distance[here] + 1
                    queue.append(neighbour)
        return distance

    def nodes(self, now: float, radius: int = RADIUS) -> list[GraphNode]:
        """This node and those within `radius`, nearest first, each once."""
        found = [GraphNode(record=self.own, hops=0, age_s=0.0)]
        for node_id, hops in self.distances().items():
            held = self._held.get(node_id)
            if held is not None and 0 < hops <= radius:
                found.append(GraphNode(record=held.record, hops=hops, age_s=now - held.born_at))
        return sorted(found, key=lambda node: (node.hops, node.record.name, node.record.id))

    def records(self, now: float) -> tuple[NodeRecord, ...]:
        """All that a new neighbour should hear: own record and those nearer than the radius, with their age."""
        near = self.distances()
        held = [
            replace(entry.record, age_s=now - entry.born_at)
            for node_id, entry in self._held.items()
            if near.get(node_id, RADIUS) < RADIUS
        ]
        return (self.own, *held)

    def aged(self, record: NodeRecord, now: float) -> NodeRecord:
        """`record` with the age it has now, for passing on."""
        held = self._held.get(record.id)
        return record if held is None else replace(record, age_s=max(0.0, now - held.born_at))
