"""One routing engine: newer sequence numbers of unchanged routes, which few neighbours need, are sent on request."""

from __future__ import annotations

import random

from micro_core.routing.events import Effect, SeqnoRequest, SeqnoRequests
from micro_core.routing.rib_entry import RibEntry
from tests.routing.engine_harness import LEFT, RIGHT, EngineHarness, announce
from tests.routing.engine_network import ALPHABET

ORIGINS = [f"{one}{other}" * 16 for one in ALPHABET[:10] for other in ALPHABET[:10]]


def harness_with_newer_seqnos() -> EngineHarness:
    """Return a router that has just learned newer sequence numbers of a hundred unchanged routes."""
    harness = EngineHarness(LEFT, RIGHT)
    harness.receive_advert(LEFT, *[announce(origin, LEFT) for origin in ORIGINS])
    harness.run(10)
    harness.take_sent()
    harness.receive_advert(LEFT, *[announce(origin, LEFT, sequence=2) for origin in ORIGINS])
    return harness


def test_newer_sequence_numbers_without_a_request_are_not_sent() -> None:
    harness = harness_with_newer_seqnos()
    harness.run(60)
    assert harness.take_announced(RIGHT) == []


def test_requested_sequence_number_that_is_known_is_sent_at_once() -> None:
    harness = harness_with_newer_seqnos()
    harness.run(5)
    harness.receive(RIGHT, SeqnoRequests((SeqnoRequest(ORIGINS[3], 1, 1, 4),)))
    assert [(one.origin, one.sequence) for one in harness.take_announced(RIGHT)] == [(ORIGINS[3], 2)]


def test_newer_sequence_number_is_sent_along_with_another_change() -> None:
    harness = harness_with_newer_seqnos()
    harness.receive_advert(LEFT, announce(ORIGINS[7], LEFT, sequence=2, metric_us=500_000))
    harness.run(5)
    assert [(one.origin, one.sequence) for one in harness.take_announced(RIGHT)] == [(ORIGINS[7], 2)]


def test_update_of_an_alternative_has_the_result_of_a_selection() -> None:
    source = random.Random(5)
    costs = {"a": 100, "b": 200, "c": 300}
    shortcuts = 0
    for _ in range(3_000):
        sides = [RibEntry("o"), RibEntry("o")]
        limits = source.choice([(0, 10**9), (1, 900), (1, 300)])
        for peer in costs:
            if source.random() < 0.8:
                values = (source.randint(1, 2), source.randrange(100, 1_000), source.randrange(100, 1_000))
                for entry in sides:
                    set_candidate(entry, peer, *values)
        for entry in sides:
            entry.fd_seqno, entry.fd_metric_us = (1, limits[0]), limits[1]
            entry.select(costs, "", [])
        changed = source.choice([*costs])
        values = (source.randint(1, 2), source.randrange(100, 1_000), source.randrange(100, 1_000))
        is_withdrawn = source.random() < 0.2
        results = []
        for entry in sides:
            set_candidate(entry, changed, *values)
            if is_withdrawn:
                entry.adjacencies[changed].path = ()
            effects: list[Effect] = []
            if entry is sides[1] or not entry.update_alternative(costs, changed, effects):
                entry.select(costs, changed, effects)
            elif entry is sides[0]:
                shortcuts += 1
            installed = {peer: one.is_installed for peer, one in entry.adjacencies.items()}
            results.append((entry.selected, installed, effects))
        assert results[0] == results[1]
    assert shortcuts > 500, "the shortcut was taken"


def set_candidate(entry: RibEntry, peer: str, sequence: int, metric_us: int, min_metric_us: int) -> None:
    adjacency = entry.adjacency(peer)
    adjacency.path, adjacency.seqno = ("o", peer), (1, sequence)
    adjacency.metric_us, adjacency.min_metric_us = metric_us, min(metric_us, min_metric_us)
