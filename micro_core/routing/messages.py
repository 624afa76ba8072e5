"""Encode and decode routing messages: msgpack arrays whose sizes and values are checked. Pure."""

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
    SeqnoRequest,
    Solicit,
    Withdraw,
)
from micro_core.wire import limits

_ADVERT, _ACK, _SOLICIT, _DIGEST, _SEQNO_REQUEST = 1, 2, 3, 5, 6
_BEGINS, _ENDS = 1, 2
MAX_VERSIONS = 16
"""Maximum number of versions of a service in an announcement."""
MAX_TEXT_LENGTH = 253
"""Maximum number of characters of a site, a network or a version."""
MAX_INTEGER = 2**63 - 1


def encode(message: RoutingMessage) -> bytes:
    """Encode a message for a neighbour."""
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
        case SeqnoRequest():
            seqno = [message.incarnation, message.sequence]
            return _pack([_SEQNO_REQUEST, message.origin, message.service, *seqno, message.hops_left])


def decode(payload: bytes) -> RoutingMessage:
    """Decode a message of a neighbour.

    Raises TooLarge if the payload exceeds `limits.MAX_ADVERT_BYTES`, and Malformed if it is not a valid message.
    """
    if len(payload) > limits.MAX_ADVERT_BYTES:
        raise TooLarge(f"routing message of {len(payload)} bytes exceeds the limit of {limits.MAX_ADVERT_BYTES} bytes")
    try:
        value = msgpack.unpackb(
            payload, raw=False, strict_map_key=True, max_array_len=limits.MAX_EVENTS_PER_ADVERT, max_map_len=0
        )
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"cannot decode routing message: {error!s:.120}") from error
    try:
        match value:
            case [1, int() as number, int() as flags, list() as entries]:
                return Advert(
                    number=_checked_number(number),
                    entries=tuple(_entry(fields) for fields in entries),
                    begins=bool(flags & _BEGINS),
                    ends=bool(flags & _ENDS),
                )
            case [2, int() as number]:
                return Ack(_checked_number(number))
            case [3]:
                return Solicit()
            case [5, int() as number, int() as count, int() as checksum] if 0 <= checksum < 2**64:
                return Digest(_checked_number(number), _checked_number(count), checksum)
            case [6, str() as origin, str() as service, int() as incarnation, int() as sequence, int() as hops_left]:
                return SeqnoRequest(
                    origin=check_node_id(origin),
                    service=_checked_service(service),
                    incarnation=_checked_number(incarnation),
                    sequence=_checked_number(sequence),
                    hops_left=min(_checked_number(hops_left), limits.MAX_HOPS),
                )
    except BadRequest as error:
        raise Malformed(f"invalid routing message: {error.detail}") from error
    raise Malformed("invalid routing message: unknown kind")


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
                incarnation=_checked_number(incarnation),
                sequence=_checked_number(sequence),
                service=_checked_service(service),
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
                incarnation=_checked_number(incarnation),
                sequence=_checked_number(sequence),
                service=_checked_service(service),
                versions=tuple(_checked_text(version) for version in versions),
                capacity=capacity,
                site=_checked_text(site),
                network=_checked_text(network),
                metric_us=min(_checked_number(metric_us), UNREACHABLE_US),
                path=tuple(check_node_id(router) for router in path),
                load_us=min(_checked_number(load_us), UNREACHABLE_US),
            )
    raise Malformed("invalid routing message: an entry is neither an announcement nor a withdrawal")


def _checked_service(name: str) -> str:
    if name != ANY_SERVICE:
        check_service_name(name.removeprefix(INTEREST_PREFIX))
    return sys.intern(name)


def _checked_text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_LENGTH:
        raise Malformed(f"invalid routing message: a text is missing or longer than {MAX_TEXT_LENGTH} characters")
    # Thousands of routes contain the same few texts. Interning keeps one object for each of them.
    return sys.intern(value)


def _checked_number(value: int) -> int:
    if isinstance(value, bool) or not 0 <= value <= MAX_INTEGER:
        raise Malformed("invalid routing message: a number is out of range")
    return value


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
