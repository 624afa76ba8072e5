"""What a tunnel's door and its visitors say to each other, over the site's own transport. Pure.

    kind u8 | length u32 | payload                                                              (big-endian)

The door speaks first: NONCE. The visitor answers with REQUEST, a msgpack map: a proof that it holds the network's token,
and a verb. The door says OPEN, or END with the error:

    dial {channel, peer, priority}   OPEN, then DATA both ways: the socket is the session
    listen {channel}                 OPEN, then an EVENT {ticket, peer} for each session that a peer opens
    take {ticket}                    OPEN, then DATA both ways
    watch {}                         OPEN {node facts}, an EVENT for each link, one {synced}, then one for each change;
                                     the visitor may send EVENT {unlink: peer}

END ends either way: with an error's wire form, or empty where the visitor closes.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Mapping
from typing import Any

import msgpack

from micro_core.contract.errors import Malformed
from micro_core.contract.tunnel import LinkInfo

MAX_DATA_BYTES = 64 * 1024
"""One piece of a session; longer writes go in several."""

MAX_MESSAGE_BYTES = 16 * 1024
"""Anything else."""

NONCE_BYTES = 32
CONTEXT = b"micro tunnel door\0"
"""Before the nonce in what is proved, so that no other proof of the token can be used here."""

_HEAD = struct.Struct(">BI")


class Kind(enum.IntEnum):
    NONCE = 0
    REQUEST = 1
    OPEN = 2
    DATA = 3
    END = 4
    EVENT = 5


_KINDS = {int(kind): kind for kind in Kind}


class Verb:
    DIAL = "dial"
    LISTEN = "listen"
    TAKE = "take"
    WATCH = "watch"


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One message of a kind other than DATA."""
    return _HEAD.pack(kind, len(payload)) + payload


def encode_map(kind: Kind, value: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(dict(value), use_bin_type=True)
    return encode(kind, packed)


def encode_data(data: bytes) -> bytes:
    """Bytes of a session, in as many pieces as they need."""
    if len(data) <= MAX_DATA_BYTES:
        return _HEAD.pack(Kind.DATA, len(data)) + data
    pieces = []
    for start in range(0, len(data), MAX_DATA_BYTES):
        piece = data[start : start + MAX_DATA_BYTES]
        pieces += [_HEAD.pack(Kind.DATA, len(piece)), piece]
    return b"".join(pieces)


def decode_map(payload: bytes) -> dict[str, Any]:
    """The map of a REQUEST, OPEN, EVENT or END; empty for an empty payload. Raises Malformed."""
    if not payload:
        return {}
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=True, max_array_len=64, max_map_len=64)
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"tunnel door: {error!s:.120}") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Malformed("tunnel door: not a map")
    return value


def text_of(value: Mapping[str, Any], key: str, most: int = 253) -> str:
    """A text field; raises Malformed."""
    found = value.get(key)
    if not isinstance(found, str) or len(found) > most:
        raise Malformed(f"tunnel door: {key} is not a text of at most {most} characters")
    return found


class Reader:
    """Bytes in, messages out; holds at most one incomplete message."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> list[tuple[Kind, bytes]]:
        """The messages that `data` completes. Raises Malformed before anything too long is buffered."""
        data = self._rest + data if self._rest else data
        found: list[tuple[Kind, bytes]] = []
        position, end = 0, len(data)
        while end - position >= _HEAD.size:
            number, length = _HEAD.unpack_from(data, position)
            kind = _KINDS.get(number)
            if kind is None:
                raise Malformed(f"tunnel door: unknown kind {number}", hint="is this the door of a tunnel?")
            if length > (MAX_DATA_BYTES if kind is Kind.DATA else MAX_MESSAGE_BYTES):
                raise Malformed(f"tunnel door: a {kind.name} of {length} bytes")
            if end - position - _HEAD.size < length:
                break
            position += _HEAD.size
            found.append((kind, data[position : position + length]))
            position += length
        self._rest = data[position:]
        return found


_FIELDS = {field.name for field in dataclasses.fields(LinkInfo)} - {"up_since"}
_TEXTS = {"peer", "peer_name", "site", "link_id", "driver", "local", "remote", "dialed_address", "why"}
_COUNTS = {"generation", "bytes_in", "bytes_out", "sessions"}


def link_to_map(link: LinkInfo, now: float) -> dict[str, Any]:
    """A link for a visitor; times are relative, since clocks of processes are not the same."""
    return {**{name: getattr(link, name) for name in _FIELDS}, "up_s": now - link.up_since}


def link_from_map(value: object, now: float) -> LinkInfo:
    """The inverse, by the visitor's clock; fields of a later version are ignored. Raises Malformed."""
    if not isinstance(value, dict):
        raise Malformed("tunnel door: a link is a map")
    fields: dict[str, Any] = {}
    for name in _FIELDS & value.keys():
        found = value[name]
        if name in _TEXTS:
            fits = isinstance(found, str) and len(found) <= 1_024
        elif name in _COUNTS:
            fits = type(found) is int
        elif name == "dialed":
            fits = type(found) is bool
        elif name == "queue_delay_s":
            fits = type(found) in (int, float)
        elif name in ("rtt_s", "rtt_variance_s", "loss"):
            fits = found is None or type(found) in (int, float)
        else:
            fits = isinstance(found, (str, int, float, bool, type(None)))
        if not fits:
            raise Malformed(f"tunnel door: a link's {name} is a {type(found).__name__}")
        fields[name] = found
    up_s = value.get("up_s")
    if type(up_s) not in (int, float):
        raise Malformed("tunnel door: a link without the time it has been up")
    try:
        return LinkInfo(**fields, up_since=now - float(up_s or 0.0))
    except TypeError as error:
        raise Malformed(f"tunnel door: {error!s:.120}") from error
