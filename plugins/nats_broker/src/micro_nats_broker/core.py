"""A subscription without JetStream: messages are delivered at most once, while the subscription is active."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats.aio.subscription
from nats.aio.msg import Msg

from micro_core.contract import BadRequest, DriverContext, Malformed, Message, MessageHandler
from micro_nats_broker import envelope
from micro_nats_broker.connection import Connection
from micro_nats_broker.mailbox import Mailbox, ReceivedMessage
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.session import Session
from micro_nats_broker.subjects import Subjects


class CoreSubscription:
    """Implements `Subscription`; `attach` activates it on each new session."""

    number = 0

    def __init__(
        self,
        topic: str,
        queue: str,
        handler: MessageHandler,
        subjects: Subjects,
        options: NatsOptions,
        context: DriverContext,
        connection: Connection,
        forget: Callable[[CoreSubscription], None],
    ) -> None:
        self.topic = topic
        self.queue = queue
        self._subjects = subjects
        self._options = options
        self._context = context
        self._connection = connection
        self._forget = forget
        self._mailbox = Mailbox(topic, handler, context, max_waiting=options.max_waiting)
        self._session: Session | None = None
        self._subscription: nats.aio.subscription.Subscription | None = None
        self._lock = asyncio.Lock()
        self._is_closed = False

    async def attach(self, session: Session) -> None:
        """Subscribe on `session`; return when the server has confirmed it. Idempotent. Raises LinkLost, Forbidden."""
        async with self._lock:
            if self._is_closed or self._session is session:
                return
            # Queue names may contain spaces and dots, which NATS does not allow.
            queue = envelope.encode_name(self.queue)
            self._subscription = await session.subscribe(
                self._subjects.of(self.topic), queue, self._arrived, self._mailbox.drop
            )
            self._session = session

    def is_attached(self, session: Session) -> bool:
        """Return whether the subscription is active on `session`."""
        return self._session is session

    async def close(self) -> None:
        """Unsubscribe and handle received messages for at most `drain_timeout_s`. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._forget(self)
        async with self._lock:
            if self._session is not None and self._subscription is not None:
                await self._session.unsubscribe(self._subscription, drain_s=max(0.01, self._options.drain_timeout_s))
        left = await self._mailbox.close(self._options.drain_timeout_s)
        if left:
            self._context.counters.add("broker_messages_dropped_at_close", len(left))

    async def _arrived(self, received: Msg) -> None:
        read = read_message(received, self._subjects, self._context)
        if read is not None:
            self._mailbox.offer(ReceivedMessage(*read))


def read_message(received: Msg, subjects: Subjects, context: DriverContext) -> tuple[str, Message] | None:
    """Return topic and message, or None (counted) for an invalid message: any NATS client may publish on a subject."""
    try:
        return subjects.topic(received.subject), envelope.decode(received.headers, received.data)
    except (Malformed, BadRequest) as error:
        context.counters.add("broker_nats_garbage")
        context.logger.debug("invalid message skipped", extra={"topic": received.subject, "reason": error.detail})
        return None
