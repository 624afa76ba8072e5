"""The stream of one site, and the consumers in it: made when they are not there, left as they are when they are."""

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
from micro_nats_broker.replay import Begin
from micro_nats_broker.session import Session
from micro_nats_broker.subjects import Subjects, group_consumer, single_consumer

MAX_STORED_BYTES = MAX_MESSAGE_BYTES + 4 * MAX_HEADERS_BYTES
"""Of one message: percent-encoding may triple its headers."""

_NOT_ENABLED = (10_039, 10_076)
_NO_RESOURCES = (10_023, 10_028, 10_047)
MAX_ACK_PENDING = 1_024
"""Messages of one consumer that are delivered and not acknowledged, over all members of a group."""


class Stream:
    """What is known of the stream; knows which numbers of single subscribers are taken."""

    def __init__(self, subjects: Subjects, options: NatsOptions, context: DriverContext, begin: Begin) -> None:
        self.name = subjects.stream
        self._subjects = subjects
        self._options = options
        self._context = context
        self._begin = begin
        self._numbers: dict[str, set[int]] = defaultdict(set)
        self._created: dt.datetime | None = None
        self.incarnation = 0
        """Counts how often the stream was lost and made anew; sequences begin again with each."""
        self._turn = asyncio.Lock()
        self._has_warned = False

    # ------------------------------------------------------------------------- subscribers by name

    def number(self, topic: str) -> int:
        """The smallest number free among this process's subscribers to `topic` without queue: after a restart the same
        subscriber has the same name, and gets what it missed.
        """
        taken = self._numbers[topic]
        found = next(number for number in range(len(taken) + 1) if number not in taken)
        taken.add(found)
        return found

    def free(self, topic: str, number: int) -> None:
        taken = self._numbers.get(topic)
        if taken is not None:
            taken.discard(number)
            if not taken:
                del self._numbers[topic]

    def consumer_name(self, topic: str, queue: str, number: int) -> str:
        if queue:
            return group_consumer(topic, queue)
        return single_consumer(topic, self._context.node_id, number, self._options.replay_from)

    # ---------------------------------------------------------------------------------- the server

    async def ensure(self, session: Session) -> None:
        """Make the stream where it is not. Raises ConfigError, Unreachable."""
        async with self._turn:
            manager = self._manager(session)
            try:
                info = await self._found_or_made(manager)
            except (nats.errors.Error, TimeoutError) as error:
                raise self._translated(error) from error
            self._warn_of_other_bounds(info.config)
            if self._created is not None and info.created is not None and info.created != self._created:
                # Emptied behind our backs: whatever is in it now was published since, and nobody has seen it.
                self.incarnation += 1
                self._context.counters.add("broker_nats_streams_lost")
                self._context.logger.warning(
                    "the stream was lost, with what it held; it was made anew", extra={"stream": self.name}
                )
            self._created = info.created

    async def ensure_consumer(self, session: Session, topic: str, queue: str, number: int, after: int | None) -> int:
        """Make the consumer where it is not; return the sequence up to which it has delivered.

        A new one begins behind sequence `after`, or, with None, where the options say. Raises ConfigError, Unreachable.
        """
        name = self.consumer_name(topic, queue, number)
        manager = self._manager(session)
        try:
            try:
                found = await manager.consumer_info(self.name, name)
            except nats.js.errors.NotFoundError:
                found = await self._make_consumer(manager, name, topic, queue, after)
            else:
                if found.config.ack_wait != self._options.ack_wait_s:
                    await manager.add_consumer(self.name, replace(found.config, ack_wait=self._options.ack_wait_s))
        except (nats.errors.Error, TimeoutError) as error:
            raise self._translated(error) from error
        return found.delivered.stream_seq if found.delivered is not None else 0

    async def delete_consumer(self, session: Session, name: str) -> None:
        """Forget a subscriber. Raises Unreachable."""
        try:
            await self._manager(session).delete_consumer(self.name, name)
        except nats.js.errors.NotFoundError:
            return
        except (nats.errors.Error, TimeoutError) as error:
            raise self._translated(error) from error

    def next_subject(self, consumer: str) -> str:
        """Where to ask for more."""
        return f"{api.DEFAULT_PREFIX}.CONSUMER.MSG.NEXT.{self.name}.{consumer}"

    # -------------------------------------------------------------------------------------- inside

    def _manager(self, session: Session) -> JetStreamContext:
        return session.client.jetstream(timeout=self._options.answer_timeout_s)

    async def _found_or_made(self, manager: JetStreamContext) -> api.StreamInfo:
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
            # Somebody else made it meanwhile, with other bounds perhaps; if not, this says what is wrong.
            return await manager.stream_info(self.name)

    async def _make_consumer(
        self, manager: JetStreamContext, name: str, topic: str, queue: str, after: int | None
    ) -> api.ConsumerInfo:
        options = self._options
        config = api.ConsumerConfig(
            name=name,
            durable_name=name,
            description=f"micro: {topic[:80]}",
            filter_subject=self._subjects.of(topic),
            deliver_policy=api.DeliverPolicy.NEW,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=options.ack_wait_s,
            # Without end: it is we who count, so that a message that kills its handlers is buried too.
            max_deliver=-1,
            max_ack_pending=MAX_ACK_PENDING,
            # A group that has been away for as long as messages are kept has missed what it has missed.
            inactive_threshold=options.max_age_s if queue else options.keep_subscriber_s,
        )
        if after is not None:
            config.deliver_policy = api.DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = after + 1
        elif self._begin.is_everything:
            config.deliver_policy = api.DeliverPolicy.ALL
        elif self._begin.moment is not None:
            config.deliver_policy = api.DeliverPolicy.BY_START_TIME
            config.opt_start_time = self._begin.moment
        try:
            return await manager.add_consumer(self.name, config)
        except nats.js.errors.BadRequestError:
            # Another member of the group was first, with another beginning; if not, this says what is wrong.
            found: api.ConsumerInfo = await manager.consumer_info(self.name, name)
            return found

    def _warn_of_other_bounds(self, config: api.StreamConfig) -> None:
        options = self._options
        wanted = {"max_age": options.max_age_s, "max_bytes": options.max_bytes, "num_replicas": options.replicas}
        others = {key: getattr(config, key) for key, value in wanted.items() if getattr(config, key) != value}
        if others and not self._has_warned:
            self._has_warned = True
            self._context.logger.warning(
                "the stream has other bounds than the options say, and keeps them",
                extra={"stream": self.name, "bounds": ", ".join(f"{key}={value}" for key, value in others.items())},
            )

    def _translated(self, error: Exception) -> ConfigError | Unreachable:
        code = getattr(error, "err_code", None)
        said = getattr(error, "description", None) or str(error) or type(error).__name__
        if code in _NOT_ENABLED or (isinstance(error, nats.js.errors.ServiceUnavailableError) and code is None):
            return Unreachable("nats: the server has no JetStream", hint="nats-server -js, or durable = false")
        if code in _NO_RESOURCES:
            return ConfigError(f"nats: JetStream: {said}", hint="lower max_bytes or replicas, or give it more room")
        return Unreachable(f"nats: JetStream: {said}", hint="nats stream report")
