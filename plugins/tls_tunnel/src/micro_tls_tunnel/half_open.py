"""Who is in the middle of a TLS handshake, and who gives way when there are too many. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class HalfOpen(Generic[T]):
    """Handshakes under way, oldest first, by the host they come from.

    At the bound a newcomer is let in, and the oldest of the host with most of them gives way: a single host that opens
    connections and says nothing thus crowds out itself.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._source: dict[T, str] = {}
        self._by_source: dict[str, dict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._source)

    def add(self, who: T, source: str) -> T | None:
        """Remember `who`; returns who has to go, if the bound is passed."""
        self._source[who] = source
        self._by_source.setdefault(source, {})[who] = None
        if len(self._source) <= self._most:
            return None
        busiest = max(self._by_source.values(), key=len)
        victim = next(iter(busiest))
        self.discard(victim)
        return victim

    def discard(self, who: T) -> bool:
        """Forget `who`; False for somebody unknown."""
        source = self._source.pop(who, None)
        if source is None:
            return False
        same = self._by_source[source]
        del same[who]
        if not same:
            del self._by_source[source]
        return True

    def take_all(self) -> list[T]:
        """Forget everybody; returns who it was."""
        everybody = list(self._source)
        self._source.clear()
        self._by_source.clear()
        return everybody
