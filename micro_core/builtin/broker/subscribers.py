"""The members of topics: who gets a message, plain subscribers each, of a queue group one in turn. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from micro_core.contract.broker import Message


class Member(Protocol):
    """Who takes messages: a mailbox of this process, or a subscription of a connection."""

    @property
    def is_full(self) -> bool:
        """True when the next message would be dropped."""
        ...

    def offer(self, message: Message) -> None:
        """Take a message, or drop and count it; never waits."""
        ...


@dataclass(slots=True)
class _Topic:
    plain: dict[Member, None] = field(default_factory=dict)
    queues: dict[str, list[Member]] = field(default_factory=dict)


class Subscribers:
    """Members by topic and queue group, in the order they came."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}

    def add(self, topic: str, queue: str, member: Member) -> None:
        entry = self._topics.setdefault(topic, _Topic())
        if queue:
            entry.queues.setdefault(queue, []).append(member)
        else:
            entry.plain[member] = None

    def remove(self, topic: str, queue: str, member: Member) -> None:
        """Forget a member; unknown ones are ignored."""
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
        """Hand a message to all who want it; never waits."""
        for member in self.receivers(topic):
            member.offer(message)

    def receivers(self, topic: str) -> list[Member]:
        """Who gets the next message of `topic`; turns each queue group by one.

        In a group, those who are full are passed over: the message is lost only where all of them are.
        """
        entry = self._topics.get(topic)
        if entry is None:
            return []
        chosen = list(entry.plain)
        for members in entry.queues.values():
            turn = next((index for index, member in enumerate(members) if not member.is_full), 0)
            chosen.append(members[turn])
            members.append(members.pop(turn))
        return chosen
