"""The most recent routing events, for explanations. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

MAX_ENTRIES = 1_000
"""Maximum number of recorded events, over all services and origins."""


class History:
    """The last `MAX_ENTRIES` routing events."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, str, str, tuple[object, ...]]] = deque(maxlen=MAX_ENTRIES)

    def record(self, now: float, subject: str, text: str, *details: object) -> None:
        """Record an event of a service or of an origin at `now` (clock seconds). `text` is a format string for `details`."""
        # Formatted only in `events_of`, since this is called for every entry of every advert.
        self._entries.append((now, subject, text, details))

    def events_of(self, service: str, origins: Collection[str] = ()) -> list[tuple[float, str]]:
        """Return the events of a service and of the origins that offer it, oldest first: (clock seconds, description)."""
        found = []
        for at, subject, text, details in self._entries:
            if subject == service:
                found.append((at, text.format(*details)))
            elif subject in origins:
                found.append((at, f"{subject:.8} " + text.format(*details)))
        return found
