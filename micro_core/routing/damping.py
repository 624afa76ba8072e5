"""Flap damping, where the flapping begins: at the origin, once for each of its services (shape of RFC 2439).

Each time a service of this site is lost altogether its penalty grows; it halves with time. Above `suppress` the service's
*announcements* are held back until the penalty has decayed to `reuse`; a withdrawal is counted and never held, for bad
news that waits leads calls into nothing. What goes out on release is whatever is so by then: the damper says when, and
holds no state of its own about what. History outlives publication.

Release is certain: the penalty is bounded by a ceiling from which it decays to `reuse` within `max_suppress_s`, and a
service that goes on flapping all that time is let out once, with its history.

How the constants were chosen: docs/design/002-flap-damping.md. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FORGET_BELOW = 10.0
"""A penalty decayed to this is no history any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DampingPolicy:
    """When to hold announcements back. Penalties have no unit; one loss of a service costs `withdrawal`."""

    withdrawal: float = 1_000.0
    change: float = 250.0
    """For a change of what is offered (versions, capacity): it disturbs, and breaks nothing."""
    suppress: float = 4_500.0
    """Reached by a handful of losses in quick succession, not by three in a minute (RFC 7196 warns of less)."""
    reuse: float = 1_500.0
    half_life_s: float = 60.0
    max_suppress_s: float = 120.0
    dry_run: bool = False
    """Count and show what would be held, and hold nothing."""
    max_services: int = 10_000
    """Histories kept; beyond, the smallest penalty is forgotten."""

    @property
    def ceiling(self) -> float:
        """RFC 2439 section 4.2: from here the penalty decays to `reuse` in `max_suppress_s`."""
        ceiling: float = self.reuse * 2.0 ** (self.max_suppress_s / self.half_life_s)
        return ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class Flapping:
    """The history of one service, as it is shown."""

    service: str
    penalty: float
    losses: int
    """Since its history began."""
    is_held: bool
    release_at: float | None
    """Clock seconds at which it is let out, if nothing more happens; None where it is not held."""
    held_for_s: float


@dataclass(slots=True)
class _History:
    penalty: float
    at: float
    losses: int = 0
    held_since: float | None = None
    has_waiting: bool = False
    """An announcement was asked for and held."""


class Damper:
    """The histories of this router's own services, by name."""

    def __init__(self, policy: DampingPolicy | None = None) -> None:
        self.policy = policy or DampingPolicy()
        self.forgotten = 0
        self._histories: dict[str, _History] = {}

    # -------------------------------------------------------------------- what happens

    def lost(self, service: str, now: float) -> None:
        """The last instance of `service` went; counted whether or not it was announced at the time."""
        history = self._add(service, self.policy.withdrawal, now)
        history.losses += 1

    def changed(self, service: str, now: float) -> None:
        """What is offered of `service` has changed."""
        self._add(service, self.policy.change, now)

    def may_announce(self, service: str, now: float) -> bool:
        """Whether an announcement may go out now; if not, `due` names the service when it may."""
        history = self._histories.get(service)
        if history is None:
            return True
        self._release(history, now)
        if history.held_since is None:
            history.has_waiting = False
            return True
        history.has_waiting = True
        return self.policy.dry_run

    def release(self, service: str) -> bool:
        """An operator's word: let it out now, with a clean history. False where there is none."""
        return self._histories.pop(service, None) is not None

    # --------------------------------------------------------------------------- time

    @property
    def wake_at(self) -> float | None:
        """When `due` is next worth a look."""
        times = [self._release_at(history) for history in self._histories.values() if history.held_since is not None]
        return min(times, default=None)

    def due(self, now: float) -> list[str]:
        """The services whose held announcement may go out now, each named once; also forgets old histories."""
        released = []
        for service, history in [*self._histories.items()]:
            if self._release(history, now) and history.has_waiting:
                history.has_waiting = False
                released.append(service)
            if history.held_since is None and self._decayed(history, now) < FORGET_BELOW:
                del self._histories[service]
        return released

    # -------------------------------------------------------------------------- looking

    def view(self, now: float) -> list[Flapping]:
        """Every service with a history, the worst first."""
        shown = [
            Flapping(
                service=service,
                penalty=self._decayed(history, now),
                losses=history.losses,
                is_held=history.held_since is not None and not self.policy.dry_run,
                release_at=None if history.held_since is None else self._release_at(history),
                held_for_s=0.0 if history.held_since is None else now - history.held_since,
            )
            for service, history in self._histories.items()
        ]
        return sorted(shown, key=lambda one: (-one.penalty, one.service))

    # --------------------------------------------------------------------------- inside

    def _add(self, service: str, amount: float, now: float) -> _History:
        history = self._histories.get(service)
        if history is None:
            self._make_room(now)
            history = self._histories[service] = _History(0.0, now)
        history.penalty = min(self.policy.ceiling, self._decayed(history, now) + amount)
        history.at = now
        if history.penalty >= self.policy.suppress and history.held_since is None:
            history.held_since = now
        return history

    def _decayed(self, history: _History, now: float) -> float:
        penalty: float = history.penalty * 2.0 ** (-max(0.0, now - history.at) / self.policy.half_life_s)
        return penalty

    def _release_at(self, history: _History) -> float:
        """When the penalty reaches `reuse`, and at the latest `max_suppress_s` after it began to be held."""
        assert history.held_since is not None
        latest = history.held_since + self.policy.max_suppress_s
        if history.penalty <= self.policy.reuse:
            return min(history.at, latest)
        return min(latest, history.at + self.policy.half_life_s * math.log2(history.penalty / self.policy.reuse))

    def _release(self, history: _History, now: float) -> bool:
        """Let out what may be let out; True when this did."""
        if history.held_since is None or now < self._release_at(history):
            return False
        history.held_since = None
        return True

    def _make_room(self, now: float) -> None:
        if len(self._histories) >= self.policy.max_services:
            smallest = min(self._histories, key=lambda service: self._decayed(self._histories[service], now))
            del self._histories[smallest]
            self.forgotten += 1
