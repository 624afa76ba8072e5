"""Flap damping at the origin, once per service of this site (RFC 2439). Pure.

Each loss of a service adds a penalty, which decays exponentially. While a service is suppressed, i.e. from the moment
its penalty reaches `suppress` until it has decayed to `reuse`, its *announcements* are delayed. Withdrawals are counted
and never delayed, since a delayed withdrawal leads calls to a service that no longer exists. The damper decides only
when an announcement may be sent. The content is the state of the service at that time.

Reuse is guaranteed: the penalty is limited to a ceiling from which it decays to `reuse` within `max_suppress_s`, and a
service that keeps flapping for that long is announced once and keeps its penalty.

docs/design/002-flap-damping.md explains how the constants were chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from micro_core.contract.names import INTEREST_PREFIX

MIN_RECORDED_PENALTY = 10.0
"""The history of a service is deleted when its penalty has decayed below this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DampingPolicy:
    """When announcements are suppressed. Penalties (the figure of merit of RFC 2439) have no unit."""

    withdrawal: float = 1_000.0
    """Penalty for the loss of a service."""
    change: float = 250.0
    """Penalty for a change of the versions or the capacity: it causes messages, but calls still succeed."""
    suppress: float = 4_500.0
    """Reached by about five losses in quick succession, not by three in a minute (RFC 7196 warns of lower values)."""
    reuse: float = 1_500.0
    half_life_s: float = 60.0
    max_suppress_s: float = 120.0
    dry_run: bool = False
    """Compute and show penalties, but suppress nothing."""
    max_services: int = 10_000
    """Maximum number of histories. When it is exceeded, the history with the smallest penalty is deleted."""

    @property
    def ceiling(self) -> float:
        """The maximum penalty: it decays to `reuse` in exactly `max_suppress_s` (RFC 2439 section 4.2)."""
        ceiling: float = self.reuse * 2.0 ** (self.max_suppress_s / self.half_life_s)
        return ceiling


INTEREST_DAMPING = DampingPolicy(half_life_s=2.0, max_suppress_s=4.0)
"""For interest in topics: only a burst is suppressed, and for four seconds at most. A subscriber that comes and goes every
second or more slowly is always announced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlapStatus:
    """The damping state of one service at one moment."""

    service: str
    penalty: float
    losses: int
    """Number of losses since the history began."""
    is_suppressed: bool
    reuse_at: float | None
    """Clock seconds at which the suppression ends if the service does not flap again. None if it is not suppressed."""
    suppressed_for_s: float


@dataclass(slots=True)
class _History:
    policy: DampingPolicy
    penalty: float
    at: float
    losses: int = 0
    suppressed_since: float | None = None
    has_pending: bool = False
    """An announcement was requested during the suppression."""


class Damper:
    """The flap histories of the services of this router, by name."""

    def __init__(self, policy: DampingPolicy | None = None, interest_policy: DampingPolicy | None = None) -> None:
        self.policy = policy or DampingPolicy()
        self.interest_policy = interest_policy or self.policy
        """The policy of interest in topics."""
        self.forgotten = 0
        """Number of histories that were deleted because of `max_services`."""
        self._histories: dict[str, _History] = {}

    # -------------------------------------------------------------------- events

    def record_loss(self, service: str, now: float) -> None:
        """Add the penalty for the loss of the last instance of `service`, whether or not it was announced."""
        history = self._add(service, self._policy_of(service).withdrawal, now)
        history.losses += 1

    def record_change(self, service: str, now: float) -> None:
        """Add the penalty for a change of what is advertised for `service`."""
        self._add(service, self._policy_of(service).change, now)

    def may_announce(self, service: str, now: float) -> bool:
        """Return whether `service` may be announced now. If not, `advance` returns its name as soon as it may."""
        history = self._histories.get(service)
        if history is None:
            return True
        self._end_suppression(history, now)
        if history.suppressed_since is None:
            history.has_pending = False
            return True
        history.has_pending = True
        return history.policy.dry_run

    def reuse(self, service: str) -> bool:
        """Delete the history of `service`, which ends its suppression. Return False if it has no history."""
        return self._histories.pop(service, None) is not None

    # --------------------------------------------------------------------------- time

    @property
    def wake_at(self) -> float | None:
        """When `advance` must be called next, in clock seconds. None if no service is suppressed."""
        if not self._histories:
            return None
        times = [
            self._reuse_at(history) for history in self._histories.values() if history.suppressed_since is not None
        ]
        return min(times, default=None)

    def advance(self, now: float) -> list[str]:
        """Return the services whose delayed announcement may be sent now, each once, and delete decayed histories."""
        reusable = []
        for service, history in [*self._histories.items()]:
            if self._end_suppression(history, now) and history.has_pending:
                history.has_pending = False
                reusable.append(service)
            if history.suppressed_since is None and self._decayed(history, now) < MIN_RECORDED_PENALTY:
                del self._histories[service]
        return reusable

    # -------------------------------------------------------------------------- queries

    def statuses(self, now: float) -> list[FlapStatus]:
        """Return the status of every service that has a history, in descending order of the penalty."""
        found = [
            FlapStatus(
                service=service,
                penalty=self._decayed(history, now),
                losses=history.losses,
                is_suppressed=history.suppressed_since is not None and not history.policy.dry_run,
                reuse_at=None if history.suppressed_since is None else self._reuse_at(history),
                suppressed_for_s=0.0 if history.suppressed_since is None else now - history.suppressed_since,
            )
            for service, history in self._histories.items()
        ]
        return sorted(found, key=lambda status: (-status.penalty, status.service))

    # --------------------------------------------------------------------------- internals

    def _policy_of(self, service: str) -> DampingPolicy:
        return self.interest_policy if service.startswith(INTEREST_PREFIX) else self.policy

    def _add(self, service: str, amount: float, now: float) -> _History:
        history = self._histories.get(service)
        if history is None:
            self._evict_if_full(now)
            history = self._histories[service] = _History(self._policy_of(service), 0.0, now)
        history.penalty = min(history.policy.ceiling, self._decayed(history, now) + amount)
        history.at = now
        if history.penalty >= history.policy.suppress and history.suppressed_since is None:
            history.suppressed_since = now
        return history

    def _decayed(self, history: _History, now: float) -> float:
        penalty: float = history.penalty * 2.0 ** (-max(0.0, now - history.at) / history.policy.half_life_s)
        return penalty

    def _reuse_at(self, history: _History) -> float:
        """Return when the penalty reaches `reuse`, at the latest `max_suppress_s` after the suppression began."""
        assert history.suppressed_since is not None
        latest = history.suppressed_since + history.policy.max_suppress_s
        if history.penalty <= history.policy.reuse:
            return min(history.at, latest)
        return min(latest, history.at + history.policy.half_life_s * math.log2(history.penalty / history.policy.reuse))

    def _end_suppression(self, history: _History, now: float) -> bool:
        """End the suppression if its time has come. Return whether this call ended it."""
        if history.suppressed_since is None or now < self._reuse_at(history):
            return False
        history.suppressed_since = None
        return True

    def _evict_if_full(self, now: float) -> None:
        if len(self._histories) >= self.policy.max_services:
            smallest = min(self._histories, key=lambda service: self._decayed(self._histories[service], now))
            del self._histories[smallest]
            self.forgotten += 1
