"""The network as its node sees it: resolves, keeps links, exchanges the graph with its neighbours.

A shell round `peers`, `graph` and `messages`; routes are the business of router and `adverts`, links the tunnel's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from micro_core.contract.errors import Malformed, MicroError, Unauthorized, Unreachable
from micro_core.contract.resolver import Candidate, Resolver
from micro_core.contract.tunnel import (
    DialFailed,
    DialMode,
    LinkDown,
    LinkEvent,
    LinkInfo,
    LinkMoved,
    LinkUp,
    Priority,
    Session,
)
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.network.graph import MAX_AGE_S, Graph, GraphNode
from micro_core.network.message_session import MessageReader, MessageWriter
from micro_core.network.messages import (
    CHANNEL,
    MAX_ADDRESSES,
    MAX_NEIGHBOURS,
    Close,
    Connect,
    NetworkMessage,
    NodeRecord,
    Peer,
    decode,
    encode,
)
from micro_core.network.peers import (
    CandidateFailed,
    DropLink,
    KeepLink,
    PeerEffect,
    PeerLinked,
    PeerLost,
    PeerOptions,
    Peers,
    Resolve,
    Resolved,
)
from micro_core.routing.metric import link_cost_us
from micro_core.tunnel.path_selection import NO_DRIVER_ERROR_ID, PREFERRED_PATH_REASON
from micro_core.tunnel.tunnel import TunnelHost

RENEW_S = MAX_AGE_S / 3
"""Seconds between two renewals of the own record."""

NEWS_S = 0.1
"""How long news of a link waits for more of them, before all neighbours are told."""

RESOLVE_TIMEOUT_S = 10.0
"""How long all resolvers together may take."""


class Network:
    """A node's place among its peers.

    `resolvers` are asked in order, all of them; `seeds` are addresses that are always kept linked.
    `cost_us(link)` adds what the operator configured for a link.
    """

    def __init__(
        self,
        *,
        name: str,
        record: NodeRecord,
        tunnel: TunnelHost,
        resolvers: Sequence[Resolver],
        seeds: Sequence[str],
        environment: Environment,
        options: PeerOptions | None = None,
    ) -> None:
        self.name = name
        self._tunnel = tunnel
        self._resolvers = resolvers
        self._clock = environment.clock
        self._log = environment.logger
        self._counters = environment.counters
        self._graph = Graph(record)
        self._peers = Peers(tuple(seeds), options or PeerOptions(), environment.random)
        self._greetings: dict[str, MessageWriter] = {}
        self._dialed: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self._tasks = BackgroundTasks(
            component="network",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="network_tasks_failed",
        )
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False
        self._renew_at = 0.0
        self._report_handler: Callable[[str], None] | None = None

    # ------------------------------------------------------------------ life

    async def connect(self) -> None:
        """Open the channels, start the tunnel, keep the seeds, ask the resolvers."""
        self._is_open = True
        self._tunnel.subscribe(CHANNEL, self._message_received)
        self._tunnel.listen(CHANNEL, self._greeting_session)
        await self._tunnel.connect()
        now = self._clock.now()
        self._graph.set_own(replace(self._graph.own, addresses=tuple(self._tunnel.address()[:MAX_ADDRESSES])))
        self._renew_at = now + RENEW_S
        self._carry_out(self._peers.start(now))
        self._arm()

    async def close(self) -> None:
        """Tell the neighbours, then close every link."""
        if not self._is_open:
            return
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        self._tell(Close(incarnation=self._graph.own.incarnation))
        await self._tasks.cancel()
        for writer in [*self._greetings.values()]:
            with contextlib.suppress(MicroError):
                await writer.close()
        await self._tunnel.close()

    # ------------------------------------------------------------- what is seen

    def set_report_handler(self, handler: Callable[[str], None]) -> None:
        """Call `handler(sentence)` for each link that goes up, moves or goes down, and for each new dial failure."""
        self._report_handler = handler

    def links(self) -> list[LinkInfo]:
        return self._tunnel.links()

    def nodes(self, radius: int = 3) -> list[GraphNode]:
        """The graph within `radius` hops (at most 3), nearest first; the first is this node."""
        return self._graph.nodes(self._clock.now(), radius)

    def dial_failures(self) -> dict[str, str]:
        """Addresses that are wanted and not linked, with the last reason."""
        return dict(self._failures)

    @property
    def record(self) -> NodeRecord:
        return self._graph.own

    # ------------------------------------------------------------------ links

    def handle_link_event(self, event: LinkEvent) -> None:
        """Follow the links of the tunnel. Called by the component that assembles tunnel and network."""
        match event:
            case LinkUp(link):
                self._link_up(link)
            case LinkMoved(link):
                self._link_moved(link)
            case LinkDown(link, error):
                self._link_down(link, error)
            case DialFailed(address, error):
                self._dial_failed(address, error)

    def _link_up(self, link: LinkInfo) -> None:
        address = link.dialed_address or None
        self._announce(f"linked to {link.peer_name} ({link.site}) over {link.driver} at {link.remote}{_because(link)}")
        self._failures.pop(address or "", None)
        try:
            self._greetings[link.peer] = self._open(CHANNEL, link.peer)
        except Unreachable:
            # The link went between the handshake and here; `_link_down` follows.
            self._counters.add("network_links_lost_at_start")
            return
        self._carry_out(self._peers.handle(PeerLinked(link.peer, address, link.rtt_s), self._clock.now()))
        self._renew_own()
        self._renew_at = self._clock.now() + NEWS_S
        self._tell_one(link.peer, Connect(record=self._graph.own))
        self._arm()

    def _link_moved(self, link: LinkInfo) -> None:
        """Another driver has taken over: the neighbour is the same, and what is known of it stays known."""
        before = self._greetings.get(link.peer)
        self._announce(f"moved to {link.driver}: {link.peer_name} ({link.site}) at {link.remote}{_because(link)}")
        try:
            self._greetings[link.peer] = self._open(CHANNEL, link.peer)
        except Unreachable:
            self._counters.add("network_links_lost_at_start")
            return
        if before is not None:
            self._tasks.start(before.close())
        address = link.dialed_address or None
        self._carry_out(self._peers.handle(PeerLinked(link.peer, address, link.rtt_s), self._clock.now()))
        # The neighbour may have lost the old link before, and forgotten.
        self._tell_one(link.peer, Connect(record=self._graph.own))
        self._arm()

    def _link_down(self, link: LinkInfo, error: MicroError) -> None:
        self._announce(f"lost {link.peer_name} ({link.site}): {error}")
        self._greetings.pop(link.peer, None)
        if self._is_open:
            self._carry_out(self._peers.handle(PeerLost(link.peer), self._clock.now()))
            self._renew_own()
            self._tell(Peer(records=(self._graph.own,)))
            self._arm()

    def _dial_failed(self, address: str, error: MicroError) -> None:
        if self._failures.get(address) != error.detail:
            # Said once a reason, not once a try.
            self._announce(f"cannot link to {address}: {error}")
        self._failures[address] = error.detail
        if len(self._failures) > 256:
            self._failures.pop(next(iter(self._failures)))
        hopeless = isinstance(error, Unauthorized) or error.id == NO_DRIVER_ERROR_ID
        self._carry_out(self._peers.handle(CandidateFailed(address, hopeless), self._clock.now()))

    # ------------------------------------------------------------------ graph

    def _message_received(self, peer: str, payload: bytes) -> None:
        try:
            message = decode(payload, self._graph.is_news)
        except Malformed as error:
            self._counters.add("network_messages_malformed")
            self._log.warning("network message refused", extra={"peer": peer, "reason": str(error)})
            return
        now = self._clock.now()
        match message:
            case Connect(record=record):
                if record.id == peer:
                    self._spread(self._graph.receive((record,), now), now, but=peer)
                self._tell_one(peer, Peer(records=self._graph.records(now)))
            case Peer(records=records):
                arrived = [record for record in records if self._graph.is_arrival(record)]
                self._spread(self._graph.receive(records, now), now, but=peer)
                for record in arrived:
                    self._tunnel.node_reported_up(record.id, record.addresses)
            case Close(incarnation=incarnation):
                # A node closes only itself: the id is the link's, never the message's (W-N18).
                self._graph.forget(peer, incarnation)
                self._tasks.start(self._tunnel.unlink(peer))
        self._arm()

    def _spread(self, news: list[NodeRecord], now: float, *, but: str) -> None:
        if news and any(peer != but for peer in self._greetings):
            self._tell(Peer(records=tuple(self._graph.aged(record, now) for record in news)))

    def _tell(self, message: NetworkMessage) -> None:
        for payload in encode(message):
            self._tunnel.send(CHANNEL, payload, mode=DialMode.MULTICAST, priority=Priority.CONTROL)

    def _renew_own(self) -> None:
        own = self._graph.own
        neighbours = tuple(sorted((link.peer, _cost_us(link)) for link in self._tunnel.links()))[:MAX_NEIGHBOURS]
        self._graph.set_own(replace(own, sequence=own.sequence + 1, neighbours=neighbours))
        self._renew_at = self._clock.now() + RENEW_S

    # --------------------------------------------------------------- greetings

    def _greeting_session(self, session: Session) -> None:
        peer = session.peer

        def refused(error: MicroError) -> None:
            self._counters.add("network_messages_refused")
            self._log.warning("a peer's message was refused", extra={"peer": peer, "reason": str(error)})
            self._tasks.start(self._tunnel.unlink(peer))

        session.start(MessageReader(lambda payload: self._message_received(peer, payload), refused))

    def _open(self, channel: str, peer: str) -> MessageWriter:
        writer = MessageWriter(self._tunnel.dial(channel, peer=peer, priority=Priority.CONTROL))
        writer.start()
        return writer

    def _tell_one(self, peer: str, message: NetworkMessage) -> None:
        writer = self._greetings.get(peer)
        if writer is not None:
            for payload in encode(message):
                writer.send(payload)

    # ------------------------------------------------------- effects and time

    def _carry_out(self, effects: Sequence[PeerEffect]) -> None:
        for effect in effects:
            match effect:
                case KeepLink(address):
                    self._tunnel.keep_linked(address)
                case DropLink(address):
                    self._tunnel.stop_dialing(address)
                    self._failures.pop(address, None)
                case Resolve():
                    self._tasks.start(self._resolve())

    async def _resolve(self) -> None:
        candidates: list[Candidate] = []
        seen: set[str] = set()
        for resolver in self._resolvers:
            try:
                async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                    found = await resolver.resolve(self.name)
            except (MicroError, TimeoutError) as error:
                # The next resolver may do better; the answer of this one is missed, so nothing is forgotten.
                self._counters.add("network_resolver_failures")
                self._log.warning("resolver failed", extra={"reason": str(error) or "timeout"})
                continue
            for candidate in found:
                if candidate.address not in seen:
                    seen.add(candidate.address)
                    candidates.append(candidate)
        if self._is_open:
            self._carry_out(self._peers.handle(Resolved(candidates), self._clock.now()))

    def _arm(self) -> None:
        if not self._is_open:
            return
        times = [self._renew_at, self._peers.wake_at, self._graph.wake_at()]
        when = min(moment for moment in times if moment is not None)
        if self._timer is not None:
            self._timer.cancel()
        delay = max(0.0, when - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        now = self._clock.now()
        self._graph.expire(now)
        if now >= self._renew_at:
            self._renew_own()
            self._tell(Peer(records=(self._graph.own,)))
            self._spread(self._graph.news(), now, but="")
        wake_at = self._peers.wake_at
        if wake_at is not None and now >= wake_at:
            self._carry_out(self._peers.wake(now))
        self._arm()

    def _announce(self, sentence: str) -> None:
        if self._report_handler is not None:
            self._report_handler(sentence)


def _because(link: LinkInfo) -> str:
    return f" ({link.why})" if link.why and link.why != PREFERRED_PATH_REASON else ""


def _cost_us(link: LinkInfo) -> int:
    return link_cost_us(rtt_s=link.rtt_s, queue_delay_s=link.queue_delay_s, loss=link.loss)
