"""The routing information base: all routes that neighbours advertise, by origin and service. Pure."""

from __future__ import annotations

from collections.abc import Collection

from micro_core.routing.neighbour import Key
from micro_core.routing.rib_entry import TOMBSTONE_S, RibEntry


class Rib:
    """The routing information base (RIB): `entries[(origin, service)]`, and the latest incarnation of each origin.

    It includes tombstones: entries without candidates, which are kept for `TOMBSTONE_S`.
    """

    def __init__(self) -> None:
        self.entries: dict[Key, RibEntry] = {}
        self._by_origin: dict[str, set[Key]] = {}
        self._by_service: dict[str, set[str]] = {}
        self._incarnations: dict[str, int] = {}

    def get_or_create(self, key: Key) -> RibEntry:
        """Return the entry of `key`. A missing entry is created."""
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = RibEntry()
            self._by_origin.setdefault(key[0], set()).add(key)
            self._by_service.setdefault(key[1], set()).add(key[0])
        return entry

    def keys_of_origin(self, origin: str) -> list[Key]:
        """Return the keys of all entries of an origin, sorted."""
        return sorted(self._by_origin.get(origin, ()))

    def origins_of(self, service: str) -> Collection[str]:
        """Return the origins that have an entry for a service, including tombstones."""
        return self._by_service.get(service, ())

    def incarnation_of(self, origin: str) -> int:
        """Return the latest incarnation of an origin, 0 for an unknown origin."""
        return self._incarnations.get(origin, 0)

    def update_incarnation(self, origin: str, incarnation: int) -> bool:
        """Record the incarnation of an origin. Return whether it is later than all incarnations before."""
        if incarnation <= self._incarnations.get(origin, 0):
            return False
        self._incarnations[origin] = incarnation
        return True

    def expire_tombstones(self, now: float) -> float | None:
        """Remove the tombstones that are older than `TOMBSTONE_S`.

        Returns the clock seconds at which the next tombstone expires, None if there are no tombstones left.
        """
        expirations: list[float] = []
        for key in [key for key, entry in self.entries.items() if not entry.candidates]:
            expires_at = self.entries[key].empty_since + TOMBSTONE_S
            if now >= expires_at:
                self._remove(key)
            else:
                expirations.append(expires_at)
        return min(expirations, default=None)

    def _remove(self, key: Key) -> None:
        origin, service = key
        del self.entries[key]
        self._by_origin[origin].discard(key)
        if not self._by_origin[origin]:
            del self._by_origin[origin]
            self._incarnations.pop(origin, None)
        self._by_service[service].discard(origin)
        if not self._by_service[service]:
            del self._by_service[service]
