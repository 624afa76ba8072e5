"""The members of topics: who gets a message, plain subscribers each, of a queue group one in turn. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MemberT = TypeVar("MemberT", bound=Hashable)


@dataclass(slots=True)
class _Topic(Generic[MemberT]):
    plain: dict[MemberT, None] = field(default_factory=dict)
    queues: dict[str, list[MemberT]] = field(default_factory=dict)


class Subscribers(Generic[MemberT]):
    """Members by topic and queue group, in the order they came."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic[MemberT]] = {}

    def add(self, topic: str, queue: str, member: MemberT) -> None:
        entry = self._topics.setdefault(topic, _Topic())
        if queue:
            entry.queues.setdefault(queue, []).append(member)
        else:
            entry.plain[member] = None

    def remove(self, topic: str, queue: str, member: MemberT) -> None:
        """Forget a member; unknown ones are ignored."""
        entry = self._topics.get(topic)
        if entry is None:
            return
        entry.plain.pop(member, None)
        if queue in entry.queues and member in entry.queues[queue]:
            entry.queues[queue].remove(member)
            if not entry.queues[queue]:
                del entry.queues[queue]
        if not entry.plain and not entry.queues:
            del self._topics[topic]

    def receivers(self, topic: str) -> list[MemberT]:
        """Who gets the next message of `topic`; turns each queue group by one."""
        entry = self._topics.get(topic)
        if entry is None:
            return []
        chosen = list(entry.plain)
        for members in entry.queues.values():
            chosen.append(members[0])
            members.append(members.pop(0))
        return chosen
