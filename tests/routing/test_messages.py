"""Routing messages as bytes: what goes in comes out, and nothing else gets in."""

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
    SequenceRequest,
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
        SequenceRequest,
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


def changed(fields: list[Any], place: int, value: object) -> list[Any]:
    return [*fields[:place], value, *fields[place + 1 :]]


@given(all_messages)
def test_every_message_comes_out_as_it_went_in(message: RoutingMessage) -> None:
    assert messages.decode(messages.encode(message)) == message


@given(st.binary(max_size=300))
def test_garbage_is_malformed_and_nothing_worse(payload: bytes) -> None:
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
def test_well_formed_nonsense_is_malformed_and_nothing_worse(kind: int, fields: list[Any]) -> None:
    try:
        messages.decode(packed([kind, *fields]))
    except (Malformed, TooLarge):
        pass


@given(all_messages, st.data())
def test_a_flipped_byte_never_raises_anything_else(message: RoutingMessage, data: st.DataObject) -> None:
    payload = bytearray(messages.encode(message))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = messages.decode(bytes(payload))
    except (Malformed, TooLarge):
        return
    assert messages.decode(messages.encode(read)) == read, "what is accepted can be told on"


@given(st.integers(0, 11), json_like)
def test_an_entry_with_one_wrong_field_never_raises_anything_else(place: int, value: object) -> None:
    for fields in (ANNOUNCE, WITHDRAW):
        try:
            messages.decode(advert(changed(fields, place, value)))
        except (Malformed, TooLarge):
            pass


@pytest.mark.parametrize(
    ("place", "value"),
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
def test_an_announcement_beyond_its_bounds_is_malformed(place: int, value: object) -> None:
    messages.decode(advert(ANNOUNCE))
    with pytest.raises(Malformed):
        messages.decode(advert(changed(ANNOUNCE, place, value)))


def test_one_bad_entry_spoils_the_advert() -> None:
    with pytest.raises(Malformed):
        messages.decode(advert(ANNOUNCE, WITHDRAW, ["?"]))


def test_fields_that_a_later_version_appends_are_ignored() -> None:
    message = messages.decode(advert([*ANNOUNCE, "damped", 7]))
    assert message == messages.decode(advert(ANNOUNCE))


def test_a_metric_beyond_unreachable_is_unreachable() -> None:
    message = messages.decode(advert(changed(ANNOUNCE, 8, 2**50)))
    assert isinstance(message, Advert)
    (entry,) = message.entries
    assert isinstance(entry, Announce)
    assert entry.metric_us == UNREACHABLE_US


def test_too_many_entries_are_refused_unread() -> None:
    with pytest.raises(Malformed):
        messages.decode(advert(*[WITHDRAW] * (limits.MAX_EVENTS_PER_ADVERT + 1)))


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(TooLarge):
        messages.decode(b"\x94" + bytes(limits.MAX_ADVERT_BYTES))


def test_an_announced_length_allocates_nothing() -> None:
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
