"""The mutual handshake of two nodes: the first bytes on the control lane of a link.

    HELLO   versions, public key, nonce, network, name, site, addresses, incarnation, generation, capabilities
    PROOF   signature over the transcript, and proof of membership over the transcript
    REFUSED the reason, sent instead of PROOF before the link is closed

The transcript is the SHA-256 digest of: the name of this protocol, the role of the prover, the channel binding of the
link (RFC 5929 `tls-server-end-point`), the HELLO of the dialler and the HELLO of the acceptor. A man in the middle has a
different channel binding, a replayed message a different nonce, and a reflected message the other role.

Pure: the nonce and the keys are arguments. Each message is `length u16 | msgpack array`; its length is checked before it
is buffered.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from micro_core.contract.errors import BadRequest, Conflict, Malformed, MicroError, TooLarge, Unauthorized
from micro_core.contract.names import check_network_name
from micro_core.wire import limits

VERSIONS = (2, 1)
"""Supported protocol versions, newest first: N and N-1. Version 1 had no capabilities."""

NONCE_BYTES = 32
MAX_TEXT_CHARS = 253
MAX_LIST_ITEMS = 16

OWN_NODE_ERROR_ID = "own-node"
"""Id of the error when a node has dialled itself."""

PROBE_ERROR_ID = "tunnel-probe"
"""Id of the error that ends the handshake of a probe at both ends. It is not counted as a failure."""

PROBE_REASON = "probe: the round trip was measured and no link is wanted"
"""Sent in REFUSED by a node that only wants to know which node answers, and how fast."""

_LENGTH = struct.Struct(">H")
_HELLO, _PROOF, _REFUSED = 1, 2, 3


class HandshakeState(enum.Enum):
    """The progress of a handshake."""

    WAIT_HELLO = "waiting for HELLO"
    """The own HELLO is sent."""
    WAIT_PROOF = "waiting for PROOF"
    """The own PROOF is sent."""
    DONE = "done"
    FAILED = "failed"
    """The link must be closed after the pending bytes are sent."""


class HandshakeEvent(enum.Enum):
    """What changes the state of a handshake."""

    HELLO_ACCEPTED = "HELLO accepted"
    PROOF_ACCEPTED = "PROOF accepted"
    FAILURE = "failure"


TRANSITIONS: Mapping[HandshakeState, Mapping[HandshakeEvent, HandshakeState]] = {
    HandshakeState.WAIT_HELLO: {
        HandshakeEvent.HELLO_ACCEPTED: HandshakeState.WAIT_PROOF,
        HandshakeEvent.FAILURE: HandshakeState.FAILED,
    },
    HandshakeState.WAIT_PROOF: {
        HandshakeEvent.PROOF_ACCEPTED: HandshakeState.DONE,
        HandshakeEvent.FAILURE: HandshakeState.FAILED,
    },
    HandshakeState.DONE: {},
    HandshakeState.FAILED: {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a node states about itself.

    `incarnation` is the time of its start in wall-clock milliseconds. `generation` counts the links that it has dialled
    since then.
    """

    public_key: bytes
    network: str
    name: str
    site: str
    addresses: tuple[str, ...]
    incarnation: int
    generation: int
    capabilities: tuple[str, ...] = ()
    versions: tuple[int, ...] = VERSIONS


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes to the control lane of the link."""

    data: bytes


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """The peer is authenticated and belongs to the network. `rest` holds the bytes that follow the handshake."""

    peer: Hello
    peer_id: str
    version: int
    rest: bytes


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """Close the link after the pending bytes are sent."""

    error: MicroError


HandshakeEffect = Send | HandshakeDone | HandshakeFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeKeys:
    """The cryptographic operations of a handshake, as functions, so that this file contains no cryptography."""

    sign: Callable[[bytes], bytes]
    """Sign data with the key of this node."""
    is_signed_by: Callable[[bytes, bytes, bytes], bool]
    """Called with (public key, signature, data)."""
    prove_membership: Callable[[bytes], bytes]
    """Return the proof of membership for a transcript."""
    is_member: Callable[[bytes, bytes], bool]
    """Called with (transcript, proof)."""
    node_id_of: Callable[[bytes], str]
    """Return the node id for a public key."""


Admit = Callable[[str, Hello], None]
"""Called with (node id, hello) before the peer has proved either; raises MicroError to refuse the link."""


class Handshake:
    """One end of a handshake. `dialed` is true for the end that dialled the link."""

    def __init__(
        self,
        *,
        dialed: bool,
        own: Hello,
        nonce: bytes,
        channel_binding: bytes,
        keys: HandshakeKeys,
        admit: Admit | None = None,
    ) -> None:
        self.state = HandshakeState.WAIT_HELLO
        self._dialed = dialed
        self._own = own
        self._keys = keys
        self._admit = admit
        self._binding = channel_binding
        self._own_hello = _pack([_HELLO, *_hello_fields(own, nonce)])
        self._peer_hello = b""
        self._peer: Hello | None = None
        self._peer_id = ""
        self._version = 0
        self._rest = b""
        self._received_bytes = 0

    def start(self) -> list[HandshakeEffect]:
        """Return the effects that start the handshake. Both ends send their HELLO without waiting."""
        return [Send(_framed(self._own_hello))]

    def receive_data(self, data: bytes) -> list[HandshakeEffect]:
        """Process bytes of the control lane. Never raises. Do not call it after HandshakeDone or HandshakeFailed."""
        self._rest += data
        effects: list[HandshakeEffect] = []
        try:
            while self.state in (HandshakeState.WAIT_HELLO, HandshakeState.WAIT_PROOF):
                message = self._next_message()
                if message is None:
                    break
                effects += self._receive(message)
        except MicroError as error:
            effects += self._fail(error)
        return effects

    def _next_message(self) -> bytes | None:
        if len(self._rest) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._rest)
        self._check_size(length)
        if len(self._rest) < _LENGTH.size + length:
            return None
        message = self._rest[_LENGTH.size : _LENGTH.size + length]
        self._rest = self._rest[_LENGTH.size + length :]
        self._received_bytes += length
        return message

    def _check_size(self, length: int) -> None:
        if self._received_bytes + length > limits.MAX_HANDSHAKE_BYTES:
            raise TooLarge(f"the handshake exceeds {limits.MAX_HANDSHAKE_BYTES} bytes")

    def _receive(self, message: bytes) -> list[HandshakeEffect]:
        fields = _unpack(message)
        match fields:
            case [3, str() as reason, *_]:
                self._move(HandshakeEvent.FAILURE)
                if reason == PROBE_REASON:
                    return [HandshakeFailed(Conflict(PROBE_REASON, id=PROBE_ERROR_ID))]
                return [HandshakeFailed(Unauthorized(f"the peer refused the link: {reason[:MAX_TEXT_CHARS]}"))]
            case [1, *rest] if self.state is HandshakeState.WAIT_HELLO:
                return self._hello_received(message, rest)
            case [2, bytes() as signature, bytes() as membership, *_] if self.state is HandshakeState.WAIT_PROOF:
                return self._proof_received(signature, membership)
        raise Malformed(f"unexpected handshake message while {self.state.value}")

    def _hello_received(self, message: bytes, fields: list[Any]) -> list[HandshakeEffect]:
        peer = _read_hello(fields)
        self._peer, self._peer_hello = peer, message
        self._peer_id = self._keys.node_id_of(peer.public_key)
        if peer.public_key == self._own.public_key:
            raise Unauthorized(
                "the node dialled itself", hint="remove its own address from the nodes to join", id=OWN_NODE_ERROR_ID
            )
        if peer.network != self._own.network:
            raise Unauthorized(f"this node belongs to network {self._own.network}, the peer to {peer.network}")
        common = sorted(set(self._own.versions) & set(peer.versions), reverse=True)
        if not common:
            raise Unauthorized(
                f"no common protocol version: this node supports {self._own.versions}, the peer {peer.versions}",
                hint="upgrade the older node",
            )
        self._version = common[0]
        if self._admit is not None:
            self._admit(self._peer_id, peer)
        self._move(HandshakeEvent.HELLO_ACCEPTED)
        transcript = self._transcript(by_dialer=self._dialed)
        proof = [_PROOF, self._keys.sign(transcript), self._keys.prove_membership(transcript)]
        return [Send(_framed(_pack(proof)))]

    def _proof_received(self, signature: bytes, membership: bytes) -> list[HandshakeEffect]:
        assert self._peer is not None
        transcript = self._transcript(by_dialer=not self._dialed)
        if not self._keys.is_signed_by(self._peer.public_key, signature, transcript):
            raise Unauthorized(
                "the peer's signature is not valid for this link",
                hint="is there a proxy between the nodes that ends TLS?",
            )
        if not self._keys.is_member(transcript, membership):
            raise Unauthorized(
                f"the peer does not hold the token of network {self._own.network}",
                hint="print the token on one node with `micro network token`, set MICRO_TOKEN on the other",
            )
        self._move(HandshakeEvent.PROOF_ACCEPTED)
        rest, self._rest = self._rest, b""
        return [HandshakeDone(self._peer, self._peer_id, self._version, rest)]

    def _fail(self, error: MicroError) -> list[HandshakeEffect]:
        self._move(HandshakeEvent.FAILURE)
        self._rest = b""
        return [Send(_framed(_pack([_REFUSED, error.detail[:MAX_TEXT_CHARS]]))), HandshakeFailed(error)]

    def _transcript(self, *, by_dialer: bool) -> bytes:
        hellos = (self._own_hello, self._peer_hello) if self._dialed else (self._peer_hello, self._own_hello)
        role = b"dialler" if by_dialer else b"acceptor"
        digest = hashlib.sha256()
        for part in (b"micro handshake v1", role, self._binding, *hellos):
            digest.update(struct.pack(">I", len(part)) + part)
        return digest.digest()

    def _move(self, event: HandshakeEvent) -> None:
        self.state = TRANSITIONS[self.state][event]


def _hello_fields(own: Hello, nonce: bytes) -> list[Any]:
    return [
        list(own.versions),
        own.public_key,
        nonce,
        own.network,
        own.name,
        own.site,
        list(own.addresses[:MAX_LIST_ITEMS]),
        own.incarnation,
        own.generation,
        list(own.capabilities[:MAX_LIST_ITEMS]),
    ]


def _read_hello(fields: list[Any]) -> Hello:
    match fields:
        case [
            list() as versions,
            bytes() as key,
            bytes() as nonce,
            str() as network,
            str() as name,
            str() as site,
            list() as addresses,
            int() as incarnation,
            int() as generation,
            *more,
        ] if len(nonce) == NONCE_BYTES and len(key) == 32 and incarnation >= 0 and generation >= 0:
            try:
                check_network_name(network)
            except BadRequest as error:
                raise Malformed(error.detail) from error
            return Hello(
                public_key=key,
                network=network,
                name=_text(name),
                site=_text(site),
                addresses=_texts(addresses),
                incarnation=incarnation,
                generation=generation,
                capabilities=_texts(more[0]) if more else (),
                versions=tuple(version for version in versions[:MAX_LIST_ITEMS] if isinstance(version, int)),
            )
    raise Malformed("HELLO: fields are missing or have the wrong type")


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or not value.isprintable():
        raise Malformed(f"HELLO: a text is not printable or has more than {MAX_TEXT_CHARS} characters")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_LIST_ITEMS:
        raise Malformed(f"HELLO: expected a list of at most {MAX_LIST_ITEMS} items")
    return tuple(_text(item) for item in value)


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(message: bytes) -> Any:
    try:
        return msgpack.unpackb(message, raw=False, strict_map_key=True, max_array_len=64, max_map_len=0, max_ext_len=0)
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, RecursionError) as error:
        raise Malformed(f"handshake: {error!s:.120}") from error


def _framed(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message
