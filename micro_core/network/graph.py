"""The graph of nodes up to three hops away: link-state records, versioned by their origin (incarnation, sequence).

Each node advertises only its own links, so the size of a message grows with the number of nodes nearby and not with the
number of paths. Records carry their age: a record that its origin no longer renews expires, however often other nodes
repeat it. Pure: callers pass `now`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from micro_core.network.messages import NodeRecord

RADIUS = 3
"""Maximum distance, in hops, of the nodes that are kept."""

MAX_AGE_S = 600.0
"""A record that was not renewed for this long is dropped; origins renew their record three times as often.

A node that fails usually leaves the graph much earlier, because its neighbours advertise at once that their links ended.
The expiry covers records that no node updates any more. Nothing waits for a renewal, and each one is sent over every link
of the neighbourhood: at three times the rate, renewals were a fifth of the datagrams of a calm network of 12 nodes."""

MAX_NODES = 10_000
"""Maximum number of records. Further ones are refused and counted in `Graph.refused`."""


@dataclass(slots=True)
class _Entry:
    record: NodeRecord
    created_at: float
    """When the origin made the record, in seconds of the local clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNode:
    """A node of the graph and its distance in hops; 0 is this node."""

    record: NodeRecord
    hops: int
    age_s: float


class Graph:
    """The records of the nodes around this node. `own` is the record of this node."""

    def __init__(self, own: NodeRecord) -> None:
        self.own = own
        self.refused = 0
        """Number of records refused because the graph already has `MAX_NODES` nodes."""
        self._entries: dict[str, _Entry] = {}
        self._unadvertised: dict[str, None] = {}
        """Nodes whose record has not been advertised to the neighbours, because it is new or was unreachable."""
        self._distances: dict[str, int] | None = None
        """The result of the last search; None if links have changed since."""

    def set_own(self, record: NodeRecord) -> None:
        """Replace the record of this node."""
        if record.neighbours != self.own.neighbours:
            self._distances = None
        self.own = record

    def receive(self, records: tuple[NodeRecord, ...], now: float) -> list[NodeRecord]:
        """Store records and return those to advertise to the other neighbours now, see `pop_changes`.

        The record of this node, older versions, expired records and records beyond `MAX_NODES` are ignored.
        """
        for record in records:
            if record.id == self.own.id or record.age_s >= MAX_AGE_S:
                continue
            entry = self._entries.get(record.id)
            if entry is not None and entry.record.version >= record.version:
                continue
            if entry is None and len(self._entries) >= MAX_NODES:
                self.refused += 1
                continue
            if entry is None or entry.record.neighbours != record.neighbours:
                self._distances = None
            self._entries[record.id] = _Entry(record, now - record.age_s)
            self._unadvertised[record.id] = None
        return self.pop_changes()

    def pop_changes(self) -> list[NodeRecord]:
        """Return the records within reach that were not advertised to the neighbours yet. Each is returned once.

        A record may arrive before the record that connects it to this node, and a new link may bring nearer a node that
        was too far away. Records out of reach are returned once they are within reach.
        """
        if not self._unadvertised:
            return []
        distances = self.distances()
        near = [node_id for node_id in self._unadvertised if distances.get(node_id, RADIUS) < RADIUS]
        for node_id in near:
            del self._unadvertised[node_id]
        return [self._entries[node_id].record for node_id in near]

    def is_newer(self, node_id: str, version: tuple[int, int]) -> bool:
        """Return whether a record of this version is newer than the stored one. Most copies are not: they took detours."""
        entry = self._entries.get(node_id)
        return node_id != self.own.id and (entry is None or version > entry.record.version)

    def is_new_incarnation(self, record: NodeRecord) -> bool:
        """Return whether a record is the first of its node, or the first since its node was restarted."""
        entry = self._entries.get(record.id)
        return entry is None or record.incarnation > entry.record.incarnation

    def forget(self, node_id: str, incarnation: int) -> bool:
        """Drop the record of a node that left. Return False when no record, or one of a later incarnation, exists."""
        entry = self._entries.get(node_id)
        if entry is None or entry.record.incarnation > incarnation:
            return False
        del self._entries[node_id]
        self._unadvertised.pop(node_id, None)
        self._distances = None
        return True

    def expire(self, now: float) -> list[str]:
        """Drop the records that are too old, or out of reach and not recent. Return their node ids."""
        near = self.distances()
        expired = [
            node_id
            for node_id, entry in self._entries.items()
            if now - entry.created_at >= MAX_AGE_S or (node_id not in near and now - entry.created_at >= MAX_AGE_S / 3)
        ]
        for node_id in expired:
            del self._entries[node_id]
            self._unadvertised.pop(node_id, None)
            self._distances = None
        return expired

    def wake_at(self) -> float | None:
        """Return when the next record expires, or None."""
        return min((entry.created_at + MAX_AGE_S for entry in self._entries.values()), default=None)

    def distances(self) -> dict[str, int]:
        """Return the hops to each node within the radius: a breadth-first search over the links that the records list."""
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
            record = self.own if here == self.own.id else entry.record if (entry := self._entries.get(here)) else None
            if record is None:
                continue
            for neighbour, _cost in record.neighbours:
                if neighbour not in distance:
                    distance[neighbour] = distance[here] + 1
                    queue.append(neighbour)
        return distance

    def nodes(self, now: float, radius: int = RADIUS) -> list[GraphNode]:
        """Return this node and the nodes within `radius` hops, nearest first."""
        found = [GraphNode(record=self.own, hops=0, age_s=0.0)]
        for node_id, hops in self.distances().items():
            entry = self._entries.get(node_id)
            if entry is not None and 0 < hops <= radius:
                found.append(GraphNode(record=entry.record, hops=hops, age_s=now - entry.created_at))
        return sorted(found, key=lambda node: (node.hops, node.record.name, node.record.id))

    def records(self, now: float) -> tuple[NodeRecord, ...]:
        """Return the records to send to a new neighbour: the own one and those nearer than the radius, with their age."""
        near = self.distances()
        others = [
            replace(entry.record, age_s=now - entry.created_at)
            for node_id, entry in self._entries.items()
            if near.get(node_id, RADIUS) < RADIUS
        ]
        return (self.own, *others)

    def aged(self, record: NodeRecord, now: float) -> NodeRecord:
        """Return `record` with its current age, to be passed on."""
        entry = self._entries.get(record.id)
        return record if entry is None else replace(record, age_s=max(0.0, now - entry.created_at))
