"""Carries out what `peers` decides: dials, probes, closes links, and queries the resolvers.

An asyncio shell around `Peers`. The network component passes it the events of the links and of the graph.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from micro_core.contract.errors import MicroError, Unauthorized
from micro_core.contract.resolver import Candidate, Resolver
from micro_core.contract.tunnel import DialFailed, DialSucceeded, LinkDown, LinkEvent, LinkInfo, LinkMoved, LinkUp
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.network import peer_events as events
from micro_core.network.link_targets import PeerOptions
from micro_core.network.peer_status import CandidateStatus, SideStatus, candidate_statuses, side_statuses
from micro_core.network.peers import Peers
from micro_core.tunnel.handshake import OWN_NODE_ERROR_ID
from micro_core.tunnel.path_selection import NO_DRIVER_ERROR_ID
from micro_core.tunnel.tunnel import TunnelHost

RESOLVE_TIMEOUT_S = 10.0
"""Timeout in seconds of a query of one resolver."""

OBSERVE_S = 0.5
"""Interval in seconds at which the reachable nodes are read."""

MEASURE_S = 10.0
"""Interval in seconds at which the round-trip times of the links are read."""

ALIGN_S = 0.125
"""By how much a reading may be earlier or later to run together with other periodic work."""

MIN_WAKE_S = 0.002
"""Shortest pause in seconds between two wake-ups."""


class Peering:
    """The links that a node makes by itself.

    Args:
        name: Name of the network, for the resolvers.
        site: Site of this node.
        tunnel: Makes the links.
        resolvers: Queried in order.
        seeds: Addresses that are always kept linked.
        options: Numbers of links.
        reachable: Returns the ids of the nodes that are reachable now.
        give_up: Called with (peer, reason) to give up the link to a peer.
        environment: Clock, random numbers, counters.
    """

    def __init__(
        self,
        *,
        name: str,
        site: str,
        tunnel: TunnelHost,
        resolvers: Sequence[Resolver],
        seeds: Sequence[str],
        options: PeerOptions,
        reachable: Callable[[], frozenset[str]],
        give_up: Callable[[str, str], None],
        environment: Environment,
    ) -> None:
        self._name = name
        self._tunnel = tunnel
        self._resolvers = resolvers
        self._reachable = reachable
        self._give_up = give_up
        self._clock = environment.clock
        self._logger = environment.logger
        self._counters = environment.counters
        self._peers = Peers(node_id=tunnel.node_id, site=site, seeds=seeds, options=options, random=environment.random)
        self._tasks = BackgroundTasks(
            component="network",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="network_tasks_failed",
        )
        self._timer: asyncio.TimerHandle | None = None
        self._observe_at = self._measure_at = 0.0
        self._seen: frozenset[str] = frozenset()
        self._is_open = False

    def start(self) -> None:
        """Keep the seeds linked, query the resolvers, and make the other links."""
        self._is_open = True
        now = self._clock.now()
        self._observe_at, self._measure_at = now + OBSERVE_S, now + MEASURE_S
        self._carry_out(self._peers.start(now))
        self._schedule()

    async def close(self) -> None:
        """Stop the probes and queries. Links stay open. Safe to call twice."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.cancel()

    # ------------------------------------------------------------------- events

    def handle(self, event: events.PeerEvent) -> None:
        """Pass an event to `Peers`, and carry out the effects."""
        if self._is_open:
            self._carry_out(self._peers.handle(event, self._clock.now()))
            self._schedule()

    def handle_link_event(self, event: LinkEvent) -> None:
        """Follow the links and the dials of the tunnel."""
        match event:
            case LinkUp(link) | LinkMoved(link):
                self.handle(_linked(link))
                self.observe()
            case LinkDown(link):
                self.handle(events.PeerLost(link.peer))
                self.observe()
            case DialSucceeded(address, peer, was_linked):
                self.handle(events.DialSucceeded(address, peer, was_linked))
            case DialFailed(address, error):
                is_own = error.id == OWN_NODE_ERROR_ID
                self.handle(events.DialFailed(address, error.detail, _is_permanent(error), is_own))

    def observe(self) -> None:
        """Read which nodes are reachable."""
        seen = self._reachable()
        if seen != self._seen:
            self._seen = seen
            self.handle(events.Reachability(seen))

    # -------------------------------------------------------------------- views

    def sides(self) -> list[SideStatus]:
        """Return the wanted links and the present ones, inside the own site and to other sites."""
        return side_statuses(self._peers)

    def candidates(self) -> list[CandidateStatus]:
        """Return the nodes and addresses without a link, and why there is none."""
        return candidate_statuses(self._peers, self._clock.now())

    # ------------------------------------------------------------------ effects

    def _carry_out(self, effects: Sequence[events.PeerEffect]) -> None:
        for effect in effects:
            match effect:
                case events.KeepLinked(address):
                    self._tunnel.keep_linked(address)
                case events.Dial(address):
                    self._counters.add("network_dials")
                    self._tunnel.dial_once(address)
                case events.Probe(address):
                    self._counters.add("network_probes")
                    self._tasks.start(self._probe(address))
                case events.Unlink(peer, reason):
                    self._counters.add("network_links_given_up")
                    self._give_up(peer, reason)
                case events.Resolve():
                    self._tasks.start(self._resolve())

    async def _probe(self, address: str) -> None:
        try:
            found = await self._tunnel.probe(address)
        except MicroError as error:
            is_own = error.id == OWN_NODE_ERROR_ID
            self.handle(events.ProbeFailed(address, error.detail, _is_permanent(error), is_own))
        except Exception as error:  # drivers are plugins, and every probe must have an outcome
            self._logger.exception("probe failed", extra={"address": address})
            self._counters.add("network_tasks_failed")
            self.handle(events.ProbeFailed(address, f"{type(error).__name__}: {error}"))
        else:
            self.handle(
                events.Probed(address=address, peer=found.peer, name=found.name, site=found.site, rtt_s=found.rtt_s)
            )

    async def _resolve(self) -> None:
        candidates: dict[str, Candidate] = {}
        for resolver in self._resolvers:
            try:
                async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                    found = await resolver.resolve(self._name)
            except (MicroError, TimeoutError) as error:
                # The other resolvers are still queried, and known nodes are kept.
                self._counters.add("network_resolver_failures")
                self._logger.warning("resolver failed", extra={"reason": str(error) or "timeout"})
                continue
            for candidate in found:
                candidates.setdefault(candidate.address, candidate)
        self.handle(events.Resolved([*candidates.values()]))

    # --------------------------------------------------------------------- time

    def _schedule(self) -> None:
        if not self._is_open:
            return
        wake_at = self._peers.wake_at
        when = self._observe_at if wake_at is None else min(wake_at, self._observe_at)
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(when - self._clock.now(), MIN_WAKE_S)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        now = self._clock.now()
        if now >= self._observe_at:
            self._observe_at = self._tunnel.loop_watch.near(now + OBSERVE_S, earlier_s=ALIGN_S, later_s=ALIGN_S)
            self.observe()
        if now >= self._measure_at:
            self._measure_at = now + MEASURE_S
            rtts = {
                link.peer: link.rtt_s - link.queue_delay_s for link in self._tunnel.links() if link.rtt_s is not None
            }
            self._carry_out(self._peers.handle(events.Measured(rtts), now))
        wake_at = self._peers.wake_at
        if wake_at is not None and now >= wake_at:
            self._carry_out(self._peers.wake(now))
        self._schedule()


def _linked(link: LinkInfo) -> events.PeerLinked:
    return events.PeerLinked(
        peer=link.peer,
        name=link.peer_name,
        site=link.site,
        address=link.dialed_address or None,
        rtt_s=link.rtt_s,
    )


def _is_permanent(error: MicroError) -> bool:
    return isinstance(error, Unauthorized) or error.id == NO_DRIVER_ERROR_ID
