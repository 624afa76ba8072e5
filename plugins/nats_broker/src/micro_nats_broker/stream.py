"""The stream of one site and its consumers. They are created if missing and otherwise not changed."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import defaultdict
from dataclasses import replace

import nats.errors
import nats.js.errors
from nats.js import api
from nats.js.client import JetStreamContext

from micro_core.contract import ConfigError, DriverContext, Unreachable
from micro_core.contract.messages import MAX_HEADERS_BYTES, MAX_MESSAGE_BYTES
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.replay import ReplayStart
from micro_nats_broker.session import Session
from micro_nats_broker.subjects import Subjects, group_consumer, single_consumer

MAX_STORED_BYTES = MAX_MESSAGE_BYTES + 4 * MAX_HEADERS_BYTES
"""Maximum size of a stored message: percent-encoding may triple the headers."""

_NOT_ENABLED = (10_039, 10_076)
_NO_RESOURCES = (10_023, 10_028, 10_047)
MAX_ACK_PENDING = 1_024
"""Maximum number of unacknowledged messages of one consumer, over all members of a group."""


class Stream:
    """The stream of one site. It also assigns numbers to subscribers without a queue."""

    def __init__(
        self, subjects: Subjects, options: NatsOptions, context: DriverContext, replay_start: ReplayStart
    ) -> None:
        self.name = subjects.stream
        self._subjects = subjects
        self._options = options
        self._context = context
        self._replay_start = replay_start
        self._numbers: dict[str, set[int]] = defaultdict(set)
        self._created: dt.datetime | None = None
        self.incarnation = 0
        """Number of times the stream was lost and created again; sequence numbers restart each time."""
        self._lock = asyncio.Lock()
        self._has_warned = False

    # ------------------------------------------------------------------------- subscribers by name

    def allocate_number(self, topic: str) -> int:
        """Return the lowest free number of a subscriber to `topic` without a queue in this process.

        After a restart, the same subscriber has the same consumer name and receives the messages it missed.
        """
        taken = self._numbers[topic]
        found = next(number for number in range(len(taken) + 1) if number not in taken)
        taken.add(found)
        return found

    def release_number(self, topic: str, number: int) -> None:
        """Make a number available again."""
        taken = self._numbers.get(topic)
        if taken is not None:
            taken.discard(number)
            if not taken:
                del self._numbers[topic]

    def consumer_name(self, topic: str, queue: str, number: int) -> str:
        """Return the name of the consumer of a queue group, or of a subscriber without a queue."""
        if queue:
            return group_consumer(topic, queue)
        return single_consumer(topic, self._context.node_id, number, self._options.replay_from)

    # ---------------------------------------------------------------------------------- the server

    async def ensure(self, session: Session) -> None:
        """Create the stream if it does not exist. Raises ConfigError, Unreachable."""
        async with self._lock:
            manager = self._manager(session)
            try:
                info = await self._find_or_create(manager)
            except (nats.errors.Error, TimeoutError) as error:
                raise self._to_micro_error(error) from error
            self._warn_about_limits(info.config)
            if self._created is not None and info.created is not None and info.created != self._created:
                # The stream was replaced: all its messages were published since then and are undelivered.
                self.incarnation += 1
                self._context.counters.add("broker_nats_streams_lost")
                self._context.logger.warning(
                    "stream and its messages were lost, stream created again", extra={"stream": self.name}
                )
            self._created = info.created

    async def ensure_consumer(
        self,
        session: Session,
        topic: str,
        queue: str,
        number: int,
        after: int | None,
        *,
        ack_wait_s: float,
        is_forwarding: bool = False,
    ) -> int:
        """Create the consumer if it does not exist; return the last sequence number it has delivered.

        A new consumer starts after sequence `after`, or, with None, as the options specify. One that forwards messages
        starts with new messages, and is kept as long as that of a subscriber without a queue. Raises ConfigError,
        Unreachable.
        """
        name = self.consumer_name(topic, queue, number)
        manager = self._manager(session)
        try:
            try:
                found = await manager.consumer_info(self.name, name)
            except nats.js.errors.NotFoundError:
                config = self._consumer_config(name, topic, after, ack_wait_s=ack_wait_s, is_forwarding=is_forwarding)
                if queue and not is_forwarding:
                    # After this time, all messages for the group have expired anyway.
                    config.inactive_threshold = self._options.max_age_s
                found = await self._create_consumer(manager, config)
            else:
                if found.config.ack_wait != ack_wait_s:
                    await manager.add_consumer(self.name, replace(found.config, ack_wait=ack_wait_s))
        except (nats.errors.Error, TimeoutError) as error:
            raise self._to_micro_error(error) from error
        return found.delivered.stream_seq if found.delivered is not None else 0

    async def delete_consumer(self, session: Session, name: str) -> None:
        """Delete a consumer if it exists. Raises Unreachable."""
        try:
            await self._manager(session).delete_consumer(self.name, name)
        except nats.js.errors.NotFoundError:
            return
        except (nats.errors.Error, TimeoutError) as error:
            raise self._to_micro_error(error) from error

    def next_subject(self, consumer: str) -> str:
        """Return the subject of pull requests for a consumer."""
        return f"{api.DEFAULT_PREFIX}.CONSUMER.MSG.NEXT.{self.name}.{consumer}"

    # ------------------------------------------------------------------------------------ internal

    def _manager(self, session: Session) -> JetStreamContext:
        return session.client.jetstream(timeout=self._options.answer_timeout_s)

    async def _find_or_create(self, manager: JetStreamContext) -> api.StreamInfo:
        try:
            return await manager.stream_info(self.name)
        except nats.js.errors.NotFoundError:
            pass
        options = self._options
        config = api.StreamConfig(
            name=self.name,
            description=f"micro: topics of {self._context.site} in {self._context.network}",
            subjects=[self._subjects.all],
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            storage=api.StorageType.FILE if options.storage == "file" else api.StorageType.MEMORY,
            max_age=options.max_age_s,
            max_bytes=options.max_bytes,
            max_msg_size=MAX_STORED_BYTES,
            num_replicas=options.replicas,
            duplicate_window=options.dedupe_window_s,
        )
        try:
            return await manager.add_stream(config)
        except nats.js.errors.BadRequestError:
            # Another process may have created it with other limits; otherwise this raises the actual error.
            return await manager.stream_info(self.name)

    def _consumer_config(
        self, name: str, topic: str, after: int | None, *, ack_wait_s: float, is_forwarding: bool
    ) -> api.ConsumerConfig:
        config = api.ConsumerConfig(
            name=name,
            durable_name=name,
            description=f"micro: {topic[:80]}",
            filter_subject=self._subjects.of(topic),
            deliver_policy=api.DeliverPolicy.NEW,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ack_wait_s,
            # No limit: this plugin counts deliveries, so that a message that crashes its handlers becomes a dead letter.
            max_deliver=-1,
            max_ack_pending=MAX_ACK_PENDING,
            inactive_threshold=self._options.keep_subscriber_s,
        )
        if after is not None:
            config.deliver_policy = api.DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = after + 1
        elif is_forwarding:
            pass
        elif self._replay_start.is_everything:
            config.deliver_policy = api.DeliverPolicy.ALL
        elif self._replay_start.moment is not None:
            config.deliver_policy = api.DeliverPolicy.BY_START_TIME
            config.opt_start_time = self._replay_start.moment
        return config

    async def _create_consumer(self, manager: JetStreamContext, config: api.ConsumerConfig) -> api.ConsumerInfo:
        try:
            return await manager.add_consumer(self.name, config)
        except nats.js.errors.BadRequestError:
            # Another member may have created it with another start; otherwise this raises the actual error.
            found: api.ConsumerInfo = await manager.consumer_info(self.name, str(config.durable_name))
            return found

    def _warn_about_limits(self, config: api.StreamConfig) -> None:
        options = self._options
        expected = {"max_age": options.max_age_s, "max_bytes": options.max_bytes, "num_replicas": options.replicas}
        others = {key: getattr(config, key) for key, value in expected.items() if getattr(config, key) != value}
        if others and not self._has_warned:
            self._has_warned = True
            self._context.logger.warning(
                "limits of the existing stream differ from the options and are not changed",
                extra={"stream": self.name, "limits": ", ".join(f"{key}={value}" for key, value in others.items())},
            )

    def _to_micro_error(self, error: Exception) -> ConfigError | Unreachable:
        code = getattr(error, "err_code", None)
        text = getattr(error, "description", None) or str(error) or type(error).__name__
        if code in _NOT_ENABLED or (isinstance(error, nats.js.errors.ServiceUnavailableError) and code is None):
            return Unreachable(
                "nats: the server has no JetStream", hint="start nats-server -js, or set durable = false"
            )
        if code in _NO_RESOURCES:
            return ConfigError(
                f"nats: JetStream: {text}", hint="lower max_bytes or replicas, or raise the limits of the server"
            )
        return Unreachable(f"nats: JetStream: {text}", hint="nats stream report")
