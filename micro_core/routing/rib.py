"""The routing information base: the routes to each origin and its offers, including this router itself. Pure."""

from __future__ import annotations

from micro_core.routing.rib_entry import TOMBSTONE_S, RibEntry


class Rib:
    """The routing information base (RIB).

    It includes tombstones: entries without candidates, which are kept for `TOMBSTONE_S`, with their feasibility distance.
    """

    def __init__(self, router: str) -> None:
        self.router = router
        self.entries: dict[str, RibEntry] = {}
        """By origin. That of this router has no candidates."""
        self.costs: dict[str, int] = {}
        """Cost of the link to each neighbour, in microseconds."""
        self._tombstones: dict[str, RibEntry] = {}
        """All entries without candidates, and some that have candidates again."""

    def get_or_create(self, origin: str) -> RibEntry:
        """Return the entry of an origin. A missing entry is created."""
        entry = self.entries.get(origin)
        if entry is None:
            entry = self.entries[origin] = RibEntry(origin)
        return entry

    def entries_via(self, peer: str) -> list[RibEntry]:
        """Return the entries for which a neighbour has a route."""
        return [
            entry
            for entry in self.entries.values()
            if (adjacency := entry.adjacencies.get(peer)) is not None and adjacency.path
        ]

    def origins_of(self, service: str) -> list[str]:
        """Return the origins that offer a service, without this router."""
        return [
            origin
            for origin, entry in self.entries.items()
            if entry.offers is not None and service in entry.offers.entries and origin != self.router
        ]

    def emptied(self, entry: RibEntry, now: float) -> None:
        """Record that an entry has no candidate any more. Its sequence number is kept for a while as a tombstone."""
        entry.empty_since = now
        self._tombstones[entry.origin] = entry

    def expire_tombstones(self, now: float) -> tuple[list[RibEntry], float | None]:
        """Remove the tombstones that are older than `TOMBSTONE_S`.

        An entry that a neighbour still has from this router is kept: until the neighbour has received the withdrawal, the
        feasibility distance must not be forgotten. Announcements that were rejected are remembered for the digests only: the
        sequence number that was newer may have been wrong, and the neighbour that has sent it may be gone.

        Returns the removed entries, and the clock seconds at which the next tombstone expires, None without tombstones.
        """
        expired: list[RibEntry] = []
        next_at: float | None = None
        for origin, entry in [*self._tombstones.items()]:
            if entry.has_candidates():
                del self._tombstones[origin]
                continue
            expires_at = entry.empty_since + TOMBSTONE_S
            if any(one.exported is not None for one in entry.adjacencies.values()):
                expires_at = max(expires_at, now + TOMBSTONE_S / 4)
            if now >= expires_at:
                expired.append(entry)
            elif next_at is None or expires_at < next_at:
                next_at = expires_at
        for tombstone in expired:
            del self.entries[tombstone.origin], self._tombstones[tombstone.origin]
            rejected = tombstone.rejected()
            if rejected:
                entry = self.entries[tombstone.origin] = RibEntry(tombstone.origin)
                entry.adjacencies = rejected
                self.emptied(entry, now)
                next_at = now + TOMBSTONE_S if next_at is None else next_at
        return expired, next_at
