"""Path selection on simulated time: addresses, racing, probing, pauses."""

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
REFUSED = Unreachable("no listener on that UDP port")


class Run:
    """A path selector, and its effects with their times."""

    def __init__(self, *paths: str, options: PathOptions = OPTIONS) -> None:
        self.selector = PathSelector(paths or (QUIC, TLS), options, random.Random(1))
        self.now = 100.0
        self.effects: list[tuple[float, PathEffect]] = []

    def at(self, now: float, event: object = None) -> list[PathEffect]:
        """Advance the time to `now`, then handle `event`. Return the effects of both, and record them."""
        before = len(self.effects)
        while (wake_at := self.selector.wake_at) is not None and wake_at <= now:
            self.effects += [(wake_at, effect) for effect in self.selector.wake(wake_at)]
        if event is not None:
            self.effects += [(now, effect) for effect in self.selector.handle(event, now)]  # type: ignore[arg-type]
        self.now = now
        return [effect for _, effect in self.effects[before:]]

    def dials(self, path: int) -> list[float]:
        return [when for when, effect in self.effects if isinstance(effect, StartAttempt) and effect.path == path]


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
def test_address_expands_to_the_paths_of_the_drivers_in_use_preferred_first(address: str, expected: list[str]) -> None:
    assert paths_to(address, ["quic", "tls"]) == tuple(expected)


def test_order_of_the_drivers_is_the_order_of_the_paths() -> None:
    assert paths_to("h:1", ["tls", "quic"]) == (TLS, QUIC)
    assert paths_to("quic://h:1", ["tls", "quic"]) == (QUIC,)


@pytest.mark.parametrize("address", ["ws://h:1", "ws://h:1|wss://h:2", "|"])
def test_address_without_a_driver_is_rejected_with_a_hint(address: str) -> None:
    with pytest.raises(Unreachable, match="no tunnel driver") as caught:
        paths_to(address, ["quic"])
    assert caught.value.id == NO_DRIVER_ERROR_ID
    assert "--plugins" in caught.value.hint


def test_number_of_paths_is_bounded() -> None:
    assert len(paths_to("|".join(f"quic://h:{port}" for port in range(1, 1000)), ["quic"])) == MAX_PATHS


# ------------------------------------------------------------------------------------ racing


def test_only_the_preferred_path_is_dialled_if_it_answers_within_the_attempt_delay() -> None:
    run = Run()
    assert run.at(100.0, Start()) == [StartAttempt(0, "first choice")]
    assert run.at(100.3, AttemptSucceeded(0)) == []
    run.at(1000.0)
    assert run.dials(1) == []
    assert run.selector.phase is Phase.LINKED


def test_second_path_is_dialled_after_the_attempt_delay_and_the_winner_is_reported_once() -> None:
    run = Run()
    run.at(100.0, Start())
    assert run.at(100.5) == [StartAttempt(1, "quic did not answer within 0.4 s")]
    assert run.dials(1) == [100.4]
    assert run.at(100.6, AttemptSucceeded(1)) == [CancelAttempt(0), PathChanged(1, "quic did not answer within 0.4 s")]


def test_failed_attempt_starts_the_next_one_at_once() -> None:
    run = Run()
    run.at(100.0, Start())
    (dial,) = run.at(100.01, AttemptFailed(0, REFUSED))
    assert dial == StartAttempt(1, "quic failed: no listener on that UDP port")


def test_preferred_path_may_win_after_the_attempt_delay() -> None:
    run = Run()
    run.at(100.0, Start())
    assert run.at(100.6, AttemptSucceeded(0)) == [StartAttempt(1, "quic did not answer within 0.4 s"), CancelAttempt(1)]
    assert run.selector.wake_at is None


def test_failure_of_a_cancelled_attempt_is_ignored() -> None:
    run = Run()
    run.at(100.0, Start())
    run.at(100.5)
    run.at(100.6, AttemptSucceeded(1))
    assert run.at(100.7, AttemptFailed(0, SILENT)) == []
    assert run.selector.phase is Phase.LINKED


def test_failure_of_all_paths_reports_every_reason_and_starts_another_race() -> None:
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


def test_pause_between_races_grows_up_to_its_bound_and_refusals_have_their_own_pause() -> None:
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


def with_long_pauses() -> Run:
    """Return a run whose only path has failed so often that the pauses are long."""
    run = Run(QUIC)
    run.at(100.0, Start())
    for _ in range(30):
        run.at(run.selector.wake_at or run.now)
        run.at(run.now + 1.0, AttemptFailed(0, SILENT))
    return run


def test_report_that_the_node_is_up_ends_the_pause_at_a_limited_rate() -> None:
    run = with_long_pauses()
    assert (run.selector.wake_at or 0.0) - run.now > 2.4
    assert run.at(run.now, ReportedUp()) == [StartAttempt(0, "")]
    started = run.now
    run.at(started + 0.1, AttemptFailed(0, SILENT))
    assert run.at(started + 0.1, ReportedUp()) == []
    assert run.selector.wake_at == started + OPTIONS.redial_reported_min_s
    run.at(started + 2.0, AttemptFailed(0, SILENT))
    assert (run.selector.wake_at or 0.0) - run.now > 2.4, "the backoff is not reset"


def test_report_during_an_attempt_shortens_the_pause_after_it() -> None:
    run = with_long_pauses()
    run.at(run.selector.wake_at or run.now)
    started = run.now
    assert run.at(started + 4.0, ReportedUp()) == []
    assert run.at(started + 5.0, AttemptFailed(0, SILENT))[-1:] == [AllPathsFailed(SILENT)]
    assert run.selector.wake_at == started + 5.0


def test_report_about_a_node_that_refused_the_link_is_ignored() -> None:
    run = Run(QUIC)
    run.at(100.0, Start())
    run.at(100.1, AttemptFailed(0, Unauthorized("wrong token")))
    assert run.at(103.0, ReportedUp()) == []
    assert run.selector.wake_at == 100.1 + OPTIONS.redial_refused_s


def test_report_about_a_linked_or_dialled_node_is_ignored() -> None:
    run = Run()
    run.at(100.0, Start())
    assert run.at(100.0, ReportedUp()) == []
    run.at(100.1, AttemptSucceeded(0))
    assert run.at(100.2, ReportedUp()) == []
    assert run.selector.phase is Phase.LINKED


def test_refusal_takes_precedence_over_paths_that_did_not_reach_the_node() -> None:
    run = Run()
    run.at(100.0, Start())
    run.at(100.1, AttemptFailed(0, Unauthorized("wrong token")))
    (effect,) = run.at(100.6, AttemptFailed(1, SILENT))
    assert isinstance(effect, AllPathsFailed)
    assert isinstance(effect.error, Unauthorized)


def test_single_path_has_no_reason() -> None:
    run = Run(TLS)
    assert run.at(100.0, Start()) == [StartAttempt(0, "")]
    error: MicroError = LinkLost("the link broke")
    assert run.at(101.0, AttemptFailed(0, error)) == [AllPathsFailed(error)]


# ----------------------------------------------------------------------------------- probing


def fallen_back(*paths: str) -> Run:
    run = Run(*paths)
    run.at(100.0, Start())
    run.at(100.0 + 0.4 * (len(run.selector.paths) - 1))
    run.at(101.0, AttemptSucceeded(len(run.selector.paths) - 1))
    return run


def test_preferred_path_is_probed_at_growing_intervals() -> None:
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


def test_link_moves_to_a_preferred_path_that_answers_and_is_reported_once() -> None:
    run = fallen_back()
    assert run.at(105.0) == [StartAttempt(0, "quic answers again")]
    assert run.at(105.1, AttemptSucceeded(0)) == [PathChanged(0, "quic answers again")]
    assert run.selector.wake_at is None
    run.at(1000.0, LinkEnded())
    run.at(1001.0)
    assert run.at(1001.0, AttemptSucceeded(0))[-1:] != [PathChanged(0, "first choice")]


def test_two_preferred_paths_are_probed_one_after_the_other() -> None:
    run = fallen_back(QUIC, TLS, "ws://h:1")
    run.effects.clear()
    run.at(104.0)
    probed_at = run.dials(0)[0]
    run.at(105.0)
    assert run.dials(1) == [probed_at + OPTIONS.attempt_delay_s]
    assert run.at(105.1, AttemptSucceeded(1))[0] == CancelAttempt(0)
    assert run.selector.current == 1
    # The most preferred path is still probed.
    run.at(200.0)
    assert len(run.dials(0)) == 2
    assert len(run.dials(1)) == 1


def test_unstable_preferred_path_is_probed_at_growing_intervals() -> None:
    """Otherwise a path that works only occasionally would move the link again and again."""
    run = fallen_back()
    waits = []
    for _ in range(8):
        started = run.now
        assert run.selector.wake_at is not None
        run.at(run.selector.wake_at)
        waits.append(run.now - started)
        run.at(run.now, AttemptSucceeded(0))
        run.at(run.now + 4.0, LinkEnded())
        run.at(run.now + 20.0)
        run.at(run.now, AttemptSucceeded(1))
    assert waits[-1] > 5 * waits[0]
    # A path that was stable is probed at the initial interval again.
    assert run.selector.wake_at is not None
    run.at(run.selector.wake_at)
    run.at(run.now, AttemptSucceeded(0))
    run.at(run.now + STABLE_AFTER_S, LinkEnded())
    run.at(run.now + 20.0)
    run.at(run.now, AttemptSucceeded(1))
    assert run.selector.wake_at is not None
    assert run.selector.wake_at - run.now <= OPTIONS.probe_initial_s


def test_lost_link_ends_a_probe_and_starts_a_race() -> None:
    run = fallen_back()
    run.at(105.0)
    assert run.selector.phase is Phase.PROBING
    assert run.at(105.0, LinkEnded()) == [CancelAttempt(0)]
    assert run.at(106.0)[0] == StartAttempt(0, "first choice")


def test_link_dialled_by_the_peer_cancels_all_attempts() -> None:
    run = Run()
    run.at(100.0, Start())
    assert run.at(100.1, LinkedElsewhere()) == [CancelAttempt(0)]
    assert run.at(1000.0) == []
    run.at(1000.0, LinkEnded())
    assert run.at(1001.0)[0] == StartAttempt(0, "first choice")
