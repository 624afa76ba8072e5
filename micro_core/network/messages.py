"""The messages by which neighbours exchange the graph: connect, update, close and decline.

A message is a msgpack array on the channel `network`. A connect message and its answer go to one peer over a session;
changes go to all peers by multicast. Pure. Everything that is read is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from micro_core.contract.errors import BadRequest, Malformed
from micro_core.contract.names import check_node_id
from micro_core.wire import limits

CHANNEL = "network"
"""Channel of these messages: sessions for connect and its answer, multicast for changes."""

ADVERT_CHANNEL = "advert"
"""Unicast channel of routing messages: one session per direction, each message preceded by its length (u32)."""

MAX_NEIGHBOURS = 256
"""Maximum number of neighbours in one record."""

MAX_ADDRESSES = 16
"""Maximum number of addresses in one record."""

MAX_TEXT_CHARS = 253
"""Maximum length of a name, an address or a reason."""

_CONNECT, _UPDATE, _CLOSE, _DECLINE = 1, 2, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """What a node states about itself and its links. Only the node itself increases (incarnation, sequence).

    `age_s` grows while the record is stored and passed on, so that a record that is no longer renewed expires on every
    node. `neighbours` are pairs of a node id and a cost in microseconds.
    """

    id: str
    name: str
    site: str
    addresses: tuple[str, ...]
    incarnation: int
    sequence: int
    neighbours: tuple[tuple[str, int], ...] = ()
    age_s: float = 0.0

    @property
    def version(self) -> tuple[int, int]:
        """The version of the record; a greater one is newer."""
        return (self.incarnation, self.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """The first message on a link: the record of the sender. The receiver answers with all its records."""

    record: NodeRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Records that changed, or all records in answer to Connect."""

    records: tuple[NodeRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The sender leaves the network. It refers to the sender only, so it contains no node id."""

    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decline:
    """The sender gives up this link on purpose, and stays in the network. Both ends drain the link."""

    reason: str


NetworkMessage = Connect | Update | Close | Decline


def encode(message: NetworkMessage) -> list[bytes]:
    """Return the payloads that carry `message`: several if it exceeds the maximum size of a multicast message."""
    match message:
        case Connect(record=record):
            return [_pack([_CONNECT, _record_fields(record)])]
        case Close(incarnation=incarnation):
            return [_pack([_CLOSE, incarnation])]
        case Decline(reason=reason):
            return [_pack([_DECLINE, reason[:MAX_TEXT_CHARS]])]
        case Update(records=records):
            return [_pack([_UPDATE, batch]) for batch in _batches(records)]


def decode(payload: bytes, is_newer: Callable[[str, tuple[int, int]], bool] | None = None) -> NetworkMessage:
    """Return the message in one payload. Raises Malformed.

    Records for which `is_newer(id, (incarnation, sequence))` is false are left out before they are checked further.
    """
    try:
        value = msgpack.unpackb(
            payload, raw=False, strict_map_key=True, max_array_len=limits.MAX_PEERS_PER_MESSAGE, max_map_len=0
        )
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"network message: {error!s:.120}") from error
    match value:
        case [1, list() as fields]:
            return Connect(record=_record(fields))
        case [2, list() as records]:
            wanted = [fields for fields in records if is_newer is None or not _is_old(fields, is_newer)]
            return Update(records=tuple(_record(fields) for fields in wanted))
        case [3, int() as incarnation]:
            return Close(incarnation=incarnation)
        case [4, str() as reason, *_]:
            return Decline(reason=_text(reason))
    raise Malformed("network message: not a connect, update, close or decline message")


def _batches(records: tuple[NodeRecord, ...]) -> list[list[list[Any]]]:
    batches: list[list[list[Any]]] = [[]]
    size = 0
    for record in records:
        fields = _record_fields(record)
        length = len(_pack(fields))
        if batches[-1] and size + length > limits.MAX_MULTICAST_BYTES - 64:
            batches.append([])
            size = 0
        batches[-1].append(fields)
        size += length
    return batches


def _record_fields(record: NodeRecord) -> list[Any]:
    return [
        record.id,
        record.name,
        record.site,
        list(record.addresses),
        record.incarnation,
        record.sequence,
        [list(pair) for pair in record.neighbours],
        int(record.age_s * 1000),
    ]


def _record(fields: object) -> NodeRecord:
    match fields:
        case [
            str() as node_id,
            str() as name,
            str() as site,
            list() as addresses,
            int() as incarnation,
            int() as sequence,
            list() as neighbours,
            int() as age_ms,
            *_,
        ] if len(addresses) <= MAX_ADDRESSES and len(neighbours) <= MAX_NEIGHBOURS and age_ms >= 0:
            try:
                return NodeRecord(
                    id=check_node_id(node_id),
                    name=_text(name),
                    site=_text(site),
                    addresses=tuple(_text(address) for address in addresses),
                    incarnation=incarnation,
                    sequence=sequence,
                    neighbours=tuple(_neighbour(pair) for pair in neighbours),
                    age_s=age_ms / 1000,
                )
            except BadRequest as error:
                raise Malformed(f"node record: {error.detail}") from error
    raise Malformed("node record: fields are missing, have the wrong type, or are too long")


def _is_old(fields: object, is_newer: Callable[[str, tuple[int, int]], bool]) -> bool:
    match fields:
        case [str() as node_id, _, _, _, int() as incarnation, int() as sequence, *_]:
            return not is_newer(node_id, (incarnation, sequence))
    return False


def _neighbour(pair: object) -> tuple[str, int]:
    match pair:
        case [str() as node_id, int() as cost_us] if cost_us >= 0:
            return check_node_id(node_id), cost_us
    raise Malformed("node record: a neighbour must be a pair of node id and cost")


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
        raise Malformed(f"network message: a text has more than {MAX_TEXT_CHARS} characters")
    return value


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
