"""The nats-py client for one connection, without automatic reconnects, and with some of its problems fixed.

Each of these fixes is covered by a test:
- With `tls://`, nothing is sent before the connection is encrypted. nats-py asks the server in clear text whether to
  encrypt, so an attacker in between could answer no and read the password.
- `PING` is sent after all data written before it. nats-py bypasses its own queue, so that a `PONG` would not confirm the
  messages published just before.
- Invalid headers or subjects do not end the reading loop silently.
- Neither does a `PONG` for a request that was cancelled.
- A broken connection is noticed immediately, and closing never waits for a peer that does not read.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import ParseResult

import nats.aio.client
import nats.errors
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport

_PING = b"PING\r\n"


class NatsTransport(TcpTransport):
    """The transport of one connection. `lose` closes it immediately; `on_lost` is called once with the reason."""

    def __init__(self, *, must_encrypt: bool, on_lost: Callable[[str], None], is_queueing: Callable[[], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py's
        self._must_encrypt = must_encrypt
        self._on_lost = on_lost
        self._is_queueing = is_queueing
        self._is_encrypted = False
        self._is_lost = False
        self._queued_pings = 0

    def __bool__(self) -> bool:
        # nats-py replaces a transport that is falsy.
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Open the connection."""
        await super().connect(uri, buffer_size, connect_timeout)
        if self._is_lost:
            self._abort()

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Upgrade the connection to TLS."""
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        self._is_encrypted = True

    def write(self, payload: bytes) -> None:
        """Write data; a PING is queued after the data written before it. Raises SecureConnWantedError before TLS."""
        self._check_encrypted()
        if payload == _PING and self._is_queueing():
            self._queued_pings += 1
        elif not self._is_lost:
            super().write(payload)  # type: ignore[no-untyped-call]  # nats-py's

    def writelines(self, payload: list[bytes]) -> None:
        """Write chunks, then queued PINGs. Raises SecureConnWantedError before TLS."""
        self._check_encrypted()
        lines = [*payload, *[_PING] * self._queued_pings]
        self._queued_pings = 0
        if lines and not self._is_lost:
            super().writelines(lines)  # type: ignore[no-untyped-call]  # nats-py's

    async def read(self, buffer_size: int) -> bytes:
        """Read data; the end of the connection calls `on_lost`. Raises OSError."""
        try:
            data: bytes = await super().read(buffer_size)
        except OSError as error:
            self.lose(str(error) or type(error).__name__)
            raise
        if not data:
            self.lose("the server closed the connection")
        return data

    async def drain(self) -> None:
        """Wait until written data is sent; an error ends the connection."""
        if self._is_lost:
            return
        try:
            await super().drain()  # type: ignore[no-untyped-call]  # nats-py's
        except OSError as error:
            self.lose(str(error) or type(error).__name__)

    def close(self) -> None:
        """Close the connection immediately."""
        self.lose("closed")

    async def wait_closed(self) -> None:
        """Return immediately: aborted connections close on their own."""

    def at_eof(self) -> bool:
        """Return whether the connection has ended."""
        return self._is_lost or bool(super().at_eof())  # type: ignore[no-untyped-call]  # nats-py's

    def lose(self, reason: str) -> None:
        """Close the connection and discard unwritten data. Safe to call again."""
        if not self._is_lost:
            self._is_lost = True
            self._abort()
            self._on_lost(reason)

    def _abort(self) -> None:
        for writer in (self._io_writer, self._bare_io_writer):
            if writer is not None:
                writer.transport.abort()

    def _check_encrypted(self) -> None:
        if self._must_encrypt and not self._is_encrypted:
            raise nats.errors.SecureConnWantedError


class Client(nats.aio.client.Client):
    """A nats-py client on a `NatsTransport`; `on_garbage` is called for invalid messages."""

    def __init__(self, *, must_encrypt: bool, on_lost: Callable[[str], None], on_garbage: Callable[[], None]) -> None:
        super().__init__()
        self._on_garbage = on_garbage
        self.nats_transport = NatsTransport(
            must_encrypt=must_encrypt, on_lost=on_lost, is_queueing=lambda: self.pending_data_size > 0
        )
        self._transport = self.nats_transport

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except Exception:  # noqa: BLE001 - invalid bytes may raise anything in the parser
            # Without headers, the receiver skips and counts the message.
            return None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg | None:
        try:
            message: Msg = super()._build_message(sid, subject, reply, data, headers)
        except UnicodeDecodeError:
            self._on_garbage()
            return None
        return message

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
        else:
            await super()._process_pong()

    async def abandon(self) -> None:
        """Close the connection immediately and end its tasks. Raises TimeoutError if nats-py does not end."""
        self.nats_transport.lose("closed")
        # Without a flush queue, `connect` failed before creating tasks, and `close` would fail.
        if self._flush_queue is not None:
            async with asyncio.timeout(1.0):
                await self.close()
