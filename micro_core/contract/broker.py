"""The broker role: topics on *one* network. The node carries messages between networks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is published. `id` is unique in the whole network (32 hex digits): copies are recognised by it.

    `headers` are short strings; names that begin with `micro-` are the house's own.
    """

    id: str
    body: bytes
    content_type: str = "application/msgpack"
    headers: Mapping[str, str] = field(default_factory=dict)


MessageHandler = Callable[[str, Message], Awaitable[None]]
"""Called with (topic, message). An exception is counted and logged, and disturbs nobody else."""


class Subscription(Protocol):
    """A standing subscription."""

    topic: str
    queue: str

    async def close(self) -> None:
        """Unsubscribe; handlers that run are awaited for at most one second."""
        ...


class Broker(Protocol):
    """Publish and subscribe.

    At most once, in order per publisher and topic, unless a driver declares `durable`. A subscriber that does
    not keep up loses the newest messages, and the loss is counted; it never slows another down.
    """

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, topic: str, message: Message) -> None:
        """Return when the broker has taken the message. Raises Unreachable when it is away, TooLarge."""
        ...

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        """Receive every message of `topic`; with `queue`, one member of the group receives each.

        Returns when the subscription is in force. It survives reconnects. With the capability `wildcards`, `topic` may be
        a pattern: `*` stands for one part between dots, `>` at the end for one part or more (`orders.*.paid`,
        `orders.>`); the handler is called with the topic itself. Patterns are heard on their own site: interest in
        topics of other sites is told by name.
        """
        ...
