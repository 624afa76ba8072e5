"""A subscription without JetStream: what the server sends while we listen, once or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats.aio.subscription
from nats.aio.msg import Msg

from micro_core.contract import BadRequest, DriverContext, Malformed, Message, MessageHandler
from micro_nats_broker import envelope
from micro_nats_broker.connection import Connection
from micro_nats_broker.mailbox import Arrived, Mailbox
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.session import Session
from micro_nats_broker.subjects import Subjects


class CoreSubscription:
    """Implements `Subscription`; `attach` puts it in force on a session, each time there is a new one."""

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
        self._on_server: nats.aio.subscription.Subscription | None = None
        self._turn = asyncio.Lock()
        self._is_closed = False

    async def attach(self, session: Session) -> None:
        """Return when the server knows; again on the same session it does nothing. Raises LinkLost, Forbidden."""
        async with self._turn:
            if self._is_closed or self._session is session:
                return
            # A word of letters: queues may hold blanks, and dots mean nothing in them.
            queue = envelope.encoded_word(self.queue)
            self._on_server = await session.subscribe(
                self._subjects.of(self.topic), queue, self._arrived, self._mailbox.lost
            )
            self._session = session

    def is_attached(self, session: Session) -> bool:
        return self._session is session

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._forget(self)
        async with self._turn:
            if self._session is not None and self._on_server is not None:
                await self._session.unsubscribe(self._on_server, drain_s=max(0.01, self._options.drain_timeout_s))
        left = await self._mailbox.close(self._options.drain_timeout_s)
        if left:
            self._context.counters.add("broker_messages_dropped_at_close", len(left))

    async def _arrived(self, received: Msg) -> None:
        read = read_message(received, self._subjects, self._context)
        if read is not None:
            self._mailbox.offer(Arrived(*read))


def read_message(received: Msg, subjects: Subjects, context: DriverContext) -> tuple[str, Message] | None:
    """Topic and message; None, counted, for what no member of the house sent: anybody may publish on a subject."""
    try:
        return subjects.topic(received.subject), envelope.decode(received.headers, received.data)
    except (Malformed, BadRequest) as error:
        context.counters.add("broker_nats_garbage")
        context.logger.debug("skipped", extra={"topic": received.subject, "reason": error.detail})
        return None
