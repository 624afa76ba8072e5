"""The serving side: endpoints, subscribers, and the bound on how much runs at once.

A ConnectionHandler. A call gets one task, started when its request is whole; everything before is callbacks.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from micro_core.contract.broker import Message
from micro_core.contract.driver import Counters, CountersInMemory
from micro_core.contract.errors import (
    BadRequest,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    Draining,
    EndpointNotFound,
    Malformed,
    MicroError,
    Overloaded,
    ServiceNotFound,
)
from micro_core.contract.names import check_endpoint_name, check_topic
from micro_core.contract.registry import Endpoint, EndpointKind
from micro_core.rpc.connection import Connection
from micro_core.rpc.context import CallContext
from micro_core.rpc.deadlines import Deadlines
from micro_core.rpc.interceptors import Interceptor, Next, chain
from micro_core.rpc.load import LoadMeasure
from micro_core.rpc.schema import json_schema, read_handler
from micro_core.rpc.server_call import ServedCall, ServedEndpoint
from micro_core.rpc.validation import converter
from micro_core.wire import codec, limits
from micro_core.wire.frames import Frame
from micro_core.wire.header import CallHeader, CallMode, EventHeader, decode_call_header

log = logging.getLogger(__name__)

MAX_CONCURRENT_CALLS = 4_096
"""Handlers that run at once unless the option says otherwise; one more is refused with Overloaded."""

MAX_CONCURRENT_EVENTS = 1_024
"""Messages being handled at once; newer ones are dropped and counted, as a broker does with a slow subscriber."""

_MODES = {
    EndpointKind.UNARY: CallMode.UNARY,
    EndpointKind.SERVER_STREAM: CallMode.SERVER_STREAM,
    EndpointKind.CLIENT_STREAM: CallMode.CLIENT_STREAM,
    EndpointKind.BIDIRECTIONAL: CallMode.BIDIRECTIONAL,
}
_MODE_NAMES = {mode: kind.value for kind, mode in _MODES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriber:
    """A handler of messages; `receive(topic, message)` decodes, checks and calls it."""

    endpoint: Endpoint
    receive: Callable[[str, Message], Any]


class Server:
    """Serves the endpoints that were added.

    `at` is the place in the errors made here (the instance's id). `name` is the service; when it is given, a request
    for another service (an address that has changed hands) is refused with ServiceNotFound.
    """

    def __init__(
        self,
        name: str = "",
        *,
        at: str = "",
        counters: Counters | None = None,
        interceptors: Sequence[Interceptor] = (),
        max_concurrent: int = MAX_CONCURRENT_CALLS,
    ) -> None:
        self.name = name
        self.at = at or name
        self.counters: Counters = counters if counters is not None else CountersInMemory()
        self.is_draining = False
        self.proceed: Callable[[Next], Next] | None = None
        self.intercept(interceptors)
        self._max_concurrent = max_concurrent
        self._endpoints: dict[str, ServedEndpoint] = {}
        self._subscribers: list[Subscriber] = []
        self.deadlines = Deadlines()
        self.load = LoadMeasure()
        self._running: dict[ServedCall, None] = {}
        self._held_bytes = 0
        self._event_tasks: dict[asyncio.Task[None], None] = {}
        self._idle: asyncio.Event | None = None
        self._requests = 0
        self._requests_by_endpoint: dict[str, int] = {}

    def intercept(self, interceptors: Sequence[Interceptor]) -> None:
        """Put these round every call from now on, the first outermost, instead of those before."""
        self.proceed = partial(chain, list(interceptors)) if interceptors else None

    # What is served

    def add(
        self, name: str, handler: Callable[..., Any], *, idempotent: bool = False, description: str = ""
    ) -> Endpoint:
        """Serve `name` (`Say.Hello`) by `handler`, whose signature says the rest. Raises Conflict, ConfigError."""
        check_endpoint_name(name)
        if name in self._endpoints:
            raise Conflict(f"{name} is served already", at=self.at)
        shape = read_handler(handler)
        endpoint = Endpoint(
            name=name,
            kind=shape.kind,
            request=json_schema(shape.request_type) if shape.takes_request else {},
            response=json_schema(shape.response_type),
            idempotent=idempotent,
            description=description or _first_line(handler),
        )
        self._endpoints[name] = ServedEndpoint(
            endpoint=endpoint,
            mode=_MODES[shape.kind],
            handler=handler,
            shape=shape,
            convert=converter(shape.request_type),
        )
        return endpoint

    def add_subscriber(self, topic: str, handler: Callable[..., Any], *, queue: str = "") -> Subscriber:
        """Handle the messages of `topic` by `handler(message)` or `handler(message, context)`."""
        check_topic(topic)
        shape = read_handler(handler)
        if shape.kind is not EndpointKind.UNARY or not shape.takes_request:
            raise ConfigError(f"the subscriber of {topic} must take one message and return nothing")
        endpoint = Endpoint(
            name=topic,
            kind=EndpointKind.SUBSCRIBER,
            request=json_schema(shape.request_type),
            queue=queue,
            description=_first_line(handler),
        )
        served = ServedEndpoint(
            endpoint=endpoint, mode=0, handler=handler, shape=shape, convert=converter(shape.request_type)
        )
        subscriber = Subscriber(endpoint=endpoint, receive=partial(self._handle_message, served))
        self._subscribers.append(subscriber)
        return subscriber

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints and subscribers, as they go into the registry."""
        calls = tuple(served.endpoint for served in self._endpoints.values())
        return calls + tuple(subscriber.endpoint for subscriber in self._subscribers)

    @property
    def subscribers(self) -> tuple[Subscriber, ...]:
        return tuple(self._subscribers)

    # ConnectionHandler

    def request_received(self, connection: Connection, frame: Frame) -> None:
        try:
            header = decode_call_header(frame.header)
        except Malformed as error:
            self.counters.add("calls_malformed")
            error.at = self.at
            connection.refuse(frame.stream, error)
            return
        if self.name and header.service != self.name:
            connection.refuse(frame.stream, ServiceNotFound(f"this is {self.name}, not {header.service}", at=self.at))
            return
        self.serve(connection, frame, header)

    def serve(self, connection: Connection, frame: Frame, header: CallHeader) -> None:
        """Serve a request whose header has been read already."""
        self._requests += 1
        served = self._endpoints.get(header.endpoint)
        refusal = self._refusal(served, header)
        if refusal is not None:
            self.counters.add("calls_refused")
            connection.refuse(frame.stream, refusal)
            return
        assert served is not None
        self._requests_by_endpoint[header.endpoint] = self._requests_by_endpoint.get(header.endpoint, 0) + 1
        call = ServedCall(self, connection, stream=frame.stream, header=header, served=served)
        self._running[call] = None
        connection.attach(frame.stream, call)
        call.frame_received(frame)

    def event_received(self, connection: Connection, header: EventHeader, body: bytes) -> None:  # noqa: ARG002
        message = Message(id=header.id, body=body, content_type=header.content_type, headers=header.headers)
        for subscriber in self._subscribers:
            if subscriber.endpoint.name != header.topic:
                continue
            if len(self._event_tasks) >= MAX_CONCURRENT_EVENTS:
                self.counters.add("events_dropped_overloaded")
                continue
            task = asyncio.get_running_loop().create_task(self._handle_event(subscriber, header.topic, message))
            self._event_tasks[task] = None
            task.add_done_callback(lambda gone: self._event_tasks.pop(gone, None))

    def connection_lost(self, connection: Connection, error: MicroError) -> None:
        """Each call has been told by its connection; there is nothing else to clean."""

    # Life

    @property
    def in_flight(self) -> int:
        """Calls being served."""
        return len(self._running)

    def hold(self, size_bytes: int) -> None:
        """For ServedCall: an answer waits for its reader. Raises Overloaded where too many do."""
        if self._held_bytes + size_bytes > limits.MAX_HELD_ANSWER_BYTES:
            self.counters.add("answers_refused_overloaded")
            raise Overloaded("too many large answers wait for their readers", hint="send it as a stream of items")
        self._held_bytes += size_bytes

    def let_go(self, size_bytes: int) -> None:
        """For ServedCall: that answer has gone, or will never go."""
        self._held_bytes -= size_bytes

    def call_ended(self, call: ServedCall) -> None:
        """For ServedCall: its task is done, or never began."""
        self._running.pop(call, None)
        if self._idle is not None and not self._running:
            self._idle.set()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new calls with Draining and wait for those that run; cancel what is left. True when none was."""
        self.is_draining = True
        self._idle = asyncio.Event()
        if self._running:
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_s)
            except TimeoutError:
                pass
        left = [call.task for call in self._running if call.task is not None] + list(self._event_tasks)
        for task in left:
            task.cancel()
        if left:
            # A handler that ignores its cancellation cannot hold the stop for long.
            await asyncio.wait(left, timeout=1.0)
        return not left

    def update_load(self, now: float) -> bool:
        """Called on a timer: True when `load.level_us` has changed and should be told."""
        running = (
            (call.header.endpoint, call.began_at) for call in self._running if call.served.mode == CallMode.UNARY
        )
        return self.load.sample(now, running)

    def health(self) -> dict[str, str]:
        """The answer of `Debug.Health`."""
        return {"status": "draining" if self.is_draining else "ok"}

    def stats(self, started: float, uptime_s: float) -> dict[str, Any]:
        """The answer of `Debug.Stats`; `memory_bytes` is the most this process has used."""
        counted = dict(self.counters.values) if isinstance(self.counters, CountersInMemory) else {}
        return {
            "started": started,
            "uptime_s": round(uptime_s, 3),
            "requests": self._requests,
            "errors": counted.get("calls_failed", 0) + counted.get("calls_expired", 0),
            "in_flight": self.in_flight,
            "load_us": self.load.level_us,
            "memory_bytes": _memory_bytes(),
            "endpoints": dict(self._requests_by_endpoint),
            "counters": counted,
        }

    # Inside

    def _refusal(self, served: ServedEndpoint | None, header: CallHeader) -> MicroError | None:
        if self.is_draining:
            return Draining("stopping; call another instance", at=self.at)
        if served is None:
            near = ", ".join(sorted(self._endpoints)[:8])
            return EndpointNotFound(
                f"{header.service} has no endpoint {header.endpoint}",
                at=self.at,
                hint=f"one of: {near}" if near else "",
            )
        if header.mode not in (served.mode, CallMode.BIDIRECTIONAL):
            return BadRequest(
                f"{header.endpoint} is {_MODE_NAMES[served.mode]}, and was called as {_MODE_NAMES[header.mode]}",
                at=self.at,
                hint="micro call, or client.call"
                if served.mode == CallMode.UNARY
                else "micro stream, or client.stream",
            )
        if header.timeout_ms <= 0:
            return DeadlineExceeded("the time had run out before the call arrived", at=self.at)
        if len(self._running) >= self._max_concurrent:
            return Overloaded(f"{self._max_concurrent} calls are running", at=self.at)
        return None

    async def _handle_event(self, subscriber: Subscriber, topic: str, message: Message) -> None:
        try:
            await subscriber.receive(topic, message)
        except MicroError as error:
            self.counters.add("events_failed")
            log.warning("a message was not handled", extra={"topic": topic, "reason": str(error)})
        except Exception:
            self.counters.add("events_failed")
            log.exception("a subscriber failed", extra={"topic": topic})

    async def _handle_message(self, served: ServedEndpoint, topic: str, message: Message) -> None:
        value = served.convert(codec.decode(message.body, message.content_type), "")

        def make_context() -> CallContext:
            return CallContext(
                service=self.name,
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


def _first_line(handler: Callable[..., Any]) -> str:
    return (inspect.getdoc(handler) or "").partition("\n")[0][:200]


def _memory_bytes() -> int:
    try:
        import resource
    except ImportError:  # not on every system
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
