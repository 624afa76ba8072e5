"""The inputs (events), outputs (effects) and messages of the routing engine. Pure values.

Those that are created for each message or each route are named tuples: they are created in half the time of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from micro_core.contract.table import Offer, OriginRoute, OriginRouteKey, Route, RouteKey
from micro_core.routing.entries import Entry, Seqno

UNREACHABLE_US = 2**31 - 1
"""The infinite metric, about 36 minutes. Sums of costs stop here, and routes with this metric are not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalInstance:
    """An instance on this site that provides a service, or that subscribes to a topic."""

    address: str
    version: str = ""
    load_us: int = 0
    """Expected waiting time of a call at this instance, in quantised microseconds."""


# --------------------------------------------------------------- messages between routers


class Advert(NamedTuple):
    """A numbered list of entries for one neighbour (entries.py).

    A full table is sent as one or several adverts. `begins` is True in the first of them, `ends` in the last.
    """

    number: int
    entries: tuple[Entry, ...]
    acknowledged: int = 0
    """The sender has applied all adverts of the receiver up to this number."""
    begins: bool = False
    ends: bool = False


class Ack(NamedTuple):
    """The acknowledgement that all adverts up to `number` were applied. Adverts and digests contain it as well."""

    number: int


@dataclass(frozen=True, slots=True)
class Solicit:
    """The request to send the full table (a wildcard route request in RFC 8966)."""


@dataclass(frozen=True, slots=True)
class Digest:
    """The number of all origin routes that the sender has advertised to the receiver, and a checksum that includes the lists.

    A digest that matches renews the lease of these routes. After a mismatch, the receiver requests the full table.
    """

    number: int
    """Number of the last advert that is included."""
    count: int
    checksum: int
    acknowledged: int = 0


class SeqnoRequest(NamedTuple):
    """The request that `origin` advertises itself with a newer sequence number (RFC 8966 section 3.8.1.2).

    Routers that have no newer route forward it towards the origin.
    """

    origin: str
    incarnation: int
    sequence: int
    hops_left: int

    @property
    def seqno(self) -> Seqno:
        """The sequence number that the requested one must exceed."""
        return (self.incarnation, self.sequence)


@dataclass(frozen=True, slots=True)
class SeqnoRequests:
    """Requests for several origins."""

    requests: tuple[SeqnoRequest, ...]


RoutingMessage = Advert | Ack | Solicit | Digest | SeqnoRequests


# --------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class LocalServices:
    """The complete content of the registry: service to (instance id to instance). Replaces the previous content."""

    services: Mapping[str, Mapping[str, LocalInstance]]


@dataclass(frozen=True, slots=True)
class InstanceUp:
    """An instance was registered, or its address, version or load changed."""

    service: str
    instance_id: str
    instance: LocalInstance


@dataclass(frozen=True, slots=True)
class InstanceDown:
    """An instance was removed from the registry."""

    service: str
    instance_id: str


@dataclass(frozen=True, slots=True)
class NeighbourUp:
    """A link to a router was opened or replaced. Both routers now send their full table.

    `cost_us` is the cost of the link. `name` and `site` of the neighbour select the policy.
    """

    peer: str
    cost_us: int
    name: str = ""
    site: str = ""


@dataclass(frozen=True, slots=True)
class NeighbourCost:
    """A new measurement of the cost of the link to a neighbour."""

    peer: str
    cost_us: int


@dataclass(frozen=True, slots=True)
class NeighbourSuspect:
    """A neighbour does not answer, or something has arrived from it again. Its routes are kept, and others are prepared.

    If one of the two nodes gives up the link (`is_closing`), it also gets the cost of a damped link, so that all routers
    change to other routes before it ends.
    """

    peer: str
    is_suspect: bool
    is_closing: bool = False


@dataclass(frozen=True, slots=True)
class NeighbourDown:
    """The link to a neighbour was closed or lost. All routes through it are removed.

    `is_graceful` is True if it was closed on purpose. Other losses damp the link (link_damping.py).
    """

    peer: str
    is_graceful: bool = False


class MessageReceived(NamedTuple):
    """A neighbour sent a message."""

    peer: str
    message: RoutingMessage


@dataclass(frozen=True, slots=True)
class Resumed:
    """This process was suspended, and continues as a later incarnation. NeighbourDown follows for every link."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class WithdrawAll:
    """This node is draining: withdraw all advertised routes, so that calls use other routes before the node stops."""


@dataclass(frozen=True, slots=True)
class ReuseService:
    """An operator ends the suppression of a flapping service of this site."""

    service: str


RoutingEvent = (
    LocalServices
    | InstanceUp
    | InstanceDown
    | NeighbourUp
    | NeighbourCost
    | NeighbourSuspect
    | NeighbourDown
    | MessageReceived
    | Resumed
    | WithdrawAll
    | ReuseService
)


# -------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class PutRoute:
    """Create or replace this route to an instance of this site in the table."""

    route: Route


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    """Delete this route to an instance of this site from the table."""

    key: RouteKey


class PutOriginRoute(NamedTuple):
    """Create or replace this origin route in the table."""

    route: OriginRoute


@dataclass(frozen=True, slots=True)
class DeleteOriginRoute:
    """Delete this origin route from the table."""

    key: OriginRouteKey


@dataclass(frozen=True, slots=True)
class ChangeOffers:
    """Change the offers of an origin in the table, see `Table.change_offers`."""

    origin: str
    changed: tuple[Offer, ...] = ()
    removed: tuple[str, ...] = ()
    is_complete: bool = False


class SendMessage(NamedTuple):
    """Send this message to a neighbour."""

    peer: str
    message: RoutingMessage


@dataclass(frozen=True, slots=True)
class FullTableReceived:
    """The last advert of a neighbour's full table was applied."""

    peer: str


class Count(NamedTuple):
    """Add `amount` to the counter `name`."""

    name: str
    amount: int = 1


Effect = (
    PutRoute | DeleteRoute | PutOriginRoute | DeleteOriginRoute | ChangeOffers | SendMessage | FullTableReceived | Count
)
