"""What is known of the network after messages were lost, doubled, reordered or forged."""

from __future__ import annotations

import random

from micro_mdns_registry.directory import GRACE_S, MAX_OWNERS, OWNER_MEMORY_S, Directory
from micro_mdns_registry.texts import MAX_STANDING, Beat

from micro_core.contract import CountersInMemory, Instance, RegistryEvent, RegistryEventKind

LEASE_S = 3.0


def instance(name: str = "1", version: str = "1", service: str = "greeter") -> Instance:
    return Instance(service=service, id=name, address="tcp://127.0.0.1:1", version=version)


def beat(number: int, next_sequence: int, *standing: int) -> Beat:
    return Beat(number=number, next_sequence=next_sequence, standing=frozenset(standing))


def directory() -> Directory:
    return Directory(CountersInMemory().add)


def kinds(events: list[RegistryEvent]) -> list[str]:
    return [event.kind.value for event in events]


def test_a_record_is_created_updated_and_deleted() -> None:
    known = directory()
    assert kinds(known.put("a", 1, instance(), LEASE_S, 0.0)) == ["created"]
    assert kinds(known.put("a", 2, instance(version="2"), LEASE_S, 0.0)) == ["updated"]
    assert [found.version for found in known.instances("greeter")] == ["2"]
    events, missing = known.beat("a", beat(1, 3), 0.0)
    assert (kinds(events), missing) == (["deleted"], [])
    assert events[0].instance == instance(version="2")
    assert known.instances() == []


def test_an_equal_record_under_a_new_number_is_no_event() -> None:
    known = directory()
    known.put("a", 1, instance(), LEASE_S, 0.0)
    assert known.put("a", 2, instance(), 2 * LEASE_S, 0.0) == []


def test_a_beat_renews_what_it_lists() -> None:
    known = directory()
    known.put("a", 1, instance(), LEASE_S, 0.0)
    known.beat("a", beat(1, 2, 1), 2.0)
    assert known.expire(LEASE_S + GRACE_S) == []
    assert known.next_expiry() == 2.0 + LEASE_S + GRACE_S
    assert kinds(known.expire(2.0 + LEASE_S + GRACE_S)) == ["deleted"]


def test_a_beat_names_what_was_missed() -> None:
    known = directory()
    known.put("a", 1, instance(), LEASE_S, 0.0)
    assert known.beat("a", beat(1, 4, 1, 3), 0.0) == ([], [3])
    assert known.beat("stranger", beat(1, 3, 1, 2), 0.0) == ([], [1, 2])


def test_a_late_beat_withdraws_nothing_newer() -> None:
    known = directory()
    known.put("a", 1, instance(), LEASE_S, 0.0)
    known.put("a", 2, instance("2"), LEASE_S, 0.0)
    assert known.beat("a", beat(1, 2, 1), 0.0) == ([], [])
    assert known.beat("a", beat(3, 3, 1, 2), 0.0) == ([], [])
    assert known.beat("a", beat(2, 3), 0.0) == ([], []), "older than the last: ignored"
    assert len(known.instances()) == 2


def test_a_late_copy_of_a_withdrawn_record_resurrects_nothing() -> None:
    known = directory()
    known.put("a", 1, instance(), LEASE_S, 0.0)
    known.beat("a", beat(1, 2), 0.0)
    assert not known.is_wanted("a", 1)
    known.expire(OWNER_MEMORY_S - 1)
    assert not known.is_wanted("a", 1)


def test_an_older_version_that_arrives_late_changes_nothing() -> None:
    known = directory()
    known.put("a", 2, instance(version="2"), LEASE_S, 0.0)
    assert known.put("a", 1, instance(version="1"), LEASE_S, 0.0) == []
    assert [found.version for found in known.instances()] == ["2"]


def test_of_two_owners_of_one_id_the_newer_claim_counts_and_the_older_takes_over_again() -> None:
    known = directory()
    known.put("a", 1, instance(version="a"), LEASE_S, 0.0)
    assert kinds(known.put("b", 1, instance(version="b"), LEASE_S, 0.0)) == ["updated"]
    known.beat("a", beat(1, 2, 1), 2.0)
    assert [found.version for found in known.instances()] == ["b"]
    events = known.expire(LEASE_S + GRACE_S)
    assert kinds(events) == ["updated"]
    assert [found.version for found in known.instances()] == ["a"]


def test_an_id_that_moves_to_another_service_is_deleted_there_and_created_here() -> None:
    known = directory()
    known.put("a", 1, instance(), LEASE_S, 0.0)
    events = known.put("a", 2, instance(service="other"), LEASE_S, 0.0)
    assert [(event.kind, event.instance and event.instance.service) for event in events] == [
        (RegistryEventKind.DELETED, "greeter"),
        (RegistryEventKind.CREATED, "other"),
    ]


def test_what_cannot_be_read_is_not_asked_for_again() -> None:
    known = directory()
    known.put_unreadable("a", 1, 0.0)
    assert known.beat("a", beat(1, 2, 1), 0.0) == ([], [])


def test_forged_owners_and_records_are_bounded_and_counted() -> None:
    counters = CountersInMemory()
    known = Directory(counters.add)
    for number in range(MAX_OWNERS + 10):
        known.beat(f"owner{number}", beat(1, 2, 1), 0.0)
    assert counters.values == {"mdns_records_refused": 10}
    for number in range(MAX_STANDING + 5):
        known.put("owner0", number + 1, instance(str(number)), LEASE_S, 0.0)
    assert counters.values == {"mdns_records_refused": 15}
    assert len(known.instances()) == MAX_STANDING
    known.expire(OWNER_MEMORY_S)
    assert known.is_wanted("owner0", 1)
    assert known.put("new", 1, instance("new"), LEASE_S, OWNER_MEMORY_S) != []


def test_a_listener_agrees_with_the_owner_after_any_loss_and_reordering() -> None:
    """The owner registers and withdraws at random; a third of all messages is lost and many come late."""
    for seed in range(200):
        chance = random.Random(seed)
        known, beats, next_sequence = directory(), 0, 1
        own: dict[str, tuple[int, Instance]] = {}
        sent: list[tuple[int, Instance | Beat]] = []
        for _ in range(40):
            name = str(chance.randrange(5))
            if chance.random() < 0.6:
                own[name] = (next_sequence, instance(name, str(next_sequence)))
                next_sequence += 1
            else:
                own.pop(name, None)
            beats += 1
            sent += own.values()
            sent.append((beats, beat(beats, next_sequence, *(sequence for sequence, _ in own.values()))))
            chance.shuffle(sent)
            while sent and chance.random() < 0.9:
                number, payload = sent.pop()
                if chance.random() < 0.33:
                    continue
                if isinstance(payload, Beat):
                    known.beat("a", payload, 0.0)
                elif known.is_wanted("a", number):
                    known.put("a", number, payload, LEASE_S, 0.0)
        _, missing = known.beat("a", beat(beats + 1, next_sequence, *(number for number, _ in own.values())), 0.0)
        by_number = dict(own.values())
        for number in missing:
            known.put("a", number, by_number[number], LEASE_S, 0.0)
        assert {found.id: found for found in known.instances()} == {n: i for n, (_, i) in own.items()}, f"seed {seed}"
