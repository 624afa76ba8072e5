"""Publishes messages of other sites on the broker of the own site: at most once, or as calls that are answered."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from micro_core.contract.broker import Broker, Message
from micro_core.contract.errors import MicroError, Overloaded
from micro_core.contract.messages import check_message
from micro_core.contract.names import check_topic
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.proxy.duplicate_filter import DuplicateFilter
from micro_core.proxy.message_headers import DELIVERED_BY, ORIGIN
from micro_core.wire.header import EventHeader

MAX_WAITING = 10_000
"""Maximum number of messages that wait for the broker of the site; further ones are dropped and counted, or refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverRequest:
    """A message of another site. `origin` is the node that received it from its publisher."""

    topic: str
    id: str
    body: bytes
    content_type: str = "application/msgpack"
    headers: dict[str, str] = field(default_factory=dict)
    origin: str = ""


class Deliveries:
    """Publishes messages on `broker`, marked so that no node sends them to other sites again."""

    def __init__(self, *, broker: Broker, environment: Environment) -> None:
        self._node_id = environment.node_id
        self._broker = broker
        self._clock = environment.clock
        self._logger = environment.logger
        self._counters = environment.counters
        self._waiting: deque[tuple[str, Message]] = deque()
        self._has_waiting = asyncio.Event()
        self._delivered = DuplicateFilter()
        """Messages that were received as calls and published."""
        self._calls: dict[tuple[str, str], asyncio.Task[None]] = {}
        """Publications that calls wait for, by message id and topic."""
        self._tasks = BackgroundTasks(
            component="deliveries",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="topics_tasks_failed",
        )

    def start(self) -> None:
        """Start to publish."""
        self._tasks.start(self._publish_waiting())

    async def close(self) -> None:
        """Stop. Waiting messages are dropped."""
        await self._tasks.cancel()
        for task in self._calls.values():
            task.cancel()
        await asyncio.gather(*self._calls.values(), return_exceptions=True)

    # ------------------------------------------------------------ at most once

    def enqueue(self, header: EventHeader, body: bytes) -> None:
        """Publish a message later, in the order of the calls. Never waits."""
        if len(self._waiting) >= MAX_WAITING:
            self._counters.add("topics_messages_dropped_slow_broker")
            return
        message = Message(
            id=header.id,
            body=bytes(body),
            content_type=header.content_type,
            headers=self._marked(header.headers, header.origin),
        )
        self._waiting.append((header.topic, message))
        self._has_waiting.set()

    async def _publish_waiting(self) -> None:
        """Publish waiting messages one after the other, which preserves the order of each publisher."""
        while True:
            await self._has_waiting.wait()
            self._has_waiting.clear()
            while self._waiting:
                topic, message = self._waiting.popleft()
                try:
                    await self._broker.publish(topic, message)
                except MicroError as error:
                    self._counters.add("topics_messages_undelivered")
                    self._logger.warning("message not delivered", extra={"topic": topic, "reason": str(error)})
                else:
                    self._counters.add("topics_messages_delivered")

    # -------------------------------------------------------------------- calls

    async def deliver(self, request: DeliverRequest) -> dict[str, Any]:
        """Publish a message of another site, and answer when the broker has accepted it. A repeated message is not published.

        Raises:
            BadRequest: The topic or a field of the message is invalid.
            TooLarge: The message exceeds a limit.
            Overloaded: Too many messages wait for the broker.
            Unreachable: The broker cannot be reached.
        """
        topic = check_topic(request.topic)
        message = check_message(
            Message(
                id=request.id,
                body=request.body,
                content_type=request.content_type,
                headers=self._marked(request.headers, request.origin),
            )
        )
        if self._delivered.is_known(message.id, topic):
            self._counters.add("topics_copies_dropped")
            return {"id": message.id}
        key = (message.id, topic)
        task = self._calls.get(key)
        if task is None:
            if len(self._calls) >= MAX_WAITING:
                raise Overloaded("too many messages wait for the broker of the site")
            task = self._calls[key] = asyncio.get_running_loop().create_task(self._publish(topic, message))
        # The publication continues when the call is cancelled, because it may have taken effect.
        await asyncio.shield(task)
        return {"id": message.id}

    async def _publish(self, topic: str, message: Message) -> None:
        try:
            await self._broker.publish(topic, message)
            self._delivered.is_first(message.id, topic, self._clock.now())
            self._counters.add("topics_messages_delivered")
        finally:
            del self._calls[message.id, topic]

    def _marked(self, headers: Any, origin: str) -> dict[str, str]:
        return {**headers, DELIVERED_BY: self._node_id, ORIGIN: origin}
