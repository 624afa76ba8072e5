"""Since when this node knows which messages of other sites its site has received.

When the leader of another site dies, the next one sends the messages of the last seconds again, with their age. A target
recognizes those that its site has received by their ids. It cannot do so for messages that were published before it was
started, or while other nodes published the messages of the site unnoticed: such copies are dropped, because a message is
delivered at most once. Pure: callers pass `now` in seconds of any monotonic clock.
"""

from __future__ import annotations

from micro_core.proxy.handover import OVERLAP_S

DELAY_S = 1.0
"""Seconds between the publication of a message and its arrival at the node that keeps it. By so much, a message may be older
than its sender knows."""


class DeliveryRecord:
    """The times since which the ids of all messages that the site has received are known to this node.

    They are known from two sources: a node that subscribes to a topic on the broker of the site receives the messages that
    other nodes publish there, and the leader of the site publishes the messages of all topics itself.
    """

    __slots__ = ("_leads_since", "_subscribed_since")

    def __init__(self) -> None:
        self._subscribed_since: dict[str, float] = {}
        self._leads_since: float | None = None

    def subscribed(self, topic: str, now: float) -> None:
        """Note that this node receives what is published on the broker of the site from now on."""
        self._subscribed_since[topic] = now

    def unsubscribed(self, topic: str) -> None:
        """Note that a subscription has ended."""
        self._subscribed_since.pop(topic, None)

    def set_leader(self, is_leader: bool, now: float) -> None:
        """Note whether other sites send the messages for this site to this node."""
        if not is_leader:
            self._leads_since = None
        elif self._leads_since is None:
            self._leads_since = now

    def interrupted(self, now: float) -> None:
        """Note that other nodes may have published messages until now without this node receiving them."""
        self._subscribed_since = dict.fromkeys(self._subscribed_since, now)
        if self._leads_since is not None:
            self._leads_since = now

    def is_complete_since(self, topic: str, published_at: float) -> bool:
        """Return whether this node knows all messages of `topic` that the site has received since `published_at`."""
        subscribed_since = self._subscribed_since.get(topic)
        if subscribed_since is not None and published_at >= subscribed_since + DELAY_S:
            return True
        # Until all senders know the new leader, some of them still send to its predecessor.
        return self._leads_since is not None and published_at >= self._leads_since + OVERLAP_S
