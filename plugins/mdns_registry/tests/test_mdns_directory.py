"""Tests of the directory after messages were lost, duplicated, reordered or forged."""

from __future__ import annotations

import random

from micro_mdns_registry.directory import GRACE_S, MAX_OWNERS, OWNER_RETENTION_S, Directory
from micro_mdns_registry.txt_records import MAX_RECORDS_PER_OWNER, Heartbeat

from micro_core.contract import CountersInMemory, Instance, RegistryEvent, RegistryEventKind

LEASE_S = 3.0


def instance(name: str = "1", version: str = "1", service: str = "greeter") -> Instance:
    return Instance(service=service, id=name, address="tcp://127.0.0.1:1", version=version)


def heartbeat(number: int, next_sequence: int, *listed: int) -> Heartbeat:
    return Heartbeat(number=number, next_sequence=next_sequence, records=frozenset(listed))


def directory() -> Directory:
    return Directory(CountersInMemory().add)


def kinds(events: list[RegistryEvent]) -> list[str]:
    return [event.kind.value for event in events]


def test_record_is_created_updated_and_deleted() -> None:
    records = directory()
    assert kinds(records.put("a", 1, instance(), LEASE_S, 0.0)) == ["created"]
    assert kinds(records.put("a", 2, instance(version="2"), LEASE_S, 0.0)) == ["updated"]
    assert [found.version for found in records.instances("greeter")] == ["2"]
    events, missing = records.apply_heartbeat("a", heartbeat(1, 3), 0.0)
    assert (kinds(events), missing) == (["deleted"], [])
    assert events[0].instance == instance(version="2")
    assert records.instances() == []


def test_equal_record_with_a_new_number_causes_no_event() -> None:
    records = directory()
    records.put("a", 1, instance(), LEASE_S, 0.0)
    assert records.put("a", 2, instance(), 2 * LEASE_S, 0.0) == []


def test_heartbeat_renews_the_listed_records() -> None:
    records = directory()
    records.put("a", 1, instance(), LEASE_S, 0.0)
    records.apply_heartbeat("a", heartbeat(1, 2, 1), 2.0)
    assert records.expire(LEASE_S + GRACE_S) == []
    assert records.next_expiry() == 2.0 + LEASE_S + GRACE_S
    assert kinds(records.expire(2.0 + LEASE_S + GRACE_S)) == ["deleted"]


def test_heartbeat_reveals_missing_records() -> None:
    records = directory()
    records.put("a", 1, instance(), LEASE_S, 0.0)
    assert records.apply_heartbeat("a", heartbeat(1, 4, 1, 3), 0.0) == ([], [3])
    assert records.apply_heartbeat("other", heartbeat(1, 3, 1, 2), 0.0) == ([], [1, 2])


def test_delayed_heartbeat_withdraws_no_newer_record() -> None:
    records = directory()
    records.put("a", 1, instance(), LEASE_S, 0.0)
    records.put("a", 2, instance("2"), LEASE_S, 0.0)
    assert records.apply_heartbeat("a", heartbeat(1, 2, 1), 0.0) == ([], [])
    assert records.apply_heartbeat("a", heartbeat(3, 3, 1, 2), 0.0) == ([], [])
    assert records.apply_heartbeat("a", heartbeat(2, 3), 0.0) == ([], []), (
        "a heartbeat that is older than the latest one is ignored"
    )
    assert len(records.instances()) == 2


def test_delayed_copy_of_a_withdrawn_record_is_ignored() -> None:
    records = directory()
    records.put("a", 1, instance(), LEASE_S, 0.0)
    records.apply_heartbeat("a", heartbeat(1, 2), 0.0)
    assert not records.is_wanted("a", 1)
    records.expire(OWNER_RETENTION_S - 1)
    assert not records.is_wanted("a", 1)


def test_delayed_older_version_is_ignored() -> None:
    records = directory()
    records.put("a", 2, instance(version="2"), LEASE_S, 0.0)
    assert records.put("a", 1, instance(version="1"), LEASE_S, 0.0) == []
    assert [found.version for found in records.instances()] == ["2"]


def test_latest_registration_of_an_id_is_used_and_the_other_takes_over_after_it() -> None:
    records = directory()
    records.put("a", 1, instance(version="a"), LEASE_S, 0.0)
    assert kinds(records.put("b", 1, instance(version="b"), LEASE_S, 0.0)) == ["updated"]
    records.apply_heartbeat("a", heartbeat(1, 2, 1), 2.0)
    assert [found.version for found in records.instances()] == ["b"]
    events = records.expire(LEASE_S + GRACE_S)
    assert kinds(events) == ["updated"]
    assert [found.version for found in records.instances()] == ["a"]


def test_instance_that_moves_to_another_service_is_deleted_and_created() -> None:
    records = directory()
    records.put("a", 1, instance(), LEASE_S, 0.0)
    events = records.put("a", 2, instance(service="other"), LEASE_S, 0.0)
    assert [(event.kind, event.instance and event.instance.service) for event in events] == [
        (RegistryEventKind.DELETED, "greeter"),
        (RegistryEventKind.CREATED, "other"),
    ]


def test_unreadable_record_is_not_queried_again() -> None:
    records = directory()
    records.put_unreadable("a", 1, 0.0)
    assert records.apply_heartbeat("a", heartbeat(1, 2, 1), 0.0) == ([], [])


def test_forged_owners_and_records_are_limited_and_counted() -> None:
    counters = CountersInMemory()
    records = Directory(counters.add)
    for number in range(MAX_OWNERS + 10):
        records.apply_heartbeat(f"owner{number}", heartbeat(1, 2, 1), 0.0)
    assert counters.values == {"mdns_records_refused": 10}
    for number in range(MAX_RECORDS_PER_OWNER + 5):
        records.put("owner0", number + 1, instance(str(number)), LEASE_S, 0.0)
    assert counters.values == {"mdns_records_refused": 15}
    assert len(records.instances()) == MAX_RECORDS_PER_OWNER
    records.expire(OWNER_RETENTION_S)
    assert records.is_wanted("owner0", 1)
    assert records.put("new", 1, instance("new"), LEASE_S, OWNER_RETENTION_S) != []


def test_directory_matches_the_owner_after_loss_and_reordering() -> None:
    """The owner registers and withdraws records at random. A third of all messages is lost, and many are delayed."""
    for seed in range(200):
        source = random.Random(seed)
        records, heartbeats, next_sequence = directory(), 0, 1
        own: dict[str, tuple[int, Instance]] = {}
        sent: list[tuple[int, Instance | Heartbeat]] = []
        for _ in range(40):
            name = str(source.randrange(5))
            if source.random() < 0.6:
                own[name] = (next_sequence, instance(name, str(next_sequence)))
                next_sequence += 1
            else:
                own.pop(name, None)
            heartbeats += 1
            sent += own.values()
            sent.append((heartbeats, heartbeat(heartbeats, next_sequence, *(sequence for sequence, _ in own.values()))))
            source.shuffle(sent)
            while sent and source.random() < 0.9:
                number, payload = sent.pop()
                if source.random() < 0.33:
                    continue
                if isinstance(payload, Heartbeat):
                    records.apply_heartbeat("a", payload, 0.0)
                elif records.is_wanted("a", number):
                    records.put("a", number, payload, LEASE_S, 0.0)
        _, missing = records.apply_heartbeat(
            "a", heartbeat(heartbeats + 1, next_sequence, *(number for number, _ in own.values())), 0.0
        )
        by_number = dict(own.values())
        for number in missing:
            records.put("a", number, by_number[number], LEASE_S, 0.0)
        assert {found.id: found for found in records.instances()} == {n: i for n, (_, i) in own.items()}, f"seed {seed}"
