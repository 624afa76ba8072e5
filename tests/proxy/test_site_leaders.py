"""The leaders of sites, and the messages that a node keeps while another one is the leader."""

from __future__ import annotations

import pytest

from micro_core.contract.broker import Message
from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK, Route
from micro_core.proxy import handover
from micro_core.proxy.handover import CATCH_UP_S, KEEP_S, MAX_STALL_S, OVERLAP_S, RECOVERY_S, STALL_S, Handover
from micro_core.proxy.site_leaders import leaders_by_site, lesser_node


def route(router: str, site: str, *, gateway: str = "", metric: int = 1, link: str = NETWORK_LINK) -> Route:
    return Route(
        service="~orders",
        address="",
        gateway=gateway or router,
        network="net",
        router=router,
        link=link,
        metric=metric,
        site=site,
    )


def message(number: int, size: int = 1) -> Message:
    return Message(id=str(number), body=bytes(size))


def test_leader_of_a_site_is_its_smallest_id_over_its_best_route() -> None:
    routes = [
        route("d", "us", gateway="x"),
        route("b", "us", gateway="x", metric=5),
        route("b", "us", gateway="y", metric=9),
        route("a", "eu"),
        route("c", "asia"),
    ]
    leaders = leaders_by_site(routes, own_site="eu")
    assert {site: (one.router, one.gateway) for site, one in leaders.items()} == {"us": ("b", "x"), "asia": ("c", "c")}


def test_local_and_default_routes_lead_to_no_site() -> None:
    default = Route(
        service="*", address="", gateway="g", network="net", router="g", link=NETWORK_LINK, metric=1, site="us"
    )
    assert leaders_by_site([route("a", "us", link=LOCAL_LINK), default], own_site="eu") == {}
    assert lesser_node([route("a", "eu", link=LOCAL_LINK), default], own_site="us", node_id="m") == ""


def test_routes_without_a_site_belong_to_different_sites() -> None:
    assert set(leaders_by_site([route("a", ""), route("b", "")], own_site="eu")) == {"a", "b"}


def test_lesser_node_is_the_smallest_id_of_the_own_site_below_the_own_one() -> None:
    routes = [route("c", "eu"), route("b", "eu"), route("a", "us"), route("z", "eu")]
    assert lesser_node(routes, own_site="eu", node_id="m") == "b"
    assert lesser_node(routes, own_site="eu", node_id="b") == ""


def follower(now: float) -> Handover:
    role = Handover()
    role.update(has_lesser=True, has_others=True, now=now)
    # The overlap of a node that has led before is over.
    for step in range(5):
        role.update(has_lesser=True, has_others=True, now=now + step)
    return role


def test_leader_sends_each_message_at_once() -> None:
    role = Handover()
    assert role.update(has_lesser=False, has_others=True, now=0.0) == []
    assert role.must_send("t", message(1), 0.0)
    assert role.update(has_lesser=False, has_others=True, now=0.1) == []


def test_new_leader_sends_the_kept_messages_once_and_in_order() -> None:
    role = follower(0.0)
    assert not any(role.must_send("t", message(number), 5.0 + number) for number in range(3))
    due = role.update(has_lesser=False, has_others=True, now=6.5)
    assert [kept.message.id for kept in due] == ["0", "1", "2"]
    assert role.update(has_lesser=False, has_others=True, now=6.6) == []


def test_messages_are_kept_for_a_limited_time() -> None:
    role = follower(0.0)
    role.must_send("t", message(1), 4.0)
    role.must_send("t", message(2), 5.0)
    for second in range(5, 13):
        role.update(has_lesser=True, has_others=True, now=float(second))
    due = role.update(has_lesser=False, has_others=True, now=4.5 + KEEP_S)
    assert [kept.message.id for kept in due] == ["2"]


def test_kept_messages_are_limited_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "MAX_KEPT", 3)
    monkeypatch.setattr(handover, "MAX_KEPT_BYTES", 100)
    role = follower(0.0)
    for number in range(5):
        role.must_send("t", message(number), 5.0)
    assert (role.kept, role.expired) == (3, 2)
    role.must_send("t", message(9, size=99), 5.0)
    due = role.update(has_lesser=False, has_others=True, now=5.0)
    assert [kept.message.id for kept in due] == ["4", "9"]
    assert role.expired == 4


def test_former_leader_sends_during_the_overlap_and_then_keeps() -> None:
    role = Handover()
    role.update(has_lesser=True, has_others=True, now=0.0)
    assert role.must_send("t", message(1), OVERLAP_S - 0.1)
    assert not role.must_send("t", message(2), OVERLAP_S)


def stalled(seconds: float, *, has_others: bool = True) -> Handover:
    """Return a leader that did nothing for `seconds`, from 0 on."""
    role = Handover()
    role.update(has_lesser=False, has_others=has_others, now=0.0)
    assert role.update(has_lesser=False, has_others=has_others, now=seconds) == []
    return role


def test_leader_that_stalled_keeps_messages_until_it_knows_the_other_nodes_again() -> None:
    now = STALL_S + 1.0
    role = stalled(now)
    assert role.stall_ended_at == now
    assert not role.must_send("t", message(1), now)
    assert role.update(has_lesser=False, has_others=True, now=now + 1.0) == []
    assert not role.must_send("t", message(2), now + CATCH_UP_S)
    for step in range(2, int(RECOVERY_S)):
        role.update(has_lesser=False, has_others=True, now=now + step)
    due = role.update(has_lesser=False, has_others=True, now=now + RECOVERY_S)
    # The first one may have been published when the stall began.
    assert [(kept.message.id, kept.published_after) for kept in due] == [("1", 0.0), ("2", now + CATCH_UP_S)]


def test_stall_is_noticed_after_the_routes_to_the_other_nodes_are_lost() -> None:
    role = follower(0.0)
    role.update(has_lesser=False, has_others=False, now=20.0)
    assert role.stall_ended_at == 20.0
    assert not role.must_send("t", message(1), 20.0)


def test_messages_that_arrived_during_a_long_stall_are_dropped() -> None:
    now = MAX_STALL_S + 1.0
    role = stalled(now)
    assert not role.must_send("t", message(1), now)
    assert (role.kept, role.expired) == (0, 1)
    assert not role.must_send("t", message(2), now + CATCH_UP_S)
    assert role.kept == 1


def test_only_node_of_a_site_sends_after_a_stall() -> None:
    now = MAX_STALL_S + 1.0
    role = stalled(now, has_others=False)
    assert role.must_send("t", message(1), now)


def test_time_without_other_nodes_does_not_count_as_a_stall() -> None:
    role = stalled(100.0, has_others=False)
    role.update(has_lesser=False, has_others=True, now=200.0)
    assert role.stall_ended_at < 0.0
    assert role.must_send("t", message(1), 200.0)
