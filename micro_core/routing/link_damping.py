"""Damping of links that flap: such a link carries calls again only after it has been up for a while (cf. RFC 2439). Pure.

Each loss of a link adds a penalty to its peer, which decays exponentially. A loss that lifts the penalty to `hold_above`,
e.g. the second one within 60 s, holds the link: it is *damped* until it has been up for a hold time, which doubles
with each further loss. The routing engine adds `penalty_us` to the cost of a damped link. This router and all others then use
the link only for destinations to which it is the only way.

A first loss holds nothing, so a node that crashes once is used again at once. A graceful close is not a loss.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_RECORDED_PENALTY = 10.0
"""The history of a peer is deleted when its penalty has decayed below this and no hold is running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDampingPolicy:
    """When and for how long a link is damped. Penalties (the figure of merit of RFC 2439) have no unit."""

    loss: float = 1_000.0
    """Penalty for one loss."""
    hold_above: float = 1_500.0
    """A loss holds the link if the penalty is at least this afterwards. Two losses reach it within one half-life."""
    half_life_s: float = 60.0
    ceiling: float = 6_000.0
    """Maximum penalty. It decays to `hold_above` in two half-lives, so that old losses are forgotten in bounded time."""
    min_hold_s: float = 10.0
    """Hold time at a penalty of `hold_above`. It doubles with each `loss` above that."""
    max_hold_s: float = 120.0
    last_resort_us: int = 10_000_000
    """Cost of a damped link in addition to its own, in microseconds: more than that of any path without damped links."""
    max_peers: int = 4_096
    """Maximum number of histories. When it is exceeded, the history with the smallest penalty is deleted."""

    def hold_s(self, penalty: float) -> float:
        """Return how long a link must be up after a loss that lifted the penalty to `penalty`, in seconds."""
        if penalty < self.hold_above:
            return 0.0
        hold_s: float = self.min_hold_s * 2.0 ** ((penalty - self.hold_above) / self.loss)
        return min(hold_s, self.max_hold_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDampingStatus:
    """The damping state of the link to one peer at one moment."""

    peer: str
    """Node id."""
    penalty: float
    losses: int
    """Number of losses since the history began."""
    is_damped: bool
    reuse_at: float | None
    """Clock seconds at which the link is used again if it stays up. None if it is not damped, or if it is down."""


@dataclass(slots=True)
class _History:
    penalty: float
    at: float
    """When `penalty` was computed."""
    losses: int = 0
    hold_s: float = 0.0
    """Seconds for which the link must be up before it is used. 0 if it is not held."""
    up_at: float | None = None
    """When the link came up. None while it is down."""

    @property
    def reuse_at(self) -> float | None:
        return None if self.up_at is None or not self.hold_s else self.up_at + self.hold_s


class LinkDamper:
    """The flap histories of the links of this router, by the node id of the peer. `now` is in clock seconds."""

    def __init__(self, policy: LinkDampingPolicy | None = None) -> None:
        self.policy = policy or LinkDampingPolicy()
        self.forgotten = 0
        """Number of histories that were deleted because of `max_peers`."""
        self._histories: dict[str, _History] = {}

    # -------------------------------------------------------------------- events

    def link_lost(self, peer: str, now: float, *, is_graceful: bool = False) -> None:
        """Record the end of the link to `peer`. To be called when no other link to it is left.

        Args:
            peer: Node id.
            now: The current time in clock seconds.
            is_graceful: The link was closed on purpose, e.g. because one of the nodes stops. This adds no penalty, and a
                hold begins again when the link comes back.
        """
        history = self._histories.get(peer)
        if is_graceful:
            if history is not None:
                self._end_hold(history, now)
                history.up_at = None
            return
        if history is None:
            self._evict_if_full(now)
            history = self._histories[peer] = _History(0.0, now)
        self._end_hold(history, now)
        history.penalty = min(self.policy.ceiling, self._decayed(history, now) + self.policy.loss)
        history.at = now
        history.losses += 1
        # A hold is not shortened by a later loss, since the penalty may have decayed meanwhile.
        history.hold_s = max(history.hold_s, self.policy.hold_s(history.penalty))
        history.up_at = None

    def link_up(self, peer: str, now: float) -> None:
        """Record that there is a link to `peer`. If it is held, the hold time begins now."""
        history = self._histories.get(peer)
        if history is not None and history.up_at is None:
            history.up_at = now

    # --------------------------------------------------------------------------- time

    @property
    def wake_at(self) -> float | None:
        """When `advance` must be called next, in clock seconds. None if no hold is running."""
        return min((at for history in self._histories.values() if (at := history.reuse_at) is not None), default=None)

    def advance(self, now: float) -> list[str]:
        """Return the peers whose hold has ended, each once, and delete decayed histories.

        The cost of the links to these peers has changed.
        """
        released = []
        for peer, history in [*self._histories.items()]:
            if self._end_hold(history, now):
                released.append(peer)
            # A held link that has been down for that long is a new one when it returns.
            is_forgettable = not history.hold_s or history.up_at is None
            if is_forgettable and self._decayed(history, now) < MIN_RECORDED_PENALTY:
                del self._histories[peer]
        return released

    # -------------------------------------------------------------------------- queries

    def is_damped(self, peer: str, now: float) -> bool:
        """Return whether the link to `peer` is to be used only as the last resort."""
        history = self._histories.get(peer)
        if history is None or not history.hold_s:
            return False
        reuse_at = history.reuse_at
        return reuse_at is None or now < reuse_at

    def penalty_us(self, peer: str, now: float) -> int:
        """Return the cost to add to that of the link to `peer`, in microseconds: 0 if it is not damped."""
        return self.policy.last_resort_us if self.is_damped(peer, now) else 0

    def reuse_at(self, peer: str) -> float | None:
        """Return when the hold of the link to `peer` ends if it stays up. None if it is not held, or if it is down."""
        history = self._histories.get(peer)
        return history.reuse_at if history is not None else None

    def statuses(self, now: float) -> list[LinkDampingStatus]:
        """Return the status of every peer that has a history, in descending order of the penalty."""
        found = []
        for peer, history in self._histories.items():
            is_damped = self.is_damped(peer, now)
            found.append(
                LinkDampingStatus(
                    peer=peer,
                    penalty=self._decayed(history, now),
                    losses=history.losses,
                    is_damped=is_damped,
                    reuse_at=history.reuse_at if is_damped else None,
                )
            )
        return sorted(found, key=lambda status: (-status.penalty, status.peer))

    # --------------------------------------------------------------------------- internals

    def _decayed(self, history: _History, now: float) -> float:
        decayed: float = history.penalty * 0.5 ** (max(0.0, now - history.at) / self.policy.half_life_s)
        return decayed

    @staticmethod
    def _end_hold(history: _History, now: float) -> bool:
        reuse_at = history.reuse_at
        if reuse_at is None or now < reuse_at:
            return False
        history.hold_s = 0.0
        return True

    def _evict_if_full(self, now: float) -> None:
        if len(self._histories) < self.policy.max_peers:
            return
        least = min(self._histories, key=lambda peer: self._decayed(self._histories[peer], now))
        del self._histories[least]
        self.forgotten += 1
