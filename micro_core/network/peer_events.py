"""The events and effects of `peers`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from micro_core.contract.resolver import Candidate

# ------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Resolved:
    """All resolvers have answered. The candidates are in the order of the resolvers."""

    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLinked:
    """A link to `peer` is up, or it has moved. `address` is the dialled address, or None for an accepted link."""

    peer: str
    name: str = ""
    site: str = ""
    address: str | None = None
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The last link to `peer` ended."""

    peer: str


@dataclass(frozen=True, slots=True)
class DialSucceeded:
    """The dial of an address ended: the node there is linked, by this dial or by other means."""

    address: str
    peer: str
    was_linked: bool
    """Whether the node was linked by other means: it dialled this node, or it was dialled at another address."""


@dataclass(frozen=True, slots=True)
class DialFailed:
    """The dial of an address ended: no link was made. The tunnel dials seeds again by itself, and no other address."""

    address: str
    reason: str
    is_permanent: bool = False
    """Whether another attempt cannot help soon: the peer belongs to another network, or no driver supports the address."""
    is_own: bool = False
    """Whether this node itself answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A probe ended: `peer` answered at `address`."""

    address: str
    peer: str
    name: str
    site: str
    rtt_s: float


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A probe ended: no node of this network answered at the address."""

    address: str
    reason: str
    is_permanent: bool = False
    """As in DialFailed."""
    is_own: bool = False
    """Whether this node itself answered."""


@dataclass(frozen=True, slots=True)
class Reachability:
    """The ids of the nodes that are in the graph or are origins of routes now."""

    nodes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A node according to its record in the graph."""

    id: str
    name: str
    site: str
    addresses: tuple[str, ...]
    neighbours: frozenset[str]
    """Ids of the nodes that it is linked to."""
    is_start: bool
    """Whether the node has started since its last record."""
    has_left: bool = False
    """Whether the record states that the node stops."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Records in the graph are new or have changed."""

    nodes: tuple[NodeSeen, ...]


@dataclass(frozen=True, slots=True)
class NodeLeft:
    """A node announced that it stops."""

    node: str


@dataclass(frozen=True, slots=True)
class LinkDeclined:
    """A peer announced that it gives up the link, and why."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The round-trip times of the links in seconds, by node id, without the delay in queues."""

    rtts_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Resumed:
    """This process did not run for a while, e.g. because the machine slept."""


PeerEvent = (
    Resolved
    | PeerLinked
    | PeerLost
    | DialSucceeded
    | DialFailed
    | Probed
    | ProbeFailed
    | Reachability
    | Seen
    | NodeLeft
    | LinkDeclined
    | Measured
    | Resumed
)


# ------------------------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class KeepLinked:
    """Dial this address, and again whenever the node there is not linked."""

    address: str


@dataclass(frozen=True, slots=True)
class Dial:
    """Dial this address once; answer with DialSucceeded or DialFailed."""

    address: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out which node answers at this address, and measure the round trip; answer with Probed or ProbeFailed."""

    address: str


@dataclass(frozen=True, slots=True)
class Unlink:
    """Send the reason to a node and give up the link. PeerLost follows when it carries no routes any more."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """Query the resolvers; answer with Resolved."""


PeerEffect = KeepLinked | Dial | Probe | Unlink | Resolve
