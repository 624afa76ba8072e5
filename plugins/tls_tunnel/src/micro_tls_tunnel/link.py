"""One TLS connection as a link of one lane: a thin shell of asyncio round `pipe`.

What is written in one turn of the loop leaves together: one record and one system call for many small calls. What has
left is beyond reordering, so little may wait below: the transport's own buffer tells its low mark, and the kernel is told
to take no more than it can send soon (TCP_NOTSENT_LOWAT).
"""

from __future__ import annotations

import asyncio
import os
import socket as sockets
from collections.abc import Callable

from micro_core.contract import Closed, Counters, Ended, LinkLost, LinkReceiver, MicroError
from micro_core.contract.names import join_host_port
from micro_tls_tunnel.pipe import PipeState, TlsPipe

SCHEME = "tls"

LOW_MARK_BYTES = 16 * 1024
"""`lane_writable` is told when no more than this is buffered, after more was."""

EAGER_BYTES = 16 * 1024
"""A whole record leaves without waiting for the end of the turn, so that the far end can begin."""

READ_BYTES = 64 * 1024
"""Taken off the socket at a time: four records."""

EARLY_BYTES = 2 * READ_BYTES
"""Held of a peer's bytes before `start`; reading stops then, so this is one read and what TLS held of the last."""

CLOSE_TIMEOUT_S = 1.0


class TlsLink(asyncio.BufferedProtocol):
    """Implements `Link`."""

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
        """`on_connected` tells whether the link is wanted at all; `on_ready` is called when its encryption stands."""
        self.pipe = pipe
        self.local = self.remote = f"{SCHEME}://"
        self.source = ""
        """The peer's host."""
        self.channel_binding = b""
        self._unsent_bytes = unsent_bytes
        self._counters = counters
        self._on_connected = on_connected
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[MicroError] = self._loop.create_future()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        """Done when the socket is closed."""
        self._transport: asyncio.Transport | None = None
        self._receiver: LinkReceiver | None = None
        self._buffer = bytearray(READ_BYTES)
        self._early: list[bytes] = []
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._is_scheduled = False
        self._is_above = False
        self._is_closing = False

    # ------------------------------------------------------------------- Link

    def start(self, receiver: LinkReceiver) -> None:
        self._receiver = receiver
        early, self._early = self._early, []
        for data in early:
            receiver.data_received(0, data)
        transport = self._transport
        if self.ended.done():
            receiver.link_lost(self.ended.result())
        elif transport is not None and not transport.is_reading() and not transport.is_closing():
            transport.resume_reading()

    def write(self, lane: int, data: bytes) -> None:  # noqa: ARG002 - there is one
        if self.ended.done() or self._is_closing:
            return
        self._queue.append(data)
        self._queued_bytes += len(data)
        if self.buffered_bytes(0) > LOW_MARK_BYTES:
            self._is_above = True
        if self._queued_bytes >= EAGER_BYTES:
            self._send_queued()
        if (self._queue or self._is_above) and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn_ended)

    def buffered_bytes(self, lane: int) -> int:  # noqa: ARG002 - there is one
        transport = self._transport
        return self._queued_bytes + (0 if transport is None else transport.get_write_buffer_size())

    def transport_rtt_s(self) -> float | None:
        return None

    async def close(self) -> None:
        transport = self._transport
        if transport is None or self.ended.done():
            return
        if not self._is_closing:
            self._send_queued()
            self._is_closing = True
            self.pipe.close()
            self._send_pipe()
            if not transport.is_closing():
                # A socket closed with bytes unread sends a reset, which may destroy what the peer has not read yet
                # (RFC 1122 section 4.2.2.13): so the end of the stream first, and reading on until the peer's.
                _end_stream(transport)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await asyncio.shield(self._gone)
            except TimeoutError:
                self._counters.add("tls_closed_with_data_unread")
            finally:
                transport.abort()
                self.end(Closed(f"the link to {self.remote} was closed here"))
        await asyncio.wait([self.ended])

    # ------------------------------------------------------------ from the driver

    def abandon(self, error: MicroError) -> None:
        """End without ceremony."""
        if self._transport is not None:
            self._transport.abort()
        self.end(error)

    def end(self, error: MicroError) -> None:
        """Over, once: for whatever reason."""
        if self.ended.done():
            return
        self.ended.set_result(error)
        self._queue.clear()
        self._queued_bytes = 0
        if self._receiver is not None:
            self._receiver.link_lost(error)

    # ---------------------------------------------------- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.local, _ = _name(transport.get_extra_info("sockname"))
        self.remote, self.source = _name(transport.get_extra_info("peername"))
        transport.set_write_buffer_limits(high=LOW_MARK_BYTES, low=LOW_MARK_BYTES)
        _bound_kernel(transport.get_extra_info("socket"), self._unsent_bytes)
        if self._on_connected is not None and not self._on_connected(self):
            return
        if self._on_ready is None:
            self._take(self.pipe.begin)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - one size serves
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.ended.done() or self._is_closing:
            # Read so that the other end's close is met, and let go.
            return
        self._take(lambda: self._receive(memoryview(self._buffer)[:nbytes]))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        if self._is_closing:
            self.end(Closed(f"the link to {self.remote} was closed here"))
        elif isinstance(exc, OSError) and exc.errno is not None:
            self.end(LinkLost(f"the link to {self.remote} broke: {os.strerror(exc.errno)}"))
        else:
            self.end(LinkLost(f"the link to {self.remote} broke: {exc or 'it ended without a goodbye'}"))

    def pause_writing(self) -> None:
        self._is_above = True

    def resume_writing(self) -> None:
        self._tell_writable()

    # ----------------------------------------------------------------- inside

    def _take(self, step: Callable[[], None]) -> None:
        """A step of TLS: what it wants sent is sent, and its violation is the end."""
        try:
            step()
        except LinkLost as error:
            self._broke(error)
            return
        self._send_pipe()
        if self.pipe.error is not None:
            self._broke(self.pipe.error)
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
        # The last of the handshake first: what core says goes behind it.
        self._send_pipe()
        if not self.ready.done():
            self.ready.set_result(None)
        if self._on_ready is not None:
            self._on_ready(self)
        if self._receiver is None and self._transport is not None and not self._transport.is_closing():
            # Whoever dialled has yet to call `start`; nothing may pile up meanwhile.
            self._transport.pause_reading()

    def _broke(self, error: LinkLost) -> None:
        if self.ready.done():
            self._counters.add("tls_protocol_violations")
        else:
            self._counters.add("tls_handshakes_failed")
        # An alert may be waiting; it goes if the system takes it at once.
        self._send_pipe()
        self.abandon(LinkLost(f"the link to {self.remote} broke: {error.detail}"))

    def _turn_ended(self) -> None:
        self._is_scheduled = False
        if not self.ended.done():
            self._send_queued()
            self._tell_writable()

    def _send_queued(self) -> None:
        if not self._queue or self.pipe.state is not PipeState.UP:
            return
        queue, self._queue = self._queue, []
        self._queued_bytes = 0
        try:
            self.pipe.write(queue[0] if len(queue) == 1 else b"".join(queue))
        except LinkLost as error:
            self._broke(error)
            return
        self._send_pipe()

    def _send_pipe(self) -> None:
        data = self.pipe.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _tell_writable(self) -> None:
        if self._is_above and self.buffered_bytes(0) <= LOW_MARK_BYTES:
            self._is_above = False
            if self._receiver is not None and not self.ended.done():
                self._receiver.lane_writable(0)


def _end_stream(transport: asyncio.Transport) -> None:
    try:
        transport.write_eof()
    except OSError:
        # The connection is gone already, and asyncio has not told yet.
        transport.abort()
        return
    if not transport.is_reading():
        transport.resume_reading()


def _bound_kernel(socket: sockets.socket, unsent_bytes: int) -> None:
    """Send at once, and bound what the kernel takes and cannot send yet."""
    # asyncio sets it only on sockets that were made with the protocol's number.
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
    lowat = getattr(sockets, "TCP_NOTSENT_LOWAT", None)
    if lowat is not None:
        socket.setsockopt(sockets.IPPROTO_TCP, lowat, unsent_bytes)
    else:
        # Also bounds what is under way, hence the rate of a long path: the best there is on such a system.
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, max(unsent_bytes, 256 * 1024))


def _name(endpoint: object) -> tuple[str, str]:
    if not isinstance(endpoint, tuple):
        return f"{SCHEME}://", ""
    # An IPv4 dialler at a socket of both families shows as ::ffff:192.0.2.1 (RFC 4291 section 2.5.5.2).
    host = str(endpoint[0]).removeprefix("::ffff:")
    return f"{SCHEME}://{join_host_port(host, endpoint[1])}", host
