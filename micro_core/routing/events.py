"""What enters the routing engine and what leaves it. Pure values, one sentence each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from micro_core.contract.table import Route, RouteKey

UNREACHABLE_US = 2**31 - 1
"""A metric that means no way: half an hour of microseconds, the sum stops here."""

Version = tuple[int, int]
"""(incarnation, sequence) of an origin: the later of two is the larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalInstance:
    """An instance on this site that provides a service (or wants a topic)."""

    address: str
    version: str = ""
    load_us: int = 0
    """Waiting that a call may expect there, in quantised microseconds."""


# --------------------------------------------------------------- messages between routers


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """`origin` provides `service`; `path` lists the routers from the origin to the sender, `metric_us` their sum.

    `capacity` is the logarithm of the number of instances, so that one of three being restarted is no news.
    """

    origin: str
    incarnation: int
    sequence: int
    service: str
    versions: tuple[str, ...]
    capacity: int
    site: str
    network: str
    metric_us: int
    path: tuple[str, ...]
    load_us: int = 0
    """The part of the metric with which the origin began: how long calls wait at its instances."""

    @property
    def at(self) -> Version:
        return (self.incarnation, self.sequence)

    _checksum: int = field(default=-1, init=False, compare=False, repr=False)

    def checksum(self) -> int:
        """64 bits of the entry's whole meaning, the same in every process. Made once, though told to many."""
        if self._checksum < 0:
            object.__setattr__(self, "_checksum", self._summed())
        return self._checksum

    def _summed(self) -> int:
        parts = (
            f"{self.origin} {self.incarnation} {self.sequence} {self.service} {self.capacity} {self.metric_us} {self.load_us}",
            *self.versions,
            self.site,
            self.network,
            *self.path,
        )
        return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """The sender has no way to `service` at `origin` any more. `is_final` says that the origin itself withdrew it."""

    origin: str
    incarnation: int
    sequence: int
    service: str
    is_final: bool = False

    @property
    def at(self) -> Version:
        return (self.incarnation, self.sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """Changes, numbered per neighbour. A full table `begins` with one and `ends` with one advert, perhaps the same."""

    number: int
    entries: tuple[Announce | Withdraw, ...]
    begins: bool = False
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Ack:
    """All adverts up to `number` were applied."""

    number: int


@dataclass(frozen=True, slots=True)
class Solicit:
    """Please send the full table."""


@dataclass(frozen=True, slots=True)
class Digest:
    """What the receiver should hold of the sender once advert `number` is applied: how many entries, and their sum.

    Renews the lease of all of them where it is right; where it is not, the receiver asks for the full table.
    """

    number: int
    count: int
    checksum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """Please have `origin` tell `service` anew, later than (incarnation, sequence): no way left is known to be free
    of loops (RFC 8966 section 3.8.1). Passed on towards the origin by those who hold nothing later."""

    origin: str
    service: str
    incarnation: int
    sequence: int
    hops_left: int

    @property
    def at(self) -> Version:
        return (self.incarnation, self.sequence)


RoutingMessage = Advert | Ack | Solicit | Digest | SequenceRequest


# --------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class LocalServices:
    """All that the registry holds now: service to (instance id to instance). Replaces what was known."""

    services: Mapping[str, Mapping[str, LocalInstance]]


@dataclass(frozen=True, slots=True)
class InstanceUp:
    """An instance came, or changed its address or version."""

    service: str
    instance_id: str
    instance: LocalInstance


@dataclass(frozen=True, slots=True)
class InstanceDown:
    """An instance went."""

    service: str
    instance_id: str


@dataclass(frozen=True, slots=True)
class NeighbourUp:
    """A link to a router stands, or was replaced: both sides tell all they know. Policies go by its name and site."""

    peer: str
    cost_us: int
    name: str = ""
    site: str = ""


@dataclass(frozen=True, slots=True)
class NeighbourCost:
    """The link was measured."""

    peer: str
    cost_us: int


@dataclass(frozen=True, slots=True)
class NeighbourDown:
    """The link is gone, and every route through it."""

    peer: str


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A neighbour said something."""

    peer: str
    message: RoutingMessage


@dataclass(frozen=True, slots=True)
class WithdrawAll:
    """This node drains: it advertises nothing any more, and calls find other ways before it is gone."""


@dataclass(frozen=True, slots=True)
class Release:
    """An operator lets out a service of this site that is held back for flapping."""

    service: str


RoutingEvent = (
    LocalServices
    | InstanceUp
    | InstanceDown
    | NeighbourUp
    | NeighbourCost
    | NeighbourDown
    | MessageReceived
    | WithdrawAll
    | Release
)


# -------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class PutRoute:
    """Create or replace this route in the table."""

    route: Route


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    """Remove this route from the table."""

    key: RouteKey


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Tell a neighbour."""

    peer: str
    message: RoutingMessage


@dataclass(frozen=True, slots=True)
class ToldEverything:
    """A neighbour's full table has come to its end."""

    peer: str


@dataclass(frozen=True, slots=True)
class Count:
    """Something was dropped or refused."""

    name: str
    amount: int = 1


Effect = PutRoute | DeleteRoute | SendMessage | ToldEverything | Count
