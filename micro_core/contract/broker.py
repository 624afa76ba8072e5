"""The broker role: topics on one site. Nodes forward messages between sites."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A published message."""

    id: str
    """Unique in the whole network (32 hexadecimal digits). Copies of a message have the same id."""
    body: bytes
    """The encoded content, at most `MAX_MESSAGE_BYTES` (4 MiB)."""
    content_type: str = "application/msgpack"
    """Media type of the body, at most 100 characters."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Short strings by name. Names that begin with `micro-` are reserved for micro itself."""


MessageHandler = Callable[[str, Message], Awaitable[None]]
"""Called in the event loop with (topic, message). An exception is logged and counted, and does not affect other subscribers."""


class Subscription(Protocol):
    """An open subscription, returned by `Broker.subscribe`."""

    topic: str
    """The topic or pattern as it was passed to `subscribe`."""
    queue: str
    """The queue group; empty if the subscriber receives every message."""

    async def close(self) -> None:
        """Unsubscribe. No handler is started after this call.

        Waits at most one second for running handlers. Safe to call twice.
        """
        ...


class Broker(Protocol):
    """Publishes messages to topics and delivers them to subscribers.

    A message is delivered at most once, and in order per publisher and topic; the capability `durable` gives other
    guarantees. If a subscriber is too slow, its newest messages are dropped and counted. Slow subscribers do not delay
    others. No method blocks the event loop.
    """

    async def start(self) -> None:
        """Connect to the back end. Called once, before all other methods.

        A driver may return before it is connected, and connect in the background.

        Raises:
            Unreachable: The back end cannot be reached, and the driver does not retry in the background.
            ConfigError: The back end refuses the credentials or the options of the driver.
        """
        ...

    async def close(self) -> None:
        """Close all subscriptions and disconnect. Safe to call twice.

        Waits at most one second for running handlers. Does not raise if the back end cannot be reached.
        """
        ...

    async def publish(self, topic: str, message: Message) -> None:
        """Publish `message`, and return when the broker has accepted it.

        The driver calls `names.check_topic` and `check_message` first. If the caller cancels the call, the message may or may not
        have been published.

        Args:
            topic: A complete topic of 1 to 253 characters (`names.check_topic`), without wildcards.
            message: The message, with a body of at most 4 MiB (`check_message`).

        Raises:
            BadRequest: The topic or a field of the message is invalid.
            TooLarge: The message exceeds a limit of the contract or of the back end.
            Unreachable: The broker cannot be reached, or this object is closed (`Closed`).
        """
        ...

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        """Deliver every message of `topic` to `handler`, and return when the subscription is active.

        The driver restores the subscription after a reconnect. If the caller cancels the call, no subscription remains.

        With the capability `wildcards`, `topic` may be a pattern: `*` matches one segment between dots, and `>` at the end
        matches one or more segments (`orders.*.paid`, `orders.>`). The handler is called with the topic of the message.
        Patterns match messages of their own site only, because sites advertise interest in complete topics.

        Args:
            topic: A topic of 1 to 253 characters (`names.check_topic`), or a pattern.
            handler: Called for each message, with at most one call at a time per subscription.
            queue: Name of a queue group of at most 253 characters (`check_queue`), of which one member receives each
                message; empty to receive every message.

        Raises:
            BadRequest: The topic or the queue group is invalid.
            Unreachable: The broker cannot be reached and the driver does not subscribe later by itself, or this object is closed
                (`Closed`).
        """
        ...


@runtime_checkable
class DurableBroker(Protocol):
    """Optional methods of a broker that stores messages until they are acknowledged. Nodes use them between sites.

    A broker without these methods is used like one that stores nothing: a message is lost if the node that carries it to
    other sites dies.
    """

    @property
    def is_durable(self) -> bool:
        """Whether messages are stored. Without, `subscribe_group` is not called."""
        ...

    async def subscribe_group(
        self, topic: str, handler: MessageHandler, *, group: str, max_concurrent: int
    ) -> Subscription:
        """Subscribe as a member of a group that handles several messages at a time.

        Works like `subscribe` with a queue group, with these differences. The handler is called in the order of the
        messages, without waiting for the previous calls, and may take any time. A message is acknowledged when its call
        returns. If the call is cancelled because the subscription is closed, or the process dies, the message is
        delivered to another member. The group begins with the messages that are published after its first subscription,
        and continues from there as long as a member subscribes again within a few minutes.

        Args:
            topic: A complete topic, without wildcards.
            handler: Called for each message. An exception means that the message cannot be handled.
            group: Name of the group.
            max_concurrent: Maximum number of calls at a time.

        Raises:
            BadRequest: The topic or the group is invalid.
            Unreachable: As for `subscribe`.
        """
        ...
