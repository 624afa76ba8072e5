"""The network component of a node: queries resolvers, keeps links, exchanges the graph with the neighbours.

An asyncio shell around `graph` and `messages`; `peering` decides which links are made, and the tunnel makes them. Routes
are exchanged by the router and `adverts`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from micro_core.contract.errors import LinkLost, Malformed, MicroError, Unreachable
from micro_core.contract.names import PATH_SEPARATOR, short_id
from micro_core.contract.resolver import Resolver
from micro_core.contract.tunnel import (
    DialFailed,
    DialMode,
    DialSucceeded,
    LinkDown,
    LinkEvent,
    LinkInfo,
    LinkMeasured,
    LinkMoved,
    LinkSuspect,
    LinkUp,
    Priority,
    Session,
)
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.network.graph import MAX_AGE_S, Graph, GraphNode
from micro_core.network.link_targets import PeerOptions
from micro_core.network.message_session import MessageReader, MessageWriter
from micro_core.network.messages import (
    CHANNEL,
    MAX_ADDRESSES,
    MAX_NEIGHBOURS,
    Close,
    Connect,
    Decline,
    NetworkMessage,
    NodeRecord,
    Update,
    decode,
    encode,
)
from micro_core.network.peer_events import LinkDeclined, NodeLeft, NodeSeen, Resumed, Seen
from micro_core.network.peer_status import CandidateStatus, SideStatus
from micro_core.network.peering import Peering
from micro_core.routing.metric import cost_of
from micro_core.tunnel.path_selection import PREFERRED_PATH_REASON
from micro_core.tunnel.tunnel import TunnelHost

RENEW_S = MAX_AGE_S / 3
"""Seconds between two renewals of the record of this node."""

CHANGE_DELAY_S = 0.1
"""Seconds for which a change of the links waits for further changes before it is sent to all neighbours."""


class Network:
    """The neighbours of a node and the graph around it.

    All `resolvers` are queried, in order. `seeds` are addresses that are always kept linked.
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
        self._clock = environment.clock
        self._logger = environment.logger
        self._counters = environment.counters
        self._graph = Graph(record)
        self._reachability_source: Callable[[], frozenset[str]] | None = None
        self._options = options or PeerOptions()
        self._peering = Peering(
            name=name,
            site=record.site,
            tunnel=tunnel,
            resolvers=resolvers,
            seeds=seeds,
            options=self._options,
            reachable=self._reachable,
            give_up=self._give_up,
            environment=environment,
        )
        self._writers: dict[str, MessageWriter] = {}
        self._failures: dict[str, str] = {}
        """The last error of each address, so that it is reported once."""
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

    # -------------------------------------------------------------- lifecycle

    async def connect(self) -> None:
        """Open the channels, start the tunnel, keep the seeds linked, query the resolvers.

        Raises Conflict when a listen address or the channel is in use.
        """
        self._is_open = True
        self._tunnel.subscribe(CHANNEL, self._message_received)
        self._tunnel.listen(CHANNEL, self._session_opened)
        await self._tunnel.connect()
        now = self._clock.now()
        self._graph.set_own(replace(self._graph.own, addresses=tuple(self._tunnel.address()[:MAX_ADDRESSES])))
        self._renew_at = now + RENEW_S
        self._peering.start()
        self._schedule_timer()

    async def close(self) -> None:
        """Announce to the neighbours that this node leaves, then close every link. Safe to call twice."""
        if not self._is_open:
            return
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        own = self._graph.own
        # The record without addresses and links reaches nodes further away, which then do not try to link to this one.
        self._multicast(Update(records=(replace(own, sequence=own.sequence + 1, addresses=(), neighbours=()),)))
        self._multicast(Close(incarnation=own.incarnation))
        await self._peering.close()
        await self._tasks.cancel()
        for writer in list(self._writers.values()):
            with contextlib.suppress(MicroError):
                await writer.close()
        await self._tunnel.close()

    def set_reachability_source(self, source: Callable[[], frozenset[str]]) -> None:
        """Call `source` to find out which nodes are reachable: it returns the ids of the origins of routes.

        Nodes in the graph count as reachable, too. Without a source, they are the only ones.
        """
        self._reachability_source = source

    # ------------------------------------------------------------------ views

    def set_report_handler(self, handler: Callable[[str], None]) -> None:
        """Call `handler(sentence)` for each link that goes up, moves or goes down, and for each new dial failure."""
        self._report_handler = handler

    def links(self) -> list[LinkInfo]:
        """Return the current links, at most one per peer."""
        return self._tunnel.links()

    def nodes(self, radius: int = 3) -> list[GraphNode]:
        """Return the graph within `radius` hops (at most 3), nearest first. The first entry is this node."""
        return self._graph.nodes(self._clock.now(), radius)

    def sides(self) -> list[SideStatus]:
        """Return the wanted links and the present ones: inside the own site, and to other sites."""
        return self._peering.sides()

    @property
    def max_links(self) -> int:
        """Number of links above which accepted links are closed."""
        return self._options.max_links

    def candidates(self) -> list[CandidateStatus]:
        """Return the known nodes and addresses without a link, and why there is none."""
        return self._peering.candidates()

    @property
    def record(self) -> NodeRecord:
        """The record of this node."""
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
            case DialSucceeded(address):
                self._failures.pop(address, None)
            case LinkMeasured() | LinkSuspect():
                # The record of this node contains the costs of its links when it is renewed.
                pass
        self._peering.handle_link_event(event)

    def _link_up(self, link: LinkInfo) -> None:
        self._report(
            f"linked to {link.peer_name} ({link.site}) over {link.driver} at {link.remote}{_reason_suffix(link)}"
        )
        self._failures.pop(link.dialed_address, None)
        try:
            self._writers[link.peer] = self._open_writer(link.peer)
        except Unreachable:
            # The link ended after its handshake; LinkDown follows.
            self._counters.add("network_links_lost_at_start")
            return
        self._renew_own()
        self._renew_at = self._clock.now() + CHANGE_DELAY_S
        self._send_to(link.peer, Connect(record=self._graph.own))
        self._schedule_timer()

    def _link_moved(self, link: LinkInfo) -> None:
        """Continue over a link of another driver. The neighbour is the same, so its records are kept."""
        previous = self._writers.get(link.peer)
        self._report(f"moved to {link.driver}: {link.peer_name} ({link.site}) at {link.remote}{_reason_suffix(link)}")
        try:
            self._writers[link.peer] = self._open_writer(link.peer)
        except Unreachable:
            self._counters.add("network_links_lost_at_start")
            return
        if previous is not None:
            self._tasks.start(previous.close())
        # The neighbour may have lost the old link earlier and dropped its records.
        self._send_to(link.peer, Connect(record=self._graph.own))
        self._schedule_timer()

    def _link_down(self, link: LinkInfo, error: MicroError) -> None:
        self._report(f"lost {link.peer_name} ({link.site}): {error}")
        self._writers.pop(link.peer, None)
        if self._is_open:
            self._renew_own()
            self._multicast(Update(records=(self._graph.own,)))
            self._schedule_timer()

    def _dial_failed(self, address: str, error: MicroError) -> None:
        if self._failures.get(address) != error.detail:
            # Reported once per reason rather than once per attempt.
            self._report(f"cannot link to {address}: {error}")
        self._failures[address] = error.detail
        if len(self._failures) > 256:
            self._failures.pop(next(iter(self._failures)))

    def resumed(self, incarnation: int) -> None:
        """Continue as a later incarnation, after this process was suspended. The links are lost, which is reported next."""
        self._graph.set_own(replace(self._graph.own, incarnation=incarnation, sequence=1, neighbours=()))
        self._peering.handle(Resumed())

    # ------------------------------------------------------------------ graph

    def _message_received(self, peer: str, payload: bytes) -> None:
        try:
            message = decode(payload, self._graph.is_newer)
        except Malformed as error:
            self._counters.add("network_messages_malformed")
            self._logger.warning("malformed network message", extra={"peer": peer, "reason": str(error)})
            return
        now = self._clock.now()
        match message:
            case Connect(record=record):
                if record.id == peer:
                    self._receive_records((record,), peer, now)
                self._send_to(peer, Update(records=self._graph.records(now)))
            case Update(records=records):
                started = [record for record in records if self._graph.is_new_incarnation(record)]
                self._receive_records(records, peer, now)
                for record in started:
                    if _has_left(record):
                        continue
                    self._tunnel.node_reported_up(record.id, record.addresses)
            case Close(incarnation=incarnation):
                # A node can only announce that it leaves itself: its id is that of the link, not one in the message.
                self._graph.forget(peer, incarnation)
                self._peering.handle(NodeLeft(peer))
                self._tunnel.node_left(peer)
            case Decline(reason=reason):
                self._report(f"node {short_id(peer)} gives up the link: {reason}")
                self._tunnel.drain(peer, LinkLost(f"the peer has given up the link: {reason}"))
                self._peering.handle(LinkDeclined(peer, reason))
        self._schedule_timer()

    def _receive_records(self, records: tuple[NodeRecord, ...], peer: str, now: float) -> None:
        """Store records of a peer and pass on the changes. Records beyond the size of the graph are counted."""
        seen = [
            (record, self._graph.is_new_incarnation(record)) for record in records if record.id != self._graph.own.id
        ]
        refused_before = self._graph.refused
        changes = self._graph.receive(records, now)
        if self._graph.refused > refused_before:
            self._counters.add("network_records_refused", self._graph.refused - refused_before)
        self._flood(changes, now, except_to=peer)
        self._peering.observe()
        self._peering.handle(Seen(tuple(_seen(record, is_start) for record, is_start in seen)))

    def _reachable(self) -> frozenset[str]:
        in_graph = frozenset(self._graph.distances())
        return in_graph if self._reachability_source is None else in_graph | self._reachability_source()

    def _give_up(self, peer: str, reason: str) -> None:
        """Announce to a peer that this node gives up the link, and why. Both ends then drain it."""
        self._send_to(peer, Decline(reason=reason))
        self._tunnel.drain(peer, LinkLost(f"this node has given up the link: {reason}"))

    def _flood(self, changes: list[NodeRecord], now: float, *, except_to: str) -> None:
        """Send changed records to all neighbours, if there are others than the one they came from."""
        if changes and any(peer != except_to for peer in self._writers):
            self._multicast(Update(records=tuple(self._graph.aged(record, now) for record in changes)))

    def _multicast(self, message: NetworkMessage) -> None:
        for payload in encode(message):
            self._tunnel.send(CHANNEL, payload, mode=DialMode.MULTICAST, priority=Priority.CONTROL)

    def _renew_own(self) -> None:
        own = self._graph.own
        neighbours = tuple(sorted((link.peer, cost_of(link)) for link in self._tunnel.links()))[:MAX_NEIGHBOURS]
        self._graph.set_own(replace(own, sequence=own.sequence + 1, neighbours=neighbours))
        self._renew_at = self._clock.now() + RENEW_S

    # --------------------------------------------------------------- sessions

    def _session_opened(self, session: Session) -> None:
        peer = session.peer

        def refused(error: MicroError) -> None:
            self._counters.add("network_messages_refused")
            self._logger.warning("message of a peer refused", extra={"peer": peer, "reason": str(error)})
            self._tasks.start(self._tunnel.unlink(peer, error))

        session.start(MessageReader(lambda payload: self._message_received(peer, payload), refused))

    def _open_writer(self, peer: str) -> MessageWriter:
        writer = MessageWriter(self._tunnel.dial(CHANNEL, peer=peer, priority=Priority.CONTROL))
        writer.start()
        return writer

    def _send_to(self, peer: str, message: NetworkMessage) -> None:
        writer = self._writers.get(peer)
        if writer is not None:
            for payload in encode(message):
                writer.send(payload)

    # -------------------------------------------------------------------- time

    def _schedule_timer(self) -> None:
        if not self._is_open:
            return
        times = [self._renew_at, self._graph.wake_at()]
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
            self._multicast(Update(records=(self._graph.own,)))
            self._flood(self._graph.pop_changes(), now, except_to="")
        self._schedule_timer()

    def _report(self, sentence: str) -> None:
        if self._report_handler is not None:
            self._report_handler(sentence)


def _seen(record: NodeRecord, is_start: bool) -> NodeSeen:
    return NodeSeen(
        id=record.id,
        name=record.name,
        site=record.site,
        # All addresses of one node are paths of one dial.
        addresses=(PATH_SEPARATOR.join(record.addresses),) if record.addresses else (),
        neighbours=frozenset(neighbour for neighbour, _ in record.neighbours),
        is_start=is_start,
        has_left=_has_left(record),
    )


def _has_left(record: NodeRecord) -> bool:
    """Return whether a record is the last one of a node that stops. A running node has links or addresses."""
    return not record.addresses and not record.neighbours


def _reason_suffix(link: LinkInfo) -> str:
    return f" ({link.why})" if link.why and link.why != PREFERRED_PATH_REASON else ""
