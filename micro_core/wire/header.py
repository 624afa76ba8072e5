"""Encodes and decodes the headers of frames: short msgpack arrays, which every hop reads.

Later versions append fields. Readers ignore unknown fields, and use defaults for missing ones. Pure. All received values are
validated.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from micro_core.contract.errors import Malformed, TooLarge
from micro_core.wire import limits

WIRE_VERSIONS = (1,)
"""Supported versions of frames and headers, newest first. Two neighbours use the highest version that both support."""

CACHED_HEADER_BYTES = 512
"""Maximum size of a header whose decoded form is cached."""

CACHED_HEADERS = 2_048
"""Number of cached headers. Calls to one endpoint often have equal headers, which differ only in the remaining time. A peer that
sends only different headers causes the same cost as without the cache."""

_NO_METADATA: Mapping[str, str] = types.MappingProxyType({})

_pack = msgpack.Packer(use_bin_type=True).pack
"""Shared, because creating a packer takes longer than packing a header."""


class CallMode:
    """How a call exchanges messages, as an integer on the wire."""

    UNARY = 0
    SERVER_STREAM = 1
    CLIENT_STREAM = 2
    BIDIRECTIONAL = 3


class CallHeader(NamedTuple):
    """Header of a REQUEST."""

    service: str
    endpoint: str
    mode: int = CallMode.UNARY
    timeout_ms: int = int(limits.DEFAULT_TIMEOUT_S * 1000)
    """Remaining time until the deadline when the frame was sent, in milliseconds."""
    content_type: str = "application/msgpack"
    metadata: Mapping[str, str] = _NO_METADATA
    hops_left: int = limits.MAX_HOPS
    """Number of nodes that the request may still pass."""
    via: tuple[str, ...] = ()
    """Ids of the routers that forwarded the request."""
    bulk: bool = False
    """Whether tunnels send the call on the lane for large transfers."""
    idempotent: bool = False
    """Whether a hop may send the request again to another instance after a failure."""


class ResponseHeader(NamedTuple):
    """Header of a RESPONSE, and of the END of a server stream."""

    content_type: str = "application/msgpack"
    metadata: Mapping[str, str] = _NO_METADATA


class EventHeader(NamedTuple):
    """Header of an EVENT: a message of a topic."""

    topic: str
    id: str
    """32 hexadecimal digits, the same in every copy of the message."""
    content_type: str = "application/msgpack"
    headers: Mapping[str, str] = _NO_METADATA
    targets: tuple[str, ...] = ()
    """Origins (router ids) that this copy still has to reach; empty on the sockets of a site."""
    hops_left: int = limits.MAX_HOPS
    """Number of nodes that this copy may still pass."""
    origin: str = ""
    """Router id of the site on which the message was published; empty on the sockets of a site."""
    age_ms: int = 0
    """Milliseconds between the publication of a message and the sending of this copy, if another node may have sent the message
    before; 0 for all other copies."""


def encode_header(header: CallHeader | ResponseHeader | EventHeader) -> bytes:
    """Return the header as bytes.

    Raises:
        TooLarge: The header exceeds `limits.MAX_HEADER_BYTES`.
    """
    encoded: bytes = _pack([_plain(field) for field in header])
    if len(encoded) > limits.MAX_HEADER_BYTES:
        raise TooLarge(
            f"a header of {len(encoded)} bytes exceeds the limit of {limits.MAX_HEADER_BYTES}",
            hint="send less metadata",
        )
    return encoded


@functools.lru_cache(CACHED_HEADERS)
def plain_response_header(content_type: str) -> bytes:
    """Return the encoded header of a response without metadata. It is cached, because most responses have the same one."""
    return encode_header(ResponseHeader(content_type))


def decode_call_header(data: bytes) -> CallHeader:
    """Return the header of a REQUEST. Equal headers share one object, so its metadata is read-only.

    Raises:
        Malformed: A field is invalid; the detail contains its name.
    """
    return _decode_known(data) if len(data) <= CACHED_HEADER_BYTES else _decode(data)


def _decode(data: bytes) -> CallHeader:
    fields = _array(data, 2, "call header")
    count = len(fields)
    timeout_ms = _integer(fields[3], 0, int(limits.MAX_TIMEOUT_S * 1000), "timeout") if count > 3 else 5000
    return CallHeader(
        _text(fields[0], "service", 253),
        _text(fields[1], "endpoint", 253),
        _integer(fields[2], 0, 3, "mode") if count > 2 else CallMode.UNARY,
        timeout_ms,
        _text(fields[4], "content type", 100) if count > 4 else "application/msgpack",
        _metadata(fields[5]) if count > 5 else _NO_METADATA,
        _integer(fields[6], 0, limits.MAX_HOPS, "hops left") if count > 6 else limits.MAX_HOPS,
        _texts(fields[7], "via", limits.MAX_HOPS) if count > 7 else (),
        fields[8] is True if count > 8 else False,
        fields[9] is True if count > 9 else False,
    )


_decode_known = functools.lru_cache(CACHED_HEADERS)(_decode)


def decode_response_header(data: bytes) -> ResponseHeader:
    """Return the header of a RESPONSE; empty data means defaults. Equal headers share one object, so its metadata is read-only.

    Raises:
        Malformed: A field is invalid; the detail contains its name.
    """
    if not data:
        return _PLAIN_RESPONSE
    return _decode_known_response(data) if len(data) <= CACHED_HEADER_BYTES else _decode_response(data)


def _decode_response(data: bytes) -> ResponseHeader:
    fields = _array(data, 1, "response header")
    return ResponseHeader(
        _text(fields[0], "content type", 100),
        _metadata(fields[1]) if len(fields) > 1 else _NO_METADATA,
    )


_decode_known_response = functools.lru_cache(CACHED_HEADERS)(_decode_response)


def decode_event_header(data: bytes) -> EventHeader:
    """Return the header of an EVENT.

    Raises:
        Malformed: A field is invalid; the detail contains its name.
    """
    fields = _array(data, 2, "event header")
    count = len(fields)
    return EventHeader(
        _text(fields[0], "topic", 253),
        _text(fields[1], "id", 64),
        _text(fields[2], "content type", 100) if count > 2 else "application/msgpack",
        _metadata(fields[3]) if count > 3 else _NO_METADATA,
        _texts(fields[4], "targets", limits.MAX_PEERS_PER_MESSAGE) if count > 4 else (),
        _integer(fields[5], 0, limits.MAX_HOPS, "hops left") if count > 5 else limits.MAX_HOPS,
        _text(fields[6], "origin", 64) if count > 6 else "",
        _integer(fields[7], 0, limits.MAX_EVENT_AGE_MS, "age") if count > 7 else 0,
    )


_PLAIN_RESPONSE = ResponseHeader()


def encode_hello(node_id: str = "") -> bytes:
    """Return the header of a HELLO: the supported versions, and the id of this node (empty for a client)."""
    encoded: bytes = msgpack.packb((WIRE_VERSIONS, node_id), use_bin_type=True)
    return encoded


def decode_hello(data: bytes) -> tuple[int, str]:
    """Return the highest version that both sides support, and the id of the peer.

    Raises:
        Malformed: The header is invalid, or there is no common version.
    """
    fields = _array(data, 1, "hello")
    versions = fields[0]
    if not isinstance(versions, list) or not all(isinstance(version, int) for version in versions[:16]):
        raise Malformed("hello: the versions are not a list of integers")
    common = [version for version in WIRE_VERSIONS if version in versions[:16]]
    if not common:
        raise Malformed(
            f"no common wire version: this side supports {WIRE_VERSIONS}, the peer {tuple(versions[:16])}",
            hint="upgrade the older side",
        )
    return common[0], _text(fields[1], "id", 64) if len(fields) > 1 else ""


def encode_map(value: Mapping[str, str | int]) -> bytes:
    """Return a map as the header of an ERROR frame (`MicroError.to_wire`)."""
    encoded: bytes = msgpack.packb(dict(value), use_bin_type=True)
    return encoded


def decode_map(data: bytes) -> object:
    """Return the value that `encode_map` encoded. Only the limits of msgpack are checked.

    Raises:
        Malformed: The data is not valid msgpack.
    """
    return _unpack(data, "map")


def _unpack(data: bytes, what: str) -> Any:
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=True, max_array_len=2_048, max_map_len=256, max_ext_len=0
        )
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"{what}: {error!s:.120}") from error


def _array(data: bytes, minimum: int, what: str) -> list[Any]:
    value = _unpack(data, what)
    if not isinstance(value, list) or len(value) < minimum:
        raise Malformed(f"{what}: not an array of at least {minimum} fields")
    return value


def _text(value: object, what: str, maximum: int) -> str:
    if type(value) is not str or len(value) > maximum:
        raise Malformed(f"{what}: not a string of at most {maximum} characters")
    return value


def _integer(value: object, minimum: int, maximum: int, what: str) -> int:
    if type(value) is not int or not minimum <= value <= maximum:
        raise Malformed(f"{what}: not an integer from {minimum} to {maximum}")
    return value


def _texts(value: object, what: str, maximum: int) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > maximum:
        raise Malformed(f"{what}: not a list of at most {maximum}")
    return tuple([_text(item, what, 253) for item in value])


def _metadata(value: object) -> Mapping[str, str]:
    if not value and isinstance(value, dict):
        return _NO_METADATA
    if not isinstance(value, dict) or len(value) > limits.MAX_METADATA_ENTRIES:
        raise Malformed(f"metadata: not a map of at most {limits.MAX_METADATA_ENTRIES} entries")
    for key, entry in value.items():
        if type(key) is not str or type(entry) is not str:
            raise Malformed("metadata: a key or value is not a string")
    return types.MappingProxyType(value)


def _plain(field: object) -> object:
    """Return a field in a form that msgpack can encode: metadata can be a read-only view."""
    return dict(field) if isinstance(field, Mapping) else field
