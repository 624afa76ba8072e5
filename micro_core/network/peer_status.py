"""Why a node is linked or not: the state of `Peers` for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.network.peer_table import Address, Attempt, KnownNode
from micro_core.network.peers import Peers

MAX_CANDIDATES = 256
"""Maximum number of entries in one list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideStatus:
    """The number of links inside the own site, or to other sites."""

    is_own_site: bool
    wanted: int
    open: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateStatus:
    """A node without a link, or an address whose node is unknown, and why there is no link."""

    node: str
    """Node id; empty if it is unknown."""
    name: str
    site: str
    addresses: tuple[str, ...]
    state: str
    """`dialling`, `probing`, `failing`, `waiting`, `closed by the node`, `not needed`, `no address` or `this node`."""
    why: str
    """The reason, as a sentence fragment; empty if there is none."""
    retry_s: float | None
    """Seconds until the next attempt; None if none is planned."""
    rtt_s: float | None
    """The last measured round-trip time in seconds; None if it was never measured."""
    is_reachable: bool
    """Whether there is a route to the node, or it is in the graph."""


def side_statuses(peers: Peers) -> list[SideStatus]:
    """Return the wanted links and the present ones: inside the own site, and to other sites."""
    return [SideStatus(is_own_site=side.is_own_site, wanted=side.wanted, open=side.open) for side in peers.sides()]


def candidate_statuses(peers: Peers, now: float) -> list[CandidateStatus]:
    """Return the nodes without a link, then the failing seeds and the addresses whose node is unknown."""
    nodes = sorted(peers.table.nodes.values(), key=lambda node: (node.unreachable_since is None, node.name, node.id))
    found = [_node_status(peers, node, now) for node in nodes if not node.is_linked]
    for address in sorted(peers.table.addresses.values(), key=lambda address: address.text):
        is_unknown = address.owner not in peers.table.nodes
        if is_unknown and (address.is_listed or address.is_seed):
            found.append(_address_status(address, now))
    return found[:MAX_CANDIDATES]


def _node_status(peers: Peers, node: KnownNode, now: float) -> CandidateStatus:
    state, why, retry_at = _state(peers, node, now)
    return CandidateStatus(
        node=node.id,
        name=node.name,
        site=node.site,
        addresses=tuple(address.text for address in sorted(node.addresses.values(), key=_recency)),
        state=state,
        why=why,
        retry_s=None if retry_at is None else max(0.0, retry_at - now),
        rtt_s=node.rtt_s,
        is_reachable=node.unreachable_since is None,
    )


def _state(peers: Peers, node: KnownNode, now: float) -> tuple[str, str, float | None]:
    """Return state, reason and time of the next attempt of a node without a link."""
    for address in node.addresses.values():
        if address.attempt is not None:
            return ("dialling" if address.attempt is Attempt.LINK else "probing", address.error, None)
    failing = [address for address in node.addresses.values() if address.failures]
    is_lost = node.unreachable_since is not None
    if node.declined and now < node.declined_until and not is_lost:
        return "closed by the node", node.declined, node.declined_until
    if not node.addresses:
        return "no address", "the node is known only by the links of others or by its own dial", None
    if failing and (is_lost or len(failing) == len(node.addresses)):
        worst = max(failing, key=lambda address: address.tried_at)
        return "failing", worst.error, min(address.retry_at for address in node.addresses.values())
    if now < node.dial_at:
        why = f"its last {node.flaps} links ended soon" if node.flaps else "its link ended a moment ago"
        return "waiting", why, node.dial_at
    if peers.options.is_static:
        return "not needed", "only the configured nodes are linked", None
    if is_lost:
        return "waiting", "the node is unreachable and is dialled next", now
    return "not needed", "there are enough links" if not _is_short(peers, node) else "another node is preferred", None


def _recency(address: Address) -> tuple[float, str]:
    return -address.tried_at, address.text


def _is_short(peers: Peers, node: KnownNode) -> bool:
    own, other = peers.sides()
    return bool((own if node.site == peers.site else other).missing)


def _address_status(address: Address, now: float) -> CandidateStatus:
    if address.is_own:
        state, why = "this node", ""
    elif address.attempt is not None:
        state, why = "dialling" if address.attempt is Attempt.LINK else "probing", address.error
    elif address.failures:
        state, why = "failing", address.error
    else:
        state, why = "waiting", "nothing was tried yet"
    is_planned = state in ("failing", "waiting") and not address.is_seed
    return CandidateStatus(
        node="",
        name="",
        site="",
        addresses=(address.text,),
        state=state,
        why=why,
        retry_s=max(0.0, address.retry_at - now) if is_planned else None,
        rtt_s=None,
        is_reachable=False,
    )
