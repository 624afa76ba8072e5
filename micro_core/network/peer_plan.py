"""Decides what to dial, probe and close, given the known nodes. See `peers` for the rules.

Pure: `plan(now) -> effects`; afterwards, `wake_at` is the time at which something more is due.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from micro_core.contract.clock import Random
from micro_core.network.link_targets import (
    PeerOptions,
    Side,
    choose,
    find_eviction,
    find_exchange,
    find_surplus,
    well_linked_sites,
)
from micro_core.network.peer_events import Dial, PeerEffect, Probe, Unlink
from micro_core.network.peer_table import Address, Attempt, KnownNode, PeerTable

MAX_DIALS = 4
"""Maximum number of links that are dialled at once, without the seeds."""

MAX_PROBES = 8
"""Maximum number of probes at once."""

START_S = 2.0
MAX_START_PROBES = 2
"""Maximum number of probes at once during the first seconds, until the first link is established."""

MAX_ATTEMPT_S = 60.0
"""An attempt whose outcome was not reported for this long counts as failed."""

PACE_S = 3.0
"""While a node is unreachable, one probe is made at least this often, however long the pauses have become. So two parts of
a network find each other soon after any partition, and a list of dead addresses costs a third of a probe per second."""

READY_S = 5.0
"""A node that answered within this time may be dialled."""

GRACE_S = 1.0
"""A node is linked as unreachable only if it has been unreachable for this long: routes may just be changing."""

HOLD_S = 0.5
HOLD_SITE_S = 3.0
"""Pauses after a link to an unreachable node, before the next one to any and to one of the same site: the routes over the
new link need time to arrive."""

MEASURE_S = 600.0
"""A measured round-trip time is used for this long, so that a node is probed at most six times per hour to choose links."""

MEASURE_WAIT_S = 1.5
"""While probes are in progress, a choice among their nodes waits for at most this long."""

SAMPLE = 8
"""Number of measured nodes per side among which links are chosen."""

EXCHANGE_SAMPLE = 3
"""Number of nodes that are probed before an exchange is decided."""

MAX_WAKE_S = 60.0
"""Longest time between two plans."""


class Planner:
    """The decisions about the nodes of `table`, and their timing."""

    def __init__(self, table: PeerTable, *, site: str, options: PeerOptions, random: Random) -> None:
        self.wake_at = math.inf
        self.hold_until = 0.0
        self.hold_sites: dict[str, float] = {}
        """No unreachable node, or none of a site, is dialled before these times."""
        self.exchanges: dict[str, str] = {}
        """Address that is dialled for an exchange to the id of the node whose link is given up then."""
        self._table = table
        self._site = site
        self._options = options
        self._random = random
        self._exchange_at = self._pace_at = math.inf
        self._started_at = 0.0
        self._is_deciding = False
        """Whether nodes were probed for an exchange, which is decided at `_exchange_at`."""
        self._paces = 0

    def start(self, now: float) -> None:
        """Start the clocks."""
        self._started_at = now
        self._exchange_at = now + self.jittered(self._options.exchange_s)
        self._pace_at = now + self.jittered(PACE_S)

    def plan(self, now: float) -> list[PeerEffect]:
        """Return everything that is due, and set `wake_at`."""
        self.wake_at = now + MAX_WAKE_S
        effects: list[PeerEffect] = []
        if not self._options.is_static:
            effects += [*self._fill(now), *self._reconnect(now), *self._probe(now), *self._pace(now)]
            effects += self._exchange(now)
        effects += self._evict()
        for address in self._table.attempts():
            self.wait_until(address.tried_at + MAX_ATTEMPT_S)
        return effects

    def wait_until(self, moment: float) -> None:
        """Make a plan at this time at the latest."""
        self.wake_at = min(self.wake_at, moment)

    def is_due(self, moment: float, now: float) -> bool:
        """Return whether a time has come. If not, a plan is made then."""
        if moment > now:
            self.wait_until(moment)
        return moment <= now

    def jittered(self, seconds: float) -> float:
        """Return a random time around `seconds`."""
        return seconds * self._random.uniform(0.75, 1.25)

    def sides(self) -> tuple[Side, Side]:
        """Return the wanted links and the present ones: inside the own site, and to other sites."""
        linked = self._table.linked()
        owners = {entry.owner for entry in self._table.attempts(Attempt.LINK) if entry.text not in self.exchanges}
        coming = [node for node in self._table.nodes.values() if node.id in owners and not node.is_linked]
        return (
            Side(True, self._options.links_site, self._count(linked, True), self._count(coming, True)),
            Side(False, self._options.links_remote, self._count(linked, False), self._count(coming, False)),
        )

    # -------------------------------------------------------------------- links

    def _fill(self, now: float) -> list[PeerEffect]:
        """Dial the nodes that are missing on each side."""
        effects: list[PeerEffect] = []
        for index in range(2):
            while (side := self.sides()[index]).missing and self._has_capacity(Attempt.LINK):
                if self._is_measuring(side, now):
                    break
                pool = [node for node in self._others(side) if self._can_link(node, now)]
                nodes = self._table.nodes.values()
                used = {node.site for node in nodes if node.is_linked or self._is_dialled(node)}
                site_count = len({node.site for node in nodes} - {self._site, ""})
                chosen = choose(pool, side, used, site_count, self._random)
                if chosen is None:
                    break
                node, is_random = chosen
                node.is_random = is_random
                effects.append(self._dial(node, now))
        return effects

    def _reconnect(self, now: float) -> list[PeerEffect]:
        """Dial unreachable nodes that answer: one per site at once, and not all one after the other."""
        effects: list[PeerEffect] = []
        has_links = bool(self._table.linked())
        lost = [node for node in self._table.nodes.values() if node.unreachable_since is not None]
        for node in sorted(lost, key=lambda node: (node.rtt_s or 0.0, node.id)):
            if not self._is_ready(node, now) or not self._has_capacity(Attempt.LINK):
                continue
            if any(self._is_dialled(other) for other in lost if other.site == node.site):
                continue
            due_at = node.dial_at
            if has_links and node.unreachable_since is not None:
                hold_site = self.hold_sites.get(node.site, 0.0)
                grace = node.unreachable_since + GRACE_S
                due_at = max(due_at, node.reconnect_at, self.hold_until, hold_site, grace)
            if self.is_due(due_at, now) and node.ready_addresses(now):
                effects.append(self._dial(node, now))
        return effects

    def _can_link(self, node: KnownNode, now: float) -> bool:
        """Return whether a node can be dialled now to fill a side."""
        is_alive = node.unreachable_since is None or self._is_ready(node, now)
        if now - node.measured_at > MEASURE_S or not is_alive or node.is_in_progress:
            return False
        if not self.is_due(max(node.dial_at, node.declined_until), now):
            return False
        if node.ready_addresses(now):
            return True
        for address in node.usable():
            self.wait_until(address.retry_at)
        return False

    def _is_measuring(self, side: Side, now: float) -> bool:
        """Return whether a choice should wait for probes that have just started. Without any link, it does not."""
        if self._is_alone():
            return False
        for address in self._table.attempts(Attempt.PROBE):
            node = self._table.nodes.get(address.owner)
            is_relevant = node is None or (node.site == self._site) is side.is_own_site
            if is_relevant and not self.is_due(address.tried_at + MEASURE_WAIT_S, now):
                return True
        return False

    def _exchange(self, now: float) -> list[PeerEffect]:
        """Measure a few nodes first, and a moment later decide about one exchange."""
        if not self.is_due(self._exchange_at, now):
            return []
        self._is_deciding = not self._is_deciding
        if self._is_deciding:
            self._exchange_at = now + READY_S
            return self._measure(now)
        self._exchange_at = now + self.jittered(self._options.exchange_s)
        for side in self.sides() if not self.exchanges else ():
            linked = [node for node in self._table.linked() if (node.site == self._site) is side.is_own_site]
            pool = [node for node in self._others(side) if self._can_link(node, now)]
            found = find_exchange(linked, pool, self._well_linked())
            if found is not None and self._has_capacity(Attempt.LINK):
                dial = self._dial(found[1], now)
                self.exchanges[dial.address] = found[0].id
                return [dial]
            surplus = find_surplus(linked, side.wanted)
            if surplus is not None:
                return [self.unlink(surplus, "this node has more links than it wants")]
        return []

    def _evict(self) -> list[PeerEffect]:
        effects: list[PeerEffect] = []
        limit = self._options.max_links
        while (
            len(linked := self._table.linked()) > limit
            and (node := find_eviction(linked, limit, self._well_linked())) is not None
        ):
            effects.append(self.unlink(node, f"this node has more than {limit} links (node.max_links)"))
        return effects

    def _well_linked(self) -> frozenset[str]:
        return well_linked_sites([*self._table.nodes.values()], self._table.own_id)

    def unlink(self, node: KnownNode, reason: str) -> Unlink:
        """Mark the link of a node as closing, and return the effect."""
        if node.link is not None:
            node.link.is_closing = True
        return Unlink(node.id, reason)

    def _dial(self, node: KnownNode, now: float) -> Dial:
        return self._start_dial(node.ready_addresses(now)[0], now)

    def _start_dial(self, address: Address, now: float) -> Dial:
        self._table.start_attempt(address, Attempt.LINK, now)
        return Dial(address.text)

    # ------------------------------------------------------------------- probes

    def _probe(self, now: float) -> list[PeerEffect]:
        """Probe what is unreachable or unknown, and while links are missing, the nodes to choose from."""
        wanted = [*self._lost_addresses(now), *self._table.unidentified()]
        for side in self.sides():
            if not side.missing:
                continue
            others = self._others(side)
            unmeasured = [node for node in others if now - node.measured_at > MEASURE_S]
            if sum(self._can_link(node, now) for node in others) < side.missing + SAMPLE:
                wanted += [found for node in unmeasured if (found := node.next_address()) is not None]
        unique = {address.text: address for address in wanted if address.attempt is None}.values()
        due = [address for address in unique if self.is_due(address.retry_at, now)]
        # Addresses of the registry of the site come first: their nodes are near.
        due.sort(key=lambda entry: (entry.tried_at, not entry.stated_by, entry.priority, self._random.random()))
        effects: list[PeerEffect] = []
        if due and self._is_alone():
            # Without any link, the first one matters more than the best one.
            effects.append(self._start_dial(due.pop(0), now))
        is_starting = now < self._started_at + START_S and not self._table.linked()
        limit = MAX_START_PROBES if is_starting else MAX_PROBES
        if due and is_starting:
            self.wait_until(self._started_at + START_S)
        free = limit - len(self._table.attempts(Attempt.PROBE))
        return [*effects, *(self._start_probe(address, now) for address in due[: max(0, free)])]

    def _pace(self, now: float) -> list[PeerEffect]:
        """Probe the address of an unreachable node, or an unknown address, that was tried the longest time ago."""
        known, unknown = self._lost_addresses(now), self._table.unidentified()
        # Nodes that were alive come first, but an unknown address gets a turn now and then.
        pool = known if known and (self._paces % 3 < 2 or not unknown) else unknown
        idle = [address for address in pool if address.attempt is None and not address.is_refused]
        if not idle or not self.is_due(self._pace_at, now) or not self._has_capacity(Attempt.PROBE):
            return []
        self._paces += 1
        self._pace_at = now + self.jittered(PACE_S)
        return [self._start_probe(min(idle, key=lambda address: (address.tried_at, address.text)), now)]

    def _measure(self, now: float) -> list[PeerEffect]:
        """Probe a few nodes whose round-trip time was measured the longest time ago."""
        stale = [
            node
            for side in self.sides()
            for node in self._others(side)
            if now - node.measured_at > MEASURE_S and not node.is_in_progress
        ]
        stale.sort(key=lambda node: (node.measured_at, self._random.random()))
        due = [found for node in stale if (found := node.next_address()) is not None and found.retry_at <= now]
        return [self._start_probe(entry, now) for entry in due[:EXCHANGE_SAMPLE] if self._has_capacity(Attempt.PROBE)]

    def _lost_addresses(self, now: float) -> list[Address]:
        """Return the next address of each unreachable node that must be probed before it can be dialled."""
        found: list[Address] = []
        for node in self._table.nodes.values():
            if node.unreachable_since is None or node.is_in_progress or node.has_left:
                continue
            address = node.next_address()
            if self.is_due(max(node.dial_at, node.answered_at + READY_S), now) and address is not None:
                found.append(address)
        return found

    def _start_probe(self, address: Address, now: float) -> Probe:
        self._table.start_attempt(address, Attempt.PROBE, now)
        return Probe(address.text)

    # ------------------------------------------------------------------ helpers

    def _has_capacity(self, kind: Attempt) -> bool:
        limit = MAX_DIALS if kind is Attempt.LINK else MAX_PROBES
        return len(self._table.attempts(kind)) < limit

    def _is_alone(self) -> bool:
        """Return whether there is no link, and no dial in progress."""
        return not self._table.linked() and not self._table.attempts(Attempt.LINK)

    def _is_dialled(self, node: KnownNode) -> bool:
        return any(address.owner == node.id for address in self._table.attempts(Attempt.LINK))

    def _is_ready(self, node: KnownNode, now: float) -> bool:
        """Return whether a node answered a moment ago."""
        return now - node.answered_at <= READY_S and not node.is_in_progress and not node.is_linked

    def _others(self, side: Side) -> list[KnownNode]:
        """Return the nodes of a side that are not linked."""
        return [
            node
            for node in self._table.nodes.values()
            if not node.is_linked and not node.has_left and (node.site == self._site) is side.is_own_site
        ]

    def _count(self, nodes: Iterable[KnownNode], is_own_site: bool) -> int:
        return sum(1 for node in nodes if (node.site == self._site) is is_own_site)
