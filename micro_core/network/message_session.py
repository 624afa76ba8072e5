"""Messages to one peer over a tunnel session: each behind a u32 length, one session a direction, peer and channel.

A thin shell: others read and write the messages, the tunnel keeps order and credit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from micro_core.contract.errors import Malformed, MicroError, TooLarge
from micro_core.contract.transport import Socket
from micro_core.wire import limits

_LENGTH = struct.Struct(">I")


def frame_message(payload: bytes) -> bytes:
    """`payload` behind its length; raises TooLarge above `limits.MAX_ADVERT_BYTES`."""
    if len(payload) > limits.MAX_ADVERT_BYTES:
        raise TooLarge(f"a message of {len(payload)} bytes is over the bound of {limits.MAX_ADVERT_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class MessageReader:
    """Receiver of the session on which a peer sends its messages.

    `receive(payload)` is called for each message; what it raises, and any violation of the form, goes to
    `refused(error)` once, after which nothing more is read. `lost` is called when the session has ended.
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
        self._rest = b""
        self._is_over = False

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._rest += data
        try:
            while len(self._rest) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._rest)
                if length > limits.MAX_ADVERT_BYTES:
                    raise Malformed(f"a message announces {length} bytes")
                if len(self._rest) < _LENGTH.size + length:
                    return
                payload = self._rest[_LENGTH.size : _LENGTH.size + length]
                self._rest = self._rest[_LENGTH.size + length :]
                self._receive(payload)
        except MicroError as error:
            self._is_over = True
            self._rest = b""
            self._refused(error)

    def pause_writing(self) -> None:
        """Nothing is written on this session."""

    def resume_writing(self) -> None:
        """Nothing is written on this session."""

    def socket_lost(self, error: MicroError) -> None:  # noqa: ARG002 - the link's end is told by the tunnel
        self._is_over = True
        self._rest = b""
        if self._lost is not None:
            self._lost()


class MessageWriter:
    """Receiver of our own sending session to a peer: it only writes. `lost` is called when the session has ended."""

    def __init__(self, socket: Socket, lost: Callable[[], None] | None = None) -> None:
        self._socket = socket
        self._lost = lost

    def start(self) -> None:
        """Begin; `lost` may be called at once."""
        self._socket.start(self)

    def send(self, payload: bytes) -> None:
        self._socket.write(frame_message(payload))

    async def close(self) -> None:
        await self._socket.close()

    def data_received(self, data: bytes) -> None:
        """A peer has nothing to say here; whatever comes is ignored."""

    def pause_writing(self) -> None:
        """What is written is bounded by its writer: the router waits for acknowledgements, the graph tells news only."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def socket_lost(self, error: MicroError) -> None:  # noqa: ARG002 - the tunnel tells the end of the link
        if self._lost is not None:
            self._lost()
