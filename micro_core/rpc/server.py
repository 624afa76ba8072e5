"""The server side of connections: endpoints, the limit for concurrent calls, and draining.

Each call runs in a task of its own, which is started when the request is complete. Everything before that is done in callbacks
of the connection.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from micro_core.contract.driver import Counters, CountersInMemory
from micro_core.contract.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Draining,
    EndpointNotFound,
    Malformed,
    MicroError,
    Overloaded,
    ServiceNotFound,
)
from micro_core.contract.names import check_endpoint_name
from micro_core.contract.registry import Endpoint, EndpointKind
from micro_core.rpc.connection import Connection
from micro_core.rpc.deadlines import Deadlines
from micro_core.rpc.interceptors import Interceptor, Next, chain
from micro_core.rpc.load import LoadMeasure
from micro_core.rpc.schema import first_doc_line, json_schema, read_handler
from micro_core.rpc.server_call import ServedCall, ServedEndpoint
from micro_core.rpc.subscribers import Subscriber, Subscribers
from micro_core.rpc.validation import converter
from micro_core.wire import limits
from micro_core.wire.frames import Frame
from micro_core.wire.header import CallHeader, CallMode, EventHeader, decode_call_header

MAX_CONCURRENT_CALLS = 4_096
"""Default of the maximum number of concurrent calls. Further calls are refused with Overloaded."""

CANCEL_TIMEOUT_S = 1.0
"""Maximum time to wait for cancelled handlers at shutdown."""

_MODES = {
    EndpointKind.UNARY: CallMode.UNARY,
    EndpointKind.SERVER_STREAM: CallMode.SERVER_STREAM,
    EndpointKind.CLIENT_STREAM: CallMode.CLIENT_STREAM,
    EndpointKind.BIDIRECTIONAL: CallMode.BIDIRECTIONAL,
}
_MODE_NAMES = {mode: kind.value for kind, mode in _MODES.items()}


class Server:
    """Serves endpoints to connections, as their `ConnectionHandler`. `Service` is the interface for programs.

    Args:
        name: The name of the service. Requests for other services, e.g. from a client that uses an outdated address, are
            refused with ServiceNotFound. If it is empty, requests for all names are accepted.
        at: The location that errors contain, e.g. the id of the instance. Default: `name`.
        counters: Where calls, errors and dropped messages are counted. In memory by default.
        interceptors: Functions around each call, the first outermost.
        max_concurrent: Maximum number of concurrent calls.
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
        self._subscribers = Subscribers(name, self.counters)
        self.deadlines = Deadlines()
        self.load = LoadMeasure()
        self._running: dict[ServedCall, None] = {}
        self._reserved_bytes = 0
        self._idle: asyncio.Event | None = None
        self._requests = 0
        self._requests_by_endpoint: dict[str, int] = {}

    def intercept(self, interceptors: Sequence[Interceptor]) -> None:
        """Replace the interceptors, the first outermost. Applies to calls that arrive afterwards."""
        self.proceed = partial(chain, list(interceptors)) if interceptors else None

    def add(
        self, name: str, handler: Callable[..., Any], *, idempotent: bool = False, description: str = ""
    ) -> Endpoint:
        """Add an endpoint and return its description for the registry.

        Args:
            name: The name, e.g. `Say.Hello`.
            handler: A function with a signature that `micro_core.rpc.schema` describes. It may be a coroutine function, an
                async generator function, or a plain function, which runs in a thread.
            idempotent: Whether executing a call twice has the same effect as once.
            description: A short text. By default the first line of the handler's docstring.

        Raises:
            BadRequest: The name is invalid.
            Conflict: The server already has an endpoint with this name.
            ConfigError: The signature is not that of a handler, or a type cannot be validated.
        """
        check_endpoint_name(name)
        if name in self._endpoints:
            raise Conflict(f"endpoint {name} exists already", at=self.at)
        shape = read_handler(handler)
        endpoint = Endpoint(
            name=name,
            kind=shape.kind,
            request=json_schema(shape.request_type) if shape.takes_request else {},
            response=json_schema(shape.response_type),
            idempotent=idempotent,
            description=description or first_doc_line(handler),
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
        """Add a handler of the messages of `topic`: `handler(message)` or `handler(message, context)`.

        Args:
            topic: The topic, e.g. `orders.created`.
            handler: A coroutine function, or a plain function, which runs in a thread. Its result is ignored.
            queue: The name of a queue group, or empty to receive every message.

        Raises:
            BadRequest: The topic is invalid.
            ConfigError: The signature is not that of a subscriber, or a type cannot be validated.
        """
        return self._subscribers.add(topic, handler, queue=queue)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the descriptions of all endpoints and subscribers, as registered."""
        calls = tuple(served.endpoint for served in self._endpoints.values())
        return calls + tuple(subscriber.endpoint for subscriber in self._subscribers.all)

    @property
    def subscribers(self) -> tuple[Subscriber, ...]:
        """Return the subscribers in the order in which they were added."""
        return self._subscribers.all

    # Implementation of ConnectionHandler

    def request_received(self, connection: Connection, frame: Frame) -> None:
        """Decode the header of a request and serve it, or refuse it. Called by the connection."""
        try:
            header = decode_call_header(frame.header)
        except Malformed as error:
            self.counters.add("calls_malformed")
            error.at = self.at
            connection.refuse(frame.stream, error)
            return
        if self.name and header.service != self.name:
            connection.refuse(
                frame.stream,
                ServiceNotFound(f"this is an instance of {self.name}, not of {header.service}", at=self.at),
            )
            return
        self.serve(connection, frame, header)

    def serve(self, connection: Connection, frame: Frame, header: CallHeader) -> None:
        """Serve a request whose header was decoded by the caller."""
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
        """Start the subscribers of the topic of a message. Called by the connection."""
        self._subscribers.event_received(header, body)

    def connection_lost(self, connection: Connection, error: MicroError) -> None:
        """Do nothing: the connection has already notified each of its calls."""

    @property
    def in_flight(self) -> int:
        """Return the number of calls in progress."""
        return len(self._running)

    def reserve_answer_bytes(self, size_bytes: int) -> None:
        """Reserve memory for an answer that waits for credit. Called by ServedCall.

        Raises:
            Overloaded: Waiting answers would exceed `limits.MAX_HELD_ANSWER_BYTES`.
        """
        if self._reserved_bytes + size_bytes > limits.MAX_HELD_ANSWER_BYTES:
            self.counters.add("answers_refused_overloaded")
            raise Overloaded(
                "too many large answers wait for clients that read slowly",
                hint="send large results as a stream of items",
            )
        self._reserved_bytes += size_bytes

    def release_answer_bytes(self, size_bytes: int) -> None:
        """Release a reservation of `reserve_answer_bytes`. Called by ServedCall."""
        self._reserved_bytes -= size_bytes

    def call_ended(self, call: ServedCall) -> None:
        """Forget a call whose task has ended or was not started. Called by ServedCall."""
        self._running.pop(call, None)
        if self._idle is not None and not self._running:
            self._idle.set()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new calls with Draining, wait for running calls, and then cancel those that are left.

        Args:
            timeout_s: Maximum time to wait, in seconds.

        Returns:
            Whether no call or message handler had to be cancelled.
        """
        self.is_draining = True
        self._idle = asyncio.Event()
        if self._running:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                pass
        left = [call.task for call in self._running if call.task is not None] + list(self._subscribers.tasks)
        for task in left:
            task.cancel()
        if left:
            # The timeout limits the delay by handlers that suppress their cancellation.
            await asyncio.wait(left, timeout=CANCEL_TIMEOUT_S)
        return not left

    def update_load(self, now: float) -> bool:
        """Sample the load at `now` (seconds of the event loop), and return whether `load.level_us` has changed."""
        running = (
            (call.header.endpoint, call.started_at) for call in self._running if call.served.mode == CallMode.UNARY
        )
        return self.load.sample(now, running)

    def health(self) -> dict[str, str]:
        """Return the answer of `Debug.Health`."""
        return {"status": "draining" if self.is_draining else "ok"}

    def stats(self, started: float, uptime_s: float) -> dict[str, Any]:
        """Return the answer of `Debug.Stats`.

        Args:
            started: Start of the service in seconds since 1970.
            uptime_s: Seconds since the start.

        Returns:
            Counters, uptime and load. `memory_bytes` is the peak memory of the process.
        """
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

    def _refusal(self, served: ServedEndpoint | None, header: CallHeader) -> MicroError | None:
        if self.is_draining:
            return Draining("the instance is shutting down", at=self.at)
        if served is None:
            names = ", ".join(sorted(self._endpoints)[:8])
            return EndpointNotFound(
                f"{header.service} has no endpoint {header.endpoint}",
                at=self.at,
                hint=f"available endpoints: {names}" if names else "",
            )
        if header.mode not in (served.mode, CallMode.BIDIRECTIONAL):
            return BadRequest(
                f"{header.endpoint} is a {_MODE_NAMES[served.mode]} endpoint, but was called as {_MODE_NAMES[header.mode]}",
                at=self.at,
                hint="use `micro call` or `client.call`"
                if served.mode == CallMode.UNARY
                else "use `micro stream` or `client.stream`",
            )
        if header.timeout_ms <= 0:
            return DeadlineExceeded("the deadline passed before the call arrived", at=self.at)
        if len(self._running) >= self._max_concurrent:
            return Overloaded(f"the limit of {self._max_concurrent} concurrent calls is reached", at=self.at)
        return None


def _memory_bytes() -> int:
    try:
        import resource
    except ImportError:  # not available on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
