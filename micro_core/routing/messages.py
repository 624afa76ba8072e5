"""Routing messages as bytes: msgpack arrays, bounded and checked. Pure."""

from __future__ import annotations

import sys
from typing import Any

import msgpack

from micro_core.contract.errors import BadRequest, Malformed, TooLarge
from micro_core.contract.names import INTEREST_PREFIX, check_node_id, check_service_name
from micro_core.contract.table import ANY_SERVICE
from micro_core.routing.events import (
    UNREACHABLE_US,
    Ack,
    Advert,
    Announce,
    Digest,
    RoutingMessage,
    SequenceRequest,
    Solicit,
    Withdraw,
)
from micro_core.wire import limits

_ADVERT, _ACK, _SOLICIT, _DIGEST, _SEQUENCE_REQUEST = 1, 2, 3, 5, 6
_BEGINS, _ENDS = 1, 2
MAX_VERSIONS = 16
MAX_INTEGER = 2**63 - 1


def encode(message: RoutingMessage) -> bytes:
    """`message` as bytes."""
    match message:
        case Advert(number=number, entries=entries, begins=begins, ends=ends):
            flags = _BEGINS * begins | _ENDS * ends
            return _pack([_ADVERT, number, flags, [_entry_fields(entry) for entry in entries]])
        case Ack(number):
            return _pack([_ACK, number])
        case Solicit():
            return _pack([_SOLICIT])
        case Digest(number, count, checksum):
            return _pack([_DIGEST, number, count, checksum])
        case SequenceRequest():
            at = [message.incarnation, message.sequence]
            return _pack([_SEQUENCE_REQUEST, message.origin, message.service, *at, message.hops_left])


def decode(payload: bytes) -> RoutingMessage:
    """Read a message; raises Malformed, or TooLarge for more than a neighbour may send at once."""
    if len(payload) > limits.MAX_ADVERT_BYTES:
        raise TooLarge(f"a routing message of {len(payload)} bytes")
    try:
        value = msgpack.unpackb(
            payload, raw=False, strict_map_key=True, max_array_len=limits.MAX_EVENTS_PER_ADVERT, max_map_len=0
        )
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"routing message: {error!s:.120}") from error
    try:
        match value:
            case [1, int() as number, int() as flags, list() as entries]:
                return Advert(
                    number=_count(number),
                    entries=tuple(_entry(fields) for fields in entries),
                    begins=bool(flags & _BEGINS),
                    ends=bool(flags & _ENDS),
                )
            case [2, int() as number]:
                return Ack(_count(number))
            case [3]:
                return Solicit()
            case [5, int() as number, int() as count, int() as checksum] if 0 <= checksum < 2**64:
                return Digest(_count(number), _count(count), checksum)
            case [6, str() as origin, str() as service, int() as incarnation, int() as sequence, int() as hops_left]:
                return SequenceRequest(
                    origin=check_node_id(origin),
                    service=_service(service),
                    incarnation=_count(incarnation),
                    sequence=_count(sequence),
                    hops_left=min(_count(hops_left), limits.MAX_HOPS),
                )
    except BadRequest as error:
        raise Malformed(f"routing message: {error.detail}") from error
    raise Malformed("routing message: of an unknown kind")


def _entry_fields(entry: Announce | Withdraw) -> list[Any]:
    head = [entry.origin, entry.incarnation, entry.sequence, entry.service]
    if isinstance(entry, Withdraw):
        return [*head, entry.is_final]
    tail = [list(entry.versions), entry.capacity, entry.site, entry.network, entry.metric_us, list(entry.path)]
    return [*head, *tail, entry.load_us]


def _entry(fields: object) -> Announce | Withdraw:
    match fields:
        case [str() as origin, int() as incarnation, int() as sequence, str() as service, bool() as is_final]:
            return Withdraw(
                origin=check_node_id(origin),
                incarnation=_count(incarnation),
                sequence=_count(sequence),
                service=_service(service),
                is_final=is_final,
            )
        case [
            str() as origin,
            int() as incarnation,
            int() as sequence,
            str() as service,
            list() as versions,
            int() as capacity,
            str() as site,
            str() as network,
            int() as metric_us,
            list() as path,
            int() as load_us,
            *_,
        ] if len(versions) <= MAX_VERSIONS and 0 < len(path) <= limits.MAX_HOPS and 0 <= capacity <= 64:
            return Announce(
                origin=check_node_id(origin),
                incarnation=_count(incarnation),
                sequence=_count(sequence),
                service=_service(service),
                versions=tuple(_text(version) for version in versions),
                capacity=capacity,
                site=_text(site),
                network=_text(network),
                metric_us=min(_count(metric_us), UNREACHABLE_US),
                path=tuple(check_node_id(router) for router in path),
                load_us=min(_count(load_us), UNREACHABLE_US),
            )
    raise Malformed("routing message: an entry is neither an announcement nor a withdrawal")


def _service(name: str) -> str:
    if name != ANY_SERVICE:
        check_service_name(name.removeprefix(INTEREST_PREFIX))
    return sys.intern(name)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 253:
        raise Malformed("routing message: not a text of at most 253 characters")
    # Thousands of routes name the same few texts: one object for all of them, which goes with the last.
    return sys.intern(value)


def _count(value: int) -> int:
    if isinstance(value, bool) or not 0 <= value <= MAX_INTEGER:
        raise Malformed("routing message: a number out of range")
    return value


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
