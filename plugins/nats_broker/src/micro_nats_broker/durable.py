"""A subscription through JetStream: asks for as much as it can hold, acknowledges what was handled, buries the rest."""

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
from micro_nats_broker.ending import end
from micro_nats_broker.mailbox import MAX_WAITING_BYTES, Arrived, Mailbox
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.pulls import HEARTBEAT_S, REQUEST_S, Pulls, Said, meaning
from micro_nats_broker.session import Session
from micro_nats_broker.stream import Stream
from micro_nats_broker.subjects import Subjects

AT_ONCE = 64
"""Messages held of one subscription: enough to keep a handler busy, few to come again when this process dies."""

ACK, AGAIN, TERMINATE, PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"
_ACK_PREFIX = "$JS.ACK."
MAX_REMEMBERED = 1_024
"""Messages remembered as handled, so that one whose acknowledgement was lost is not handled twice by this process."""

RETRY_S = 1.0


class DurableSubscription:
    """Implements `Subscription`; `attach` puts it in force on a session, each time there is a new one."""

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
        bury: Callable[[str, Message], Awaitable[None]],
        forget: Callable[[DurableSubscription], None],
    ) -> None:
        self.topic = topic
        self.queue = queue
        self.number = number
        self._stream = stream
        self._subjects = subjects
        self._options = options
        self._context = context
        self._connection = connection
        self._bury = bury
        self._forget = forget
        self._mailbox = Mailbox(
            topic, handler, context, max_waiting=2 * AT_ONCE, settle=self._settle, on_room=self._wake
        )
        self._pulls = Pulls(at_once=AT_ONCE)
        self._consumer = stream.consumer_name(topic, queue, number)
        self._incarnation: int | None = None
        """Of the stream, when this was put in force; None before."""
        self._delivered_to = 0
        """The last sequence of it that the consumer has delivered, as far as we know."""
        self._inbox = ""
        self._session: Session | None = None
        self._on_server: nats.aio.subscription.Subscription | None = None
        self._standing: asyncio.Future[None] | None = None
        """Of the session: done when it is in force, or when it cannot be."""
        self._is_consumer_gone = False
        self._handled: dict[int, None] = {}
        self._held: set[int] = set()
        """Sequences that wait here or are being handled."""
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._puller: asyncio.Task[None] | None = None
        self._toucher = asyncio.get_running_loop().create_task(self._touch())
        self._is_closed = False

    async def attach(self, session: Session) -> None:
        """Return when the consumer stands and is asked; again on the same session it does nothing.

        Raises LinkLost, Forbidden, ConfigError. While JetStream does not answer it waits; whoever gives up waiting leaves
        it to be put in force as soon as JetStream does.
        """
        async with self._turn:
            if self._is_closed:
                return
            if self._session is not session:
                self._inbox = session.client.new_inbox()
                self._on_server = await session.subscribe(f"{self._inbox}.*", "", self._arrived, self._overrun)
                await end(self._puller)
                self._session = session
                self._standing = asyncio.get_running_loop().create_future()
                self._is_consumer_gone = True
                self._puller = asyncio.get_running_loop().create_task(self._pull(session, self._standing))
            standing = self._standing
        assert standing is not None
        await asyncio.shield(standing)

    def is_attached(self, session: Session) -> bool:
        """Whether all is done but what JetStream has to do."""
        return self._session is session

    async def close(self) -> None:
        """Handle what is held, give the rest back; without queue, nothing is kept for this subscriber any more."""
        if self._is_closed:
            return
        self._is_closed = True
        self._forget(self)
        async with self._turn:
            await end(self._puller)
            if self._session is not None and self._on_server is not None:
                await self._session.unsubscribe(self._on_server, drain_s=max(0.01, self._options.drain_timeout_s))
        left = await self._mailbox.close(self._options.drain_timeout_s)
        await end(self._toucher)
        session = self._connection.session
        if session is None:
            return
        try:
            for arrived in left:
                await session.tell(arrived.reply, AGAIN)
            if not self.queue and self._consumer:
                await self._stream.delete_consumer(session, self._consumer)
            else:
                await session.answered()
        except MicroError as error:
            self._context.logger.info("a subscription ended untidily", extra={"reason": str(error)})

    # ---------------------------------------------------------------------------------- asking

    async def _pull(self, session: Session, standing: asyncio.Future[None]) -> None:
        """Ask whenever there is room; make the consumer again when it is gone."""
        said = ""
        while not session.lost.is_set():
            try:
                if self._is_consumer_gone:
                    await self._stream.ensure(session)
                    await self._ensure_consumer(session)
                    self._is_consumer_gone = False
                    self._pulls.reset()
                await self._ask(session)
            except LinkLost:
                break
            except MicroError as error:
                if isinstance(error, ConfigError):
                    _fail(standing, error)
                self._context.counters.add("broker_nats_pulls_failed")
                if error.detail != said:
                    self._context.logger.warning(
                        "JetStream does not serve a subscription", extra={"topic": self.topic, "reason": str(error)}
                    )
                    said = error.detail
                await asyncio.sleep(RETRY_S)
                continue
            said = ""
            if not standing.done():
                standing.set_result(None)
            self._changed.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._changed.wait()
            except TimeoutError:
                if self._pulls.is_forgotten(self._context.clock.now()):
                    self._context.counters.add("broker_nats_pulls_forgotten")
                    self._pulls.reset()
        _fail(standing, LinkLost(f"the connection was lost before the subscription stood: {session.reason}"))

    async def _ensure_consumer(self, session: Session) -> None:
        """Put it in force; a consumer that was lost goes on where it was, in a stream that was lost from its beginning."""
        after: int | None = None
        if self._incarnation is not None:
            after = self._delivered_to if self._incarnation == self._stream.incarnation else 0
        # Read before: should the stream be lost meanwhile, it will be noticed.
        incarnation = self._stream.incarnation
        delivered = await self._stream.ensure_consumer(session, self.topic, self.queue, self.number, after)
        if self._incarnation != incarnation:
            self._incarnation, self._delivered_to = incarnation, 0
            self._handled.clear()
            self._held.clear()
        self._delivered_to = max(self._delivered_to, delivered)

    async def _ask(self, session: Session) -> None:
        wanted = self._pulls.wanted(self._mailbox.held)
        if not wanted:
            return
        self._pulls.asked(wanted, self._context.clock.now())
        request = {
            "batch": wanted,
            "max_bytes": MAX_WAITING_BYTES,
            "expires": round(REQUEST_S * 1e9),
            "idle_heartbeat": round(HEARTBEAT_S * 1e9),
        }
        await session.tell(
            self._stream.next_subject(self._consumer),
            json.dumps(request).encode(),
            reply=f"{self._inbox}.{self._pulls.number}",
        )

    def _wake(self) -> None:
        self._changed.set()

    async def _arrived(self, received: Msg) -> None:
        now = self._context.clock.now()
        if not received.reply.startswith(_ACK_PREFIX):
            self._told(received, now)
            return
        self._pulls.arrived(now)
        metadata = received.metadata
        sequence = metadata.sequence.stream
        self._delivered_to = max(self._delivered_to, sequence)
        read = read_message(received, self._subjects, self._context)
        if read is None:
            await self._tell(received.reply, TERMINATE)
        elif sequence in self._held:
            # Its turn comes, and acknowledging the earlier delivery settles both.
            self._context.counters.add("broker_nats_redeliveries_known")
        elif sequence in self._handled:
            self._context.counters.add("broker_nats_redeliveries_known")
            await self._tell(received.reply, ACK)
        elif metadata.num_delivered > self._options.max_deliveries:
            # Nobody lived to say that it failed: it may be what kills us.
            arrived = Arrived(*read, received.reply, sequence, metadata.num_delivered)
            await self._give_up(arrived, "no handler came to an end with it")
        elif self._mailbox.offer(Arrived(*read, received.reply, sequence, metadata.num_delivered)):
            # It fits, for no more was asked for; one that does not comes again.
            self._held.add(sequence)
        self._wake()

    def _told(self, received: Msg, now: float) -> None:
        headers = received.headers or {}
        word = received.subject.rpartition(".")[2]
        number = int(word) if word.isascii() and word.isdigit() and len(word) < 19 else 0
        match meaning(headers.get("Status", ""), headers.get("Description", "")):
            case Said.BEAT:
                self._pulls.beat(number, now)
            case Said.OVER:
                self._pulls.over(number)
                self._wake()
            case Said.GONE:
                self._is_consumer_gone = True
                self._wake()

    def _overrun(self, count: int) -> None:
        # Nothing is lost: it is not acknowledged, so it comes again.
        self._context.counters.add("broker_nats_messages_put_off", count)

    # ---------------------------------------------------------------------------------- answering

    async def _settle(self, arrived: Arrived, failure: Exception | None) -> None:
        self._held.discard(arrived.sequence)
        if failure is None:
            self._handled[arrived.sequence] = None
            if len(self._handled) > MAX_REMEMBERED:
                del self._handled[next(iter(self._handled))]
            await self._tell(arrived.reply, ACK)
        elif arrived.delivery >= self._options.max_deliveries:
            await self._give_up(arrived, f"{type(failure).__name__}: {failure}")
        else:
            pause_s = min(
                self._options.redelivery_delay_s * 2 ** min(arrived.delivery - 1, 16), self._options.ack_wait_s
            )
            self._context.counters.add("broker_nats_messages_put_off")
            await self._tell(arrived.reply, AGAIN + b" " + json.dumps({"delay": round(pause_s * 1e9)}).encode())

    async def _give_up(self, arrived: Arrived, reason: str) -> None:
        """Bury, and only then be done with it: a message is in the stream or among the dead letters, never nowhere."""
        topic = self._options.dead_letter_topic
        if arrived.topic == topic:
            self._context.counters.add("broker_nats_dead_letters_dropped")
            self._context.logger.error("a dead letter was given up", extra={"topic": topic, "reason": reason})
            await self._tell(arrived.reply, TERMINATE)
            return
        letter = dead_letters.letter(arrived.topic, arrived.message, self.queue, arrived.delivery, reason)
        try:
            await self._bury(topic, letter)
        except MicroError as error:
            self._context.counters.add("broker_nats_burials_failed")
            self._context.logger.warning(
                "a message was not buried; it comes again", extra={"topic": arrived.topic, "reason": str(error)}
            )
            return
        self._context.counters.add("broker_nats_dead_letters")
        self._context.logger.warning(
            "a message goes to the dead letters", extra={"topic": arrived.topic, "reason": reason}
        )
        await self._tell(arrived.reply, TERMINATE)

    async def _tell(self, reply: str, word: bytes) -> None:
        """Answer through whatever session there is: the stream knows the message, not the connection."""
        try:
            async with asyncio.timeout(self._options.ack_wait_s):
                session = await self._connection.next()
                await session.tell(reply, word)
        except (MicroError, TimeoutError):
            self._context.counters.add("broker_nats_acknowledgements_lost")

    async def _touch(self) -> None:
        """Tell the server that messages whose turn has not come are not forgotten."""
        while True:
            await asyncio.sleep(self._options.ack_wait_s / 3)
            session = self._connection.session
            if session is None:
                continue
            for arrived in self._mailbox.waiting():
                try:
                    await session.tell(arrived.reply, PROGRESS)
                except MicroError:
                    # It comes again: at least once.
                    break


def _fail(standing: asyncio.Future[None], error: MicroError) -> None:
    if not standing.done():
        standing.set_exception(error)
        # Whoever waited may have gone; an error that nobody fetches is no fault.
        standing.exception()
