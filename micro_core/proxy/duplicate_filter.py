"""Which copies have been here: a bounded memory of (message id, target).

Two generations, turned over by age or by size, so that forgetting costs nothing per entry. Pure: callers pass `now`.
"""

from __future__ import annotations

REMEMBER_S = 60.0
"""Copies of one message travel for milliseconds; a minute leaves room for any retry on the way."""

MAX_REMEMBERED = 50_000
"""Entries of one generation."""


class SeenCopies:
    """Remembers for at least `REMEMBER_S` seconds, unless more than `MAX_REMEMBERED` entries come in that time."""

    __slots__ = ("_new", "_old", "_turned_at")

    def __init__(self) -> None:
        self._new: set[tuple[str, str]] = set()
        self._old: set[tuple[str, str]] = set()
        self._turned_at = 0.0

    def first_time(self, message_id: str, target: str, now: float) -> bool:
        """True once for each pair; remembers it."""
        if now - self._turned_at > REMEMBER_S or len(self._new) >= MAX_REMEMBERED:
            self._old, self._new, self._turned_at = self._new, set(), now
        key = (message_id, target)
        if key in self._new or key in self._old:
            return False
        self._new.add(key)
        return True
