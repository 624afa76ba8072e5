"""The transport role: sockets between processes of one site.

The interface resembles the protocols of asyncio (`write`, `pause_writing`, `data_received`). It uses callbacks, so that
forwarding a frame needs neither a task nor a future.

A socket ends in exactly one of three ways: `Closed` (this side closed it), `Ended` (the other side closed it) or `LinkLost`
(the connection failed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from micro_core.contract.errors import MicroError


class SocketReceiver(Protocol):
    """Receives the data of a socket. The methods are called in the event loop and must not block."""

    def data_received(self, data: bytes) -> None:
        """Receive bytes in order. Chunk boundaries carry no meaning."""
        ...

    def pause_writing(self) -> None:
        """Note that the send buffer is above its high-water mark. Stop writing soon."""
        ...

    def resume_writing(self) -> None:
        """Note that the send buffer is below its low-water mark."""
        ...

    def socket_lost(self, error: MicroError) -> None:
        """Note the end of the socket. Called exactly once, with Closed, Ended or LinkLost."""
        ...


class Socket(Protocol):
    """A reliable, ordered stream of bytes in both directions. A session of the tunnel is a socket, too."""

    local: str
    """The address of this end, for display."""

    remote: str
    """The address of the other end, for display."""

    def start(self, receiver: SocketReceiver) -> None:
        """Start to deliver data to `receiver`, including data that arrived before this call."""
        ...

    def write(self, data: bytes) -> None:
        """Queue `data` without blocking. Data is ignored after the end of the socket, which `socket_lost` reports."""
        ...

    def pause_reading(self) -> None:
        """Stop the delivery of data until `resume_reading`, so that the peer slows down. Safe to call twice."""
        ...

    def resume_reading(self) -> None:
        """Continue the delivery of data. Safe to call twice."""
        ...

    async def close(self) -> None:
        """Send queued data for at most one second, then close the socket. Safe to call twice."""
        ...


class Listener(Protocol):
    """An open listener of a transport or a tunnel driver."""

    address: str
    """The address to dial, with scheme and effective port, e.g. `tcp://127.0.0.1:40123`."""

    async def close(self) -> None:
        """Stop accepting. Accepted connections stay open. Safe to call twice."""
        ...


class Transport(Protocol):
    """A transport driver: dials sockets and listens for them."""

    scheme: str
    """The scheme of its addresses without `://`, e.g. `tcp`."""

    async def start(self) -> None:
        """Acquire what the driver needs. Called once, before `dial` and `listen`."""
        ...

    async def close(self) -> None:
        """Close all listeners and sockets of this object. Safe to call twice."""
        ...

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        """Connect to `address`, with or without `scheme://`, within `timeout_s` seconds.

        A cancelled call leaves no open connection. Raises Unreachable with the reason if no connection is possible.
        """
        ...

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """Listen at `address`; an empty address means a free one that only this machine can reach.

        `accept` is called in the event loop for each new socket, and calls `start` on it. Raises Conflict if the address is
        in use.
        """
        ...
