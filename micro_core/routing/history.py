"""The most recent routing events of all services, for explanations. Pure."""

from __future__ import annotations

from collections import deque

MAX_ENTRIES = 1_000
"""Maximum number of recorded events, over all services."""


class History:
    """The last `MAX_ENTRIES` routing events."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, str, str, tuple[object, ...]]] = deque(maxlen=MAX_ENTRIES)

    def record(self, now: float, service: str, text: str, *details: object) -> None:
        """Record an event of a service at `now` (clock seconds). `text` is a format string for `details`."""
        # Formatted only in `events_of`, since this is called for every entry of every advert.
        self._entries.append((now, service, text, details))

    def events_of(self, service: str) -> list[tuple[float, str]]:
        """Return the recorded events of a service, oldest first: (clock seconds, description)."""
        return [(at, text.format(*details)) for at, name, text, details in self._entries if name == service]
