"""Recognizes copies of messages that were received before, by message id and target.

The memory is bounded: two generations of entries, rotated by age or size, so that forgetting has no cost per entry. Pure:
callers pass `now`.
"""

from __future__ import annotations

import itertools

RETENTION_S = 60.0
"""Minimum number of seconds for which an entry is remembered. Copies of a message arrive within milliseconds, retries
within a minute."""

MAX_REMEMBERED = 50_000
"""Maximum number of entries of one generation."""


class DuplicateFilter:
    """Remembers entries for at least `RETENTION_S`, unless more than `MAX_REMEMBERED` are added within that time."""

    __slots__ = ("_current", "_previous", "_rotated_at")

    def __init__(self) -> None:
        self._current: dict[tuple[str, str], None] = {}
        self._previous: dict[tuple[str, str], None] = {}
        self._rotated_at = 0.0

    def is_first(self, message_id: str, target: str, now: float) -> bool:
        """Return whether this message id and target are seen for the first time, and remember them."""
        if now - self._rotated_at > RETENTION_S or len(self._current) >= MAX_REMEMBERED:
            self._previous, self._current, self._rotated_at = self._current, {}, now
        key = (message_id, target)
        if key in self._current or key in self._previous:
            return False
        self._current[key] = None
        return True

    def is_known(self, message_id: str, target: str) -> bool:
        """Return whether this message id and target were seen."""
        key = (message_id, target)
        return key in self._current or key in self._previous

    def known(self, target: str, limit: int) -> list[str]:
        """Return up to `limit` message ids that were seen for `target`, the newest ones first."""
        newest_first = itertools.chain(reversed(self._current), reversed(self._previous))
        return [*itertools.islice((message_id for message_id, one in newest_first if one == target), limit)]
