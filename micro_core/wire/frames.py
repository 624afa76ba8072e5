"""Frames: what every socket of the network carries, between processes and through tunnels alike.

    length u32 | kind u8 | flags u8 | stream u32 | header length u16 | header | body      (big-endian)

`length` counts everything after itself. A *stream* is one call; the side that dialled the socket numbers its
calls with odd numbers, the other side with even ones, never reused on that socket; stream 0 is the connection's
own. A proxy reads the header of a REQUEST and passes every body as it came.

Pure: bytes in, frames out. A violation raises `Malformed` or `TooLarge` before anything is buffered for it.
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
    """First frame of both sides, stream 0; header: msgpack array [wire versions], see header.py."""
    REQUEST = 1
    """Opens a call; header: the call header; body: the (first piece of the) request."""
    RESPONSE = 2
    """The answer of a unary or client-streaming call, and its end; header: response header; body: the value."""
    ERROR = 3
    """The end of a call, from the serving side, or from a hop; header: the error's wire form, msgpack."""
    DATA = 4
    """An item (or piece of one) of a stream, either way; no header."""
    END = 5
    """This side sends no more items (half-close), no header, no body."""
    CANCEL = 6
    """The caller gives up: the call is over, nothing more is sent for it."""
    CREDIT = 7
    """The sender of this frame may be sent more; body: u32, bytes."""
    EVENT = 8
    """A published message, stream 0, one frame or several with MORE; header: event header."""
    PING = 9
    """Answered at once by PONG with the same body (at most 32 bytes)."""
    PONG = 10
    GOAWAY = 11
    """Stream 0: the sender drains. Do not open more calls; calls in progress are finished."""


MORE = 0x01
"""Flag: this message goes on in the next DATA frame (EVENT frame, for an event) of the stream."""

_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}
_CONNECTION_KINDS = frozenset({Kind.HELLO, Kind.EVENT, Kind.PING, Kind.PONG, Kind.GOAWAY})


class Frame(NamedTuple):
    """One decoded frame. `header` and `body` are views or bytes of the received chunk: copy to keep."""

    kind: int
    flags: int
    stream: int
    header: bytes
    body: bytes


def encode(kind: int, stream: int, header: bytes = b"", body: bytes = b"", flags: int = 0) -> bytes:
    """Return one frame. The caller keeps header and body within `limits` (see `check_sizes`)."""
    return HEAD.pack(_AFTER_LENGTH + len(header) + len(body), kind, flags, stream, len(header)) + header + body


def check_sizes(header: bytes, body: bytes) -> None:
    """Raise TooLarge where the header or one frame's body is over its bound."""
    if len(header) > limits.MAX_HEADER_BYTES:
        raise TooLarge(
            f"the header of {len(header)} bytes is over the bound of {limits.MAX_HEADER_BYTES}",
            hint="send less metadata",
        )
    if len(body) > limits.MAX_FRAME_BODY_BYTES:
        raise TooLarge(f"a frame body of {len(body)} bytes is over the bound of {limits.MAX_FRAME_BODY_BYTES}")


def encode_message(kind: int, stream: int, header: bytes, body: bytes) -> list[bytes]:
    """Return the frames of one message: the first of `kind`, the rest DATA (EVENT for an event).

    Raises TooLarge when the message is over `limits.MAX_BODY_BYTES` or the header over its own bound.
    """
    if len(body) > limits.MAX_BODY_BYTES:
        raise TooLarge(
            f"a message of {len(body)} bytes is over the bound of {limits.MAX_BODY_BYTES}",
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
    """Encode `frame` again under another stream number: all that a proxy does to an answer."""
    header, body = frame.header, frame.body
    return (
        HEAD.pack(_AFTER_LENGTH + len(header) + len(body), frame.kind, frame.flags, stream, len(header)) + header + body
    )


class FrameDecoder:
    """Incremental: feed chunks, iterate whole frames. Holds at most one incomplete frame."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def buffered_bytes(self) -> int:
        """Return the size of the incomplete frame that has been received so far."""
        return len(self._rest)

    def receive_data(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes.

        Raises Malformed (unknown kind, impossible lengths, a connection frame on a stream or the reverse) or
        TooLarge; the connection is then beyond repair and must be closed. Exhaust the iterator before the
        next call.
        """
        data = self._rest + data if self._rest else data
        self._rest = b""
        position, end = 0, len(data)
        unpack, new = HEAD.unpack_from, tuple.__new__
        while end - position >= HEAD.size:
            length, kind, flags, stream, header_length = unpack(data, position)
            if length > limits.MAX_FRAME_BYTES - 4:
                raise TooLarge(f"a frame of {length} bytes is over the bound of {limits.MAX_FRAME_BYTES - 4}")
            body_start = position + HEAD.size + header_length
            frame_end = position + 4 + length
            if body_start > frame_end or header_length > limits.MAX_HEADER_BYTES:
                raise Malformed(f"a frame of {length} bytes announces a header of {header_length}")
            if frame_end - body_start > limits.MAX_FRAME_BODY_BYTES:
                raise TooLarge(f"a frame body of {frame_end - body_start} bytes is over the bound")
            if kind not in _KINDS:
                raise Malformed(f"unknown frame kind {kind}", hint="is this a micro socket, and of a like version?")
            if (stream == 0) is not (kind in _CONNECTION_KINDS):
                raise Malformed(f"a {_KINDS[kind].name} frame on stream {stream}")
            if frame_end > end:
                break
            # Frame(...) without its interpreted constructor: this runs once per frame at every hop.
            yield new(Frame, (kind, flags, stream, data[position + HEAD.size : body_start], data[body_start:frame_end]))
            position = frame_end
        self._rest = data[position:]


_CREDIT = struct.Struct(">I")


def encode_credit(stream: int, credit_bytes: int) -> bytes:
    """A CREDIT frame that grants `credit_bytes` more."""
    return encode(Kind.CREDIT, stream, b"", _CREDIT.pack(credit_bytes))


def decode_credit(body: bytes) -> int:
    """The grant of a CREDIT frame; raises Malformed."""
    if len(body) != _CREDIT.size:
        raise Malformed(f"a CREDIT frame of {len(body)} bytes")
    (granted,) = _CREDIT.unpack(body)
    return int(granted)
