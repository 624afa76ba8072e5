"""The broker: topics are subjects of a NATS cluster; with `durable`, they are stored in a JetStream stream."""

from __future__ import annotations

import asyncio

from micro_core.contract import (
    BadRequest,
    Closed,
    DriverContext,
    LinkLost,
    Message,
    MessageHandler,
    MicroError,
    OptionError,
    Subscription,
    check_message,
    check_queue,
)
from micro_core.contract.names import check_topic
from micro_nats_broker import envelope
from micro_nats_broker.connection import Connection
from micro_nats_broker.core import CoreSubscription
from micro_nats_broker.credentials import check_credentials
from micro_nats_broker.durable import DurableSubscription
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.replay import parse_replay_from
from micro_nats_broker.servers import parse_servers
from micro_nats_broker.session import Session
from micro_nats_broker.stored import StreamLost
from micro_nats_broker.stream import Stream
from micro_nats_broker.subjects import Subjects, check_pattern

INITIAL_RETRY_S = 0.05
"""First pause in seconds before a message is sent to JetStream again."""


class NatsBroker:
    """Implements `micro_core.contract.Broker`. Raises OptionError for invalid options."""

    def __init__(self, options: NatsOptions, context: DriverContext) -> None:
        check_credentials(options)
        servers = parse_servers(options.urls, tls_hostname=options.tls_hostname)
        try:
            self._subjects = Subjects(network=context.network, site=context.site, root=options.subject_root)
            replay_start = parse_replay_from(options.replay_from, context.clock.wall())
        except ValueError as error:
            raise OptionError(f"nats: {error}") from error
        if options.replay_from and not options.durable:
            raise OptionError(
                "nats: replay_from requires durable, since messages are not stored without it",
                hint="set durable = true",
            )
        try:
            check_topic(options.dead_letter_topic)
        except BadRequest as error:
            raise OptionError(f"nats: dead_letter_topic: {error.detail}", hint=error.hint) from error
        self._options = options
        self._context = context
        self._subscriptions: dict[CoreSubscription | DurableSubscription, None] = {}
        self._stream = Stream(self._subjects, options, context, replay_start) if options.durable else None
        self._connection = Connection(servers, options, context, self._prepare)
        self._is_closed = False

    async def start(self) -> None:
        """Connect. If no server is reachable, continue with a warning and connect in the background.

        Raises Unauthorized, ConfigError and OptionError.
        """
        await self._connection.start()

    async def close(self) -> None:
        """Unsubscribe, handle received messages for at most `drain_timeout_s`, disconnect. Safe to call twice."""
        self._is_closed = True
        await asyncio.gather(*(subscription.close() for subscription in list(self._subscriptions)))
        await self._connection.close()

    async def publish(self, topic: str, message: Message) -> None:
        """Publish a message; return when the server (with `durable`: the stream) has confirmed it.

        Raises Unreachable, TooLarge, BadRequest, Overloaded, Forbidden. LinkLost means that it is unknown whether the server
        has accepted the message. With `durable`, publishing it again is safe, because the stream stores each id once.
        """
        subject = self._subjects.of(check_topic(topic))
        headers = envelope.encode(topic, check_message(message))
        if self._stream is None:
            session = await self._connection.current()
            await session.publish(subject, headers, message.body)
        else:
            await self._store(self._stream, subject, headers, message.body)

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        """Subscribe to a topic or a pattern of topics; the handler receives the topic of each message.

        Returns when the server has confirmed the subscription. If no server is reachable within `subscribe_timeout_s`, it
        returns with a warning, and the subscription becomes active as soon as a server is. Raises BadRequest, Forbidden,
        Closed.
        """
        check_pattern(topic)
        return await self._subscribe(topic, handler, queue=queue, max_concurrent=1)

    @property
    def is_durable(self) -> bool:
        """Whether messages are stored in JetStream."""
        return self._stream is not None

    async def subscribe_group(
        self, topic: str, handler: MessageHandler, *, group: str, max_concurrent: int
    ) -> Subscription:
        """Subscribe as a member of a group that handles several messages at a time.

        The consumer of the group is kept for `keep_subscriber_s` without a member. Raises the errors of `subscribe`, and
        BadRequest without `durable`.
        """
        check_topic(topic)
        if self._stream is None:
            raise BadRequest("a group that handles several messages at a time requires durable")
        return await self._subscribe(topic, handler, queue=group, max_concurrent=max(2, max_concurrent))

    async def _subscribe(self, topic: str, handler: MessageHandler, *, queue: str, max_concurrent: int) -> Subscription:
        check_queue(queue)
        if not queue.isprintable():
            raise BadRequest(f"the queue group {queue!r:.80} contains unprintable characters")
        if self._is_closed:
            raise Closed("this broker is closed")
        subscription = self._make_subscription(topic, queue, handler, max_concurrent)
        self._subscriptions[subscription] = None
        try:
            async with asyncio.timeout(self._options.subscribe_timeout_s):
                await self._activate(subscription)
        except TimeoutError:
            self._context.counters.add("broker_subscriptions_waiting")
            self._context.logger.warning("no NATS server; subscription pending", extra={"topic": topic})
        except BaseException:
            await subscription.close()
            raise
        return subscription

    # ------------------------------------------------------------------------------------ internal

    def _make_subscription(
        self, topic: str, queue: str, handler: MessageHandler, max_concurrent: int
    ) -> CoreSubscription | DurableSubscription:
        if self._stream is None:
            return CoreSubscription(
                topic, queue, handler, self._subjects, self._options, self._context, self._connection, self._forget
            )
        number = self._stream.allocate_number(topic) if not queue else 0
        return DurableSubscription(
            topic,
            queue,
            number,
            handler,
            stream=self._stream,
            subjects=self._subjects,
            options=self._options,
            context=self._context,
            connection=self._connection,
            publish_dead_letter=self.publish,
            forget=self._forget,
            max_concurrent=max_concurrent,
        )

    async def _activate(self, subscription: CoreSubscription | DurableSubscription) -> None:
        while True:
            session = await self._connection.next()
            try:
                await subscription.attach(session)
                return
            except LinkLost:
                # Retry with the next session.
                continue

    async def _prepare(self, session: Session) -> None:
        """Create the stream and all subscriptions on a new session before it is used. Raises MicroError."""
        if self._stream is not None:
            await self._stream.ensure(session)
        subscriptions = list(self._subscriptions)
        results = await asyncio.gather(
            *(self._attach(subscription, session) for subscription in subscriptions), return_exceptions=True
        )
        for subscription, result in zip(subscriptions, results, strict=True):
            if isinstance(result, LinkLost) or (result is not None and not isinstance(result, MicroError)):
                raise result
            if result is not None:
                self._context.counters.add("broker_subscriptions_refused")
                self._context.logger.warning(
                    "subscription refused by the server", extra={"topic": subscription.topic, "reason": str(result)}
                )

    async def _attach(self, subscription: CoreSubscription | DurableSubscription, session: Session) -> None:
        try:
            async with asyncio.timeout(self._options.answer_timeout_s):
                await subscription.attach(session)
        except TimeoutError:
            if not subscription.is_attached(session):
                raise
            # E.g. a stream without a leader. The subscription keeps trying; publishers need not wait for it.
            self._context.counters.add("broker_subscriptions_waiting")

    async def _store(self, stream: Stream, subject: str, headers: dict[str, str], body: bytes) -> None:
        """Store a message, and send it again while it is unknown whether it has arrived: the stream stores each id once.

        Raises the errors of `publish`.
        """
        end = self._context.clock.now() + self._options.publish_timeout_s
        pause_s = INITIAL_RETRY_S
        uncertain: LinkLost | StreamLost | None = None
        while True:
            try:
                # If an earlier attempt may have succeeded, wait for a connection to find out.
                session = await self._connection.current(
                    end - self._context.clock.now() if uncertain is not None else 0.0
                )
                stored = await session.store(subject, headers, body)
            except StreamLost as error:
                uncertain = error
                if not session.lost.is_set():
                    await stream.ensure(session)
            except LinkLost as error:
                uncertain = error
            except MicroError as error:
                # No server is connected, and it is still unknown whether an earlier attempt succeeded.
                if uncertain is not None and error.retry_is_safe:
                    raise uncertain from error
                raise
            else:
                if stored.is_duplicate:
                    self._context.counters.add("broker_nats_duplicates_refused")
                return
            if self._context.clock.now() + pause_s >= end:
                raise uncertain
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _forget(self, subscription: CoreSubscription | DurableSubscription) -> None:
        self._subscriptions.pop(subscription, None)
        if self._stream is not None:
            self._stream.release_number(subscription.topic, subscription.number)
