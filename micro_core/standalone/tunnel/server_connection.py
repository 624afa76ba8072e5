"""One connection of a client to the IPC server of a tunnel process, up to its first and only request."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from micro_core.contract.clock import Random
from micro_core.contract.errors import Malformed, MicroError
from micro_core.contract.transport import Socket
from micro_core.standalone.tunnel import protocol as ipc
from micro_core.standalone.tunnel.protocol import Kind
from micro_core.standalone.tunnel.server_requests import RequestHandler
from micro_core.wire import limits


class ConnectionServer(Protocol):
    """The IPC server, as far as its connections use it."""

    random: Random

    def handle_request(self, connection: ClientConnection, nonce: bytes, request: dict[str, Any]) -> RequestHandler:
        """Check the proof of a request and carry it out. Raises MicroError if it is refused."""
        ...

    def report_refusal(self, connection: ClientConnection, error: MicroError) -> None:
        """Count and log a refused request."""
        ...

    def remove_connection(self, connection: ClientConnection) -> None:
        """Forget a connection that has ended."""
        ...

    def run_in_background(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in a task. A failure is counted and logged."""
        ...


class ClientConnection:
    """Reads the request of a client and passes all later messages to its handler. Implements `SocketReceiver`."""

    def __init__(self, server: ConnectionServer, socket: Socket) -> None:
        self.socket = socket
        self._server = server
        self._reader = ipc.Reader()
        self._nonce = server.random.getrandbits(ipc.NONCE_BYTES * 8).to_bytes(ipc.NONCE_BYTES, "big")
        self._handler: RequestHandler | None = None
        self._is_ended = False
        self._is_writing_paused = False
        self._timer = asyncio.get_running_loop().call_later(limits.HANDSHAKE_TIMEOUT_S, self._request_timed_out)

    def start(self) -> None:
        """Send the nonce and start to read."""
        self.socket.write(ipc.encode(Kind.NONCE, self._nonce))
        self.socket.start(self)

    def send(self, data: bytes) -> None:
        """Queue encoded messages."""
        if not self._is_ended:
            self.socket.write(data)

    def end(self, error: MicroError | None) -> None:
        """Send END with the error, then close the connection."""
        if self._is_ended:
            return
        self._is_ended = True
        self._timer.cancel()
        payload = ipc.encode_map(Kind.END, error.to_wire()) if error is not None else ipc.encode(Kind.END)
        self.socket.write(payload)
        self._server.run_in_background(self.socket.close())

    # --------------------------------------------------------- SocketReceiver

    def data_received(self, data: bytes) -> None:
        """Handle the messages that `data` completes. An invalid message ends the connection."""
        if self._is_ended:
            return
        try:
            for kind, payload in self._reader.receive(data):
                self._receive(kind, payload)
                if self._is_ended:
                    return
        except MicroError as error:
            self._server.report_refusal(self, error)
            self.end(error)
            if self._handler is not None:
                self._handler.connection_ended()

    def pause_writing(self) -> None:
        """Pass the backpressure of the client on."""
        self._is_writing_paused = True
        if self._handler is not None:
            self._handler.client_paused()

    def resume_writing(self) -> None:
        """Pass the end of the backpressure on."""
        self._is_writing_paused = False
        if self._handler is not None:
            self._handler.client_resumed()

    def socket_lost(self, error: MicroError) -> None:  # noqa: ARG002 - the reason makes no difference
        """Release the connection and all that belongs to its request."""
        self._is_ended = True
        self._timer.cancel()
        self._server.remove_connection(self)
        if self._handler is not None:
            self._handler.connection_ended()

    def _receive(self, kind: Kind, payload: bytes) -> None:
        if self._handler is not None:
            self._handler.message_received(kind, payload)
            return
        if kind is not Kind.REQUEST:
            raise Malformed(f"tunnel IPC: the first message is {kind.name}, not REQUEST")
        self._timer.cancel()
        self._handler = self._server.handle_request(self, self._nonce, ipc.decode_map(payload))
        if self._is_writing_paused:
            self._handler.client_paused()

    def _request_timed_out(self) -> None:
        self.end(Malformed(f"tunnel IPC: no request within {limits.HANDSHAKE_TIMEOUT_S:g} s"))
