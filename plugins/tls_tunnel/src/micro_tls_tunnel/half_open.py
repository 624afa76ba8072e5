"""The TLS handshakes in progress on a listener, and which of them is closed when there are too many."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class HalfOpen(Generic[T]):
    """Connections whose handshake is in progress, oldest first, grouped by the host of the peer.

    Above `max_count`, a new connection is admitted and the oldest one of the host with the most connections is removed. A
    host that opens many connections without a handshake thus displaces only its own connections.
    """

    def __init__(self, max_count: int) -> None:
        self._max_count = max_count
        self._source: dict[T, str] = {}
        self._by_source: dict[str, dict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._source)

    def add(self, connection: T, source: str) -> T | None:
        """Add a connection from the host `source`. Return the connection that was removed for it, or None."""
        self._source[connection] = source
        self._by_source.setdefault(source, {})[connection] = None
        if len(self._source) <= self._max_count:
            return None
        busiest = max(self._by_source.values(), key=len)
        oldest = next(iter(busiest))
        self.discard(oldest)
        return oldest

    def discard(self, connection: T) -> bool:
        """Remove a connection. Return False if it is unknown."""
        source = self._source.pop(connection, None)
        if source is None:
            return False
        others = self._by_source[source]
        del others[connection]
        if not others:
            del self._by_source[source]
        return True

    def take_all(self) -> list[T]:
        """Remove and return all connections."""
        connections = list(self._source)
        self._source.clear()
        self._by_source.clear()
        return connections
