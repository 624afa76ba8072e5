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
        """Handle a send buffer above its high-water mark: stop writing until `resume_writing`."""
        ...

    def resume_writing(self) -> None:
        """Handle a send buffer that has fallen below its low-water mark after `pause_writing`: writing may continue."""
        ...

    def socket_lost(self, error: MicroError) -> None:
        """Handle the end of the socket. Called exactly once, after all received data has been delivered.

        Args:
            error: `Closed`, `Ended` or `LinkLost`.
        """
        ...


class Socket(Protocol):
    """A reliable, ordered stream of bytes in both directions. A session of the tunnel is a socket, too."""

    local: str
    """The address of this end, for display."""

    remote: str
    """The address of the other end, for display."""

    def start(self, receiver: SocketReceiver) -> None:
        """Start to deliver data to `receiver`, including data that arrived before this call. Called once."""
        ...

    def write(self, data: bytes) -> None:
        """Queue `data` and return immediately. Does not raise: `socket_lost` reports errors, and later data is ignored.

        `pause_writing` of the receiver is called if the send buffer exceeds its high-water mark. The data is accepted
        nevertheless.
        """
        ...

    def pause_reading(self) -> None:
        """Stop the delivery of data until `resume_reading`, so that the peer slows down. Safe to call twice, and before `start`."""
        ...

    def resume_reading(self) -> None:
        """Continue the delivery of data. Safe to call twice."""
        ...

    async def close(self) -> None:
        """Send queued data for at most one second, then close the socket. Safe to call twice, and before `start`.

        `socket_lost` is called with `Closed` at this end, and with `Ended` at the other end after the data.
        """
        ...


class Listener(Protocol):
    """An open listener of a transport or a tunnel driver."""

    address: str
    """The address to dial, with scheme and effective port, e.g. `tcp://127.0.0.1:40123`."""

    async def close(self) -> None:
        """Stop accepting connections and release the address. Accepted connections stay open. Safe to call twice."""
        ...


class Transport(Protocol):
    """A transport driver: dials sockets and listens for them. No method blocks the event loop."""

    scheme: str
    """The scheme of its addresses without `://`, e.g. `tcp`."""

    async def start(self) -> None:
        """Acquire resources. Called once, before `dial` and `listen`."""
        ...

    async def close(self) -> None:
        """Close all listeners and sockets of this object. Safe to call twice."""
        ...

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        """Connect to `address`, and return the socket.

        A cancelled call leaves no open connection.

        Args:
            address: The `Listener.address` of a listener, with or without `scheme://`.
            timeout_s: Maximum time in seconds, greater than 0.

        Raises:
            Unreachable: No connection is established within the timeout; the detail contains the reason.
            BadRequest: The address is invalid. A driver may raise Unreachable instead.
        """
        ...

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """Listen at `address`, and return the listener.

        Args:
            address: An address with or without `scheme://`; empty for a free one that only this machine can reach.
            accept: Called in the event loop for each new socket. It calls `start` on the socket, immediately or later.

        Raises:
            Conflict: The address is in use, or this host cannot listen on it.
            BadRequest: The address is invalid.
        """
        ...
