"""The ways to a node, on time of our own."""

from __future__ import annotations

import random

import pytest

from micro_core.contract import LinkLost, MicroError, Unauthorized, Unreachable
from micro_core.tunnel.path_selection import (
    MAX_PATHS,
    NO_DRIVER_ERROR_ID,
    STABLE_AFTER_S,
    AllPathsFailed,
    AttemptFailed,
    AttemptSucceeded,
    CancelAttempt,
    LinkedElsewhere,
    LinkEnded,
    PathChanged,
    PathEffect,
    PathOptions,
    PathSelector,
    Phase,
    ReportedUp,
    Start,
    StartAttempt,
    paths_to,
)

QUIC, TLS = "quic://h:1", "tls://h:1"
OPTIONS = PathOptions()
SILENT = Unreachable("no answer from quic://h:1 in 5 s")
REFUSED = Unreachable("nobody listens on that UDP port")


class Run:
    """A finder, and what it wanted when."""

    def __init__(self, *ways: str, options: PathOptions = OPTIONS) -> None:
        self.selector = PathSelector(ways or (QUIC, TLS), options, random.Random(1))
        self.now = 100.0
        self.did: list[tuple[float, PathEffect]] = []

    def at(self, now: float, event: object = None) -> list[PathEffect]:
        """Let time pass to `now`, then an event; what came of both is returned, and remembered."""
        before = len(self.did)
        while (wake_at := self.selector.wake_at) is not None and wake_at <= now:
            self.did += [(wake_at, effect) for effect in self.selector.wake(wake_at)]
        if event is not None:
            self.did += [(now, effect) for effect in self.selector.handle(event, now)]  # type: ignore[arg-type]
        self.now = now
        return [effect for _, effect in self.did[before:]]

    def dials(self, way: int) -> list[float]:
        return [when for when, effect in self.did if isinstance(effect, StartAttempt) and effect.path == way]


# --------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("h:1", [QUIC, TLS]),
        ("quic://h:1", [QUIC, TLS]),
        ("tls://h:1", [TLS]),
        ("[::1]:1", ["quic://[::1]:1", "tls://[::1]:1"]),
        ("tls://h:443|quic://h:1", [QUIC, "tls://h:443"]),
        ("quic://h:1|quic://i:1", [QUIC, "quic://i:1"]),
        ("ws://h:2|tls://h:1", [TLS]),
        ("quic://name", ["quic://name"]),
        ("name", ["quic://name", "tls://name"]),
    ],
)
def test_an_address_stands_for_the_ways_of_the_drivers_in_use_best_first(address: str, expected: list[str]) -> None:
    assert paths_to(address, ["quic", "tls"]) == tuple(expected)


def test_the_order_of_the_drivers_is_the_order_of_the_ways() -> None:
    assert paths_to("h:1", ["tls", "quic"]) == (TLS, QUIC)
    assert paths_to("quic://h:1", ["tls", "quic"]) == (QUIC,)


@pytest.mark.parametrize("address", ["ws://h:1", "ws://h:1|wss://h:2", "|"])
def test_an_address_for_no_driver_in_use_says_what_to_type(address: str) -> None:
    with pytest.raises(Unreachable, match="no tunnel driver") as caught:
        paths_to(address, ["quic"])
    assert caught.value.id == NO_DRIVER_ERROR_ID
    assert "--plugins" in caught.value.hint


def test_a_list_that_never_ends_is_cut() -> None:
    assert len(paths_to("|".join(f"quic://h:{port}" for port in range(1, 1000)), ["quic"])) == MAX_PATHS


# ------------------------------------------------------------------------------------ racing


def test_the_first_way_that_answers_in_its_head_start_is_the_only_one_dialled() -> None:
    run = Run()
    assert run.at(100.0, Start()) == [StartAttempt(0, "first choice")]
    assert run.at(100.3, AttemptSucceeded(0)) == []
    run.at(1000.0)
    assert run.dials(1) == []
    assert run.selector.phase is Phase.LINKED


def test_silence_of_the_first_way_gets_the_second_dialled_beside_it_and_the_winner_is_said_once() -> None:
    run = Run()
    run.at(100.0, Start())
    assert run.at(100.5) == [StartAttempt(1, "quic gave no answer in 0.4 s")]
    assert run.dials(1) == [100.4]
    assert run.at(100.6, AttemptSucceeded(1)) == [CancelAttempt(0), PathChanged(1, "quic gave no answer in 0.4 s")]


def test_a_way_that_says_no_gets_the_next_dialled_at_once() -> None:
    run = Run()
    run.at(100.0, Start())
    (dial,) = run.at(100.01, AttemptFailed(0, REFUSED))
    assert dial == StartAttempt(1, "quic failed: nobody listens on that UDP port")


def test_the_first_way_may_still_win_late() -> None:
    run = Run()
    run.at(100.0, Start())
    assert run.at(100.6, AttemptSucceeded(0)) == [StartAttempt(1, "quic gave no answer in 0.4 s"), CancelAttempt(1)]
    assert run.selector.wake_at is None


def test_what_was_abandoned_and_fails_after_all_changes_nothing() -> None:
    run = Run()
    run.at(100.0, Start())
    run.at(100.5)
    run.at(100.6, AttemptSucceeded(1))
    assert run.at(100.7, AttemptFailed(0, SILENT)) == []
    assert run.selector.phase is Phase.LINKED


def test_when_all_ways_fail_it_is_told_why_of_each_and_the_race_begins_again() -> None:
    run = Run()
    run.at(100.0, Start())
    run.at(100.5, AttemptFailed(0, SILENT))
    (effect,) = run.at(100.6, AttemptFailed(1, Unreachable("connection refused", hint="is it up?")))
    assert isinstance(effect, AllPathsFailed)
    assert effect.error.detail == "no answer from quic://h:1 in 5 s; connection refused"
    assert effect.error.hint == "is it up?"
    run.at(101.0)
    assert len(run.dials(0)) == 2
    assert 100.7 <= run.dials(0)[1] <= 100.8


def test_the_pause_between_races_grows_to_its_bound_and_a_refusal_has_its_own() -> None:
    run = Run(QUIC)
    run.at(100.0, Start())
    for _ in range(30):
        run.at(run.now, AttemptFailed(0, SILENT))
        assert run.selector.wake_at is not None
        run.at(run.selector.wake_at)
    pauses = [after - before for before, after in zip(run.dials(0), run.dials(0)[1:], strict=False)]
    assert pauses[0] <= 0.2
    assert OPTIONS.redial_max_s / 2 <= pauses[-1] <= OPTIONS.redial_max_s
    run.at(run.now, AttemptFailed(0, Unauthorized("wrong token")))
    assert run.selector.wake_at == run.now + OPTIONS.redial_refused_s


def long_away() -> Run:
    """A single way that has failed so often that the pauses are long."""
    run = Run(QUIC)
    run.at(100.0, Start())
    for _ in range(30):
        run.at(run.selector.wake_at or run.now)
        run.at(run.now + 1.0, AttemptFailed(0, SILENT))
    return run


def test_news_that_the_node_is_up_ends_the_pause_but_no_more_than_once_in_a_while() -> None:
    run = long_away()
    assert (run.selector.wake_at or 0.0) - run.now > 6.0
    assert run.at(run.now, ReportedUp()) == [StartAttempt(0, "")]
    began = run.now
    run.at(began + 0.1, AttemptFailed(0, SILENT))
    assert run.at(began + 0.1, ReportedUp()) == []
    assert run.selector.wake_at == began + OPTIONS.redial_reported_min_s
    run.at(began + 2.0, AttemptFailed(0, SILENT))
    assert (run.selector.wake_at or 0.0) - run.now > 6.0, "the pauses go on from where they were"


def test_news_that_comes_while_a_dial_hangs_shortens_the_pause_after_it() -> None:
    run = long_away()
    run.at(run.selector.wake_at or run.now)
    began = run.now
    assert run.at(began + 4.0, ReportedUp()) == []
    assert run.at(began + 5.0, AttemptFailed(0, SILENT))[-1:] == [AllPathsFailed(SILENT)]
    assert run.selector.wake_at == began + 5.0


def test_news_of_a_node_that_has_refused_us_changes_nothing() -> None:
    run = Run(QUIC)
    run.at(100.0, Start())
    run.at(100.1, AttemptFailed(0, Unauthorized("wrong token")))
    assert run.at(103.0, ReportedUp()) == []
    assert run.selector.wake_at == 100.1 + OPTIONS.redial_refused_s


def test_news_that_the_node_is_up_changes_nothing_where_it_is_linked_or_being_dialled() -> None:
    run = Run()
    run.at(100.0, Start())
    assert run.at(100.0, ReportedUp()) == []
    run.at(100.1, AttemptSucceeded(0))
    assert run.at(100.2, ReportedUp()) == []
    assert run.selector.phase is Phase.LINKED


def test_a_refusal_is_what_is_told_though_other_ways_led_nowhere() -> None:
    run = Run()
    run.at(100.0, Start())
    run.at(100.1, AttemptFailed(0, Unauthorized("wrong token")))
    (effect,) = run.at(100.6, AttemptFailed(1, SILENT))
    assert isinstance(effect, AllPathsFailed)
    assert isinstance(effect.error, Unauthorized)


def test_a_single_way_needs_no_reason() -> None:
    run = Run(TLS)
    assert run.at(100.0, Start()) == [StartAttempt(0, "")]
    error: MicroError = LinkLost("gone")
    assert run.at(101.0, AttemptFailed(0, error)) == [AllPathsFailed(error)]


# ----------------------------------------------------------------------------------- probing


def fallen_back(*ways: str) -> Run:
    run = Run(*ways)
    run.at(100.0, Start())
    run.at(100.0 + 0.4 * (len(run.selector.paths) - 1))
    run.at(101.0, AttemptSucceeded(len(run.selector.paths) - 1))
    return run


def test_the_better_way_is_tried_again_ever_more_seldom_while_the_worse_one_serves() -> None:
    run = fallen_back()
    for _ in range(20):
        assert run.selector.wake_at is not None
        run.at(run.selector.wake_at)
        assert run.selector.attempting == {0}
        assert run.at(run.now + 5.0, AttemptFailed(0, SILENT)) == []
        assert not run.selector.attempting
        assert run.selector.current == 1
    pauses = [after - before - 5.0 for before, after in zip(run.dials(0)[1:], run.dials(0)[2:], strict=False)]
    assert run.dials(0)[1] - 101.0 <= OPTIONS.probe_initial_s
    assert OPTIONS.probe_max_s / 2 <= pauses[-1] <= OPTIONS.probe_max_s
    assert run.dials(1) == [100.4]


def test_when_it_answers_again_the_link_moves_there_and_it_is_said_once() -> None:
    run = fallen_back()
    assert run.at(105.0) == [StartAttempt(0, "quic answers again")]
    assert run.at(105.1, AttemptSucceeded(0)) == [PathChanged(0, "quic answers again")]
    assert run.selector.wake_at is None
    run.at(1000.0, LinkEnded())
    run.at(1001.0)
    assert run.at(1001.0, AttemptSucceeded(0))[-1:] != [PathChanged(0, "first choice")]


def test_of_three_ways_the_two_better_ones_are_probed_in_turn() -> None:
    run = fallen_back(QUIC, TLS, "ws://h:1")
    run.did.clear()
    run.at(104.0)
    probed_at = run.dials(0)[0]
    run.at(105.0)
    assert run.dials(1) == [probed_at + OPTIONS.attempt_delay_s]
    assert run.at(105.1, AttemptSucceeded(1))[0] == CancelAttempt(0)
    assert run.selector.current == 1
    # The best is still to be had.
    run.at(200.0)
    assert len(run.dials(0)) == 2
    assert len(run.dials(1)) == 1


def test_a_better_way_that_does_not_last_is_probed_more_and_more_seldom() -> None:
    """Else a path that works now and then would move the link all the time."""
    run = fallen_back()
    waits = []
    for _ in range(8):
        began = run.now
        assert run.selector.wake_at is not None
        run.at(run.selector.wake_at)
        waits.append(run.now - began)
        run.at(run.now, AttemptSucceeded(0))
        run.at(run.now + 4.0, LinkEnded())
        run.at(run.now + 20.0)
        run.at(run.now, AttemptSucceeded(1))
    assert waits[-1] > 5 * waits[0]
    # And one that did last counts as working again.
    assert run.selector.wake_at is not None
    run.at(run.selector.wake_at)
    run.at(run.now, AttemptSucceeded(0))
    run.at(run.now + STABLE_AFTER_S, LinkEnded())
    run.at(run.now + 20.0)
    run.at(run.now, AttemptSucceeded(1))
    assert run.selector.wake_at is not None
    assert run.selector.wake_at - run.now <= OPTIONS.probe_initial_s


def test_a_lost_link_starts_a_race_and_ends_a_probe() -> None:
    run = fallen_back()
    run.at(105.0)
    assert run.selector.phase is Phase.PROBING
    assert run.at(105.0, LinkEnded()) == [CancelAttempt(0)]
    assert run.at(106.0)[0] == StartAttempt(0, "first choice")


def test_a_link_of_the_other_side_s_making_is_left_to_it() -> None:
    run = Run()
    run.at(100.0, Start())
    assert run.at(100.1, LinkedElsewhere()) == [CancelAttempt(0)]
    assert run.at(1000.0) == []
    run.at(1000.0, LinkEnded())
    assert run.at(1001.0)[0] == StartAttempt(0, "first choice")
