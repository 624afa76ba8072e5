"""The messages between the IPC server of a tunnel process and its clients. Pure.

The messages are sent over a transport of the site, usually a Unix socket:

    kind u8 | length u32 | payload                                                              (big-endian)

The server sends NONCE first. The client answers with REQUEST, a msgpack map with a proof that the client holds the token
of the network, and a verb. The server answers with OPEN, or with END and the error:

    dial {channel, peer, priority}   OPEN, then DATA in both directions: the connection is the session
    listen {channel}                 OPEN, then an EVENT {ticket, peer} for each session that a peer opens
    accept {ticket}                  OPEN, then DATA in both directions
    watch {}                         OPEN {node_id, ...}, an EVENT for each link, an EVENT {synced}, then an EVENT for
                                     each change; the client may send EVENT {unlink: peer, error}

Either end may send END, which ends the connection. Its payload is an error in wire form; the client sends it empty.
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
"""Payload of one DATA message. Longer writes are split."""

MAX_MESSAGE_BYTES = 16 * 1024
"""Payload of a message of any other kind."""

NONCE_BYTES = 32
PROOF_CONTEXT = b"micro tunnel ipc\0"
"""Precedes the nonce in the data that is authenticated, so that a proof made for another protocol is not valid here."""

_HEAD = struct.Struct(">BI")


class Kind(enum.IntEnum):
    """The kinds of messages."""

    NONCE = 0
    REQUEST = 1
    OPEN = 2
    DATA = 3
    END = 4
    EVENT = 5


_KINDS = {int(kind): kind for kind in Kind}


class Verb:
    """The verbs of a REQUEST."""

    DIAL = "dial"
    LISTEN = "listen"
    ACCEPT = "accept"
    WATCH = "watch"


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """Encode one message of a kind other than DATA."""
    return _HEAD.pack(kind, len(payload)) + payload


def encode_map(kind: Kind, value: Mapping[str, Any]) -> bytes:
    """Encode one message with a map as payload."""
    packed: bytes = msgpack.packb(dict(value), use_bin_type=True)
    return encode(kind, packed)


def encode_data(data: bytes) -> bytes:
    """Encode bytes of a session as one or more DATA messages."""
    if len(data) <= MAX_DATA_BYTES:
        return _HEAD.pack(Kind.DATA, len(data)) + data
    pieces = []
    for start in range(0, len(data), MAX_DATA_BYTES):
        piece = data[start : start + MAX_DATA_BYTES]
        pieces += [_HEAD.pack(Kind.DATA, len(piece)), piece]
    return b"".join(pieces)


def decode_map(payload: bytes) -> dict[str, Any]:
    """Decode the map of a REQUEST, OPEN, EVENT or END. An empty payload is an empty map.

    Raises:
        Malformed: The payload is not a map with strings as keys.
    """
    if not payload:
        return {}
    try:
        value = msgpack.unpackb(payload, raw=False, strict_map_key=True, max_array_len=64, max_map_len=64)
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"tunnel IPC: invalid msgpack: {error!s:.120}") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Malformed("tunnel IPC: the payload is not a map with strings as keys")
    return value


def string_field(value: Mapping[str, Any], key: str, max_length: int = 253) -> str:
    """Return the string `value[key]`.

    Raises:
        Malformed: The field is missing, not a string, or longer than `max_length` characters.
    """
    found = value.get(key)
    if not isinstance(found, str) or len(found) > max_length:
        raise Malformed(f"tunnel IPC: {key} is not a string of at most {max_length} characters")
    return found


class Reader:
    """Splits a stream of bytes into messages. Buffers at most one incomplete message."""

    def __init__(self) -> None:
        self._buffer = b""

    def receive(self, data: bytes) -> list[tuple[Kind, bytes]]:
        """Return the messages that `data` completes.

        Raises:
            Malformed: The kind is unknown or the length too large. The message is not buffered.
        """
        data = self._buffer + data if self._buffer else data
        found: list[tuple[Kind, bytes]] = []
        position, end = 0, len(data)
        while end - position >= _HEAD.size:
            number, length = _HEAD.unpack_from(data, position)
            kind = _KINDS.get(number)
            if kind is None:
                raise Malformed(
                    f"tunnel IPC: unknown kind {number}", hint="is this the IPC address of a `micro tunnel`?"
                )
            maximum = MAX_DATA_BYTES if kind is Kind.DATA else MAX_MESSAGE_BYTES
            if length > maximum:
                raise Malformed(f"tunnel IPC: {kind.name} of {length} bytes is too long (at most {maximum})")
            if end - position - _HEAD.size < length:
                break
            position += _HEAD.size
            found.append((kind, data[position : position + length]))
            position += length
        self._buffer = data[position:]
        return found


_LINK_FIELDS = {field.name for field in dataclasses.fields(LinkInfo)} - {"up_since"}
_STRING_FIELDS = {"peer", "peer_name", "site", "link_id", "driver", "local", "remote", "dialed_address", "why"}
_INTEGER_FIELDS = {"generation", "bytes_in", "bytes_out", "sessions"}


def link_to_map(link: LinkInfo, now: float) -> dict[str, Any]:
    """Return a link as a map. Times are relative to `now`, because the clocks of two processes differ."""
    return {**{name: getattr(link, name) for name in _LINK_FIELDS}, "up_s": now - link.up_since}


def link_from_map(value: object, now: float) -> LinkInfo:
    """Return the link of a map, with times by the clock of this process. Unknown fields are ignored.

    Raises:
        Malformed: The value is not a map, or a field is missing or has the wrong type.
    """
    if not isinstance(value, dict):
        raise Malformed("tunnel IPC: the link is not a map")
    fields: dict[str, Any] = {}
    for name in _LINK_FIELDS & value.keys():
        found = value[name]
        if not _is_valid(name, found):
            raise Malformed(f"tunnel IPC: {name} of a link has the wrong type {type(found).__name__}")
        fields[name] = found
    up_s = value.get("up_s")
    if type(up_s) not in (int, float):
        raise Malformed("tunnel IPC: up_s of a link is not a number")
    try:
        return LinkInfo(**fields, up_since=now - float(up_s or 0.0))
    except TypeError as error:
        raise Malformed(f"tunnel IPC: {error!s:.120}") from error


def _is_valid(name: str, value: object) -> bool:
    if name in _STRING_FIELDS:
        return isinstance(value, str) and len(value) <= 1_024
    if name in _INTEGER_FIELDS:
        return type(value) is int
    if name in ("dialed", "is_suspect", "is_closing"):
        return type(value) is bool
    if name == "queue_delay_s":
        return type(value) in (int, float)
    if name in ("rtt_s", "rtt_variance_s", "path_rtt_s", "loss"):
        return value is None or type(value) in (int, float)
    return isinstance(value, (str, int, float, bool, type(None)))
