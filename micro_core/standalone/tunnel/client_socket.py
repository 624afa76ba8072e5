"""A connection of a client to the IPC server of a tunnel process, from the proof of the token to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from micro_core.contract.errors import LinkLost, Malformed, MicroError, Unreachable, error_from_wire
from micro_core.contract.transport import Socket
from micro_core.standalone.tunnel import protocol as ipc
from micro_core.standalone.tunnel.protocol import Kind
from micro_core.wire import limits

DIAL_TIMEOUT_S = 3.0

Prove = Callable[[bytes], bytes]
"""Returns the proof that this process holds the token of the network, over a transcript."""

StartTask = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
"""Starts a background task of the client. The client waits for the task when it is closed."""


class IpcReceiver(Protocol):
    """Receives the messages of an `IpcSocket`. The methods are called in the event loop and must not block."""

    def request_granted(self, facts: dict[str, Any]) -> None:
        """Note that the server has granted the request, with the map of its answer."""
        ...

    def data_received(self, data: bytes) -> None:
        """Receive the payload of a DATA message."""
        ...

    def event_received(self, event: dict[str, Any]) -> None:
        """Receive the map of an EVENT message. A MicroError raised here ends the connection."""
        ...

    def pause_writing(self) -> None:
        """Stop writing until `resume_writing`."""
        ...

    def resume_writing(self) -> None:
        """Continue to write."""
        ...

    def connection_lost(self, error: MicroError) -> None:
        """Note the end of the connection. Called exactly once, also if the request was never granted."""
        ...


class IpcSocket:
    """Sends one request and passes the messages of the server to `receiver`. Implements `SocketReceiver`."""

    def __init__(self, request: dict[str, Any], prove: Prove, receiver: IpcReceiver, *, start_task: StartTask) -> None:
        self._request = request
        self._prove = prove
        self._receiver = receiver
        self._start_task = start_task
        self._reader = ipc.Reader()
        self._socket: Socket | None = None
        self._is_request_sent = False
        self._is_granted = False
        self._is_ended = False
        self._is_reading = True
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    def start(self, socket: Socket) -> None:
        """Use `socket`, which must be newly dialled."""
        self._socket = socket
        if self._is_ended:
            self._close_in_background()
            return
        self._timer = asyncio.get_running_loop().call_later(limits.HANDSHAKE_TIMEOUT_S, self._grant_timed_out)
        if not self._is_reading:
            socket.pause_reading()
        socket.start(self)

    def fail(self, error: MicroError) -> None:
        """End the connection with `error`."""
        self._end(error)

    @property
    def is_open(self) -> bool:
        """Whether the request is granted and the connection has not ended."""
        return self._is_granted and not self._is_ended

    def send(self, data: bytes) -> None:
        """Queue encoded messages. Ignored after the end."""
        if self._socket is not None and not self._is_ended:
            self._socket.write(data)

    def pause_reading(self) -> None:
        """Stop delivering data. Takes effect once the request is granted."""
        self._is_reading = False
        if self._socket is not None and self._is_granted:
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Deliver data again."""
        self._is_reading = True
        if self._socket is not None:
            self._socket.resume_reading()

    async def close(self, error: MicroError) -> None:
        """Send END and the queued data, then end with `error` for the receiver. Safe to call twice."""
        if not self._is_ended:
            self.send(ipc.encode(Kind.END))
            self._end(error)
        if self._closing is not None:
            await self._closing

    # --------------------------------------------------------- SocketReceiver

    def data_received(self, data: bytes) -> None:
        """Handle the messages that `data` completes. An invalid message ends the connection."""
        try:
            for kind, payload in self._reader.receive(data):
                if self._is_ended:
                    return
                self._receive(kind, payload)
        except MicroError as error:
            self._end(error)

    def pause_writing(self) -> None:
        """Pass the backpressure of the socket on."""
        if self._is_granted:
            self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """Pass the end of the backpressure on."""
        if self._is_granted:
            self._receiver.resume_writing()

    def socket_lost(self, error: MicroError) -> None:
        """End the connection with LinkLost."""
        self._end(
            LinkLost(f"lost the connection to the tunnel process: {error.detail}", hint="is `micro tunnel` running?")
        )

    def _receive(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.END:
            value = ipc.decode_map(payload)
            self._end(error_from_wire(value) if value else LinkLost("the tunnel process ended the connection"))
        elif kind is Kind.NONCE and not self._is_request_sent:
            if len(payload) != ipc.NONCE_BYTES:
                raise Malformed(f"tunnel IPC: the nonce has {len(payload)} bytes instead of {ipc.NONCE_BYTES}")
            self._is_request_sent = True
            proof = self._prove(ipc.PROOF_CONTEXT + payload)
            self.send(ipc.encode_map(Kind.REQUEST, {**self._request, "proof": proof}))
        elif kind is Kind.OPEN and self._is_request_sent and not self._is_granted:
            if self._timer is not None:
                self._timer.cancel()
            self._is_granted = True
            self._receiver.request_granted(ipc.decode_map(payload))
            if not self._is_reading:
                self.pause_reading()
        elif kind is Kind.DATA and self._is_granted:
            self._receiver.data_received(payload)
        elif kind is Kind.EVENT and self._is_granted:
            self._receiver.event_received(ipc.decode_map(payload))
        else:
            raise Malformed(f"tunnel IPC: unexpected {kind.name}")

    def _end(self, error: MicroError) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._close_in_background()
        self._receiver.connection_lost(error)

    def _close_in_background(self) -> None:
        if self._socket is not None and self._closing is None:
            self._closing = self._start_task(self._socket.close())

    def _grant_timed_out(self) -> None:
        self._end(Unreachable(f"the tunnel process did not answer within {limits.HANDSHAKE_TIMEOUT_S:g} s"))
