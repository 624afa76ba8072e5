"""A visitor's end of one socket at a tunnel's door: proves, asks, and hands on what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from micro_core.contract.errors import LinkLost, Malformed, MicroError, Unreachable, error_from_wire
from micro_core.contract.transport import Socket
from micro_core.standalone.tunnel import protocol as wire
from micro_core.standalone.tunnel.protocol import Kind
from micro_core.wire import limits

DIAL_TIMEOUT_S = 3.0

Prove = Callable[[bytes], bytes]
"""The proof of the network's token over a transcript."""


class DoorOwner(Protocol):
    """Called in the event loop; must not block."""

    def door_opened(self, facts: dict[str, Any]) -> None:
        """The request was granted."""
        ...

    def door_data(self, data: bytes) -> None: ...

    def door_event(self, event: dict[str, Any]) -> None:
        """An EVENT; a MicroError raised here ends the visit."""
        ...

    def door_paused(self) -> None: ...

    def door_resumed(self) -> None: ...

    def door_lost(self, error: MicroError) -> None:
        """The end, once, also of a visit that was never granted."""
        ...


class DoorSocket:
    """One visit; a `SocketReceiver`."""

    def __init__(self, request: dict[str, Any], prove: Prove, owner: DoorOwner) -> None:
        self._request = request
        self._prove = prove
        self._owner = owner
        self._reader = wire.Reader()
        self._socket: Socket | None = None
        self._is_asked = False
        self._is_open = False
        self._is_over = False
        self._is_reading = True
        self._error: MicroError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    def begin(self, socket: Socket) -> None:
        """Visit over `socket`, which has just been dialled."""
        if self._is_over:
            self._socket = socket
            self._close_behind()
            return
        self._socket = socket
        self._timer = asyncio.get_running_loop().call_later(limits.HANDSHAKE_TIMEOUT_S, self._too_late)
        if not self._is_reading:
            socket.pause_reading()
        socket.start(self)

    def fail(self, error: MicroError) -> None:
        """The visit is over, and this is why."""
        self._over(error)

    @property
    def is_open(self) -> bool:
        return self._is_open and not self._is_over

    def send(self, data: bytes) -> None:
        if self._socket is not None and not self._is_over:
            self._socket.write(data)

    def pause_reading(self) -> None:
        self._is_reading = False
        # Not before the door has opened: its own words must come through.
        if self._socket is not None and self._is_open:
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._is_reading = True
        if self._socket is not None:
            self._socket.resume_reading()

    async def close(self, error: MicroError) -> None:
        """Say END, send what is queued, then end with `error` for the owner. Safe to call twice."""
        if self._is_over:
            if self._closing is not None:
                await self._closing
            return
        self.send(wire.encode(Kind.END))
        self._over(error)
        if self._closing is not None:
            await self._closing

    # --------------------------------------------------------- SocketReceiver

    def data_received(self, data: bytes) -> None:
        try:
            for kind, payload in self._reader.receive(data):
                if self._is_over:
                    return
                self._receive(kind, payload)
        except MicroError as error:
            self._over(error)

    def pause_writing(self) -> None:
        if self._is_open:
            self._owner.door_paused()

    def resume_writing(self) -> None:
        if self._is_open:
            self._owner.door_resumed()

    def socket_lost(self, error: MicroError) -> None:
        self._over(
            self._error or LinkLost(f"the tunnel's process is away: {error.detail}", hint="is `micro tunnel` up?")
        )

    def _receive(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.END:
            value = wire.decode_map(payload)
            self._over(error_from_wire(value) if value else LinkLost("the tunnel's process ended the visit"))
        elif kind is Kind.NONCE and not self._is_asked:
            if len(payload) != wire.NONCE_BYTES:
                raise Malformed(f"tunnel door: a nonce of {len(payload)} bytes")
            self._is_asked = True
            proof = self._prove(wire.CONTEXT + payload)
            self.send(wire.encode_map(Kind.REQUEST, {**self._request, "proof": proof}))
        elif kind is Kind.OPEN and self._is_asked and not self._is_open:
            if self._timer is not None:
                self._timer.cancel()
            self._is_open = True
            self._owner.door_opened(wire.decode_map(payload))
            if not self._is_reading:
                self.pause_reading()
        elif kind is Kind.DATA and self._is_open:
            self._owner.door_data(payload)
        elif kind is Kind.EVENT and self._is_open:
            self._owner.door_event(wire.decode_map(payload))
        else:
            raise Malformed(f"tunnel door: {kind.name} out of place")

    def _over(self, error: MicroError) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._close_behind()
        self._owner.door_lost(error)

    def _close_behind(self) -> None:
        if self._socket is not None and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._socket.close())

    def _too_late(self) -> None:
        self._over(Unreachable(f"the tunnel's door did not answer within {limits.HANDSHAKE_TIMEOUT_S:g} s"))
