"""Selects the nodes to link to: all seeds, and a few of the candidates that the resolvers return.

Seeds (addresses that the user configured) are always kept linked. Beyond them, the best candidates are kept linked until
there are as many links as the target: ordered by failures, priority and measured round-trip time, and one chosen at
random so that not all nodes link to the same few. Accepted links count towards the target.

Pure: `handle(event, now) -> effects`, `wake(now)` and `wake_at`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from micro_core.contract.clock import Random
from micro_core.contract.resolver import Candidate

MAX_CANDIDATES = 256
"""Maximum number of candidates; the rest of a longer answer is ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """The number of links to keep, and the interval between queries of the resolvers."""

    target_links: int = 3
    """Number of links that a node tries to keep, accepted links included."""

    resolve_s: float = 60.0
    """Seconds between two queries of the resolvers while the target is met."""

    resolve_when_short_s: float = 5.0
    """Seconds between two queries while links are missing."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """All resolvers have answered. The candidates are in the order of the resolvers."""

    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class PeerLinked:
    """A link to `peer` is up. `address` is the dialled address, or None for an accepted link."""

    peer: str
    address: str | None
    rtt_s: float | None


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The last link to `peer` ended."""

    peer: str


@dataclass(frozen=True, slots=True)
class CandidateFailed:
    """An address that is kept linked could not be dialled. The tunnel tries again by itself."""

    address: str
    is_permanent: bool
    """Whether another attempt cannot help: the peer is this node, or of another network, or no driver supports the
    address."""


PeerEvent = Resolved | PeerLinked | PeerLost | CandidateFailed


@dataclass(frozen=True, slots=True)
class KeepLinked:
    """Dial this address, and again whenever the node there is not linked, until `StopDialing`."""

    address: str


@dataclass(frozen=True, slots=True)
class StopDialing:
    """Stop dialling this address; an established link stays open."""

    address: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Query the resolvers; answer with `Resolved`."""


PeerEffect = KeepLinked | StopDialing | Resolve


@dataclass(slots=True)
class _CandidateState:
    candidate: Candidate
    failures: int = 0
    rtt_s: float | None = None
    avoid_until: float = 0.0
    """Not dialled before this time."""


@dataclass(slots=True)
class Peers:
    """The candidates, the addresses that are kept linked, and the linked peers."""

    seeds: tuple[str, ...]
    options: PeerOptions
    random: Random
    linked: dict[str, str | None] = field(default_factory=dict)
    """Node id of each linked peer to the address that was dialled; None for an accepted link."""
    _candidates: dict[str, _CandidateState] = field(default_factory=dict)
    _kept: set[str] = field(default_factory=set)
    _resolve_at: float = 0.0
    _started: bool = False

    def start(self, now: float) -> list[PeerEffect]:
        """Return the initial effects: keep the seeds linked, query the resolvers."""
        self._started = True
        self._resolve_at = now + self.options.resolve_when_short_s
        self._kept.update(self.seeds)
        return [*(KeepLinked(address) for address in self.seeds), Resolve()]

    def handle(self, event: PeerEvent, now: float) -> list[PeerEffect]:
        """Process an event and return the effects to carry out."""
        match event:
            case Resolved(candidates):
                self._remember(candidates[:MAX_CANDIDATES])
            case PeerLinked(peer, address, rtt_s):
                self.linked[peer] = address
                if address in self._candidates:
                    state = self._candidates[address]
                    state.failures, state.rtt_s = 0, rtt_s
            case PeerLost(peer):
                self.linked.pop(peer, None)
            case CandidateFailed(address, is_permanent):
                if address in self._candidates:
                    state = self._candidates[address]
                    state.failures += 1
                    if is_permanent:
                        state.avoid_until = now + self.options.resolve_s
        return self._balance(now)

    @property
    def wake_at(self) -> float | None:
        """When `wake` must be called next, or None before `start`."""
        return self._resolve_at if self._started else None

    def wake(self, now: float) -> list[PeerEffect]:
        """Query the resolvers again, sooner while links are missing. Call this at `wake_at`."""
        if now < self._resolve_at:
            return []
        short = len(self.linked) < self.options.target_links
        interval = self.options.resolve_when_short_s if short else self.options.resolve_s
        self._resolve_at = now + interval * self.random.uniform(0.9, 1.1)
        return [Resolve(), *self._balance(now)]

    def _remember(self, candidates: Sequence[Candidate]) -> None:
        answered = {candidate.address: candidate for candidate in candidates}
        for address in [old for old in self._candidates if old not in answered and old not in self._kept]:
            del self._candidates[address]
        for address, candidate in answered.items():
            if address in self._candidates:
                self._candidates[address].candidate = candidate
            else:
                self._candidates[address] = _CandidateState(candidate)

    def _balance(self, now: float) -> list[PeerEffect]:
        effects: list[PeerEffect] = []
        for address in sorted(self._kept.difference(self.seeds)):
            state = self._candidates[address]
            if now < state.avoid_until or state.failures >= 5:
                state.failures = 0
                state.avoid_until = max(state.avoid_until, now + self.options.resolve_when_short_s)
                self._kept.discard(address)
                effects.append(StopDialing(address))
        missing = self.options.target_links - len(self.linked) - self._dialing_count()
        if missing > 0:
            for address in self._choose(missing, now):
                self._kept.add(address)
                effects.append(KeepLinked(address))
        return effects

    def _dialing_count(self) -> int:
        dialed = set(self.linked.values())
        return sum(1 for address in self._kept if address not in dialed and address not in self.seeds)

    def _choose(self, count: int, now: float) -> list[str]:
        free = [
            (address, state)
            for address, state in self._candidates.items()
            if address not in self._kept and now >= state.avoid_until
        ]
        free.sort(key=lambda item: (item[1].failures, item[1].candidate.priority, item[1].rtt_s or 0.0))
        chosen = [address for address, _ in free[:count]]
        # The last one is replaced by a random one of the rest. Otherwise all nodes would link to the same few.
        if count > 1 and len(free) > count:
            chosen[-1] = free[self.random.randrange(count - 1, len(free))][0]
        return chosen
