"""The server side of a call: the owner of its stream, and the task that runs its handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from micro_core.contract.driver import Counters
from micro_core.contract.errors import BadRequest, DeadlineExceeded, InternalError, MicroError, Overloaded
from micro_core.contract.registry import Endpoint
from micro_core.rpc.calls import (
    CallState,
    CancelledByClient,
    Failed,
    ItemsEnded,
    ItemsReceived,
    RequestReceived,
    ResponseReceived,
    Send,
    SendQueueDrained,
    ServerCall,
)
from micro_core.rpc.connection import Connection
from micro_core.rpc.context import CallContext
from micro_core.rpc.deadlines import Deadlines
from micro_core.rpc.interceptors import CallInfo, Next
from micro_core.rpc.load import LoadMeasure
from micro_core.rpc.schema import HandlerShape
from micro_core.rpc.validation import Convert, to_plain
from micro_core.rpc.wakeup import Wakeup
from micro_core.wire import codec
from micro_core.wire.frames import Frame
from micro_core.wire.header import CallHeader, CallMode, ResponseHeader, encode_header, plain_response_header

log = logging.getLogger(__name__)

_CALLER_STREAMS = (CallMode.CLIENT_STREAM, CallMode.BIDIRECTIONAL)
_SERVER_STREAMS = (CallMode.SERVER_STREAM, CallMode.BIDIRECTIONAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEndpoint:
    """An endpoint with its handler and the result of inspecting the handler's signature."""

    endpoint: Endpoint
    mode: int
    handler: Callable[..., Any]
    shape: HandlerShape
    convert: Convert

    def arguments(
        self, request: Any, make_context: Callable[[], CallContext]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and named arguments for the handler. `make_context` is called only if it has a context."""
        positional = (request,) if self.shape.takes_request else ()
        named = {self.shape.context_name: make_context()} if self.shape.context_name else {}
        return positional, named


class CallServer(Protocol):
    """The server of a call, as far as the call uses it."""

    at: str
    """The hop in errors."""
    counters: Counters
    deadlines: Deadlines
    load: LoadMeasure
    proceed: Callable[[Next], Next] | None
    """Wraps a handler in the interceptors of the server; None without interceptors."""

    def reserve_answer_bytes(self, size_bytes: int) -> None:
        """Reserve memory for an answer that waits for credit. Raises Overloaded above the limit of the server."""
        ...

    def release_answer_bytes(self, size_bytes: int) -> None:
        """Release reserved memory."""
        ...

    def call_ended(self, call: ServedCall) -> None:
        """Forget a call that has ended."""
        ...


class ServedCall:
    """A call that a server executes, from its REQUEST frame to the last frame of the answer."""

    __slots__ = (
        "_context",
        "_handler_started",
        "_is_task_done",
        "_is_task_started",
        "_items_ended",
        "_reserved_bytes",
        "_wakeup",
        "call",
        "connection",
        "deadline",
        "header",
        "proceed",
        "served",
        "server",
        "started_at",
        "task",
    )

    def __init__(
        self, server: CallServer, connection: Connection, *, stream: int, header: CallHeader, served: ServedEndpoint
    ) -> None:
        self.started_at = connection.loop.time()
        self.deadline = self.started_at + header.timeout_ms / 1000
        self.server = server
        self.connection = connection
        self.header = header
        self.served = served
        self.proceed = server.proceed
        self.call = ServerCall(stream, header.mode, server.at)
        self.task: asyncio.Task[None] | None = None
        self._context: CallContext | None = None
        self._wakeup = Wakeup()
        self._items_ended = False
        self._handler_started = False
        self._reserved_bytes = 0
        self._is_task_started = False
        self._is_task_done = True
        server.deadlines.add(self.deadline, self)
        if header.mode in _CALLER_STREAMS:
            self._start(b"")

    # Implementation of StreamOwner

    def frame_received(self, frame: Frame) -> None:
        """Process a frame of the client. Called by the connection."""
        for effect in self.call.receive(frame):
            match effect:
                case Send(data):
                    self.connection.send(data)
                case RequestReceived(body):
                    self._start(body)
                case ItemsReceived():
                    self._wakeup.wake()
                case ItemsEnded():
                    self._items_ended = True
                    self._wakeup.wake()
                case SendQueueDrained():
                    self._wakeup.wake()
                    self._release_if_finished()
                case CancelledByClient():
                    self.server.counters.add("calls_cancelled")
                    self._stop()
                case Failed():
                    self.server.counters.add("calls_malformed")
                    self._stop()
                case ResponseReceived():  # an effect of the client side only
                    pass

    def connection_lost(self, error: MicroError) -> None:  # noqa: ARG002 - there is no caller to send an error to
        """Cancel the handler. Called by the connection."""
        self.call.connection_lost()
        self._stop()

    @property
    def context(self) -> CallContext:
        """Return the context of the call. It is created on first use, because most handlers do not need it."""
        if self._context is None:
            header, connection = self.header, self.connection
            self._context = CallContext(
                service=header.service,
                endpoint=header.endpoint,
                metadata=header.metadata,
                peer=connection.peer_id or connection.remote,
                deadline=self.deadline,
                clock=connection.loop.time,
                via=header.via,
            )
        return self._context

    def _start(self, body: bytes) -> None:
        self._is_task_done = False
        self.task = self.connection.loop.create_task(self._run(body))

    async def _run(self, body: bytes) -> None:
        self._is_task_started = True
        try:
            await self._serve(body)
            if self.served.mode == CallMode.UNARY:
                now = self.connection.loop.time()
                self.server.load.call_ended(self.header.endpoint, now - self.started_at, now)
        except asyncio.CancelledError:
            if self.call.state is not CallState.ENDED:
                # The call is still open, so neither the caller nor the deadline has cancelled the handler.
                self._fail(InternalError("the handler was cancelled"))
            raise
        except Exception:
            log.exception("a call failed: unexpected error", extra={"endpoint": self.header.endpoint})
            self.server.counters.add("call_bugs")
        finally:
            self._is_task_done = True
            self._release_if_finished()

    async def _serve(self, body: bytes) -> None:
        try:
            request = await self._request(body)
            if self.proceed is None:
                answer = await self._handle(request)
            else:
                answer = await self._intercepted(request)
            if self.served.mode in _SERVER_STREAMS:
                self._send(self.call.end())
            else:
                self._respond(answer)
        except MicroError as error:
            self._fail(error)
        except Exception as error:  # a handler may raise any exception
            log.exception("a handler failed", extra={"service": self.header.service, "endpoint": self.header.endpoint})
            self._fail(InternalError(f"{type(error).__name__}: {error!s:.500}"))

    async def _request(self, body: bytes) -> Any:
        served = self.served
        if self.header.mode in _CALLER_STREAMS:
            if served.mode in _CALLER_STREAMS:
                return _Items(self)
            if not served.shape.takes_request:
                return None
            try:
                return await self.next_item()
            except StopAsyncIteration as error:
                raise BadRequest(f"{self.header.endpoint} requires a request, but the caller sent no item") from error
        return served.convert(codec.decode(body, self.header.content_type), "") if served.shape.takes_request else None

    async def _intercepted(self, request: Any) -> Any:
        assert self.proceed is not None
        header = self.header

        async def last(info: CallInfo) -> Any:
            self.context.metadata = info.metadata
            return await self._handle(info.request)

        return await self.proceed(last)(
            CallInfo(
                side="server",
                service=header.service,
                endpoint=header.endpoint,
                mode=header.mode,
                metadata=dict(header.metadata),
                request=request,
                timeout_s=self.context.remaining_s,
                peer=self.context.peer,
            )
        )

    async def _handle(self, request: Any) -> Any:
        self._handler_started = True
        served = self.served
        positional, named = served.arguments(request, lambda: self.context)
        if served.mode in _SERVER_STREAMS:
            items = served.handler(*positional, **named)
            if asyncio.iscoroutine(items):
                items = await items
            await self._send_items(items)
            return None
        if served.shape.is_async:
            return await served.handler(*positional, **named)
        return await asyncio.to_thread(served.handler, *positional, **named)

    async def next_item(self) -> Any:
        """Wait for the next item of the caller and return it.

        Raises:
            StopAsyncIteration: The caller has ended its direction of the stream.
            BadRequest: The item does not have the type that the handler declares.
            Malformed: The item cannot be decoded.
        """
        incoming = self.call.incoming
        while not incoming.has_items:
            if self._items_ended:
                raise StopAsyncIteration
            await self._wakeup.wait()
        item, grant = self.call.take_item()
        self._send(grant)
        return self.served.convert(codec.decode(item, self.header.content_type), "")

    async def _send_items(self, items: AsyncIterator[Any]) -> None:
        header = b""
        is_first = True
        content_type = codec.MSGPACK
        try:
            async for item in items:
                if self.connection.is_paused:
                    await self.connection.writable()
                value = to_plain(item)
                if is_first:
                    is_first = False
                    content_type = self._content_type(value)
                    if content_type != self.header.content_type:
                        header = plain_response_header(content_type)
                self._send(self.call.send_item(codec.encode(value, content_type), header))
                header = b""
                while not self.call.outgoing.is_empty:
                    await self._wakeup.wait()
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()

    def _respond(self, answer: Any) -> None:
        value = to_plain(answer)
        metadata = self._context.response_metadata if self._context is not None else None
        content_type = self._content_type(value)
        body = codec.encode(value, content_type)
        header = b""
        if metadata or content_type != codec.MSGPACK:
            header = (
                encode_header(ResponseHeader(content_type, metadata))
                if metadata
                else plain_response_header(content_type)
            )
        if self.connection.is_hard_limit_exceeded or len(body) >= self.call.outgoing.credit_bytes:
            self._reserve(len(body))
        self._send(self.call.respond(header, body))

    def _reserve(self, size_bytes: int) -> None:
        """Reserve memory for an answer that may have to wait for credit. Raises Overloaded."""
        if self.connection.is_hard_limit_exceeded:
            raise Overloaded("the client does not read the answers on this connection")
        self.server.reserve_answer_bytes(size_bytes)
        self._reserved_bytes = size_bytes

    def _content_type(self, value: Any) -> str:
        """Return the content type of the request, or msgpack if `value` cannot be encoded in it."""
        wanted = self.header.content_type
        if (wanted == codec.BYTES and not isinstance(value, bytes)) or (
            wanted == codec.TEXT and not isinstance(value, str)
        ):
            return codec.MSGPACK
        return wanted

    def _fail(self, error: MicroError) -> None:
        self.server.counters.add("calls_failed")
        if error.code >= 900:
            # Errors of the own configuration (codes from 900) are not sent to other processes.
            error = InternalError(error.detail, hint=error.hint)
        error.at = error.at or self.server.at
        self._send(self.call.fail(error, handler_started=self._handler_started))

    def _send(self, data: bytes) -> None:
        if data:
            self.connection.send(data)

    def expire(self) -> None:
        """Fail the call because its deadline has passed, and cancel the handler. Called by `Deadlines`."""
        self.server.counters.add("calls_expired")
        error = DeadlineExceeded(
            f"{self.header.service} {self.header.endpoint} took longer than {self.header.timeout_ms / 1000:.3g} s",
            at=self.server.at,
        )
        self._send(self.call.fail(error, handler_started=True))
        self._stop()

    def _stop(self) -> None:
        if self._context is not None:
            self._context.cancelled = True
        if self.task is not None and not self._is_task_done:
            self.task.cancel()
            # A task that is cancelled before its first step does not run at all, not even its `finally` block.
            self._is_task_done = not self._is_task_started
        self._release_if_finished()

    def _release_if_finished(self) -> None:
        """Release the stream when the last frame has been sent, and the call when its task has ended, too."""
        if self.call.is_finished:
            self.server.deadlines.discard(self.deadline, self)
            self.connection.close_stream(self.call.stream)
            if self._reserved_bytes:
                self.server.release_answer_bytes(self._reserved_bytes)
                self._reserved_bytes = 0
            if self._is_task_done:
                self.server.call_ended(self)


class _Items:
    """The items of the caller, as an async iterator for the handler."""

    def __init__(self, call: ServedCall) -> None:
        self._call = call

    def __aiter__(self) -> _Items:
        return self

    async def __anext__(self) -> Any:
        return await self._call.next_item()
