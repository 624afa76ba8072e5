"""When to request more messages from JetStream, and how many. Pure: `now` is in seconds of any monotonic clock.

There is one pull request at a time. It is complete when all requested messages have arrived, or when the server reports so. If the
server is silent for too long, the request counts as lost.
"""

from __future__ import annotations

import enum

REQUEST_S = 30.0
"""Seconds for which a pull request is valid."""

HEARTBEAT_S = 5.0
"""Seconds between two heartbeats of the server for a pull request."""

TIMEOUT_S = 2.5 * HEARTBEAT_S
"""Seconds without a heartbeat after which a pull request counts as lost."""


class PullStatus(enum.Enum):
    """The meaning of a status message of the server."""

    ACTIVE = "the pull request is active"
    COMPLETED = "the pull request is complete"
    CONSUMER_LOST = "the consumer does not exist"


def parse_status(status: str, description: str) -> PullStatus:
    """Return the meaning of a status line."""
    if status == "100":
        return PullStatus.ACTIVE
    if status == "503" or (status == "409" and "consumer deleted" in description.lower()):
        return PullStatus.CONSUMER_LOST
    # 404: no messages, 408: expired, 409: byte limit reached, leader changed, or too many requests.
    return PullStatus.COMPLETED


class Pulls:
    """The pull request of a subscription; at most `max_held` messages are held."""

    def __init__(self, *, max_held: int) -> None:
        self._max_held = max_held
        self._number = 0
        self._left = 0
        self._received_at = 0.0

    @property
    def number(self) -> int:
        """The number of the current or last pull request."""
        return self._number

    def request_count(self, held: int) -> int:
        """Return how many messages to request now; 0 while a request is active or enough messages are held."""
        free = self._max_held - held
        return 0 if self._left or free * 2 < self._max_held else free

    def sent(self, count: int, now: float) -> None:
        """Record that a request for `count` messages was sent."""
        self._number += 1
        self._left = count
        self._received_at = now

    def arrived(self, now: float) -> None:
        """Record a received message."""
        self._received_at = now
        self._left = max(0, self._left - 1)

    def heartbeat(self, number: int, now: float) -> None:
        """Record a heartbeat for request `number`."""
        if number == self._number:
            self._received_at = now

    def completed(self, number: int) -> None:
        """Record that request `number` is complete; older requests are ignored."""
        if number == self._number:
            self._left = 0

    def reset(self) -> None:
        """Forget the request, because the session or the consumer has changed."""
        self._left = 0

    def has_timed_out(self, now: float) -> bool:
        """Return whether the active request has been silent for too long."""
        return self._left > 0 and now - self._received_at > TIMEOUT_S
