"""Two connected connection protocols without an event loop, checked against a model, and peers that send invalid bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from micro_core.contract.errors import (
    Closed,
    Draining,
    LinkLost,
    Malformed,
    MicroError,
    Overloaded,
    TooLarge,
    error_from_wire,
)
from micro_core.rpc.connection_protocol import (
    MAX_STREAM_ID,
    MAX_UNREAD_REFUSALS,
    TRANSITIONS,
    ConnectionEvent,
    ConnectionInput,
    ConnectionProtocol,
    ConnectionState,
    FrameDropped,
    HelloReceived,
    MessageReceived,
    PingReceived,
    PongReceived,
    RequestRefused,
    next_state,
)
from micro_core.wire import frames, limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind
from micro_core.wire.header import EventHeader, decode_map, encode_header, encode_hello

HELLO = frames.encode(Kind.HELLO, 0, encode_hello("peer"))
EVENT_HEADER = encode_header(EventHeader("orders", "1" * 32))


class Owner:
    """Records the frames of one stream."""

    def __init__(self, log: list[object] | None = None) -> None:
        self.log: list[object] = [] if log is None else log

    def frame_received(self, frame: Frame) -> None:
        self.log.append((Kind(frame.kind).name, frame.stream, bytes(frame.body)))

    def connection_lost(self, error: MicroError) -> None:
        self.log.append(error)


class End:
    """A protocol that attaches an owner to each request, answers each PING and records all events."""

    def __init__(self, *, dialed: bool, node_id: str = "") -> None:
        self.log: list[object] = []
        self.protocol = ConnectionProtocol(dialed=dialed, on_event=self.handle, node_id=node_id, remote="peer")

    def handle(self, event: ConnectionEvent) -> None:
        match event:
            case Frame():
                self.log.append(("request", event.stream, bytes(event.body)))
                self.protocol.attach(event.stream, Owner(self.log))
            case RequestRefused(error):
                self.log.append(("refused", type(error)))
            case MessageReceived(header, body):
                self.log.append(("message", header.topic, bytes(body)))
            case FrameDropped(frame):
                self.log.append(("dropped", frame.stream))
            case PingReceived(body):
                self.log.append(("ping", bytes(body)))
                self.protocol.send_pong(body)
            case PongReceived(body):
                self.log.append(("pong", body))
            case HelloReceived():
                self.log.append(("hello", self.protocol.peer_id))


def sent(protocol: ConnectionProtocol) -> list[Frame]:
    return list(FrameDecoder().receive_data(protocol.data_to_send()))


# ------------------------------------------------------------------------- state machine


@pytest.mark.parametrize("state", list(ConnectionState))
@pytest.mark.parametrize("event", list(ConnectionInput))
def test_state_accepts_exactly_the_inputs_of_the_transition_table(
    state: ConnectionState, event: ConnectionInput
) -> None:
    if event in TRANSITIONS[state]:
        assert next_state(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(Malformed, match=f"unexpected {event.value}: the connection is {state.value}"):
            next_state(state, event)


@pytest.mark.parametrize("state", list(ConnectionState))
def test_loss_closes_every_state_and_no_input_reopens_it(state: ConnectionState) -> None:
    assert TRANSITIONS[state][ConnectionInput.LOST] is ConnectionState.CLOSED
    assert set(TRANSITIONS[ConnectionState.CLOSED].values()) == {ConnectionState.CLOSED}


def test_streams_may_be_opened_before_the_hello_of_the_peer_and_receive_frames_after_it() -> None:
    end, owner = End(dialed=True), Owner()
    assert end.protocol.open_stream(owner) == 1
    with pytest.raises(Malformed, match="the first frame is RESPONSE"):
        end.protocol.receive_data(frames.encode(Kind.RESPONSE, 1))
    end.protocol.receive_data(HELLO + frames.encode(Kind.RESPONSE, 1, b"", b"body"))
    assert owner.log == [("RESPONSE", 1, b"body")]
    assert end.log == [("hello", "peer")]


def test_draining_side_refuses_streams_and_may_still_open_its_own() -> None:
    end = End(dialed=False)
    end.protocol.receive_data(HELLO)
    end.protocol.data_to_send()
    end.protocol.send_goaway()
    end.protocol.send_goaway()
    end.protocol.receive_data(frames.encode(Kind.REQUEST, 1, b"h"))
    goaway, refusal = sent(end.protocol)
    assert goaway.kind == Kind.GOAWAY
    assert isinstance(error_from_wire(decode_map(refusal.header)), Draining)
    assert end.protocol.open_stream(Owner()) == 2


def test_side_opens_no_stream_after_the_goaway_of_the_peer_and_still_accepts_streams() -> None:
    end = End(dialed=False)
    end.protocol.receive_data(HELLO + frames.encode(Kind.GOAWAY, 0) * 2)
    with pytest.raises(Draining):
        end.protocol.open_stream(Owner())
    end.protocol.receive_data(frames.encode(Kind.REQUEST, 1, b"h"))
    assert end.log[-1] == ("request", 1, b"")


def test_closing_side_neither_opens_nor_accepts_streams_and_delivers_frames_of_open_ones() -> None:
    end, owner = End(dialed=False), Owner()
    end.protocol.receive_data(HELLO)
    stream = end.protocol.open_stream(owner)
    end.protocol.start_close()
    end.protocol.start_close()
    with pytest.raises(Draining):
        end.protocol.open_stream(Owner())
    end.protocol.receive_data(frames.encode(Kind.REQUEST, 1, b"h") + frames.encode(Kind.RESPONSE, stream, b"", b"r"))
    assert end.log[-1] == ("refused", Draining)
    assert owner.log == [("RESPONSE", stream, b"r")]


def test_last_stream_id_is_used_once() -> None:
    protocol = End(dialed=True).protocol
    protocol._next_stream = MAX_STREAM_ID
    assert protocol.open_stream(Owner()) == MAX_STREAM_ID
    assert protocol.is_out_of_stream_ids
    with pytest.raises(Draining):
        protocol.open_stream(Owner())


def test_owners_are_returned_once_at_the_end_and_later_data_is_ignored() -> None:
    end = End(dialed=True)
    owners = [Owner(), Owner()]
    for owner in owners:
        end.protocol.open_stream(owner)
    assert end.protocol.connection_lost(LinkLost("cut")) == owners
    assert end.protocol.connection_lost(Closed("again")) == []
    assert isinstance(end.protocol.error, LinkLost)
    end.protocol.receive_data(HELLO + b"\xff" * 100)
    assert end.log == []
    with pytest.raises(LinkLost):
        end.protocol.open_stream(Owner())


def test_data_after_the_end_in_the_same_chunk_is_ignored() -> None:
    end = End(dialed=True)

    class Aborting(Owner):
        def frame_received(self, frame: Frame) -> None:
            end.protocol.connection_lost(LinkLost("aborted by the owner"))

    end.protocol.receive_data(HELLO)
    stream = end.protocol.open_stream(Aborting())
    end.protocol.receive_data(frames.encode(Kind.DATA, stream) * 2 + frames.encode(Kind.PING, 0))
    assert end.log == [("hello", "peer")]


def test_owner_that_is_attached_after_the_end_receives_no_frames() -> None:
    owner = Owner()

    def handle(event: ConnectionEvent) -> None:
        if isinstance(event, Frame):
            protocol.connection_lost(LinkLost("aborted by the handler"))
            protocol.attach(event.stream, owner)

    protocol = ConnectionProtocol(dialed=False, on_event=handle)
    protocol.receive_data(HELLO + frames.encode(Kind.REQUEST, 1, b"h") + frames.encode(Kind.DATA, 1) * 2)
    assert owner.log == []


REQUEST = frames.encode(Kind.REQUEST, 1, b"h")
VIOLATIONS = {
    "no hello": REQUEST,
    "two hellos": HELLO + HELLO,
    "hello of another version": frames.encode(Kind.HELLO, 0, b"\x91\x91\x63"),
    "unknown kind": HELLO + b"\x00\x00\x00\x08\xff\x00\x00\x00\x00\x01\x00\x00",
    "endless frame": HELLO + b"\xff\xff\xff\xff" + bytes(16),
    "request on stream 0": HELLO + frames.encode(Kind.REQUEST, 0, b"h"),
    "stream ID of the other side": HELLO + frames.encode(Kind.REQUEST, 2, b"h"),
    "stream ID used before": HELLO + REQUEST + frames.encode(Kind.CANCEL, 1) + REQUEST,
    "descending stream IDs": HELLO + frames.encode(Kind.REQUEST, 5, b"h") + frames.encode(Kind.REQUEST, 3, b"h"),
    "long ping": HELLO + frames.encode(Kind.PING, 0, b"", bytes(33)),
    "invalid event header": HELLO + frames.encode(Kind.EVENT, 0, b"\xc1", b"x"),
}


@pytest.mark.parametrize("violation", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_violation_is_rejected(violation: bytes) -> None:
    protocol = End(dialed=False).protocol
    protocol.send_goaway()  # requests are refused, so that no owner receives the frames
    with pytest.raises((Malformed, TooLarge)):
        protocol.receive_data(violation)


def test_replaced_owner_receives_the_following_frames() -> None:
    end, owner = End(dialed=False), Owner()
    end.protocol.receive_data(HELLO + REQUEST)
    end.protocol.attach(1, owner)
    end.protocol.receive_data(frames.encode(Kind.DATA, 1, b"", b"item"))
    assert owner.log == [("DATA", 1, b"item")]
    assert end.protocol._peer_streams == 1


def test_queued_refusals_are_limited() -> None:
    end = End(dialed=False)
    end.protocol.receive_data(HELLO)
    end.protocol.send_goaway()
    requests = b"".join(frames.encode(Kind.REQUEST, 1 + 2 * n, b"h") for n in range(MAX_UNREAD_REFUSALS + 1))
    with pytest.raises(Overloaded):
        end.protocol.receive_data(requests)
    assert len(sent(end.protocol)) <= MAX_UNREAD_REFUSALS + 2


# ------------------------------------------------------------------- model-based test

MAX_STREAMS = 3
"""Streams per side in the model-based test, so that the limit is reached often."""


@dataclass
class Side:
    """The expected state of one end, and the bytes on their way from it."""

    is_dialing: bool
    end: End
    has_hello: bool = False
    sent_goaway: bool = False
    received_goaway: bool = False
    is_closing: bool = False
    is_closed: bool = False
    streams_opened: int = 0
    own: set[int] = field(default_factory=set)
    """Open streams that this side opened."""
    accepted: set[int] = field(default_factory=set)
    """Open streams that the peer opened."""
    log: list[object] = field(default_factory=list)
    """The expected events and frames."""
    pipe: bytearray = field(default_factory=bytearray)
    pipe_start: int = 0
    """Bytes of this side that were delivered."""
    in_flight: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)
    """For each sent frame: the position of its end, and the expected effect of its arrival."""

    @property
    def local_state(self) -> ConnectionState:
        if self.is_closed:
            return ConnectionState.CLOSED
        if self.is_closing:
            return ConnectionState.CLOSING
        return ConnectionState.DRAINING if self.sent_goaway else ConnectionState.OPEN

    @property
    def remote_state(self) -> ConnectionState:
        if self.is_closed:
            return ConnectionState.CLOSED
        if not self.has_hello:
            return ConnectionState.AWAITING_HELLO
        return ConnectionState.DRAINING if self.received_goaway else ConnectionState.OPEN

    @property
    def can_open(self) -> bool:
        return not (self.is_closed or self.is_closing or self.received_goaway)

    def next_stream(self) -> int:
        return 2 * self.streams_opened + (1 if self.is_dialing else 2)

    def send(self, data: bytes, arrive: Callable[[], None]) -> None:
        """Put a frame into the pipe, with the expected effect of its arrival."""
        self.pipe += data
        self.in_flight.append((self.pipe_start + len(self.pipe), arrive))


side_names = st.sampled_from(["dialing", "accepting"])
bodies = st.binary(max_size=20)


class ConnectionMachine(RuleBasedStateMachine):
    """Two protocols connected by pipes that keep the order and split the bytes at random positions."""

    def __init__(self) -> None:
        super().__init__()
        self._max_streams = limits.MAX_STREAMS_PER_CONNECTION
        limits.MAX_STREAMS_PER_CONNECTION = MAX_STREAMS
        self.sides = {
            name: Side(is_dialing, End(dialed=is_dialing, node_id=name))
            for name, is_dialing in (("dialing", True), ("accepting", False))
        }
        for name, side in self.sides.items():
            self.send_protocol_frames(side, [partial(self.hello_arrives, self.peer(side), name)])

    def peer(self, side: Side) -> Side:
        return self.sides["accepting" if side.is_dialing else "dialing"]

    def send_protocol_frames(self, side: Side, effects: list[Callable[[], None]]) -> None:
        """Transfer the frames that the protocol has queued to the pipe: one for each of the expected effects."""
        queued = sent(side.end.protocol)
        assert len(queued) == len(effects)
        for frame, arrive in zip(queued, effects, strict=True):
            side.send(frames.restream(frame, frame.stream), arrive)

    # Rules

    @rule(name=side_names, body=bodies)
    def open_stream(self, name: str, body: bytes) -> None:
        side = self.sides[name]
        protocol = side.end.protocol
        if side.is_closed:
            with pytest.raises(LinkLost):
                protocol.open_stream(Owner())
        elif len(side.own) >= MAX_STREAMS:
            with pytest.raises(Overloaded):
                protocol.open_stream(Owner())
        elif not side.can_open:
            with pytest.raises(Draining):
                protocol.open_stream(Owner())
        else:
            stream = side.next_stream()
            assert protocol.open_stream(Owner(side.end.log)) == stream
            side.streams_opened += 1
            side.own.add(stream)
            peer = self.peer(side)
            side.send(frames.encode(Kind.REQUEST, stream, b"h", body), lambda: self.request_arrives(peer, stream, body))

    @rule(name=side_names, choice=st.integers(0, 5), kind=st.sampled_from([Kind.DATA, Kind.RESPONSE]), body=bodies)
    def send_frame(self, name: str, choice: int, kind: Kind, body: bytes) -> None:
        side = self.sides[name]
        streams = sorted(side.own | side.accepted)
        if streams and not side.is_closed:
            stream, peer = streams[choice % len(streams)], self.peer(side)
            side.send(frames.encode(kind, stream, b"", body), lambda: self.frame_arrives(peer, kind.name, stream, body))

    @rule(name=side_names, choice=st.integers(0, 5))
    def close_stream(self, name: str, choice: int) -> None:
        side = self.sides[name]
        streams = sorted(side.own | side.accepted)
        if streams:
            stream = streams[choice % len(streams)]
            side.end.protocol.close_stream(stream)
            side.end.protocol.close_stream(stream)
            side.own.discard(stream)
            side.accepted.discard(stream)

    @rule(name=side_names)
    def send_goaway(self, name: str) -> None:
        side = self.sides[name]
        side.end.protocol.send_goaway()
        is_sent = side.local_state is ConnectionState.OPEN
        side.sent_goaway = side.sent_goaway or is_sent
        peer = self.peer(side)
        self.send_protocol_frames(side, [lambda: self.goaway_arrives(peer)] if is_sent else [])

    @rule(name=side_names, body=st.binary(max_size=32))
    def send_ping(self, name: str, body: bytes) -> None:
        side = self.sides[name]
        if not side.is_closed:
            side.end.protocol.send_ping(body)
            peer = self.peer(side)
            self.send_protocol_frames(side, [lambda: self.ping_arrives(peer, body)])

    @rule(name=side_names, size=st.sampled_from([0, 10, 150_000]))
    def publish(self, name: str, size: int) -> None:
        side = self.sides[name]
        if not side.is_closed:
            peer, data = self.peer(side), b"".join(frames.encode_message(Kind.EVENT, 0, EVENT_HEADER, bytes(size)))
            side.send(data, lambda: self.message_arrives(peer, size))

    @rule(name=side_names)
    def start_close(self, name: str) -> None:
        side = self.sides[name]
        side.end.protocol.start_close()
        side.is_closing = True

    @rule(name=side_names, chance=st.integers(0, 3))
    def lose(self, name: str, chance: int) -> None:
        side = self.sides[name]
        if chance == 0:
            owners = side.end.protocol.connection_lost(LinkLost("cut"))
            assert len(owners) == len(side.own) + len(side.accepted)
            side.own.clear()
            side.accepted.clear()
            side.is_closed = True

    @rule(name=side_names, count=st.one_of(st.integers(1, 30), st.just(1 << 20)))
    def deliver(self, name: str, count: int) -> None:
        """Deliver some of the bytes that `name` sent."""
        side = self.sides[name]
        peer = self.peer(side)
        chunk = bytes(side.pipe[:count])
        del side.pipe[:count]
        side.pipe_start += len(chunk)
        peer.end.protocol.receive_data(chunk)
        replies: list[Callable[[], None]] = []
        self.replies = replies
        while side.in_flight and side.in_flight[0][0] <= side.pipe_start:
            arrive = side.in_flight.popleft()[1]
            if not peer.is_closed:
                arrive()
        self.send_protocol_frames(peer, replies)

    # Expected effects of the arrival of a frame

    def hello_arrives(self, side: Side, name: str) -> None:
        side.has_hello = True
        side.log.append(("hello", name))

    def request_arrives(self, side: Side, stream: int, body: bytes) -> None:
        refusal: type[MicroError] | None = None
        if side.local_state is not ConnectionState.OPEN:
            refusal = Draining
        elif len(side.accepted) >= MAX_STREAMS:
            refusal = Overloaded
        if refusal is None:
            side.accepted.add(stream)
            side.log.append(("request", stream, body))
        else:
            side.log.append(("refused", refusal))
            peer = self.peer(side)
            self.replies.append(lambda: self.frame_arrives(peer, "ERROR", stream, b""))

    def frame_arrives(self, side: Side, kind: str, stream: int, body: bytes) -> None:
        is_open = stream in side.own | side.accepted
        side.log.append((kind, stream, body) if is_open else ("dropped", stream))

    def goaway_arrives(self, side: Side) -> None:
        side.received_goaway = True

    def ping_arrives(self, side: Side, body: bytes) -> None:
        side.log.append(("ping", body))
        peer = self.peer(side)
        self.replies.append(lambda: peer.log.append(("pong", body)))

    def message_arrives(self, side: Side, size: int) -> None:
        side.log.append(("message", "orders", bytes(size)))

    # Invariants

    @invariant()
    def protocols_agree_with_the_model(self) -> None:
        for side in self.sides.values():
            protocol = side.end.protocol
            assert side.end.log == side.log
            assert set(protocol.streams) == side.own | side.accepted
            assert protocol._peer_streams == len(side.accepted) <= MAX_STREAMS
            assert (protocol.local_state, protocol.remote_state) == (side.local_state, side.remote_state)
            assert protocol.can_open_streams is side.can_open

    def teardown(self) -> None:
        try:
            while any(side.pipe for side in self.sides.values()):
                for name in self.sides:
                    self.deliver(name, 1 << 20)
            self.protocols_agree_with_the_model()
        finally:
            limits.MAX_STREAMS_PER_CONNECTION = self._max_streams


TestConnectionProtocols = ConnectionMachine.TestCase
TestConnectionProtocols.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# ---------------------------------------------------------------------------- byte fuzzing


def feed(protocol: ConnectionProtocol, chunks: list[bytes]) -> None:
    """Feed bytes until a violation, which must be a documented error, and check the memory in use after each chunk."""
    for chunk in chunks:
        try:
            protocol.receive_data(chunk)
        except (Malformed, TooLarge, Overloaded) as violation:
            protocol.connection_lost(violation)
        assert protocol._decoder.buffered_bytes <= limits.MAX_FRAME_BYTES
        assert len(protocol.streams) <= limits.MAX_STREAMS_PER_CONNECTION
        assert len(protocol._event._body) <= limits.MAX_BODY_BYTES
        assert len(protocol.data_to_send()) <= 1_000 * (1 + len(chunk))


@given(st.booleans(), st.lists(st.binary(max_size=100), max_size=10), st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_a_violation_or_ignored(dialed: bool, chunks: list[bytes], has_hello: bool) -> None:
    feed(End(dialed=dialed).protocol, [HELLO, *chunks] if has_hello else chunks)


valid_frames = st.builds(
    frames.encode,
    st.sampled_from(list(Kind)),
    st.sampled_from([0, 0, 1, 2, 3, 4, 5, MAX_STREAM_ID]),
    st.sampled_from([b"", b"h", EVENT_HEADER, encode_hello("peer")]),
    st.binary(max_size=40),
    st.sampled_from([0, frames.MORE]),
)


@given(st.booleans(), st.lists(valid_frames, max_size=20), st.lists(st.integers(1, 40), max_size=40))
@settings(max_examples=300, deadline=None)
def test_valid_frames_in_any_order_are_a_violation_or_processed(
    dialed: bool, sequence: list[bytes], sizes: list[int]
) -> None:
    data = HELLO + b"".join(sequence)
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    end = End(dialed=dialed)
    for _ in range(3):
        end.protocol.open_stream(Owner(end.log))
    feed(end.protocol, [*chunks, data])


@given(
    st.lists(valid_frames, min_size=1, max_size=10),
    st.lists(
        st.tuples(st.integers(0, 1_000), st.sampled_from(["flip", "delete", "insert"]), st.integers(0, 255)), max_size=5
    ),
)
@settings(max_examples=500, deadline=None)
def test_mutated_frames_are_a_violation_or_processed(
    sequence: list[bytes], mutations: list[tuple[int, str, int]]
) -> None:
    data = bytearray(HELLO + b"".join(sequence))
    for position, mutation, value in mutations:
        at = position % len(data)
        if mutation == "flip":
            data[at] ^= value
        elif mutation == "delete":
            del data[at : at + 1]
        else:
            data.insert(at, value)
    end = End(dialed=False)
    end.protocol.open_stream(Owner(end.log))
    feed(end.protocol, [bytes(data[:30]), bytes(data[30:])])
