"""Moves frames from the mux of a link to its driver, in the order of their priority."""

from __future__ import annotations

import asyncio

from micro_core.contract.clock import Clock
from micro_core.contract.tunnel import Link, Priority
from micro_core.tunnel.mux import Mux

LANE_BUFFER_BYTES = {
    Priority.CONTROL: 4 * 1024 * 1024,
    Priority.CALLS: 512 * 1024,
    Priority.EVENTS: 256 * 1024,
    Priority.BULK: 64 * 1024,
}
"""Maximum number of bytes that a driver buffers per lane. It is small, because buffered data cannot be reordered."""

SINGLE_LANE_BUFFER_BYTES = {
    Priority.CONTROL: 128 * 1024,
    Priority.CALLS: 96 * 1024,
    Priority.EVENTS: 64 * 1024,
    Priority.BULK: 32 * 1024,
}
"""The same for a link with one lane: each priority leaves space for the higher ones, which are sent after the buffer."""


class LaneWriter:
    """Writes to one link. Nothing is written before `open` and after `close`."""

    __slots__ = ("_clock", "_is_open", "_is_scheduled", "_link", "_loop", "_mux", "bytes_out")

    def __init__(self, link: Link, mux: Mux, clock: Clock) -> None:
        self.bytes_out = 0
        self._link = link
        self._mux = mux
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._is_open = False
        self._is_scheduled = False

    def open(self) -> None:
        """Allow writing: the handshake is done."""
        self._is_open = True

    def close(self) -> None:
        """Write nothing more: the link has ended."""
        self._is_open = False

    def write_handshake(self, data: bytes) -> None:
        """Write bytes of the handshake, which precede all frames, to the control lane."""
        self.bytes_out += len(data)
        self._link.write(0, data)

    def schedule(self) -> None:
        """Flush in the next iteration of the event loop, so that frames queued in this one are written together."""
        if not self._is_scheduled and self._mux.has_queued:
            self._is_scheduled = True
            self._loop.call_soon(self._flush_scheduled)

    def flush(self) -> None:
        """Write queued frames until the driver's buffers are full."""
        if not self._is_open or not self._mux.has_queued:
            return
        now = self._clock.now()
        single = self._link.lane_count == 1
        for priority, max_buffered in (SINGLE_LANE_BUFFER_BYTES if single else LANE_BUFFER_BYTES).items():
            if not self._mux.queued(priority):
                continue
            lane = 0 if single else int(priority)
            data = self._mux.data_to_send(priority, max_buffered - self._link.buffered_bytes(lane), now)
            if data:
                self.bytes_out += len(data)
                self._link.write(lane, data)

    def _flush_scheduled(self) -> None:
        self._is_scheduled = False
        self.flush()
