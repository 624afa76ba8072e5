"""Encode and decode routing messages: msgpack arrays whose sizes and values are checked. Pure.

The entries of an advert are byte strings inside the array, so that an entry is encoded once for all neighbours.
"""

from __future__ import annotations

import sys
from typing import Any

import msgpack

from micro_core.contract.errors import BadRequest, Malformed, TooLarge
from micro_core.contract.names import INTEREST_PREFIX, check_node_id, check_service_name
from micro_core.contract.table import ANY_SERVICE, Offer
from micro_core.routing.entries import (
    ANNOUNCE,
    OFFERS,
    WITHDRAW,
    Entry,
    OfferChanges,
    OfferEntry,
    OriginAnnounce,
    OriginWithdraw,
    RemovedOffer,
    pack,
)
from micro_core.routing.events import (
    UNREACHABLE_US,
    Ack,
    Advert,
    Digest,
    RoutingMessage,
    SeqnoRequest,
    SeqnoRequests,
    Solicit,
)
from micro_core.wire import limits

_ADVERT, _ACK, _SOLICIT, _DIGEST, _SEQNO_REQUESTS = 11, 12, 13, 15, 16
"""The kinds 1 to 6 were those of routes per service."""
_BEGINS, _ENDS = 1, 2
MAX_VERSIONS = 16
"""Maximum number of versions of a service in an offer."""
MAX_TEXT_LENGTH = 253
"""Maximum number of characters of a site, a network or a version."""
MAX_INTEGER = 2**62
"""Maximum of an incarnation, a sequence number, and the version of a list."""
MAX_NUMBER = 2**63 - 1
"""Maximum of all other numbers."""

_ids: dict[str, str] = {}
_MAX_CACHED_IDS = 65_536
"""Each id is in thousands of messages. One checked object of each is kept."""

_paths: dict[tuple[str, ...], tuple[str, ...]] = {}
_MAX_CACHED_PATHS = 65_536
"""Several neighbours send the same few paths again and again. One checked object of each is kept."""

_versions: dict[tuple[str, ...], tuple[str, ...]] = {}
_MAX_CACHED_VERSIONS = 4_096
"""Most services have one of a few versions. One object of each is kept."""

_OFFERS_BYTE = bytes([OFFERS])
"""The second byte of an encoded `OfferChanges`, after that of the array."""
_lists: dict[bytes, OfferChanges] = {}
_MAX_CACHED_LISTS = 4_096
_MAX_CACHED_LIST_BYTES = 512
"""Each neighbour sends the same short lists of offers. They are decoded once."""


def encode(message: RoutingMessage) -> bytes:
    """Encode a message for a neighbour."""
    match message:
        case Advert(number=number, acknowledged=acknowledged, entries=entries, begins=begins, ends=ends):
            flags = _BEGINS * begins | _ENDS * ends
            return pack([_ADVERT, number, acknowledged, flags, [entry.packed() for entry in entries]])
        case Ack(number):
            return pack([_ACK, number])
        case Solicit():
            return pack([_SOLICIT])
        case Digest(number, count, checksum, acknowledged):
            return pack([_DIGEST, number, count, checksum, acknowledged])
        case SeqnoRequests(requests):
            return pack([_SEQNO_REQUESTS, requests])


def decode(payload: bytes) -> RoutingMessage:
    """Decode a message of a neighbour.

    Raises TooLarge if the payload exceeds `limits.MAX_ADVERT_BYTES`, and Malformed if it is not a valid message.
    """
    if len(payload) > limits.MAX_ADVERT_BYTES:
        raise TooLarge(f"routing message of {len(payload)} bytes exceeds the limit of {limits.MAX_ADVERT_BYTES} bytes")
    value = _unpack(payload)
    try:
        match value:
            case [11, int() as number, int() as acknowledged, int() as flags, list() as entries]:
                return Advert(
                    number=_checked_number(number),
                    acknowledged=_checked_number(acknowledged),
                    entries=tuple([_entry(packed) for packed in entries]),
                    begins=bool(flags & _BEGINS),
                    ends=bool(flags & _ENDS),
                )
            case [12, int() as number]:
                return Ack(_checked_number(number))
            case [13]:
                return Solicit()
            case [15, int() as number, int() as count, int() as checksum, int() as acknowledged] if (
                0 <= checksum < 2**64
            ):
                acknowledged = _checked_number(acknowledged)
                return Digest(_checked_number(number), _checked_number(count), checksum, acknowledged)
            case [16, list() as requests]:
                return SeqnoRequests(tuple([_seqno_request(fields) for fields in requests]))
    except BadRequest as error:
        raise Malformed(f"invalid routing message: {error.detail}") from error
    raise Malformed("invalid routing message: unknown kind")


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=True, max_array_len=limits.MAX_EVENTS_PER_ADVERT, max_map_len=0
        )
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"cannot decode routing message: {error!s:.120}") from error


def _entry(packed: object) -> Entry:
    if type(packed) is not bytes:
        raise Malformed("invalid routing message: an entry is not a byte string")
    if packed[1:2] == _OFFERS_BYTE:
        cached = _lists.get(packed)
        if cached is not None:
            return cached
    fields = _unpack(packed)
    if type(fields) is list and fields:
        if fields[0] == ANNOUNCE and len(fields) >= 9:
            return _announcement(fields, packed)
        if fields[0] == OFFERS and len(fields) >= 8:
            changes = _offer_changes(fields)
            if len(packed) <= _MAX_CACHED_LIST_BYTES:
                if len(_lists) >= _MAX_CACHED_LISTS:
                    _lists.clear()
                _lists[packed] = changes
            return changes
        if fields[0] == WITHDRAW and len(fields) >= 5 and type(fields[4]) is bool:
            version = _checked_version(fields[5]) if len(fields) > 5 else 0
            incarnation, sequence = _checked_version(fields[2]), _checked_version(fields[3])
            return OriginWithdraw(_id(fields[1]), incarnation, sequence, fields[4], version)
    raise Malformed("invalid routing message: unknown kind of entry")


def _announcement(fields: list[Any], packed: bytes) -> OriginAnnounce:
    _, origin, incarnation, sequence, site, network, metric_us, path, is_partial, *_ = fields
    if type(path) is not list or not 0 < len(path) <= limits.MAX_HOPS or type(is_partial) is not bool:
        raise Malformed("invalid routing message: invalid path or flag of an announcement")
    if type(metric_us) is not int or not 0 <= metric_us <= UNREACHABLE_US:
        metric_us = min(_checked_number(metric_us), UNREACHABLE_US)
    # Later versions of micro may send more fields. The hash includes them.
    return OriginAnnounce(
        origin=_id(origin),
        seqno=(_checked_version(incarnation), _checked_version(sequence)),
        site=_checked_text(site),
        network=_checked_text(network),
        metric_us=metric_us,
        path=_checked_path(path),
        is_partial=is_partial,
        packed=packed,
    )


def _offer_changes(fields: list[Any]) -> OfferChanges:
    _, origin, incarnation, base, version, changed, removed, is_end, *_ = fields
    if type(changed) is not list or type(removed) is not list or type(is_end) is not bool:
        raise Malformed("invalid routing message: invalid change of offers")
    changes = OfferChanges(
        _id(origin),
        _checked_version(incarnation),
        _checked_version(base),
        _checked_version(version),
        tuple([_offer(offer) for offer in changed]),
        tuple([_removed_offer(one) for one in removed]),
        is_end,
    )
    if changes.base > changes.version:
        raise Malformed("invalid routing message: a change of offers ends before it begins")
    return changes


def _offer(fields: object) -> OfferEntry:
    match fields:
        case [str() as service, list() as versions, int() as capacity, int() as load_us, int() as version, *_] if (
            len(versions) <= MAX_VERSIONS
        ):
            offer = Offer(
                _checked_service(service),
                _checked_versions(versions),
                min(_checked_number(capacity), UNREACHABLE_US),
                min(_checked_number(load_us), UNREACHABLE_US),
            )
            return OfferEntry(offer, _checked_version(version))
    raise Malformed("invalid routing message: invalid offer")


def _checked_versions(values: list[Any]) -> tuple[str, ...]:
    found = tuple([_checked_text(one) for one in values])
    if len(_versions) >= _MAX_CACHED_VERSIONS:
        _versions.clear()
    return _versions.setdefault(found, found)


def _removed_offer(fields: object) -> RemovedOffer:
    match fields:
        case [str() as service, int() as version, *_]:
            return RemovedOffer(_checked_service(service), _checked_version(version))
    raise Malformed("invalid routing message: invalid removal of an offer")


def _seqno_request(fields: object) -> SeqnoRequest:
    match fields:
        case [str() as origin, int() as incarnation, int() as sequence, int() as hops_left, *_]:
            hops_left = min(_checked_number(hops_left), limits.MAX_HOPS)
            return SeqnoRequest(_id(origin), _checked_version(incarnation), _checked_version(sequence), hops_left)
    raise Malformed("invalid routing message: invalid request of a sequence number")


def _checked_path(path: list[Any]) -> tuple[str, ...]:
    found = tuple(path)
    try:
        cached = _paths.get(found)
    except TypeError:
        raise Malformed("invalid routing message: a path contains something other than node ids") from None
    if cached is None:
        cached = tuple([_id(router) for router in found])
        if len(_paths) >= _MAX_CACHED_PATHS:
            _paths.clear()
        _paths[cached] = cached
    return cached


def _id(value: Any) -> str:
    try:
        cached = _ids.get(value)
    except TypeError:
        raise Malformed("invalid routing message: a node id is not a text") from None
    if cached is None:
        if len(_ids) >= _MAX_CACHED_IDS:
            _ids.clear()
        cached = _ids[value] = check_node_id(value)
    return cached


def _checked_service(name: str) -> str:
    if name != ANY_SERVICE:
        check_service_name(name.removeprefix(INTEREST_PREFIX))
    return sys.intern(name)


def _checked_text(value: object) -> str:
    if type(value) is not str or len(value) > MAX_TEXT_LENGTH:
        raise Malformed(f"invalid routing message: a text is missing or longer than {MAX_TEXT_LENGTH} characters")
    # Thousands of routes contain the same few texts. Interning keeps one object for each of them.
    return sys.intern(value)


def _checked_version(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise Malformed("invalid routing message: an incarnation, sequence or version is out of range")
    return value


def _checked_number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise Malformed("invalid routing message: a number is out of range")
    return value
