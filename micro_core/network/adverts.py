"""Routing messages between this router and those of linked nodes: one session a direction and peer, on `advert`.

A shell: the router makes and reads the messages, the tunnel keeps order and credit. A session that ends while its link
stands means that the router at the other end is away (it may run in a process of its own): it is opened again, and
the peer is then told everything anew.
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
"""Seconds between two looks at the cost of each link."""

FIRST_MEASURE_S = 0.3
"""A new link's first ping is answered by then, on most paths."""

REOPEN_FIRST_S = 0.2
REOPEN_LAST_S = 5.0
"""Bounds of the pause before a session to a router that is away is opened again."""


class Adverts:
    """Carries the router's messages. To be started before a tunnel of the same process connects."""

    def __init__(self, *, tunnel: Sessions, router: Router, environment: Environment) -> None:
        self._tunnel = tunnel
        self._router = router
        self._clock = environment.clock
        self._log = environment.logger
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
        """Listen for the peers' messages, and follow the links."""
        self._is_open = True
        self._listener = self._tunnel.listen(ADVERT_CHANNEL, self._session_opened)
        self._measure_by(self._clock.now() + MEASURE_S)
        for link in self._tunnel.links():
            self._link_up(link)

    async def close(self) -> None:
        """Close the sessions; safe to call twice."""
        self._is_open = False
        if self._listener is not None:
            self._listener.close()
        for timer in (self._timer, *self._reopening.values()):
            if timer is not None:
                timer.cancel()
        await self._tasks.cancel()
        # Those of the peers, too: an ending tells them that nobody reads here any more.
        for close in [one.close for one in self._writers.values()] + [one.close for one in self._accepted]:
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
                # No link existed, so the router has nothing to forget.
                pass

    def _link_up(self, link: LinkInfo) -> None:
        if not self._is_open:
            return
        if self._forget(link.peer):
            self._router.neighbour_down(link.peer)
        try:
            self._open(link.peer)
        except MicroError:
            # The link went between the handshake and here; `_link_down` follows.
            self._counters.add("network_links_lost_at_start")
            return
        self._router.neighbour_up(link.peer, _cost_us(link), name=link.peer_name, site=link.site)
        self._measure_by(self._clock.now() + FIRST_MEASURE_S)

    def _link_moved(self, link: LinkInfo) -> None:
        """Another driver has taken over: the neighbour is the same, and routes through it stand.

        Everything is told again: it may have lost the old link before, and forgotten.
        """
        before = self._writers.get(link.peer)
        if before is None or not self._is_open:
            self._link_up(link)
            return
        self._forget(link.peer)
        try:
            self._open(link.peer)
        except MicroError:
            # The link went meanwhile; `_link_down` follows.
            self._counters.add("network_links_lost_at_start")
            return
        self._tasks.start(before.close())
        self._router.tell_everything(link.peer)
        self._measure_by(self._clock.now() + FIRST_MEASURE_S)

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
            self._log.warning("a peer's message was refused", extra={"peer": peer, "reason": str(error)})
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
            # The router there is back, and has found us first.
            self._reopening.pop(peer).cancel()
            self._reopen(peer)

    def _writer_lost(self, peer: str, writer: MessageWriter) -> None:
        """A session ended. If its link does as well, `_link_down` or a newer link follows and ends the waiting."""
        if not self._is_open or self._writers.get(peer) is not writer or peer in self._reopening:
            return
        pause_s = self._pauses.get(peer, REOPEN_FIRST_S)
        self._pauses[peer] = min(REOPEN_LAST_S, pause_s * 2)
        self._reopening[peer] = asyncio.get_running_loop().call_later(pause_s, self._reopen_in_time, peer)

    def _reopen_in_time(self, peer: str) -> None:
        self._reopening.pop(peer, None)
        self._reopen(peer)

    def _reopen(self, peer: str) -> None:
        try:
            self._open(peer)
        except MicroError:
            # The link is gone or full: `_link_down` comes, or the next session that ends asks again.
            self._counters.add("network_adverts_not_reopened")
            self._writer_lost(peer, self._writers[peer])
            return
        self._counters.add("network_adverts_reopened")
        self._router.tell_everything(peer)

    # ------------------------------------------------------------------- costs

    def _measure_by(self, when: float) -> None:
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
        self._measure_by(self._clock.now() + MEASURE_S)


def _cost_us(link: LinkInfo) -> int:
    return link_cost_us(rtt_s=link.rtt_s, queue_delay_s=link.queue_delay_s, loss=link.loss)
