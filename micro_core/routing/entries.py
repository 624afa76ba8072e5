"""The entries of an advert: routes to origins, and changes of the lists of what origins offer. Pure values.

Each entry is encoded once, however many neighbours receive it, and the digests of both sides sum up the hashes of the encoded
entries. Sums of 64-bit hashes can be updated when one entry changes.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any, NamedTuple

import msgpack

from micro_core.contract.table import Offer

_packer = msgpack.Packer(use_bin_type=True)
"""`msgpack.packb` creates a packer for each call, which takes more time than the call itself."""

CHECKSUM_MODULUS = 2**64

Seqno = tuple[int, int]
"""Sequence number of an origin: (incarnation, sequence). The larger of two is the newer one.

RFC 8966 uses a 16-bit number that wraps around. The incarnation makes this one increase across restarts, too.
"""

ANNOUNCE, WITHDRAW, OFFERS = 0, 1, 2
"""The first element of an encoded entry."""


def pack(value: object) -> bytes:
    """Encode a value as msgpack."""
    packed: bytes = _packer.pack(value)
    return packed


class OriginAnnounce:
    """The announcement of a route to an origin (an update in RFC 8966). Immutable.

    Args:
        origin: Node id of the origin.
        seqno: Sequence number: incarnation, which increases with every start of the origin, and sequence, which increases
            whenever a router requests it.
        site: Site of the origin.
        network: Network of the origin.
        metric_us: Cost of `path` in microseconds.
        path: Node ids from the origin to the sender.
        is_partial: The receiver can reach only those services of the origin that the sender has advertised to it.
    """

    __slots__ = (
        "_checksum",
        "_packed",
        "_partial",
        "is_partial",
        "metric_us",
        "network",
        "origin",
        "path",
        "seqno",
        "site",
    )

    def __init__(
        self,
        *,
        origin: str,
        seqno: Seqno,
        site: str,
        network: str,
        metric_us: int,
        path: tuple[str, ...],
        is_partial: bool = False,
        packed: bytes | None = None,
    ) -> None:
        self.origin = origin
        self.seqno = seqno
        self.site = site
        self.network = network
        self.metric_us = metric_us
        self.path = path
        self.is_partial = is_partial
        self._packed = packed
        self._checksum = -1
        self._partial: OriginAnnounce | None = None

    @property
    def incarnation(self) -> int:
        """The incarnation of the origin."""
        return self.seqno[0]

    @property
    def sequence(self) -> int:
        """The sequence number within the incarnation."""
        return self.seqno[1]

    def fields(self) -> list[Any]:
        """Return the values that are encoded."""
        incarnation, sequence = self.seqno
        return [
            ANNOUNCE,
            self.origin,
            incarnation,
            sequence,
            self.site,
            self.network,
            self.metric_us,
            self.path,
            self.is_partial,
        ]

    def packed(self) -> bytes:
        """Return the encoded entry."""
        if self._packed is None:
            self._packed = pack(self.fields())
        return self._packed

    def release(self) -> None:
        """Release the memory of the encoded entry. It is encoded again when it is needed."""
        if self._checksum >= 0:
            self._packed = None

    def checksum(self) -> int:
        """Return a 64-bit hash of all fields, equal in every process."""
        if self._checksum < 0:
            self._checksum = int.from_bytes(hashlib.blake2b(self.packed(), digest_size=8).digest(), "big")
        return self._checksum

    def as_partial(self) -> OriginAnnounce:
        """Return the same announcement with `is_partial`. It is created once."""
        if self.is_partial:
            return self
        if self._partial is None:
            self._partial = OriginAnnounce(
                origin=self.origin,
                seqno=self.seqno,
                site=self.site,
                network=self.network,
                metric_us=self.metric_us,
                path=self.path,
                is_partial=True,
            )
        return self._partial

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OriginAnnounce) and (self is other or self.fields() == other.fields())

    def __hash__(self) -> int:
        return hash((self.origin, self.seqno, self.metric_us, self.path))

    def __repr__(self) -> str:
        return f"OriginAnnounce{self.fields()[1:]!r}"


class OriginWithdraw(NamedTuple):
    """The withdrawal of a route (a retraction in RFC 8966): the sender has no route to the origin any more.

    `is_final` is True if the origin itself left the network. Otherwise, other neighbours may still have a route. `version` is
    that of the offers of this incarnation that the sender has, 0 for none: the receiver informs it from now on if it has a route.
    """

    origin: str
    incarnation: int
    sequence: int
    is_final: bool = False
    version: int = 0

    @property
    def seqno(self) -> Seqno:
        """The sequence number of the withdrawal."""
        return (self.incarnation, self.sequence)

    def packed(self) -> bytes:
        """Return the encoded entry."""
        return pack([WITHDRAW, *self])


class OfferEntry(NamedTuple):
    """An offer, and the version of the list at which it changed last."""

    offer: Offer
    version: int


class RemovedOffer(NamedTuple):
    """A service that was removed from the list at this version. Version 0: only the receiver must not use it any more."""

    service: str
    version: int


class _OfferChanges(NamedTuple):
    origin: str
    incarnation: int
    base: int
    version: int
    changed: tuple[OfferEntry, ...] = ()
    removed: tuple[RemovedOffer, ...] = ()
    is_end: bool = True


class OfferChanges(_OfferChanges):
    """The changes of the list of an origin from version `base` to `version`.

    Base 0 begins the whole list, which may be continued in further entries: `is_end` is True in the last of them.
    """

    _packed: bytes | None = None

    def packed(self) -> bytes:
        """Return the encoded entry. It is encoded once."""
        if self._packed is None:
            self._packed = self._encode()
        return self._packed

    def _encode(self) -> bytes:
        return pack(
            [
                OFFERS,
                self.origin,
                self.incarnation,
                self.base,
                self.version,
                [(o.service, o.versions, o.capacity, o.load_us, version) for o, version in self.changed],
                self.removed,
                self.is_end,
            ]
        )


Entry = OriginAnnounce | OriginWithdraw | OfferChanges


def list_checksum(origin: str, incarnation: int, version: int) -> int:
    """Return a 64-bit hash of the version of a list, for digests."""
    mixed = _hash_of_id(origin) ^ (incarnation * 0x9E3779B97F4A7C15) ^ (version * 0xC2B2AE3D27D4EB4F)
    mixed &= CHECKSUM_MODULUS - 1
    return ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & (CHECKSUM_MODULUS - 1)


@functools.lru_cache(16_384)
def _hash_of_id(node_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(node_id.encode(), digest_size=8).digest(), "big")
