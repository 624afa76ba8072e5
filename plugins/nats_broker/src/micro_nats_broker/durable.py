"""A subscription through JetStream: pulls messages as capacity allows, acknowledges them, and creates dead letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import nats.aio.subscription
from nats.aio.msg import Msg

from micro_core.contract import ConfigError, DriverContext, LinkLost, Message, MessageHandler, MicroError
from micro_nats_broker import dead_letters
from micro_nats_broker.connection import Connection
from micro_nats_broker.core import read_message
from micro_nats_broker.mailbox import MAX_WAITING_BYTES, Mailbox, ReceivedMessage
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.pulls import HEARTBEAT_S, REQUEST_S, Pulls, PullStatus, parse_status
from micro_nats_broker.session import Session
from micro_nats_broker.stream import Stream
from micro_nats_broker.subjects import Subjects
from micro_nats_broker.task_cancellation import cancel_and_wait

MAX_HELD = 64
"""Maximum number of messages held per subscription: enough to keep a handler busy, few to redeliver after a crash."""

ACK, NAK, TERMINATE, PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"
_ACK_PREFIX = "$JS.ACK."
MAX_REMEMBERED = 1_024
"""Number of handled messages remembered, so that one whose acknowledgement was lost is not handled twice."""

RETRY_S = 1.0
"""Pause in seconds after a failed pull request."""

FORWARDING_ACK_WAIT_S = 5.0
"""Seconds after which the next member of a forwarding group receives the messages of a member that died."""

FORWARDING_MAX_DELIVERIES = 100
"""Number of deliveries after which a message of a forwarding group becomes a dead letter. Each change of the member is one."""


class DurableSubscription:
    """Implements `Subscription`; `attach` activates it on each new session."""

    def __init__(
        self,
        topic: str,
        queue: str,
        number: int,
        handler: MessageHandler,
        *,
        stream: Stream,
        subjects: Subjects,
        options: NatsOptions,
        context: DriverContext,
        connection: Connection,
        publish_dead_letter: Callable[[str, Message], Awaitable[None]],
        forget: Callable[[DurableSubscription], None],
        max_concurrent: int = 1,
    ) -> None:
        self.topic = topic
        self.queue = queue
        self.number = number
        self._stream = stream
        self._subjects = subjects
        self._options = options
        self._context = context
        self._connection = connection
        self._publish_dead_letter = publish_dead_letter
        self._forget = forget
        self._is_forwarding = max_concurrent > 1
        self._ack_wait_s = FORWARDING_ACK_WAIT_S if self._is_forwarding else options.ack_wait_s
        self._max_deliveries = FORWARDING_MAX_DELIVERIES if self._is_forwarding else options.max_deliveries
        max_held = max(MAX_HELD, 2 * max_concurrent) if self._is_forwarding else MAX_HELD
        self._mailbox = Mailbox(
            topic,
            handler,
            context,
            max_waiting=2 * max_held,
            max_concurrent=max_concurrent,
            settle=self._settle,
            on_capacity=self._wake,
        )
        self._pulls = Pulls(max_held=max_held)
        self._consumer = stream.consumer_name(topic, queue, number)
        self._incarnation: int | None = None
        """Incarnation of the stream when the consumer was created; None before."""
        self._delivered_to = 0
        """Last known stream sequence that the consumer has delivered."""
        self._inbox = ""
        self._session: Session | None = None
        self._subscription: nats.aio.subscription.Subscription | None = None
        self._ready: asyncio.Future[None] | None = None
        """For the current session: done when the subscription is active or has failed."""
        self._is_consumer_lost = False
        self._handled: dict[int, None] = {}
        self._held: set[int] = set()
        """Stream sequences of messages that are queued or being handled."""
        self._changed = asyncio.Event()
        self._lock = asyncio.Lock()
        self._puller: asyncio.Task[None] | None = None
        self._progress_task = asyncio.get_running_loop().create_task(self._extend_ack_waits())
        self._is_closed = False

    async def attach(self, session: Session) -> None:
        """Activate the subscription on `session`; return when the consumer exists and is polled. Idempotent.

        Raises LinkLost, Forbidden, ConfigError. While JetStream does not respond, it waits; after a cancellation, activation
        continues in the background.
        """
        async with self._lock:
            if self._is_closed:
                return
            if self._session is not session:
                self._inbox = session.client.new_inbox()
                self._subscription = await session.subscribe(
                    f"{self._inbox}.*", "", self._arrived, self._report_overflow
                )
                await cancel_and_wait(self._puller)
                self._session = session
                self._ready = asyncio.get_running_loop().create_future()
                self._is_consumer_lost = True
                self._puller = asyncio.get_running_loop().create_task(self._pull(session, self._ready))
            ready = self._ready
        assert ready is not None
        await asyncio.shield(ready)

    def is_attached(self, session: Session) -> bool:
        """Return whether `session` has the subscription, even if JetStream has not confirmed its consumer yet."""
        return self._session is session

    async def close(self) -> None:
        """Handle held messages, return the rest to JetStream, and delete the consumer of a subscriber without a queue."""
        if self._is_closed:
            return
        self._is_closed = True
        self._forget(self)
        async with self._lock:
            await cancel_and_wait(self._puller)
            if self._session is not None and self._subscription is not None:
                await self._session.unsubscribe(self._subscription, drain_s=max(0.01, self._options.drain_timeout_s))
        left = await self._mailbox.close(self._options.drain_timeout_s)
        await cancel_and_wait(self._progress_task)
        session = self._connection.session
        if session is None:
            return
        try:
            for arrived in left:
                await session.write(arrived.reply, NAK)
            if not self.queue and self._consumer:
                await self._stream.delete_consumer(session, self._consumer)
            else:
                await session.confirmed()
        except MicroError as error:
            self._context.logger.info("closing a subscription failed", extra={"reason": str(error)})

    # ---------------------------------------------------------------------------------- pulling

    async def _pull(self, session: Session, ready: asyncio.Future[None]) -> None:
        """Send pull requests while there is capacity; create the consumer again if it was lost."""
        logged_reason = ""
        while not session.lost.is_set():
            try:
                if self._is_consumer_lost:
                    await self._stream.ensure(session)
                    await self._ensure_consumer(session)
                    self._is_consumer_lost = False
                    self._pulls.reset()
                await self._send_pull(session)
            except LinkLost:
                break
            except MicroError as error:
                if isinstance(error, ConfigError):
                    _fail(ready, error)
                self._context.counters.add("broker_nats_pulls_failed")
                if error.detail != logged_reason:
                    self._context.logger.warning(
                        "JetStream pull failed", extra={"topic": self.topic, "reason": str(error)}
                    )
                    logged_reason = error.detail
                await asyncio.sleep(RETRY_S)
                continue
            logged_reason = ""
            if not ready.done():
                ready.set_result(None)
            self._changed.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._changed.wait()
            except TimeoutError:
                if self._pulls.has_timed_out(self._context.clock.now()):
                    self._context.counters.add("broker_nats_pulls_timed_out")
                    self._pulls.reset()
        _fail(ready, LinkLost(f"the connection was lost before the subscription was active: {session.reason}"))

    async def _ensure_consumer(self, session: Session) -> None:
        """Create the consumer if needed. A lost consumer continues where it was; in a new stream it starts at the beginning."""
        after: int | None = None
        if self._incarnation is not None:
            after = self._delivered_to if self._incarnation == self._stream.incarnation else 0
        # Read the incarnation first, so that a loss of the stream in the meantime is noticed.
        incarnation = self._stream.incarnation
        delivered = await self._stream.ensure_consumer(
            session,
            self.topic,
            self.queue,
            self.number,
            after,
            ack_wait_s=self._ack_wait_s,
            is_forwarding=self._is_forwarding,
        )
        if self._incarnation != incarnation:
            self._incarnation, self._delivered_to = incarnation, 0
            self._handled.clear()
            self._held.clear()
        self._delivered_to = max(self._delivered_to, delivered)

    async def _send_pull(self, session: Session) -> None:
        count = self._pulls.request_count(self._mailbox.held)
        if not count:
            return
        self._pulls.sent(count, self._context.clock.now())
        request = {
            "batch": count,
            "max_bytes": MAX_WAITING_BYTES,
            "expires": round(REQUEST_S * 1e9),
            "idle_heartbeat": round(HEARTBEAT_S * 1e9),
        }
        await session.write(
            self._stream.next_subject(self._consumer),
            json.dumps(request).encode(),
            reply=f"{self._inbox}.{self._pulls.number}",
        )

    def _wake(self) -> None:
        self._changed.set()

    async def _arrived(self, received: Msg) -> None:
        now = self._context.clock.now()
        if not received.reply.startswith(_ACK_PREFIX):
            self._status_received(received, now)
            return
        self._pulls.arrived(now)
        metadata = received.metadata
        sequence = metadata.sequence.stream
        self._delivered_to = max(self._delivered_to, sequence)
        read = read_message(received, self._subjects, self._context)
        if read is None:
            await self._respond(received.reply, TERMINATE)
        elif sequence in self._held:
            # The earlier delivery is still queued; its acknowledgement covers both.
            self._context.counters.add("broker_nats_redeliveries_ignored")
        elif sequence in self._handled:
            self._context.counters.add("broker_nats_redeliveries_ignored")
            await self._respond(received.reply, ACK)
        elif metadata.num_delivered > self._max_deliveries:
            # No process survived to report a failure, so the message may crash its handlers.
            arrived = ReceivedMessage(*read, received.reply, sequence, metadata.num_delivered)
            await self._give_up(arrived, "no handler completed")
        elif self._mailbox.offer(ReceivedMessage(*read, received.reply, sequence, metadata.num_delivered)):
            # The message fits, since no more were requested. Otherwise it is redelivered.
            self._held.add(sequence)
        self._wake()

    def _status_received(self, received: Msg, now: float) -> None:
        headers = received.headers or {}
        token = received.subject.rpartition(".")[2]
        number = int(token) if token.isascii() and token.isdigit() and len(token) < 19 else 0
        match parse_status(headers.get("Status", ""), headers.get("Description", "")):
            case PullStatus.ACTIVE:
                self._pulls.heartbeat(number, now)
            case PullStatus.COMPLETED:
                self._pulls.completed(number)
                self._wake()
            case PullStatus.CONSUMER_LOST:
                self._is_consumer_lost = True
                self._wake()

    def _report_overflow(self, count: int) -> None:
        # No message is lost: unacknowledged messages are redelivered.
        self._context.counters.add("broker_nats_messages_delayed", count)

    # ------------------------------------------------------------------------- acknowledgements

    async def _settle(self, arrived: ReceivedMessage, failure: Exception | None) -> None:
        self._held.discard(arrived.sequence)
        if failure is None:
            self._handled[arrived.sequence] = None
            if len(self._handled) > MAX_REMEMBERED:
                del self._handled[next(iter(self._handled))]
            await self._respond(arrived.reply, ACK)
        elif arrived.delivery >= self._options.max_deliveries:
            await self._give_up(arrived, f"{type(failure).__name__}: {failure}")
        else:
            pause_s = min(
                self._options.redelivery_delay_s * 2 ** min(arrived.delivery - 1, 16), self._options.ack_wait_s
            )
            self._context.counters.add("broker_nats_messages_delayed")
            await self._respond(arrived.reply, NAK + b" " + json.dumps({"delay": round(pause_s * 1e9)}).encode())

    async def _give_up(self, arrived: ReceivedMessage, reason: str) -> None:
        """Publish a dead letter, then terminate the message, so that it is never lost in between."""
        topic = self._options.dead_letter_topic
        if arrived.topic == topic:
            self._context.counters.add("broker_nats_dead_letters_dropped")
            self._context.logger.error("dead letter dropped", extra={"topic": topic, "reason": reason})
            await self._respond(arrived.reply, TERMINATE)
            return
        dead_letter = dead_letters.make_dead_letter(
            arrived.topic, arrived.message, self.queue, arrived.delivery, reason
        )
        try:
            await self._publish_dead_letter(topic, dead_letter)
        except MicroError as error:
            self._context.counters.add("broker_nats_dead_letters_failed")
            self._context.logger.warning(
                "publishing a dead letter failed; the message is redelivered",
                extra={"topic": arrived.topic, "reason": str(error)},
            )
            return
        self._context.counters.add("broker_nats_dead_letters")
        self._context.logger.warning("message became a dead letter", extra={"topic": arrived.topic, "reason": reason})
        await self._respond(arrived.reply, TERMINATE)

    async def _respond(self, reply: str, payload: bytes) -> None:
        """Acknowledge on the current session; JetStream does not require the one that received the message."""
        try:
            async with asyncio.timeout(self._options.ack_wait_s):
                session = await self._connection.next()
                await session.write(reply, payload)
        except (MicroError, TimeoutError):
            self._context.counters.add("broker_nats_acknowledgements_lost")

    async def _extend_ack_waits(self) -> None:
        """Extend the acknowledgement time of queued messages, and of those that are being forwarded."""
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            session = self._connection.session
            if session is None:
                continue
            for arrived in self._mailbox.unsettled() if self._is_forwarding else self._mailbox.waiting():
                try:
                    await session.write(arrived.reply, PROGRESS)
                except MicroError:
                    # The message is redelivered.
                    break


def _fail(ready: asyncio.Future[None], error: MicroError) -> None:
    if not ready.done():
        ready.set_exception(error)
        # Mark the exception as retrieved, in case the waiter was cancelled.
        ready.exception()
