"""The client's and the server's end of a call, connected to each other without an event loop."""

from __future__ import annotations

import ast
import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from micro_core.contract.errors import BadRequest, Malformed, MicroError, NotFound, Overloaded, TooLarge
from micro_core.rpc import calls
from micro_core.rpc.calls import (
    TRANSITIONS,
    CallEvent,
    CallState,
    CancelledByClient,
    ClientCall,
    Effect,
    Failed,
    ItemsEnded,
    ItemsReceived,
    RequestReceived,
    ResponseReceived,
    Send,
    SendQueueDrained,
    ServerCall,
)
from micro_core.rpc.credit import ReceiveQueue, SendQueue
from micro_core.wire import frames, limits
from micro_core.wire.frames import Frame, FrameDecoder, Kind
from micro_core.wire.header import CallMode

MODES = (CallMode.UNARY, CallMode.SERVER_STREAM, CallMode.CLIENT_STREAM, CallMode.BIDIRECTIONAL)


class Pair:
    """A client call and a server call that are connected; `deliver` transfers the bytes."""

    def __init__(self, mode: int) -> None:
        self.client, self.server = ClientCall(1, mode), ServerCall(1, mode)
        self.to_server, self.to_client = bytearray(), bytearray()
        self.client_effects: list[Effect] = []
        self.server_effects: list[Effect] = []

    def deliver(self) -> None:
        """Transfer bytes in both directions until neither end has any to send."""
        while self.to_server or self.to_client:
            data, self.to_server = bytes(self.to_server), bytearray()
            for frame in FrameDecoder().receive_data(data):
                self.collect(self.server_effects, self.server.receive(frame), self.to_client)
            data, self.to_client = bytes(self.to_client), bytearray()
            for frame in FrameDecoder().receive_data(data):
                self.collect(self.client_effects, self.client.receive(frame), self.to_server)

    @staticmethod
    def collect(kept: list[Effect], effects: list[Effect], out: bytearray) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                out += effect.data
            else:
                kept.append(effect)


@given(st.integers(0, limits.MAX_BODY_BYTES), st.integers(0, limits.MAX_BODY_BYTES))
@settings(max_examples=15, deadline=None)
def test_request_and_response_of_any_size_arrive_complete(request_size: int, response_size: int) -> None:
    pair = Pair(CallMode.UNARY)
    pair.to_server += pair.client.begin(b"header", b"q" * request_size)
    pair.deliver()
    assert pair.server_effects == [RequestReceived(b"q" * request_size)]
    pair.to_client += pair.server.respond(b"rh", b"a" * response_size)
    pair.deliver()
    assert [effect for effect in pair.client_effects if not isinstance(effect, SendQueueDrained)] == [
        ResponseReceived(b"rh", b"a" * response_size)
    ]
    assert pair.client.is_finished
    assert pair.server.is_finished


@given(st.sampled_from([CallMode.SERVER_STREAM, CallMode.BIDIRECTIONAL]), st.lists(st.integers(0, 300_000), max_size=6))
@settings(max_examples=30, deadline=None)
def test_items_arrive_in_order_before_the_end(mode: int, sizes: list[int]) -> None:
    pair = Pair(mode)
    pair.to_server += pair.client.begin(b"h", b"")
    items = [bytes([number]) * size for number, size in enumerate(sizes)]
    for item in items:
        pair.to_client += pair.server.send_item(item)
    pair.to_client += pair.server.end()
    received: list[bytes] = []
    pair.deliver()
    while pair.client.incoming.has_items:
        item, grant = pair.client.take_item()
        received.append(item)
        pair.to_server += grant
        pair.deliver()
    assert received == items
    assert pair.client_effects[-1:] == [ItemsEnded()]
    assert pair.server.is_finished


def test_half_closed_client_still_receives() -> None:
    pair = Pair(CallMode.BIDIRECTIONAL)
    pair.to_server += pair.client.begin(b"h", b"") + pair.client.send_item(b"one") + pair.client.end()
    pair.deliver()
    assert pair.server_effects == [ItemsReceived(), ItemsEnded()]
    pair.to_client += pair.server.send_item(b"two") + pair.server.end()
    pair.deliver()
    assert pair.client.take_item()[0] == b"two"
    assert pair.client_effects == [ItemsReceived(), ItemsEnded()]


def test_end_is_sent_after_items_that_wait_for_credit() -> None:
    pair = Pair(CallMode.CLIENT_STREAM)
    pair.to_server += pair.client.begin(b"h", b"")
    items = [bytes([number]) * 60_000 for number in range(8)]
    for item in items:
        pair.to_server += pair.client.send_item(item)
    pair.to_server += pair.client.end()
    pair.deliver()
    assert ItemsEnded() not in pair.server_effects
    received = []
    while pair.server.incoming.has_items:
        item, grant = pair.server.take_item()
        received.append(item)
        pair.to_client += grant
        pair.deliver()
    assert received == items
    assert pair.server_effects[-1] == ItemsEnded()


@pytest.mark.parametrize("handler_started", [True, False])
def test_error_arrives_with_its_class_and_whether_the_handler_had_started(handler_started: bool) -> None:
    pair = Pair(CallMode.UNARY)
    pair.to_server += pair.client.begin(b"h", b"")
    pair.deliver()
    pair.to_client += pair.server.fail(
        NotFound("no such order", at="orders-1", hint="check the number"), handler_started=handler_started
    )
    pair.deliver()
    (failed,) = pair.client_effects
    assert isinstance(failed, Failed)
    assert failed.handler_started is handler_started
    error = failed.error
    assert (type(error), error.detail, error.at, error.hint) == (
        NotFound,
        "no such order",
        "orders-1",
        "check the number",
    )


def test_error_of_a_hop_states_that_no_handler_had_started() -> None:
    client = ClientCall(1, CallMode.UNARY)
    client.begin(b"h", b"")
    data = ServerCall(1, CallMode.UNARY).fail(Overloaded("full"))
    (frame,) = FrameDecoder().receive_data(data)
    (failed,) = client.receive(frame)
    assert isinstance(failed, Failed)
    assert failed.handler_started is False
    assert failed.error.retry_is_safe


def test_cancel_ends_both_ends() -> None:
    pair = Pair(CallMode.SERVER_STREAM)
    pair.to_server += pair.client.begin(b"h", b"") + pair.client.cancel()
    pair.deliver()
    assert pair.server_effects == [RequestReceived(b""), CancelledByClient()]
    assert pair.server.send_item(b"late") == b""
    assert pair.client.cancel() == b""
    assert pair.client.is_finished
    assert pair.server.is_finished


def test_client_that_does_not_read_holds_one_window() -> None:
    pair = Pair(CallMode.SERVER_STREAM)
    pair.to_server += pair.client.begin(b"h", b"")
    pair.deliver()
    for _ in range(1000):
        pair.to_client += pair.server.send_item(bytes(10_000))
        pair.deliver()
    assert pair.client.incoming.buffered_bytes <= limits.STREAM_WINDOW_BYTES
    assert not pair.server.outgoing.is_empty


def test_server_that_does_not_read_large_items_holds_one_message_and_one_window() -> None:
    pair = Pair(CallMode.CLIENT_STREAM)
    pair.to_server += pair.client.begin(b"h", b"")
    for _ in range(3):
        pair.to_server += pair.client.send_item(bytes(limits.MAX_BODY_BYTES))
        pair.deliver()
    assert pair.server.incoming.buffered_bytes <= limits.MAX_BODY_BYTES + limits.STREAM_WINDOW_BYTES


def test_number_of_empty_items_is_limited() -> None:
    outgoing = SendQueue()
    sent = sum(bool(outgoing.push(Kind.DATA, 1, b"", b"")) for _ in range(100_000))
    assert sent <= limits.STREAM_WINDOW_BYTES // 12


def test_call_fails_if_the_peer_exceeds_its_credit() -> None:
    server = ServerCall(1, CallMode.CLIENT_STREAM)
    server.receive(Frame(Kind.REQUEST, 0, 1, b"h", b""))
    effects: list[Effect] = []
    for _ in range(5):
        effects += server.receive(Frame(Kind.DATA, 0, 1, b"", bytes(64 * 1024)))
    failed = [effect for effect in effects if isinstance(effect, Failed)]
    assert isinstance(failed[0].error, Malformed)
    assert server.is_finished


def test_oversized_message_is_rejected_and_the_call_remains_open() -> None:
    client = ClientCall(1, CallMode.BIDIRECTIONAL)
    client.begin(b"h", b"")
    with pytest.raises(TooLarge, match=str(limits.MAX_BODY_BYTES)):
        client.send_item(bytes(limits.MAX_BODY_BYTES + 1))
    assert client.outgoing.is_empty
    assert client.send_item(b"ok")


def test_oversized_message_is_rejected_by_the_receiver() -> None:
    incoming = ReceiveQueue()
    incoming.window_bytes = 1 << 30
    for _ in range(limits.MAX_BODY_BYTES // 65536):
        incoming.receive(Frame(Kind.DATA, frames.MORE, 1, b"", bytes(65536)))
    with pytest.raises(TooLarge):
        incoming.receive(Frame(Kind.DATA, 0, 1, b"", b"x"))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (CallMode.UNARY, Kind.DATA),
        (CallMode.UNARY, Kind.END),
        (CallMode.UNARY, Kind.REQUEST),
        (CallMode.SERVER_STREAM, Kind.RESPONSE),
        (CallMode.CLIENT_STREAM, Kind.DATA),
        (CallMode.CLIENT_STREAM, Kind.END),
        (CallMode.BIDIRECTIONAL, Kind.CANCEL),
    ],
)
def test_unexpected_frame_fails_the_call_and_cancels_it_at_the_server(mode: int, kind: Kind) -> None:
    client = ClientCall(1, mode)
    client.begin(b"h", b"")
    effects = client.receive(Frame(kind, 0, 1, b"", b""))
    assert isinstance(effects[0], Send)
    assert next(iter(FrameDecoder().receive_data(effects[0].data))).kind == Kind.CANCEL
    assert isinstance(effects[1], Failed)
    assert isinstance(effects[1].error, BadRequest)


@pytest.mark.parametrize("state", list(CallState))
@pytest.mark.parametrize("event", list(CallEvent))
def test_call_accepts_exactly_the_events_of_the_transition_table(state: CallState, event: CallEvent) -> None:
    call = ClientCall(1, CallMode.BIDIRECTIONAL)
    call.state = state
    if event in TRANSITIONS[state]:
        call._apply(event)
        assert call.state is TRANSITIONS[state][event]
    else:
        with pytest.raises(Malformed, match=event.value):
            call._apply(event)
        assert call.state is state


@pytest.mark.parametrize("state", list(CallState))
def test_every_state_has_a_transition_to_ended_and_none_leads_out_of_it(state: CallState) -> None:
    for event in (CallEvent.FAILED, CallEvent.CANCELLED, CallEvent.CONNECTION_LOST):
        assert TRANSITIONS[state][event] is CallState.ENDED
    assert set(TRANSITIONS[CallState.ENDED].values()) == {CallState.ENDED}


def test_state_is_assigned_only_by_the_constructor_and_the_transition_table() -> None:
    (assigned_by,) = (
        [
            f"{owner.name}.{function.name}"
            for owner in tree.body
            if isinstance(owner, ast.ClassDef)
            for function in owner.body
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
            if isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store)
        ]
        for tree in [ast.parse(inspect.getsource(calls))]
    )
    assert assigned_by == ["_Call.__init__", "_Call._apply"]


@given(
    st.sampled_from(MODES),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(list(Kind)), st.sampled_from([0, 1]), st.binary(max_size=40), st.binary(max_size=8)),
        max_size=12,
    ),
)
def test_random_frames_never_raise_and_never_reopen_a_call(
    mode: int, is_client: bool, sequence: list[tuple[Kind, int, bytes, bytes]]
) -> None:
    call: ClientCall | ServerCall
    if is_client:
        call = ClientCall(1, mode)
        call.begin(b"h", b"")
    else:
        call = ServerCall(1, mode)
    endings = 0
    for kind, flags, body, header in sequence:
        was_ended = call.state is CallState.ENDED
        effects = call.receive(Frame(kind, flags, 1, header, body))
        endings += sum(isinstance(effect, Failed | ResponseReceived | CancelledByClient) for effect in effects)
        assert not (was_ended and call.state is not CallState.ENDED)
    assert endings <= 1


class CreditMachine(RuleBasedStateMachine):
    """A sender and a receiver of one direction. The invariants of flow control hold after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.outgoing, self.incoming = SendQueue(), ReceiveQueue()
        self.wire = bytearray()
        self.sent: list[bytes] = []
        self.taken: list[bytes] = []

    @precondition(lambda self: self.outgoing.is_empty)
    @rule(size=st.one_of(st.integers(0, 100), st.integers(60_000, 600_000)))
    def send(self, size: int) -> None:
        item = bytes([len(self.sent) % 256]) * size
        self.sent.append(item)
        self.wire += self.outgoing.push(Kind.DATA, 1, b"", item)

    @rule()
    def deliver(self) -> None:
        data, self.wire = bytes(self.wire), bytearray()
        for frame in FrameDecoder().receive_data(data):
            item = self.incoming.receive(frame)
            if item is not None:
                self.incoming.append(item)
            self.grant()

    @precondition(lambda self: self.incoming.has_items)
    @rule()
    def take(self) -> None:
        self.taken.append(self.incoming.pop())
        self.grant()

    def grant(self) -> None:
        granted = self.incoming.due_grant()
        if granted:
            self.wire += self.outgoing.grant(granted)

    @invariant()
    def items_are_complete_and_in_order(self) -> None:
        assert self.taken == self.sent[: len(self.taken)]

    @invariant()
    def credit_is_never_exceeded(self) -> None:
        assert 0 <= self.outgoing.credit_bytes <= self.incoming.window_bytes
        assert self.incoming.buffered_bytes <= limits.MAX_BODY_BYTES + limits.STREAM_WINDOW_BYTES

    def teardown(self) -> None:
        for _ in range(100 * (len(self.sent) + 1)):
            self.deliver()
            while self.incoming.has_items:
                self.take()
            if len(self.taken) == len(self.sent):
                break
        assert self.taken == self.sent, "items are missing although the receiver reads"


TestCredit = CreditMachine.TestCase
TestCredit.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_excessive_credit_is_rejected() -> None:
    outgoing = SendQueue()
    with pytest.raises(MicroError):
        outgoing.grant(0xFFFF_FFFF)
