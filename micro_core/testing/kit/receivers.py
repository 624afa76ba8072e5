"""Receivers for sockets and links that record the received data and violations of the contract."""

from __future__ import annotations

from micro_core.contract import Link, MicroError, Socket


class SocketReader:
    """A `SocketReceiver` that records what it receives. `violations` lists the violated clauses of the contract."""

    def __init__(self, socket: Socket, *, start: bool = True) -> None:
        self.socket = socket
        self.data = bytearray()
        self.error: MicroError | None = None
        self.is_paused = False
        self.is_started = False
        self.pauses = 0
        self.violations: list[str] = []
        if start:
            self.start()

    def start(self) -> None:
        """Start the delivery of data."""
        self.is_started = True
        self.socket.start(self)

    def data_received(self, data: bytes) -> None:
        """Record data."""
        if self.error is not None:
            self.violations.append("no data is delivered after socket_lost")
        self.data += data

    def pause_writing(self) -> None:
        """Record that the socket asked to pause."""
        self.is_paused = True
        self.pauses += 1

    def resume_writing(self) -> None:
        """Record that the socket accepts data again."""
        self.is_paused = False

    def socket_lost(self, error: MicroError) -> None:
        """Record the end of the socket."""
        if self.error is not None:
            self.violations.append("socket_lost is called exactly once")
        self.error = error


class LinkReader:
    """A `LinkReceiver` that records what it receives. `violations` lists the violated clauses of the contract."""

    def __init__(self, link: Link, *, start: bool = True) -> None:
        self.link = link
        self.lanes: dict[int, bytearray] = {lane: bytearray() for lane in range(link.lane_count)}
        self.writable: list[int] = []
        self.error: MicroError | None = None
        self.violations: list[str] = []
        if start:
            self.start()

    def start(self) -> None:
        """Start the delivery of data."""
        self.link.start(self)

    def data_received(self, lane: int, data: bytes) -> None:
        """Record data of a lane."""
        if self.error is not None:
            self.violations.append("no data is delivered after link_lost")
        if lane not in self.lanes:
            self.violations.append(f"data arrives only on existing lanes: lane {lane} of {self.link.lane_count}")
            return
        self.lanes[lane] += data

    def lane_writable(self, lane: int) -> None:
        """Record that a lane accepts data again."""
        self.writable.append(lane)

    def link_lost(self, error: MicroError) -> None:
        """Record the end of the link."""
        if self.error is not None:
            self.violations.append("link_lost is called exactly once")
        self.error = error
