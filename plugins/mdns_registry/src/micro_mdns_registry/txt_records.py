"""Encoding of the TXT records of the registry: one per instance, and one heartbeat per owner.

A TXT record is a sequence of `key=value` strings of at most 255 bytes each (RFC 6763 section 6). An instance is encoded
as canonical JSON, deflated, and split into the strings `00=`, `01=`, ... Further keys are `v` (version of the encoding)
and `l` (lease in milliseconds). A heartbeat has the keys `v`, `n` (its number), `t` (the next unused sequence number) and
`s0`, `s1`, ... (the sequence numbers of the current records, e.g. `1-5,9`).
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

from micro_core.contract import Instance, Malformed, TooLarge
from micro_core.contract.records import instance_from_dict, instance_to_dict

VERSION = b"1"

MAX_DEFLATED_BYTES = 6_144
"""Maximum size of a deflated record, so that it fits into one mDNS message (9000 bytes, RFC 6762 section 17) together with
names, SRV record and the keys of the strings."""

MAX_INFLATED_BYTES = 262_144
"""Maximum size of an inflated record, so that a small message cannot exhaust the memory."""

MAX_RECORDS_PER_OWNER = 512
"""Maximum number of records of one owner, which limits the list in a heartbeat, also in a forged one."""

MAX_SEQUENCE = 2**31
MAX_LEASE_S = 86_400.0

_STRING_BYTES = 255
_CHUNK_BYTES = _STRING_BYTES - len(b"00=")
_LIST_BYTES = _STRING_BYTES - len(b"s00=")
_MAX_CHUNKS = -(-MAX_DEFLATED_BYTES // _CHUNK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The sequence numbers of all current records of an owner. Receivers renew, remove and query records accordingly."""

    number: int
    next_sequence: int
    records: frozenset[int]


def encode_record(instance: Instance, lease_s: float) -> bytes:
    """Encode an instance as TXT data. Raises TooLarge if it does not fit into one mDNS message."""
    plain = json.dumps(instance_to_dict(instance), sort_keys=True, separators=(",", ":")).encode()
    deflated = zlib.compress(plain, 9)
    if len(deflated) > MAX_DEFLATED_BYTES or len(plain) > MAX_INFLATED_BYTES:
        raise TooLarge(
            f"mdns: the record of {instance.service} has {len(deflated)} bytes deflated ({len(plain)} inflated), more than "
            f"the {MAX_DEFLATED_BYTES} ({MAX_INFLATED_BYTES}) that fit into one mDNS message",
            hint="shorten endpoint schemas, descriptions or metadata, or use another registry",
        )
    strings = [b"v=" + VERSION, b"l=%d" % round(lease_s * 1000)]
    for index, start in enumerate(range(0, len(deflated), _CHUNK_BYTES)):
        strings.append(b"%02d=" % index + deflated[start : start + _CHUNK_BYTES])
    return _join(strings)


def decode_record(text: bytes) -> tuple[Instance, float]:
    """Return (instance, lease in seconds). Raises Malformed if the data is not a valid record."""
    pairs = _split(text)
    lease_s = _number(pairs, b"l", int(MAX_LEASE_S * 1000)) / 1000
    if lease_s <= 0:
        raise Malformed("mdns: the record has no lease")
    chunks: list[bytes] = []
    while (chunk := pairs.get(b"%02d" % len(chunks))) is not None and len(chunks) < _MAX_CHUNKS:
        chunks.append(chunk)
    try:
        decoded = json.loads(_inflate(b"".join(chunks)))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"mdns: the record is not valid JSON: {error}") from error
    return instance_from_dict(decoded), lease_s


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    """Encode a heartbeat as TXT data. A long list is split into several strings."""
    ranges = _write_ranges(sorted(heartbeat.records))
    strings = [b"v=" + VERSION, b"n=%d" % heartbeat.number, b"t=%d" % heartbeat.next_sequence]
    for index, start in enumerate(range(0, len(ranges), _LIST_BYTES)):
        strings.append(b"s%d=" % index + ranges[start : start + _LIST_BYTES])
    return _join(strings)


def decode_heartbeat(text: bytes) -> Heartbeat:
    """Decode a heartbeat.

    Raises Malformed if the data is invalid or if its list has more than `MAX_RECORDS_PER_OWNER` numbers.
    """
    pairs = _split(text)
    ranges = b""
    index = 0
    while (chunk := pairs.get(b"s%d" % index)) is not None:
        ranges += chunk
        index += 1
    next_sequence = _number(pairs, b"t", MAX_SEQUENCE)
    return Heartbeat(
        number=_number(pairs, b"n", MAX_SEQUENCE),
        next_sequence=next_sequence,
        records=_read_ranges(ranges, next_sequence),
    )


def _join(strings: list[bytes]) -> bytes:
    return b"".join(bytes([len(string)]) + string for string in strings)


def _split(text: bytes) -> dict[bytes, bytes]:
    pairs: dict[bytes, bytes] = {}
    position = 0
    while position < len(text):
        end = position + 1 + text[position]
        if end > len(text):
            raise Malformed("mdns: a TXT string exceeds the record")
        key, _, value = text[position + 1 : end].partition(b"=")
        # If a key occurs more than once, only the first is used (RFC 6763 section 6.4).
        pairs.setdefault(key, value)
        position = end
    if pairs.get(b"v") != VERSION:
        raise Malformed("mdns: unknown version of the record")
    return pairs


def _number(pairs: dict[bytes, bytes], key: bytes, limit: int) -> int:
    digits = pairs.get(key, b"")
    if not digits.isdigit() or len(digits) > 10 or int(digits) > limit:
        raise Malformed(f"mdns: {key.decode()!r} is not a number up to {limit}")
    return int(digits)


def _inflate(deflated: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(deflated, MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise Malformed(f"mdns: cannot inflate the record: {error}") from error
    if not inflater.eof:
        raise Malformed(f"mdns: the record is incomplete or inflates to more than {MAX_INFLATED_BYTES} bytes")
    return plain


def _write_ranges(numbers: list[int]) -> bytes:
    ranges: list[bytes] = []
    start = 0
    while start < len(numbers):
        end = start
        while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
            end += 1
        ranges.append(b"%d" % numbers[start] if end == start else b"%d-%d" % (numbers[start], numbers[end]))
        start = end + 1
    return b",".join(ranges)


def _read_ranges(ranges: bytes, next_sequence: int) -> frozenset[int]:
    numbers: set[int] = set()
    for each in ranges.split(b",") if ranges else ():
        first, dash, last = each.partition(b"-")
        ends = {b"a": first, b"b": last if dash else first}
        low, high = _number(ends, b"a", MAX_SEQUENCE), _number(ends, b"b", MAX_SEQUENCE)
        if not low <= high < next_sequence or high - low + len(numbers) >= MAX_RECORDS_PER_OWNER:
            raise Malformed("mdns: the list of a heartbeat is invalid or too long")
        numbers.update(range(low, high + 1))
    return frozenset(numbers)
