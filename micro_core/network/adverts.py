"""Carries the routing messages between this router and those of linked nodes, on the channel `advert`.

There is one session per direction and peer. The router creates and reads the messages; the tunnel preserves their order
and limits the flow. If a session ends while its link is open, then the router of the peer is not running (it may be a
process of its own). The session is opened again, and the peer then receives the full table.

A link carries routes once its round trip is measured, about one round trip after it is up. A guessed cost would spread through
the network, and where it was too low, the true one would leave routers without a feasible route (RFC 8966 section 3.5.1).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from micro_core.contract.errors import MicroError
from micro_core.contract.tunnel import (
    ChannelListener,
    DialFailed,
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
    Sessions,
)
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.beat import next_beat
from micro_core.lifecycle.environment import Environment
from micro_core.network.message_session import MessageReader, MessageWriter
from micro_core.network.messages import ADVERT_CHANNEL
from micro_core.routing.metric import cost_of
from micro_core.routing.router import Router

MEASURE_S = 1.0
"""Seconds between two readings of the cost of each link. The tunnel pings as often."""

MAX_WAIT_S = 2.0
"""Maximum time for which a new link waits for its first measurement. Then its cost is a pessimistic guess."""

MAX_HELD_MESSAGES = 64
MAX_HELD_BYTES = 1024 * 1024
"""Messages that are kept per peer whose link is not measured yet. The peer may have measured it already. If there are more, the
link waits no longer."""

INITIAL_REOPEN_DELAY_S = 0.2
MAX_REOPEN_DELAY_S = 5.0
"""Bounds of the pause before a session to a router that is not running is opened again."""


class _Unmeasured:
    """A link that waits for its first measurement, and the messages that have arrived on it meanwhile."""

    def __init__(self, link: LinkInfo, timer: asyncio.TimerHandle) -> None:
        self.link = link
        self.timer = timer
        self.held: list[tuple[bytes, Callable[[MicroError], None]]] = []
        self.held_bytes = 0


class Adverts:
    """Carries the messages of a router. Start it before a tunnel of the same process connects."""

    def __init__(self, *, tunnel: Sessions, router: Router, environment: Environment) -> None:
        self._tunnel = tunnel
        self._router = router
        self._node_id = environment.node_id
        self._clock = environment.clock
        self._logger = environment.logger
        self._counters = environment.counters
        self._writers: dict[str, MessageWriter] = {}
        self._unmeasured: dict[str, _Unmeasured] = {}
        self._accepted: dict[Session, None] = {}
        self._reopening: dict[str, asyncio.TimerHandle] = {}
        self._pauses: dict[str, float] = {}
        self._tasks = BackgroundTasks(
            component="adverts",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="network_tasks_failed",
        )
        self._listener: ChannelListener | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False

    def start(self) -> None:
        """Listen for messages of the peers and open a session on each current link.

        Raises Conflict when the channel has a listener already.
        """
        self._is_open = True
        self._listener = self._tunnel.listen(ADVERT_CHANNEL, self._session_opened)
        self._schedule_measurement()
        for link in self._tunnel.links():
            self._link_up(link)

    async def close(self) -> None:
        """Close the sessions. Safe to call twice."""
        self._is_open = False
        if self._listener is not None:
            self._listener.close()
        waiting = [unmeasured.timer for unmeasured in self._unmeasured.values()]
        for timer in (self._timer, *self._reopening.values(), *waiting):
            if timer is not None:
                timer.cancel()
        await self._tasks.cancel()
        # Accepted sessions are closed, too, so that the peers notice that this router has stopped.
        for close in [writer.close for writer in self._writers.values()] + [
            session.close for session in self._accepted
        ]:
            with contextlib.suppress(MicroError):
                await close()

    # ------------------------------------------------------------------ links

    def handle_link_event(self, event: LinkEvent) -> None:
        """Follow the links of the tunnel. Called by the component that assembles tunnel and adverts."""
        match event:
            case LinkUp(link):
                self._link_up(link)
            case LinkMoved(link):
                self._link_moved(link)
            case LinkMeasured(link):
                self._link_measured(link)
            case LinkDown(link):
                self._link_down(link)
            case LinkSuspect(link, is_suspect):
                self._router.neighbour_suspect(link.peer, is_suspect=is_suspect, is_closing=link.is_closing)
            case DialSucceeded() | DialFailed():
                # LinkUp or LinkMoved follows the link that a dial makes.
                pass

    def _link_up(self, link: LinkInfo) -> None:
        if not self._is_open:
            return
        self._stop_waiting(link.peer)
        if self._forget(link.peer):
            self._router.neighbour_down(link.peer)
        try:
            self._open(link.peer)
        except MicroError:
            # The link ended after its handshake; LinkDown follows.
            self._counters.add("network_links_lost_at_start")
            return
        if link.path_rtt_s is None:
            self._router.link_opened(link.peer)
            timer = asyncio.get_running_loop().call_later(MAX_WAIT_S, self._measured_too_late, link.peer)
            self._unmeasured[link.peer] = _Unmeasured(link, timer)
        else:
            self._router.neighbour_up(link.peer, cost_of(link), name=link.peer_name, site=link.site)

    def _link_measured(self, link: LinkInfo) -> None:
        if link.peer in self._unmeasured:
            self._start_routing(link)
        elif link.peer in self._writers:
            self._router.neighbour_cost(link.peer, cost_of(link))

    def _measured_too_late(self, peer: str) -> None:
        self._counters.add("network_links_unmeasured")
        self._start_routing(self._unmeasured[peer].link)

    def _start_routing(self, link: LinkInfo) -> None:
        """Let a new link carry routes, and process what its peer has sent meanwhile."""
        unmeasured = self._unmeasured.pop(link.peer)
        unmeasured.timer.cancel()
        self._router.neighbour_up(link.peer, cost_of(link), name=link.peer_name, site=link.site)
        for payload, refused in unmeasured.held:
            try:
                self._router.receive(link.peer, payload)
            except MicroError as error:
                refused(error)
                return

    def _link_moved(self, link: LinkInfo) -> None:
        """Continue over a link of another driver. The neighbour is the same, so routes through it are kept.

        The full table is sent again: the neighbour may have lost the old link earlier and dropped it.
        """
        previous = self._writers.get(link.peer)
        if previous is None or not self._is_open:
            self._link_up(link)
            return
        self._forget(link.peer)
        try:
            self._open(link.peer)
        except MicroError:
            # The link has ended meanwhile; LinkDown follows.
            self._counters.add("network_links_lost_at_start")
            return
        self._tasks.start(previous.close())
        self._router.neighbour_suspect(link.peer, is_suspect=link.is_suspect, is_closing=link.is_closing)
        self._send_full_table(link.peer)

    def _link_down(self, link: LinkInfo) -> None:
        self._stop_waiting(link.peer)
        self._forget(link.peer)
        if self._is_open:
            self._router.neighbour_down(link.peer, is_graceful=link.is_closing)

    def _forget(self, peer: str) -> bool:
        self._pauses.pop(peer, None)
        timer = self._reopening.pop(peer, None)
        if timer is not None:
            timer.cancel()
        return self._writers.pop(peer, None) is not None

    def _stop_waiting(self, peer: str) -> None:
        unmeasured = self._unmeasured.pop(peer, None)
        if unmeasured is not None:
            unmeasured.timer.cancel()

    # --------------------------------------------------------------- messages

    def _open(self, peer: str) -> None:
        session = self._tunnel.dial(ADVERT_CHANNEL, peer=peer, priority=Priority.CONTROL)
        writer = self._writers[peer] = MessageWriter(session, lambda: self._writer_lost(peer, writer))
        writer.start()

    def send(self, peer: str, payload: bytes) -> None:
        """Send a message of the router to `peer`. Set as the sender of the router by the component that assembles both."""
        writer = self._writers.get(peer)
        if writer is None:
            self._counters.add("network_adverts_without_link")
            return
        writer.send(payload)

    def _session_opened(self, session: Session) -> None:
        peer = session.peer

        def refused(error: MicroError) -> None:
            self._counters.add("network_messages_refused")
            self._logger.warning("message of a peer refused", extra={"peer": peer, "reason": str(error)})
            self._tasks.start(self._tunnel.unlink(peer, error))

        self._accepted[session] = None
        session.start(
            MessageReader(
                lambda payload: self._receive(peer, payload, refused),
                refused,
                lambda: self._accepted.pop(session, None) and None,
            )
        )
        self._pauses.pop(peer, None)
        if peer in self._reopening:
            # The router of the peer is running again, and has opened its session first.
            self._reopening.pop(peer).cancel()
            self._reopen(peer)

    def _receive(self, peer: str, payload: bytes, refused: Callable[[MicroError], None]) -> None:
        unmeasured = self._unmeasured.get(peer)
        if unmeasured is None:
            self._router.receive(peer, payload)
            return
        unmeasured.held.append((payload, refused))
        unmeasured.held_bytes += len(payload)
        if len(unmeasured.held) > MAX_HELD_MESSAGES or unmeasured.held_bytes > MAX_HELD_BYTES:
            self._measured_too_late(peer)

    def _send_full_table(self, peer: str) -> None:
        if peer not in self._unmeasured:
            self._router.send_full_table(peer)

    def _writer_lost(self, peer: str, writer: MessageWriter) -> None:
        """Open the session again after a pause. If its link ended, too, then LinkDown or LinkUp follows and cancels this."""
        if not self._is_open or self._writers.get(peer) is not writer or peer in self._reopening:
            return
        pause_s = self._pauses.get(peer, INITIAL_REOPEN_DELAY_S)
        self._pauses[peer] = min(MAX_REOPEN_DELAY_S, pause_s * 2)
        self._reopening[peer] = asyncio.get_running_loop().call_later(pause_s, self._reopen_after_pause, peer)

    def _reopen_after_pause(self, peer: str) -> None:
        self._reopening.pop(peer, None)
        self._reopen(peer)

    def _reopen(self, peer: str) -> None:
        try:
            self._open(peer)
        except MicroError:
            # The link has ended, and LinkDown follows; or it has too many sessions, and the next pause starts.
            self._counters.add("network_adverts_not_reopened")
            self._writer_lost(peer, self._writers[peer])
            return
        self._counters.add("network_adverts_reopened")
        self._send_full_table(peer)

    # ------------------------------------------------------------------- costs

    def link_cost_us(self, peer: str) -> int | None:
        """Return the present cost of the link to `peer` in microseconds, or None if it is not linked or not measured.

        It changes with each ping; the router applies hysteresis. The work does not depend on the number of links.
        """
        link = self._tunnel.link(peer)
        return None if link is None or link.path_rtt_s is None else cost_of(link)

    def _schedule_measurement(self) -> None:
        now = self._clock.now()
        delay = next_beat(now, MEASURE_S, self._node_id) - now
        self._timer = asyncio.get_running_loop().call_later(delay, self._measure)

    def _measure(self) -> None:
        self._timer = None
        if not self._is_open:
            return
        measured = [peer for peer in self._writers if peer not in self._unmeasured]
        costs_us = {peer: cost_us for peer in measured if (cost_us := self.link_cost_us(peer)) is not None}
        if costs_us:
            self._router.neighbour_costs(costs_us)
        self._schedule_measurement()
