"""The comparison of route candidates agrees with the choice of the proxy."""

from __future__ import annotations

from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK, RouteKey
from micro_core.routing.explain import CandidateStatus, RouteCandidate, compare

BEST, SHARES, SPARE = CandidateStatus.BEST, CandidateStatus.SHARES, CandidateStatus.SPARE


def candidate(name: str, total_us: int, *, site: str = "", via: str = "") -> RouteCandidate:
    is_local = name == "here"
    return RouteCandidate(
        status=SPARE,
        why="",
        origin="me" if is_local else name,
        site=site or f"site-{name}",
        via="" if is_local else via or name,
        address="",
        path=(),
        announced_us=total_us,
        link_us=0,
        total_us=total_us,
        key=RouteKey(
            "greeter", "", "" if is_local else via or name, "net", name, LOCAL_LINK if is_local else NETWORK_LINK
        ),
    )


def statuses(candidates: list[RouteCandidate], **waiting_us: int) -> list[tuple[str, CandidateStatus]]:
    compared = compare(candidates, lambda key: waiting_us.get(key.router, 0))
    return [(one.key.router, one.status) for one in compared]


def test_routes_share_up_to_a_quarter_above_the_best_cost_also_while_calls_wait() -> None:
    routes = [candidate("a", 10_000), candidate("b", 12_500), candidate("c", 20_000)]
    assert statuses(routes) == [("a", BEST), ("b", SHARES), ("c", SPARE)]
    assert statuses(routes, a=50_000) == [("a", BEST), ("b", SHARES), ("c", SPARE)], "b has space for the calls"


def test_next_destination_shares_if_calls_wait_on_all_better_ones() -> None:
    routes = [candidate("here", 0), candidate("b", 100_000), candidate("c", 900_000)]
    assert statuses(routes) == [("here", BEST), ("b", SPARE), ("c", SPARE)]
    assert statuses(routes, here=30_000) == [("here", BEST), ("b", SHARES), ("c", SPARE)]
    assert statuses(routes, here=30_000, b=30_000) == [("here", BEST), ("b", SHARES), ("c", SHARES)]


def test_other_path_to_a_busy_site_gets_no_share() -> None:
    routes = [candidate("a", 10_000, site="us"), candidate("b", 40_000, site="us"), candidate("c", 90_000)]
    assert statuses(routes, a=30_000, b=30_000) == [("a", BEST), ("b", SPARE), ("c", SHARES)]
