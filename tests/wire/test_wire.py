"""Frames, headers and bodies: they survive encoding and decoding, and invalid bytes raise only protocol errors."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from micro_core.contract.errors import BadRequest, Malformed, MicroError, TooLarge, error_from_wire
from micro_core.wire import codec, frames, header, limits
from micro_core.wire.frames import HEAD, MORE, Frame, FrameDecoder, Kind
from micro_core.wire.header import CallHeader, EventHeader, ResponseHeader

CALL_KINDS = [Kind.REQUEST, Kind.RESPONSE, Kind.ERROR, Kind.DATA, Kind.END, Kind.CANCEL, Kind.CREDIT]
FRAMES = st.builds(
    Frame,
    st.sampled_from([int(kind) for kind in CALL_KINDS]),
    st.integers(0, 255),
    st.integers(1, 0xFFFF_FFFF),
    st.binary(max_size=100),
    st.binary(max_size=1000),
)


def encode(frame: Frame) -> bytes:
    return frames.encode(frame.kind, frame.stream, frame.header, frame.body, frame.flags)


# Frames


@given(st.lists(FRAMES, max_size=8), st.integers(1, 500))
def test_frames_survive_a_round_trip_in_chunks_of_any_size(sent: list[Frame], step: int) -> None:
    data = b"".join(encode(frame) for frame in sent)
    decoder, received = FrameDecoder(), []
    for start in range(0, len(data), step):
        received += list(decoder.receive_data(data[start : start + step]))
    assert received == sent
    assert decoder.buffered_bytes == 0


@given(st.lists(st.binary(max_size=200), max_size=10))
@example([b"\x00\x00\x00\x00", b"\x00" * 20])
@example([b"\x00\x00\x00\x08\x01\x00\x00\x00\x00\x01\xff\xff"])
@settings(max_examples=400)
def test_random_bytes_raise_only_protocol_errors_and_are_buffered_up_to_the_limit(chunks: list[bytes]) -> None:
    decoder = FrameDecoder()
    try:
        for chunk in chunks:
            for frame in decoder.receive_data(chunk):
                assert (frame.stream == 0) is (frame.kind in frames._CONNECTION_KINDS)
            assert decoder.buffered_bytes <= limits.MAX_FRAME_BYTES
    except (Malformed, TooLarge):
        pass


@given(FRAMES, st.integers(0, HEAD.size - 1), st.integers(0, 255))
def test_changed_byte_in_a_frame_head_is_valid_or_a_protocol_error(frame: Frame, position: int, byte: int) -> None:
    data = bytearray(encode(frame))
    data[position] = byte
    try:
        list(FrameDecoder().receive_data(bytes(data)))
    except (Malformed, TooLarge):
        pass


@pytest.mark.parametrize(
    ("length", "header_length"),
    [
        (limits.MAX_FRAME_BYTES, 0),
        (0xFFFF_FFFF, 0),
        (8 + limits.MAX_FRAME_BODY_BYTES + 1, 0),
        (100, limits.MAX_HEADER_BYTES + 1),
        (8, 1),
        (0, 0),
    ],
)
def test_oversized_length_is_refused_from_the_head_alone(length: int, header_length: int) -> None:
    decoder = FrameDecoder()
    with pytest.raises((Malformed, TooLarge)):
        list(decoder.receive_data(struct.pack(">IBBIH", length, Kind.DATA, 0, 1, header_length)))


@given(st.sampled_from([Kind.REQUEST, Kind.RESPONSE, Kind.DATA]), st.integers(0, 400_000))
@settings(max_examples=20)
def test_large_message_is_split_into_frames_without_loss(kind: Kind, size: int) -> None:
    body = bytes(size)
    chunks = frames.encode_message(kind, 7, b"header", body)
    received = list(FrameDecoder().receive_data(b"".join(chunks)))
    assert b"".join(frame.body for frame in received) == body
    assert [bool(frame.flags & MORE) for frame in received] == [True] * (len(received) - 1) + [False]
    assert received[0].kind == kind
    assert all(frame.kind == Kind.DATA and not frame.header for frame in received[1:])


def test_oversized_message_is_not_encoded() -> None:
    with pytest.raises(TooLarge):
        frames.encode_message(Kind.DATA, 1, b"", bytes(limits.MAX_BODY_BYTES + 1))
    with pytest.raises(TooLarge):
        frames.encode_message(Kind.REQUEST, 1, bytes(limits.MAX_HEADER_BYTES + 1), b"")


@given(FRAMES, st.integers(1, 0xFFFF_FFFF))
def test_restream_changes_only_the_stream_id(frame: Frame, stream: int) -> None:
    (received,) = FrameDecoder().receive_data(frames.restream(frame, stream))
    assert received == frame._replace(stream=stream)


@given(st.integers(0, 0xFFFF_FFFF))
def test_credit_survives_a_round_trip(granted: int) -> None:
    (frame,) = FrameDecoder().receive_data(frames.encode_credit(3, granted))
    assert frames.decode_credit(frame.body) == granted


@given(st.binary(max_size=10).filter(lambda body: len(body) != 4))
def test_credit_of_another_size_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        frames.decode_credit(body)


# Headers

SHORT = st.text(max_size=60)
METADATA = st.dictionaries(SHORT, SHORT, max_size=6)
CALLS = st.builds(
    CallHeader,
    service=SHORT,
    endpoint=SHORT,
    mode=st.integers(0, 3),
    timeout_ms=st.integers(0, 3_600_000),
    content_type=SHORT,
    metadata=METADATA,
    hops_left=st.integers(0, limits.MAX_HOPS),
    via=st.lists(SHORT, max_size=5).map(tuple),
    bulk=st.booleans(),
    idempotent=st.booleans(),
)
EVENTS = st.builds(
    EventHeader,
    topic=SHORT,
    id=SHORT,
    content_type=SHORT,
    headers=METADATA,
    targets=st.lists(SHORT, max_size=5).map(tuple),
    hops_left=st.integers(0, limits.MAX_HOPS),
    origin=SHORT,
    age_ms=st.integers(0, limits.MAX_EVENT_AGE_MS),
)
RESPONSES = st.builds(ResponseHeader, content_type=SHORT, metadata=METADATA)
DECODERS: list[Callable[[bytes], Any]] = [
    header.decode_call_header,
    header.decode_response_header,
    header.decode_event_header,
    header.decode_hello,
    header.decode_map,
]


@given(CALLS)
def test_call_header_survives_a_round_trip(sent: CallHeader) -> None:
    assert header.decode_call_header(header.encode_header(sent)) == sent


@given(EVENTS)
def test_event_header_survives_a_round_trip(sent: EventHeader) -> None:
    assert header.decode_event_header(header.encode_header(sent)) == sent


@given(EVENTS)
def test_event_header_of_an_older_version_has_no_age(sent: EventHeader) -> None:
    older = header.decode_event_header(msgpack.packb([*sent[:4], list(sent.targets), *sent[5:7]]))
    assert older == sent._replace(age_ms=0)


@pytest.mark.parametrize("age_ms", [-1, limits.MAX_EVENT_AGE_MS + 1, 1.5, True])
def test_event_header_with_an_invalid_age_is_malformed(age_ms: Any) -> None:
    with pytest.raises(Malformed, match="age"):
        header.decode_event_header(header.encode_header(EventHeader("orders", "1", age_ms=age_ms)))


@given(RESPONSES)
def test_response_header_survives_a_round_trip(sent: ResponseHeader) -> None:
    assert header.decode_response_header(header.encode_header(sent)) == sent


@given(CALLS, st.integers(2, 10), st.lists(st.none() | st.integers(-(2**63), 2**64 - 1) | SHORT, max_size=3))
def test_missing_header_fields_get_defaults_and_additional_ones_are_ignored(
    sent: CallHeader, keep: int, additional: list[Any]
) -> None:
    fields = list(sent)
    shorter = header.decode_call_header(msgpack.packb(fields[:keep]))
    assert tuple(shorter)[:keep] == tuple(sent)[:keep]
    assert tuple(shorter)[keep:] == tuple(CallHeader("", ""))[keep:]
    assert header.decode_call_header(msgpack.packb([*fields, *additional])) == sent


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(data=st.binary(max_size=300))
@example(data=b"\xdd\xff\xff\xff\xff")
@example(data=b"\xdf\xff\xff\xff\xff")
@example(data=b"\xc6\xff\xff\xff\xff")
@example(data=b"\x91" * 2_000)
@example(data=b"\x81\x91\x01\x01")
@settings(max_examples=200)
def test_random_header_bytes_raise_only_malformed(decode: Callable[[bytes], Any], data: bytes) -> None:
    try:
        decode(data)
    except Malformed:
        pass


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text() | st.integers(0, 99), inner, max_size=4),
    max_leaves=15,
)


@pytest.mark.parametrize("decode", DECODERS, ids=lambda decode: decode.__name__)
@given(value=st.lists(ANY_VALUE, max_size=12) | ANY_VALUE)
@settings(max_examples=200)
def test_random_header_value_is_valid_or_malformed(decode: Callable[[bytes], Any], value: Any) -> None:
    try:
        decoded = decode(msgpack.packb(value))
    except Malformed:
        return
    if isinstance(decoded, CallHeader):
        assert isinstance(decoded.service, str)
        assert 0 <= decoded.timeout_ms <= limits.MAX_TIMEOUT_S * 1000
        assert all(isinstance(entry, str) for entry in decoded.metadata.values())


def test_oversized_header_is_not_encoded() -> None:
    with pytest.raises(TooLarge):
        header.encode_header(CallHeader("s", "e", metadata={"k": "v" * limits.MAX_HEADER_BYTES}))


def test_missing_common_version_is_reported_with_the_versions_of_both_sides() -> None:
    assert header.decode_hello(header.encode_hello("me")) == (1, "me")
    with pytest.raises(Malformed, match="no common wire version"):
        header.decode_hello(msgpack.packb([[7, 8], "them"]))


@given(ANY_VALUE)
def test_any_error_value_of_a_peer_becomes_a_micro_error(value: Any) -> None:
    error = error_from_wire(value)
    assert isinstance(error, MicroError)
    assert 400 <= error.code < 600


# Bodies


@given(ANY_VALUE.filter(lambda value: "nan" not in repr(value)))
@settings(max_examples=200)
def test_msgpack_body_survives_a_round_trip(value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("content_type", [*codec.CONTENT_TYPES, "application/unknown"])
@given(body=st.binary(max_size=300))
@example(body=b"\x91" * 100 + b"\x90")
@example(body=b"[" * 100_000)
@example(body=b'{"a":' * 5_000)
@example(body=b"\xdd\x7f\xff\xff\xff")
@example(body=b"\xc7\x08\xff" + bytes(8))
@example(body=b"\xd6\xff" + bytes(4))
@example(body=b"9" * 5_000)
@settings(max_examples=200)
def test_random_body_raises_only_bad_request_or_too_large(content_type: str, body: bytes) -> None:
    try:
        codec.decode(body, content_type)
    except (BadRequest, TooLarge):
        pass


@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
def test_nesting_is_bounded(content_type: str) -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for level in range(depth):
            value = [value] if level % 2 else {"a": value}
        return value

    assert codec.decode(codec.encode(nested(limits.MAX_NESTING), content_type), content_type)
    with pytest.raises(TooLarge):
        codec.decode(codec.encode(nested(limits.MAX_NESTING + 2), content_type), content_type)


@pytest.mark.parametrize(
    ("value", "content_type"),
    [
        (object(), codec.MSGPACK),
        ({1, 2}, codec.JSON),
        (float("nan"), codec.JSON),
        ("text", codec.BYTES),
        (b"bytes", codec.TEXT),
        (2**70, codec.MSGPACK),
        (1, "application/unknown"),
    ],
)
def test_value_that_a_content_type_cannot_encode_is_a_bad_request(value: Any, content_type: str) -> None:
    with pytest.raises(BadRequest):
        codec.encode(value, content_type)
