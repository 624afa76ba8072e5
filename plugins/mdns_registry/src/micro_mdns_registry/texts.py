"""The TXT records of the registry: one for an instance, one for an owner's beat.

Pure. A TXT record is a row of `key=value` strings of at most 255 bytes (RFC 6763 section 6). An instance is
canonical JSON, deflated, cut into the strings `00=`, `01=`, ...; beside them stand `v` (version of this form) and
`l` (lease in milliseconds). A beat is `v`, `n` (its number), `t` (the first sequence number not yet given) and `s`
(the sequence numbers that stand, as in `1-5,9`).
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

from micro_core.contract import Instance, Malformed, TooLarge
from micro_core.contract.records import instance_from_dict, instance_to_dict

VERSION = b"1"

MAX_DEFLATED_BYTES = 6_144
"""Longest deflated record: with names, SRV and chunk headers it still fits one mDNS message (9000 bytes, RFC 6762
section 17)."""

MAX_INFLATED_BYTES = 262_144
"""Longest record after inflating: a small message cannot be made to fill memory."""

MAX_STANDING = 512
"""Most records of one owner, so that a beat's list is short and a forged one expands to little."""

MAX_SEQUENCE = 2**31
MAX_LEASE_S = 86_400.0

_STRING_BYTES = 255
_CHUNK_BYTES = _STRING_BYTES - len(b"00=")
_LIST_BYTES = _STRING_BYTES - len(b"s00=")
_MAX_CHUNKS = -(-MAX_DEFLATED_BYTES // _CHUNK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """All that an owner has registered, by sequence number: whoever hears it renews, forgets and asks accordingly."""

    number: int
    next_sequence: int
    standing: frozenset[int]


def encode_record(instance: Instance, lease_s: float) -> bytes:
    """Encode an instance as TXT data; raises TooLarge."""
    plain = json.dumps(instance_to_dict(instance), sort_keys=True, separators=(",", ":")).encode()
    deflated = zlib.compress(plain, 9)
    if len(deflated) > MAX_DEFLATED_BYTES or len(plain) > MAX_INFLATED_BYTES:
        raise TooLarge(
            f"mdns: the record of {instance.service} is {len(deflated)} bytes deflated ({len(plain)} plain), "
            f"over the {MAX_DEFLATED_BYTES} ({MAX_INFLATED_BYTES}) that fit one mDNS message",
            hint="shorten endpoint schemas, descriptions or metadata, or use another registry",
        )
    strings = [b"v=" + VERSION, b"l=%d" % round(lease_s * 1000)]
    for index, start in enumerate(range(0, len(deflated), _CHUNK_BYTES)):
        strings.append(b"%02d=" % index + deflated[start : start + _CHUNK_BYTES])
    return _join(strings)


def decode_record(text: bytes) -> tuple[Instance, float]:
    """Return (instance, lease in seconds); raises Malformed."""
    pairs = _split(text)
    lease_s = _number(pairs, b"l", int(MAX_LEASE_S * 1000)) / 1000
    if lease_s <= 0:
        raise Malformed("mdns: a record without a lease")
    chunks: list[bytes] = []
    while (chunk := pairs.get(b"%02d" % len(chunks))) is not None and len(chunks) < _MAX_CHUNKS:
        chunks.append(chunk)
    try:
        decoded = json.loads(_inflate(b"".join(chunks)))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"mdns: a record is not JSON: {error}") from error
    return instance_from_dict(decoded), lease_s


def encode_beat(beat: Beat) -> bytes:
    """Encode a beat as TXT data. The list is cut in strings `s0=`, `s1=`, ... where it is long."""
    listed = _write_ranges(sorted(beat.standing))
    strings = [b"v=" + VERSION, b"n=%d" % beat.number, b"t=%d" % beat.next_sequence]
    for index, start in enumerate(range(0, len(listed), _LIST_BYTES)):
        strings.append(b"s%d=" % index + listed[start : start + _LIST_BYTES])
    return _join(strings)


def decode_beat(text: bytes) -> Beat:
    """Raises Malformed, also when a list would expand to more than `MAX_STANDING` numbers."""
    pairs = _split(text)
    listed = b""
    index = 0
    while (part := pairs.get(b"s%d" % index)) is not None:
        listed += part
        index += 1
    next_sequence = _number(pairs, b"t", MAX_SEQUENCE)
    return Beat(
        number=_number(pairs, b"n", MAX_SEQUENCE),
        next_sequence=next_sequence,
        standing=_read_ranges(listed, next_sequence),
    )


def _join(strings: list[bytes]) -> bytes:
    return b"".join(bytes([len(string)]) + string for string in strings)


def _split(text: bytes) -> dict[bytes, bytes]:
    pairs: dict[bytes, bytes] = {}
    position = 0
    while position < len(text):
        end = position + 1 + text[position]
        if end > len(text):
            raise Malformed("mdns: a TXT string runs over the record's end")
        key, _, value = text[position + 1 : end].partition(b"=")
        # RFC 6763 section 6.4: of equal keys the first counts.
        pairs.setdefault(key, value)
        position = end
    if pairs.get(b"v") != VERSION:
        raise Malformed("mdns: a record of another version")
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
        raise Malformed(f"mdns: a record cannot be inflated: {error}") from error
    if not inflater.eof:
        raise Malformed(f"mdns: a record is cut short or inflates to more than {MAX_INFLATED_BYTES} bytes")
    return plain


def _write_ranges(numbers: list[int]) -> bytes:
    parts: list[bytes] = []
    start = 0
    while start < len(numbers):
        end = start
        while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
            end += 1
        parts.append(b"%d" % numbers[start] if end == start else b"%d-%d" % (numbers[start], numbers[end]))
        start = end + 1
    return b",".join(parts)


def _read_ranges(listed: bytes, next_sequence: int) -> frozenset[int]:
    numbers: set[int] = set()
    for part in listed.split(b",") if listed else ():
        first, dash, last = part.partition(b"-")
        ends = {b"a": first, b"b": last if dash else first}
        low, high = _number(ends, b"a", MAX_SEQUENCE), _number(ends, b"b", MAX_SEQUENCE)
        if not low <= high < next_sequence or high - low + len(numbers) >= MAX_STANDING:
            raise Malformed("mdns: a beat's list is out of order or too long")
        numbers.update(range(low, high + 1))
    return frozenset(numbers)
