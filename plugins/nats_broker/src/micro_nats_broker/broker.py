"""The broker: topics as subjects of a NATS cluster, and with `durable` through a stream of JetStream."""

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
from micro_nats_broker.credentials import check_choice
from micro_nats_broker.durable import DurableSubscription
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.replay import parse_begin
from micro_nats_broker.servers import parse_servers
from micro_nats_broker.session import Session
from micro_nats_broker.stored import StreamGone
from micro_nats_broker.stream import Stream
from micro_nats_broker.subjects import Subjects, check_pattern

FIRST_RETRY_S = 0.05


class NatsBroker:
    """Implements `Broker`."""

    def __init__(self, options: NatsOptions, context: DriverContext) -> None:
        check_choice(options)
        servers = parse_servers(options.urls, tls_hostname=options.tls_hostname)
        try:
            self._subjects = Subjects(network=context.network, site=context.site, root=options.subject_root)
            begin = parse_begin(options.replay_from, context.clock.wall())
        except ValueError as error:
            raise OptionError(f"nats: {error}") from error
        if options.replay_from and not options.durable:
            raise OptionError("nats: replay_from needs durable: without it nothing is kept", hint="durable = true")
        try:
            check_topic(options.dead_letter_topic)
        except BadRequest as error:
            raise OptionError(f"nats: dead_letter_topic: {error.detail}", hint=error.hint) from error
        self._options = options
        self._context = context
        self._subscriptions: dict[CoreSubscription | DurableSubscription, None] = {}
        self._stream = Stream(self._subjects, options, context, begin) if options.durable else None
        self._connection = Connection(servers, options, context, self._prepare)
        self._is_closed = False

    async def start(self) -> None:
        """Connect. Raises Unauthorized, ConfigError and OptionError; without a server it goes on, and says so."""
        await self._connection.start()

    async def close(self) -> None:
        """Unsubscribe, handle what has arrived for at most `drain_timeout_s`, disconnect. Safe to call twice."""
        self._is_closed = True
        await asyncio.gather(*(subscription.close() for subscription in list(self._subscriptions)))
        await self._connection.close()

    async def publish(self, topic: str, message: Message) -> None:
        """Return when the server (with `durable`: the stream) has taken the message.

        Raises Unreachable, TooLarge, BadRequest, Overloaded, Forbidden. LinkLost, an Unreachable, says that it is not
        known whether it was taken. With `durable` publishing again is safe: the stream takes an id once.
        """
        subject = self._subjects.of(check_topic(topic))
        headers = envelope.encode(topic, check_message(message))
        if self._stream is None:
            session = await self._connection.usable()
            await session.publish(subject, headers, message.body)
        else:
            await self._store(self._stream, subject, headers, message.body)

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        """See the contract. `topic` may be a pattern (capability `wildcards`); the handler gets the topic itself.

        Returns when the server has confirmed it. Without a server within `subscribe_timeout_s` it returns with a
        warning, and is in force as soon as there is one. Raises BadRequest, Forbidden, Closed.
        """
        check_pattern(topic)
        check_queue(queue)
        if not queue.isprintable():
            raise BadRequest(f"the queue group {queue!r:.80} holds what cannot be shown")
        if self._is_closed:
            raise Closed("this broker is closed")
        subscription = self._made(topic, queue, handler)
        self._subscriptions[subscription] = None
        try:
            async with asyncio.timeout(self._options.subscribe_timeout_s):
                await self._put_in_force(subscription)
        except TimeoutError:
            self._context.counters.add("broker_subscriptions_waiting")
            self._context.logger.warning("no NATS server yet; the subscription waits", extra={"topic": topic})
        except BaseException:
            await subscription.close()
            raise
        return subscription

    # -------------------------------------------------------------------------------------- inside

    def _made(self, topic: str, queue: str, handler: MessageHandler) -> CoreSubscription | DurableSubscription:
        if self._stream is None:
            return CoreSubscription(
                topic, queue, handler, self._subjects, self._options, self._context, self._connection, self._forget
            )
        number = self._stream.number(topic) if not queue else 0
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
            bury=self.publish,
            forget=self._forget,
        )

    async def _put_in_force(self, subscription: CoreSubscription | DurableSubscription) -> None:
        while True:
            session = await self._connection.next()
            try:
                await subscription.attach(session)
                return
            except LinkLost:
                # The next session makes it, or we do.
                continue

    async def _prepare(self, session: Session) -> None:
        """Everything that shall stand, before the session is used. Raises MicroError."""
        if self._stream is not None:
            await self._stream.ensure(session)
        subscriptions = list(self._subscriptions)
        results = await asyncio.gather(*(self._attach(each, session) for each in subscriptions), return_exceptions=True)
        for subscription, result in zip(subscriptions, results, strict=True):
            if isinstance(result, LinkLost) or (result is not None and not isinstance(result, MicroError)):
                raise result
            if result is not None:
                self._context.counters.add("broker_subscriptions_refused")
                self._context.logger.warning(
                    "the broker refused a subscription", extra={"topic": subscription.topic, "reason": str(result)}
                )

    async def _attach(self, subscription: CoreSubscription | DurableSubscription, session: Session) -> None:
        try:
            async with asyncio.timeout(self._options.answer_timeout_s):
                await subscription.attach(session)
        except TimeoutError:
            if not subscription.is_attached(session):
                raise
            # A stream without leader, say. The subscription goes on trying; publishers need not wait for it.
            self._context.counters.add("broker_subscriptions_waiting")

    async def _store(self, stream: Stream, subject: str, headers: dict[str, str], body: bytes) -> None:
        """Try again what may have been lost on the way: the stream takes an id once, however often it comes."""
        end = self._context.clock.now() + self._options.publish_timeout_s
        pause_s = FIRST_RETRY_S
        doubt: LinkLost | StreamGone | None = None
        while True:
            try:
                # Where an earlier try may have arrived, only another one can tell: that is worth waiting for.
                session = await self._connection.usable(end - self._context.clock.now() if doubt is not None else 0.0)
                stored = await session.store(subject, headers, body)
            except StreamGone as error:
                doubt = error
                if not session.lost.is_set():
                    await stream.ensure(session)
            except LinkLost as error:
                doubt = error
            except MicroError as error:
                # Nothing is connected now; whether an earlier try arrived is still not known.
                if doubt is not None and error.retry_is_safe:
                    raise doubt from error
                raise
            else:
                if stored.is_duplicate:
                    self._context.counters.add("broker_nats_duplicates_refused")
                return
            if self._context.clock.now() + pause_s >= end:
                raise doubt
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _forget(self, subscription: CoreSubscription | DurableSubscription) -> None:
        self._subscriptions.pop(subscription, None)
        if self._stream is not None:
            self._stream.free(subscription.topic, subscription.number)
