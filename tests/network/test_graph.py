from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.errors import Malformed
from micro_core.network.graph import MAX_AGE_S, Graph
from micro_core.network.messages import Close, Connect, NodeRecord, Peer, decode, encode

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


def test_a_line_is_seen_to_three_hops_and_no_further() -> None:
    graph = Graph(record(0, 1))
    graph.receive(tuple(record(number, number - 1, number + 1) for number in range(1, 6)), now=0.0)
    assert [(node.record.name, node.hops) for node in graph.nodes(0.0)] == [("n0", 0), ("n1", 1), ("n2", 2), ("n3", 3)]


def test_a_node_reached_by_two_ways_is_listed_once_with_the_shorter() -> None:
    graph = Graph(record(0, 1, 2))
    graph.receive((record(1, 0, 3), record(2, 0, 3), record(3, 1, 2)), now=0.0)
    assert [(node.record.name, node.hops) for node in graph.nodes(0.0)] == [("n0", 0), ("n1", 1), ("n2", 1), ("n3", 2)]


def test_only_a_newer_word_of_the_origin_is_news() -> None:
    graph = Graph(record(0, 1))
    assert graph.receive((record(1, 0, sequence=5),), now=0.0)
    assert not graph.receive((record(1, 0, sequence=5),), now=1.0)
    assert not graph.receive((record(1, 0, sequence=4),), now=1.0)
    assert graph.receive((record(1, 0, incarnation=2, sequence=1),), now=1.0)
    assert not graph.receive((record(1, 0, incarnation=1, sequence=9),), now=1.0)


def test_a_dead_node_does_not_live_on_by_being_repeated() -> None:
    graph, other = Graph(record(0, 1)), Graph(record(1, 0))
    graph.receive((record(1, 0, 2), record(2, 1)), now=0.0)
    other.receive((record(2, 1),), now=0.0)
    for second in range(int(MAX_AGE_S) + 1):
        now = float(second)
        graph.receive(tuple(entry for entry in other.records(now) if entry.id == node_id(2)), now)
        other.receive(tuple(entry for entry in graph.records(now) if entry.id == node_id(2)), now)
    graph.expire(MAX_AGE_S)
    assert node_id(2) not in {node.record.id for node in graph.nodes(MAX_AGE_S)}


def test_records_are_passed_on_with_the_age_they_have() -> None:
    graph = Graph(record(0, 1))
    graph.receive((record(1, 0, age_s=3.0),), now=10.0)
    passed = {entry.id: entry.age_s for entry in graph.records(now=14.0)}
    assert passed[node_id(1)] == pytest.approx(7.0)


def test_news_from_the_edge_of_the_radius_is_kept_but_not_told_on() -> None:
    graph = Graph(record(0, 1))
    told = graph.receive((record(1, 0, 2), record(2, 1, 3), record(3, 2)), now=0.0)
    assert {entry.name for entry in told} == {"n1", "n2"}
    assert {node.record.name for node in graph.nodes(0.0)} == {"n0", "n1", "n2", "n3"}


def test_close_does_not_touch_a_later_life_of_the_node() -> None:
    graph = Graph(record(0, 1))
    graph.receive((record(1, 0, incarnation=7),), now=0.0)
    assert not graph.forget(node_id(1), incarnation=6)
    assert graph.forget(node_id(1), incarnation=7)


def test_a_full_mesh_of_thirty_is_told_in_thirty_records() -> None:
    size = 30
    graph = Graph(record(0, *range(1, size)))
    graph.receive(tuple(record(number, *(n for n in range(size) if n != number)) for number in range(1, size)), now=0.0)
    assert len(graph.records(0.0)) == size


def test_messages_survive_the_wire() -> None:
    for message in (Connect(record=record(1, 2, 3)), Peer(records=(record(1), record(2, 1))), Close(incarnation=9)):
        assert [decode(payload) for payload in encode(message)] == [message]


def test_a_long_peer_message_goes_in_several_payloads_that_fit() -> None:
    records = tuple(record(number, *range(100)) for number in range(200))
    payloads = encode(Peer(records=records))
    assert len(payloads) > 1
    assert all(len(payload) <= 64 * 1024 for payload in payloads)
    received = [entry for payload in payloads for entry in decode(payload).records]  # type: ignore[union-attr]
    assert tuple(received) == records


def test_records_that_are_no_news_are_not_looked_at_further() -> None:
    graph = Graph(record(0, 1))
    graph.receive((record(1, 0, 2, sequence=5),), now=0.0)
    message = Peer(records=(record(0, 1), record(1, 0, sequence=5), record(2, 1), record(1, 0, sequence=6)))
    (payload,) = encode(message)
    assert decode(payload, graph.is_news) == Peer(records=message.records[2:])
    assert decode(payload) == message


@given(st.binary(max_size=200))
def test_garbage_is_malformed_and_nothing_else(payload: bytes) -> None:
    try:
        decode(payload, lambda node_id, version: node_id > "m" and version > (1, 1))
    except Malformed:
        return


@given(st.integers(0, 2**32))
def test_every_graph_within_reach_is_learned_by_flooding(seed: int) -> None:
    """Nodes of a random graph flood news; each then sees exactly what is within three hops."""
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
        news = graphs[to].receive(tuple(replace(entry) for entry in records), now=0.0)
        if news:
            pending.extend((to, other, tuple(news)) for other in near[to])
    for n in range(size):
        expected, ring = {n}, {n}
        for _ in range(3):
            ring = {other for member in ring for other in near[member]} - expected
            expected |= ring
        assert {node.record.id for node in graphs[n].nodes(0.0)} == {node_id(m) for m in expected}


def test_a_record_that_comes_before_the_one_that_leads_to_it_is_told_on_when_that_comes() -> None:
    graph = Graph(record(0, 1))
    far, near = record(2, 1), record(1, 0, 2)
    assert graph.receive((far,), now=0.0) == []
    assert graph.receive((near,), now=0.0) == [far, near]
    assert graph.receive((far, near), now=0.0) == graph.news() == []


def test_what_a_new_link_brings_within_reach_is_told_on() -> None:
    graph = Graph(record(0))
    other = record(1, 2)
    assert graph.receive((other,), now=0.0) == []
    graph.set_own(record(0, 1, sequence=2))
    assert graph.news() == [other]
