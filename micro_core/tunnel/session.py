"""A session as its user sees it: a `Socket` to one peer, on a channel, over a link. A thin face of the mux."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from micro_core.contract.errors import Closed, MicroError
from micro_core.contract.transport import SocketReceiver
from micro_core.tunnel.mux import MuxSession

if TYPE_CHECKING:
    from micro_core.tunnel.link import LinkPeer

CLOSE_TIMEOUT_S = 1.0
"""How long `close` waits for queued bytes to leave."""


class TunnelSession:
    """Implements `Session`. Data that comes before `start`, or while reading is paused, is held: at most a window."""

    __slots__ = (
        "_error",
        "_held",
        "_is_reading",
        "_is_told",
        "_link",
        "_mux_session",
        "_over",
        "_receiver",
        "channel",
        "local",
        "peer",
        "remote",
    )

    def __init__(self, link: LinkPeer, mux_session: MuxSession) -> None:
        self.channel = mux_session.channel
        self.peer = link.peer_id
        self.local = f"{link.link.local}#{self.channel}"
        self.remote = f"{link.link.remote}#{self.channel}"
        self._link = link
        self._mux_session = mux_session
        self._receiver: SocketReceiver | None = None
        self._held: list[bytes] = []
        self._is_reading = True
        self._error: MicroError | None = None
        self._is_told = False
        self._over = asyncio.Event()

    # ----------------------------------------------------------------- Socket

    def start(self, receiver: SocketReceiver) -> None:
        self._receiver = receiver
        self._deliver_held()
        if self._mux_session.is_paused:
            receiver.pause_writing()

    def write(self, data: bytes) -> None:
        if self._error is None and not self._link.write(self._mux_session, data) and self._receiver is not None:
            self._receiver.pause_writing()

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._deliver_held()

    async def close(self) -> None:
        if self._error is None:
            error = Closed(f"the session on {self.channel} was closed here")
            if self._link.close_session(self._mux_session):
                self.end(error)
            else:
                try:
                    await asyncio.wait_for(self._over.wait(), CLOSE_TIMEOUT_S)
                except TimeoutError:
                    self._link.reset_session(self._mux_session, Closed("closed without reading what was sent"))
            self.end(error)

    # ------------------------------------------------------ from the link only

    def receive(self, data: bytes) -> None:
        if self._receiver is None or not self._is_reading or self._held:
            self._held.append(data)
            return
        self._link.consumed(self._mux_session, len(data))
        self._receiver.data_received(data)

    def resume_writing(self) -> None:
        if self._receiver is not None and self._error is None:
            self._receiver.resume_writing()

    def end(self, error: MicroError) -> None:
        """The session is over; what is held is still delivered before the owner is told."""
        if self._error is None:
            self._error = error
            self._over.set()
        self._deliver_held()

    def flushed(self) -> None:
        """All that was queued has been handed to the link after `close`."""
        self._over.set()

    def _deliver_held(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        while self._held and self._is_reading:
            data = self._held.pop(0)
            self._link.consumed(self._mux_session, len(data))
            receiver.data_received(data)
        if self._error is not None and not self._is_told and (not self._held or isinstance(self._error, Closed)):
            self._is_told = True
            for data in self._held:
                self._link.consumed(self._mux_session, len(data))
            self._held.clear()
            receiver.socket_lost(self._error)
