"""Sessions on channels over the lanes of one link.

    length u24 | type u8 | session u32 | payload        per lane, big-endian

OPEN names the channel and is not answered: data follows at once, and a RESET comes back where nobody listens. Sessions are
numbered by their opener: odd by the side that dialled the link. Each direction of a session has its own credit. A link
with four lanes gives each priority its own; with one, pieces are small and the higher priority goes first.

Pure: bytes and calls in, events out; `take` hands out what is to be written. A violation raises Malformed, and the link
must be closed.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from micro_core.spec.errors import (
    Closed,
    Ended,
    Malformed,
    MicroError,
    Overloaded,
    TooLarge,
    Unreachable,
    error_from_wire,
)
from micro_core.spec.tunnel import Priority
from micro_core.tunnel.credit import BulkWindow, ReceiveCredit, SendCredit
from micro_core.wire import limits
from micro_core.wire.header import decode_map, encode_map

HEAD = struct.Struct(">II")
"""Length and type share the first u32: length in the upper 24 bits."""

MAX_PAYLOAD_BYTES = limits.MAX_MULTICAST_BYTES + 512
MAX_CHANNEL_BYTES = 200
MAX_CHANNELS = 1_024
"""Channels a peer may listen on."""

HIGH_WATER_BYTES = 512 * 1024
"""Unsent bytes of a session above which its owner is asked to pause."""

LOW_WATER_BYTES = 128 * 1024

MAX_QUEUED_MULTICAST_BYTES = 4 * 1024 * 1024
"""Multicast waiting for one link; a link slower than that loses messages, and they are counted."""

MAX_QUEUED_CONTROL_BYTES = 4 * 1024 * 1024
"""Answers waiting for one link: pongs, grants, refusals."""

BULK_ACK_STEP_BYTES = 8 * 1024
"""Bulk is acknowledged in small steps: each is a measurement for the far end's window."""

PRIORITIES = tuple(Priority)


class Type(enum.IntEnum):
    """Kinds of mux frames; session 0 but for the first five and BULK."""

    OPEN = 1
    DATA = 2
    WINDOW = 3
    CLOSE = 4
    RESET = 5
    MULTICAST = 6
    BROADCAST = 7
    LISTEN = 8
    UNLISTEN = 9
    PING = 10
    PONG = 11
    BULK = 12
    """DATA of a bulk session: acknowledged for the whole link, whatever became of the session."""
    BULK_ACK = 13
    """u32: so many bytes of BULK have arrived."""


_TYPES = frozenset(int(kind) for kind in Type)
_DATA, _BULK = int(Type.DATA), int(Type.BULK)
_TYPE_AT = 3
"""Where a frame has its type."""


class Opened(NamedTuple):
    """The peer opened a session: accept it by `accept`, or `reset` it."""

    session: int
    channel: str
    priority: Priority


class Received(NamedTuple):
    """Data of a session; tell `consumed` when it has been taken."""

    session: int
    data: bytes


class Over(NamedTuple):
    """A session ended at the far end."""

    session: int
    error: MicroError


class Resumed(NamedTuple):
    """A session whose owner was asked to pause may write again."""

    session: int


class Message(NamedTuple):
    """A multicast or broadcast message."""

    channel: str
    payload: bytes


class Pinged(NamedTuple):
    token: int


class Ponged(NamedTuple):
    token: int


MuxEvent = Opened | Received | Over | Resumed | Message | Pinged | Ponged


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
        self._last_peer = 0
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
        if session.is_closing:
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
        """The owner has taken `count` bytes."""
        granted = session.receive.consume(count)
        if granted and session.number in self.sessions and not session.peer_closed:
            self._queue(Priority.CONTROL, Type.WINDOW, session.number, struct.pack(">I", granted))

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
                if frame[_TYPE_AT] == _BULK:
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
            if kind not in _TYPES:
                raise Malformed(f"unknown tunnel frame type {kind}")
            stop = position + HEAD.size + length
            if stop > end:
                break
            payload = data[position + HEAD.size : stop]
            position = stop
            if kind == _DATA or kind == _BULK:
                if kind == _BULK:
                    self._acknowledge_bulk(length)
                session = self.sessions.get(number)
                if session is not None:
                    session.receive.receive(length)
                    yield Received(number, payload)
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
                yield Message(_channel(payload[1 : 1 + length]), payload[1 + length :])
            case Type.LISTEN:
                if len(self.peer_channels) >= MAX_CHANNELS:
                    raise Malformed(f"the peer listens on more than {MAX_CHANNELS} channels")
                self.peer_channels.add(_channel(payload))
            case Type.UNLISTEN:
                self.peer_channels.discard(_channel(payload))
            case Type.PING | Type.PONG:
                if len(payload) != 8:
                    raise Malformed("a ping without a token")
                (token,) = struct.unpack(">Q", payload)
                yield Pinged(token) if kind is Type.PING else Ponged(token)
            case Type.BULK_ACK:
                if len(payload) != 4:
                    raise Malformed("a BULK_ACK without a count")
                self.bulk.granted(struct.unpack(">I", payload)[0], now)

    def _acknowledge_bulk(self, count: int) -> None:
        self._bulk_received += count
        if self._bulk_received >= BULK_ACK_STEP_BYTES:
            self._queue(Priority.CONTROL, Type.BULK_ACK, 0, struct.pack(">I", self._bulk_received))
            self._bulk_received = 0

    def _peer_opens(self, number: int, payload: bytes) -> Iterator[MuxEvent]:
        if number & 1 != self._peer_parity or number == 0:
            raise Malformed(f"session {number} is not the peer's to open")
        if number in self.sessions or not payload or payload[0] >= len(PRIORITIES):
            raise Malformed("OPEN of a session that stands, or without a priority")
        channel, priority = _channel(payload[1:]), PRIORITIES[payload[0]]
        if len(self.sessions) >= limits.MAX_SESSIONS_PER_LINK:
            refusal = Overloaded("too many sessions on the link")
            self._queue(Priority.CONTROL, Type.RESET, number, encode_map(refusal.to_wire()))
            return
        self._new(number, channel, priority)
        yield Opened(number, channel, priority)

    def _peer_grants(self, number: int, payload: bytes) -> Iterator[MuxEvent]:
        if len(payload) != 4:
            raise Malformed("a WINDOW without a count")
        session = self.sessions.get(number)
        if session is None:
            return
        (count,) = struct.unpack(">I", payload)
        session.send.grant(count)
        self._pump(session)
        if session.is_paused and session.unsent_bytes < LOW_WATER_BYTES:
            session.is_paused = False
            yield Resumed(number)
        if session.is_closing:
            self._finish_close(session)

    # ----------------------------------------------------------------- inside

    def _new(self, number: int, channel: str, priority: Priority) -> MuxSession:
        credit = SendCredit(self._window, self._window), ReceiveCredit(self._window, self._window // 4)
        session = MuxSession(number, channel, priority, *credit)
        self.sessions[number] = session
        return session

    def _pump(self, session: MuxSession) -> None:
        """Turn what a session wants to send into frames, as far as its credit goes."""
        piece = limits.MAX_MUX_FRAME_BYTES
        kind = _BULK if session.priority is Priority.BULK else _DATA
        while session.unsent and session.send.available:
            data = session.unsent[0]
            count = session.send.take(min(len(data), piece))
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

    def _queue(self, priority: Priority, kind: int, number: int, payload: bytes | memoryview) -> None:
        frame = HEAD.pack(len(payload) << 8 | kind, number) + payload
        self._queues[priority].append(frame)
        self._queued_bytes[priority] += len(frame)


def _channel(raw: bytes) -> str:
    if not raw or len(raw) > MAX_CHANNEL_BYTES:
        raise Malformed("a channel without a name, or with one too long")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a channel's name is not UTF-8") from error


def closed_here(channel: str) -> Closed:
    """The end of a session that this side closed."""
    return Closed(f"the session on {channel} was closed here")


def nobody_listens(channel: str) -> Unreachable:
    """The refusal of a session on a channel without a listener."""
    return Unreachable(f"nobody listens on channel {channel}")
