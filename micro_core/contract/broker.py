"""The broker role: topics on one site. Nodes forward messages between sites."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A published message."""

    id: str
    """Unique in the whole network (32 hexadecimal digits). Copies of a message have the same id."""
    body: bytes
    """The encoded content, at most `MAX_MESSAGE_BYTES` (4 MiB)."""
    content_type: str = "application/msgpack"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Short texts by name. Names that begin with `micro-` are reserved for micro itself."""


MessageHandler = Callable[[str, Message], Awaitable[None]]
"""Called with (topic, message). An exception is logged and counted, and does not affect other subscribers."""


class Subscription(Protocol):
    """An open subscription."""

    topic: str
    """The topic or pattern as it was passed to `subscribe`."""
    queue: str
    """The queue group; empty if the subscriber receives every message."""

    async def close(self) -> None:
        """Unsubscribe, and wait at most one second for running handlers. Safe to call twice."""
        ...


class Broker(Protocol):
    """Publishes messages to topics and delivers them to subscribers.

    A message is delivered at most once, and in order per publisher and topic; the capability `durable` gives other
    guarantees. If a subscriber is too slow, its newest messages are dropped and counted. Slow subscribers do not delay
    others.
    """

    async def start(self) -> None:
        """Connect. Called once, before all other methods."""
        ...

    async def close(self) -> None:
        """Close all subscriptions and disconnect. Safe to call twice."""
        ...

    async def publish(self, topic: str, message: Message) -> None:
        """Publish `message`, and return when the broker has accepted it. Call `check_message` first.

        Raises Unreachable if the broker cannot be reached, TooLarge if the message exceeds a limit, and BadRequest if the
        topic or the message is invalid.
        """
        ...

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        """Deliver every message of `topic` to `handler`. With `queue`, one member of the group receives each message.

        Returns when the subscription is active. It is restored after a reconnect. Raises BadRequest if the topic or the
        queue group is invalid.

        With the capability `wildcards`, `topic` may be a pattern: `*` matches one segment between dots, and `>` at the end
        matches one or more segments (`orders.*.paid`, `orders.>`). The handler is called with the topic of the message.
        Patterns match messages of their own site only, because sites advertise interest in complete topics.
        """
        ...
