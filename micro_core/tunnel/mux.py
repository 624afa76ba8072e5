"""Sessions on channels over the lanes of one link.

OPEN names the channel and is not answered: data follows at once, and a RESET comes back where nobody listens. Sessions are
numbered by their opener: odd by the side that dialled the link. Each direction of a session has its own credit, and so
has each direction of the whole link (WINDOW of session 0), of which the lower priorities leave a part to the higher: no
number of sessions that nobody reads holds up adverts. A frame costs its head too, so that empty ones are bounded. A link
with four lanes gives each priority its own; with one, pieces are small and the higher priority goes first.

Pure: bytes and calls in, events out; `take` hands out what is to be written. A violation raises Malformed, and the link
must be closed.
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
    PRIORITIES,
    TYPE_AT,
    TYPES,
    Message,
    MuxEvent,
    Opened,
    Over,
    Pinged,
    Ponged,
    Received,
    Resumed,
    Type,
    read_channel,
)
from micro_core.wire import limits
from micro_core.wire.header import decode_map, encode_map

HIGH_WATER_BYTES = 512 * 1024
"""Unsent bytes of a session above which its owner is asked to pause."""

LOW_WATER_BYTES = 128 * 1024

MAX_QUEUED_MULTICAST_BYTES = 4 * 1024 * 1024
"""Multicast waiting for one link; a link slower than that loses messages, and they are counted."""

MAX_QUEUED_CONTROL_BYTES = 4 * 1024 * 1024
"""Answers waiting for one link: pongs, grants, refusals."""

LINK_RESERVE_BYTES = {
    Priority.CONTROL: 0,
    Priority.CALLS: limits.LINK_WINDOW_BYTES // 16,
    Priority.EVENTS: limits.LINK_WINDOW_BYTES // 8,
    Priority.BULK: limits.LINK_WINDOW_BYTES // 4,
}
"""What a priority leaves of the link's credit to those above it."""

BULK_ACK_STEP_BYTES = 8 * 1024
"""Bulk is acknowledged in small steps: each is a measurement for the far end's window."""

_COUNT = struct.Struct(">I")


@dataclass(slots=True)
class MuxSession:
    """Both directions of one session."""

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
    """The state of one link's sessions."""

    def __init__(self, *, dialed: bool, lane_count: int, window: int = limits.SESSION_WINDOW_BYTES) -> None:
        self.sessions: dict[int, MuxSession] = {}
        self.peer_channels: set[str] = set()
        self.bulk = BulkWindow()
        self.dropped_multicasts = 0
        self._lane_count = lane_count
        self._window = window
        self._next = 1 if dialed else 2
        self._link_send = SendCredit(limits.LINK_WINDOW_BYTES, limits.LINK_WINDOW_BYTES)
        self._link_receive = ReceiveCredit(limits.LINK_WINDOW_BYTES, limits.LINK_WINDOW_BYTES // 16)
        self._held_by_link: dict[int, MuxSession] = {}
        """Sessions that wait for the link's credit, not for their own."""
        self._peer_parity = 0 if dialed else 1
        self._queues: tuple[deque[bytes], ...] = tuple(deque() for _ in PRIORITIES)
        self._queued_bytes = [0] * len(PRIORITIES)
        self._rests = [b""] * max(1, lane_count)
        self._bulk_received = 0

    # --------------------------------------------------------------- sessions

    def open(self, channel: str, priority: Priority) -> MuxSession:
        """Begin a session. Raises Overloaded at the bound of sessions a link."""
        if len(self.sessions) >= limits.MAX_SESSIONS_PER_LINK:
            raise Overloaded(f"{len(self.sessions)} sessions are open on one link")
        number, self._next = self._next, self._next + 2
        session = self._new(number, channel, priority)
        self._queue(priority, Type.OPEN, number, bytes([int(priority)]) + channel.encode())
        return session

    def write(self, session: MuxSession, data: bytes) -> bool:
        """Queue data of a session; False when its owner should pause."""
        if session.is_closing or not data:
            return True
        # A view: cutting pieces off a large write must not copy the rest each time.
        session.unsent.append(data if len(data) <= limits.MAX_MUX_FRAME_BYTES else memoryview(data))
        session.unsent_bytes += len(data)
        self._pump(session)
        if session.unsent_bytes > HIGH_WATER_BYTES:
            session.is_paused = True
            return False
        return True

    def consumed(self, session: MuxSession, count: int) -> None:
        """The owner has taken the `count` bytes of one `Received`, or let them go."""
        granted = session.receive.consume(count + HEAD.size)
        if granted and session.number in self.sessions and not session.peer_closed:
            self._queue(Priority.CONTROL, Type.WINDOW, session.number, _COUNT.pack(granted))
        self._link_consumed(count)

    def close(self, session: MuxSession) -> None:
        """End a session after what is queued."""
        session.is_closing = True
        self._finish_close(session)

    def reset(self, number: int, error: MicroError) -> None:
        """End a session at once, saying why."""
        session = self.sessions.get(number)
        self._forget(number)
        lane = session.priority if session is not None else Priority.CONTROL
        self._queue(lane, Type.RESET, number, encode_map(error.to_wire()))

    def refuse(self, number: int, error: MicroError) -> None:
        """End a session that the peer has just opened. Unlike a reset it overtakes nothing: nothing was sent."""
        self._forget(number)
        self._queue(Priority.CONTROL, Type.RESET, number, encode_map(error.to_wire()))

    # ------------------------------------------------------------- whole link

    def multicast(self, channel: str, payload: bytes, priority: Priority, *, broadcast: bool) -> bool:
        """Queue a message for the peer; False where it does not listen, or is too slow."""
        if not broadcast and channel not in self.peer_channels:
            return False
        if self._queued_bytes[priority] > MAX_QUEUED_MULTICAST_BYTES:
            self.dropped_multicasts += 1
            return False
        name = channel.encode()
        kind = Type.BROADCAST if broadcast else Type.MULTICAST
        self._queue(priority, kind, 0, bytes([len(name)]) + name + payload)
        return True

    def listen(self, channel: str) -> None:
        self._queue(Priority.CONTROL, Type.LISTEN, 0, channel.encode())

    def unlisten(self, channel: str) -> None:
        self._queue(Priority.CONTROL, Type.UNLISTEN, 0, channel.encode())

    def ping(self, token: int) -> None:
        self._queue(Priority.CONTROL, Type.PING, 0, struct.pack(">Q", token))

    def pong(self, token: int) -> None:
        self._queue(Priority.CONTROL, Type.PONG, 0, struct.pack(">Q", token))

    @property
    def has_queued(self) -> bool:
        """Whether anything is ready to be written."""
        return any(self._queued_bytes)

    def queued(self, priority: Priority) -> int:
        """Bytes ready to be written for a priority."""
        return self._queued_bytes[priority]

    def take(self, priority: Priority, most: int, now: float) -> bytes:
        """Hand out whole frames of a priority, about `most` bytes (at least one frame when there is room at all)."""
        queue = self._queues[priority]
        if not queue or most <= 0:
            return b""
        if priority is Priority.BULK:
            most = min(most, self.bulk.room())
            if most <= 0:
                return b""
        if self._queued_bytes[priority] <= most:
            taken = list(queue)
            queue.clear()
        else:
            taken = [queue.popleft()]
            size = len(taken[0])
            while queue and size + len(queue[0]) <= most:
                size += len(queue[0])
                taken.append(queue.popleft())
        data = taken[0] if len(taken) == 1 else b"".join(taken)
        self._queued_bytes[priority] -= len(data)
        if priority is Priority.BULK:
            # Frame by frame, as the far end acknowledges: a mark that covers more would be timed by an older one.
            for frame in taken:
                if frame[TYPE_AT] == BULK:
                    self.bulk.sent(len(frame) - HEAD.size, now)
        return data

    # ---------------------------------------------------------------- receive

    def receive_data(self, lane: int, data: bytes, now: float) -> Iterator[MuxEvent]:
        """Bytes of a lane. Iterate to the end before the next call; raises Malformed, TooLarge, Overloaded."""
        data = self._rests[lane] + data if self._rests[lane] else data
        self._rests[lane] = b""
        position, end = 0, len(data)
        while end - position >= HEAD.size:
            length_and_type, number = HEAD.unpack_from(data, position)
            length, kind = length_and_type >> 8, length_and_type & 0xFF
            if length > MAX_PAYLOAD_BYTES:
                raise TooLarge(f"a tunnel frame of {length} bytes")
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
                    yield Received(number, payload)
                else:
                    # On its way when the session ended.
                    self._link_consumed(length)
                continue
            if self._queued_bytes[Priority.CONTROL] > MAX_QUEUED_CONTROL_BYTES:
                raise Overloaded("the peer asks faster than it reads what it asked for")
            yield from self._receive(Type(kind), number, payload, now)
        self._rests[lane] = data[position:]

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
                    self._forget(number)
                    yield Over(number, Ended(f"the peer closed the session on {session.channel}"))
            case Type.RESET:
                if number in self.sessions:
                    self._forget(number)
                    yield Over(number, error_from_wire(decode_map(payload)))
            case Type.MULTICAST | Type.BROADCAST:
                length = payload[0] if payload else 0
                if not length or len(payload) < 1 + length:
                    raise Malformed("a multicast without a channel")
                yield Message(read_channel(payload[1 : 1 + length]), payload[1 + length :])
            case Type.LISTEN:
                if len(self.peer_channels) >= MAX_CHANNELS:
                    raise Malformed(f"the peer listens on more than {MAX_CHANNELS} channels")
                self.peer_channels.add(read_channel(payload))
            case Type.UNLISTEN:
                self.peer_channels.discard(read_channel(payload))
            case Type.PING | Type.PONG:
                if len(payload) != 8:
                    raise Malformed("a ping without a token")
                (token,) = struct.unpack(">Q", payload)
                yield Pinged(token) if kind is Type.PING else Ponged(token)
            case Type.BULK_ACK:
                if len(payload) != _COUNT.size:
                    raise Malformed("a BULK_ACK without a count")
                self.bulk.granted(_COUNT.unpack(payload)[0], now)

    def _acknowledge_bulk(self, count: int) -> None:
        self._bulk_received += count
        if self._bulk_received >= BULK_ACK_STEP_BYTES:
            self._queue(Priority.CONTROL, Type.BULK_ACK, 0, _COUNT.pack(self._bulk_received))
            self._bulk_received = 0

    def _peer_opens(self, number: int, payload: bytes) -> Iterator[MuxEvent]:
        if number & 1 != self._peer_parity or number == 0:
            raise Malformed(f"session {number} is not the peer's to open")
        if number in self.sessions or not payload or payload[0] >= len(PRIORITIES):
            raise Malformed("OPEN of a session that stands, or without a priority")
        channel, priority = read_channel(payload[1:]), PRIORITIES[payload[0]]
        if len(self.sessions) >= limits.MAX_SESSIONS_PER_LINK:
            refusal = Overloaded("too many sessions on the link")
            self._queue(Priority.CONTROL, Type.RESET, number, encode_map(refusal.to_wire()))
            return
        self._new(number, channel, priority)
        yield Opened(number, channel, priority)

    def _peer_grants(self, number: int, payload: bytes) -> Iterator[MuxEvent]:
        if len(payload) != _COUNT.size:
            raise Malformed("a WINDOW without a count")
        (count,) = _COUNT.unpack(payload)
        if number == 0:
            self._link_send.grant(count)
            waiting, self._held_by_link = self._held_by_link, {}
            # The highest priority first; within one, who has waited longest.
            for session in sorted(waiting.values(), key=lambda session: session.priority):
                yield from self._go_on(session)
            return
        granted = self.sessions.get(number)
        if granted is not None:
            granted.send.grant(count)
            yield from self._go_on(granted)

    # ----------------------------------------------------------------- inside

    def _go_on(self, session: MuxSession) -> Iterator[MuxEvent]:
        """Send what new credit allows."""
        self._pump(session)
        if session.is_paused and session.unsent_bytes < LOW_WATER_BYTES:
            session.is_paused = False
            yield Resumed(session.number)
        if session.is_closing:
            self._finish_close(session)

    def _link_consumed(self, count: int) -> None:
        granted = self._link_receive.consume(count + HEAD.size)
        if granted:
            self._queue(Priority.CONTROL, Type.WINDOW, 0, _COUNT.pack(granted))

    def _new(self, number: int, channel: str, priority: Priority) -> MuxSession:
        credit = SendCredit(self._window, self._window), ReceiveCredit(self._window, self._window // 4)
        session = MuxSession(number, channel, priority, *credit)
        self.sessions[number] = session
        return session

    def _pump(self, session: MuxSession) -> None:
        """Turn what a session wants to send into frames, as far as its credit goes."""
        piece = limits.MAX_MUX_FRAME_BYTES
        kind = BULK if session.priority is Priority.BULK else DATA
        link, own = self._link_send, session.send
        reserve = LINK_RESERVE_BYTES[session.priority]
        while session.unsent:
            if link.available - reserve <= HEAD.size:
                self._held_by_link[session.number] = session
                return
            data = session.unsent[0]
            count = min(len(data), piece, own.available - HEAD.size, link.available - reserve - HEAD.size)
            if count <= 0:
                return
            own.take(count + HEAD.size)
            link.take(count + HEAD.size)
            if count == len(data):
                session.unsent.popleft()
                payload = data
            else:
                payload, session.unsent[0] = data[:count], data[count:]
            session.unsent_bytes -= count
            self._queue(session.priority, kind, session.number, payload)

    def _finish_close(self, session: MuxSession) -> None:
        if not session.unsent and session.number in self.sessions:
            self._queue(session.priority, Type.CLOSE, session.number, b"")
            self._forget(session.number)

    def _forget(self, number: int) -> None:
        session = self.sessions.pop(number, None)
        if session is not None:
            session.unsent.clear()
            session.unsent_bytes = 0
            self._held_by_link.pop(number, None)

    def _queue(self, priority: Priority, kind: int, number: int, payload: bytes | memoryview) -> None:
        frame = HEAD.pack(len(payload) << 8 | kind, number) + payload
        self._queues[priority].append(frame)
        self._queued_bytes[priority] += len(frame)
