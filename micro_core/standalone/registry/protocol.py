"""The requests and the stream items that a registry process and its clients exchange. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from micro_core.contract.records import instance_from_dict, instance_to_dict
from micro_core.contract.registry import Instance

DEFAULT_ADDRESS = "tcp://127.0.0.1:8000"

BATCH_RECORDS = 100
BATCH_BYTES = 256 * 1024
"""Limits of one item of a stream of records. An item with a single record may be larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterRequest:
    """Create, replace or renew a record for `lease_s` seconds."""

    network: str
    site: str
    instance: dict[str, Any]
    lease_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeregisterRequest:
    """Remove a record. With `if_equal`, a record that another process has replaced is kept."""

    network: str
    site: str
    instance: dict[str, Any]
    if_equal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordsRequest:
    """Read or watch the records of `service`; an empty name stands for all services."""

    network: str
    site: str
    service: str = ""


def batches(instances: Iterable[Instance]) -> list[list[dict[str, object]]]:
    """Return the records of `instances` in batches of at most BATCH_RECORDS records and BATCH_BYTES bytes.

    The result has at least one batch, which may be empty.
    """
    result: list[list[dict[str, object]]] = [[]]
    size = 0
    for instance in instances:
        record = instance_to_dict(instance)
        length = len(json.dumps(record, ensure_ascii=False))
        if result[-1] and (len(result[-1]) >= BATCH_RECORDS or size + length > BATCH_BYTES):
            result.append([])
            size = 0
        result[-1].append(record)
        size += length
    return result


def instances_of(item: Any) -> list[Instance]:
    """Return the instances in a stream item {records}. Raises Malformed if a record is invalid."""
    records = item.get("records") if isinstance(item, dict) else None
    return [instance_from_dict(record) for record in records] if isinstance(records, list) else []
