"""Decides which nodes to link to, so that the network stays one component and its paths stay short.

The rules, in order of precedence:

1. Seeds (addresses that the user configured) are always kept linked, by the tunnel.
2. `PeerOptions.links_site` links inside the own site and `links_remote` links to other sites: distinct sites first, near
   nodes first (`link_targets`). Accepted links count.
3. A known node that is unreachable, i.e. neither linked nor in the graph nor an origin of routes, is linked regardless of these
   numbers. One link to its part of the network is enough, so nodes wait for a random time and check again.
4. Now and then the worst link is exchanged for a link to a nearer node. The new link is made first.

A node is *probed* before it is linked: the probe finds out which node answers at an address, and how far away it is,
without a link that would carry routes. Only a node that was linked or probed a moment ago is dialled without a probe.

Every attempt ends in exactly one event. The attempts in progress are stored at their addresses in `PeerTable`, and counted
nowhere else. `peer_plan` decides, this module follows the events.

Pure: `handle(event, now) -> effects`, `wake(now)` and `wake_at`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from micro_core.contract.clock import Random
from micro_core.network.link_targets import PeerOptions, Side
from micro_core.network.peer_events import (
    DialFailed,
    DialSucceeded,
    KeepLinked,
    LinkDeclined,
    Measured,
    NodeLeft,
    NodeSeen,
    PeerEffect,
    PeerEvent,
    PeerLinked,
    PeerLost,
    Probed,
    ProbeFailed,
    Reachability,
    Resolve,
    Resolved,
    Resumed,
    Seen,
)
from micro_core.network.peer_plan import HOLD_S, HOLD_SITE_S, MAX_ATTEMPT_S, Planner
from micro_core.network.peer_table import NEVER, KnownLink, KnownNode, PeerTable

INITIAL_RETRY_S = 0.4
MAX_RECENT_RETRY_S = 3.0
MAX_RETRY_S = 60.0
"""The pause after a failure doubles from the first value up to the second one, or up to the third one if the node was not
alive recently."""

RECENT_S = 120.0
"""A node that was alive within this time counts as alive recently."""

SPREAD_S = 0.7
"""A node with links waits for up to this random time before it links to an unreachable node that answers: meanwhile
another node may have done it."""

SHORT_LIVED_S = 10.0
"""A link that ended within this time counts as a flap. The pause before the next dial doubles with each."""

REDIAL_S = 0.15
MAX_LOST_REDIAL_S = 4.0
"""Pause before a node is dialled after its link ended, and its maximum while the node is unreachable."""

SEED_S = 10.0
"""Seconds for which only the tunnel dials a node that it keeps linked."""

DECLINED_S = 600.0
"""A node that closed the link on purpose is not dialled again for this long, unless it is unreachable."""


class Peers:
    """The known nodes, the links to make and the attempts in progress."""

    def __init__(self, *, node_id: str, site: str, seeds: Sequence[str], options: PeerOptions, random: Random) -> None:
        self.site = site
        self.options = options
        self.table = PeerTable(node_id, seeds)
        self._planner = Planner(self.table, site=site, options=options, random=random)
        self._random = random
        self._is_started = False
        self._reachable: frozenset[str] = frozenset()
        self._resolve_at = math.inf
        self._resolved_at = NEVER
        self._expire_at = 0.0

    def start(self, now: float) -> list[PeerEffect]:
        """Return the initial effects: keep the seeds linked, query the resolvers."""
        self._is_started = True
        self._resolve_at = now
        self._planner.start(now)
        seeds = [address.text for address in self.table.addresses.values() if address.is_seed]
        return [*(KeepLinked(text) for text in seeds), *self._plan(now)]

    def handle(self, event: PeerEvent, now: float) -> list[PeerEffect]:
        """Process an event and return the effects to carry out."""
        effects: list[PeerEffect] = []
        match event:
            case Resolved(candidates):
                self.table.list_candidates(candidates)
                self._set_reachable(self._reachable, now)
            case PeerLinked():
                self._linked(event, now)
            case PeerLost(peer):
                self._lost(peer, now)
            case DialSucceeded():
                effects += self._dial_succeeded(event)
            case DialFailed(address, reason, is_permanent, is_own):
                self._planner.exchanges.pop(address, None)
                self._failed(address, reason, now, is_permanent=is_permanent, is_own=is_own)
            case Probed():
                self._probed(event, now)
            case ProbeFailed(address, reason, is_permanent, is_own):
                self._failed(address, reason, now, is_permanent=is_permanent, is_own=is_own)
            case Reachability(nodes):
                self._set_reachable(nodes, now)
            case Seen(nodes):
                for seen in nodes:
                    self._node_seen(seen, now)
            case NodeLeft(node):
                self._left(node, now)
            case LinkDeclined(peer, reason):
                declining = self.table.nodes.get(peer)
                if declining is not None:
                    declining.declined, declining.declined_until = reason, now + DECLINED_S
                    if declining.link is not None:
                        declining.link.is_closing = True
            case Measured(rtts_s):
                for peer, rtt_s in rtts_s.items():
                    self._measured(self.table.nodes.get(peer), rtt_s, now)
            case Resumed():
                self._resumed(now)
        return [*effects, *self._plan(now)]

    @property
    def wake_at(self) -> float | None:
        """When `wake` must be called next, or None before `start`."""
        return min(self._planner.wake_at, self._resolve_at) if self._is_started else None

    def wake(self, now: float) -> list[PeerEffect]:
        """Continue after a pause. Call this at `wake_at`."""
        if now >= self._expire_at:
            self._expire_at = now + MAX_RETRY_S
            self.table.expire(now)
        for address in self.table.attempts():
            if now >= address.tried_at + MAX_ATTEMPT_S:
                self._planner.exchanges.pop(address.text, None)
                self._failed(address.text, f"no outcome within {MAX_ATTEMPT_S:g} s", now)
        return self._plan(now)

    def sides(self) -> tuple[Side, Side]:
        """Return the wanted links and the present ones: inside the own site, and to other sites."""
        return self._planner.sides()

    # ------------------------------------------------------------ links and dials

    def _linked(self, event: PeerLinked, now: float) -> None:
        node = self.table.node(event.peer) if event.address is None else self.table.learn(event.address, event.peer)
        if node is None:
            return
        if node.unreachable_since is not None or not self.table.linked():
            self._planner.hold_until = now + self._planner.jittered(HOLD_S)
            self._planner.hold_sites[event.site] = now + self._planner.jittered(HOLD_SITE_S)
        node.name, node.site = event.name or node.name, event.site or node.site
        node.link = KnownLink(event.address, node.link.up_since if node.link is not None else now)
        node.alive_at, node.unreachable_since = now, None
        node.has_left, node.declined, node.declined_until = False, "", 0.0
        self._measured(node, event.rtt_s, now)

    def _lost(self, peer: str, now: float) -> None:
        node = self.table.nodes.get(peer)
        if node is None or node.link is None:
            return
        is_flap = now - node.link.up_since < SHORT_LIVED_S and not node.link.is_closing
        node.flaps = node.flaps + 1 if is_flap else 0
        node.link, node.is_random = None, False
        node.alive_at = node.answered_at = now
        pause_s = self._planner.jittered(min(MAX_RETRY_S, REDIAL_S * 2 ** min(node.flaps, 10)))
        is_kept = any(address.is_seed for address in node.addresses.values())
        node.dial_at = now + max(pause_s, SEED_S if is_kept else 0.0)
        self._update_reachable(node, now)
        if node.has_left:
            self._left(peer, now)

    def _dial_succeeded(self, event: DialSucceeded) -> list[PeerEffect]:
        node = self.table.learn(event.address, event.peer)
        self.table.end_attempt(event.address)
        given_up = self.table.nodes.get(self._planner.exchanges.pop(event.address, ""))
        if given_up is None or given_up.link is None or event.was_linked or node is None or not node.is_linked:
            return []
        name = node.name or node.id[:8]
        return [self._planner.unlink(given_up, f"exchanged for a link to {name}, which is nearer")]

    def _probed(self, event: Probed, now: float) -> None:
        node = self.table.learn(event.address, event.peer)
        self.table.end_attempt(event.address)
        self.table.addresses[event.address].retry_at = now
        if node is None:
            return
        node.name, node.site = event.name, event.site
        node.alive_at = node.answered_at = now
        node.has_left = False
        self._measured(node, event.rtt_s, now)
        self._update_reachable(node, now)
        if self.table.linked():
            node.reconnect_at = now + self._random.uniform(0.0, SPREAD_S)

    def _failed(self, text: str, reason: str, now: float, *, is_permanent: bool = False, is_own: bool = False) -> None:
        self.table.end_attempt(text)
        address = self.table.addresses.get(text)
        if address is None:
            return
        address.error = reason
        address.is_own, address.is_refused = address.is_own or is_own, is_permanent
        address.failures += 1
        node = self.table.nodes.get(address.owner)
        if node is not None:
            node.answered_at, node.is_random = NEVER, False
        is_recent = not self.table.linked() or (node is not None and now - node.alive_at <= RECENT_S)
        longest_s = MAX_RETRY_S if is_permanent or not is_recent else MAX_RECENT_RETRY_S
        pause_s = longest_s if is_permanent else INITIAL_RETRY_S * 2 ** min(address.failures - 1, 10)
        address.retry_at = now + self._planner.jittered(min(longest_s, pause_s))

    # ---------------------------------------------------------------- other nodes

    def _set_reachable(self, nodes: frozenset[str], now: float) -> None:
        self._reachable = nodes
        lost = [self._update_reachable(node, now) for node in self.table.nodes.values()]
        if any(lost):
            earliest = max(now, self._resolved_at + self.options.resolve_when_short_s)
            self._resolve_at = min(self._resolve_at, earliest + self._random.uniform(0.0, 0.5))

    def _update_reachable(self, node: KnownNode, now: float) -> bool:
        """Note whether a node is linked, in the graph, or an origin of routes. Return whether it no longer is."""
        if node.is_linked or node.id in self._reachable:
            node.alive_at, node.unreachable_since = now, None
            return False
        if node.unreachable_since is not None:
            return False
        node.unreachable_since = now
        if node.flaps:
            node.dial_at = min(node.dial_at, now + MAX_LOST_REDIAL_S)
        self._retry_soon(node, now)
        return True

    def _node_seen(self, seen: NodeSeen, now: float) -> None:
        if seen.has_left:
            self._left(seen.id, now)
            return
        node = self.table.node(seen.id)
        if node is None:
            return
        self.table.add_stated(seen.id, seen.addresses)
        node.name, node.site, node.neighbours = seen.name, seen.site, seen.neighbours
        if seen.is_start:
            node.has_left, node.declined, node.declined_until = False, "", 0.0
            node.alive_at = now
            self._retry_soon(node, now)
        self._update_reachable(node, now)

    def _retry_soon(self, node: KnownNode, now: float) -> None:
        for address in node.addresses.values():
            if not address.is_refused:
                address.retry_at = min(address.retry_at, now + self._random.uniform(0.0, INITIAL_RETRY_S))

    def _left(self, node_id: str, now: float) -> None:
        node = self.table.nodes.get(node_id)
        if node is None:
            return
        node.has_left = True
        for address in node.addresses.values():
            address.retry_at = max(address.retry_at, now + self._planner.jittered(MAX_RECENT_RETRY_S))
        if not node.is_linked:
            self.table.forget(node_id)

    def _resumed(self, now: float) -> None:
        for node in self.table.nodes.values():
            node.dial_at = min(node.dial_at, now)
            self._retry_soon(node, now)
        for address in self.table.unidentified():
            address.retry_at = min(address.retry_at, now)
        self._resolve_at = now

    def _measured(self, node: KnownNode | None, rtt_s: float | None, now: float) -> None:
        if node is not None and rtt_s is not None:
            node.rtt_s, node.measured_at = rtt_s, now

    # ----------------------------------------------------------------------- plan

    def _plan(self, now: float) -> list[PeerEffect]:
        if not self._is_started:
            return []
        effects = self._planner.plan(now)
        if now >= self._resolve_at:
            is_short = any(side.missing for side in self.sides())
            is_short = is_short or any(node.unreachable_since is not None for node in self.table.nodes.values())
            interval_s = self.options.resolve_when_short_s if is_short else self.options.resolve_s
            self._resolve_at, self._resolved_at = now + interval_s * self._random.uniform(0.9, 1.1), now
            effects.append(Resolve())
        return effects
