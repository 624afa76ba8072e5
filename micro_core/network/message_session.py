"""Messages to one peer over a tunnel session: one session per direction, peer and channel.

Each message is preceded by its length (u32). The tunnel preserves their order and limits the flow; the content of the
messages is up to the caller.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from micro_core.contract.errors import Malformed, MicroError, TooLarge
from micro_core.contract.transport import Socket
from micro_core.wire import limits

_LENGTH = struct.Struct(">I")


def frame_message(payload: bytes) -> bytes:
    """Return `payload` preceded by its length. Raises TooLarge above `limits.MAX_ADVERT_BYTES`."""
    if len(payload) > limits.MAX_ADVERT_BYTES:
        raise TooLarge(f"a message of {len(payload)} bytes exceeds the maximum of {limits.MAX_ADVERT_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class MessageReader:
    """Receives the messages that a peer sends on its session.

    `receive(payload)` is called for each message. If it raises a MicroError, or if a message is malformed, then
    `refused(error)` is called once and further messages are ignored. `lost` is called when the session has ended.
    """

    def __init__(
        self,
        receive: Callable[[bytes], None],
        refused: Callable[[MicroError], None],
        lost: Callable[[], None] | None = None,
    ) -> None:
        self._receive = receive
        self._refused = refused
        self._lost = lost
        self._incomplete = b""
        self._has_ended = False

    def data_received(self, data: bytes) -> None:
        """Decode messages and hand them to the receiver. A Malformed message is reported to `refused`, not raised."""
        if self._has_ended:
            return
        self._incomplete += data
        try:
            while len(self._incomplete) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._incomplete)
                if length > limits.MAX_ADVERT_BYTES:
                    raise Malformed(f"a message of {length} bytes exceeds the maximum of {limits.MAX_ADVERT_BYTES}")
                if len(self._incomplete) < _LENGTH.size + length:
                    return
                payload = self._incomplete[_LENGTH.size : _LENGTH.size + length]
                self._incomplete = self._incomplete[_LENGTH.size + length :]
                self._receive(payload)
        except MicroError as error:
            self._has_ended = True
            self._incomplete = b""
            self._refused(error)

    def pause_writing(self) -> None:
        """Do nothing: this end does not write."""

    def resume_writing(self) -> None:
        """Do nothing: this end does not write."""

    def socket_lost(self, error: MicroError) -> None:  # noqa: ARG002 - the tunnel reports the reason
        """Record the end of the session."""
        self._has_ended = True
        self._incomplete = b""
        if self._lost is not None:
            self._lost()


class MessageWriter:
    """Sends messages to a peer on a session. `lost` is called when the session has ended."""

    def __init__(self, socket: Socket, lost: Callable[[], None] | None = None) -> None:
        self._socket = socket
        self._lost = lost

    def start(self) -> None:
        """Start to use the session. `lost` may be called immediately."""
        self._socket.start(self)

    def send(self, payload: bytes) -> None:
        """Send one message. Raises TooLarge above `limits.MAX_ADVERT_BYTES`."""
        self._socket.write(frame_message(payload))

    async def close(self) -> None:
        """Send what is queued, then close the session."""
        await self._socket.close()

    def data_received(self, data: bytes) -> None:
        """Ignore the data: a peer sends nothing on this session."""

    def pause_writing(self) -> None:
        """Do nothing: the caller bounds what it sends. The router waits for acknowledgements, the graph sends changes only."""

    def resume_writing(self) -> None:
        """Do nothing, see `pause_writing`."""

    def socket_lost(self, error: MicroError) -> None:  # noqa: ARG002 - the tunnel reports the reason
        """Record the end of the session."""
        if self._lost is not None:
            self._lost()
