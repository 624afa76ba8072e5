"""Readers of sockets and links that remember, and hold the driver to what it may call."""

from __future__ import annotations

from micro_core.contract import Link, MicroError, Socket


class SocketReader:
    """Implements `SocketReceiver`. `broken` names promises that calls to it broke."""

    def __init__(self, socket: Socket, *, start: bool = True) -> None:
        self.socket = socket
        self.data = bytearray()
        self.error: MicroError | None = None
        self.is_paused = False
        self.is_started = False
        self.pauses = 0
        self.broken: list[str] = []
        if start:
            self.start()

    def start(self) -> None:
        """Have the socket deliver."""
        self.is_started = True
        self.socket.start(self)

    def data_received(self, data: bytes) -> None:
        if self.error is not None:
            self.broken.append("nothing is delivered after socket_lost")
        self.data += data

    def pause_writing(self) -> None:
        self.is_paused = True
        self.pauses += 1

    def resume_writing(self) -> None:
        self.is_paused = False

    def socket_lost(self, error: MicroError) -> None:
        if self.error is not None:
            self.broken.append("socket_lost is called exactly once")
        self.error = error


class LinkReader:
    """Implements `LinkReceiver`. `broken` names promises that calls to it broke."""

    def __init__(self, link: Link, *, start: bool = True) -> None:
        self.link = link
        self.lanes: dict[int, bytearray] = {lane: bytearray() for lane in range(link.lane_count)}
        self.writable: list[int] = []
        self.error: MicroError | None = None
        self.broken: list[str] = []
        if start:
            self.start()

    def start(self) -> None:
        """Have the link deliver."""
        self.link.start(self)

    def data_received(self, lane: int, data: bytes) -> None:
        if self.error is not None:
            self.broken.append("nothing is delivered after link_lost")
        if lane not in self.lanes:
            self.broken.append(f"data came on lane {lane} of a link with {self.link.lane_count}")
            return
        self.lanes[lane] += data

    def lane_writable(self, lane: int) -> None:
        self.writable.append(lane)

    def link_lost(self, error: MicroError) -> None:
        if self.error is not None:
            self.broken.append("link_lost is called exactly once")
        self.error = error
