"""Parse the document: `{"nodes": [{"address": "host:port", "priority": 1}, ...]}`. Pure."""

from __future__ import annotations

import json

from micro_core.contract import BadRequest, Candidate, Malformed
from micro_core.contract.names import split_host_port

MAX_NODES = 256
"""Maximum number of nodes in a document; a node dials only a few."""

MAX_ADDRESS_CHARS = 300
"""Maximum length of an address."""

MAX_PRIORITY = 65_535
"""Maximum priority and weight, as in SRV records (RFC 2782)."""


def parse_nodes(body: bytes, *, ttl_s: float) -> list[Candidate]:
    """Return the candidates by ascending priority; equal priorities keep the order of the document.

    Fields other than `address`, `priority` and `weight` are ignored. Raises Malformed if the document or one of its
    entries is invalid; the message names the entry.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"http: the document is not JSON: {error}") from error
    nodes = document.get("nodes") if isinstance(document, dict) else None
    if not isinstance(nodes, list):
        raise Malformed("http: the document is not an object with a list of nodes", hint='e.g. {"nodes": []}')
    if len(nodes) > MAX_NODES:
        raise Malformed(f"http: the document lists {len(nodes)} nodes, the maximum is {MAX_NODES}")
    candidates = [_candidate(index, node, ttl_s) for index, node in enumerate(nodes)]
    return sorted(candidates, key=lambda candidate: candidate.priority)


def _candidate(index: int, node: object, ttl_s: float) -> Candidate:
    if not isinstance(node, dict):
        raise Malformed(f"http: nodes[{index}] is not an object")
    address = node.get("address")
    if not isinstance(address, str) or not address.isprintable() or not 0 < len(address) <= MAX_ADDRESS_CHARS:
        raise Malformed(f"http: nodes[{index}].address is not a string of 1 to {MAX_ADDRESS_CHARS} characters")
    try:
        host, _ = split_host_port(address.rpartition("://")[2])
    except BadRequest as error:
        raise Malformed(f"http: nodes[{index}].address: {error.detail}", hint=error.hint) from error
    if not host or any(character.isspace() for character in address):
        raise Malformed(f"http: nodes[{index}].address: {address!r:.60} has no host")
    return Candidate(
        address=address,
        priority=_number(index, node, "priority"),
        weight=_number(index, node, "weight"),
        ttl_s=ttl_s,
    )


def _number(index: int, node: dict[str, object], key: str) -> int:
    value = node.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PRIORITY:
        raise Malformed(f"http: nodes[{index}].{key} is not an integer from 0 to {MAX_PRIORITY}")
    return value
