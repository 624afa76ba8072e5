"""The subscribers of topics: all plain subscribers receive a message, and one member of each queue group. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from micro_core.contract.broker import Message


class Member(Protocol):
    """A receiver of messages: a mailbox in this process, or a subscription of a connection."""

    @property
    def is_full(self) -> bool:
        """Whether the next message would be dropped."""
        ...

    def offer(self, message: Message) -> None:
        """Queue a message, or drop and count it. Never waits."""
        ...


@dataclass(slots=True)
class _Topic:
    plain: dict[Member, None] = field(default_factory=dict)
    queues: dict[str, list[Member]] = field(default_factory=dict)


class Subscribers:
    """Members by topic and queue group, in the order in which they were added."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}

    def add(self, topic: str, queue: str, member: Member) -> None:
        """Add a plain subscriber, or with `queue` a member of a queue group."""
        entry = self._topics.setdefault(topic, _Topic())
        if queue:
            entry.queues.setdefault(queue, []).append(member)
        else:
            entry.plain[member] = None

    def remove(self, topic: str, queue: str, member: Member) -> None:
        """Remove a member. Unknown ones are ignored."""
        entry = self._topics.get(topic)
        if entry is None:
            return
        if not queue:
            entry.plain.pop(member, None)
        elif member in (members := entry.queues.get(queue, [])):
            members.remove(member)
            if not members:
                del entry.queues[queue]
        if not entry.plain and not entry.queues:
            del self._topics[topic]

    def publish(self, topic: str, message: Message) -> None:
        """Offer a message to its receivers. Never waits."""
        for member in self.receivers(topic):
            member.offer(message)

    def receivers(self, topic: str) -> list[Member]:
        """Return the receivers of the next message of `topic`, and advance each queue group to its next member.

        Full members of a group are skipped. If all are full, the message is offered to the next one, which drops it.
        """
        entry = self._topics.get(topic)
        if entry is None:
            return []
        chosen = list(entry.plain)
        for members in entry.queues.values():
            index = next((index for index, member in enumerate(members) if not member.is_full), 0)
            chosen.append(members[index])
            members.append(members.pop(index))
        return chosen
