"""All that neighbours tell, by origin and service, with the tombstones of what has gone. Pure."""

from __future__ import annotations

from collections.abc import Collection

from micro_core.routing.neighbour import Key
from micro_core.routing.rib_entry import TOMBSTONE_S, Learned


class Known:
    """`ways[(origin, service)]`, indexed both ways; and the latest life of each origin."""

    def __init__(self) -> None:
        self.ways: dict[Key, Learned] = {}
        self._by_origin: dict[str, set[Key]] = {}
        self._by_service: dict[str, set[str]] = {}
        self._incarnations: dict[str, int] = {}

    def made(self, key: Key) -> Learned:
        """What is known of `key`, begun where nothing was."""
        learned = self.ways.get(key)
        if learned is None:
            learned = self.ways[key] = Learned()
            self._by_origin.setdefault(key[0], set()).add(key)
            self._by_service.setdefault(key[1], set()).add(key[0])
        return learned

    def of_origin(self, origin: str) -> list[Key]:
        """The keys of one origin, in order."""
        return sorted(self._by_origin.get(origin, ()))

    def origins_of(self, service: str) -> Collection[str]:
        """Who has told of a service, tombstones included."""
        return self._by_service.get(service, ())

    def incarnation_of(self, origin: str) -> int:
        """The latest life of an origin; 0 for who is not known."""
        return self._incarnations.get(origin, 0)

    def begins_life(self, origin: str, incarnation: int) -> bool:
        """Remember the life of an origin; True where it is later than all before."""
        if incarnation <= self._incarnations.get(origin, 0):
            return False
        self._incarnations[origin] = incarnation
        return True

    def forget_tombstones(self, now: float) -> float | None:
        """Forget the tombstones whose time is over; when the next one is due, None for none."""
        due: list[float] = []
        for key in [key for key, learned in self.ways.items() if not learned.candidates]:
            gone_at = self.ways[key].empty_since + TOMBSTONE_S
            if now >= gone_at:
                self._forget(key)
            else:
                due.append(gone_at)
        return min(due, default=None)

    def _forget(self, key: Key) -> None:
        origin, service = key
        del self.ways[key]
        self._by_origin[origin].discard(key)
        if not self._by_origin[origin]:
            del self._by_origin[origin]
            self._incarnations.pop(origin, None)
        self._by_service[service].discard(origin)
        if not self._by_service[service]:
            del self._by_service[service]
