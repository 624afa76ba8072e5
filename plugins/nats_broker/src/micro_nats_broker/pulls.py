"""When to ask JetStream for more, and how many. Pure: callers pass `now`, in seconds of any monotonic clock.

One request stands at a time. It is used up when all it asked for has come, or when the server says so; a server that
says nothing for too long has forgotten it.
"""

from __future__ import annotations

import enum

REQUEST_S = 30.0
"""How long a request stands at the server."""

HEARTBEAT_S = 5.0
"""How often the server says that it still stands."""

SILENCE_S = 2.5 * HEARTBEAT_S


class Said(enum.Enum):
    """What a status of the server means."""

    BEAT = "the request stands"
    OVER = "the request is used up; ask again"
    GONE = "the consumer is no more: make it again"


def meaning(status: str, description: str) -> Said:
    """Read a status line."""
    if status == "100":
        return Said.BEAT
    if status == "503" or (status == "409" and "consumer deleted" in description.lower()):
        return Said.GONE
    # 404 none there, 408 expired, 409 bytes are full, or the leader changed, or too many wait.
    return Said.OVER


class Pulls:
    """The one request of a subscription."""

    def __init__(self, *, at_once: int) -> None:
        self._at_once = at_once
        self._number = 0
        self._left = 0
        self._heard_at = 0.0

    @property
    def number(self) -> int:
        """Which request stands, or stood last."""
        return self._number

    def wanted(self, held: int) -> int:
        """How many to ask for now; 0 while a request stands or enough is held."""
        room = self._at_once - held
        return 0 if self._left or room * 2 < self._at_once else room

    def asked(self, count: int, now: float) -> None:
        self._number += 1
        self._left = count
        self._heard_at = now

    def arrived(self, now: float) -> None:
        """A message came."""
        self._heard_at = now
        self._left = max(0, self._left - 1)

    def beat(self, number: int, now: float) -> None:
        """The server said that request `number` stands."""
        if number == self._number:
            self._heard_at = now

    def over(self, number: int) -> None:
        """The server said that request `number` is used up; what it says of an older one means nothing."""
        if number == self._number:
            self._left = 0

    def reset(self) -> None:
        """Nothing stands: the session or the consumer is another."""
        self._left = 0

    def is_forgotten(self, now: float) -> bool:
        """Whether a request stands of which nothing was heard for too long."""
        return self._left > 0 and now - self._heard_at > SILENCE_S
