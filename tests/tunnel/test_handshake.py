"""Two connected handshakes: which peers are accepted and which are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_core.contract.errors import Malformed, MicroError, TooLarge, Unauthorized
from micro_core.tunnel.handshake import (
    NONCE_BYTES,
    TRANSITIONS,
    Handshake,
    HandshakeDone,
    HandshakeEffect,
    HandshakeFailed,
    HandshakeKeys,
    HandshakeState,
    Hello,
    Send,
)
from micro_core.tunnel.identity import NodeIdentity, is_member, is_signed_by, membership_proof, node_id_of
from micro_core.wire import limits

BINDING = b"certificate of the acceptor"
DIALLER = NodeIdentity.from_private_bytes(b"d" * 32)
ACCEPTOR = NodeIdentity.from_private_bytes(b"a" * 32)
MALLORY = NodeIdentity.from_private_bytes(b"m" * 32)


class Side:
    """One end of a handshake: what it sent and how it ended."""

    def __init__(
        self,
        identity: NodeIdentity,
        *,
        dialed: bool,
        network: str = "go.micro",
        token: str = "secret",
        binding: bytes = BINDING,
        nonce: bytes = b"",
        **hello: Any,
    ) -> None:
        self.identity = identity
        own = Hello(
            public_key=identity.public_bytes,
            network=network,
            name="node",
            site="eu",
            addresses=("quic://127.0.0.1:8085",),
            incarnation=1_700_000_000_000,
            generation=3,
            capabilities=("bulk",),
        )
        self.own = replace(own, **hello)
        keys = HandshakeKeys(
            sign=identity.sign,
            is_signed_by=is_signed_by,
            prove_membership=lambda transcript: membership_proof(network, token, transcript),
            is_member=lambda transcript, proof: is_member(network, token, transcript, proof),
            node_id_of=node_id_of,
        )
        self.handshake = Handshake(
            dialed=dialed,
            own=self.own,
            nonce=nonce or (b"1" if dialed else b"2") * NONCE_BYTES,
            channel_binding=binding,
            keys=keys,
        )
        self.done: HandshakeDone | None = None
        self.error: MicroError | None = None
        self.out = bytearray()
        self.carry_out(self.handshake.start())

    def carry_out(self, effects: list[HandshakeEffect]) -> None:
        for effect in effects:
            match effect:
                case Send(data):
                    self.out += data
                case HandshakeDone():
                    self.done = effect
                case HandshakeFailed(error):
                    self.error = error

    def take_output(self) -> bytes:
        data = bytes(self.out)
        self.out.clear()
        return data

    def receive(self, data: bytes) -> None:
        if self.done is None and self.error is None:
            self.carry_out(self.handshake.receive_data(data))


def dialler(**changes: Any) -> Side:
    return Side(DIALLER, dialed=True, **changes)


def acceptor(**changes: Any) -> Side:
    return Side(ACCEPTOR, dialed=False, **changes)


def unchanged(data: bytes) -> bytes:
    return data


def run(one: Side, other: Side, tamper: Callable[[bytes], bytes] = unchanged) -> None:
    for _ in range(6):
        to_other, to_one = one.take_output(), other.take_output()
        if not to_other and not to_one:
            return
        if to_other:
            other.receive(tamper(to_other))
        if to_one:
            one.receive(to_one)
    raise AssertionError("the handshake does not end")


def framed(*fields: Any) -> bytes:
    message: bytes = msgpack.packb(list(fields))
    return struct.pack(">H", len(message)) + message


def unframed(data: bytes) -> list[list[Any]]:
    messages = []
    while data:
        (length,) = struct.unpack_from(">H", data)
        messages.append(msgpack.unpackb(data[2 : 2 + length]))
        data = data[2 + length :]
    return messages


# -------------------------------------------------------------------------- success


def test_both_ends_are_authenticated_at_the_end() -> None:
    one, other = dialler(), acceptor()
    run(one, other)
    assert one.done is not None
    assert other.done is not None
    assert (one.done.peer_id, other.done.peer_id) == (ACCEPTOR.node_id, DIALLER.node_id)
    assert (one.done.peer, other.done.peer) == (other.own, one.own)
    assert one.done.version == other.done.version == 2
    assert one.handshake.state is other.handshake.state is HandshakeState.DONE


def test_single_bytes_are_processed_and_following_data_is_returned() -> None:
    one, other = dialler(), acceptor()
    for byte in one.take_output():
        other.receive(bytes([byte]))
    one.receive(other.take_output())
    assert one.done is not None
    data = one.take_output()
    for byte in data[:-1]:
        other.receive(bytes([byte]))
    assert other.done is None
    other.receive(data[-1:] + b"first frames")
    assert other.done is not None
    assert other.done.rest == b"first frames"


def test_hello_proof_and_data_may_arrive_in_one_chunk() -> None:
    one, other = dialler(), acceptor()
    hello = one.take_output()
    one.receive(other.take_output())
    other.receive(hello + one.take_output() + b"x")
    assert other.done is not None
    assert other.done.rest == b"x"


@pytest.mark.parametrize(("here", "there"), [((2, 1), (1,)), ((1,), (2, 1)), ((2, 1), (3, 2)), ((2, 1), (9, 1))])
def test_newest_common_version_is_used(here: tuple[int, ...], there: tuple[int, ...]) -> None:
    one, other = dialler(versions=here), acceptor(versions=there)
    run(one, other)
    assert one.done is not None
    assert other.done is not None
    assert one.done.version == other.done.version == max(set(here) & set(there))


def test_missing_common_version_is_reported_at_both_ends() -> None:
    one, other = dialler(versions=(2, 1)), acceptor(versions=(4, 3))
    run(one, other)
    assert isinstance(one.error, Unauthorized)
    assert isinstance(other.error, Unauthorized)
    assert "version" in str(one.error)


def test_hello_of_version_one_without_capabilities_is_accepted() -> None:
    other = acceptor()
    (hello,) = unframed(dialler(versions=(1,)).take_output())
    other.receive(framed(*hello[:-1]))
    assert other.error is None
    assert other.handshake.state is HandshakeState.WAIT_PROOF


def test_fields_of_a_later_version_are_ignored_but_signed() -> None:
    """The transcript covers the bytes as they were sent, so unknown fields cannot be changed in transit either."""
    other = acceptor()
    (hello,) = unframed(dialler().take_output())
    other.receive(framed(*hello, "from the future", {}, 7))
    assert other.error is None
    assert other.handshake.state is HandshakeState.WAIT_PROOF


# -------------------------------------------------------------------------- attacks


def test_man_in_the_middle_with_another_certificate_is_detected() -> None:
    one, other = dialler(binding=b"certificate of mallory"), acceptor()
    run(one, other)
    assert one.done is None
    assert other.done is None
    assert isinstance(one.error, Unauthorized)
    assert isinstance(other.error, Unauthorized)


def test_wrong_token_is_refused_and_named_in_the_error() -> None:
    one, other = dialler(token="guess"), acceptor()
    run(one, other)
    assert one.done is None
    assert other.done is None
    assert isinstance(other.error, Unauthorized)
    assert "token" in str(other.error)


def test_node_of_another_network_is_refused_even_with_the_same_token() -> None:
    one, other = dialler(network="go.other"), acceptor()
    run(one, other)
    assert one.done is None
    assert other.done is None
    assert isinstance(other.error, Unauthorized)


def test_public_key_of_another_node_cannot_be_claimed() -> None:
    other = acceptor()
    thief = Side(MALLORY, dialed=True, public_key=DIALLER.public_bytes)
    run(thief, other)
    assert other.done is None
    assert isinstance(other.error, Unauthorized)


def test_replayed_proof_of_an_earlier_handshake_is_refused() -> None:
    one, other = dialler(), acceptor()
    hello = one.take_output()
    other.receive(hello)
    one.receive(other.take_output())
    proof = one.take_output()
    other.receive(proof)
    assert other.done is not None
    replayed = acceptor(nonce=b"3" * NONCE_BYTES)
    replayed.receive(hello + proof)
    assert replayed.done is None
    assert isinstance(replayed.error, Unauthorized)


def test_reflected_messages_are_refused() -> None:
    one = dialler()
    one.receive(one.take_output())
    assert one.done is None
    assert isinstance(one.error, Unauthorized)


def test_proof_of_one_role_is_not_valid_for_the_other() -> None:
    """Mallory answers the dialler with the HELLO of the acceptor and reflects the proof of the dialler."""
    one = dialler()
    one.take_output()
    one.receive(acceptor().take_output())
    one.receive(one.take_output())
    assert one.done is None
    assert isinstance(one.error, Unauthorized)


def test_proof_of_membership_cannot_be_reflected() -> None:
    """Mallory has its own key but no token: it signs correctly and reflects the membership proof it received."""
    one, thief = dialler(), Side(MALLORY, dialed=False, token="guess")
    thief.receive(one.take_output())
    hello, proof = unframed(thief.take_output())
    one.receive(framed(*hello))
    (received,) = unframed(one.take_output())
    one.receive(framed(2, proof[1], received[2]))
    assert one.done is None
    assert isinstance(one.error, Unauthorized)


def test_modified_hello_invalidates_the_signature() -> None:
    def other_name(data: bytes) -> bytes:
        messages = unframed(data)
        for message in messages:
            if message[0] == 1:
                message[5] = "forged"
        return b"".join(framed(*message) for message in messages)

    one, other = dialler(), acceptor()
    run(one, other, other_name)
    assert one.done is None
    assert other.done is None


def test_version_downgrade_by_a_third_party_is_detected() -> None:
    def only_version_one(data: bytes) -> bytes:
        messages = unframed(data)
        for message in messages:
            if message[0] == 1:
                message[1] = [1]
        return b"".join(framed(*message) for message in messages)

    one, other = dialler(), acceptor()
    run(one, other, only_version_one)
    assert one.done is None
    assert other.done is None


@given(st.data())
def test_any_modified_byte_fails_the_handshake(data: st.DataObject) -> None:
    one, other = dialler(), acceptor()
    position = data.draw(st.integers(0, 500))
    flip = data.draw(st.integers(1, 255))
    passed = 0
    was_changed = False

    def tamper(chunk: bytes) -> bytes:
        nonlocal passed, was_changed
        if passed <= position < passed + len(chunk):
            chunk = bytearray(chunk)  # type: ignore[assignment]
            chunk[position - passed] ^= flip  # type: ignore[index]
            chunk = bytes(chunk)
            was_changed = True
        passed += len(chunk)
        return chunk

    run(one, other, tamper)
    assert (other.done is None) is was_changed


# ------------------------------------------------------------------- invalid messages


@given(st.lists(st.binary(max_size=200), max_size=6), st.booleans())
def test_random_bytes_never_complete_the_handshake(chunks: list[bytes], has_hello: bool) -> None:
    one = dialler()
    if has_hello:
        one.receive(acceptor().take_output())
    for chunk in chunks:
        one.receive(chunk)
    assert one.done is None


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


@given(st.integers(0, 5), st.lists(anything, max_size=12), st.booleans())
def test_well_formed_but_invalid_messages_are_refused(kind: int, fields: list[Any], has_hello: bool) -> None:
    one = dialler()
    if has_hello:
        one.receive(acceptor().take_output())
    try:
        data = framed(kind, *fields)
    except (struct.error, ValueError, UnicodeEncodeError):
        return
    one.receive(data)
    assert one.done is None
    assert one.error is not None


@given(st.integers(0, 11), anything)
def test_hello_with_one_wrong_field_never_raises(index: int, value: object) -> None:
    other = acceptor()
    (hello,) = unframed(dialler().take_output())
    hello[index : index + 1] = [value]
    try:
        data = framed(*hello)
    except UnicodeEncodeError:
        return
    other.receive(data)
    assert other.done is None


@pytest.mark.parametrize(
    ("index", "value"),
    [(2, b"short"), (3, b"short"), (4, "no network!"), (5, "x" * 254), (5, "new\nline"), (7, ["a"] * 17), (8, -1)],
)
def test_hello_beyond_its_limits_is_malformed(index: int, value: object) -> None:
    other = acceptor()
    (hello,) = unframed(dialler().take_output())
    hello[index] = value
    other.receive(framed(*hello))
    assert isinstance(other.error, Malformed)


def test_oversized_message_is_refused_before_it_is_buffered() -> None:
    one = dialler()
    one.receive(struct.pack(">H", limits.MAX_HANDSHAKE_BYTES + 1))
    assert isinstance(one.error, TooLarge)


def test_size_limit_covers_all_messages_together() -> None:
    other = acceptor()
    (hello,) = unframed(dialler().take_output())
    other.receive(framed(*hello, "x" * 3_000))
    assert other.error is None
    other.receive(struct.pack(">H", 2_000))
    assert isinstance(other.error, TooLarge)


def test_second_hello_is_a_protocol_violation() -> None:
    one, other = dialler(), acceptor()
    hello = one.take_output()
    other.receive(hello)
    other.receive(hello)
    assert isinstance(other.error, Malformed)


def test_proof_before_hello_is_a_protocol_violation() -> None:
    other = acceptor()
    other.receive(framed(2, b"s" * 64, b"m" * 32))
    assert isinstance(other.error, Malformed)


def test_refused_peer_receives_the_reason() -> None:
    one = dialler()
    one.receive(framed(3, "the wrong token"))
    assert isinstance(one.error, Unauthorized)
    assert "the wrong token" in str(one.error)
    assert one.take_output() == dialler().take_output(), "a refusal is not answered"


def test_final_states_have_no_transitions() -> None:
    assert TRANSITIONS[HandshakeState.FAILED] == {}
    assert TRANSITIONS[HandshakeState.DONE] == {}
    one = dialler()
    one.receive(framed(9))
    assert one.handshake.state is HandshakeState.FAILED
    assert one.handshake.receive_data(acceptor().take_output()) == []
