"""Decides whether this node sends the messages of its site to other sites, and keeps recent ones for a change of the leader.

Only the leader of a site sends (see `site_leaders`). The other nodes keep the messages of the last seconds. A node that
becomes the leader sends them, because its predecessor died before that was detected; targets drop those that they have
received already. Conversely, a node that is no longer the leader sends for some more seconds, until the new leader has
learned all routes. Pure: callers pass `now` in seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from micro_core.contract.broker import Message

KEEP_S = 8.0
"""Seconds for which a message is kept: the detection of a dead link takes up to 4 s, and its routes must be removed."""

MAX_KEPT = 10_000
"""Maximum number of messages that are kept. The oldest are dropped."""

MAX_KEPT_BYTES = 16 * 1024 * 1024
"""Maximum size of the bodies that are kept."""

OVERLAP_S = 3.0
"""Seconds for which a former leader still sends."""

STALL_S = 3.0
"""If this node did nothing for so long, other nodes may have taken over."""

RECOVERY_S = 5.0
"""Seconds after a stall in which messages are kept instead of sent, until the other nodes of the site are known again."""

CATCH_UP_S = 1.0
"""Seconds after a stall in which messages arrive that were published during the stall."""

MAX_STALL_S = 30.0
"""After a longer stall, messages that arrived during the stall are dropped: the next leader has sent them long ago, and targets
may have forgotten their ids."""


class Kept(NamedTuple):
    """A message that was not sent, with the time at which it was received."""

    received_at: float
    published_after: float
    """Earlier than `received_at` if this node was stalled meanwhile."""
    topic: str
    message: Message


class Handover:
    """The role of this node among the nodes of its site."""

    def __init__(self) -> None:
        self.expired = 0
        """Number of messages that were dropped because of `MAX_KEPT` or `MAX_KEPT_BYTES`, or after a long stall."""
        self.stall_ended_at = float("-inf")
        """When the last stall ended during which other nodes may have taken over."""
        self._stall_began_at = 0.0
        self._has_lesser = False
        self._has_others = False
        self._sends_until = 0.0
        self._recovered_at = 0.0
        self._drop_until = 0.0
        self._active_at = 0.0
        self._kept: deque[Kept] = deque()
        self._kept_bytes = 0

    @property
    def kept(self) -> int:
        """Number of messages that are kept."""
        return len(self._kept)

    def update(self, *, has_lesser: bool, has_others: bool, now: float) -> list[Kept]:
        """Record which other nodes the site has, and return the kept messages that must be sent now.

        Call it at least once per second while the site has other nodes.

        Args:
            has_lesser: Whether another node of the site is the leader.
            has_others: Whether the site has another node at all.
            now: The current time.
        """
        stalled_s = now - self._active_at
        # The nodes that the site had before the stall: after it, this node may have lost its routes to them.
        if stalled_s > STALL_S and self._has_others:
            self._stall_began_at, self.stall_ended_at = self._active_at, now
            self._recovered_at = now + RECOVERY_S
            if stalled_s > MAX_STALL_S:
                self._drop_until = now + CATCH_UP_S
        self._active_at = now
        self._has_others = has_others
        if has_lesser and not self._has_lesser:
            self._sends_until = now + OVERLAP_S
        self._has_lesser = has_lesser
        self._forget(now - KEEP_S)
        if has_lesser or now < self._recovered_at:
            return []
        due, self._kept, self._kept_bytes = list(self._kept), deque(), 0
        return due

    def must_send(self, topic: str, message: Message, now: float) -> bool:
        """Return whether this node must send a message now. If not, the message is kept. Call `update` first."""
        if now >= self._recovered_at and (not self._has_lesser or now < self._sends_until):
            return True
        if now < self._drop_until:
            self.expired += 1
            return False
        published_after = self._stall_began_at if now < self.stall_ended_at + CATCH_UP_S else now
        self._kept.append(Kept(now, published_after, topic, message))
        self._kept_bytes += len(message.body)
        while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
            self._drop_oldest()
            self.expired += 1
        return False

    def _forget(self, received_before: float) -> None:
        while self._kept and self._kept[0].received_at < received_before:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._kept_bytes -= len(self._kept.popleft().message.body)
