"""The frames of a link, and the events that they mean to its owner.

    length u24 | type u8 | session u32 | payload        per lane, big-endian

Pure.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from micro_core.contract.errors import Closed, Malformed, MicroError, Unreachable
from micro_core.contract.tunnel import Priority
from micro_core.wire import limits

HEAD = struct.Struct(">II")
"""Length and type share the first u32: length in the upper 24 bits."""

MAX_PAYLOAD_BYTES = limits.MAX_MULTICAST_BYTES + 512
MAX_CHANNEL_BYTES = 200
MAX_CHANNELS = 1_024
"""Channels a peer may listen on."""

PRIORITIES = tuple(Priority)


class Type(enum.IntEnum):
    """Kinds of mux frames; session 0 but for the first five and BULK."""

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
    PONG = 11
    BULK = 12
    """DATA of a bulk session: acknowledged for the whole link, whatever became of the session."""
    BULK_ACK = 13
    """u32: so many bytes of BULK have arrived."""


TYPES = frozenset(int(kind) for kind in Type)
DATA, BULK = int(Type.DATA), int(Type.BULK)
TYPE_AT = 3
"""Where a frame has its type."""


class Opened(NamedTuple):
    """The peer opened a session: accept it by `accept`, or `reset` it."""

    session: int
    channel: str
    priority: Priority


class Received(NamedTuple):
    """Data of a session; tell `consumed` when it has been taken."""

    session: int
    data: bytes


class Over(NamedTuple):
    """A session ended at the far end."""

    session: int
    error: MicroError


class Resumed(NamedTuple):
    """A session whose owner was asked to pause may write again."""

    session: int


class Message(NamedTuple):
    """A multicast or broadcast message."""

    channel: str
    payload: bytes


class Pinged(NamedTuple):
    token: int


class Ponged(NamedTuple):
    token: int


MuxEvent = Opened | Received | Over | Resumed | Message | Pinged | Ponged


def read_channel(raw: bytes) -> str:
    """The name of a channel; raises Malformed."""
    if not raw or len(raw) > MAX_CHANNEL_BYTES:
        raise Malformed("a channel without a name, or with one too long")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a channel's name is not UTF-8") from error


def closed_here(channel: str) -> Closed:
    """The end of a session that this side closed."""
    return Closed(f"the session on {channel} was closed here")


def nobody_listens(channel: str) -> Unreachable:
    """The refusal of a session on a channel without a listener."""
    return Unreachable(f"nobody listens on channel {channel}")
