"""Encoding and decoding of routing messages, and the rejection of invalid ones."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.errors import Malformed, TooLarge
from micro_core.routing import messages
from micro_core.routing.events import (
    UNREACHABLE_US,
    Ack,
    Advert,
    Announce,
    Digest,
    RoutingMessage,
    SeqnoRequest,
    Solicit,
    Withdraw,
)
from micro_core.wire import limits

ids = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=32, max_size=32)
counts = st.integers(0, messages.MAX_INTEGER)
names = st.sampled_from(["greeter", "go.micro.srv.greeter", "~orders.created", "a"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

announcements = st.builds(
    Announce,
    origin=ids,
    incarnation=counts,
    sequence=counts,
    service=names,
    versions=st.lists(texts, max_size=messages.MAX_VERSIONS).map(tuple),
    capacity=st.integers(0, 64),
    site=texts,
    network=texts,
    metric_us=st.integers(0, UNREACHABLE_US),
    path=st.lists(ids, min_size=1, max_size=limits.MAX_HOPS).map(tuple),
)
withdrawals = st.builds(
    Withdraw, origin=ids, incarnation=counts, sequence=counts, service=names, is_final=st.booleans()
)
all_messages: st.SearchStrategy[RoutingMessage] = st.one_of(
    st.builds(
        Advert,
        number=counts,
        entries=st.lists(announcements | withdrawals, max_size=4).map(tuple),
        begins=st.booleans(),
        ends=st.booleans(),
    ),
    st.builds(Ack, counts),
    st.just(Solicit()),
    st.builds(Digest, counts, counts, st.integers(0, 2**64 - 1)),
    st.builds(
        SeqnoRequest,
        origin=ids,
        service=names,
        incarnation=counts,
        sequence=counts,
        hops_left=st.integers(0, limits.MAX_HOPS),
    ),
)

NODE = "a" * 32
ANNOUNCE: list[Any] = [NODE, 1, 1, "greeter", ["v1"], 0, "site", "net", 10, [NODE], 0]
WITHDRAW: list[Any] = [NODE, 1, 1, "greeter", True]


def packed(value: object) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def advert(*entries: object) -> bytes:
    return packed([1, 1, 3, list(entries)])


def changed(fields: list[Any], index: int, value: object) -> list[Any]:
    return [*fields[:index], value, *fields[index + 1 :]]


@given(all_messages)
def test_message_is_unchanged_by_encoding_and_decoding(message: RoutingMessage) -> None:
    assert messages.decode(messages.encode(message)) == message


@given(st.binary(max_size=300))
def test_random_bytes_are_malformed(payload: bytes) -> None:
    try:
        messages.decode(payload)
    except (Malformed, TooLarge):
        pass


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=8) | ids,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=20,
)


@given(st.integers(0, 5), st.lists(json_like, max_size=5))
def test_random_msgpack_values_are_malformed(kind: int, fields: list[Any]) -> None:
    try:
        messages.decode(packed([kind, *fields]))
    except (Malformed, TooLarge):
        pass


@given(all_messages, st.data())
def test_changed_byte_is_accepted_or_malformed(message: RoutingMessage, data: st.DataObject) -> None:
    payload = bytearray(messages.encode(message))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = messages.decode(bytes(payload))
    except (Malformed, TooLarge):
        return
    assert messages.decode(messages.encode(read)) == read, "an accepted message can be encoded again"


@given(st.integers(0, 11), json_like)
def test_entry_with_a_wrong_field_is_accepted_or_malformed(index: int, value: object) -> None:
    for fields in (ANNOUNCE, WITHDRAW):
        try:
            messages.decode(advert(changed(fields, index, value)))
        except (Malformed, TooLarge):
            pass


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, "short"),
        (0, "A" * 32),
        (1, -1),
        (1, True),
        (2, 2**63),
        (3, "no spaces please"),
        (3, ""),
        (3, "~"),
        (4, ["v"] * (messages.MAX_VERSIONS + 1)),
        (4, ["v" * 254]),
        (4, [1]),
        (5, -1),
        (5, 65),
        (6, "s" * 254),
        (8, -1),
        (9, []),
        (9, [NODE] * (limits.MAX_HOPS + 1)),
        (9, ["nobody"]),
    ],
)
def test_announcement_out_of_bounds_is_malformed(index: int, value: object) -> None:
    messages.decode(advert(ANNOUNCE))
    with pytest.raises(Malformed):
        messages.decode(advert(changed(ANNOUNCE, index, value)))


def test_advert_with_one_invalid_entry_is_malformed() -> None:
    with pytest.raises(Malformed):
        messages.decode(advert(ANNOUNCE, WITHDRAW, ["?"]))


def test_additional_fields_of_a_later_version_are_ignored() -> None:
    message = messages.decode(advert([*ANNOUNCE, "damped", 7]))
    assert message == messages.decode(advert(ANNOUNCE))


def test_metric_above_the_maximum_is_infinite() -> None:
    message = messages.decode(advert(changed(ANNOUNCE, 8, 2**50)))
    assert isinstance(message, Advert)
    (entry,) = message.entries
    assert isinstance(entry, Announce)
    assert entry.metric_us == UNREACHABLE_US


def test_too_many_entries_are_rejected_without_decoding() -> None:
    with pytest.raises(Malformed):
        messages.decode(advert(*[WITHDRAW] * (limits.MAX_EVENTS_PER_ADVERT + 1)))


def test_too_many_bytes_are_rejected_without_decoding() -> None:
    with pytest.raises(TooLarge):
        messages.decode(b"\x94" + bytes(limits.MAX_ADVERT_BYTES))


def test_declared_length_allocates_no_memory() -> None:
    for payload in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
    ):
        with pytest.raises(Malformed):
            messages.decode(payload)


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(Malformed):
        messages.decode(b"\x91" * 100_000)
