"""Tests without a server: URLs, key names, messages, the directory, errors, pauses."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from micro_redis_registry import own_records
from micro_redis_registry.addresses import Layout, ServerAddress, parse_address
from micro_redis_registry.backoff import MAX_PAUSE_S, Backoff
from micro_redis_registry.directory import Directory
from micro_redis_registry.encoding import Change, decode_change, decode_record, encode_record
from micro_redis_registry.errors import to_contract_error
from micro_redis_registry.namespace import make_namespace
from redis import exceptions as library

from micro_core.contract import (
    CountersInMemory,
    Endpoint,
    Forbidden,
    Instance,
    InternalError,
    Malformed,
    MicroError,
    OptionError,
    Overloaded,
    RegistryEvent,
    Unauthorized,
    Unreachable,
    check_instance,
)

MakeInstance = Callable[..., Instance]

# ------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", ServerAddress(hosts=(("h", 6379),))),
        ("redis://[::1]:7/3", ServerAddress(hosts=(("::1", 7),), database=3)),
        (
            "rediss://me:p%40ss%2F@h:1",
            ServerAddress(hosts=(("h", 1),), is_tls=True, username="me", password="p@ss/"),
        ),
        ("redis://:secret@h", ServerAddress(hosts=(("h", 6379),), password="secret")),
        ("unix:///run/redis.sock?db=2", ServerAddress(path="/run/redis.sock", database=2)),
        (
            "redis+sentinel://a,b:7/master/4",
            ServerAddress(layout=Layout.SENTINEL, hosts=(("a", 26379), ("b", 7)), master="master", database=4),
        ),
        (
            "rediss+cluster://me:pw@a:1,b:2",
            ServerAddress(layout=Layout.CLUSTER, hosts=(("a", 1), ("b", 2)), is_tls=True, username="me", password="pw"),
        ),
    ],
)
def test_url_is_parsed(url: str, expected: ServerAddress) -> None:
    assert parse_address(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:6379",
        "http://h",
        "redis://",
        "redis://h:0",
        "redis://h:secret",
        "redis://a,b",
        "redis://h/x",
        "redis://h/1/2",
        "redis://h?db=1",
        "unix://",
        "unix:///path?password=secret",
        "redis+sentinel://h",
        "redis+cluster://h/1",
        "redis+other://h",
        "redis+cluster://" + ",".join(f"h{number}" for number in range(65)),
        "redis://[::1",
    ],
)
def test_invalid_url_is_rejected_without_being_quoted(url: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_address(url)
    assert "redis://host" in caught.value.hint
    assert "=secret" not in str(caught.value)


def test_displayed_address_has_no_password() -> None:
    for url in ("redis://u:secret@h/1", "rediss+cluster://u:secret@a,b", "redis+sentinel://:secret@a/m"):
        address = parse_address(url)
        assert "secret" not in f"{address} {address!r}"
    assert str(parse_address("rediss+sentinel://a,[::1]:5/m/2")) == "rediss+sentinel://a:26379,[::1]:5/m"


def test_keys_of_a_namespace_share_a_hash_tag_and_differ_between_sites() -> None:
    def names(network: str, site: str) -> set[str]:
        namespace = make_namespace(prefix="micro", namespace="", network=network, site=site, database=0)
        keys = {namespace.index, namespace.feed, namespace.record("x{y}"), namespace.service("a.b")}
        assert all(key.partition("{")[2].partition("}")[0] == f"{network}/{site}" for key in keys)
        return keys

    assert not names("go.micro", "eu") & names("go.micro", "us")
    assert not names("a/b", "c") & names("a", "b-c")


# --------------------------------------------------------------------------- records and messages


def test_record_survives_a_round_trip_and_equal_records_have_equal_bytes(make_instance: MakeInstance) -> None:
    instance = make_instance("ключ-日本", zone="å", a="b")
    same = make_instance("ключ-日本", a="b", zone="å")
    assert encode_record(instance) == encode_record(same)
    assert decode_record(encode_record(instance), instance.id) == instance
    described = Instance(
        service="s", id="1", address="tcp://h:1", endpoints=(Endpoint(name="A.B", request={"type": "object"}),)
    )
    assert decode_record(encode_record(described), "1") == described


async def test_renewed_record_is_checked_and_encoded_once(
    make_instance: MakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answering:
        timeout_s = 1.0

        async def run(self, script: object, keys: object, arguments: object) -> list[object]:
            return [1_000, b"stored", 0, 0, 0, 0, 0]

    checks: list[Instance] = []

    def check(source: Instance) -> Instance:
        checks.append(source)
        return check_instance(source)

    monkeypatch.setattr(own_records, "check_instance", check)
    records = own_records.OwnRecords(
        server=Answering(),  # type: ignore[arg-type]
        namespace=make_namespace(prefix="micro", namespace="", network="n", site="s", database=0),
        owner="owner",
        context=SimpleNamespace(clock=SimpleNamespace(now=lambda: 5.0), counters=CountersInMemory()),  # type: ignore[arg-type]
    )
    metadata = {"zone": "a"}
    first = Instance(service="s", id="1", address="tcp://h:1", metadata=metadata)
    for _ in range(3):
        await records.register(first, *records.checked(first), 30.0)
    assert len(checks) == 1
    second = make_instance("other")
    assert json.loads(records.checked(second)[1])["id"] == second.id
    metadata["zone"] = "b"
    assert json.loads(records.checked(first)[1])["metadata"] == {"zone": "b"}
    assert len(checks) == 3


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b"1" * 300_000,
        b'{"service":"s","id":"other","address":"a"}',
    ],
)
def test_invalid_record_is_malformed(encoded: bytes) -> None:
    with pytest.raises(Malformed):
        decode_record(encoded, "1")


@given(st.one_of(st.binary(max_size=200), st.lists(st.binary(max_size=10), max_size=9).map(b"\n".join), st.integers()))
def test_arbitrary_message_is_a_change_or_malformed(message: object) -> None:
    try:
        assert isinstance(decode_change(message), Change)
    except Malformed:
        return


def test_message_with_a_multi_line_record_is_decoded() -> None:
    change = decode_change(b'12\nput\n1500\nme\nsvc\nthe id\n{"a":\n1}')
    assert change == Change(
        sequence=12, kind="put", lease_s=1.5, owner="me", service="svc", id="the id", record=b'{"a":\n1}'
    )


# -------------------------------------------------------------------------------------- directory


class VersionedDirectory:
    """A directory whose records are identified by version numbers."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.inner = Directory(lambda name: self.counts.update([name]))

    def page(self, sequence: int, *records: tuple[str, int, str], hold_until: float = 10.0) -> list[str]:
        self.inner.begin(sequence)
        events = [
            event
            for name, number, version in records
            for event in self.inner.put_page(name, number, encoded_record(name, version))
        ]
        self.inner.end(hold_until=hold_until)
        return summaries(events)

    def put(self, name: str, sequence: int, version: str) -> list[str]:
        return summaries(self.inner.put(name, sequence, encoded_record(name, version)))

    def remove(self, name: str, sequence: int) -> list[str]:
        return summaries(self.inner.remove(name, sequence))


def encoded_record(name: str, version: str) -> bytes:
    return json.dumps({"service": "s", "id": name, "address": "tcp://h:1", "version": version}).encode()


def summaries(events: Iterable[RegistryEvent]) -> list[str]:
    return [f"{event.kind.value} {event.instance.id} {event.instance.version}" for event in events if event.instance]


def test_pages_and_feed_are_merged_into_one_sequence_of_events() -> None:
    directory = VersionedDirectory()
    assert directory.page(5, ("a", 3, "1"), ("b", 5, "1")) == ["created a 1", "created b 1"]
    assert directory.put("a", 4, "0") == [], "the pages contain this or a newer change"
    assert directory.put("a", 6, "2") == ["updated a 2"]
    assert directory.put("a", 7, "2") == [], "an equal record causes no event"
    assert directory.remove("b", 8) == ["deleted b 1"]
    assert directory.remove("b", 9) == []
    assert directory.put("b", 10, "3") == ["created b 3"]
    assert directory.inner.sequence == 10


def test_feed_does_not_undo_a_newer_page() -> None:
    directory = VersionedDirectory()
    # After the first page, a changed at 6 and b was created at 7: a later page has both, and the feed reports both again.
    assert directory.page(5, ("a", 6, "2"), ("b", 7, "1")) == ["created a 2", "created b 1"]
    assert directory.put("a", 6, "2") == []
    assert directory.put("b", 7, "1") == []
    assert directory.remove("b", 8) == ["deleted b 1"]


def test_id_on_two_pages_uses_the_later_record() -> None:
    directory = VersionedDirectory()
    assert directory.page(5, ("a", 4, "2"), ("a", 3, "1")) == ["created a 2"]
    assert directory.page(9, ("a", 8, "3"), ("a", 7, "4")) == ["updated a 3"]


def test_lost_record_is_held_until_its_owner_restores_it() -> None:
    directory = VersionedDirectory()
    directory.page(100, ("a", 90, "1"), ("b", 91, "1"), ("c", 92, "1"))
    # The clock of the server went back together with its data, so the numbers are small again.
    assert directory.page(0, hold_until=10.0) == []
    assert directory.inner.drop_expired(9.0) == []
    assert directory.put("a", 1, "1") == [], "restored without an event"
    assert directory.put("b", 2, "2") == ["updated b 2"]
    assert summaries(directory.inner.drop_expired(10.0)) == ["deleted c 1"]
    assert directory.inner.drop_expired(99.0) == []
    assert {instance.id for instance in directory.inner.instances()} == {"a", "b"}


def test_deregistration_of_a_held_record_is_reported_immediately() -> None:
    directory = VersionedDirectory()
    directory.page(100, ("a", 90, "1"))
    directory.page(3, hold_until=10.0)
    assert directory.remove("a", 4) == ["deleted a 1"]
    assert directory.inner.drop_expired(10.0) == []


def test_invalid_data_in_place_of_a_record_is_counted_and_removes_the_record() -> None:
    directory = VersionedDirectory()
    directory.page(1, ("a", 1, "1"))
    assert summaries(directory.inner.put("a", 2, b"garbage")) == ["deleted a 1"]
    assert summaries(directory.inner.put("b", 3, b"garbage")) == []
    assert directory.counts == {"redis_garbage": 2}


def test_records_over_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("micro_redis_registry.directory.MAX_RECORDS", 2)
    directory = VersionedDirectory()
    assert directory.page(1, ("a", 1, "1"), ("b", 1, "1"), ("c", 1, "1")) == ["created a 1", "created b 1"]
    assert directory.counts == {"redis_records_over_limit": 1}
    assert directory.put("a", 2, "2") == ["updated a 2"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 3)), max_size=30), st.data())
def test_feed_converges_to_the_server_state_whenever_the_pages_are_read(
    changes: list[tuple[str, bool, int]], data: st.DataObject
) -> None:
    """The history of the server is a list of changes; pages with one id each are read at random points of it."""
    first = data.draw(st.integers(0, len(changes)))
    directory = VersionedDirectory()
    directory.inner.begin(first)
    stored: dict[str, bytes] = {}
    numbers: dict[str, int] = {}
    at = 0

    def apply_until(end: int) -> None:
        nonlocal at
        for name, is_put, version in changes[at:end]:
            at += 1
            stored.pop(name, None)
            if is_put:
                stored[name], numbers[name] = encoded_record(name, str(version)), at
        at = max(at, end)

    apply_until(first)
    for name in "abc":
        apply_until(data.draw(st.integers(at, len(changes))))
        if name in stored:
            directory.inner.put_page(name, numbers[name], stored[name])
    directory.inner.end(hold_until=0.0)
    apply_until(len(changes))
    for number, (name, is_put, version) in enumerate(changes, start=1):
        if is_put:
            directory.put(name, number, str(version))
        else:
            directory.remove(name, number)
    assert {instance.id: instance.version for instance in directory.inner.instances()} == {
        name: json.loads(encoded)["version"] for name, encoded in stored.items()
    }


# ------------------------------------------------------------------------------ errors and pauses


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (library.AuthenticationError("invalid username-password pair"), Unauthorized, "redis.password"),
        (library.ResponseError("WRONGPASS invalid"), Unauthorized, "redis.password"),
        (library.NoPermissionError("no"), Forbidden, "ACL SETUSER"),
        (
            library.ResponseError("Error running script: @user_script: 9: OOM command not allowed"),
            Overloaded,
            "maxmemory",
        ),
        (library.ConnectionError("max number of clients reached"), Overloaded, "maxclients"),
        (library.BusyLoadingError("loading"), Unreachable, "wait"),
        (library.ReadOnlyError("no"), Unreachable, "replica"),
        (library.ClusterDownError("down"), Unreachable, "CLUSTER INFO"),
        (library.MasterDownError("down"), Unreachable, "sentinels"),
        (library.ResponseError("MISCONF Redis is configured to save"), Unreachable, "disk"),
        (library.TimeoutError("slow"), Unreachable, "overloaded"),
        (TimeoutError(), Unreachable, "overloaded"),
        (library.ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED]"), Unreachable, "redis.ca_file"),
        (library.ConnectionError("[SSL: WRONG_VERSION_NUMBER]"), Unreachable, "instead of rediss"),
        (library.ConnectionError("refused"), Unreachable, "redis.url"),
        (library.SlotNotCoveredError("slot"), Unreachable, "redis.url"),
        (library.ResponseError("ERR unknown command"), InternalError, "Redis 5"),
    ],
)
def test_library_errors_are_translated_to_contract_errors(error: Exception, kind: type[MicroError], hint: str) -> None:
    failure = to_contract_error(error, "redis://h:1")
    assert type(failure) is kind
    assert failure.at == "redis://h:1"
    assert hint in failure.hint


def test_pauses_double_up_to_a_limit_and_are_randomized() -> None:
    backoff = Backoff(random.Random(1))
    pauses = [backoff.next_s() for _ in range(10)]
    assert pauses[0] <= 0.05
    assert all(MAX_PAUSE_S / 2 <= pause <= MAX_PAUSE_S for pause in pauses[5:])
    assert len(set(pauses)) == len(pauses)
    backoff.reset()
    assert backoff.next_s() <= 0.05
