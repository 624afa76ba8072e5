"""Multiplexes sessions over the lanes of one link. Pure: bytes and calls in, events and bytes out.

OPEN names the channel and is not answered: data may follow at once, and RESET is the answer if the channel has no
listener. The side that opens a session numbers it: odd numbers belong to the side that dialled the link. Each direction
of a session has its own credit, and so has each direction of the link (WINDOW of session 0). Lower priorities leave part
of the link's credit to higher ones, so that sessions whose receivers do not read cannot block adverts. The frame header
counts against the credit, which also bounds the number of empty frames. On a link with four lanes each priority has its
own; on a link with one lane frames are small and the highest priority is sent first.

A protocol violation raises Malformed, TooLarge or Overloaded, and the owner must close the link.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from micro_core.contract.errors import Ended, Malformed, MicroError, Overloaded, TooLarge, error_from_wire
from micro_core.contract.tunnel import Priority
from micro_core.tunnel.credit import BulkWindow, ReceiveCredit, SendCredit
from micro_core.tunnel.mux_frames import (
    BULK,
    DATA,
    HEAD,
    MAX_CHANNELS,
    MAX_PAYLOAD_BYTES,
    MAX_PING_US,
    PING,
    PRIORITIES,
    TYPES,
    DataReceived,
    MessageReceived,
    MuxEvent,
    PingReceived,
    PongReceived,
    SendQueueDrained,
    SessionClosed,
    SessionOpened,
    Type,
    read_channel,
)
from micro_core.tunnel.send_queues import SendQueues
from micro_core.wire import limits
from micro_core.wire.header import decode_map, encode_map

HIGH_WATER_BYTES = 512 * 1024
"""Unsent bytes of a session above which its owner is asked to pause writing."""

LOW_WATER_BYTES = 128 * 1024
"""Unsent bytes of a session below which its owner may write again."""

MAX_QUEUED_MULTICAST_BYTES = 4 * 1024 * 1024
"""Multicast messages that may wait for one link. Beyond that, messages are dropped and counted."""

MAX_QUEUED_CONTROL_BYTES = 4 * 1024 * 1024
"""Answers that may wait for one link: pongs, grants, refusals."""

LINK_RESERVE_BYTES = {
    Priority.CONTROL: 0,
    Priority.CALLS: limits.LINK_WINDOW_BYTES // 16,
    Priority.EVENTS: limits.LINK_WINDOW_BYTES // 8,
    Priority.BULK: limits.LINK_WINDOW_BYTES // 4,
}
"""The part of the link's credit that a priority leaves to the higher ones."""

BULK_ACK_STEP_BYTES = 8 * 1024
"""Bulk data is acknowledged in small steps, because each acknowledgement is a measurement for the sender's window."""

_COUNT = struct.Struct(">I")


@dataclass(slots=True)
class MuxSession:
    """The state of one session, both directions."""

    number: int
    channel: str
    priority: Priority
    send: SendCredit
    receive: ReceiveCredit
    unsent: deque[bytes | memoryview] = field(default_factory=deque)
    unsent_bytes: int = 0
    is_paused: bool = False
    is_closing: bool = False
    peer_closed: bool = False


class Mux:
    """The sessions of one link."""

    def __init__(self, *, dialed: bool, lane_count: int, window: int = limits.SESSION_WINDOW_BYTES) -> None:
        self.sessions: dict[int, MuxSession] = {}
        self.peer_channels: set[str] = set()
        """The channels on which the peer receives multicast messages."""
        self.bulk = BulkWindow()
        self.dropped_multicasts = 0
        self._window = window
        self._next_number = 1 if dialed else 2
        self._link_send = SendCredit(limits.LINK_WINDOW_BYTES, limits.LINK_WINDOW_BYTES)
        self._link_receive = ReceiveCredit(limits.LINK_WINDOW_BYTES, limits.LINK_WINDOW_BYTES // 16)
        self._waiting_for_link: dict[int, MuxSession] = {}
        """Sessions that wait for credit of the link rather than for their own."""
        self._peer_parity = 0 if dialed else 1
        self._queues = SendQueues(self.bulk)
        self._queued_bytes = self._queues.queued_bytes
        self._send = self._queues.add
        self._incomplete = [b""] * max(1, lane_count)
        """The incomplete frame at the end of what was received, per lane."""
        self._bulk_received = 0

    # --------------------------------------------------------------- sessions

    def open(self, channel: str, priority: Priority) -> MuxSession:
        """Open a session. Raises Overloaded when the link has `limits.MAX_SESSIONS_PER_LINK` sessions."""
        if len(self.sessions) >= limits.MAX_SESSIONS_PER_LINK:
            raise Overloaded(f"{len(self.sessions)} sessions are open on one link")
        number, self._next_number = self._next_number, self._next_number + 2
        session = self._add_session(number, channel, priority)
        self._send(priority, Type.OPEN, number, bytes([int(priority)]) + channel.encode())
        return session

    def write(self, session: MuxSession, data: bytes) -> bool:
        """Queue data of a session. Return False when its owner should pause writing."""
        if session.is_closing or not data:
            return True
        # A memoryview, because cutting frames off a large write must not copy the remainder each time.
        session.unsent.append(data if len(data) <= limits.MAX_MUX_FRAME_BYTES else memoryview(data))
        session.unsent_bytes += len(data)
        self._pump(session)
        if session.unsent_bytes > HIGH_WATER_BYTES:
            session.is_paused = True
            return False
        return True

    def consumed(self, session: MuxSession, count: int) -> None:
        """Account for the `count` bytes of one `DataReceived` that the owner has processed or discarded."""
        granted = session.receive.consume(count + HEAD.size)
        if granted and session.number in self.sessions and not session.peer_closed:
            self._send(Priority.CONTROL, Type.WINDOW, session.number, _COUNT.pack(granted))
        self._link_consumed(count)

    def close(self, session: MuxSession) -> None:
        """Close a session once its queued data is sent."""
        session.is_closing = True
        self._finish_close(session)

    def reset(self, number: int, error: MicroError) -> None:
        """End a session at once and send `error` to the peer as the reason."""
        session = self.sessions.get(number)
        self._remove_session(number)
        lane = session.priority if session is not None else Priority.CONTROL
        self._send(lane, Type.RESET, number, encode_map(error.to_wire()))

    def refuse(self, number: int, error: MicroError) -> None:
        """End a session that the peer has just opened.

        Nothing was sent on it, so unlike `reset` this may use the control lane without overtaking data.
        """
        self._remove_session(number)
        self._send(Priority.CONTROL, Type.RESET, number, encode_map(error.to_wire()))

    # ------------------------------------------------------------- whole link

    def multicast(self, channel: str, payload: bytes, priority: Priority, *, broadcast: bool) -> bool:
        """Queue a message for the peer. Return False when the peer does not listen, or is too slow (counted)."""
        if not broadcast and channel not in self.peer_channels:
            return False
        if self._queued_bytes[priority] > MAX_QUEUED_MULTICAST_BYTES:
            self.dropped_multicasts += 1
            return False
        name = channel.encode()
        kind = Type.BROADCAST if broadcast else Type.MULTICAST
        self._send(priority, kind, 0, bytes([len(name)]) + name + payload)
        return True

    def listen(self, channel: str) -> None:
        """Ask the peer for the multicast messages of `channel`."""
        self._send(Priority.CONTROL, Type.LISTEN, 0, channel.encode())

    def unlisten(self, channel: str) -> None:
        """Ask the peer to send no more multicast messages of `channel`."""
        self._send(Priority.CONTROL, Type.UNLISTEN, 0, channel.encode())

    def ping(self, token: int, measured_us: int = 0) -> None:
        """Send a ping with a token of 64 bits. It reports a round trip that this end has measured, or 0."""
        self._send(Priority.CONTROL, Type.PING, 0, PING.pack(token, min(MAX_PING_US, measured_us)))

    def pong(self, token: int, lag_us: int = 0) -> None:
        """Answer a ping. The event loop of this end may have delayed the answer by `lag_us`."""
        self._send(Priority.CONTROL, Type.PONG, 0, PING.pack(token, min(MAX_PING_US, lag_us)))

    @property
    def has_queued(self) -> bool:
        """Whether any frame waits to be written."""
        return any(self._queued_bytes)

    def queued(self, priority: Priority) -> int:
        """Return how many bytes of a priority wait to be written."""
        return self._queued_bytes[priority]

    def data_to_send(self, priority: Priority, max_bytes: int, now: float) -> bytes:
        """Remove and return queued frames of a priority, about `max_bytes`. See `SendQueues.pop`."""
        return self._queues.pop(priority, max_bytes, now)

    # ---------------------------------------------------------------- receive

    def receive_data(self, lane: int, data: bytes, now: float) -> Iterator[MuxEvent]:
        """Process bytes of a lane and yield the events. Iterate to the end before the next call.

        Raises Malformed, TooLarge or Overloaded when the peer violates the protocol.
        """
        data = self._incomplete[lane] + data if self._incomplete[lane] else data
        self._incomplete[lane] = b""
        position, end = 0, len(data)
        while end - position >= HEAD.size:
            length_and_type, number = HEAD.unpack_from(data, position)
            length, kind = length_and_type >> 8, length_and_type & 0xFF
            if length > MAX_PAYLOAD_BYTES:
                raise TooLarge(f"a tunnel frame of {length} bytes exceeds the maximum of {MAX_PAYLOAD_BYTES}")
            if kind not in TYPES:
                raise Malformed(f"unknown tunnel frame type {kind}")
            stop = position + HEAD.size + length
            if stop > end:
                break
            payload = data[position + HEAD.size : stop]
            position = stop
            if kind == DATA or kind == BULK:
                if kind == BULK:
                    self._acknowledge_bulk(length)
                self._link_receive.receive(length + HEAD.size)
                session = self.sessions.get(number)
                if session is not None:
                    session.receive.receive(length + HEAD.size)
                    yield DataReceived(number, payload)
                else:
                    # The frame was in flight when the session ended.
                    self._link_consumed(length)
                continue
            if self._queued_bytes[Priority.CONTROL] > MAX_QUEUED_CONTROL_BYTES:
                raise Overloaded("the peer sends requests faster than it reads the answers")
            yield from self._receive(Type(kind), number, payload, now)
        self._incomplete[lane] = data[position:]

    def _receive(self, kind: Type, number: int, payload: bytes, now: float) -> Iterator[MuxEvent]:
        match kind:
            case Type.OPEN:
                yield from self._peer_opens(number, payload)
            case Type.WINDOW:
                yield from self._peer_grants(number, payload)
            case Type.CLOSE:
                session = self.sessions.get(number)
                if session is not None:
                    session.peer_closed = True
                    self._remove_session(number)
                    yield SessionClosed(number, Ended(f"the peer closed the session on {session.channel}"))
            case Type.RESET:
                if number in self.sessions:
                    self._remove_session(number)
                    yield SessionClosed(number, error_from_wire(decode_map(payload)))
            case Type.MULTICAST | Type.BROADCAST:
                length = payload[0] if payload else 0
                if not length or len(payload) < 1 + length:
                    raise Malformed("a multicast message without a channel")
                yield MessageReceived(read_channel(payload[1 : 1 + length]), payload[1 + length :])
            case Type.LISTEN:
                if len(self.peer_channels) >= MAX_CHANNELS:
                    raise Malformed(f"the peer listens on more than {MAX_CHANNELS} channels")
                self.peer_channels.add(read_channel(payload))
            case Type.UNLISTEN:
                self.peer_channels.discard(read_channel(payload))
            case Type.PING | Type.PONG:
                if len(payload) != PING.size:
                    raise Malformed(f"a ping of {len(payload)} bytes instead of {PING.size}")
                token, microseconds = PING.unpack(payload)
                yield (PingReceived if kind is Type.PING else PongReceived)(token, microseconds)
            case Type.BULK_ACK:
                if len(payload) != _COUNT.size:
                    raise Malformed("a BULK_ACK without a count")
                self.bulk.acknowledged(_COUNT.unpack(payload)[0], now)

    def _acknowledge_bulk(self, count: int) -> None:
        self._bulk_received += count
        if self._bulk_received >= BULK_ACK_STEP_BYTES:
            self._send(Priority.CONTROL, Type.BULK_ACK, 0, _COUNT.pack(self._bulk_received))
            self._bulk_received = 0

    def _peer_opens(self, number: int, payload: bytes) -> Iterator[MuxEvent]:
        if number & 1 != self._peer_parity or number == 0:
            raise Malformed(f"the peer may not open session {number}: wrong parity")
        if number in self.sessions or not payload or payload[0] >= len(PRIORITIES):
            raise Malformed("OPEN for a session that is open already, or without a valid priority")
        channel, priority = read_channel(payload[1:]), PRIORITIES[payload[0]]
        if len(self.sessions) >= limits.MAX_SESSIONS_PER_LINK:
            refusal = Overloaded("too many sessions on the link")
            self._send(Priority.CONTROL, Type.RESET, number, encode_map(refusal.to_wire()))
            return
        self._add_session(number, channel, priority)
        yield SessionOpened(number, channel, priority)

    def _peer_grants(self, number: int, payload: bytes) -> Iterator[MuxEvent]:
        if len(payload) != _COUNT.size:
            raise Malformed("a WINDOW without a count")
        (count,) = _COUNT.unpack(payload)
        if number == 0:
            self._link_send.grant(count)
            waiting, self._waiting_for_link = self._waiting_for_link, {}
            # The highest priority first; within a priority, the session that has waited longest.
            for session in sorted(waiting.values(), key=lambda session: session.priority):
                yield from self._continue_sending(session)
            return
        granted = self.sessions.get(number)
        if granted is not None:
            granted.send.grant(count)
            yield from self._continue_sending(granted)

    # --------------------------------------------------------------- internals

    def _continue_sending(self, session: MuxSession) -> Iterator[MuxEvent]:
        """Send what new credit allows."""
        self._pump(session)
        if session.is_paused and session.unsent_bytes < LOW_WATER_BYTES:
            session.is_paused = False
            yield SendQueueDrained(session.number)
        if session.is_closing:
            self._finish_close(session)

    def _link_consumed(self, count: int) -> None:
        granted = self._link_receive.consume(count + HEAD.size)
        if granted:
            self._send(Priority.CONTROL, Type.WINDOW, 0, _COUNT.pack(granted))

    def _add_session(self, number: int, channel: str, priority: Priority) -> MuxSession:
        credit = SendCredit(self._window, self._window), ReceiveCredit(self._window, self._window // 4)
        session = MuxSession(number, channel, priority, *credit)
        self.sessions[number] = session
        return session

    def _pump(self, session: MuxSession) -> None:
        """Turn unsent data of a session into frames, as far as credit allows."""
        max_frame = limits.MAX_MUX_FRAME_BYTES
        kind = BULK if session.priority is Priority.BULK else DATA
        link, own = self._link_send, session.send
        reserve = LINK_RESERVE_BYTES[session.priority]
        while session.unsent:
            if link.available - reserve <= HEAD.size:
                self._waiting_for_link[session.number] = session
                return
            data = session.unsent[0]
            count = min(len(data), max_frame, own.available - HEAD.size, link.available - reserve - HEAD.size)
            if count <= 0:
                return
            own.use(count + HEAD.size)
            link.use(count + HEAD.size)
            if count == len(data):
                session.unsent.popleft()
                payload = data
            else:
                payload, session.unsent[0] = data[:count], data[count:]
            session.unsent_bytes -= count
            self._send(session.priority, kind, session.number, payload)

    def _finish_close(self, session: MuxSession) -> None:
        if not session.unsent and session.number in self.sessions:
            self._send(session.priority, Type.CLOSE, session.number, b"")
            self._remove_session(session.number)

    def _remove_session(self, number: int) -> None:
        session = self.sessions.pop(number, None)
        if session is not None:
            session.unsent.clear()
            session.unsent_bytes = 0
            self._waiting_for_link.pop(number, None)
