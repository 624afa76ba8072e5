"""What enters the routing engine and what leaves it. Pure values, one sentence each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from micro_core.spec.table import Route, RouteKey

UNREACHABLE_US = 2**31 - 1
"""A metric that means no way: half an hour of microseconds, the sum stops here."""

Version = tuple[int, int]
"""(incarnation, sequence) of an origin: the later of two is the larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalInstance:
    """An instance on this site that provides a service (or wants a topic)."""

    address: str
    version: str = ""


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

    @property
    def at(self) -> Version:
        return (self.incarnation, self.sequence)


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
class Beat:
    """`origin` lives: renews the lease of all its routes that came the same way. Flooded once per number."""

    origin: str
    incarnation: int
    number: int


RoutingMessage = Advert | Ack | Solicit | Beat


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
    """A link to a router stands, or was replaced: both sides tell all they know."""

    peer: str
    cost_us: int


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
    """This node drains: it advertises nothing of its own any more."""


RoutingEvent = (
    LocalServices
    | InstanceUp
    | InstanceDown
    | NeighbourUp
    | NeighbourCost
    | NeighbourDown
    | MessageReceived
    | WithdrawAll
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
class Count:
    """Something was dropped or refused."""

    name: str
    amount: int = 1


Effect = PutRoute | DeleteRoute | SendMessage | Count
