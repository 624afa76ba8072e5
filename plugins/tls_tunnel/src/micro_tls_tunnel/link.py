"""One TLS connection as a link with one lane: the asyncio part around `pipe`.

The data written in one iteration of the event loop is sent together, so many small calls need one record and one system
call. Core cannot reorder sent data by priority, so little data may wait in lower layers: the low mark of the transport's
buffer is small, and TCP_NOTSENT_LOWAT limits the unsent data in the kernel.
"""

from __future__ import annotations

import asyncio
import os
import socket as sockets
from collections.abc import Callable

from micro_core.contract import Closed, Counters, Ended, LinkLost, LinkReceiver, MicroError
from micro_core.contract.names import join_host_port
from micro_tls_tunnel.loss import LossMeter, tcp_info
from micro_tls_tunnel.pipe import PipeState, TlsPipe

SCHEME = "tls"

LOW_WATER_BYTES = 16 * 1024
"""`lane_writable` is called when the buffered bytes fall to this value after they were above it."""

EAGER_BYTES = 16 * 1024
"""From this number of queued bytes, a full record, data is sent immediately, so that the peer can start to process it."""

READ_BYTES = 64 * 1024
"""Size of the read buffer: four records."""

CLOSE_TIMEOUT_S = 1.0


class TlsLink(asyncio.BufferedProtocol):
    """A `Link` over one TLS connection."""

    lane_count = 1
    driver = SCHEME

    def __init__(
        self,
        pipe: TlsPipe,
        *,
        unsent_bytes: int,
        counters: Counters,
        on_connected: Callable[[TlsLink], bool] | None = None,
        on_ready: Callable[[TlsLink], None] | None = None,
    ) -> None:
        """Create a link for a connection that asyncio will make.

        `on_connected` returns whether to keep the connection. `on_ready` is called after the TLS handshake.
        """
        self.pipe = pipe
        self.local = self.remote = f"{SCHEME}://"
        self.source = ""
        """Host of the peer."""
        self.channel_binding = b""
        self._unsent_bytes = unsent_bytes
        self._counters = counters
        self._on_connected = on_connected
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[MicroError] = self._loop.create_future()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._socket_closed: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._receiver: LinkReceiver | None = None
        self._buffer = bytearray(READ_BYTES)
        self._early: list[bytes] = []
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._is_scheduled = False
        self._is_above = False
        self._is_closing = False
        self._loss_meter = LossMeter()

    # ------------------------------------------------------------------- Link

    def start(self, receiver: LinkReceiver) -> None:
        """Start to deliver data, including data that arrived before this call."""
        self._receiver = receiver
        early, self._early = self._early, []
        for data in early:
            receiver.data_received(0, data)
        transport = self._transport
        if self.ended.done():
            receiver.link_lost(self.ended.result())
        elif transport is not None and not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()

    def write(self, lane: int, data: bytes) -> None:  # noqa: ARG002 - there is one lane
        """Queue data for the end of the event loop iteration, or send it immediately from 16 KiB on."""
        if self.ended.done() or self._is_closing:
            return
        self._queue.append(data)
        self._queued_bytes += len(data)
        if self.buffered_bytes(0) > LOW_WATER_BYTES:
            self._is_above = True
        if self._queued_bytes >= EAGER_BYTES:
            self._send_queued()
        if (self._queue or self._is_above) and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def buffered_bytes(self, lane: int) -> int:  # noqa: ARG002 - there is one lane
        """Return how many bytes are queued here or in the transport."""
        transport = self._transport
        return self._queued_bytes + (0 if transport is None else transport.get_write_buffer_size())

    def transport_rtt_s(self) -> float | None:
        """Return None: TCP does not report its round-trip time on all systems."""
        return None

    def transport_loss(self) -> float | None:
        """Return the share of segments sent by this end that were lost recently, 0 to 1, or None if it is unknown."""
        now = self._loop.time()
        if self._transport is not None and not self.ended.done() and self._loss_meter.is_due(now):
            info = tcp_info(self._transport.get_extra_info("socket"))
            if info is None:
                return None
            self._loss_meter.add(info, now)
        return self._loss_meter.share()

    async def close(self) -> None:
        """Send queued data and close_notify for at most one second, then close the connection. Safe to call twice."""
        transport = self._transport
        if transport is None or self.ended.done():
            return
        if not self._is_closing:
            self._send_queued()
            self._is_closing = True
            self.pipe.close()
            self._send_pipe()
            if not transport.is_closing():
                # Closing a socket with unread bytes sends a reset, and the peer may then lose data that it has not read
                # (RFC 1122 section 4.2.2.13). So end the stream first, and read until the peer ends its stream.
                _end_stream(transport)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await asyncio.shield(self._socket_closed)
            except TimeoutError:
                self._counters.add("tls_closed_with_data_unread")
            finally:
                transport.abort()
                self.end(Closed(f"the link to {self.remote} was closed at this end"))
        await asyncio.wait([self.ended])

    # ------------------------------------------------------------ from the driver

    def abandon(self, error: MicroError) -> None:
        """End the link immediately with `error`, without sending queued data."""
        if self._transport is not None:
            self._transport.abort()
        self.end(error)

    def end(self, error: MicroError) -> None:
        """Mark the link as ended and notify the receiver. Does nothing if it has ended already."""
        if self.ended.done():
            return
        self.ended.set_result(error)
        self._queue.clear()
        self._queued_bytes = 0
        if self._receiver is not None:
            self._receiver.link_lost(error)

    # ---------------------------------------------------- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set up the connected socket. The dialling end starts the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.local, _ = _name(transport.get_extra_info("sockname"))
        self.remote, self.source = _name(transport.get_extra_info("peername"))
        transport.set_write_buffer_limits(high=LOW_WATER_BYTES, low=LOW_WATER_BYTES)
        _configure_socket(transport.get_extra_info("socket"), self._unsent_bytes)
        if self._on_connected is not None and not self._on_connected(self):
            return
        if self._on_ready is None:
            self._run_tls(self.pipe.start_handshake)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - the size is constant
        """Return the buffer for the next read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Process received bytes."""
        if self.ended.done() or self._is_closing:
            # The socket is only read to notice that the peer closes it. The bytes are discarded.
            return
        self._run_tls(lambda: self._receive(memoryview(self._buffer)[:nbytes]))

    def eof_received(self) -> bool:
        """Let asyncio close the transport when the peer has ended its stream."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the link, unless it has ended already."""
        if not self._socket_closed.done():
            self._socket_closed.set_result(None)
        if self._is_closing:
            self.end(Closed(f"the link to {self.remote} was closed at this end"))
        elif isinstance(exc, OSError) and exc.errno is not None:
            self.end(LinkLost(f"the link to {self.remote} was lost: {os.strerror(exc.errno)}"))
        else:
            self.end(LinkLost(f"the link to {self.remote} was lost: {exc or 'it ended without close_notify'}"))

    def pause_writing(self) -> None:
        """Note that the buffer of the transport is above its high mark."""
        self._is_above = True

    def resume_writing(self) -> None:
        """Report that the lane is writable again."""
        self._report_writable()

    # ---------------------------------------------------------------- internal

    def _run_tls(self, step: Callable[[], None]) -> None:
        """Run a step of TLS, send the resulting bytes, and end the link if the step failed or the peer closed it."""
        try:
            step()
        except LinkLost as error:
            self._fail(error)
            return
        self._send_pipe()
        if self.pipe.error is not None:
            self._fail(self.pipe.error)
        elif self.pipe.state is PipeState.ENDED and not self.ended.done():
            self.end(Ended(f"{self.remote} closed the link"))
            if self._transport is not None:
                self._transport.close()

    def _receive(self, data: memoryview) -> None:
        was_ready = self.pipe.state is not PipeState.HANDSHAKING
        plain = self.pipe.receive_data(data)
        if not was_ready and self.pipe.state is not PipeState.HANDSHAKING:
            self._become_ready()
        if not plain or self.ended.done():
            return
        if self._receiver is not None:
            self._receiver.data_received(0, plain)
        else:
            self._early.append(plain)

    def _become_ready(self) -> None:
        # Send the last handshake message before data that core writes in `on_ready`.
        self._send_pipe()
        if not self.ready.done():
            self.ready.set_result(None)
        if self._on_ready is not None:
            self._on_ready(self)
        if self._receiver is None and self._transport is not None and not self._transport.is_closing():
            # The dialling end has not called `start` yet. Pause, so that no data accumulates.
            self._transport.pause_reading()

    def _fail(self, error: LinkLost) -> None:
        if self.ready.done():
            self._counters.add("tls_protocol_violations")
        else:
            self._counters.add("tls_handshakes_failed")
        # Send a queued alert, if the system accepts it immediately.
        self._send_pipe()
        self.abandon(LinkLost(f"the link to {self.remote} was lost: {error.detail}"))

    def _flush(self) -> None:
        self._is_scheduled = False
        if not self.ended.done():
            self._send_queued()
            self._report_writable()

    def _send_queued(self) -> None:
        if not self._queue or self.pipe.state is not PipeState.UP:
            return
        queue, self._queue = self._queue, []
        self._queued_bytes = 0
        try:
            self.pipe.write(queue[0] if len(queue) == 1 else b"".join(queue))
        except LinkLost as error:
            self._fail(error)
            return
        self._send_pipe()

    def _send_pipe(self) -> None:
        data = self.pipe.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _report_writable(self) -> None:
        if self._is_above and self.buffered_bytes(0) <= LOW_WATER_BYTES:
            self._is_above = False
            if self._receiver is not None and not self.ended.done():
                self._receiver.lane_writable(0)


def _end_stream(transport: asyncio.Transport) -> None:
    try:
        transport.write_eof()
    except OSError:
        # The connection is lost, and asyncio has not reported it yet.
        transport.abort()
        return
    if not transport.is_reading():
        transport.resume_reading()


def _configure_socket(socket: sockets.socket, unsent_bytes: int) -> None:
    """Disable Nagle's algorithm, and limit the unsent data in the kernel."""
    # asyncio sets TCP_NODELAY only on sockets that were created with the protocol number of TCP.
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
    lowat = getattr(sockets, "TCP_NOTSENT_LOWAT", None)
    if lowat is not None:
        socket.setsockopt(sockets.IPPROTO_TCP, lowat, unsent_bytes)
    else:
        # SO_SNDBUF also limits the unacknowledged data, and so the throughput of a long path. These systems offer no
        # better option.
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, max(unsent_bytes, 256 * 1024))


def _name(endpoint: object) -> tuple[str, str]:
    if not isinstance(endpoint, tuple):
        return f"{SCHEME}://", ""
    # On a dual-stack socket, IPv4 addresses appear as ::ffff:192.0.2.1 (RFC 4291 section 2.5.5.2).
    host = str(endpoint[0]).removeprefix("::ffff:")
    return f"{SCHEME}://{join_host_port(host, endpoint[1])}", host
