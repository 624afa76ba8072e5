"""Encode and decode records (JSON) and messages of the feed (lines). Input is validated. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from micro_core.contract import Instance, Malformed, TooLarge
from micro_core.contract.records import instance_from_dict, instance_to_dict
from micro_redis_registry.scripts import MAX_RECORD_BYTES

MAX_SEQUENCE = 2**53
"""Maximum sequence number: Lua numbers are doubles."""

MAX_LEASE_MS = 86_400_000
"""Longest lease in milliseconds (one day)."""

_KINDS = ("put", "out", "gone", "due")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A message of the feed (see scripts.py); `record` is JSON that has not been decoded."""

    sequence: int
    kind: str
    lease_s: float
    owner: str
    service: str
    id: str
    record: bytes


def encode_record(instance: Instance) -> bytes:
    """Encode a record; equal records give equal bytes. Raises TooLarge above MAX_RECORD_BYTES."""
    encoded = json.dumps(
        instance_to_dict(instance), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()
    if len(encoded) > MAX_RECORD_BYTES:
        raise TooLarge(
            f"redis: the record of {instance.service} is {len(encoded)} bytes, the maximum is {MAX_RECORD_BYTES}",
            hint="describe fewer endpoints, or omit their schemas",
        )
    return encoded


def decode_record(encoded: bytes, instance_id: str) -> Instance:
    """Decode the record stored under `instance_id`. Raises Malformed if it is invalid or has another id."""
    if len(encoded) > MAX_RECORD_BYTES:
        raise Malformed(f"redis: a record has {len(encoded)} bytes, the maximum is {MAX_RECORD_BYTES}")
    try:
        decoded = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"redis: a record is not JSON: {error}"[:200]) from error
    instance = instance_from_dict(decoded)
    if instance.id != instance_id:
        raise Malformed("redis: a record is stored under the key of another record")
    return instance


def decode_change(message: object) -> Change:
    """Decode a message of the feed. Raises Malformed if it is invalid."""
    lines = message.split(b"\n", 6) if isinstance(message, bytes) else []
    if len(lines) != 7:
        raise Malformed("redis: a message of the feed does not have seven lines")
    try:
        kind, owner, service, instance_id = (lines[index].decode() for index in (1, 3, 4, 5))
    except UnicodeDecodeError as error:
        raise Malformed("redis: a message of the feed is not UTF-8") from error
    if kind not in _KINDS or not instance_id:
        raise Malformed("redis: a message of the feed has an unknown kind")
    return Change(
        sequence=read_number(lines[0], MAX_SEQUENCE),
        kind=kind,
        lease_s=read_number(lines[2], MAX_LEASE_MS) / 1000,
        owner=owner,
        service=service,
        id=instance_id,
        record=lines[6],
    )


def read_number(value: object, maximum: int) -> int:
    """Return an integer from 0 to `maximum`, given as int or as digits. Raises Malformed otherwise."""
    if isinstance(value, bytes) and value.isdigit() and len(value) <= 16:
        value = int(value)
    if not isinstance(value, int) or not 0 <= value <= maximum:
        raise Malformed("redis: a number is missing or out of range")
    return value
