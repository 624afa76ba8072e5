"""Encoding and decoding of routing messages, and the rejection of invalid ones."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.errors import Malformed, TooLarge
from micro_core.contract.table import Offer
from micro_core.routing import messages
from micro_core.routing.entries import (
    OfferChanges,
    OfferEntry,
    OriginAnnounce,
    OriginWithdraw,
    RemovedOffer,
    list_checksum,
)
from micro_core.routing.events import (
    UNREACHABLE_US,
    Ack,
    Advert,
    Digest,
    RoutingMessage,
    SeqnoRequest,
    SeqnoRequests,
    Solicit,
)
from micro_core.wire import limits

ids = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=32, max_size=32)
numbers = st.integers(0, messages.MAX_NUMBER)
versions = st.integers(0, messages.MAX_INTEGER)
names = st.sampled_from(["greeter", "go.micro.srv.greeter", "~orders.created", "a", "*"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

announcements = st.builds(
    OriginAnnounce,
    origin=ids,
    seqno=st.tuples(versions, versions),
    site=texts,
    network=texts,
    metric_us=st.integers(0, UNREACHABLE_US),
    path=st.lists(ids, min_size=1, max_size=limits.MAX_HOPS).map(tuple),
    is_partial=st.booleans(),
)
withdrawals = st.builds(OriginWithdraw, ids, versions, versions, st.booleans(), versions)
offers = st.builds(
    Offer,
    names,
    st.lists(texts, max_size=messages.MAX_VERSIONS).map(tuple),
    st.integers(0, UNREACHABLE_US),
    st.integers(0, UNREACHABLE_US),
)
offer_changes = st.builds(
    OfferChanges,
    ids,
    versions,
    st.integers(0, 5),
    st.integers(5, messages.MAX_INTEGER),
    st.lists(st.builds(OfferEntry, offers, versions), max_size=3).map(tuple),
    st.lists(st.builds(RemovedOffer, names, versions), max_size=3).map(tuple),
    st.booleans(),
)
all_messages: st.SearchStrategy[RoutingMessage] = st.one_of(
    st.builds(
        Advert,
        number=numbers,
        acknowledged=numbers,
        entries=st.lists(announcements | withdrawals | offer_changes, max_size=4).map(tuple),
        begins=st.booleans(),
        ends=st.booleans(),
    ),
    st.builds(Ack, numbers),
    st.just(Solicit()),
    st.builds(Digest, numbers, numbers, st.integers(0, 2**64 - 1), numbers),
    st.builds(
        SeqnoRequests,
        st.lists(st.builds(SeqnoRequest, ids, versions, versions, st.integers(0, limits.MAX_HOPS)), max_size=3).map(
            tuple
        ),
    ),
)

NODE = "a" * 32
ANNOUNCE: list[Any] = [0, NODE, 1, 1, "site", "net", 10, [NODE], False]
WITHDRAW: list[Any] = [1, NODE, 1, 1, True]
OFFER: list[Any] = ["greeter", ["v1"], 1, 0, 4]
OFFERS: list[Any] = [2, NODE, 1, 3, 5, [OFFER], [["old", 5]], True]


def packed(value: object) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def advert(*entries: object) -> bytes:
    return packed([11, 1, 0, 3, [packed(entry) for entry in entries]])


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
    for fields in (ANNOUNCE, WITHDRAW, OFFERS, changed(OFFERS, 5, [changed(OFFER, index, value)])):
        try:
            messages.decode(advert(changed(fields, index, value)))
        except (Malformed, TooLarge):
            pass


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 3),
        (0, -1),
        (1, "short"),
        (1, "A" * 32),
        (1, 7),
        (2, -1),
        (2, True),
        (3, messages.MAX_INTEGER + 1),
        (4, "s" * 254),
        (5, None),
        (6, -1),
        (6, 1.5),
        (7, []),
        (7, [NODE] * (limits.MAX_HOPS + 1)),
        (7, ["nobody"]),
        (7, [[NODE]]),
        (7, NODE),
        (8, 1),
    ],
)
def test_announcement_out_of_bounds_is_malformed(index: int, value: object) -> None:
    messages.decode(advert(ANNOUNCE))
    with pytest.raises(Malformed):
        messages.decode(advert(changed(ANNOUNCE, index, value)))


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, "no spaces please"),
        (0, ""),
        (0, "~"),
        (1, ["v"] * (messages.MAX_VERSIONS + 1)),
        (1, ["v" * 254]),
        (1, [1]),
        (2, -1),
        (3, -1),
        (4, messages.MAX_INTEGER + 1),
        (4, "x"),
    ],
)
def test_offer_out_of_bounds_is_malformed(index: int, value: object) -> None:
    messages.decode(advert(OFFERS))
    with pytest.raises(Malformed):
        messages.decode(advert(changed(OFFERS, 5, [changed(OFFER, index, value)])))


@pytest.mark.parametrize(
    ("index", "value"), [(1, "x"), (2, -1), (3, 6), (4, -1), (5, {}), (6, [["~", 1]]), (6, [["old"]]), (7, 1)]
)
def test_change_of_offers_out_of_bounds_is_malformed(index: int, value: object) -> None:
    with pytest.raises(Malformed):
        messages.decode(advert(changed(OFFERS, index, value)))


def test_advert_with_one_invalid_entry_is_malformed() -> None:
    with pytest.raises(Malformed):
        messages.decode(advert(ANNOUNCE, WITHDRAW, ["?"]))
    with pytest.raises(Malformed):
        messages.decode(packed([11, 1, 0, 3, [ANNOUNCE]]))


def test_messages_of_earlier_versions_are_malformed() -> None:
    for kind in range(1, 7):
        with pytest.raises(Malformed):
            messages.decode(packed([kind, 1, 3, []]))


def test_additional_fields_of_a_later_version_are_ignored_but_part_of_the_checksum() -> None:
    later, known = (messages.decode(advert(fields)) for fields in ([*ANNOUNCE, "new", 7], ANNOUNCE))
    assert later == known
    assert isinstance(later, Advert)
    assert isinstance(known, Advert)
    one, other = later.entries[0], known.entries[0]
    assert isinstance(one, OriginAnnounce)
    assert isinstance(other, OriginAnnounce)
    assert one.checksum() != other.checksum()


def test_metric_above_the_maximum_is_infinite() -> None:
    message = messages.decode(advert(changed(ANNOUNCE, 6, 2**50)))
    assert isinstance(message, Advert)
    (entry,) = message.entries
    assert isinstance(entry, OriginAnnounce)
    assert entry.metric_us == UNREACHABLE_US


@given(announcements)
def test_checksum_is_equal_on_both_sides(announce: OriginAnnounce) -> None:
    message = messages.decode(messages.encode(Advert(number=1, entries=(announce,))))
    assert isinstance(message, Advert)
    (received,) = message.entries
    assert isinstance(received, OriginAnnounce)
    assert received.checksum() == announce.checksum()
    announce.release()
    assert announce.packed() == received.packed()


def test_checksums_of_lists_differ() -> None:
    found = {
        list_checksum(origin, incarnation, version)
        for origin in (NODE, "b" * 32)
        for incarnation in (1, 2, 1_764_435_600_000)
        for version in range(50)
    }
    assert len(found) == 300
    assert all(0 <= one < 2**64 for one in found)


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
