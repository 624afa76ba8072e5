"""The nodes that a node knows, and the addresses at which they can be dialled.

A node is known by its id. An address is only a way to reach a node, and one node usually has several: `10.4.0.2:8085` from
DNS, `quic://10.4.0.2:8085` from its record in the graph. Which node answers at an address is learned by dialling or probing
it. Until then the owner of an address is unknown, or stated by a record or by a resolver; a statement is never trusted more
than an answer, because two sites can use the same private addresses.

Pure: callers pass `now`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from micro_core.contract.resolver import Candidate

MAX_CANDIDATES = 256
"""Maximum number of candidates; the rest of a longer answer of the resolvers is ignored."""

MAX_NODES = 512
"""Maximum number of known nodes. Nodes without a link that were alive the longest time ago are dropped first."""

MAX_ADDRESSES_PER_NODE = 6
"""Maximum number of addresses that the record of one node may add."""

FORGET_S = 3_600.0
"""Seconds after which a node that does not answer and that no resolver lists is forgotten."""

NEVER = -math.inf


class Attempt(enum.Enum):
    """The kind of attempt that is in progress at an address."""

    PROBE = "probe"
    """A round trip is measured. No link is made."""
    LINK = "link"
    """A link is dialled."""


@dataclass(slots=True)
class Address:
    """One address, with the outcome of the attempts there."""

    text: str
    node: str = ""
    """Id of the node that answered here the last time; empty if none ever did."""
    stated_by: str = ""
    """Id of the node whose record or resolver entry names this address."""
    is_listed: bool = False
    """Whether the last answer of the resolvers contains the address."""
    is_seed: bool = False
    """Whether the user configured the address. The tunnel keeps it linked by itself."""
    is_own: bool = False
    """Whether the address leads to this node itself."""
    is_refused: bool = False
    """Whether the last attempt failed in a way that another one soon cannot change, e.g. because of another network."""
    priority: int = 0
    failures: int = 0
    error: str = ""
    """Why the last attempt failed; empty after a success."""
    tried_at: float = NEVER
    retry_at: float = 0.0
    attempt: Attempt | None = None

    @property
    def owner(self) -> str:
        """Id of the node that this address leads to, as far as known; empty otherwise."""
        return self.node or self.stated_by

    @property
    def is_usable(self) -> bool:
        """Whether the address may be dialled or probed, at `retry_at` at the earliest."""
        return self.attempt is None and not self.is_own and not self.is_seed


@dataclass(slots=True)
class KnownLink:
    """The link to a node."""

    address: str | None
    """The address that this node dialled, or None for an accepted link."""
    up_since: float
    is_closing: bool = False
    """Whether one of the two nodes gives up the link."""


@dataclass(slots=True)
class KnownNode:
    """One node other than this one."""

    id: str
    name: str = ""
    site: str = ""
    link: KnownLink | None = None
    rtt_s: float | None = None
    """The last measured round-trip time in seconds, by a probe or on a link."""
    measured_at: float = NEVER
    alive_at: float = NEVER
    """When the node was last linked, reachable, or answered a probe."""
    answered_at: float = NEVER
    """When the node last answered a probe, or when its link ended: dialling it makes sense for a few seconds."""
    unreachable_since: float | None = None
    """Since when there is neither a link nor a route to the node; None while there is."""
    dial_at: float = 0.0
    """No link is dialled before this time."""
    reconnect_at: float = 0.0
    """No link is dialled before this time only because the node is unreachable."""
    flaps: int = 0
    """Number of links in a row that ended soon."""
    declined: str = ""
    """Why the node closed the last link, as it stated; empty if it did not."""
    declined_until: float = 0.0
    neighbours: frozenset[str] = frozenset()
    """Ids of the nodes that this node is linked to, according to its record; empty if unknown."""
    has_left: bool = False
    """Whether the node announced that it stops."""
    is_random: bool = False
    """Whether the link was chosen at random, to keep paths in a large network short. It is not exchanged for a nearer one."""
    addresses: dict[str, Address] = field(default_factory=dict)

    @property
    def is_linked(self) -> bool:
        """Whether there is a link to the node."""
        return self.link is not None

    @property
    def is_in_progress(self) -> bool:
        """Whether an attempt is in progress at one of the addresses."""
        return any(address.attempt is not None for address in self.addresses.values())

    def usable(self) -> list[Address]:
        """Return the addresses at which this node may be dialled, the most promising first."""
        found = [address for address in self.addresses.values() if address.is_usable]
        return sorted(found, key=self._rank)

    def _rank(self, address: Address) -> tuple[int, bool, int, float, str]:
        return address.failures, address.node != self.id, address.priority, address.tried_at, address.text

    def ready_addresses(self, now: float) -> list[Address]:
        """Return the usable addresses that may be dialled now, the most promising first."""
        return [address for address in self.usable() if address.retry_at <= now]

    def next_address(self) -> Address | None:
        """Return the address to try next, at its `retry_at`, or None if there is none."""
        return min(self.usable(), key=lambda address: address.retry_at, default=None)


class PeerTable:
    """All known nodes and addresses. `own_id` is the id of this node, which is never an entry."""

    def __init__(self, own_id: str, seeds: Iterable[str] = ()) -> None:
        self.own_id = own_id
        self.nodes: dict[str, KnownNode] = {}
        self.addresses: dict[str, Address] = {}
        self.dropped = 0
        """Number of nodes that were dropped or refused because the table was full."""
        self._in_progress: dict[str, Address] = {}
        for seed in seeds:
            self.addresses[seed] = Address(seed, is_seed=True)

    # ----------------------------------------------------------------- attempts

    def start_attempt(self, address: Address, kind: Attempt, now: float) -> None:
        """Note that an attempt at an address is in progress."""
        address.attempt, address.tried_at = kind, now
        self._in_progress[address.text] = address

    def end_attempt(self, text: str) -> None:
        """Note that the attempt at an address has ended, if there was one."""
        address = self._in_progress.pop(text, None)
        if address is not None:
            address.attempt = None

    def attempts(self, kind: Attempt | None = None) -> list[Address]:
        """Return the addresses with an attempt in progress, of one kind or of any."""
        return [address for address in self._in_progress.values() if kind in (None, address.attempt)]

    # ---------------------------------------------------------------- addresses

    def list_candidates(self, candidates: Sequence[Candidate]) -> None:
        """Replace the addresses that the resolvers list."""
        for address in self.addresses.values():
            address.is_listed = False
        for candidate in candidates[:MAX_CANDIDATES]:
            address = self.addresses.setdefault(candidate.address, Address(candidate.address))
            address.is_listed, address.priority = True, candidate.priority
            if candidate.node_id and not address.owner:
                self.add_stated(candidate.node_id, (candidate.address,))
        for address in [entry for entry in self.addresses.values() if not self._is_needed(entry)]:
            del self.addresses[address.text]

    def add_stated(self, node_id: str, texts: Sequence[str]) -> None:
        """Note the addresses that a record or a resolver names for a node. Answers of other nodes there take precedence."""
        if node_id == self.own_id:
            for text in texts:
                self.addresses.setdefault(text, Address(text)).is_own = True
            return
        node = self.node(node_id)
        if node is None:
            return
        for address in [entry for entry in node.addresses.values() if entry.stated_by == node_id]:
            if address.text not in texts and not address.node and not address.is_listed and address.attempt is None:
                node.addresses.pop(address.text)
                self.addresses.pop(address.text, None)
        for text in texts[:MAX_ADDRESSES_PER_NODE]:
            address = self.addresses.setdefault(text, Address(text))
            if not address.owner and not address.is_own:
                address.stated_by = node_id
                node.addresses[text] = address

    def learn(self, text: str, node_id: str) -> KnownNode | None:
        """Note that a node answered at an address. Return the node, or None if the table is full or it is this node."""
        address = self.addresses.setdefault(text, Address(text))
        if address.owner and address.owner != node_id:
            previous = self.nodes.get(address.owner)
            if previous is not None:
                previous.addresses.pop(text, None)
        address.failures, address.error, address.is_refused = 0, "", False
        node = self.node(node_id)
        if node is not None:
            address.node = node_id
            node.addresses[text] = address
        return node

    def unidentified(self) -> list[Address]:
        """Return the addresses that the resolvers list and whose node is unknown."""
        listed = [entry for entry in self.addresses.values() if entry.is_listed and entry.owner not in self.nodes]
        return [entry for entry in listed if not entry.is_own and not entry.is_seed]

    def _is_needed(self, address: Address) -> bool:
        return (
            address.is_listed
            or address.is_seed
            or address.is_own
            or address.attempt is not None
            or address.owner in self.nodes
        )

    # -------------------------------------------------------------------- nodes

    def node(self, node_id: str) -> KnownNode | None:
        """Return the entry of a node, which is created if it is missing. Return None for this node, or if there is no space."""
        found = self.nodes.get(node_id)
        if found is None and node_id != self.own_id:
            if len(self.nodes) >= MAX_NODES and not self._drop_oldest():
                self.dropped += 1
                return None
            found = self.nodes[node_id] = KnownNode(node_id)
            # The node may have been forgotten, e.g. because it stopped; the listed addresses remember it.
            found.addresses = {entry.text: entry for entry in self.addresses.values() if entry.node == node_id}
        return found

    def linked(self) -> list[KnownNode]:
        """Return the linked nodes, without those whose link is being closed."""
        return [node for node in self.nodes.values() if node.link is not None and not node.link.is_closing]

    def forget(self, node_id: str) -> None:
        """Remove a node. Its addresses stay while a resolver lists them."""
        node = self.nodes.pop(node_id, None)
        if node is None:
            return
        for address in node.addresses.values():
            address.stated_by = ""
            if not self._is_needed(address):
                self.addresses.pop(address.text, None)

    def expire(self, now: float) -> None:
        """Forget the nodes that have not answered for long and that no resolver lists."""
        for node in [*self.nodes.values()]:
            is_listed = any(address.is_listed or address.is_seed for address in node.addresses.values())
            if node.unreachable_since is None or node.is_linked or node.is_in_progress or is_listed:
                continue
            if now - max(node.alive_at, node.unreachable_since) > FORGET_S:
                self.forget(node.id)

    def _drop_oldest(self) -> bool:
        idle = [node for node in self.nodes.values() if not node.is_linked and not node.is_in_progress]
        if not idle:
            return False
        self.dropped += 1
        self.forget(min(idle, key=lambda node: (node.unreachable_since is None, node.alive_at, node.id)).id)
        return True
