"""What neighbours tell each other about the graph: `connect`, `peer`, `close`.

A message is a msgpack array on the channel `network`: a greeting and its answer go to one peer, news to all of them by
multicast. Pure; everything read is checked.
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
"""Channel of these messages: sessions for the greeting and its answer, multicast for news."""

ADVERT_CHANNEL = "advert"
"""Unicast channel of routing messages: one session a direction, each message behind a u32 length."""

MAX_NEIGHBOURS = 256
"""Neighbours listed of one node."""

MAX_ADDRESSES = 16
"""Addresses listed of one node."""

_CONNECT, _PEER, _CLOSE = 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A node's own word about itself and its links; only its origin raises (incarnation, sequence).

    `age_s` grows on the way and in memory, so that a record nobody renews dies everywhere however often it is
    repeated. `neighbours` are (node id, cost in microseconds).
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
        return (self.incarnation, self.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """First message on a link: who I am, and please tell me what you know."""

    record: NodeRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Records that changed, or all of them in answer to `connect`."""

    records: tuple[NodeRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The sender leaves; it can only speak for itself."""

    incarnation: int


NetworkMessage = Connect | Peer | Close


def encode(message: NetworkMessage) -> list[bytes]:
    """The payloads that carry `message`; several where it would pass the tunnel's bound for a multicast."""
    match message:
        case Connect(record=record):
            return [_pack([_CONNECT, _record_fields(record)])]
        case Close(incarnation=incarnation):
            return [_pack([_CLOSE, incarnation])]
        case Peer(records=records):
            return [_pack([_PEER, batch]) for batch in _batches(records)]


def decode(payload: bytes, is_news: Callable[[str, tuple[int, int]], bool] | None = None) -> NetworkMessage:
    """Read one payload; raises Malformed.

    Records for which `is_news(id, (incarnation, sequence))` is false are left out, without a further look.
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
            wanted = [fields for fields in records if is_news is None or not _is_old(fields, is_news)]
            return Peer(records=tuple(_record(fields) for fields in wanted))
        case [3, int() as incarnation]:
            return Close(incarnation=incarnation)
    raise Malformed("network message: neither connect, peer nor close")


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
    raise Malformed("node record: fields missing, of a wrong type, or too many")


def _is_old(fields: object, is_news: Callable[[str, tuple[int, int]], bool]) -> bool:
    match fields:
        case [str() as node_id, _, _, _, int() as incarnation, int() as sequence, *_]:
            return not is_news(node_id, (incarnation, sequence))
    return False


def _neighbour(pair: object) -> tuple[str, int]:
    match pair:
        case [str() as node_id, int() as cost_us] if cost_us >= 0:
            return check_node_id(node_id), cost_us
    raise Malformed("node record: a neighbour is (node id, cost)")


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 253:
        raise Malformed("node record: not a text of at most 253 characters")
    return value


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
