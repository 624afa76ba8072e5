"""One link: a driver's lanes, the handshake, then the mux. A shell: bytes in, callbacks out; answers leave once a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from micro_core.contract.errors import Closed, Conflict, LinkLost, MicroError, TooLarge, Unauthorized
from micro_core.contract.tunnel import Link, LinkInfo, Priority
from micro_core.lifecycle.environment import Environment
from micro_core.tunnel.handshake import (
    Admit,
    Done,
    Failed,
    Greeting,
    Handshake,
    HandshakeEffect,
    HandshakeState,
    Send,
)
from micro_core.tunnel.measure import LinkMeasure
from micro_core.tunnel.mux import Mux, MuxSession
from micro_core.tunnel.mux_frames import (
    Message,
    MuxEvent,
    Opened,
    Over,
    Pinged,
    Ponged,
    Received,
    Resumed,
    nobody_listens,
)
from micro_core.tunnel.session import TunnelSession
from micro_core.wire import limits

EARLY_BYTES = 256 * 1024
"""Held of the other lanes while a handshake ends: its last message may be overtaken by the first data."""

LANE_ROOM_BYTES = {
    Priority.CONTROL: 4 * 1024 * 1024,
    Priority.CALLS: 512 * 1024,
    Priority.EVENTS: 256 * 1024,
    Priority.BULK: 64 * 1024,
}
"""What a driver may have buffered of a lane before more is handed to it: little, so that order can still be changed."""

SINGLE_LANE_ROOM_BYTES = {
    Priority.CONTROL: 128 * 1024,
    Priority.CALLS: 96 * 1024,
    Priority.EVENTS: 64 * 1024,
    Priority.BULK: 32 * 1024,
}
"""The same where all share one lane: each leaves room to those above it, which go behind what is buffered already."""

RETIRE_S = limits.DEFAULT_TIMEOUT_S
"""How long the sessions of a link that another has taken over from may go on: as long as a call takes at most, unless
its caller says otherwise."""


class LinkOwner(Protocol):
    """What a link tells its tunnel."""

    def link_proved(self, link: LinkPeer) -> bool:
        """The handshake is done; False when the link is not wanted (a duplicate)."""
        ...

    def link_ended(self, link: LinkPeer, error: MicroError) -> None:
        """The end, once, of links that were proved and of those that never were."""
        ...

    def session_opened(self, link: LinkPeer, channel: str, session: TunnelSession) -> bool:
        """False where nobody listens."""
        ...

    def message_received(self, link: LinkPeer, channel: str, payload: bytes) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkContext:
    """What all links of a tunnel share."""

    owner: LinkOwner
    environment: Environment
    keepalive_s: float
    dead_after_missed: int
    make_handshake: Callable[[bool, Greeting, bytes, Admit | None], Handshake]
    """(dialed, greeting, channel binding, admit)"""


class LinkPeer:
    """Implements `LinkReceiver`; a link from its first byte to its end."""

    def __init__(
        self,
        link: Link,
        *,
        dialed: bool,
        greeting: Greeting,
        context: LinkContext,
        admit: Admit | None = None,
    ) -> None:
        self.link = link
        self.dialed = dialed
        self.own = greeting
        self.dialed_address = ""
        """As it was given to dial; several ways may lead there."""
        self.way = ""
        """The address that was dialled, with its scheme."""
        self.why = ""
        """What spoke for this way."""
        self.peer: Greeting | None = None
        self.peer_id = ""
        self.version = 0
        self.error: MicroError | None = None
        self.up_since = 0.0
        self.bytes_in = 0
        self.bytes_out = 0
        self.sessions: dict[int, TunnelSession] = {}
        self.measure = LinkMeasure(context.keepalive_s, context.dead_after_missed)
        self._context = context
        self._environment = context.environment
        self._loop = asyncio.get_running_loop()
        self._mux = Mux(dialed=dialed, lane_count=link.lane_count)
        self._handshake = context.make_handshake(dialed, greeting, link.channel_binding, admit)
        self._early: list[tuple[int, bytes]] = []
        self._early_bytes = 0
        self._flush_scheduled = False
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._retiring: asyncio.TimerHandle | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when the handshake is; fails with its reason."""
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(
            limits.HANDSHAKE_TIMEOUT_S, self._handshake_expired
        )
        self._closing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Greet, and begin to read."""
        self._carry_out(self._handshake.start())
        self.link.start(self)

    # ------------------------------------------------------------ LinkReceiver

    def data_received(self, lane: int, data: bytes) -> None:
        if self.error is not None:
            return
        self.bytes_in += len(data)
        now = self._environment.clock.now()
        self.measure.last_heard_at = now
        if self.peer is None:
            self._receive_early(lane, data)
            return
        try:
            for event in self._mux.receive_data(lane, data, now):
                if type(event) is Received:
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
        self._schedule_flush()

    def lane_writable(self, lane: int) -> None:  # noqa: ARG002 - all lanes are looked at
        self._schedule_flush()

    def link_lost(self, error: MicroError) -> None:
        self._end(error)

    # --------------------------------------------------------------- sessions

    def open_session(self, channel: str, priority: Priority) -> TunnelSession:
        """Open a session; raises Overloaded at the bound."""
        mux_session = self._mux.open(channel, priority)
        session = TunnelSession(self, mux_session)
        self.sessions[mux_session.number] = session
        self._schedule_flush()
        return session

    def write(self, mux_session: MuxSession, data: bytes) -> bool:
        has_room = self._mux.write(mux_session, data)
        # At once: whoever writes has gathered what there was in its turn, and so does the driver once more.
        self._flush()
        return has_room

    def consumed(self, mux_session: MuxSession, count: int) -> None:
        self._mux.consumed(mux_session, count)
        self._schedule_flush()

    def close_session(self, mux_session: MuxSession) -> bool:
        """Close after what is queued; True when that is nothing."""
        self._mux.close(mux_session)
        self._schedule_flush()
        return mux_session.number not in self._mux.sessions

    def reset_session(self, mux_session: MuxSession, error: MicroError) -> None:
        self._mux.reset(mux_session.number, error)
        self.sessions.pop(mux_session.number, None)
        self._schedule_flush()

    def multicast(self, channel: str, payload: bytes, priority: Priority, *, broadcast: bool) -> bool:
        dropped = self._mux.dropped_multicasts
        sent = self._mux.multicast(channel, payload, priority, broadcast=broadcast)
        if self._mux.dropped_multicasts > dropped:
            self._environment.counters.add("tunnel_multicasts_dropped_slow_link")
        self._schedule_flush()
        return sent

    def listen(self, channel: str) -> None:
        self._mux.listen(channel)
        self._schedule_flush()

    def unlisten(self, channel: str) -> None:
        self._mux.unlisten(channel)
        self._schedule_flush()

    # ------------------------------------------------------------------- ends

    def abort(self, error: MicroError) -> None:
        """End now; the driver's link is closed behind."""
        self._end(error)
        if self._closing is None:
            self._closing = self._loop.create_task(self.link.close())

    async def close(self, error: MicroError | None = None) -> None:
        """Send what is queued, then end."""
        if self.error is None:
            self._flush()
        self.abort(error or Closed(f"the link to {self.link.remote} was closed here"))
        if self._closing is not None:
            await asyncio.wait([self._closing], timeout=2.0)

    def retire(self, error: MicroError) -> None:
        """Another link has taken over: serve the sessions that stand until the last is gone, for `RETIRE_S` at most."""
        if self.error is None and self._retiring is None:
            self._retiring = self._loop.call_later(RETIRE_S, self.abort, error)
            self._set_over()

    async def wait_over(self) -> None:
        """Wait until this is no longer the link to its peer: it has ended, whoever caused it, or another took over."""
        await asyncio.shield(self._over)

    @property
    def is_proving(self) -> bool:
        """Whether our proof is out and the peer's awaited: it may count the link as standing already."""
        return self._handshake.state is HandshakeState.PROVING

    def info(self) -> LinkInfo:
        peer = self.peer
        assert peer is not None
        return LinkInfo(
            peer=self.peer_id,
            peer_name=peer.name,
            site=peer.site,
            link_id=f"{self.link.driver}:{self.link.local}-{self.link.remote}",
            generation=self.own.generation if self.dialed else peer.generation,
            driver=self.link.driver,
            local=self.link.local,
            remote=self.link.remote,
            dialed=self.dialed,
            dialed_address=self.dialed_address,
            why=self.why,
            rtt_s=self.measure.rtt_s,
            rtt_variance_s=self.measure.rtt_variance_s,
            loss=self.measure.loss,
            queue_delay_s=self.measure.queue_delay_s,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            sessions=len(self.sessions),
            up_since=self.up_since,
        )

    # -------------------------------------------------------------- handshake

    def _receive_early(self, lane: int, data: bytes) -> None:
        if lane == 0:
            self._carry_out(self._handshake.receive_data(data))
            return
        self._early_bytes += len(data)
        if self._early_bytes > EARLY_BYTES:
            self.abort(TooLarge("too much was sent before the handshake was done"))
            return
        self._early.append((lane, data))

    def _carry_out(self, effects: list[HandshakeEffect]) -> None:
        for effect in effects:
            match effect:
                case Send(data):
                    self.bytes_out += len(data)
                    self.link.write(0, data)
                case Failed(error):
                    if isinstance(error, Conflict):
                        self._environment.counters.add("tunnel_links_duplicate")
                    else:
                        self._environment.counters.add("tunnel_handshakes_failed")
                        # Who dialled hears of it anyway; here any stranger can have it said as often as it likes.
                        where = {"remote": self.link.remote, "reason": error.detail}
                        self._environment.logger.info("a link was refused", extra=where)
                    self.abort(error)
                case Done(peer, peer_id, version, rest):
                    self._proved(peer, peer_id, version, rest)

    def _proved(self, peer: Greeting, peer_id: str, version: int, rest: bytes) -> None:
        self.peer, self.peer_id, self.version = peer, peer_id, version
        now = self._environment.clock.now()
        self.up_since = self.measure.last_heard_at = now
        if self._timer is not None:
            self._timer.cancel()
        if not self._context.owner.link_proved(self):
            self.abort(Unauthorized("another link to this node stands"))
            return
        self._keepalive()
        if not self.ready.done():
            self.ready.set_result(None)
        early, self._early = [(0, rest), *self._early], []
        for lane, data in early:
            if data and self.error is None:
                self.bytes_in -= len(data)
                self.data_received(lane, data)

    def _handshake_expired(self) -> None:
        self._environment.counters.add("tunnel_handshakes_expired")
        self.abort(Unauthorized(f"no handshake within {limits.HANDSHAKE_TIMEOUT_S:.0f} s from {self.link.remote}"))

    # ----------------------------------------------------------------- inside

    def _handle(self, event: MuxEvent, now: float) -> None:
        match event:
            case Opened(number, channel, _):
                session = TunnelSession(self, self._mux.sessions[number])
                self.sessions[number] = session
                if not self._context.owner.session_opened(self, channel, session):
                    self.sessions.pop(number, None)
                    self._mux.refuse(number, nobody_listens(channel))
            case Over(number, error):
                ended = self.sessions.pop(number, None)
                if ended is not None:
                    ended.end(error)
            case Resumed(number):
                resumed = self.sessions.get(number)
                if resumed is not None:
                    resumed.resume_writing()
            case Message(channel, payload):
                self._context.owner.message_received(self, channel, payload)
            case Pinged(token):
                self._mux.pong(token)
            case Ponged(token):
                self.measure.pong_received(token, now)
            case Received():
                pass
        self._drop_closed()

    def _drop_closed(self) -> None:
        if len(self.sessions) > len(self._mux.sessions):
            for number in [number for number in self.sessions if number not in self._mux.sessions]:
                self.sessions.pop(number).flushed()

    def _keepalive(self) -> None:
        environment = self._environment
        now = environment.clock.now()
        if self.measure.is_dead(now):
            environment.counters.add("tunnel_links_dead")
            silent_s = self._context.keepalive_s * self._context.dead_after_missed
            self.abort(LinkLost(f"nothing heard from {self.link.remote} for {silent_s:.3g} s"))
            return
        token = environment.random.getrandbits(63)
        self.measure.ping_sent(token, now)
        self._mux.ping(token)
        self._schedule_flush()
        delay_s = self._context.keepalive_s * environment.random.uniform(0.9, 1.1)
        self._timer = self._loop.call_later(delay_s, self._keepalive)

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled and self.error is None and self._mux.has_queued:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        if self.error is not None or self.peer is None or not self._mux.has_queued:
            return
        now = self._environment.clock.now()
        single = self.link.lane_count == 1
        for priority, most in (SINGLE_LANE_ROOM_BYTES if single else LANE_ROOM_BYTES).items():
            if not self._mux.queued(priority):
                continue
            lane = 0 if single else int(priority)
            room = most - self.link.buffered_bytes(lane)
            data = self._mux.take(priority, room, now)
            if data:
                self.bytes_out += len(data)
                self.link.write(lane, data)

    def _set_over(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _end(self, error: MicroError) -> None:
        if self.error is not None:
            return
        self.error = error
        if self._timer is not None:
            self._timer.cancel()
        if not self.ready.done():
            self.ready.set_exception(error)
            # Nobody may be waiting for an accepted link.
            self.ready.exception()
        sessions, self.sessions = list(self.sessions.values()), {}
        for session in sessions:
            session.end(error)
        self._set_over()
        if self._retiring is not None:
            self._retiring.cancel()
        self._context.owner.link_ended(self, error)
