"""Two connected muxes over one lane or four: order, credit, priorities, and peers that violate the protocol."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micro_core.contract.errors import Closed, Ended, Malformed, MicroError, Overloaded, TooLarge, Unreachable
from micro_core.contract.tunnel import Priority
from micro_core.tunnel.credit import (
    INITIAL_BULK_WINDOW_BYTES,
    MAX_BULK_WINDOW_BYTES,
    MIN_BULK_WINDOW_BYTES,
    BulkWindow,
    ReceiveCredit,
    SendCredit,
)
from micro_core.tunnel.mux import (
    BULK_ACK_STEP_BYTES,
    HIGH_WATER_BYTES,
    MAX_QUEUED_CONTROL_BYTES,
    MAX_QUEUED_MULTICAST_BYTES,
    Mux,
    MuxSession,
)
from micro_core.tunnel.mux_frames import (
    HEAD,
    MAX_CHANNELS,
    MAX_PAYLOAD_BYTES,
    DataReceived,
    MessageReceived,
    MuxEvent,
    PingReceived,
    PongReceived,
    SendQueueDrained,
    SessionClosed,
    SessionOpened,
    Type,
    no_listener,
)
from micro_core.wire import limits

WINDOW = 4_096
ALL = 1 << 30


class End:
    """One mux and its events."""

    def __init__(self, *, dialed: bool, lanes: int, window: int = limits.SESSION_WINDOW_BYTES) -> None:
        self.mux = Mux(dialed=dialed, lane_count=lanes, window=window)
        self.sessions: dict[int, MuxSession] = {}
        self.data: dict[int, bytearray] = {}
        self.unread: dict[int, list[int]] = {}
        """Sizes of the received chunks that were not read yet, by session."""
        self.closed: dict[int, MicroError] = {}
        self.events: list[MuxEvent] = []
        self.reads = True

    def open(self, channel: str = "calls", priority: Priority = Priority.CALLS) -> MuxSession:
        session = self.mux.open(channel, priority)
        self._add(session)
        return session

    def handle(self, event: MuxEvent) -> None:
        self.events.append(event)
        match event:
            case SessionOpened(number, _, _):
                self._add(self.mux.sessions[number])
            case DataReceived(number, data):
                self.data[number] += data
                self.unread[number].append(len(data))
                if self.reads:
                    self.read(number)
            case SessionClosed(number, error):
                assert number not in self.closed, "closed twice"
                self.closed[number] = error

    def read(self, number: int, count: int = ALL) -> None:
        unread = self.unread[number]
        for _ in range(min(count, len(unread))):
            self.mux.consumed(self.sessions[number], unread.pop(0))

    def _add(self, session: MuxSession) -> None:
        self.sessions[session.number] = session
        self.data[session.number], self.unread[session.number] = bytearray(), []


class Wire:
    """Both ends, and the transfer of bytes between them."""

    def __init__(self, lanes: int, window: int = limits.SESSION_WINDOW_BYTES) -> None:
        self.lanes = lanes
        self.one = End(dialed=True, lanes=lanes, window=window)
        self.other = End(dialed=False, lanes=lanes, window=window)
        self.now = 0.0

    def flush(self, sender: End, max_bytes: int = ALL) -> list[tuple[int, bytes]]:
        chunks = [(0 if self.lanes == 1 else int(p), sender.mux.data_to_send(p, max_bytes, self.now)) for p in Priority]
        return [(lane, data) for lane, data in chunks if data]

    def deliver(self, receiver: End, chunks: list[tuple[int, bytes]]) -> None:
        for lane, data in chunks:
            for event in receiver.mux.receive_data(lane, data, self.now):
                receiver.handle(event)

    def settle(self, turns: int = 10_000) -> None:
        """Transfer bytes in both directions until no end has any to send."""
        for _ in range(turns):
            to_other, to_one = self.flush(self.one), self.flush(self.other)
            if not to_other and not to_one:
                return
            self.deliver(self.other, to_other)
            self.deliver(self.one, to_one)
        raise AssertionError("the exchange does not end")


lane_counts = pytest.mark.parametrize("lanes", [1, 4])


def frame(kind: int, session: int = 0, payload: bytes = b"") -> bytes:
    return HEAD.pack(len(payload) << 8 | kind, session) + payload


def frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while data:
        head, session = HEAD.unpack_from(data)
        yield head & 0xFF, session, data[HEAD.size : HEAD.size + (head >> 8)]
        data = data[HEAD.size + (head >> 8) :]


# ------------------------------------------------------------------------------- sessions


@lane_counts
def test_data_arrives_complete_and_in_order_in_both_directions(lanes: int) -> None:
    wire = Wire(lanes)
    session = wire.one.open("greeter")
    wire.one.mux.write(session, b"hello ")
    wire.one.mux.write(session, b"world")
    wire.settle()
    assert wire.other.events[0] == SessionOpened(1, "greeter", Priority.CALLS)
    assert wire.other.data[1] == b"hello world"
    wire.other.mux.write(wire.other.sessions[1], b"yes?")
    wire.settle()
    assert wire.one.data[1] == b"yes?"


@lane_counts
def test_session_numbers_of_both_ends_do_not_collide(lanes: int) -> None:
    wire = Wire(lanes)
    for _ in range(5):
        wire.one.open()
        wire.other.open()
    wire.settle()
    assert sorted(wire.one.sessions) == sorted(wire.other.sessions) == list(range(1, 11))


@lane_counts
def test_close_ends_a_session_after_its_queued_data(lanes: int) -> None:
    wire = Wire(lanes, WINDOW)
    session = wire.one.open()
    data = random.Random(1).randbytes(10 * WINDOW)
    wire.one.mux.write(session, data)
    wire.one.mux.close(session)
    wire.settle()
    assert wire.other.data[1] == data
    assert isinstance(wire.other.closed[1], Ended)
    assert wire.one.mux.sessions == wire.other.mux.sessions == {}
    assert wire.one.mux.write(session, b"late"), "data written after close is discarded"
    wire.settle()


@lane_counts
def test_reset_ends_a_session_at_once_with_a_reason(lanes: int) -> None:
    wire = Wire(lanes, WINDOW)
    session = wire.one.open()
    wire.one.mux.write(session, bytes(100_000))
    wire.settle()
    wire.other.mux.reset(1, no_listener("calls"))
    wire.settle()
    error = wire.one.closed[1]
    assert isinstance(error, Unreachable)
    assert "calls" in str(error)
    assert session.unsent_bytes == 0
    assert wire.one.mux.sessions == wire.other.mux.sessions == {}


@lane_counts
def test_both_ends_may_end_a_session_at_the_same_time(lanes: int) -> None:
    wire = Wire(lanes)
    session = wire.one.open()
    wire.settle()
    wire.one.mux.close(session)
    wire.other.mux.reset(1, Closed("enough"))
    wire.settle()
    assert wire.one.mux.sessions == wire.other.mux.sessions == {}


@lane_counts
def test_receiver_that_does_not_read_gets_at_most_one_window(lanes: int) -> None:
    wire = Wire(lanes, WINDOW)
    wire.other.reads = False
    session = wire.one.open()
    wire.one.mux.write(session, bytes(100 * WINDOW))
    wire.settle()
    assert sum(wire.other.unread[1]) == WINDOW - HEAD.size, "the frame header counts, too"
    assert session.unsent_bytes == 99 * WINDOW + HEAD.size
    wire.other.reads = True
    wire.other.read(1)
    wire.settle()
    assert len(wire.other.data[1]) == 100 * WINDOW


def test_writer_is_asked_to_pause_and_to_resume_once() -> None:
    wire = Wire(4)
    wire.other.reads = False
    session = wire.one.open()
    assert wire.one.mux.write(session, bytes(limits.SESSION_WINDOW_BYTES + HIGH_WATER_BYTES // 2))
    assert not wire.one.mux.write(session, bytes(HIGH_WATER_BYTES))
    wire.settle()
    assert SendQueueDrained(1) not in wire.one.events
    wire.other.reads = True
    wire.other.read(1)
    wire.settle()
    assert wire.one.events.count(SendQueueDrained(1)) == 1
    assert not session.is_paused


def test_unread_session_does_not_block_other_sessions() -> None:
    wire = Wire(1, WINDOW)
    wire.other.reads = False
    unread, active = wire.one.open(), wire.one.open()
    wire.one.mux.write(unread, bytes(10 * WINDOW))
    wire.one.mux.write(active, b"through")
    wire.settle()
    assert wire.other.data[active.number] == b"through"


@lane_counts
def test_unread_sessions_together_get_at_most_the_window_of_the_link(lanes: int) -> None:
    wire = Wire(lanes)
    wire.other.reads = False
    stuck = [wire.one.open() for _ in range(40)]
    for session in stuck:
        wire.one.mux.write(session, bytes(limits.SESSION_WINDOW_BYTES - 1_000))
    wire.settle()
    unread = sum(sum(sizes) for sizes in wire.other.unread.values())
    assert limits.LINK_WINDOW_BYTES * 0.9 < unread <= limits.LINK_WINDOW_BYTES
    wire.other.reads = True
    for session in stuck:
        wire.other.read(session.number)
    wire.settle()
    assert all(len(wire.other.data[session.number]) == limits.SESSION_WINDOW_BYTES - 1_000 for session in stuck)


def test_unread_sessions_leave_credit_of_the_link_to_higher_priorities() -> None:
    wire = Wire(4)
    wire.other.reads = False
    for priority in reversed(Priority):
        for _ in range(20 if priority is not Priority.CONTROL else 1):
            wire.one.mux.write(wire.one.open("c", priority), bytes(limits.SESSION_WINDOW_BYTES // 2))
        wire.settle()
        last = max(wire.one.sessions)
        if priority is Priority.CONTROL:
            assert sum(wire.other.unread[last]) == limits.SESSION_WINDOW_BYTES // 2


def test_data_of_ended_sessions_is_granted_to_the_link_again() -> None:
    mux = Mux(dialed=True, lane_count=1)
    piece = bytes(MAX_PAYLOAD_BYTES)
    granted = 0
    for _ in range(2 * limits.LINK_WINDOW_BYTES // len(piece)):
        receive(mux, frame(Type.DATA, 7, piece))
        for kind, number, payload in frames(mux.data_to_send(Priority.CONTROL, ALL, 0.0)):
            assert (kind, number) == (Type.WINDOW, 0)
            granted += struct.unpack(">I", payload)[0]
    assert granted > limits.LINK_WINDOW_BYTES


def test_data_beyond_the_window_of_the_link_is_a_violation() -> None:
    mux = Mux(dialed=True, lane_count=1, window=ALL)
    piece = bytes(1_000 - HEAD.size)
    receive(mux, frame(Type.OPEN, 2, b"\x01c"))
    for _ in range(limits.LINK_WINDOW_BYTES // 1_000):
        receive(mux, frame(Type.DATA, 2, piece))
    with pytest.raises(Malformed):
        receive(mux, frame(Type.DATA, 2, piece))


def test_number_of_sessions_is_bounded_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(4)
    monkeypatch.setattr(limits, "MAX_SESSIONS_PER_LINK", 3)
    for _ in range(3):
        wire.one.open()
    with pytest.raises(Overloaded):
        wire.one.mux.open("calls", Priority.CALLS)
    wire.settle()
    excess = frame(Type.OPEN, 99, b"\x01calls")
    wire.deliver(wire.other, [(1, excess)])
    (chunk,) = wire.flush(wire.other)
    ((kind, number, _),) = frames(chunk[1])
    assert (kind, number) == (Type.RESET, 99)
    assert len(wire.other.mux.sessions) == 3


def test_large_write_takes_time_in_proportion_to_its_size() -> None:
    def seconds(size: int) -> float:
        wire = Wire(4)
        session = wire.one.open()
        data = bytes(size)
        started = time.process_time()
        wire.one.mux.write(session, data)
        wire.settle()
        assert len(wire.other.data[1]) == size
        return time.process_time() - started

    small, large = (min(seconds(size) for _ in range(3)) for size in (2 << 20, 32 << 20))
    # If each frame copied the remainder, the factor would be sixteen times as large.
    assert large < 16 * small * 6 + 0.2


class Script:
    """Random operations on both ends, and the data that must arrive."""

    def __init__(self, lanes: int, source: random.Random) -> None:
        self.source = source
        self.wire = Wire(lanes, WINDOW)
        self.wire.one.reads = self.wire.other.reads = False
        self.written: dict[tuple[bool, int], bytearray] = {}
        self.ended: set[int] = set()
        self.multicast: list[bytes] = []
        self.queues: dict[tuple[bool, int], bytearray] = {}

    def step(self) -> None:
        wire, source = self.wire, self.source
        is_one = source.random() < 0.5
        end = wire.one if is_one else wire.other
        open_numbers = [number for number in end.mux.sessions if not end.sessions[number].is_closing]
        match source.randrange(10):
            case 0 | 1:
                end.open("c", source.choice([*Priority]))
            case 2 | 3 | 4 if open_numbers:
                number = source.choice(open_numbers)
                data = source.randbytes(source.choice([0, 1, 100, WINDOW, 3 * WINDOW]))
                self.written.setdefault((is_one, number), bytearray()).extend(data)
                end.mux.write(end.sessions[number], data)
            case 5 | 6:
                for number in end.unread:
                    end.read(number, source.choice([0, 1, 10]))
            case 7 if open_numbers:
                number = source.choice(open_numbers)
                self.ended.add(number)
                end.mux.close(end.sessions[number])
            case 8 if open_numbers and source.random() < 0.3:
                number = source.choice(open_numbers)
                self.ended.add(number)
                end.mux.reset(number, Closed("x"))
            case 9 if is_one:
                message = source.randbytes(8)
                self.multicast.append(message)
                end.mux.multicast("topic", message, Priority.EVENTS, broadcast=True)
        self.transfer(source.choice([1, 100, 20_000]))
        self.check()

    def transfer(self, max_bytes: int) -> None:
        """Transfer some of the bytes of each lane, split at random positions."""
        wire = self.wire
        for is_one, sender, receiver in ((True, wire.one, wire.other), (False, wire.other, wire.one)):
            for lane, data in wire.flush(sender, max_bytes):
                self.queues.setdefault((is_one, lane), bytearray()).extend(data)
            lanes = [lane for side, lane in self.queues if side is is_one]
            self.source.shuffle(lanes)
            for lane in lanes:
                queue = self.queues[is_one, lane]
                count = self.source.choice([0, 1, 7, max_bytes, len(queue)])
                chunk = bytes(queue[:count])
                del queue[:count]
                wire.deliver(receiver, [(lane, chunk)])

    def check(self) -> None:
        for end, is_one in ((self.wire.one, True), (self.wire.other, False)):
            for session in end.mux.sessions.values():
                assert 0 <= session.send.available <= session.send.window == WINDOW
                assert 0 <= session.receive.outstanding <= WINDOW
                assert sum(end.unread[session.number]) <= WINDOW
                assert session.unsent_bytes == sum(map(len, session.unsent))
            for number, data in end.data.items():
                written = self.written.get((not is_one, number), bytearray())
                assert written.startswith(data), "data out of order, or never written"

    def finish(self) -> None:
        wire = self.wire
        for _ in range(3_000):
            for end in (wire.one, wire.other):
                for number in end.unread:
                    end.read(number)
            self.transfer(ALL)
            is_empty = not any(end.mux.queued(p) for end in (wire.one, wire.other) for p in Priority)
            is_read = not any(count for end in (wire.one, wire.other) for count in end.unread.values())
            if is_empty and is_read and not any(self.queues.values()):
                break
        else:
            raise AssertionError("the exchange does not end")
        self.check()
        for (is_one, number), data in self.written.items():
            if number not in self.ended:
                receiver = wire.other if is_one else wire.one
                assert receiver.data[number] == data, "incomplete data"
        assert [event.payload for event in wire.other.events if isinstance(event, MessageReceived)] == self.multicast
        assert set(wire.one.mux.sessions) == set(wire.other.mux.sessions), "a session exists at one end only"


@lane_counts
@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_random_operations_preserve_data_and_credit(lanes: int, seed: int) -> None:
    source = random.Random(seed)
    script = Script(lanes, source)
    for _ in range(source.randrange(5, 80)):
        script.step()
    script.finish()


# ------------------------------------------------------------------------------ priorities


def test_frames_on_one_lane_are_sent_in_the_order_of_their_priority() -> None:
    wire = Wire(1)
    for priority in reversed(Priority):
        session = wire.one.open(priority.name, priority)
        wire.one.mux.write(session, b"x" * 10)
    wire.one.mux.ping(1)
    data = b"".join(chunk for _, chunk in wire.flush(wire.one))
    order = [(kind, payload[1:].decode()) for kind, _, payload in frames(data) if kind in (Type.OPEN, Type.PING)]
    assert [name for kind, name in order if kind == Type.OPEN] == ["CONTROL", "CALLS", "EVENTS", "BULK"]
    kinds = [kind for kind, _, _ in frames(data)]
    assert kinds.index(Type.PING) < kinds.index(Type.BULK)


def test_large_write_is_split_so_that_other_frames_are_sent_in_between() -> None:
    wire = Wire(1)
    bulk, call = wire.one.open("bulk", Priority.BULK), wire.one.open("call")
    wire.one.mux.write(bulk, bytes(1 << 20))
    wire.flush(wire.one, 20_000)
    wire.one.mux.write(call, b"urgent")
    first = wire.flush(wire.one, 20_000)[0][1]
    assert b"urgent" in first
    assert all(len(payload) <= limits.MAX_MUX_FRAME_BYTES for _, _, payload in frames(first))


def test_data_to_send_returns_whole_frames_up_to_the_maximum() -> None:
    mux = Mux(dialed=True, lane_count=1)
    session = mux.open("c", Priority.CALLS)
    for _ in range(10):
        mux.write(session, bytes(992))
    assert mux.data_to_send(Priority.CALLS, 0, 0.0) == b""
    assert len(mux.data_to_send(Priority.CALLS, 1, 0.0)) == HEAD.size + 2, "at least one frame"
    assert len(mux.data_to_send(Priority.CALLS, 3_500, 0.0)) == 3_000
    assert len(mux.data_to_send(Priority.CALLS, ALL, 0.0)) == 7_000
    assert mux.queued(Priority.CALLS) == 0


# ------------------------------------------------------------------------------------ bulk


def transfer(wire: Wire, session: MuxSession, delay_s: float, turns: int) -> list[float]:
    """Send bulk data for some turns, each acknowledged after `delay_s`. Return the window after each turn."""
    windows = []
    for _ in range(turns):
        wire.one.mux.write(session, bytes(64 * 1024))
        to_other = wire.flush(wire.one)
        wire.now += delay_s
        wire.deliver(wire.other, to_other)
        wire.deliver(wire.one, wire.flush(wire.other))
        windows.append(wire.one.mux.bulk.window)
    return windows


def test_bulk_window_shrinks_when_the_delay_grows_and_recovers() -> None:
    wire = Wire(4)
    session = wire.one.open("bulk", Priority.BULK)
    grown = transfer(wire, session, 0.010, 40)[-1]
    assert grown > 4 * INITIAL_BULK_WINDOW_BYTES
    shrunk = transfer(wire, session, 0.030, 60)[-1]
    assert shrunk < grown / 4
    recovered = transfer(wire, session, 0.010, 60)[-1]
    assert recovered > 2 * shrunk


def test_bulk_data_in_flight_exceeds_the_window_by_at_most_one_frame() -> None:
    wire = Wire(4)
    session = wire.one.open("bulk", Priority.BULK)
    wire.one.mux.write(session, bytes(1 << 20))
    for _ in range(100):
        wire.flush(wire.one)
    assert wire.one.mux.bulk.in_flight <= INITIAL_BULK_WINDOW_BYTES + limits.MAX_MUX_FRAME_BYTES


def test_longer_path_sets_the_base_delay_after_a_minute() -> None:
    bulk = BulkWindow()
    now = 0.0
    for delay_s in [0.010] * 50 + [0.050] * 5_000:
        bulk.sent(1_000, now)
        now += delay_s
        bulk.acknowledged(1_000, now)
    assert bulk.window > INITIAL_BULK_WINDOW_BYTES


def test_pause_between_transfers_does_not_count_as_delay() -> None:
    """The last bytes of the first transfer are acknowledged together with the second, long afterwards."""
    wire = Wire(4)
    session = wire.one.open("bulk", Priority.BULK)
    transfer(wire, session, 0.010, 40)
    wire.one.mux.write(session, bytes(BULK_ACK_STEP_BYTES // 2))
    wire.settle()
    before = wire.one.mux.bulk.window
    wire.now += 30.0
    after = min(transfer(wire, session, 0.010, 10))
    assert after >= before


@given(st.lists(st.tuples(st.integers(1, 50_000), st.floats(0, 2), st.integers(0, 60_000)), max_size=60))
def test_bulk_window_stays_within_its_bounds(steps: list[tuple[int, float, int]]) -> None:
    bulk = BulkWindow()
    now = 0.0
    for count, delay_s, granted in steps:
        bulk.sent(count, now)
        now += delay_s
        bulk.acknowledged(granted, now)
        assert MIN_BULK_WINDOW_BYTES <= bulk.window <= MAX_BULK_WINDOW_BYTES
        assert bulk.in_flight >= 0
        assert bulk.available_bytes() >= 0


@given(st.lists(st.integers(1, 500), max_size=50))
def test_credit_is_conserved(sizes: list[int]) -> None:
    sender, receiver = SendCredit(1_000, 1_000), ReceiveCredit(1_000, 250)
    for size in sizes:
        used = sender.use(size)
        receiver.receive(used)
        granted = receiver.consume(used)
        if granted:
            sender.grant(granted)
        assert sender.available + receiver.outstanding == 1_000


def test_credit_beyond_the_window_is_malformed_at_both_ends() -> None:
    with pytest.raises(Malformed):
        SendCredit(999, 1_000).grant(2)
    with pytest.raises(Malformed):
        SendCredit(0, 1_000).grant(0)
    with pytest.raises(Malformed):
        ReceiveCredit(1_000, 250).receive(1_001)


# ------------------------------------------------------------------------------- multicast


@lane_counts
def test_multicast_requires_a_listener_and_broadcast_does_not(lanes: int) -> None:
    wire = Wire(lanes)
    assert not wire.one.mux.multicast("topic", b"1", Priority.EVENTS, broadcast=False)
    wire.other.mux.listen("topic")
    wire.settle()
    assert wire.one.mux.multicast("topic", b"2", Priority.EVENTS, broadcast=False)
    assert wire.one.mux.multicast("any", b"3", Priority.EVENTS, broadcast=True)
    wire.settle()
    assert wire.other.events == [MessageReceived("topic", b"2"), MessageReceived("any", b"3")]
    wire.other.mux.unlisten("topic")
    wire.settle()
    assert not wire.one.mux.multicast("topic", b"4", Priority.EVENTS, broadcast=False)


def test_multicast_of_maximum_size_arrives() -> None:
    wire = Wire(4)
    payload = bytes(limits.MAX_MULTICAST_BYTES)
    wire.one.mux.multicast("c" * 200, payload, Priority.EVENTS, broadcast=True)
    wire.settle()
    assert wire.other.events == [MessageReceived("c" * 200, payload)]


def test_slow_link_drops_multicast_and_counts_it() -> None:
    mux = Mux(dialed=True, lane_count=4)
    payload = bytes(limits.MAX_MULTICAST_BYTES)
    sent = sum(mux.multicast("topic", payload, Priority.EVENTS, broadcast=True) for _ in range(200))
    assert mux.queued(Priority.EVENTS) <= MAX_QUEUED_MULTICAST_BYTES + MAX_PAYLOAD_BYTES
    assert mux.dropped_multicasts == 200 - sent > 0


def test_ping_and_pong_carry_their_token_and_a_time() -> None:
    wire = Wire(4)
    wire.one.mux.ping(2**63, 150_000)
    wire.settle()
    assert wire.other.events == [PingReceived(2**63, 150_000)]
    wire.other.mux.pong(2**63, 10**12)
    wire.settle()
    assert wire.one.events == [PongReceived(2**63, 2**32 - 1)]


# ---------------------------------------------------------------- protocol violations


def receive(mux: Mux, data: bytes) -> list[MuxEvent]:
    return list(mux.receive_data(0, data, 0.0))


@pytest.mark.parametrize(
    "data",
    [
        frame(0),
        frame(99),
        frame(Type.OPEN, 1, b"\x01c"),
        frame(Type.OPEN, 0, b"\x01c"),
        frame(Type.OPEN, 2, b""),
        frame(Type.OPEN, 2, b"\x01"),
        frame(Type.OPEN, 2, b"\x04c"),
        frame(Type.OPEN, 2, b"\x01" + b"c" * 201),
        frame(Type.OPEN, 2, b"\x01\xff"),
        frame(Type.OPEN, 2, b"\x01c") * 2,
        frame(Type.OPEN, 2, b"\x01c") + frame(Type.WINDOW, 2, b"\0\0\0\1"),
        frame(Type.OPEN, 2, b"\x01c") + frame(Type.WINDOW, 2, b"\0"),
        frame(Type.OPEN, 2, b"\x01c") + frame(Type.RESET, 2, b"\xc1"),
        frame(Type.MULTICAST),
        frame(Type.MULTICAST, 0, b"\x05abc"),
        frame(Type.MULTICAST, 0, b"\x01\xff"),
        frame(Type.LISTEN),
        frame(Type.PING, 0, b"short"),
        frame(Type.PING, 0, bytes(8)),
        frame(Type.PONG, 0, b"much too long"),
        frame(Type.BULK_ACK, 0, b"x"),
        b"".join(frame(Type.LISTEN, 0, b"%d" % number) for number in range(MAX_CHANNELS + 1)),
    ],
)
def test_protocol_violation_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        receive(Mux(dialed=True, lane_count=1), data)


def test_oversized_frame_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(TooLarge):
        receive(Mux(dialed=True, lane_count=1), HEAD.pack((MAX_PAYLOAD_BYTES + 1) << 8 | Type.DATA, 1))


def test_data_beyond_the_window_of_a_session_is_a_violation() -> None:
    mux = Mux(dialed=True, lane_count=1, window=WINDOW)
    receive(mux, frame(Type.OPEN, 2, b"\x01c") + frame(Type.DATA, 2, bytes(WINDOW - HEAD.size)))
    with pytest.raises(Malformed):
        receive(mux, frame(Type.DATA, 2, b""))


def test_frames_of_ended_sessions_are_ignored() -> None:
    mux = Mux(dialed=True, lane_count=1)
    for kind in (Type.DATA, Type.WINDOW, Type.CLOSE, Type.RESET):
        assert receive(mux, frame(kind, 7, b"\0\0\0\1")) == []


def test_acknowledgement_of_unsent_bulk_data_is_harmless() -> None:
    mux = Mux(dialed=True, lane_count=1)
    for _ in range(100):
        receive(mux, frame(Type.BULK_ACK, 0, struct.pack(">I", 2**32 - 1)))
    assert mux.bulk.in_flight == 0
    assert mux.bulk.window == INITIAL_BULK_WINDOW_BYTES


def test_peer_that_sends_requests_but_reads_no_answers_is_disconnected() -> None:
    mux = Mux(dialed=True, lane_count=1)
    ping = frame(Type.PING, 0, bytes(12)) * 1_000

    def send_pings() -> None:
        for _ in range(1_000):
            for event in mux.receive_data(0, ping, 0.0):
                assert isinstance(event, PingReceived)
                mux.pong(event.token)

    with pytest.raises(Overloaded):
        send_pings()
    assert mux.queued(Priority.CONTROL) <= MAX_QUEUED_CONTROL_BYTES + 100


@given(st.lists(st.binary(max_size=100), max_size=10), st.integers(0, 3))
def test_random_bytes_are_a_violation_or_ignored(chunks: list[bytes], lane: int) -> None:
    mux = Mux(dialed=True, lane_count=4)
    try:
        for chunk in chunks:
            list(mux.receive_data(lane, chunk, 0.0))
    except (Malformed, TooLarge):
        pass


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from([0, 1, 2, 3, 4]), st.binary(max_size=12)), max_size=12))
def test_well_formed_but_invalid_frames_are_a_violation_or_ignored(invalid: list[tuple[int, int, bytes]]) -> None:
    mux = Mux(dialed=True, lane_count=1, window=WINDOW)
    session = mux.open("c", Priority.BULK)
    mux.write(session, bytes(100))
    mux.data_to_send(Priority.BULK, ALL, 0.0)
    try:
        for kind, number, payload in invalid:
            receive(mux, frame(kind, number, payload))
    except (Malformed, TooLarge):
        pass
    for remaining in mux.sessions.values():
        assert 0 <= remaining.send.available <= WINDOW
        assert 0 <= remaining.receive.outstanding <= WINDOW


def test_frames_may_arrive_byte_by_byte() -> None:
    wire = Wire(1)
    session = wire.one.open("greeter")
    wire.one.mux.write(session, b"hello")
    for _, data in wire.flush(wire.one):
        for byte in data:
            wire.deliver(wire.other, [(0, bytes([byte]))])
    assert wire.other.events == [SessionOpened(1, "greeter", Priority.CALLS), DataReceived(1, b"hello")]
