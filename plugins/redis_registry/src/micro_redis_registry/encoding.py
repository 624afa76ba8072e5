"""Records as JSON and messages of the feed as lines, checked on the way in. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from micro_core.contract import Instance, Malformed, TooLarge
from micro_core.contract.records import instance_from_dict, instance_to_dict
from micro_redis_registry.scripts import MAX_RECORD_BYTES

MAX_SEQUENCE = 2**53
MAX_LEASE_MS = 86_400_000
_KINDS = ("put", "out", "gone", "due")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One message of the feed (scripts.py); `record` is JSON, not yet looked at."""

    sequence: int
    kind: str
    lease_s: float
    owner: str
    service: str
    id: str
    record: bytes


def encode_record(instance: Instance) -> bytes:
    """The same bytes for equal records. Raises TooLarge."""
    encoded = json.dumps(
        instance_to_dict(instance), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()
    if len(encoded) > MAX_RECORD_BYTES:
        raise TooLarge(
            f"redis: the record of {instance.service} is {len(encoded)} bytes, over the bound of {MAX_RECORD_BYTES}",
            hint="describe fewer endpoints, or leave their schemas out",
        )
    return encoded


def decode_record(encoded: bytes, instance_id: str) -> Instance:
    """The record that was kept under `instance_id`. Raises Malformed."""
    if len(encoded) > MAX_RECORD_BYTES:
        raise Malformed(f"redis: a record of {len(encoded)} bytes")
    try:
        decoded = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"redis: a record is not JSON: {error}"[:200]) from error
    instance = instance_from_dict(decoded)
    if instance.id != instance_id:
        raise Malformed("redis: a record under another record's key")
    return instance


def decode_change(message: object) -> Change:
    """Read a message of the feed. Raises Malformed."""
    lines = message.split(b"\n", 6) if isinstance(message, bytes) else []
    if len(lines) != 7:
        raise Malformed("redis: a message of the feed has not its seven lines")
    try:
        kind, owner, service, instance_id = (lines[place].decode() for place in (1, 3, 4, 5))
    except UnicodeDecodeError as error:
        raise Malformed("redis: a message of the feed is not UTF-8") from error
    if kind not in _KINDS or not instance_id:
        raise Malformed("redis: a message of the feed is of no known kind")
    return Change(
        sequence=read_number(lines[0], MAX_SEQUENCE),
        kind=kind,
        lease_s=read_number(lines[2], MAX_LEASE_MS) / 1000,
        owner=owner,
        service=service,
        id=instance_id,
        record=lines[6],
    )


def read_number(value: object, most: int) -> int:
    """A whole number from 0 to `most`, as digits or as it is. Raises Malformed."""
    if isinstance(value, bytes) and value.isdigit() and len(value) <= 16:
        value = int(value)
    if not isinstance(value, int) or not 0 <= value <= most:
        raise Malformed("redis: a number is missing or out of its bounds")
    return value
