"""Serve `GET /metrics` over HTTP/1.1. The h11 library parses the requests."""

from __future__ import annotations

import asyncio
import socket as sockets
from http import HTTPStatus

import h11
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from micro_core.contract import Conflict, DriverContext
from micro_core.contract.names import join_host_port, split_host_port

MAX_CONNECTIONS = 16
"""Maximum number of open connections."""

MAX_REQUEST_BYTES = 16 * 1024
"""Maximum size of a request."""

REQUEST_TIMEOUT_S = 5.0
"""Seconds for receiving a request and sending the response; slower connections are closed."""

READ_BYTES = 4 * 1024
"""Number of bytes per read."""


class Endpoint:
    """An HTTP endpoint that serves the metrics of one registry."""

    def __init__(self, registry: CollectorRegistry, context: DriverContext) -> None:
        self.address = ""
        self._registry = registry
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._socket: sockets.socket | None = None
        self._open_count = 0

    def open(self, address: str) -> None:
        """Listen on `host:port` without waiting. Call it in the event loop.

        Raises Conflict if the address is in use or not available, BadRequest if it is invalid.
        """
        host, port = split_host_port(address)
        family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
        try:
            self._socket = sockets.create_server((host, port), family=family)
        except OSError as error:
            raise Conflict(
                f"cannot serve metrics at {address}: {error.strerror or error}",
                hint="use another address: --set prometheus.listen=127.0.0.1:PORT",
            ) from error
        self._socket.setblocking(False)
        self.address = f"http://{join_host_port(*self._socket.getsockname()[:2])}/metrics"
        self._task = asyncio.get_running_loop().create_task(self._serve(self._socket), name="prometheus metrics")

    def close(self) -> None:
        """Stop serving. Safe to call twice."""
        task, self._task = self._task, None
        listening, self._socket = self._socket, None
        if task is None or listening is None:
            return
        # The server still uses the socket until the task has ended.
        task.add_done_callback(lambda _: listening.close())
        task.cancel()

    async def _serve(self, listening: sockets.socket) -> None:
        server = await asyncio.start_server(self._connected, sock=listening, limit=MAX_REQUEST_BYTES)
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open_count >= MAX_CONNECTIONS:
            self._context.counters.add("prometheus_connections_refused")
            writer.transport.abort()
            return
        self._open_count += 1
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._answer_one(reader, writer)
        except (TimeoutError, OSError, h11.ProtocolError):
            self._context.counters.add("prometheus_requests_failed")
        finally:
            self._open_count -= 1
            writer.transport.abort()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, then close: Prometheus connects only every few seconds."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES)
        request: h11.Request | None = None
        while request is None:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.Request):
                request = event
            else:
                return
        status, kind, body = self._answer(request)
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")]
        for message in (
            h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
            h11.Data(data=b"" if request.method == b"HEAD" else body),
            h11.EndOfMessage(),
        ):
            writer.write(connection.send(message) or b"")
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        # Wait until the client has closed, too: closing with unread bytes would reset the connection and discard the response.
        while await reader.read(READ_BYTES):
            pass

    def _answer(self, request: h11.Request) -> tuple[HTTPStatus, str, bytes]:
        path = request.target.partition(b"?")[0]
        if request.method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"GET /metrics\n"
        if path != b"/metrics":
            return HTTPStatus.NOT_FOUND, "text/plain", b"the metrics are at /metrics\n"
        accepted = next((value for name, value in request.headers if name == b"accept"), b"")
        encode, kind = choose_encoder(accepted.decode("latin-1"))
        return HTTPStatus.OK, kind, encode(self._registry)
