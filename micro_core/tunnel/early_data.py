"""The data that arrives on the other lanes before the handshake is done. Bounded. Pure."""

from __future__ import annotations

MAX_EARLY_BYTES = 256 * 1024
"""Buffered from the other lanes during the handshake, because the first data may overtake the last handshake message."""


class EarlyData:
    """Chunks of data by lane, in the order of their arrival, at most `MAX_EARLY_BYTES`."""

    def __init__(self) -> None:
        self._chunks: list[tuple[int, bytes]] = []
        self._size = 0

    def add(self, lane: int, data: bytes) -> bool:
        """Keep `data` of `lane`. Return False if the limit is exceeded."""
        self._size += len(data)
        if self._size > MAX_EARLY_BYTES:
            return False
        self._chunks.append((lane, data))
        return True

    def pop_all(self) -> list[tuple[int, bytes]]:
        """Return the chunks as (lane, data) and forget them."""
        chunks, self._chunks = self._chunks, []
        return chunks
