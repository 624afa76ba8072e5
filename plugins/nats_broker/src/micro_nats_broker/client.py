"""The nats-py client, with what it leaves open closed: one connection, never reconnected by itself.

What is mended, each held by a test:
- a `tls://` address is a promise: nothing leaves before the line is encrypted. nats-py asks the server, in the clear,
  whether to encrypt, so whoever sits between could say no and read the password;
- `PING` goes out behind what was written before it. nats-py writes it past its own queue, so that the answer to it says
  nothing about messages published just before;
- headers or subjects that strangers made odd do not end the reading loop in silence;
- an answer to a question that nobody waits for any more does not either;
- a line that breaks is known at once, and closing never waits for a peer that does not read.
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


class Line(TcpTransport):
    """The socket of one connection. `lose` ends it at once; `on_lost` is called at the end, with the reason."""

    def __init__(self, *, must_encrypt: bool, on_lost: Callable[[str], None], is_queueing: Callable[[], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py's
        self._must_encrypt = must_encrypt
        self._on_lost = on_lost
        self._is_queueing = is_queueing
        self._is_encrypted = False
        self._is_lost = False
        self._pings_behind = 0

    def __bool__(self) -> bool:
        # The client makes a transport of its own in the place of one that is false.
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        await super().connect(uri, buffer_size, connect_timeout)
        if self._is_lost:
            self._abort()

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        self._is_encrypted = True

    def write(self, payload: bytes) -> None:
        self._check_encrypted()
        if payload == _PING and self._is_queueing():
            self._pings_behind += 1
        elif not self._is_lost:
            super().write(payload)  # type: ignore[no-untyped-call]  # nats-py's

    def writelines(self, payload: list[bytes]) -> None:
        self._check_encrypted()
        lines = [*payload, *[_PING] * self._pings_behind]
        self._pings_behind = 0
        if lines and not self._is_lost:
            super().writelines(lines)  # type: ignore[no-untyped-call]  # nats-py's

    async def read(self, buffer_size: int) -> bytes:
        try:
            data: bytes = await super().read(buffer_size)
        except OSError as error:
            self.lose(str(error) or type(error).__name__)
            raise
        if not data:
            self.lose("the server closed the connection")
        return data

    async def drain(self) -> None:
        if self._is_lost:
            return
        try:
            await super().drain()  # type: ignore[no-untyped-call]  # nats-py's
        except OSError as error:
            self.lose(str(error) or type(error).__name__)

    def close(self) -> None:
        self.lose("closed")

    async def wait_closed(self) -> None:
        """Aborted lines close by themselves."""

    def at_eof(self) -> bool:
        return self._is_lost or bool(super().at_eof())  # type: ignore[no-untyped-call]  # nats-py's

    def lose(self, reason: str) -> None:
        """End it; what is not written yet is thrown away. Safe to call again."""
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
    """A client on a given `Line`; `on_garbage` is called for messages that cannot be read."""

    def __init__(self, *, must_encrypt: bool, on_lost: Callable[[str], None], on_garbage: Callable[[], None]) -> None:
        super().__init__()
        self._on_garbage = on_garbage
        self.line = Line(must_encrypt=must_encrypt, on_lost=on_lost, is_queueing=lambda: self.pending_data_size > 0)
        self._transport = self.line

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except Exception:  # noqa: BLE001 - whatever a stranger's bytes make of the parser
            # Without an id whoever gets the message skips and counts it.
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
        """End the connection now, and the tasks that serve it."""
        self.line.lose("closed")
        # Without it `connect` never came as far as making tasks, and `close` cannot cope.
        if self._flush_queue is not None:
            async with asyncio.timeout(1.0):
                await self.close()
