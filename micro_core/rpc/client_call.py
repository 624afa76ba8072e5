"""The client side of calls: `UnaryCall` receives one answer, `ClientStream` sends and receives items."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from micro_core.contract.errors import BadRequest, Closed, DeadlineExceeded, Ended, Malformed, MicroError
from micro_core.rpc.calls import (
    CallState,
    ClientCall,
    Failed,
    ItemsEnded,
    ItemsReceived,
    ResponseReceived,
    Send,
    SendQueueDrained,
)
from micro_core.rpc.connection import Connection
from micro_core.rpc.deadlines import Deadlines
from micro_core.rpc.validation import Convert, to_plain
from micro_core.rpc.wakeup import Wakeup
from micro_core.wire import codec
from micro_core.wire.frames import Frame
from micro_core.wire.header import CallMode, decode_response_header


class CallFailed(Exception):
    """An attempt failed with `error`. If `may_have_started` is set, a retry could execute the handler twice."""

    def __init__(self, error: MicroError, *, may_have_started: bool) -> None:
        super().__init__(error.detail)
        self.error = error
        self.may_have_started = may_have_started


class UnaryCall:
    """One attempt of a unary call. It can be run once.

    The constructor raises Overloaded or Draining if the connection accepts no new call, and the error with which the
    connection ended if it is closed.
    """

    __slots__ = ("_at", "_call", "_connection", "_future")

    def __init__(self, connection: Connection, at: str) -> None:
        self._at = at
        self._connection = connection
        self._future: asyncio.Future[ResponseReceived] = connection.loop.create_future()
        self._call = ClientCall(connection.open_stream(self), CallMode.UNARY)

    async def run(self, header: bytes, body: bytes, deadline: float, deadlines: Deadlines) -> ResponseReceived:
        """Send the request and return the answer. Cancelling the task cancels the handler.

        Args:
            header: The encoded call header.
            body: The encoded request.
            deadline: The time at which the call fails with DeadlineExceeded, in seconds of the event loop's clock.
            deadlines: The timers to which the call is added.

        Raises:
            CallFailed: The service or a node answered with an error, the connection was lost, or the deadline has passed.
            TooLarge: The request exceeds a limit. Nothing was sent.
        """
        connection, call = self._connection, self._call
        deadlines.add(deadline, self)
        try:
            connection.send(call.begin(header, body))
            return await self._future
        finally:
            deadlines.discard(deadline, self)
            if call.state is not CallState.ENDED:
                connection.send(call.cancel())
            connection.close_stream(call.stream)

    def frame_received(self, frame: Frame) -> None:
        """Process a frame of the server. Called by the connection."""
        for effect in self._call.receive(frame):
            if isinstance(effect, ResponseReceived):
                if not self._future.done():
                    self._future.set_result(effect)
            elif isinstance(effect, Send):
                self._connection.send(effect.data)
            elif isinstance(effect, Failed):
                safe = effect.error.retry_is_safe and not effect.handler_started
                self._fail(effect.error, may_have_started=not safe)

    def connection_lost(self, error: MicroError) -> None:
        """Fail the call. Called by the connection."""
        self._call.connection_lost()
        self._fail(error, may_have_started=True)

    def expire(self) -> None:
        """Fail the call because its deadline has passed. Called by `Deadlines`."""
        self._fail(DeadlineExceeded("no answer before the deadline", at=self._at), may_have_started=True)

    def _fail(self, error: MicroError, *, may_have_started: bool) -> None:
        if not self._future.done():
            self._future.set_exception(CallFailed(error, may_have_started=may_have_started))


class ClientStream:
    """A streaming call, made by `Client.stream`. It is opened on entry of `async with`, and cancelled on exit if it is open.

        async with client.stream("go.micro.srv.greeter", "Say.Chat") as stream:
            await stream.send({"name": "John"})
            await stream.end()
            async for reply in stream:
                ...

    One task may send while another receives. Cancelling a task that waits in `send` or `receive` does not end the stream,
    and an item that was passed to `send` may still be sent.

    Opening, `send`, `receive` and iteration raise the errors that `Client.call` describes. If the stream ends with an error,
    the items that arrived before it are returned first.
    """

    def __init__(
        self,
        open_call: Callable[[], Awaitable[tuple[Connection, bytes, float]]],
        *,
        on_ended: Callable[[MicroError | None], None],
        mode: int,
        content_type: str,
        convert: Convert | None,
        initial_items: tuple[Any, ...],
        at: str,
    ) -> None:
        self._open_call = open_call
        self._mode = mode
        self._content_type = content_type
        self._convert = convert
        self._initial_items = initial_items
        self._at = at
        self._on_ended = on_ended
        self._connection: Connection | None = None
        self._call: ClientCall | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakeup = Wakeup()
        self._writing: asyncio.Task[None] | None = None
        """Waits in `send` until the connection accepts data. The end of the stream cancels it."""
        self._answer: ResponseReceived | None = None
        self._error: MicroError | None = None
        self._is_finished = False

    async def __aenter__(self) -> ClientStream:
        connection, header, deadline = await self._open_call()
        self._connection = connection
        try:
            call = self._call = ClientCall(connection.open_stream(self), self._mode)
        except MicroError as error:
            self._finish(error)
            raise
        self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)
        try:
            if self._mode in (CallMode.CLIENT_STREAM, CallMode.BIDIRECTIONAL):
                connection.send(call.begin(header, b""))
                for item in self._initial_items:
                    await self.send(item)
            else:
                request = self._initial_items[0] if self._initial_items else None
                connection.send(call.begin(header, codec.encode(to_plain(request), self._content_type)))
        except BaseException:
            self.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> ClientStream:
        return self

    async def __anext__(self) -> Any:
        found = await self._next()
        if found is None:
            raise StopAsyncIteration
        return found[0]

    async def receive(self) -> Any:
        """Wait for the next item and return it. For an endpoint with a single answer, the answer is the only item.

        Raises:
            Ended: The service has ended the stream.
            BadRequest: The stream is not open, i.e. used outside of `async with`.
            Closed: The stream was cancelled by this side.
            DeadlineExceeded: The stream did not end before its deadline.
            Malformed: The item cannot be decoded, or does not have the type `response_type`.
            MicroError: The error with which the service, a node or the connection ended the stream.
        """
        found = await self._next()
        if found is None:
            raise Ended("the stream has ended", at=self._at)
        return found[0]

    async def send(self, item: Any) -> None:
        """Send an item. Waits until the receiver has granted enough credit for it (flow control).

        Raises:
            TooLarge: The item exceeds a limit. The stream stays open.
            BadRequest: `end` was called before, or the stream is not open.
            Ended: The service has ended the stream.
            MicroError: The error with which the service, a node or the connection ended the stream.
        """
        call, connection = self._opened()
        if self._error is not None:
            raise self._error
        if call.state is CallState.HALF_CLOSED:
            raise BadRequest("cannot send: `end` was called before", at=self._at, hint="send all items before `end`")
        if call.state is not CallState.OPEN:
            raise Ended("the service has ended the stream", at=self._at)
        data = call.send_item(codec.encode(to_plain(item), self._content_type))
        if data:
            connection.send(data)
        while not call.outgoing.is_empty:
            await self._wakeup.wait()
        if connection.is_paused and self._error is None:
            await self._until_writable(connection)
        if self._error is not None:
            raise self._error

    async def end(self) -> None:
        """End the sending direction (half-close). Items can still be received.

        Raises:
            BadRequest: The stream is not open.
        """
        call, connection = self._opened()
        data = call.end()
        if data:
            connection.send(data)

    def cancel(self) -> None:
        """Cancel the stream and its handler. Does nothing if the stream has ended."""
        if self._call is not None and self._connection is not None and self._call.state is not CallState.ENDED:
            self._connection.send(self._call.cancel())
            if self._error is None:
                self._error = Closed("the stream was cancelled by this client", at=self._at)
        self._finish(None)

    # Implementation of StreamOwner

    def frame_received(self, frame: Frame) -> None:
        """Process a frame of the server. Called by the connection."""
        call, connection = self._opened()
        for effect in call.receive(frame):
            match effect:
                case Send(data):
                    connection.send(data)
                case ResponseReceived():
                    self._answer = effect
                    self._finish(None)
                case ItemsEnded():
                    self._finish(None)
                case Failed(error):
                    error.at = error.at or self._at
                    self._error = error
                    self._finish(error)
                case ItemsReceived() | SendQueueDrained():
                    self._wakeup.wake()
                case _:
                    pass

    def connection_lost(self, error: MicroError) -> None:
        """End the stream with `error`. Called by the connection."""
        if self._call is not None:
            self._call.connection_lost()
        self._error = error
        self._finish(error)

    async def _until_writable(self, connection: Connection) -> None:
        writing = self._writing = connection.loop.create_task(connection.writable())
        try:
            await asyncio.wait({writing})
        finally:
            writing.cancel()
        if not writing.cancelled():
            writing.result()

    async def _next(self) -> tuple[Any] | None:
        call, connection = self._opened()
        while True:
            if call.incoming.has_items:
                item, grant = call.take_item()
                if grant:
                    connection.send(grant)
                return (self._value(call.response_header, item, self._content_type),)
            if self._answer is not None:
                answer, self._answer = self._answer, None
                return (self._value(answer.header, answer.body, codec.MSGPACK),)
            if self._error is not None:
                raise self._error
            if call.state is CallState.ENDED:
                return None
            await self._wakeup.wait()

    def _value(self, header: bytes, body: bytes, content_type: str) -> Any:
        if header:
            content_type = decode_response_header(header).content_type
        return read_value(body, content_type, self._convert, self._at)

    def _opened(self) -> tuple[ClientCall, Connection]:
        if self._call is None or self._connection is None:
            raise BadRequest("the stream is not open", hint="use it as `async with client.stream(...) as stream`")
        return self._call, self._connection

    def _expire(self) -> None:
        call, connection = self._opened()
        if call.state is not CallState.ENDED:
            connection.send(call.cancel())
            self._error = DeadlineExceeded("the stream did not end before its deadline", at=self._at)
        self._finish(self._error)

    def _finish(self, error: MicroError | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._call is not None and self._connection is not None:
            self._connection.close_stream(self._call.stream)
        if self._writing is not None:
            self._writing.cancel()
        self._wakeup.wake()
        if not self._is_finished:
            self._is_finished = True
            self._on_ended(error)


def read_value(body: bytes, content_type: str, convert: Convert | None, at: str) -> Any:
    """Decode an answer or item, and convert it with `convert` unless that is None.

    Raises:
        Malformed: The body cannot be decoded, or `convert` rejects the value.
        TooLarge: The value is nested too deeply.
    """
    value = codec.decode(body, content_type)
    if convert is None:
        return value
    try:
        return convert(value, "")
    except BadRequest as error:
        raise Malformed(f"the answer does not have the expected type: {error.detail}", at=at) from error
