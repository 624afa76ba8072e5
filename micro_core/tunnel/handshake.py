"""The mutual handshake of two nodes, in the first bytes of a link's control lane.

    HELLO   versions, public key, nonce, network, name, site, addresses, incarnation, generation, capabilities
    PROOF   signature over the transcript, and proof of membership over the same
    REFUSED why not, instead of PROOF, before closing

The transcript is SHA-256 over: this protocol's name, the prover's role, the link's channel binding (RFC 5929
`tls-server-end-point`), the dialler's HELLO and the acceptor's. A machine in the middle has another binding, a replay
other nonces, a reflection the other role.

Pure: nonce and key are handed in. Each message is `length u16 | msgpack array`, bounded before it is buffered.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from micro_core.contract.errors import BadRequest, Malformed, MicroError, TooLarge, Unauthorized
from micro_core.contract.names import check_network_name
from micro_core.wire import limits

VERSIONS = (2, 1)
"""Spoken here, newest first: N and N-1. Version 1 had no capabilities."""

NONCE_BYTES = 32
MAX_TEXT_CHARS = 253
MAX_LIST = 16

_LENGTH = struct.Struct(">H")
_HELLO, _PROOF, _REFUSED = 1, 2, 3


class HandshakeState(enum.Enum):
    """How far a handshake has come."""

    GREETING = "greeting"
    """Own HELLO is out, the peer's is awaited."""
    PROVING = "proving"
    """Own PROOF is out, the peer's is awaited."""
    DONE = "done"
    FAILED = "failed"
    """Final: the link must be closed after what is to be sent."""


class HandshakeEvent(enum.Enum):
    GREETED = "greeted"
    PROVED = "proved"
    BROKEN = "broken"


TRANSITIONS: Mapping[HandshakeState, Mapping[HandshakeEvent, HandshakeState]] = {
    HandshakeState.GREETING: {
        HandshakeEvent.GREETED: HandshakeState.PROVING,
        HandshakeEvent.BROKEN: HandshakeState.FAILED,
    },
    HandshakeState.PROVING: {
        HandshakeEvent.PROVED: HandshakeState.DONE,
        HandshakeEvent.BROKEN: HandshakeState.FAILED,
    },
    HandshakeState.DONE: {},
    HandshakeState.FAILED: {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a node says of itself. `incarnation` is its start in wall-clock milliseconds; `generation` counts the
    links it has dialled in that life."""

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
    """Write these bytes to the control lane."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """The peer is who it says and belongs to the network; `rest` is what followed on the lane."""

    peer: Greeting
    peer_id: str
    version: int
    rest: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """Close the link, after what was to be sent."""

    error: MicroError


HandshakeEffect = Send | Done | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeKeys:
    """The secrets' side of a handshake, as functions: so this file needs no cryptography of its own."""

    sign: Callable[[bytes], bytes]
    is_signed_by: Callable[[bytes, bytes, bytes], bool]
    """(public key, signature, data)"""
    prove_membership: Callable[[bytes], bytes]
    is_member: Callable[[bytes, bytes], bool]
    """(transcript, proof)"""
    node_id_of: Callable[[bytes], str]


Admit = Callable[[str, Greeting], None]
"""Called with what a peer claims to be, (node id, greeting), before anything is proved; raises MicroError to refuse it."""


class Handshake:
    """One side of one handshake."""

    def __init__(
        self,
        *,
        dialed: bool,
        own: Greeting,
        nonce: bytes,
        channel_binding: bytes,
        keys: HandshakeKeys,
        admit: Admit | None = None,
    ) -> None:
        self.state = HandshakeState.GREETING
        self._dialed = dialed
        self._own = own
        self._keys = keys
        self._admit = admit
        self._binding = channel_binding
        self._own_hello = _pack([_HELLO, *_greeting_fields(own, nonce)])
        self._peer_hello = b""
        self._peer: Greeting | None = None
        self._peer_id = ""
        self._version = 0
        self._rest = b""
        self._received_bytes = 0

    def start(self) -> list[HandshakeEffect]:
        """Both sides greet at once."""
        return [Send(_framed(self._own_hello))]

    def receive_data(self, data: bytes) -> list[HandshakeEffect]:
        """Bytes of the control lane. Never raises; after Done or Failed it must not be called again."""
        self._rest += data
        effects: list[HandshakeEffect] = []
        try:
            while self.state in (HandshakeState.GREETING, HandshakeState.PROVING):
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
            raise TooLarge(f"a handshake of more than {limits.MAX_HANDSHAKE_BYTES} bytes")

    def _receive(self, message: bytes) -> list[HandshakeEffect]:
        fields = _unpack(message)
        match fields:
            case [3, str() as reason, *_]:
                self._move(HandshakeEvent.BROKEN)
                return [Failed(Unauthorized(f"the peer refused the link: {reason[:MAX_TEXT_CHARS]}"))]
            case [1, *rest] if self.state is HandshakeState.GREETING:
                return self._greeted(message, rest)
            case [2, bytes() as signature, bytes() as membership, *_] if self.state is HandshakeState.PROVING:
                return self._proved(signature, membership)
        raise Malformed(f"not a handshake message for the state {self.state.value}")

    def _greeted(self, message: bytes, fields: list[Any]) -> list[HandshakeEffect]:
        peer = _read_greeting(fields)
        self._peer, self._peer_hello = peer, message
        self._peer_id = self._keys.node_id_of(peer.public_key)
        if peer.public_key == self._own.public_key:
            raise Unauthorized("the node dialled itself", hint="remove its own address from those to join")
        if peer.network != self._own.network:
            raise Unauthorized(f"this is network {self._own.network}, not {peer.network}")
        common = sorted(set(self._own.versions) & set(peer.versions), reverse=True)
        if not common:
            raise Unauthorized(
                f"no common version: here {self._own.versions}, there {peer.versions}", hint="upgrade the older node"
            )
        self._version = common[0]
        if self._admit is not None:
            self._admit(self._peer_id, peer)
        self._move(HandshakeEvent.GREETED)
        transcript = self._transcript(by_dialer=self._dialed)
        proof = [_PROOF, self._keys.sign(transcript), self._keys.prove_membership(transcript)]
        return [Send(_framed(_pack(proof)))]

    def _proved(self, signature: bytes, membership: bytes) -> list[HandshakeEffect]:
        assert self._peer is not None
        transcript = self._transcript(by_dialer=not self._dialed)
        if not self._keys.is_signed_by(self._peer.public_key, signature, transcript):
            raise Unauthorized(
                "the peer's signature does not fit this link", hint="is something between the two nodes?"
            )
        if not self._keys.is_member(transcript, membership):
            raise Unauthorized(
                f"the peer does not hold the token of network {self._own.network}",
                hint="`micro network token` on one node, MICRO_TOKEN on the other",
            )
        self._move(HandshakeEvent.PROVED)
        rest, self._rest = self._rest, b""
        return [Done(self._peer, self._peer_id, self._version, rest)]

    def _fail(self, error: MicroError) -> list[HandshakeEffect]:
        self._move(HandshakeEvent.BROKEN)
        self._rest = b""
        return [Send(_framed(_pack([_REFUSED, error.detail[:MAX_TEXT_CHARS]]))), Failed(error)]

    def _transcript(self, *, by_dialer: bool) -> bytes:
        hellos = (self._own_hello, self._peer_hello) if self._dialed else (self._peer_hello, self._own_hello)
        role = b"dialler" if by_dialer else b"acceptor"
        digest = hashlib.sha256()
        for part in (b"micro handshake v1", role, self._binding, *hellos):
            digest.update(struct.pack(">I", len(part)) + part)
        return digest.digest()

    def _move(self, event: HandshakeEvent) -> None:
        self.state = TRANSITIONS[self.state][event]


def _greeting_fields(own: Greeting, nonce: bytes) -> list[Any]:
    return [
        list(own.versions),
        own.public_key,
        nonce,
        own.network,
        own.name,
        own.site,
        list(own.addresses[:MAX_LIST]),
        own.incarnation,
        own.generation,
        list(own.capabilities[:MAX_LIST]),
    ]


def _read_greeting(fields: list[Any]) -> Greeting:
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
            return Greeting(
                public_key=key,
                network=network,
                name=_text(name),
                site=_text(site),
                addresses=_texts(addresses),
                incarnation=incarnation,
                generation=generation,
                capabilities=_texts(more[0]) if more else (),
                versions=tuple(version for version in versions[:MAX_LIST] if isinstance(version, int)),
            )
    raise Malformed("HELLO: fields missing or of a wrong type")


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or not value.isprintable():
        raise Malformed(f"HELLO: not a printable text of at most {MAX_TEXT_CHARS} characters")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_LIST:
        raise Malformed(f"HELLO: not a list of at most {MAX_LIST}")
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
