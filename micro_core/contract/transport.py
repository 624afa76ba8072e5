"""The transport role: byte sockets between processes of one network.

The shape is asyncio's own (`write`, `pause_writing`, `data_received`): callbacks, because a frame that only
passes through must cost neither a task nor a future.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from micro_core.contract.errors import MicroError


class SocketReceiver(Protocol):
    """Who reads a socket. Called in the event loop; must not block."""

    def data_received(self, data: bytes) -> None:
        """Bytes, in order. Boundaries mean nothing."""
        ...

    def pause_writing(self) -> None:
        """The peer is slow and the buffer is above its high mark: stop writing soon."""
        ...

    def resume_writing(self) -> None:
        """The buffer has emptied below its low mark."""
        ...

    def socket_lost(self, error: MicroError) -> None:
        """The end, called exactly once: Closed (we did), Ended (they did) or LinkLost (it broke)."""
        ...


class Socket(Protocol):
    """Ordered, reliable bytes between two ends. A tunnel's session is one too."""

    local: str
    """This end's address, for people."""

    remote: str
    """The other end's address, for people."""

    def start(self, receiver: SocketReceiver) -> None:
        """Begin to deliver. Nothing is lost that arrived before."""
        ...

    def write(self, data: bytes) -> None:
        """Queue `data`; never blocks. After the end it is ignored: `socket_lost` has said so or will."""
        ...

    def pause_reading(self) -> None:
        """Deliver nothing until `resume_reading`; the peer's writes then slow down. Idempotent."""
        ...

    def resume_reading(self) -> None: ...

    async def close(self) -> None:
        """Send what is queued, for at most one second, then end. Safe to call twice."""
        ...


class Listener(Protocol):
    """An open door."""

    address: str
    """Where it can be dialled, with its scheme: `tcp://127.0.0.1:40123`."""

    async def close(self) -> None:
        """Stop accepting; sockets that were accepted live on."""
        ...


class Transport(Protocol):
    """Makes sockets. `scheme` is the word before `://` in the addresses it understands."""

    scheme: str

    async def start(self) -> None: ...

    async def close(self) -> None:
        """Close every listener and socket made here."""
        ...

    async def dial(self, address: str, *, timeout_s: float) -> Socket:
        """Connect to `address` (with or without `scheme://`). Raises Unreachable, which tells why."""
        ...

    async def listen(self, address: str, accept: Callable[[Socket], None]) -> Listener:
        """Listen at `address`; empty means any free place on loopback. Raises Conflict when it is taken.

        `accept` is called once a socket, in the event loop, and calls `start` on it.
        """
        ...
