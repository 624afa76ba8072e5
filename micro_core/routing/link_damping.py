"""Damping of links that were lost: such a link carries calls again only after it has been up for a while (cf. RFC 2439). Pure.

Each loss of a link adds a penalty to its peer, which decays exponentially, and holds the link: it is *damped* until it has been
up for a hold time, which doubles with each further loss. The routing engine adds `penalty_us` to the cost of a damped link. This
router and all others then use the link only for destinations to which it is the only way.

There is no hold after a first loss if the peer was *isolated* meanwhile: no other router had a route to it for a while, either. Then
this was not a bad line among good ones, but a node that failed, or a network that was partitioned.

A peer that does not answer for more than a second and then answers again counts as half a loss, since its calls had to wait. A
graceful close is not a loss.

The links to the nodes of another site usually share a *line*. When the line fails, nodes often link to other nodes of that site,
whose links have no history yet. So the line has a history of its own, with the same rules, and its hold damps all links to the
site. A loss counts for the line only if no other link of this router to that site answers: otherwise, the node failed.
"""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract.clock import Random
from micro_core.routing.lookup import DEFAULT_SITE

MIN_RECORDED_PENALTY = 10.0
"""The history of a peer is deleted when its penalty has decayed below this and no hold is running."""

SAME_FAULT_S = 2.0
"""Links that share a line are lost within this time when it fails: some time after they last received something."""

MAX_INITIAL_LOSSES = 1.5
"""The penalty of a first loss, perhaps with a stall before it, is at most that of this many losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDampingPolicy:
    """When and for how long a link is damped. Penalties (the figure of merit of RFC 2439) have no unit."""

    loss: float = 1_000.0
    """Penalty for one loss."""
    stall: float = 500.0
    """Penalty for a stall: the peer has not answered for `stall_s` or longer, and answers again."""
    stall_s: float = 1.0
    half_life_s: float = 60.0
    ceiling: float = 6_000.0
    """Maximum penalty, so that old losses are forgotten in bounded time."""
    hold_s: float = 12.0
    """Hold time after a first loss. It doubles with each further `loss`, less what has decayed."""
    max_hold_s: float = 120.0
    spread: float = 0.25
    """A hold is longer by a random share of at most this. After a partition, the holds of all links begin at the same time; if they
    ended at the same time, too, each end would change many routes at once."""
    isolated_s: float = 5.0
    """A peer to which no router has a route for this long is isolated. If a line fails, routers know other ways before that."""
    last_resort_us: int = 10_000_000
    """Cost of a damped link in addition to its own, in microseconds: more than that of any path without damped links."""
    max_peers: int = 4_096
    """Maximum number of histories. When it is exceeded, the history with the smallest penalty is deleted."""

    def hold_after(self, penalty: float, spread: float = 1.0) -> float:
        """Return how long a link must be up after a loss that lifted the penalty to `penalty`, in seconds, times `spread`."""
        hold_s: float = spread * self.hold_s * 2.0 ** (penalty / self.loss - 1.0)
        return min(hold_s, self.max_hold_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDampingStatus:
    """The damping state of the link to one peer at one moment."""

    peer: str
    """Node id."""
    penalty: float
    """The larger one of the penalties of the peer and of the line to its site."""
    losses: int
    """Number of losses of the link since its history began."""
    is_damped: bool
    reuse_at: float | None
    """Clock seconds at which the link is used again if it stays up. None if it is not damped, or if it is down."""


@dataclass(slots=True)
class _History:
    penalty: float
    at: float
    """When `penalty` was computed, i.e. the time of the last loss."""
    losses: int = 0
    hold_s: float = 0.0
    """Seconds for which the link must be up before it is used. 0 if it is not held."""
    up_at: float | None = None
    """When the link came up. None while it is down."""

    @property
    def reuse_at(self) -> float | None:
        return None if self.up_at is None or not self.hold_s else self.up_at + self.hold_s

    def end_hold(self, now: float) -> bool:
        """End the hold if it is over. Return whether it has just ended."""
        reuse_at = self.reuse_at
        if reuse_at is None or now < reuse_at:
            return False
        self.hold_s = 0.0
        return True

    def is_damped(self, now: float) -> bool:
        if not self.hold_s:
            return False
        reuse_at = self.reuse_at
        return reuse_at is None or now < reuse_at


class _Histories(dict[str, _History]):
    """The histories of peers by node id, or of lines by site."""

    def __init__(self, policy: LinkDampingPolicy, random: Random | None) -> None:
        super().__init__()
        self.policy = policy
        self.forgotten = 0
        self._random = random

    def lost(self, key: str, now: float, penalty: float) -> None:
        policy, history = self.policy, self.get(key)
        if history is None:
            self._evict_if_full(now)
            history = self[key] = _History(0.0, now)
        history.end_hold(now)
        history.penalty = min(policy.ceiling, self.decayed(history, now) + penalty)
        history.at = now
        history.losses += 1
        # A hold is not shortened by a later loss, since the penalty may have decayed meanwhile.
        spread = self._random.uniform(1.0, 1.0 + policy.spread) if self._random is not None else 1.0
        history.hold_s = max(history.hold_s, policy.hold_after(history.penalty, spread))
        history.up_at = None

    def closed(self, key: str, now: float) -> None:
        history = self.get(key)
        if history is not None:
            history.end_hold(now)
            history.up_at = None

    def up(self, key: str, now: float) -> None:
        history = self.get(key)
        if history is not None and history.up_at is None:
            history.up_at = now

    def isolated(self, key: str, since: float, now: float) -> None:
        history, isolated_s = self.get(key), self.policy.isolated_s
        if (
            history is not None
            and history.up_at is None
            and now - history.at >= isolated_s
            # Routers detect a fault at different times. An isolation that began before that has another cause.
            and history.at - since <= isolated_s
            and history.penalty <= MAX_INITIAL_LOSSES * self.policy.loss
        ):
            history.hold_s = 0.0

    def is_damped(self, key: str, now: float) -> bool:
        history = self.get(key)
        return history is not None and history.is_damped(now)

    @property
    def wake_at(self) -> float | None:
        return min((at for history in self.values() if (at := history.reuse_at) is not None), default=None)

    def advance(self, now: float) -> list[str]:
        """Return the keys whose hold has ended, each once, and delete decayed histories."""
        released = []
        for key, history in [*self.items()]:
            if history.end_hold(now):
                released.append(key)
            # A held link that has been down for that long is a new one when it returns.
            is_forgettable = not history.hold_s or history.up_at is None
            if is_forgettable and self.decayed(history, now) < MIN_RECORDED_PENALTY:
                del self[key]
        return released

    def decayed(self, history: _History | None, now: float) -> float:
        if history is None:
            return 0.0
        decayed: float = history.penalty * 0.5 ** (max(0.0, now - history.at) / self.policy.half_life_s)
        return decayed

    def _evict_if_full(self, now: float) -> None:
        if len(self) < self.policy.max_peers:
            return
        del self[min(self, key=lambda key: self.decayed(self[key], now))]
        self.forgotten += 1


@dataclass(slots=True)
class _Link:
    site: str
    """Empty if the link shares no line with others."""
    suspect_since: float | None = None


class LinkDamper:
    """The flap histories of the links of this router, by the node id of the peer and by its site. `now` is in clock seconds.

    A link is damped while its own hold runs, or that of the line to its site. Without `random`, holds are not spread.
    """

    def __init__(
        self, policy: LinkDampingPolicy | None = None, *, own_site: str = "", random: Random | None = None
    ) -> None:
        self.policy = policy or LinkDampingPolicy()
        self._without_line = frozenset(("", DEFAULT_SITE, own_site))
        self._peers = _Histories(self.policy, random)
        self._sites = _Histories(self.policy, random)
        self._links: dict[str, _Link] = {}

    @property
    def forgotten(self) -> int:
        """Number of histories that were deleted because of `max_peers`."""
        return self._peers.forgotten + self._sites.forgotten

    # -------------------------------------------------------------------- events

    def link_up(self, peer: str, now: float, *, site: str = "") -> None:
        """Record that there is a link to `peer`. If it is held, the hold time begins now.

        Links to the same `site` share a line, except those to the own site and to sites without a name.
        """
        if peer not in self._links:
            link = self._links[peer] = _Link("" if site in self._without_line else site)
            self._peers.up(peer, now)
            self._sites.up(link.site, now)

    def peer_isolated(self, peer: str, site: str, since: float, now: float) -> None:
        """Record that no router has had a route to `peer`, a node of `site`, from `since` until `now`.

        If the link to it is down, it is not held. The same holds for the line to its site, if it was lost in the same fault.
        """
        if now - since >= self.policy.isolated_s:
            self._peers.isolated(peer, since, now)
            self._sites.isolated(site, since, now)

    def link_lost(self, peer: str, now: float, *, is_graceful: bool = False) -> list[str]:
        """Record the end of the link to `peer`. To be called when no other link to it is left.

        Args:
            peer: Node id.
            now: The current time in clock seconds.
            is_graceful: The link was closed on purpose, e.g. because one of the nodes stops. This adds no penalty, and a
                hold begins again when the link comes back.

        Returns:
            The other peers to whose links the cost has changed.
        """
        link = self._links.pop(peer, None)
        if is_graceful:
            self._peers.closed(peer, now)
            if link is not None and not self._siblings(peer, link.site):
                self._sites.closed(link.site, now)
            return []
        self._peers.lost(peer, now, self.policy.loss)
        return self._line_lost(peer, link.site, now, self.policy.loss) if link is not None else []

    def link_suspect(self, peer: str, now: float, *, is_suspect: bool) -> list[str]:
        """Record that `peer` does not answer, or answers again. If it has not answered for `stall_s`, that counts as a loss.

        Returns the peers to whose links the cost has changed.
        """
        link = self._links.get(peer)
        if link is None:
            return []
        since, link.suspect_since = link.suspect_since, now if is_suspect else None
        if since is None or is_suspect or now - since < self.policy.stall_s:
            return []
        self._peers.lost(peer, now, self.policy.stall)
        self._peers.up(peer, now)
        return [peer, *self._line_lost(peer, link.site, now, self.policy.stall)]

    def _line_lost(self, peer: str, site: str, now: float, penalty: float) -> list[str]:
        """Record the loss of a link to `site`, if it may be a fault of the line. Returns the other peers there."""
        siblings = self._siblings(peer, site)
        if not site or any(self._links[one].suspect_since is None for one in siblings):
            # Another node of the site answers.
            return []
        history = self._sites.get(site)
        if history is None or now - history.at > SAME_FAULT_S:
            self._sites.lost(site, now, penalty)
        elif not siblings:
            history.up_at = None
        if siblings or peer in self._links:
            self._sites.up(site, now)
        return siblings

    def _siblings(self, peer: str, site: str) -> list[str]:
        return [one for one, link in self._links.items() if link.site == site and one != peer] if site else []

    # --------------------------------------------------------------------------- time

    @property
    def wake_at(self) -> float | None:
        """When `advance` must be called next, in clock seconds. None if no hold is running."""
        if not self._peers and not self._sites:
            # The usual case, asked after every message.
            return None
        return min((at for one in (self._peers, self._sites) if (at := one.wake_at) is not None), default=None)

    def advance(self, now: float) -> list[str]:
        """Return the peers whose hold has ended, each once, and delete decayed histories.

        The cost of the links to these peers has changed.
        """
        released = dict.fromkeys(self._peers.advance(now))
        for site in self._sites.advance(now):
            released |= dict.fromkeys(self._siblings("", site))
        return [peer for peer in released if not self.is_damped(peer, now)]

    # -------------------------------------------------------------------------- queries

    def is_damped(self, peer: str, now: float) -> bool:
        """Return whether the link to `peer` is to be used only as the last resort."""
        return self._peers.is_damped(peer, now) or self._sites.is_damped(self._site(peer), now)

    def penalty_us(self, peer: str, now: float) -> int:
        """Return the cost to add to that of the link to `peer`, in microseconds: 0 if it is not damped."""
        return self.policy.last_resort_us if self.is_damped(peer, now) else 0

    def reuse_at(self, peer: str) -> float | None:
        """Return when the hold of the link to `peer` ends if it stays up. None if it is not held, or if it is down."""
        histories = (self._peers.get(peer), self._sites.get(self._site(peer)))
        return max((at for one in histories if one is not None and (at := one.reuse_at) is not None), default=None)

    def statuses(self, now: float) -> list[LinkDampingStatus]:
        """Return the status of every peer that has a history or whose line has one, in descending order of the penalty."""
        peers = dict.fromkeys(self._peers)
        peers |= dict.fromkeys(peer for peer, link in self._links.items() if link.site in self._sites)
        found = []
        for peer in peers:
            history, line = self._peers.get(peer), self._sites.get(self._site(peer))
            is_damped = self.is_damped(peer, now)
            found.append(
                LinkDampingStatus(
                    peer=peer,
                    penalty=max(self._peers.decayed(history, now), self._sites.decayed(line, now)),
                    losses=history.losses if history is not None else 0,
                    is_damped=is_damped,
                    reuse_at=self.reuse_at(peer) if is_damped else None,
                )
            )
        return sorted(found, key=lambda status: (-status.penalty, status.peer))

    def _site(self, peer: str) -> str:
        link = self._links.get(peer)
        return link.site if link is not None else ""
