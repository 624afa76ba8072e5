"""Damping of links that flap."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.routing.link_damping import LinkDamper, LinkDampingPolicy

POLICY = LinkDampingPolicy()


def flapped(losses: int, every_s: float, *, down_s: float = 1.0) -> tuple[LinkDamper, float]:
    """Returns a damper after `losses` losses, and the time at which the link is up again."""
    damper, now = LinkDamper(), 100.0
    damper.link_up("p", now)
    for _ in range(losses):
        now += every_s - down_s
        damper.link_lost("p", now)
        now += down_s
        damper.link_up("p", now)
    return damper, now


def hold_after(losses: int, every_s: float) -> float:
    damper, now = flapped(losses, every_s)
    reuse_at = damper.reuse_at("p")
    return 0.0 if reuse_at is None else reuse_at - now


def test_new_link_is_not_damped() -> None:
    damper, now = flapped(0, 5.0)
    assert not damper.is_damped("p", now)
    assert damper.penalty_us("p", now) == 0
    assert damper.reuse_at("p") is None
    assert damper.wake_at is None


def test_first_loss_damps_the_link_for_a_short_time() -> None:
    assert hold_after(1, 5.0) == POLICY.hold_s
    assert hold_after(2, 3_600.0) == pytest.approx(POLICY.hold_s)


def test_hold_time_grows_with_each_loss_up_to_the_maximum() -> None:
    holds = [hold_after(losses, 3.0) for losses in range(1, 9)]
    assert holds[0] == POLICY.hold_s
    assert holds == sorted(holds)
    assert 1.8 <= holds[1] / holds[0] <= 2.0
    assert 1.7 <= holds[2] / holds[1] <= 2.0
    assert holds[-1] == POLICY.max_hold_s


@pytest.mark.parametrize("every_s", [3.0, 5.0, 11.0, 30.0])
def test_link_that_keeps_flapping_is_not_used_any_more(every_s: float) -> None:
    # A link that is up for at most 11 s is not used after the first loss.
    damper, now = flapped(1 if every_s <= 11.0 else 10, every_s)
    for _ in range(10):
        assert damper.is_damped("p", now + every_s - 1.001), "it is lost again before its hold ends"
        damper.link_lost("p", now + every_s - 1.0)
        now += every_s
        damper.link_up("p", now)


def test_hold_begins_when_the_link_is_up() -> None:
    damper, _ = flapped(2, 5.0)
    damper.link_lost("p", 200.0)
    assert damper.is_damped("p", 230.0), "the link is down"
    assert damper.wake_at is None
    damper.link_up("p", 230.0)
    reuse_at = damper.reuse_at("p")
    assert reuse_at is not None
    assert reuse_at >= 240.0
    assert damper.wake_at == reuse_at
    damper.link_up("p", 235.0)
    assert damper.reuse_at("p") == reuse_at, "a second report does not extend the hold"


def test_holds_that_begin_together_end_at_different_times() -> None:
    """After a partition, the routes over all links must not change in the same second."""
    damper = LinkDamper(random=random.Random(1))
    peers = [f"p{number}" for number in range(20)]
    for peer in peers:
        damper.link_up(peer, 100.0)
        damper.link_lost(peer, 110.0)
        damper.link_up(peer, 120.0)
    holds = [(damper.reuse_at(peer) or 0.0) - 120.0 for peer in peers]
    assert all(POLICY.hold_s <= one <= POLICY.hold_s * (1 + POLICY.spread) for one in holds)
    assert max(holds) - min(holds) > POLICY.hold_s * POLICY.spread / 2


def test_hold_ends_once() -> None:
    damper, _ = flapped(2, 5.0)
    at = damper.wake_at
    assert at is not None
    assert damper.penalty_us("p", at - 0.001) == POLICY.last_resort_us
    assert damper.advance(at - 0.001) == []
    assert damper.advance(at) == ["p"]
    assert damper.advance(at) == []
    assert damper.penalty_us("p", at) == 0
    assert damper.wake_at is None


def test_later_loss_does_not_shorten_a_hold() -> None:
    damper, now = flapped(6, 3.0)
    assert damper.reuse_at("p") == pytest.approx(now + POLICY.max_hold_s)
    now += POLICY.max_hold_s - 1.0
    damper.link_lost("p", now)
    damper.link_up("p", now)
    assert damper.reuse_at("p") == pytest.approx(now + POLICY.max_hold_s), "though most of the penalty has decayed"


def test_link_that_flapped_for_long_is_forgotten_as_soon_as_one_that_reached_the_ceiling() -> None:
    damper, now = flapped(100, 3.0)
    (status,) = damper.statuses(now)
    assert status.losses == 100
    assert status.penalty <= POLICY.ceiling
    (status,) = damper.statuses(now + 2 * POLICY.half_life_s)
    assert status.penalty <= POLICY.ceiling / 4


def test_graceful_close_adds_no_penalty() -> None:
    damper = LinkDamper()
    for number in range(10):
        damper.link_up("p", number * 3.0)
        damper.link_lost("p", number * 3.0 + 2.0, is_graceful=True)
    assert damper.statuses(30.0) == []


def test_graceful_close_does_not_end_a_hold() -> None:
    damper, now = flapped(3, 5.0)
    before = damper.reuse_at("p")
    assert before is not None
    damper.link_lost("p", now + 1.0, is_graceful=True)
    assert damper.is_damped("p", before + 1.0)
    damper.link_up("p", before + 1.0)
    assert damper.is_damped("p", before + 2.0)


def test_hold_that_has_ended_is_not_revived_by_a_loss_long_after() -> None:
    damper, _ = flapped(5, 5.0)
    damper.link_lost("p", 1_000.0)  # without `advance` in between
    damper.link_up("p", 1_001.0)
    assert not damper.is_damped("p", 1_001.0 + 1.1 * POLICY.hold_s)


def test_histories_are_forgotten_after_they_have_decayed() -> None:
    damper, now = flapped(4, 5.0)
    damper.link_lost("q", now)
    assert [status.peer for status in damper.statuses(now)] == ["p", "q"]
    damper.advance(now + 3_600.0)
    assert damper.statuses(now + 3_600.0) == []


def test_held_history_of_a_peer_that_never_returns_is_forgotten() -> None:
    damper, now = flapped(4, 5.0)
    damper.link_lost("p", now)
    damper.advance(now + 3_600.0)
    assert damper.statuses(now + 3_600.0) == []


def test_number_of_histories_is_bounded_and_the_smallest_penalty_goes_first() -> None:
    damper = LinkDamper(LinkDampingPolicy(max_peers=10))
    for _ in range(3):
        damper.link_lost("flapping", 0.0)
    for number in range(50):
        damper.link_lost(f"p{number}", 1.0 + number)
    assert len(damper.statuses(60.0)) == 10
    assert damper.is_damped("flapping", 60.0)
    assert damper.forgotten == 41


def test_status_contains_when_a_damped_link_is_used_again() -> None:
    damper, now = flapped(3, 4.0)
    (status,) = damper.statuses(now)
    assert (status.peer, status.losses, status.is_damped) == ("p", 3, True)
    assert status.reuse_at == damper.reuse_at("p")
    assert 2_000 < status.penalty <= 3_000
    (later,) = damper.statuses(now + 130.0)
    assert (later.is_damped, later.reuse_at) == (False, None)


def test_stall_counts_as_half_a_loss() -> None:
    damper = LinkDamper()
    damper.link_up("p", 0.0)
    assert damper.link_suspect("p", 10.0, is_suspect=True) == []
    assert not damper.is_damped("p", 11.9), "it may be over at any moment"
    assert damper.link_suspect("p", 12.0, is_suspect=False) == ["p"]
    (status,) = damper.statuses(12.0)
    assert (status.penalty, status.is_damped) == (POLICY.loss / 2, True)
    assert status.reuse_at == pytest.approx(12.0 + POLICY.hold_s * 0.5**0.5)


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.99])
def test_short_silence_is_not_a_stall(seconds: float) -> None:
    damper = LinkDamper()
    damper.link_up("p", 0.0)
    damper.link_suspect("p", 10.0, is_suspect=True)
    assert damper.link_suspect("p", 10.0 + seconds, is_suspect=False) == []
    assert damper.statuses(20.0) == []


def test_suspicion_of_a_lost_link_is_forgotten() -> None:
    damper = LinkDamper()
    damper.link_up("p", 0.0)
    damper.link_suspect("p", 10.0, is_suspect=True)
    damper.link_lost("p", 11.0, is_graceful=True)
    damper.link_up("p", 20.0)
    assert damper.link_suspect("p", 21.0, is_suspect=False) == []
    assert damper.link_suspect("unknown", 21.0, is_suspect=True) == []
    assert not damper.is_damped("p", 21.0)


# ------------------------------------------------------------------------- lines


def line(*peers: str) -> LinkDamper:
    """Return a damper with links to these nodes of one site."""
    damper = LinkDamper()
    for peer in peers:
        damper.link_up(peer, 0.0, site="eu")
    return damper


def fail(damper: LinkDamper, *peers: str, at: float) -> None:
    """Lose the links to all these nodes, as when their line fails."""
    for peer in peers:
        damper.link_suspect(peer, at, is_suspect=True)
    for number, peer in enumerate(peers):
        damper.link_lost(peer, at + 3.0 + 0.4 * number)


def test_link_to_another_node_of_the_site_is_damped_after_the_line_failed() -> None:
    damper = line("p")
    damper.link_up("elsewhere", 0.0, site="us")
    fail(damper, "p", at=10.0)
    damper.link_up("q", 14.0, site="eu")
    damper.link_up("unnamed", 14.0)
    assert [peer for peer in ("q", "elsewhere", "unnamed") if damper.is_damped(peer, 14.0)] == ["q"]
    assert damper.reuse_at("q") == 14.0 + POLICY.hold_s
    (status,) = [one for one in damper.statuses(14.0) if one.peer == "q"]
    assert (status.losses, status.is_damped, status.reuse_at) == (0, True, 14.0 + POLICY.hold_s)
    assert status.penalty == pytest.approx(POLICY.loss, rel=0.02)


def test_links_of_one_line_that_are_lost_together_count_once() -> None:
    damper = line("p", "q", "r")
    fail(damper, "p", "q", "r", at=10.0)
    damper.link_up("s", 14.0, site="eu")
    assert damper.reuse_at("s") == 14.0 + POLICY.hold_s
    fail(damper, "s", at=16.0)
    damper.link_up("t", 20.0, site="eu")
    reuse_at = damper.reuse_at("t")
    assert reuse_at is not None
    assert reuse_at > 20.0 + 1.8 * POLICY.hold_s


def test_hold_of_a_line_begins_when_it_carries_a_link_again() -> None:
    damper = line("p", "q")
    fail(damper, "p", "q", at=10.0)
    assert damper.wake_at is None, "there is no link"
    damper.link_up("r", 30.0, site="eu")
    damper.link_up("s", 35.0, site="eu")
    assert damper.wake_at == damper.reuse_at("s") == 30.0 + POLICY.hold_s


def test_lost_node_does_not_damp_the_links_to_others_of_its_site() -> None:
    damper = line("p", "q")
    damper.link_suspect("p", 10.0, is_suspect=True)
    assert damper.link_lost("p", 13.0) == []
    damper.link_up("r", 14.0, site="eu")
    damper.link_up("p", 14.0, site="eu")
    assert [peer for peer in "pqr" if damper.is_damped(peer, 14.0)] == ["p"]


def test_links_that_survive_a_failure_of_their_line_are_damped() -> None:
    damper = line("p", "q")
    damper.link_suspect("p", 10.0, is_suspect=True)
    damper.link_suspect("q", 10.0, is_suspect=True)
    assert damper.link_lost("p", 13.0) == ["q"]
    assert damper.reuse_at("q") == 13.0 + POLICY.hold_s
    damper = line("p", "q")
    damper.link_suspect("p", 10.0, is_suspect=True)
    damper.link_suspect("q", 10.0, is_suspect=True)
    assert damper.link_suspect("p", 12.0, is_suspect=False) == ["p", "q"]
    assert damper.link_suspect("q", 12.1, is_suspect=False) == ["q"]
    damper.link_up("r", 13.0, site="eu")
    assert [peer for peer in "pqr" if damper.is_damped(peer, 13.0)] == ["p", "q", "r"]
    assert sorted(damper.advance(60.0)) == ["p", "q", "r"]


def test_link_is_damped_until_both_holds_have_ended() -> None:
    damper = line("p", "q")
    damper.link_lost("p", 10.0)
    damper.link_up("p", 11.0, site="eu")
    damper.link_lost("p", 13.0)
    damper.link_up("p", 14.0, site="eu")
    damper.link_suspect("p", 15.0, is_suspect=True)
    damper.link_lost("q", 15.0)
    damper.link_suspect("p", 15.1, is_suspect=False)
    line_until = 15.0 + POLICY.hold_s
    reuse_at = damper.reuse_at("p")
    assert reuse_at is not None
    assert reuse_at > line_until
    assert damper.wake_at == line_until
    assert damper.advance(line_until) == []
    assert damper.advance(reuse_at) == ["p"]


def test_graceful_close_of_the_last_link_restarts_the_hold_of_the_line() -> None:
    damper = line("p")
    fail(damper, "p", at=10.0)
    damper.link_up("q", 14.0, site="eu")
    damper.link_up("r", 15.0, site="eu")
    damper.link_lost("q", 16.0, is_graceful=True)
    assert damper.reuse_at("r") == 14.0 + POLICY.hold_s
    damper.link_lost("r", 17.0, is_graceful=True)
    assert damper.wake_at is None
    damper.link_up("q", 18.0, site="eu")
    assert damper.reuse_at("q") == 18.0 + POLICY.hold_s


# ---------------------------------------------------------------- isolated peers


def isolated(damper: LinkDamper, *, since: float, until: float, peer: str = "p") -> None:
    damper.peer_isolated(peer, "eu", since, until)


def test_link_that_was_lost_for_the_first_time_is_not_held_if_its_peer_was_isolated() -> None:
    damper = line("p")
    damper.link_lost("p", 10.0)
    isolated(damper, since=10.0, until=10.0 + POLICY.isolated_s)
    damper.link_up("p", 16.0)
    assert not damper.is_damped("p", 16.0)
    assert damper.wake_at is None
    (status,) = damper.statuses(16.0)
    assert status.losses == 1, "the loss is remembered"


def test_link_whose_peer_was_isolated_for_a_shorter_time_is_held() -> None:
    damper = line("p")
    damper.link_lost("p", 10.0)
    isolated(damper, since=12.0, until=11.9 + POLICY.isolated_s)
    damper.link_up("p", 30.0)
    assert damper.reuse_at("p") == 30.0 + POLICY.hold_s


def test_link_that_was_lost_again_at_the_end_of_the_isolation_is_held() -> None:
    damper = LinkDamper()
    damper.link_up("p", 10.0)
    damper.link_lost("p", 13.0)
    isolated(damper, since=9.0, until=15.0)
    damper.link_up("p", 15.0)
    assert damper.reuse_at("p") == 15.0 + POLICY.hold_s


def test_link_that_was_lost_several_times_is_held_though_its_peer_was_isolated() -> None:
    damper, now = flapped(2, 5.0)
    damper.link_lost("p", now)
    isolated(damper, since=now, until=now + 200.0)
    damper.link_up("p", now + 200.0)
    assert damper.is_damped("p", now + 200.0 + 3 * POLICY.hold_s)


def test_stall_before_the_first_loss_is_not_another_loss() -> None:
    damper = line("p")
    damper.link_suspect("p", 7.0, is_suspect=True)
    damper.link_suspect("p", 9.0, is_suspect=False)
    damper.link_lost("p", 10.0)
    isolated(damper, since=10.0, until=20.0)
    damper.link_up("p", 20.0, site="eu")
    assert not damper.is_damped("p", 20.0)


def test_next_loss_after_an_isolation_holds_the_link() -> None:
    damper = line("p")
    damper.link_lost("p", 10.0)
    isolated(damper, since=10.0, until=20.0)
    damper.link_up("p", 20.0)
    damper.link_lost("p", 25.0)
    isolated(damper, since=25.0, until=35.0)
    damper.link_up("p", 35.0)
    reuse_at = damper.reuse_at("p")
    assert reuse_at is not None
    assert reuse_at > 35.0 + 1.7 * POLICY.hold_s


def test_link_that_is_up_stays_held_when_its_peer_was_isolated() -> None:
    """Another link to the peer exists: this router has a route to it, or will soon have one."""
    damper, now = flapped(1, 20.0)
    reuse_at = damper.reuse_at("p")
    isolated(damper, since=now - 1.0, until=now + POLICY.isolated_s)
    assert damper.reuse_at("p") == reuse_at is not None


def test_isolated_peer_has_no_effect_on_others() -> None:
    damper = line("p")
    damper.link_up("q", 0.0, site="us")
    damper.link_lost("q", 10.0)
    isolated(damper, since=10.0, until=20.0)
    isolated(damper, since=10.0, until=20.0, peer="unknown")
    damper.link_up("q", 20.0, site="us")
    assert damper.reuse_at("q") == 20.0 + POLICY.hold_s


def test_line_to_a_site_that_was_isolated_is_not_held() -> None:
    damper = line("p", "q")
    fail(damper, "p", "q", at=10.0)
    isolated(damper, since=14.0, until=20.0, peer="r")
    damper.link_up("r", 20.0, site="eu")
    damper.link_up("q", 20.0, site="eu")
    assert not damper.is_damped("r", 20.0)
    assert damper.reuse_at("q") == 20.0 + POLICY.hold_s, "its own hold: q itself was not isolated"


def test_hold_of_a_line_continues_while_it_carries_a_link() -> None:
    damper = line("p", "q")
    fail(damper, "p", "q", at=10.0)
    damper.link_up("r", 15.0, site="eu")
    isolated(damper, since=13.0, until=20.0)
    damper.link_up("p", 20.0, site="eu")
    assert damper.reuse_at("r") == damper.reuse_at("p") == 15.0 + POLICY.hold_s


def test_line_is_held_if_the_isolated_node_had_failed_before_it() -> None:
    """Its return does not show that the site was isolated: the line failed while the node was away."""
    damper = line("p")
    fail(damper, "p", at=100.0)
    isolated(damper, since=50.0, until=110.0, peer="q")
    damper.link_up("p", 111.0, site="eu")
    damper.link_up("r", 111.0, site="eu")
    assert damper.reuse_at("r") == 111.0 + POLICY.hold_s


def test_line_is_not_held_if_other_routers_detected_its_failure_first() -> None:
    damper = line("p")
    fail(damper, "p", at=10.0)
    isolated(damper, since=10.5, until=20.0, peer="q")
    damper.link_up("q", 20.0, site="eu")
    assert not damper.is_damped("q", 20.0)


@given(st.lists(st.tuples(st.sampled_from(["lost", "closed", "up", "advance"]), st.floats(0.0, 100.0)), max_size=60))
def test_link_that_stays_up_is_used_again_within_the_longest_hold(events: list[tuple[str, float]]) -> None:
    damper, now = LinkDamper(), 0.0
    for name, after_s in events:
        now += after_s
        match name:
            case "lost":
                damper.link_lost("p", now)
            case "closed":
                damper.link_lost("p", now, is_graceful=True)
            case "up":
                damper.link_up("p", now)
            case _:
                damper.advance(now)
        assert (damper.penalty_us("p", now) > 0) is damper.is_damped("p", now)
    damper.link_up("p", now)
    assert not damper.is_damped("p", now + POLICY.max_hold_s)
    damper.advance(now + POLICY.max_hold_s)
    assert damper.wake_at is None
