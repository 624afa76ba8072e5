"""The subscribers of a server: handlers of messages, and the limit for messages that are handled concurrently."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from micro_core.contract.broker import Message
from micro_core.contract.driver import Counters
from micro_core.contract.errors import ConfigError, MicroError
from micro_core.contract.names import check_topic
from micro_core.contract.registry import Endpoint, EndpointKind
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.rpc.context import CallContext
from micro_core.rpc.schema import first_doc_line, json_schema, read_handler
from micro_core.rpc.server_call import ServedEndpoint
from micro_core.rpc.validation import converter
from micro_core.wire import codec
from micro_core.wire.header import EventHeader

log = logging.getLogger(__name__)

MAX_CONCURRENT_EVENTS = 1_024
"""Maximum number of messages that are handled concurrently. Further messages are dropped and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriber:
    """A handler of messages. `receive(topic, message)` decodes and validates a message and calls the handler."""

    endpoint: Endpoint
    receive: Callable[[str, Message], Any]


class Subscribers:
    """The subscribers of the service `service`, in the order in which they were added."""

    def __init__(self, service: str, counters: Counters) -> None:
        self._service = service
        self._counters = counters
        self._subscribers: list[Subscriber] = []
        self._tasks = BackgroundTasks(
            component="subscribers", logger=log, counters=counters, failure_counter="events_failed"
        )

    @property
    def all(self) -> tuple[Subscriber, ...]:
        """Return all subscribers."""
        return tuple(self._subscribers)

    @property
    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """Return the tasks that handle messages of connections at the moment."""
        return self._tasks.running

    def add(self, topic: str, handler: Callable[..., Any], *, queue: str = "") -> Subscriber:
        """Add a subscriber; see `Server.add_subscriber`.

        Raises:
            BadRequest: The topic is invalid.
            ConfigError: The signature is not that of a subscriber, or a type cannot be validated.
        """
        check_topic(topic)
        shape = read_handler(handler)
        if shape.kind is not EndpointKind.UNARY or not shape.takes_request:
            raise ConfigError(
                f"the subscriber of {topic} has the wrong signature",
                hint="a subscriber takes (message) or (message, context) and returns nothing",
            )
        endpoint = Endpoint(
            name=topic,
            kind=EndpointKind.SUBSCRIBER,
            request=json_schema(shape.request_type),
            queue=queue,
            description=first_doc_line(handler),
        )
        served = ServedEndpoint(
            endpoint=endpoint, mode=0, handler=handler, shape=shape, convert=converter(shape.request_type)
        )
        subscriber = Subscriber(endpoint=endpoint, receive=partial(self._receive, served))
        self._subscribers.append(subscriber)
        return subscriber

    def event_received(self, header: EventHeader, body: bytes) -> None:
        """Start the subscribers of the topic of a message, each in a task. Above the limit, the message is dropped."""
        message = Message(id=header.id, body=body, content_type=header.content_type, headers=header.headers)
        for subscriber in self._subscribers:
            if subscriber.endpoint.name != header.topic:
                continue
            if len(self._tasks) >= MAX_CONCURRENT_EVENTS:
                self._counters.add("events_dropped_overloaded")
                continue
            self._tasks.start(self._handle_event(subscriber, header.topic, message))

    async def _handle_event(self, subscriber: Subscriber, topic: str, message: Message) -> None:
        try:
            await subscriber.receive(topic, message)
        except MicroError as error:
            self._counters.add("events_failed")
            log.warning("a subscriber rejected a message", extra={"topic": topic, "reason": str(error)})
        except Exception:
            self._counters.add("events_failed")
            log.exception("a subscriber failed: unexpected error", extra={"topic": topic})

    async def _receive(self, served: ServedEndpoint, topic: str, message: Message) -> None:
        value = served.convert(codec.decode(message.body, message.content_type), "")

        def make_context() -> CallContext:
            return CallContext(
                service=self._service,
                endpoint=topic,
                metadata=message.headers,
                peer="",
                deadline=float("inf"),
                clock=asyncio.get_running_loop().time,
            )

        positional, named = served.arguments(value, make_context)
        if served.shape.is_async:
            await served.handler(*positional, **named)
        else:
            await asyncio.to_thread(served.handler, *positional, **named)
