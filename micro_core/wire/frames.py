"""Encodes and decodes frames, which are sent on all sockets: between processes of a site and through tunnels.

    length u32 | kind u8 | flags u8 | stream u32 | header length u16 | header | body      (big-endian)

`length` is the number of bytes after the field itself. A *stream* is one call. The side that dialled the socket uses odd stream
numbers for its calls, the other side even ones. Numbers are not reused on a socket. Stream 0 is for frames of the connection
itself. A proxy reads the header of a REQUEST, and forwards bodies unchanged.

Pure. A frame that violates the protocol raises `Malformed` or `TooLarge` before its body is buffered.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from micro_core.contract.errors import Malformed, TooLarge
from micro_core.wire import limits

HEAD = struct.Struct(">IBBIH")
_AFTER_LENGTH = HEAD.size - 4


class Kind(enum.IntEnum):
    """The type of a frame. The text of each member describes the sender, the header and the body."""

    HELLO = 0
    """First frame of both sides, on stream 0. Header: the supported wire versions (`encode_hello`)."""
    REQUEST = 1
    """Opens a call. Header: `CallHeader`; body: the request, or its first piece."""
    RESPONSE = 2
    """The response and end of a unary or client-streaming call. Header: `ResponseHeader`; body: the value."""
    ERROR = 3
    """The end of a call, sent by the server or a hop. Header: the error (`encode_map`)."""
    DATA = 4
    """An item of a stream in either direction, or a piece of one. No header."""
    END = 5
    """The sender sends no more items (half-close). No header, no body."""
    CANCEL = 6
    """The caller ends the call. Neither side sends further frames for it."""
    CREDIT = 7
    """Permits the receiver of this frame to send more data. Body: number of bytes, u32."""
    EVENT = 8
    """A published message, on stream 0, as one frame or several with MORE. Header: `EventHeader`."""
    PING = 9
    """Answered immediately by a PONG with the same body, of at most 32 bytes."""
    PONG = 10
    """The answer to a PING."""
    GOAWAY = 11
    """Sent on stream 0 when the sender drains. The receiver opens no more calls; calls in progress are completed."""


MORE = 0x01
"""Flag: the message continues in the next DATA frame of the stream, or the next EVENT frame for an event."""

_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}
_CONNECTION_KINDS = frozenset({Kind.HELLO, Kind.EVENT, Kind.PING, Kind.PONG, Kind.GOAWAY})


class Frame(NamedTuple):
    """A decoded frame."""

    kind: int
    flags: int
    stream: int
    header: bytes
    body: bytes


def encode(kind: int, stream: int, header: bytes = b"", body: bytes = b"", flags: int = 0) -> bytes:
    """Return one frame as bytes. The sizes of header and body are not checked; see `check_sizes`."""
    return HEAD.pack(_AFTER_LENGTH + len(header) + len(body), kind, flags, stream, len(header)) + header + body


def check_sizes(header: bytes, body: bytes) -> None:
    """Check the sizes of the header and body of one frame.

    Raises:
        TooLarge: One of them exceeds its limit.
    """
    if len(header) > limits.MAX_HEADER_BYTES:
        raise TooLarge(
            f"the header of {len(header)} bytes exceeds the limit of {limits.MAX_HEADER_BYTES}",
            hint="send less metadata",
        )
    if len(body) > limits.MAX_FRAME_BODY_BYTES:
        raise TooLarge(f"a frame body of {len(body)} bytes exceeds the limit of {limits.MAX_FRAME_BODY_BYTES}")


def encode_message(kind: int, stream: int, header: bytes, body: bytes) -> list[bytes]:
    """Return the frames of one message: the first of `kind`, the rest DATA (EVENT for an event).

    Raises:
        TooLarge: The body exceeds `limits.MAX_BODY_BYTES`, or the header exceeds `limits.MAX_HEADER_BYTES`.
    """
    if len(body) > limits.MAX_BODY_BYTES:
        raise TooLarge(
            f"a message of {len(body)} bytes exceeds the limit of {limits.MAX_BODY_BYTES}",
            hint="send it as a stream of smaller items",
        )
    step = limits.MAX_FRAME_BODY_BYTES
    if len(body) <= step:
        check_sizes(header, b"")
        return [encode(kind, stream, header, body)]
    check_sizes(header, b"")
    rest = kind if kind == Kind.EVENT else int(Kind.DATA)
    frames = [encode(kind, stream, header, body[:step], MORE)]
    for start in range(step, len(body), step):
        last = start + step >= len(body)
        frames.append(encode(rest, stream, b"", body[start : start + step], 0 if last else MORE))
    return frames


def restream(frame: Frame, stream: int) -> bytes:
    """Return `frame` as bytes with another stream number. This is all that a proxy changes in a response."""
    header, body = frame.header, frame.body
    return (
        HEAD.pack(_AFTER_LENGTH + len(header) + len(body), frame.kind, frame.flags, stream, len(header)) + header + body
    )


class FrameDecoder:
    """Decodes received chunks into frames. It buffers at most one incomplete frame."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def buffered_bytes(self) -> int:
        """The size of the incomplete frame that has been received so far."""
        return len(self._rest)

    def receive_data(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes.

        Consume the whole iterator before the next call. After an exception, the connection must be closed.

        Raises:
            Malformed: The kind is unknown, the lengths contradict each other, or the kind does not match the stream.
            TooLarge: The frame exceeds a limit.
        """
        data = self._rest + data if self._rest else data
        self._rest = b""
        position, end = 0, len(data)
        unpack, new = HEAD.unpack_from, tuple.__new__
        while end - position >= HEAD.size:
            length, kind, flags, stream, header_length = unpack(data, position)
            if length > limits.MAX_FRAME_BYTES - 4:
                raise TooLarge(f"a frame of {length} bytes exceeds the limit of {limits.MAX_FRAME_BYTES - 4}")
            body_start = position + HEAD.size + header_length
            frame_end = position + 4 + length
            if body_start > frame_end or header_length > limits.MAX_HEADER_BYTES:
                raise Malformed(f"a frame of {length} bytes announces a header of {header_length} bytes")
            if frame_end - body_start > limits.MAX_FRAME_BODY_BYTES:
                raise TooLarge(
                    f"a frame body of {frame_end - body_start} bytes exceeds the limit of {limits.MAX_FRAME_BODY_BYTES}"
                )
            if kind not in _KINDS:
                raise Malformed(
                    f"unknown frame kind {kind}", hint="is the peer a micro process of a compatible version?"
                )
            if (stream == 0) is not (kind in _CONNECTION_KINDS):
                raise Malformed(f"a {_KINDS[kind].name} frame on stream {stream}")
            if frame_end > end:
                break
            # Avoids the Python code of the constructor of Frame, because this runs once per frame at every hop.
            yield new(Frame, (kind, flags, stream, data[position + HEAD.size : body_start], data[body_start:frame_end]))
            position = frame_end
        self._rest = data[position:]


_CREDIT = struct.Struct(">I")


def encode_credit(stream: int, credit_bytes: int) -> bytes:
    """Return a CREDIT frame that grants `credit_bytes` more bytes."""
    return encode(Kind.CREDIT, stream, b"", _CREDIT.pack(credit_bytes))


def decode_credit(body: bytes) -> int:
    """Return the number of bytes that a CREDIT frame grants.

    Raises:
        Malformed: The body does not have four bytes.
    """
    if len(body) != _CREDIT.size:
        raise Malformed(f"the body of a CREDIT frame has {len(body)} bytes, not {_CREDIT.size}")
    (granted,) = _CREDIT.unpack(body)
    return int(granted)
