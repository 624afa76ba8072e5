"""One link to a node, from its first byte to its end: the lanes of a driver, the handshake, then the mux.

An asyncio shell around `handshake` and `mux`: bytes in, calls of the owner out. Answers are written once per iteration of
the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from micro_core.contract.errors import Closed, Conflict, LinkLost, MicroError, TooLarge, Unauthorized
from micro_core.contract.tunnel import Link, LinkInfo, Priority
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.lifecycle.loop_watch import LoopWatch
from micro_core.tunnel.early_data import MAX_EARLY_BYTES, EarlyData
from micro_core.tunnel.gradual_end import GradualEnd
from micro_core.tunnel.handshake import (
    PROBE_ERROR_ID,
    Admit,
    Handshake,
    HandshakeDone,
    HandshakeEffect,
    HandshakeFailed,
    HandshakeState,
    Hello,
    Send,
)
from micro_core.tunnel.keepalive import ACKNOWLEDGED, Keepalive
from micro_core.tunnel.lane_writer import LaneWriter
from micro_core.tunnel.mux import Mux, MuxSession
from micro_core.tunnel.mux_frames import (
    DataReceived,
    MessageReceived,
    MuxEvent,
    PingReceived,
    PongReceived,
    SendQueueDrained,
    SessionClosed,
    SessionOpened,
    no_listener,
)
from micro_core.tunnel.session import TunnelSession
from micro_core.tunnel.transport_reports import TransportReports
from micro_core.wire import limits


class LinkOwner(Protocol):
    """The tunnel that owns a link, and what the link reports to it."""

    def link_authenticated(self, link: NodeLink) -> bool:
        """Accept a link whose handshake is done. Return False to refuse it as a duplicate."""
        ...

    def link_measured(self, link: NodeLink) -> None:
        """Note that the first round trip of a link is known. Called at most once per link."""
        ...

    def link_suspect(self, link: NodeLink, is_suspect: bool) -> None:
        """Note that the peer of a link may be unreachable, or that something has arrived from it again."""
        ...

    def link_retired(self, link: NodeLink, error: MicroError) -> None:
        """Note that a link that was given up carries nothing new from now on. `link_ended` follows."""
        ...

    def link_ended(self, link: NodeLink, error: MicroError) -> None:
        """Note the end of a link, authenticated or not. Called exactly once per link."""
        ...

    def session_opened(self, channel: str, session: TunnelSession) -> bool:
        """Accept a session that the peer opened. Return False when the channel has no listener."""
        ...

    def message_received(self, peer_id: str, channel: str, payload: bytes) -> None:
        """Deliver a multicast or broadcast message."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkContext:
    """What all links of a tunnel share."""

    owner: LinkOwner
    environment: Environment
    keepalive_s: float
    dead_after_missed: int
    loop_watch: LoopWatch
    make_handshake: Callable[[bool, Hello, bytes, Admit | None], Handshake]
    """Called with (dialed, hello, channel binding, admit)."""


class NodeLink:
    """A link to a node. Implements `LinkReceiver` for the driver and `SessionLink` for the sessions."""

    def __init__(
        self, link: Link, *, dialed: bool, hello: Hello, context: LinkContext, admit: Admit | None = None
    ) -> None:
        self.link = link
        self.local = link.local
        self.remote = link.remote
        self.dialed = dialed
        self.own = hello
        self.dialed_address = ""
        """The address as it was passed to dial; it may stand for several paths."""
        self.path = ""
        """The path that was dialled: an address with a scheme."""
        self.path_reason = ""
        """Reason for choosing this path among several, for display."""
        self.peer: Hello | None = None
        """What the peer stated about itself; None until the handshake is done."""
        self.peer_id = ""
        self.version = 0
        self.error: MicroError | None = None
        """Why the link has ended; None while it is open."""
        self.ending = GradualEnd(self, context.environment.counters)
        """Replaces or gives up the link without interrupting its sessions."""
        self.up_since = 0.0
        self.bytes_in = 0
        self.sessions: dict[int, TunnelSession] = {}
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake is; fails with the reason of its failure."""
        self._owner = context.owner
        self._loop_watch = context.loop_watch
        self._environment = context.environment
        self._loop = asyncio.get_running_loop()
        self._mux = Mux(dialed=dialed, lane_count=link.lane_count)
        self._writer = LaneWriter(link, self._mux, context.environment.clock)
        self._handshake = context.make_handshake(dialed, hello, link.channel_binding, admit)
        self._reports = TransportReports(link)
        self._keepalive = Keepalive(
            interval_s=context.keepalive_s,
            dead_after_missed=context.dead_after_missed,
            dialed=dialed,
            sees_acknowledgements=self._reports.has_acknowledgements,
            environment=context.environment,
            loop_watch=context.loop_watch,
            link=self,
        )
        self._quality = self._keepalive.quality
        self._early = EarlyData()
        self._handshake_timer = self._loop.call_later(limits.HANDSHAKE_TIMEOUT_S, self._handshake_expired)
        self._tasks = BackgroundTasks(
            component="tunnel link",
            logger=context.environment.logger,
            counters=context.environment.counters,
            failure_counter="tunnel_tasks_failed",
        )
        self._closing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the handshake and begin to read."""
        self._carry_out(self._handshake.start())
        self.link.start(self)

    # ------------------------------------------------------------ LinkReceiver

    def data_received(self, lane: int, data: bytes) -> None:
        """Process bytes of a lane."""
        if self.error is not None or self._loop_watch.check():
            # After a suspension, all links of this node have ended, and what arrived on them is outdated.
            return
        self.bytes_in += len(data)
        now = self._environment.clock.now()
        self._keepalive.received(now)
        if self.peer is None:
            self._receive_early(lane, data)
            return
        try:
            for event in self._mux.receive_data(lane, data, now):
                if type(event) is DataReceived:
                    session = self.sessions.get(event.session)
                    if session is not None:
                        session.receive(event.data)
                else:
                    self._handle(event, now)
                if self.error is not None:
                    return
        except MicroError as violation:
            self._environment.counters.add("tunnel_protocol_violations")
            self.abort(violation)
            return
        self._writer.schedule()

    def lane_writable(self, lane: int) -> None:  # noqa: ARG002 - flushing considers all lanes
        """Write more, now that the driver's buffer has space."""
        if self.error is None:
            self._writer.schedule()

    def link_lost(self, error: MicroError) -> None:
        """End the link: its driver reports that it is lost."""
        self._end(error)

    # --------------------------------------------------------------- sessions

    def open_session(self, channel: str, priority: Priority) -> TunnelSession:
        """Open a session. Raises Overloaded when the link has too many sessions."""
        mux_session = self._mux.open(channel, priority)
        session = TunnelSession(self, mux_session)
        self.sessions[mux_session.number] = session
        self._schedule_flush()
        return session

    def write(self, mux_session: MuxSession, data: bytes) -> bool:
        """Send data of a session. Return False when the session should pause writing."""
        if self._loop_watch.check():
            return True
        may_continue = self._mux.write(mux_session, data)
        # At once: the caller has already gathered its writes of this iteration, and the driver gathers again.
        self._writer.flush()
        return may_continue

    def consumed(self, mux_session: MuxSession, count: int) -> None:
        """Account for received bytes that the owner of a session has processed."""
        self._mux.consumed(mux_session, count)
        self._schedule_flush()

    def close_session(self, mux_session: MuxSession) -> bool:
        """Close a session once its queued data is sent. Return True when nothing was queued."""
        self._mux.close(mux_session)
        self._schedule_flush()
        return mux_session.number not in self._mux.sessions

    def reset_session(self, mux_session: MuxSession, error: MicroError) -> None:
        """End a session at once with `error`."""
        self._mux.reset(mux_session.number, error)
        self.sessions.pop(mux_session.number, None)
        self._schedule_flush()

    def multicast(self, channel: str, payload: bytes, priority: Priority, *, broadcast: bool) -> bool:
        """Send a message. Return False when the peer does not listen, or when the link is too slow (counted)."""
        dropped = self._mux.dropped_multicasts
        sent = self._mux.multicast(channel, payload, priority, broadcast=broadcast)
        if self._mux.dropped_multicasts > dropped:
            self._environment.counters.add("tunnel_multicasts_dropped_slow_link")
        self._schedule_flush()
        return sent

    def listen(self, channel: str) -> None:
        """Ask the peer for the multicast messages of `channel`."""
        self._mux.listen(channel)
        self._schedule_flush()

    def unlisten(self, channel: str) -> None:
        """Ask the peer to send no more multicast messages of `channel`."""
        self._mux.unlisten(channel)
        self._schedule_flush()

    # -------------------------------------------------------------------- end

    def abort(self, error: MicroError) -> None:
        """End the link now. The driver's link is closed in the background."""
        self._end(error)
        if self._closing is None:
            self._closing = self._tasks.start(self.link.close())

    async def close(self, error: MicroError | None = None) -> None:
        """Send what is queued, then end the link. Waits at most two seconds."""
        self._writer.flush()
        self.abort(error or Closed(f"the link to {self.remote} was closed at this end"))
        if self._closing is not None:
            await asyncio.wait([self._closing], timeout=2.0)

    # -------------------------------------------------------------- EndingLink

    def closing_started(self) -> None:
        """Report the link as suspect from now on."""
        self._owner.link_suspect(self, True)

    def drained(self, error: MicroError) -> None:
        """Report that the link carries nothing new from now on."""
        self._owner.link_retired(self, error)

    def has_open_sessions(self) -> bool:
        """Return whether sessions are open, except those of control data."""
        return any(session.priority is not Priority.CONTROL for session in self._mux.sessions.values())

    @property
    def has_sent_proof(self) -> bool:
        """Whether only the peer's proof is missing: the peer may consider the link established already."""
        return self._handshake.state is HandshakeState.WAIT_PROOF

    def info(self) -> LinkInfo:
        """Return the properties and measurements of an authenticated link."""
        peer, quality = self.peer, self._quality
        assert peer is not None
        return LinkInfo(
            peer=self.peer_id,
            peer_name=peer.name,
            site=peer.site,
            link_id=f"{self.link.driver}:{self.local}-{self.remote}",
            generation=self.own.generation if self.dialed else peer.generation,
            driver=self.link.driver,
            local=self.local,
            remote=self.link.remote,
            dialed=self.dialed,
            dialed_address=self.dialed_address,
            why=self.path_reason,
            rtt_s=quality.rtt_s,
            rtt_variance_s=quality.rtt_variance_s,
            path_rtt_s=quality.path_rtt_s,
            is_suspect=quality.is_suspect or self.ending.is_closing,
            is_closing=self.ending.is_closing,
            loss=self._reports.loss(otherwise=quality.loss),
            queue_delay_s=quality.queue_delay_s,
            bytes_in=self.bytes_in,
            bytes_out=self._writer.bytes_out,
            sessions=len(self.sessions),
            up_since=self.up_since,
        )

    # -------------------------------------------------------------- handshake

    def _receive_early(self, lane: int, data: bytes) -> None:
        if lane == 0:
            self._carry_out(self._handshake.receive_data(data))
            return
        if not self._early.add(lane, data):
            self.abort(TooLarge(f"the peer sent more than {MAX_EARLY_BYTES} bytes before the handshake was done"))

    def _carry_out(self, effects: list[HandshakeEffect]) -> None:
        for effect in effects:
            match effect:
                case Send(data):
                    self._writer.write_handshake(data)
                case HandshakeFailed(error):
                    if error.id == PROBE_ERROR_ID:
                        self._environment.counters.add("tunnel_probes")
                    elif isinstance(error, Conflict):
                        self._environment.counters.add("tunnel_links_duplicate")
                    else:
                        self._environment.counters.add("tunnel_handshakes_failed")
                        # Level info, so that an unauthenticated peer cannot fill the log. A node that dialled reports it.
                        details = {"remote": self.remote, "reason": error.detail}
                        self._environment.logger.info("link refused", extra=details)
                    self.abort(error)
                case HandshakeDone(peer, peer_id, version, rest):
                    self._authenticated(peer, peer_id, version, rest)

    def _authenticated(self, peer: Hello, peer_id: str, version: int, rest: bytes) -> None:
        self.peer, self.peer_id, self.version = peer, peer_id, version
        self.up_since = self._quality.last_received_at = self._environment.clock.now()
        self._handshake_timer.cancel()
        self._writer.open()
        if not self._owner.link_authenticated(self):
            self.abort(Unauthorized("another link to this node is established already"))
            return
        self._keepalive.start()
        self._reports.watch_silence(self._transport_silent)
        if not self.ready.done():
            self.ready.set_result(None)
        for lane, data in [(0, rest), *self._early.pop_all()]:
            if data and self.error is None:
                self.bytes_in -= len(data)
                self.data_received(lane, data)

    def _handshake_expired(self) -> None:
        self._environment.counters.add("tunnel_handshakes_expired")
        timeout = f"{limits.HANDSHAKE_TIMEOUT_S:.0f} s"
        self.abort(Unauthorized(f"the handshake with {self.remote} did not complete within {timeout}"))

    # -------------------------------------------------------------- PingedLink

    def send_ping(self, token: int, measured_s: float | None) -> None:
        """Send a ping at once, without another iteration of the event loop. It reports the round trip, see `PingedLink`."""
        if token & ACKNOWLEDGED:
            self._reports.watch_acknowledgement(lambda rtt_s: self._ping_acknowledged(token, rtt_s))
        self._mux.ping(token, 0 if measured_s is None else max(1, round(measured_s * 1e6)))
        self._writer.flush()

    def peer_measured(self) -> None:
        """Note that the first round trip is known."""
        self._owner.link_measured(self)

    def peer_suspect(self, is_suspect: bool) -> None:
        """Note that the peer may be unreachable, or that something has arrived from it again."""
        if not self.ending.is_closing:
            self._owner.link_suspect(self, is_suspect)

    def peer_dead(self, silent_s: float) -> None:
        """End the link: nothing arrived for `silent_s` seconds."""
        self.abort(LinkLost(f"nothing received from {self.remote} for {silent_s:.3g} s"))

    # --------------------------------------------------------------- internals

    def _ping_acknowledged(self, token: int, rtt_s: float) -> None:
        if self.error is None and not self._loop_watch.check():
            self._keepalive.ping_acknowledged(token, rtt_s, self._environment.clock.now())

    def _transport_silent(self, is_silent: bool) -> None:
        if self.error is None:
            self._keepalive.transport_silent(is_silent, self._environment.clock.now())

    def _handle(self, event: MuxEvent, now: float) -> None:
        match event:
            case SessionOpened(number, channel, _):
                session = TunnelSession(self, self._mux.sessions[number])
                self.sessions[number] = session
                if not self._owner.session_opened(channel, session):
                    self.sessions.pop(number, None)
                    self._mux.refuse(number, no_listener(channel))
            case SessionClosed(number, error):
                ended = self.sessions.pop(number, None)
                if ended is not None:
                    ended.end(error)
            case SendQueueDrained(number):
                drained = self.sessions.get(number)
                if drained is not None:
                    drained.resume_writing()
            case MessageReceived(channel, payload):
                self._owner.message_received(self.peer_id, channel, payload)
            case PingReceived(token, measured_us):
                if self._keepalive.ping_received(token, measured_us / 1e6 if measured_us else None, now):
                    self._mux.pong(token, round(self._keepalive.lag_s() * 1e6))
            case PongReceived(token, lag_us):
                self._keepalive.pong_received(token, now, lag_us / 1e6)
            case DataReceived():
                pass  # handled by `data_received`, on the fast path
        self._drop_closed_sessions()

    def _drop_closed_sessions(self) -> None:
        """Forget sessions whose local close is complete."""
        if len(self.sessions) > len(self._mux.sessions):
            for number in [number for number in self.sessions if number not in self._mux.sessions]:
                self.sessions.pop(number).flushed()

    def _schedule_flush(self) -> None:
        if self.error is None:
            self._writer.schedule()

    def _end(self, error: MicroError) -> None:
        if self.error is not None:
            return
        self.error = error
        self._writer.close()
        self._handshake_timer.cancel()
        self._keepalive.stop()
        if not self.ready.done():
            self.ready.set_exception(error)
            # Mark the exception as retrieved: an accepted link has no waiter.
            self.ready.exception()
        sessions, self.sessions = list(self.sessions.values()), {}
        for session in sessions:
            session.end(error)
        self.ending.link_ended()
        self._owner.link_ended(self, error)
