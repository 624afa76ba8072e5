"""Which nodes are linked, exchanged, given up and evicted: the pure functions of `link_targets`."""

from __future__ import annotations

import random

import pytest

from micro_core.network.link_targets import (
    MIN_DEGREE,
    MIN_OUTWARD,
    SURPLUS,
    Side,
    choose,
    find_eviction,
    find_exchange,
    find_surplus,
    well_linked_sites,
)
from micro_core.network.peer_table import Address, KnownLink, KnownNode

REMOTE = Side(is_own_site=False, wanted=2, open=0, in_progress=0)


def known(
    name: str,
    site: str = "us",
    rtt_s: float = 0.1,
    *,
    is_accepted: bool = False,
    neighbours: str = "pqr",
    up_since: float = 0.0,
    is_seed: bool = False,
) -> KnownNode:
    """Return a linked node, dialled by this one unless the link was accepted."""
    text = f"{name}:1"
    return KnownNode(
        id=name,
        site=site,
        rtt_s=rtt_s,
        link=KnownLink(None if is_accepted else text, up_since),
        neighbours=frozenset(neighbours),
        addresses={text: Address(text, node=name, is_seed=is_seed)},
    )


def chosen(side: Side, *, site_count: int) -> set[tuple[str, bool]]:
    """Return what is chosen among nodes of six sites by different random numbers, and whether it was chosen at random."""
    pool = [known(f"n{number}", f"s{number}", 0.1 * number) for number in range(1, 7)]
    found = [choose(pool, side, (), site_count, random.Random(seed)) for seed in range(60)]
    return {(one[0].id, one[1]) for one in found if one is not None}


def test_last_missing_link_of_a_large_network_is_chosen_at_random() -> None:
    last = Side(is_own_site=False, wanted=2, open=1, in_progress=0)
    assert chosen(last, site_count=5) == {(f"n{number}", True) for number in range(1, 7)}
    assert chosen(last, site_count=4) == {("n1", False)}
    assert chosen(REMOTE, site_count=5) == {("n1", False)}


def test_link_that_was_chosen_at_random_is_kept() -> None:
    linked, near = [known("far", rtt_s=0.3), known("x", rtt_s=0.05)], [known("near", rtt_s=0.01)]
    found = find_exchange(linked, near, {"us"})
    assert found is not None
    assert found[0].id == "far"
    linked[0].is_random = True
    found = find_exchange(linked, near, {"us"})
    assert found is not None
    assert found[0].id == "x"


@pytest.mark.parametrize(
    "kept",
    [
        known("far", rtt_s=0.3, neighbours="pqr"[: MIN_DEGREE - 1]),
        known("far", rtt_s=0.3, is_seed=True),
        known("far", rtt_s=0.3, is_accepted=True),
    ],
    ids=["few-links", "seed", "accepted"],
)
def test_link_is_given_up_only_by_the_node_that_dialled_it_and_never_the_last_ones_of_a_node(kept: KnownNode) -> None:
    near = [known("near", rtt_s=0.01)]
    assert find_exchange([kept], near, {"us"}) is None
    assert find_surplus([known("x", rtt_s=0.01, is_accepted=True) for _ in range(9)] + [kept], 2) is None
    assert find_exchange([known("far", rtt_s=0.3)], near, {"us"}) is not None


def test_links_beyond_the_wanted_number_are_given_up_only_above_the_surplus() -> None:
    linked = [known(f"n{number}", rtt_s=0.01 * number) for number in range(2 + SURPLUS)]
    assert find_surplus(linked, 2) is None
    linked.append(known("far", rtt_s=0.3))
    linked.append(known("only", "asia", rtt_s=0.5))
    surplus = find_surplus(linked, 2)
    assert surplus is not None
    assert surplus.id == "far", "the only link to a site is kept"


def test_exchange_must_make_the_round_trip_clearly_shorter() -> None:
    linked = [known("x", rtt_s=0.1), known("y", rtt_s=0.1)]
    assert find_exchange(linked, [known("a", rtt_s=0.071)], ()) is None
    assert find_exchange(linked, [known("a", rtt_s=0.069)], ()) is not None
    linked = [known("x", rtt_s=0.004), known("y", rtt_s=0.004)]
    assert find_exchange(linked, [known("a", rtt_s=0.0015)], ()) is None, "a gain below 3 ms is not worth it"


def test_eviction_closes_the_only_link_to_a_site_at_last() -> None:
    spare, only = known("a", is_accepted=True, up_since=1.0), known("b", "asia", is_accepted=True, up_since=2.0)
    others = [known("c"), known("d", "africa", is_accepted=True, up_since=3.0)]
    assert find_eviction([spare, only, *others], 4, ()) is None, "there are not too many"
    assert find_eviction([spare, only, *others], 3, ()) is spare
    linked = [only, *others]
    assert find_eviction(linked, 2, ()) is None
    assert find_eviction(linked, 2, {"asia"}) is only, "the site has enough links of its own"
    assert find_eviction(linked, 1, ()) is others[1], "the newest one above twice the limit"


def test_site_is_well_linked_if_it_keeps_enough_links_to_other_sites() -> None:
    def sites(count: int) -> frozenset[str]:
        far = [known(f"o{number}", "other", neighbours="") for number in range(count)]
        inner = known("in", "us", neighbours="")
        own = KnownNode(id="n", site="us", neighbours=frozenset({"me", "in", *(node.id for node in far)}))
        return well_linked_sites([own, inner, *far], "me")

    assert sites(MIN_OUTWARD - 1) == frozenset()
    assert sites(MIN_OUTWARD) == {"us"}
