"""The graph of nodes: distances, versions, expiry and flooding; the messages that carry it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.errors import Malformed
from micro_core.network import graph as graph_module
from micro_core.network.graph import MAX_AGE_S, Graph
from micro_core.network.messages import Close, Connect, NodeRecord, Update, decode, encode

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def node_id(number: int) -> str:
    return ALPHABET[number % 32] * 31 + ALPHABET[number // 32]


def record(number: int, *neighbours: int, incarnation: int = 1, sequence: int = 1, age_s: float = 0.0) -> NodeRecord:
    return NodeRecord(
        id=node_id(number),
        name=f"n{number}",
        site="test",
        addresses=(f"quic://127.0.0.1:{8000 + number}",),
        incarnation=incarnation,
        sequence=sequence,
        neighbours=tuple((node_id(other), 100) for other in neighbours),
        age_s=age_s,
    )


def test_chain_of_nodes_is_visible_up_to_three_hops() -> None:
    graph = Graph(record(0, 1))
    graph.receive(tuple(record(number, number - 1, number + 1) for number in range(1, 6)), now=0.0)
    assert [(node.record.name, node.hops) for node in graph.nodes(0.0)] == [("n0", 0), ("n1", 1), ("n2", 2), ("n3", 3)]


def test_node_with_two_paths_is_listed_once_with_the_shorter_distance() -> None:
    graph = Graph(record(0, 1, 2))
    graph.receive((record(1, 0, 3), record(2, 0, 3), record(3, 1, 2)), now=0.0)
    assert [(node.record.name, node.hops) for node in graph.nodes(0.0)] == [("n0", 0), ("n1", 1), ("n2", 1), ("n3", 2)]


def test_only_newer_records_of_the_origin_are_changes() -> None:
    graph = Graph(record(0, 1))
    assert graph.receive((record(1, 0, sequence=5),), now=0.0)
    assert not graph.receive((record(1, 0, sequence=5),), now=1.0)
    assert not graph.receive((record(1, 0, sequence=4),), now=1.0)
    assert graph.receive((record(1, 0, incarnation=2, sequence=1),), now=1.0)
    assert not graph.receive((record(1, 0, incarnation=1, sequence=9),), now=1.0)


def test_record_expires_even_if_other_nodes_repeat_it() -> None:
    graph, other = Graph(record(0, 1)), Graph(record(1, 0))
    graph.receive((record(1, 0, 2), record(2, 1)), now=0.0)
    other.receive((record(2, 1),), now=0.0)
    for second in range(int(MAX_AGE_S) + 1):
        now = float(second)
        graph.receive(tuple(entry for entry in other.records(now) if entry.id == node_id(2)), now)
        other.receive(tuple(entry for entry in graph.records(now) if entry.id == node_id(2)), now)
    graph.expire(MAX_AGE_S)
    assert node_id(2) not in {node.record.id for node in graph.nodes(MAX_AGE_S)}


def test_records_are_passed_on_with_their_current_age() -> None:
    graph = Graph(record(0, 1))
    graph.receive((record(1, 0, age_s=3.0),), now=10.0)
    passed = {entry.id: entry.age_s for entry in graph.records(now=14.0)}
    assert passed[node_id(1)] == pytest.approx(7.0)


def test_record_at_the_edge_of_the_radius_is_stored_but_not_passed_on() -> None:
    graph = Graph(record(0, 1))
    changes = graph.receive((record(1, 0, 2), record(2, 1, 3), record(3, 2)), now=0.0)
    assert {entry.name for entry in changes} == {"n1", "n2"}
    assert {node.record.name for node in graph.nodes(0.0)} == {"n0", "n1", "n2", "n3"}


def test_close_does_not_remove_a_later_incarnation() -> None:
    graph = Graph(record(0, 1))
    graph.receive((record(1, 0, incarnation=7),), now=0.0)
    assert not graph.forget(node_id(1), incarnation=6)
    assert graph.forget(node_id(1), incarnation=7)


def test_full_mesh_of_thirty_nodes_is_described_by_thirty_records() -> None:
    size = 30
    graph = Graph(record(0, *range(1, size)))
    graph.receive(tuple(record(number, *(n for n in range(size) if n != number)) for number in range(1, size)), now=0.0)
    assert len(graph.records(0.0)) == size


def test_decoded_messages_equal_the_encoded_ones() -> None:
    for message in (Connect(record=record(1, 2, 3)), Update(records=(record(1), record(2, 1))), Close(incarnation=9)):
        assert [decode(payload) for payload in encode(message)] == [message]


def test_long_update_is_split_into_payloads_within_the_size_limit() -> None:
    records = tuple(record(number, *range(100)) for number in range(200))
    payloads = encode(Update(records=records))
    assert len(payloads) > 1
    assert all(len(payload) <= 64 * 1024 for payload in payloads)
    received = [entry for payload in payloads for entry in decode(payload).records]  # type: ignore[union-attr]
    assert tuple(received) == records


def test_records_that_are_not_newer_are_skipped_by_decode() -> None:
    graph = Graph(record(0, 1))
    graph.receive((record(1, 0, 2, sequence=5),), now=0.0)
    message = Update(records=(record(0, 1), record(1, 0, sequence=5), record(2, 1), record(1, 0, sequence=6)))
    (payload,) = encode(message)
    assert decode(payload, graph.is_newer) == Update(records=message.records[2:])
    assert decode(payload) == message


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_malformed(payload: bytes) -> None:
    try:
        decode(payload, lambda node_id, version: node_id > "m" and version > (1, 1))
    except Malformed:
        return


@given(st.integers(0, 2**32))
def test_flooding_gives_every_node_the_graph_within_three_hops(seed: int) -> None:
    """The nodes of a random graph flood their changes; each then stores exactly the nodes within three hops."""
    source = random.Random(seed)
    size = source.randrange(2, 9)
    edges = {(a, b) for a in range(size) for b in range(a + 1, size) if source.random() < 0.4}
    near = {n: {b for a, b in edges if a == n} | {a for a, b in edges if b == n} for n in range(size)}
    graphs = {n: Graph(record(n, *sorted(near[n]))) for n in range(size)}
    pending: list[tuple[int, int, tuple[NodeRecord, ...]]] = [
        (n, to, (graphs[n].own,)) for n in range(size) for to in near[n]
    ]
    while pending:
        _, to, records = pending.pop(source.randrange(len(pending)))
        changes = graphs[to].receive(tuple(replace(entry) for entry in records), now=0.0)
        if changes:
            pending.extend((to, other, tuple(changes)) for other in near[to])
    for n in range(size):
        expected, ring = {n}, {n}
        for _ in range(3):
            ring = {other for node in ring for other in near[node]} - expected
            expected |= ring
        assert {node.record.id for node in graphs[n].nodes(0.0)} == {node_id(m) for m in expected}


def test_record_out_of_reach_is_passed_on_once_a_connecting_record_arrives() -> None:
    graph = Graph(record(0, 1))
    far, near = record(2, 1), record(1, 0, 2)
    assert graph.receive((far,), now=0.0) == []
    assert graph.receive((near,), now=0.0) == [far, near]
    assert graph.receive((far, near), now=0.0) == graph.pop_changes() == []


def test_record_is_passed_on_once_a_new_link_brings_it_within_reach() -> None:
    graph = Graph(record(0))
    other = record(1, 2)
    assert graph.receive((other,), now=0.0) == []
    graph.set_own(record(0, 1, sequence=2))
    assert graph.pop_changes() == [other]


def test_records_beyond_the_maximum_are_refused_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "MAX_NODES", 2)
    graph = Graph(record(0, 1))
    graph.receive((record(1, 0), record(2, 1), record(3, 2), record(4, 3)), now=0.0)
    assert graph.refused == 2
    graph.receive((record(1, 0, sequence=2),), now=0.0)
    assert graph.refused == 2, "an update of a stored record is accepted"
