"""The selection of nodes to link to: seeds, candidates and the target number of links."""

from __future__ import annotations

import random

from micro_core.contract import Candidate
from micro_core.network.peers import (
    CandidateFailed,
    KeepLinked,
    PeerEffect,
    PeerLinked,
    PeerLost,
    PeerOptions,
    Peers,
    Resolve,
    Resolved,
    StopDialing,
)


def peers(*seeds: str, target: int = 3) -> Peers:
    return Peers(seeds, PeerOptions(target_links=target), random.Random(1))


def candidates(*addresses: str) -> Resolved:
    return Resolved([Candidate(address=address, priority=number) for number, address in enumerate(addresses)])


def kept(effects: list[PeerEffect]) -> list[str]:
    return [effect.address for effect in effects if isinstance(effect, KeepLinked)]


def test_start_keeps_seeds_linked_and_queries_resolvers() -> None:
    state = peers("a:1", "b:1")
    effects = state.start(0.0)
    assert kept(effects) == ["a:1", "b:1"]
    assert Resolve() in effects


def test_number_of_dialled_candidates_equals_the_target() -> None:
    state = peers(target=3)
    state.start(0.0)
    assert len(kept(state.handle(candidates(*(f"c{n}:1" for n in range(20))), 0.0))) == 3


def test_best_candidates_are_chosen_and_one_at_random() -> None:
    random_choices = set()
    for seed in range(40):
        state = Peers((), PeerOptions(target_links=3), random.Random(seed))
        state.start(0.0)
        chosen = kept(state.handle(candidates(*(f"c{n}:1" for n in range(10))), 0.0))
        assert chosen[:2] == ["c0:1", "c1:1"]
        random_choices.add(chosen[2])
    assert len(random_choices) > 3


def test_accepted_links_count_towards_the_target() -> None:
    state = peers(target=2)
    state.start(0.0)
    state.handle(PeerLinked("peer-a", None, 0.01), 0.0)
    state.handle(PeerLinked("peer-b", None, 0.01), 0.0)
    assert kept(state.handle(candidates("c:1"), 0.0)) == []


def test_lost_link_is_replaced_by_another_candidate() -> None:
    state = peers(target=1)
    state.start(0.0)
    state.handle(PeerLinked("peer-a", None, 0.01), 0.0)
    state.handle(candidates("c:1"), 0.0)
    assert kept(state.handle(PeerLost("peer-a"), 1.0)) == ["c:1"]


def test_own_address_is_dropped_and_another_candidate_dialled() -> None:
    state = peers(target=1)
    state.start(0.0)
    assert kept(state.handle(candidates("self:1", "other:1"), 0.0)) == ["self:1"]
    effects = state.handle(CandidateFailed("self:1", is_permanent=True), 0.1)
    assert StopDialing("self:1") in effects
    assert kept(effects) == ["other:1"]


def test_seed_is_never_dropped() -> None:
    state = peers("seed:1", target=1)
    state.start(0.0)
    for _ in range(10):
        assert state.handle(CandidateFailed("seed:1", is_permanent=True), 0.1) == []


def test_resolvers_are_queried_sooner_while_links_are_missing() -> None:
    state = peers(target=1)
    state.start(0.0)
    assert state.wake_at is not None
    assert state.wake_at <= 5.0
    state.handle(PeerLinked("peer-a", None, 0.01), 0.0)
    assert Resolve() in state.wake(state.wake_at)
    assert state.wake_at > 50.0
