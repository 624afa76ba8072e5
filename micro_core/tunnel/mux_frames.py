"""The frames of a link, and the events that the mux reports to the owner of the link. Pure.

length u24 | type u8 | session u32 | payload        per lane, big-endian
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from micro_core.contract.errors import Malformed, MicroError, Unreachable
from micro_core.contract.tunnel import Priority
from micro_core.wire import limits

PING = struct.Struct(">QI")
"""The payload of PING and PONG."""

MAX_PING_US = 0xFFFF_FFFF

HEAD = struct.Struct(">II")
"""The frame header. The first u32 holds the length in its upper 24 bits and the type in its lower 8."""

MAX_PAYLOAD_BYTES = limits.MAX_MULTICAST_BYTES + 512
MAX_CHANNEL_BYTES = 200
MAX_CHANNELS = 1_024
"""Maximum number of channels on which a peer may listen."""

PRIORITIES = tuple(Priority)


class Type(enum.IntEnum):
    """The frame types. Only OPEN, DATA, WINDOW, CLOSE, RESET and BULK belong to a session; the others use number 0."""

    OPEN = 1
    DATA = 2
    WINDOW = 3
    CLOSE = 4
    RESET = 5
    MULTICAST = 6
    BROADCAST = 7
    LISTEN = 8
    UNLISTEN = 9
    PING = 10
    """token u64 | u32: the round trip in µs that the sender measured since its last ping, or 0."""
    PONG = 11
    """token u64 | u32: the time in µs by which the event loop of the sender may have delayed this answer."""
    BULK = 12
    """DATA of a bulk session. It is acknowledged for the whole link, even if the session has ended meanwhile."""
    BULK_ACK = 13
    """u32: this many bytes of BULK have arrived."""


TYPES = frozenset(int(kind) for kind in Type)
DATA, BULK = int(Type.DATA), int(Type.BULK)
TYPE_OFFSET = 3
"""Offset of the type in a frame."""


class SessionOpened(NamedTuple):
    """The peer opened a session. The owner uses it, or refuses it with `Mux.refuse`."""

    session: int
    channel: str
    priority: Priority


class DataReceived(NamedTuple):
    """Data of a session. The owner calls `Mux.consumed` once it has processed the data."""

    session: int
    data: bytes


class SessionClosed(NamedTuple):
    """The peer ended a session."""

    session: int
    error: MicroError


class SendQueueDrained(NamedTuple):
    """A session whose owner was asked to pause writing may write again."""

    session: int


class MessageReceived(NamedTuple):
    """A multicast or broadcast message of the peer."""

    channel: str
    payload: bytes


class PingReceived(NamedTuple):
    """A ping of the peer, to be answered with `Mux.pong`."""

    token: int
    measured_us: int
    """The round trip that the peer measured since its last ping, in microseconds. 0 for none."""


class PongReceived(NamedTuple):
    """The answer to a ping."""

    token: int
    lag_us: int
    """The time by which the event loop of the peer may have delayed the answer, in microseconds."""


MuxEvent = (
    SessionOpened | DataReceived | SessionClosed | SendQueueDrained | MessageReceived | PingReceived | PongReceived
)


def read_channel(raw: bytes) -> str:
    """Return the channel name in `raw`. Raises Malformed when it is empty, too long or not UTF-8."""
    if not raw or len(raw) > MAX_CHANNEL_BYTES:
        raise Malformed(f"a channel name must have 1 to {MAX_CHANNEL_BYTES} bytes, not {len(raw)}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a channel name is not valid UTF-8") from error


def no_listener(channel: str) -> Unreachable:
    """Return the error that refuses a session on a channel without a listener."""
    return Unreachable(f"no listener on channel {channel}")
