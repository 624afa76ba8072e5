"""The ways to a node: one driver after the other, raced with a head start, and back to the better one when it works again.

A node may be reached over several drivers, in the order in which this node prefers them (QUIC, then TLS). The first way is
tried alone for a moment; then the next one as well, and the first link that stands wins (as RFC 8305 does with addresses).
While a link stands over a way that is not the first, the better ones are tried again, ever more seldom.

Pure: `handle(event, now) -> effects`, `wake(now)`, `wake_at`, in seconds of any monotonic clock.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from micro_core.contract.clock import Random
from micro_core.contract.errors import BadRequest, MicroError, Unauthorized, Unreachable
from micro_core.contract.names import split_host_port
from micro_core.tunnel.backoff import Backoff

ALTERNATIVES = "|"
"""Between several addresses of one node: `quic://10.0.0.2:8085|tls://10.0.0.2:443`."""

NO_DRIVER = "no-tunnel-driver"
"""Id of the error for an address that no driver in use understands: trying again cannot help."""

FIRST_CHOICE = "first choice"
"""Why a link goes over the first of several ways."""

MAX_WAYS = 8
"""Ways to one node; of a longer list the first are taken."""

STEADY_S = 60.0
"""A better way that has carried a link for so long counts as working: the next fallback starts its pauses anew."""


def ways_to(address: str, schemes: Sequence[str]) -> tuple[str, ...]:
    """The addresses to dial for `address`, best first, each with the scheme of a driver in use (`schemes`, in order).

    Several addresses, joined by `|`: those. One without a scheme: every driver, at that place. One with a scheme: that
    driver, then those after it, at the same host and port (UDP and TCP have ports of their own, so the number may be the
    same). Raises Unreachable where no driver in use understands any.
    """
    parts = [part.strip() for part in address.split(ALTERNATIVES) if part.strip()]
    if len(parts) == 1:
        found = _spread(parts[0], schemes)
    else:
        listed = [part if "://" in part else f"{schemes[0]}://{part}" for part in parts if schemes]
        found = [part for scheme in schemes for part in listed if part.startswith(f"{scheme}://")]
    if not found:
        known = ", ".join(schemes) or "none"
        raise Unreachable(
            f"no tunnel driver for {address:.300}",
            hint=f"drivers in use: {known}; name one with --plugins, as in --plugins quic",
            id=NO_DRIVER,
        )
    return tuple(dict.fromkeys(found))[:MAX_WAYS]


def _spread(address: str, schemes: Sequence[str]) -> list[str]:
    named, separator, bare = address.partition("://")
    if not separator:
        return [f"{scheme}://{address}" for scheme in schemes]
    if named not in schemes:
        return []
    place = schemes.index(named)
    return [f"{scheme}://{bare}" for scheme in (schemes[place:] if _is_host_port(bare) else [named])]


def _is_host_port(bare: str) -> bool:
    """Whether another driver could be asked for the same place; names within one process are no such place."""
    try:
        _, port = split_host_port(bare)
    except BadRequest:
        return False
    return port > 0


# ------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Wanted:
    """A link is wanted now."""


@dataclass(frozen=True, slots=True)
class Linked:
    """The link dialled over this way stands."""

    way: int


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The node is linked already, by a link that was not made here: it dialled us, or it has another address."""


@dataclass(frozen=True, slots=True)
class DialLost:
    """Nothing came of a dial."""

    way: int
    error: MicroError


@dataclass(frozen=True, slots=True)
class LinkGone:
    """No link to the node stands any more."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """Others have linked to the node: it is up, so what is left of a pause is better spent dialling."""


WayEvent = Wanted | Linked | Elsewhere | DialLost | LinkGone | Arrived


# ------------------------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class Dial:
    """Dial this way; answer with Linked, Elsewhere or DialLost."""

    way: int
    why: str
    """What speaks for it, for people: empty for the only one there is."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up this dial; it is not to be answered."""

    way: int


@dataclass(frozen=True, slots=True)
class Settled:
    """A link stands over another way than the last one did: worth saying."""

    way: int
    why: str


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Every way has failed; the next try comes by itself."""

    error: MicroError


WayEffect = Dial | Abandon | Settled | Exhausted


class Phase(enum.Enum):
    """What a finder is at."""

    IDLE = "idle"
    """Before `Wanted`."""
    RACING = "racing"
    """No link yet; one way or several are being dialled."""
    LINKED = "linked"
    """A link made here stands. If not over the first way, the better ones are tried at `wake_at`."""
    PROBING = "probing"
    """A link made here stands, and better ways are being dialled."""
    ELSEWHERE = "elsewhere"
    """A link of somebody else's making stands: its maker looks after it."""
    WAITING = "waiting"
    """No link; the next race begins at `wake_at`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOptions:
    """Times of dialling."""

    head_start_s: float = 0.4
    """How long a better way is tried alone. QUIC and the nodes' handshake take 2.5 round trips, so paths of up to 160 ms
    never see the second dial; and TLS has 0.6 s left to stand within one second."""

    probe_first_s: float = 3.0
    probe_last_s: float = 60.0
    """Bounds of the pause between two tries of the better ways, while a link stands over a worse one."""

    redial_first_s: float = 0.2
    redial_last_s: float = 15.0
    """Bounds of the pause between two races."""

    redial_arrived_s: float = 1.0
    """The least time between two races where one begins because others have linked to the node: they may be wrong."""

    redial_refused_s: float = 30.0
    """The pause where the peer refused: another network, another token, oneself."""


class WayFinder:
    """How one node is reached. Invariant: dials under way are those of `dialling`, and none is made of a way twice."""

    def __init__(self, ways: Sequence[str], options: WayOptions, random: Random) -> None:
        self.ways = tuple(ways)
        self.phase = Phase.IDLE
        self.current: int | None = None
        """The way over which the link stands, in the phases LINKED and PROBING."""
        self.dialling: set[int] = set()
        self._options = options
        self._redial = Backoff(random=random, first_s=options.redial_first_s, last_s=options.redial_last_s)
        self._probe = Backoff(random=random, first_s=options.probe_first_s, last_s=options.probe_last_s)
        self._next = self._end = 0
        """Of a race or a probe: the way to dial next, and the first that is not to be dialled."""
        self._errors: dict[int, MicroError] = {}
        self._wake_at: float | None = None
        self._raced_at = 0.0
        self._is_arrived = False
        """Others have told of the node since the race began: it may have come up after it was dialled."""
        self._is_refused = False
        self._linked_at = 0.0
        self._last = 0
        """The way of the last link, which need not be said again."""

    @property
    def wake_at(self) -> float | None:
        """When `wake` is next needed."""
        return self._wake_at

    def wake(self, now: float) -> list[WayEffect]:
        """Called at `wake_at`."""
        if self._wake_at is None or now < self._wake_at:
            return []
        self._wake_at = None
        match self.phase:
            case Phase.WAITING:
                return self._race(now)
            case Phase.LINKED:
                assert self.current is not None
                self.phase = Phase.PROBING
                self._errors = {}
                self._next, self._end = 0, self.current
                return self._dial_next(now)
            case Phase.RACING | Phase.PROBING if self._next < self._end:
                return self._dial_next(now)
            case _:
                return []

    def handle(self, event: WayEvent, now: float) -> list[WayEffect]:
        match event:
            case Wanted():
                return self._race(now)
            case Linked(way):
                return self._linked(way, now)
            case Elsewhere():
                self._wake_at, self.current = None, None
                self.phase = Phase.ELSEWHERE
                return self._abandon_all()
            case DialLost(way, error):
                return self._lost(way, error, now)
            case LinkGone():
                return self._gone(now)
            case Arrived():
                self._is_arrived = True
                self._hasten(now)
                return self.wake(now)

    # ----------------------------------------------------------------- inside

    def _hasten(self, now: float) -> None:
        """End a pause early where others say that the node is up. Who was refused there gains nothing by it."""
        if self._is_arrived and self.phase is Phase.WAITING and self._wake_at is not None and not self._is_refused:
            # The pauses go on from where they were, should the next dial fail as well.
            self._wake_at = min(self._wake_at, max(now, self._raced_at + self._options.redial_arrived_s))

    def _race(self, now: float) -> list[WayEffect]:
        self.phase, self.current, self._raced_at = Phase.RACING, None, now
        self._is_arrived = self._is_refused = False
        self._errors = {}
        self._next, self._end = 0, len(self.ways)
        return [*self._abandon_all(), *self._dial_next(now)]

    def _dial_next(self, now: float) -> list[WayEffect]:
        way, self._next = self._next, self._next + 1
        self.dialling.add(way)
        self._wake_at = now + self._options.head_start_s if self._next < self._end else None
        return [Dial(way, self._why(way))]

    def _linked(self, way: int, now: float) -> list[WayEffect]:
        was_probing = self.phase is Phase.PROBING
        self.dialling.discard(way)
        effects = self._abandon_all()
        self.phase, self.current, self._linked_at = Phase.LINKED, way, now
        self._redial.reset()
        self._wake_at = now + self._probe.next_s() if way > 0 else None
        if way != self._last:
            why = f"{_scheme(self.ways[way])} answers again" if was_probing else self._why(way)
            effects.append(Settled(way, why))
        self._last = way
        return effects

    def _lost(self, way: int, error: MicroError, now: float) -> list[WayEffect]:
        if way not in self.dialling:
            # Abandoned while it failed.
            return []
        self.dialling.discard(way)
        self._errors[way] = error
        if self._next < self._end:
            return self._dial_next(now)
        if self.dialling:
            return []
        if self.phase is Phase.PROBING:
            self.phase = Phase.LINKED
            self._wake_at = now + self._probe.next_s()
            return []
        self.phase = Phase.WAITING
        failed = self._failure()
        self._is_refused = isinstance(failed, Unauthorized)
        self._wake_at = now + (self._options.redial_refused_s if self._is_refused else self._redial.next_s())
        self._hasten(now)
        return [Exhausted(failed)]

    def _gone(self, now: float) -> list[WayEffect]:
        if self.phase not in (Phase.LINKED, Phase.PROBING, Phase.ELSEWHERE):
            return []
        if self.current == 0 and now - self._linked_at >= STEADY_S:
            self._probe.reset()
        self.phase, self.current = Phase.WAITING, None
        self._wake_at = now + self._redial.next_s()
        return self._abandon_all()

    def _abandon_all(self) -> list[WayEffect]:
        effects: list[WayEffect] = [Abandon(way) for way in sorted(self.dialling)]
        self.dialling.clear()
        return effects

    def _why(self, way: int) -> str:
        """Why this way and none before it."""
        if len(self.ways) == 1:
            return ""
        if self.phase is Phase.PROBING:
            return f"{_scheme(self.ways[way])} answers again"
        if way == 0:
            return FIRST_CHOICE
        return "; ".join(self._shortcoming(before) for before in range(way))

    def _shortcoming(self, way: int) -> str:
        scheme, error = _scheme(self.ways[way]), self._errors.get(way)
        if error is None:
            return f"{scheme} gave no answer in {self._options.head_start_s:.3g} s"
        return f"{scheme} failed: {error.detail}"

    def _failure(self) -> MicroError:
        """One error for all: that of a peer that was met and refused before those of ways that led nowhere."""
        refusals = [error for error in self._errors.values() if isinstance(error, Unauthorized)]
        if refusals:
            return refusals[0]
        errors = [self._errors[way] for way in sorted(self._errors)]
        if len(errors) == 1:
            return errors[0]
        said: Mapping[str, None] = dict.fromkeys(error.detail for error in errors)
        hints = [error.hint for error in errors if error.hint]
        return Unreachable("; ".join(said), at=errors[0].at, hint=hints[-1] if hints else "")


def _scheme(way: str) -> str:
    return way.partition("://")[0]
