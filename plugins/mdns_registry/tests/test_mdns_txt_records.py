"""Tests of the TXT records: round trips, limits, and invalid data."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from micro_mdns_registry.txt_records import (
    MAX_DEFLATED_BYTES,
    MAX_RECORDS_PER_OWNER,
    Heartbeat,
    decode_heartbeat,
    decode_record,
    encode_heartbeat,
    encode_record,
)

from micro_core.contract import Endpoint, EndpointKind, Instance, Malformed, TooLarge

GREETER = Instance(
    service="go.micro.srv.greeter",
    id="greeter-1",
    address="tcp://127.0.0.1:40123",
    version="1.2",
    metadata={"site": "eu", "text": "ümläut"},
    endpoints=(
        Endpoint(name="Say.Hello", request={"type": "object"}, idempotent=True),
        Endpoint(name="orders.created", kind=EndpointKind.SUBSCRIBER, queue="workers"),
    ),
)


def strings_of(text: bytes) -> list[bytes]:
    found = []
    while text:
        found.append(text[1 : 1 + text[0]])
        text = text[1 + text[0] :]
    return found


def text_of(strings: list[bytes]) -> bytes:
    return b"".join(bytes([len(string)]) + string for string in strings)


def test_record_survives_a_round_trip() -> None:
    assert decode_record(encode_record(GREETER, 2.5)) == (GREETER, 2.5)


def test_large_record_is_split_into_strings_of_at_most_255_bytes() -> None:
    incompressible = "".join(f"{zlib.crc32(b'%d' % number):08x}" for number in range(600))
    large = Instance(
        service="large", id="1", address="tcp://h:1", metadata={"a": incompressible[:4000], "b": incompressible[4000:]}
    )
    text = encode_record(large, 30.0)
    assert len(strings_of(text)) > 5
    assert all(len(string) <= 255 for string in strings_of(text))
    assert decode_record(text) == (large, 30.0)


def test_oversized_record_is_rejected_with_the_limit() -> None:
    texts = {f"k{row}": "".join(f"{zlib.crc32(b'%d %d' % (row, n)):08x}" for n in range(500)) for row in range(12)}
    with pytest.raises(TooLarge, match=str(MAX_DEFLATED_BYTES)) as caught:
        encode_record(Instance(service="huge", id="1", address="tcp://h:1", metadata=texts), 30.0)
    assert "schemas" in caught.value.hint


def test_record_that_inflates_too_much_is_rejected() -> None:
    bomb = zlib.compress(b" " * 4_000_000, 9)
    strings = [b"v=1", b"l=1000"] + [b"%02d=" % n + bomb[n * 250 : (n + 1) * 250] for n in range(-(-len(bomb) // 250))]
    with pytest.raises(Malformed, match="inflates"):
        decode_record(text_of(strings))


@pytest.mark.parametrize(
    "strings",
    [
        [],
        [b"v=1"],
        [b"v=2", b"l=1000", b"00=x"],
        [b"v=1", b"l=0", b"00=x"],
        [b"v=1", b"l=-5", b"00=x"],
        [b"v=1", b"l=99999999999", b"00=x"],
        [b"v=1", b"l=1000", b"00=not deflated"],
        [b"v=1", b"l=1000", b"00=" + zlib.compress(b"[" * 50_000)],
        [b"v=1", b"l=1000", b"00=" + zlib.compress(b'{"service": 1}')],
        [b"v=1", b"l=1000", b"00=" + zlib.compress(b"\xff")],
        [b"v=1", b"l=1000", b"00=" + zlib.compress(json.dumps({"service": "a", "id": "b"}).encode())],
    ],
)
def test_invalid_record_raises_malformed(strings: list[bytes]) -> None:
    with pytest.raises(Malformed):
        decode_record(text_of(strings))


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_decoded_or_raise_malformed(text: bytes) -> None:
    for decode in (decode_record, decode_heartbeat):
        try:
            decode(text)
        except Malformed:
            continue


@given(st.frozensets(st.integers(1, 5_000), max_size=MAX_RECORDS_PER_OWNER), st.integers(0, 2**31))
def test_heartbeat_survives_a_round_trip(records: frozenset[int], number: int) -> None:
    heartbeat = Heartbeat(number=number, next_sequence=5_001, records=records)
    text = encode_heartbeat(heartbeat)
    assert all(len(string) <= 255 for string in strings_of(text))
    assert decode_heartbeat(text) == heartbeat


def test_typical_heartbeat_is_small() -> None:
    assert len(encode_heartbeat(Heartbeat(number=10_000, next_sequence=21, records=frozenset(range(1, 21))))) < 40


@pytest.mark.parametrize("listed", [b"1-2000000", b"5-1", b"1,,2", b"x", b"7", b"-", b"1-400,100-500,1-400"])
def test_forged_list_is_rejected_before_it_is_expanded(listed: bytes) -> None:
    next_sequence = b"7" if listed == b"7" else b"2000001"
    with pytest.raises(Malformed):
        decode_heartbeat(text_of([b"v=1", b"n=1", b"t=" + next_sequence, b"s0=" + listed]))
