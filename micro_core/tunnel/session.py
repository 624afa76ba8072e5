"""A session as its user sees it: a `Socket` to one peer on a channel, carried by a link. A thin layer over the mux."""

from __future__ import annotations

import asyncio
from typing import Protocol

from micro_core.contract.errors import Closed, MicroError
from micro_core.contract.transport import SocketReceiver
from micro_core.tunnel.mux import MuxSession

CLOSE_TIMEOUT_S = 1.0
"""Seconds that `close` waits until queued bytes are sent."""


class SessionLink(Protocol):
    """What a session needs of the link that carries it."""

    peer_id: str

    @property
    def local(self) -> str:
        """Local address of the link."""
        ...

    @property
    def remote(self) -> str:
        """Remote address of the link."""
        ...

    def write(self, mux_session: MuxSession, data: bytes) -> bool:
        """Send data of a session. Return False when the session should pause writing."""
        ...

    def consumed(self, mux_session: MuxSession, count: int) -> None:
        """Account for received bytes that the owner of the session has processed."""
        ...

    def close_session(self, mux_session: MuxSession) -> bool:
        """Close a session once its queued data is sent. Return True when nothing was queued."""
        ...

    def reset_session(self, mux_session: MuxSession, error: MicroError) -> None:
        """End a session at once with `error`."""
        ...


class TunnelSession:
    """Implements `Session`. Data that arrives before `start`, or while reading is paused, is buffered: one window."""

    __slots__ = (
        "_buffered",
        "_ended",
        "_error",
        "_is_loss_delivered",
        "_is_reading",
        "_link",
        "_mux_session",
        "_receiver",
        "channel",
        "local",
        "peer",
        "remote",
    )

    def __init__(self, link: SessionLink, mux_session: MuxSession) -> None:
        self.channel = mux_session.channel
        self.peer = link.peer_id
        self.local = f"{link.local}#{self.channel}"
        self.remote = f"{link.remote}#{self.channel}"
        self._link = link
        self._mux_session = mux_session
        self._receiver: SocketReceiver | None = None
        self._buffered: list[bytes] = []
        self._is_reading = True
        self._error: MicroError | None = None
        self._is_loss_delivered = False
        self._ended = asyncio.Event()

    # ----------------------------------------------------------------- Socket

    def start(self, receiver: SocketReceiver) -> None:
        """Deliver what has arrived and what arrives from now on to `receiver`."""
        self._receiver = receiver
        self._deliver_buffered()
        if self._mux_session.is_paused:
            receiver.pause_writing()

    def write(self, data: bytes) -> None:
        """Send `data`; ignored when the session has ended."""
        if self._error is None and not self._link.write(self._mux_session, data) and self._receiver is not None:
            self._receiver.pause_writing()

    def pause_reading(self) -> None:
        """Buffer what arrives. The peer can send at most one window more."""
        self._is_reading = False

    def resume_reading(self) -> None:
        """Deliver the buffered data, and all data that arrives later."""
        if not self._is_reading:
            self._is_reading = True
            self._deliver_buffered()

    async def close(self) -> None:
        """Send what is queued, for at most `CLOSE_TIMEOUT_S`, then end the session. Safe to call twice."""
        if self._error is None:
            error = Closed(f"the session on {self.channel} was closed at this end")
            if self._link.close_session(self._mux_session):
                self.end(error)
            else:
                try:
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await self._ended.wait()
                except TimeoutError:
                    self._link.reset_session(
                        self._mux_session, Closed(f"the session on {self.channel} was closed before all data was read")
                    )
            self.end(error)

    # ------------------------------------------------------ called by the link

    def receive(self, data: bytes) -> None:
        """Deliver or buffer data of the peer."""
        if self._receiver is None or not self._is_reading or self._buffered:
            self._buffered.append(data)
            return
        self._link.consumed(self._mux_session, len(data))
        self._receiver.data_received(data)

    def resume_writing(self) -> None:
        """Let the receiver write again: the send queue has drained."""
        if self._receiver is not None and self._error is None:
            self._receiver.resume_writing()

    def end(self, error: MicroError) -> None:
        """End the session. Buffered data is delivered before `socket_lost`, unless the session was closed at this end."""
        if self._error is None:
            self._error = error
            self._ended.set()
        self._deliver_buffered()

    def flushed(self) -> None:
        """Note that everything that was queued at `close` has been handed to the link."""
        self._ended.set()

    def _deliver_buffered(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        while self._buffered and self._is_reading:
            data = self._buffered.pop(0)
            self._link.consumed(self._mux_session, len(data))
            receiver.data_received(data)
        has_delivered = not self._buffered or isinstance(self._error, Closed)
        if self._error is not None and not self._is_loss_delivered and has_delivered:
            self._is_loss_delivered = True
            for data in self._buffered:
                self._link.consumed(self._mux_session, len(data))
            self._buffered.clear()
            receiver.socket_lost(self._error)
