"""What the benchmark concludes from the reports of clients and nodes."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.wan.observations import (
    Call,
    NodeSample,
    Observations,
    components,
    doubled_messages,
    lost_messages,
    mean_rates,
    rates,
    slow_until,
    state_at,
    time_to_calm,
    time_to_one,
)


def sample(at: float, node: str, *links: str, missing: int = 0, sent: int = 0) -> NodeSample:
    return NodeSample(at, node, node, frozenset(links), missing, {"sent": sent})


def report(**events: Any) -> dict[str, Any]:
    return {
        "calls": [],
        "published": [],
        "received": [],
        "samples": [],
        "poll_failures": [],
        "max_lag_s": 0.0,
        **events,
    }


def test_link_counts_if_both_ends_report_it() -> None:
    found = components([sample(1, "a", "b"), sample(1, "b", "a", "c"), sample(1, "c"), sample(1, "d", "gone")])
    assert found[0] == {"a", "b"}
    assert sorted(map(sorted, found[1:])) == [["c"], ["d"]]


def test_network_is_one_only_if_all_nodes_answer_and_know_all_services() -> None:
    linked = [sample(1, "a", "b"), sample(1, "b", "a")]
    assert state_at(linked, 2, ("a", "b")).is_one
    assert state_at(linked, 20, ("a", "b")).reason == "nodes do not answer"
    assert state_at([*linked, sample(2, "b", "a", missing=1)], 2, ("a", "b")).reason == "missing routes"
    assert state_at([*linked, sample(2, "b")], 2, ("a", "b")).reason == "several components"
    assert state_at(linked, 2, ("a", "b", "c")).silent == ("c",)


def test_time_to_one_ends_when_the_network_stays_one() -> None:
    together = [(1.0, "b"), (2.0, ""), (5.0, "b"), (6.0, "b")]
    samples = [one for at, peer in together for one in (sample(at, "a", peer), sample(at + 0.1, "b", "a"))]
    assert time_to_one(samples, 0.5, 7.0, ("a", "b")) == 4.5
    assert time_to_one(samples, 0.5, 4.5, ("a", "b")) is None


def test_short_interruption_does_not_count_as_apart() -> None:
    together = [(1.0, "b"), (2.0, ""), (3.0, "b"), (9.0, "b")]
    samples = [one for at, peer in together for one in (sample(at, "a", peer), sample(at + 0.1, "b", "a"))]
    assert time_to_one(samples, 0.5, 3.5, ("a", "b")) == pytest.approx(0.6)
    assert time_to_one(samples, 0.5, 2.5, ("a", "b")) == pytest.approx(0.6)


def test_rate_of_a_restarted_node_begins_at_zero() -> None:
    samples = [sample(0, "a", sent=100), sample(2, "a", sent=140), sample(3, "a", sent=5), sample(4, "a", sent=5)]
    found = rates(samples, "sent")
    assert [rate.per_s for rate in found] == [20, 5, 0]
    assert time_to_calm(found, 0.5, 20) == 1.5
    assert time_to_calm(found, 0.5, 21) == 0.0
    assert mean_rates(found, 0, 4) == {"a": 45 / 4}


def test_messages_are_lost_per_cloud_and_doubled_per_subscriber() -> None:
    seen = Observations()
    published = [(1.0, "t", 1, ""), (2.0, "t", 2, "Unreachable no broker"), (9.0, "t", 3, "")]
    seen.add(1, report(published=published, received=[(1.1, "t", "all", 1, 1), (1.1, "t", "all", 1, 1)]))
    seen.add(2, report(received=[(1.2, "t", "all", 1, 1), (1.2, "t", "queue", 1, 1)]))
    seen.add(3, report())
    assert [(one.source, one.target) for one in lost_messages(seen, (1, 2, 3), 0, 5)] == [(1, 3)]
    assert doubled_messages(seen) == 1


def test_slow_path_is_left_after_the_last_slow_window() -> None:
    def call(at: float, took_s: float, failure: str = "") -> Call:
        return Call(at, 1, "s", failure, took_s, 2)

    calls = [call(10.1, 0.4), call(11, 0.5), call(12.1, 0.4, "LinkLost"), call(12.2, 0.1), call(14.5, 0.15)]
    assert slow_until(calls, 10.0, 0.25, lambda _: True) == 3.0
    assert slow_until(calls, 14.0, 0.25, lambda _: True) == 0.0
