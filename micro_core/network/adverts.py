"""Carries the routing messages between this router and those of linked nodes, on the channel `advert`.

There is one session per direction and peer. The router creates and reads the messages; the tunnel preserves their order
and limits the flow. If a session ends while its link is open, then the router of the peer is not running (it may be a
process of its own). The session is opened again, and the peer then receives the full table.
"""

from __future__ import annotations

import asyncio
import contextlib

from micro_core.contract.errors import MicroError
from micro_core.contract.tunnel import (
    ChannelListener,
    DialFailed,
    LinkDown,
    LinkEvent,
    LinkInfo,
    LinkMoved,
    LinkUp,
    Priority,
    Session,
    Sessions,
)
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.network.message_session import MessageReader, MessageWriter
from micro_core.network.messages import ADVERT_CHANNEL
from micro_core.routing.metric import link_cost_us
from micro_core.routing.router import Router

MEASURE_S = 2.0
"""Seconds between two measurements of the cost of each link."""

INITIAL_MEASURE_S = 0.3
"""Seconds until the first measurement of a new link; on most paths the first ping is answered by then."""

INITIAL_REOPEN_DELAY_S = 0.2
MAX_REOPEN_DELAY_S = 5.0
"""Bounds of the pause before a session to a router that is not running is opened again."""


class Adverts:
    """Carries the messages of a router. Start it before a tunnel of the same process connects."""

    def __init__(self, *, tunnel: Sessions, router: Router, environment: Environment) -> None:
        self._tunnel = tunnel
        self._router = router
        self._clock = environment.clock
        self._logger = environment.logger
        self._counters = environment.counters
        self._writers: dict[str, MessageWriter] = {}
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
        self._measure_at = 0.0
        self._is_open = False

    def start(self) -> None:
        """Listen for messages of the peers and open a session on each current link.

        Raises Conflict when the channel has a listener already.
        """
        self._is_open = True
        self._listener = self._tunnel.listen(ADVERT_CHANNEL, self._session_opened)
        self._schedule_measurement(self._clock.now() + MEASURE_S)
        for link in self._tunnel.links():
            self._link_up(link)

    async def close(self) -> None:
        """Close the sessions. Safe to call twice."""
        self._is_open = False
        if self._listener is not None:
            self._listener.close()
        for timer in (self._timer, *self._reopening.values()):
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
            case LinkDown(link):
                self._link_down(link)
            case DialFailed():
                # No link existed, so the router has no routes to remove.
                pass

    def _link_up(self, link: LinkInfo) -> None:
        if not self._is_open:
            return
        if self._forget(link.peer):
            self._router.neighbour_down(link.peer)
        try:
            self._open(link.peer)
        except MicroError:
            # The link ended after its handshake; LinkDown follows.
            self._counters.add("network_links_lost_at_start")
            return
        self._router.neighbour_up(link.peer, _cost_us(link), name=link.peer_name, site=link.site)
        self._schedule_measurement(self._clock.now() + INITIAL_MEASURE_S)

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
        self._router.send_full_table(link.peer)
        self._schedule_measurement(self._clock.now() + INITIAL_MEASURE_S)

    def _link_down(self, link: LinkInfo) -> None:
        self._forget(link.peer)
        if self._is_open:
            self._router.neighbour_down(link.peer)

    def _forget(self, peer: str) -> bool:
        self._pauses.pop(peer, None)
        timer = self._reopening.pop(peer, None)
        if timer is not None:
            timer.cancel()
        return self._writers.pop(peer, None) is not None

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
            self._tasks.start(self._tunnel.unlink(peer))

        self._accepted[session] = None
        session.start(
            MessageReader(
                lambda payload: self._router.receive(peer, payload),
                refused,
                lambda: self._accepted.pop(session, None) and None,
            )
        )
        self._pauses.pop(peer, None)
        if peer in self._reopening:
            # The router of the peer is running again, and has opened its session first.
            self._reopening.pop(peer).cancel()
            self._reopen(peer)

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
        self._router.send_full_table(peer)

    # ------------------------------------------------------------------- costs

    def _schedule_measurement(self, when: float) -> None:
        if self._timer is not None and self._measure_at <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._measure_at = when
        delay = max(0.0, when - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(delay, self._measure)

    def _measure(self) -> None:
        self._timer = None
        if not self._is_open:
            return
        for link in self._tunnel.links():
            if link.peer in self._writers and link.rtt_s is not None:
                self._router.neighbour_cost(link.peer, _cost_us(link))
        self._schedule_measurement(self._clock.now() + MEASURE_S)


def _cost_us(link: LinkInfo) -> int:
    return link_cost_us(rtt_s=link.rtt_s, queue_delay_s=link.queue_delay_s, loss=link.loss)
