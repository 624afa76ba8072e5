"""Whom to link to: from candidates to a few kept links.

Seeds (addresses the user named) are always kept. Beyond them, the best candidates are kept until the target
number of links stands: the resolver's order first, measured round trips once known, and one at random so that
not everybody crowds the same few nodes. Accepted links count towards the target.

Pure: `handle(event, now) -> effects`, `wake_at`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from micro_core.contract.clock import Random
from micro_core.contract.resolver import Candidate

MAX_CANDIDATES = 256
"""Candidates remembered; a resolver that answers with more is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """How many links, and how often to look again."""

    target_links: int = 3
    """Links a node tries to keep beyond its seeds, accepted ones included (the original's figure)."""

    resolve_s: float = 60.0
    """Seconds between looks at the resolvers while the target is met."""

    resolve_when_short_s: float = 5.0
    """Seconds between looks while links are missing."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """All resolvers have answered: the candidates, in the order of the resolvers."""

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
    """A kept address could not be linked this time; the tunnel tries again by itself."""

    address: str
    hopeless: bool
    """True when trying again cannot help: it was ourselves, another network, or a peer already linked."""


PeerEvent = Resolved | PeerLinked | PeerLost | CandidateFailed


@dataclass(frozen=True, slots=True)
class KeepLink:
    """Dial this address and keep dialling until told otherwise."""

    address: str


@dataclass(frozen=True, slots=True)
class DropLink:
    """Stop dialling this address."""

    address: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Ask the resolvers; answer with `Resolved`."""


PeerEffect = KeepLink | DropLink | Resolve


@dataclass(slots=True)
class _Known:
    candidate: Candidate
    failures: int = 0
    rtt_s: float | None = None
    hopeless_until: float = 0.0


@dataclass(slots=True)
class Peers:
    """The state: candidates, what is being kept, what is linked."""

    seeds: tuple[str, ...]
    options: PeerOptions
    random: Random
    linked: dict[str, str | None] = field(default_factory=dict)
    """Peer id to the address we dialled, None when they dialled us."""
    _known: dict[str, _Known] = field(default_factory=dict)
    _kept: set[str] = field(default_factory=set)
    _resolve_at: float = 0.0
    _started: bool = False

    def start(self, now: float) -> list[PeerEffect]:
        """Keep the seeds and ask the resolvers for the first time."""
        self._started = True
        self._resolve_at = now + self.options.resolve_when_short_s
        self._kept.update(self.seeds)
        return [*(KeepLink(address) for address in self.seeds), Resolve()]

    def handle(self, event: PeerEvent, now: float) -> list[PeerEffect]:
        match event:
            case Resolved(candidates):
                self._remember(candidates[:MAX_CANDIDATES])
            case PeerLinked(peer, address, rtt_s):
                self.linked[peer] = address
                if address in self._known:
                    known = self._known[address]
                    known.failures, known.rtt_s = 0, rtt_s
            case PeerLost(peer):
                self.linked.pop(peer, None)
            case CandidateFailed(address, hopeless):
                if address in self._known:
                    known = self._known[address]
                    known.failures += 1
                    if hopeless:
                        known.hopeless_until = now + self.options.resolve_s
        return self._balance(now)

    @property
    def wake_at(self) -> float | None:
        return self._resolve_at if self._started else None

    def wake(self, now: float) -> list[PeerEffect]:
        """Called at `wake_at`: look at the resolvers again, sooner while links are missing."""
        if now < self._resolve_at:
            return []
        short = len(self.linked) < self.options.target_links
        interval = self.options.resolve_when_short_s if short else self.options.resolve_s
        self._resolve_at = now + interval * self.random.uniform(0.9, 1.1)
        return [Resolve(), *self._balance(now)]

    def _remember(self, candidates: Sequence[Candidate]) -> None:
        answered = {candidate.address: candidate for candidate in candidates}
        for address in [known for known in self._known if known not in answered and known not in self._kept]:
            del self._known[address]
        for address, candidate in answered.items():
            if address in self._known:
                self._known[address].candidate = candidate
            else:
                self._known[address] = _Known(candidate)

    def _balance(self, now: float) -> list[PeerEffect]:
        effects: list[PeerEffect] = []
        for address in sorted(self._kept.difference(self.seeds)):
            known = self._known[address]
            if now < known.hopeless_until or known.failures >= 5:
                known.failures = 0
                known.hopeless_until = max(known.hopeless_until, now + self.options.resolve_when_short_s)
                self._kept.discard(address)
                effects.append(DropLink(address))
        missing = self.options.target_links - len(self.linked) - self._dialing_count()
        if missing > 0:
            for address in self._choose(missing, now):
                self._kept.add(address)
                effects.append(KeepLink(address))
        return effects

    def _dialing_count(self) -> int:
        dialed = set(self.linked.values())
        return sum(1 for address in self._kept if address not in dialed and address not in self.seeds)

    def _choose(self, count: int, now: float) -> list[str]:
        free = [
            (address, known)
            for address, known in self._known.items()
            if address not in self._kept and now >= known.hopeless_until
        ]
        free.sort(key=lambda item: (item[1].failures, item[1].candidate.priority, item[1].rtt_s or 0.0))
        chosen = [address for address, _ in free[:count]]
        # One at random among the rest, in place of the last: else everybody crowds the same few (W-N15).
        if count > 1 and len(free) > count:
            chosen[-1] = free[self.random.randrange(count - 1, len(free))][0]
        return chosen
