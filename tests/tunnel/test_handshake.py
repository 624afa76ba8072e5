"""Two handshakes wired to each other: who gets in, and who must not."""

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
    """One handshake, what it sent and how it ended."""

    def __init__(
        self,
        identity: NodeIdentity,
        *,
        dialed: bool,
        network: str = "go.micro",
        token: str = "secret",
        binding: bytes = BINDING,
        nonce: bytes = b"",
        **greeting: Any,
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
        self.own = replace(own, **greeting)
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
        self.take(self.handshake.start())

    def take(self, effects: list[HandshakeEffect]) -> None:
        for effect in effects:
            match effect:
                case Send(data):
                    self.out += data
                case HandshakeDone():
                    self.done = effect
                case HandshakeFailed(error):
                    self.error = error

    def sent(self) -> bytes:
        data = bytes(self.out)
        self.out.clear()
        return data

    def hear(self, data: bytes) -> None:
        if self.done is None and self.error is None:
            self.take(self.handshake.receive_data(data))


def dialler(**changes: Any) -> Side:
    return Side(DIALLER, dialed=True, **changes)


def acceptor(**changes: Any) -> Side:
    return Side(ACCEPTOR, dialed=False, **changes)


def unchanged(data: bytes) -> bytes:
    return data


def run(one: Side, other: Side, tamper: Callable[[bytes], bytes] = unchanged) -> None:
    for _ in range(6):
        to_other, to_one = one.sent(), other.sent()
        if not to_other and not to_one:
            return
        if to_other:
            other.hear(tamper(to_other))
        if to_one:
            one.hear(to_one)
    raise AssertionError("they never stop talking")


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


# ---------------------------------------------------------------------------- getting in


def test_both_sides_know_each_other_at_the_end() -> None:
    one, other = dialler(), acceptor()
    run(one, other)
    assert one.done is not None
    assert other.done is not None
    assert (one.done.peer_id, other.done.peer_id) == (ACCEPTOR.node_id, DIALLER.node_id)
    assert (one.done.peer, other.done.peer) == (other.own, one.own)
    assert one.done.version == other.done.version == 2
    assert one.handshake.state is other.handshake.state is HandshakeState.DONE


def test_bytes_may_come_one_by_one_and_what_follows_is_handed_on() -> None:
    one, other = dialler(), acceptor()
    for byte in one.sent():
        other.hear(bytes([byte]))
    one.hear(other.sent())
    assert one.done is not None
    data = one.sent()
    for byte in data[:-1]:
        other.hear(bytes([byte]))
    assert other.done is None
    other.hear(data[-1:] + b"first frames")
    assert other.done is not None
    assert other.done.rest == b"first frames"


def test_hello_and_proof_and_data_may_come_as_one_piece() -> None:
    one, other = dialler(), acceptor()
    hello = one.sent()
    one.hear(other.sent())
    other.hear(hello + one.sent() + b"x")
    assert other.done is not None
    assert other.done.rest == b"x"


@pytest.mark.parametrize(("here", "there"), [((2, 1), (1,)), ((1,), (2, 1)), ((2, 1), (3, 2)), ((2, 1), (9, 1))])
def test_neighbouring_versions_agree_on_the_newest_that_both_speak(
    here: tuple[int, ...], there: tuple[int, ...]
) -> None:
    one, other = dialler(versions=here), acceptor(versions=there)
    run(one, other)
    assert one.done is not None
    assert other.done is not None
    assert one.done.version == other.done.version == max(set(here) & set(there))


def test_without_a_common_version_both_sides_say_so() -> None:
    one, other = dialler(versions=(2, 1)), acceptor(versions=(4, 3))
    run(one, other)
    assert isinstance(one.error, Unauthorized)
    assert isinstance(other.error, Unauthorized)
    assert "version" in str(one.error)


def test_a_hello_of_version_one_ends_before_the_capabilities() -> None:
    other = acceptor()
    (hello,) = unframed(dialler(versions=(1,)).sent())
    other.hear(framed(*hello[:-1]))
    assert other.error is None
    assert other.handshake.state is HandshakeState.WAIT_PROOF


def test_fields_that_a_later_version_appends_are_ignored_but_signed() -> None:
    """Both transcripts cover the bytes as sent, so unknown fields cannot be changed on the way either."""
    other = acceptor()
    (hello,) = unframed(dialler().sent())
    other.hear(framed(*hello, "from the future", {}, 7))
    assert other.error is None
    assert other.handshake.state is HandshakeState.WAIT_PROOF


# ------------------------------------------------------------------------------ intruders


def test_a_machine_in_the_middle_has_another_certificate_and_is_found_out() -> None:
    one, other = dialler(binding=b"certificate of mallory"), acceptor()
    run(one, other)
    assert one.done is None
    assert other.done is None
    assert isinstance(one.error, Unauthorized)
    assert isinstance(other.error, Unauthorized)


def test_the_wrong_token_is_refused_and_says_what_to_do() -> None:
    one, other = dialler(token="guess"), acceptor()
    run(one, other)
    assert one.done is None
    assert other.done is None
    assert isinstance(other.error, Unauthorized)
    assert "token" in str(other.error)


def test_two_networks_never_mix_even_with_one_token() -> None:
    one, other = dialler(network="go.other"), acceptor()
    run(one, other)
    assert one.done is None
    assert other.done is None
    assert isinstance(other.error, Unauthorized)


def test_nobody_claims_the_key_of_another() -> None:
    other = acceptor()
    thief = Side(MALLORY, dialed=True, public_key=DIALLER.public_bytes)
    run(thief, other)
    assert other.done is None
    assert isinstance(other.error, Unauthorized)


def test_a_proof_of_an_earlier_handshake_is_worth_nothing() -> None:
    one, other = dialler(), acceptor()
    hello = one.sent()
    other.hear(hello)
    one.hear(other.sent())
    proof = one.sent()
    other.hear(proof)
    assert other.done is not None
    replayed = acceptor(nonce=b"3" * NONCE_BYTES)
    replayed.hear(hello + proof)
    assert replayed.done is None
    assert isinstance(replayed.error, Unauthorized)


def test_own_messages_sent_back_prove_nothing() -> None:
    one = dialler()
    one.hear(one.sent())
    assert one.done is None
    assert isinstance(one.error, Unauthorized)


def test_the_proof_of_one_role_is_not_that_of_the_other() -> None:
    """Mallory dials back to the dialler with the acceptor's HELLO, and returns the dialler's own proof."""
    one = dialler()
    one.sent()
    one.hear(acceptor().sent())
    one.hear(one.sent())
    assert one.done is None
    assert isinstance(one.error, Unauthorized)


def test_the_proof_of_membership_cannot_be_returned_to_its_maker() -> None:
    """Mallory has a key of its own and no token: it signs itself, and hands back the membership it was shown."""
    one, thief = dialler(), Side(MALLORY, dialed=False, token="guess")
    thief.hear(one.sent())
    hello, proof = unframed(thief.sent())
    one.hear(framed(*hello))
    (shown,) = unframed(one.sent())
    one.hear(framed(2, proof[1], shown[2]))
    assert one.done is None
    assert isinstance(one.error, Unauthorized)


def test_a_changed_hello_breaks_the_signature() -> None:
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


def test_versions_cannot_be_talked_down_by_a_third() -> None:
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
def test_no_single_changed_byte_lets_both_sides_in(data: st.DataObject) -> None:
    one, other = dialler(), acceptor()
    place = data.draw(st.integers(0, 500))
    flip = data.draw(st.integers(1, 255))
    passed = 0
    was_changed = False

    def tamper(chunk: bytes) -> bytes:
        nonlocal passed, was_changed
        if passed <= place < passed + len(chunk):
            chunk = bytearray(chunk)  # type: ignore[assignment]
            chunk[place - passed] ^= flip  # type: ignore[index]
            chunk = bytes(chunk)
            was_changed = True
        passed += len(chunk)
        return chunk

    run(one, other, tamper)
    assert (other.done is None) is was_changed


# -------------------------------------------------------------------------------- garbage


@given(st.lists(st.binary(max_size=200), max_size=6), st.booleans())
def test_garbage_ends_in_nothing_or_a_refusal(chunks: list[bytes], is_greeted: bool) -> None:
    one = dialler()
    if is_greeted:
        one.hear(acceptor().sent())
    for chunk in chunks:
        one.hear(chunk)
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
def test_well_formed_nonsense_ends_in_a_refusal(kind: int, fields: list[Any], is_greeted: bool) -> None:
    one = dialler()
    if is_greeted:
        one.hear(acceptor().sent())
    try:
        data = framed(kind, *fields)
    except (struct.error, ValueError, UnicodeEncodeError):
        return
    one.hear(data)
    assert one.done is None
    assert one.error is not None


@given(st.integers(0, 11), anything)
def test_a_hello_with_one_wrong_field_never_raises(place: int, value: object) -> None:
    other = acceptor()
    (hello,) = unframed(dialler().sent())
    hello[place : place + 1] = [value]
    try:
        data = framed(*hello)
    except UnicodeEncodeError:
        return
    other.hear(data)
    assert other.done is None


@pytest.mark.parametrize(
    ("place", "value"),
    [(2, b"short"), (3, b"short"), (4, "no network!"), (5, "x" * 254), (5, "new\nline"), (7, ["a"] * 17), (8, -1)],
)
def test_a_hello_beyond_its_bounds_is_malformed(place: int, value: object) -> None:
    other = acceptor()
    (hello,) = unframed(dialler().sent())
    hello[place] = value
    other.hear(framed(*hello))
    assert isinstance(other.error, Malformed)


def test_a_handshake_that_is_too_long_is_refused_before_it_is_there() -> None:
    one = dialler()
    one.hear(struct.pack(">H", limits.MAX_HANDSHAKE_BYTES + 1))
    assert isinstance(one.error, TooLarge)


def test_several_messages_together_have_one_bound() -> None:
    other = acceptor()
    (hello,) = unframed(dialler().sent())
    other.hear(framed(*hello, "x" * 3_000))
    assert other.error is None
    other.hear(struct.pack(">H", 2_000))
    assert isinstance(other.error, TooLarge)


def test_a_second_hello_is_a_violation() -> None:
    one, other = dialler(), acceptor()
    hello = one.sent()
    other.hear(hello)
    other.hear(hello)
    assert isinstance(other.error, Malformed)


def test_a_proof_before_a_hello_is_a_violation() -> None:
    other = acceptor()
    other.hear(framed(2, b"s" * 64, b"m" * 32))
    assert isinstance(other.error, Malformed)


def test_the_one_refused_learns_why() -> None:
    one = dialler()
    one.hear(framed(3, "the wrong token"))
    assert isinstance(one.error, Unauthorized)
    assert "the wrong token" in str(one.error)
    assert one.sent() == dialler().sent(), "a refusal is not answered"


def test_a_refusal_leaves_no_way_on() -> None:
    assert TRANSITIONS[HandshakeState.FAILED] == {}
    assert TRANSITIONS[HandshakeState.DONE] == {}
    one = dialler()
    one.hear(framed(9))
    assert one.handshake.state is HandshakeState.FAILED
    assert one.handshake.receive_data(acceptor().sent()) == []
