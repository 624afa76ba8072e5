"""Many `Peers` in one simulated world: dials, probes, links, partitions and reachability on virtual time.

The world carries out the effects as the tunnel does: one link per pair of nodes, simultaneous dials end in one link, and
every attempt ends in one event.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from micro_core.contract import Candidate
from micro_core.network import peer_events as events
from micro_core.network.link_targets import PeerOptions
from micro_core.network.peer_plan import MAX_DIALS, MAX_PROBES
from micro_core.network.peers import Peers

DETECTION_S = 3.0
"""Time until a cut link is noticed."""

ROUTES_S = 0.4
"""Time until a change of the links is seen as a change of the reachability."""

DIAL_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 4.0


@dataclass
class SimNode:
    """One node of the world."""

    name: str
    site: str
    peers: Peers
    links: dict[str, str | None] = field(default_factory=dict)
    """Peer to the address that this node dialled, or None."""
    in_progress: dict[str, str] = field(default_factory=dict)
    """Address to `dial` or `probe`."""
    answer: list[Candidate] = field(default_factory=list)
    is_alive: bool = False
    dials: int = 0
    probes: int = 0
    links_made: int = 0
    resolved: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


class World:
    """Nodes, addresses, and who can reach whom."""

    def __init__(self, seed: int, options: PeerOptions | None = None) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.options = options or PeerOptions()
        self.nodes: dict[str, SimNode] = {}
        self.owners: dict[str, str] = {}
        """Address to the node that answers there."""
        self.cut: set[tuple[str, str]] = set()
        self.delays: dict[frozenset[str], float] = {}
        self.spelling: Callable[[str], str] = lambda name: f"{name}:8085"
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._woken_at: dict[str, float] = {}

    # ------------------------------------------------------------------- set up

    def add(self, name: str, site: str, *seeds: str, options: PeerOptions | None = None) -> SimNode:
        """Add a node that answers at three spellings of its address."""
        peers = Peers(
            node_id=name,
            site=site,
            seeds=seeds,
            options=options or self.options,
            random=random.Random(self.random.random()),
        )
        node = self.nodes[name] = SimNode(name, site, peers)
        for address in (f"{name}:8085", f"quic://{name}:8085", f"quic://{name}:8085|tls://{name}:8085"):
            self.owners[address] = name
        return node

    def start(self, *names: str, spread_s: float = 0.1) -> None:
        """Start nodes, all or the named ones, at about the same time."""
        for name in names or [*self.nodes]:
            self.at(self.random.uniform(0.0, spread_s), lambda node=self.nodes[name]: self._start(node))  # type: ignore[misc]

    def list_all(self, extra: Iterable[str] = (), known: Callable[[str, str], bool] = lambda _, __: True) -> None:
        """Let the resolver of each node return all nodes that it knows, and `extra` addresses."""
        for node in self.nodes.values():
            listed = [self.spelling(name) for name in self.nodes if known(node.name, name)]
            node.answer = [Candidate(address=address) for address in (*listed, *extra)]

    def rtt_s(self, one: str, other: str) -> float:
        """Return the round-trip time between two nodes."""
        sites = frozenset((self.nodes[one].site, self.nodes[other].site))
        return self.delays.get(sites, 0.002 if len(sites) == 1 else 0.05)

    # --------------------------------------------------------------------- faults

    def partition(self, group: Iterable[str]) -> None:
        """Cut a group of nodes off from the others. Links between them end after the detection time."""
        inside = set(group)
        for one, other in itertools.combinations(self.nodes, 2):
            if (one in inside) is not (other in inside):
                self.cut |= {(one, other), (other, one)}
        self.at(DETECTION_S, self._drop_cut_links)

    def heal(self) -> None:
        """Undo all partitions."""
        self.cut.clear()

    def kill(self, name: str) -> None:
        """Stop a node without a message."""
        self.nodes[name].is_alive = False
        self.at(DETECTION_S, self._drop_cut_links)

    def break_link(self, one: str, other: str) -> None:
        """End the link between two nodes."""
        if other in self.nodes[one].links:
            for near, far in ((one, other), (other, one)):
                self.nodes[near].links.pop(far, None)
            self._links_changed()
            for near, far in ((one, other), (other, one)):
                self.handle(self.nodes[near], events.PeerLost(far))

    # ----------------------------------------------------------------------- time

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` after `delay_s`."""
        heapq.heappush(self._queue, (self.now + delay_s, next(self._numbers), action))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let time pass, at most until a condition holds. Return the time this took."""
        started_at = self.now
        while self._queue and self._queue[0][0] <= started_at + seconds:
            self.now, _, action = heapq.heappop(self._queue)
            action()
            if until():
                return self.now - started_at
        self.now = started_at + seconds
        return seconds

    # ---------------------------------------------------------------------- views

    def alive(self) -> list[SimNode]:
        """Return the running nodes."""
        return [node for node in self.nodes.values() if node.is_alive]

    def component(self, name: str) -> set[str]:
        """Return the nodes that are connected to a node by links that work."""
        found, queue = {name}, deque([name])
        while queue:
            here = queue.popleft()
            for peer in self.nodes[here].links:
                if peer not in found and self._can_reach(here, peer):
                    found.add(peer)
                    queue.append(peer)
        return found

    def is_connected(self) -> bool:
        """Return whether all running nodes are one component."""
        alive = {node.name for node in self.alive()}
        return not alive or self.component(next(iter(alive))) & alive == alive

    def links_made(self) -> int:
        """Return the number of links made so far."""
        return sum(node.links_made for node in self.nodes.values())

    def open(self, name: str) -> tuple[int, int]:
        """Return the number of links inside the site and to other sites."""
        node = self.nodes[name]
        inside = sum(1 for peer in node.links if self.nodes[peer].site == node.site)
        return inside, len(node.links) - inside

    # -------------------------------------------------------------------- effects

    def handle(self, node: SimNode, event: events.PeerEvent) -> None:
        """Pass an event to a node and carry out the effects."""
        if node.is_alive:
            self._carry_out(node, node.peers.handle(event, self.now))

    def _start(self, node: SimNode) -> None:
        node.is_alive = True
        self._carry_out(node, node.peers.start(self.now))

    def _carry_out(self, node: SimNode, effects: list[events.PeerEffect]) -> None:
        for effect in effects:
            match effect:
                case events.KeepLinked(address):
                    self._keep(node, address)
                case events.Dial(address):
                    assert address not in node.in_progress, "two attempts at one address"
                    node.in_progress[address] = "dial"
                    node.dials += 1
                    self._dial(node, address)
                case events.Probe(address):
                    assert address not in node.in_progress, "two attempts at one address"
                    node.in_progress[address] = "probe"
                    node.probes += 1
                    self._probe(node, address)
                case events.Unlink(peer, reason):
                    self.handle(self.nodes[peer], events.LinkDeclined(node.name, reason))
                    self.at(0.0, lambda peer=peer: self.break_link(node.name, peer))  # type: ignore[misc]
                case events.Resolve():
                    node.resolved += 1
                    self.at(0.02, lambda: self.handle(node, events.Resolved(node.answer)))
        kinds = Counter(node.in_progress.values())
        assert kinds["dial"] <= MAX_DIALS
        assert kinds["probe"] <= MAX_PROBES
        wake_at = node.peers.wake_at
        assert wake_at is not None
        if self._woken_at.get(node.name) != wake_at:
            self._woken_at[node.name] = wake_at
            self.at(max(0.0, wake_at - self.now), lambda: self._wake(node, wake_at))

    def _wake(self, node: SimNode, wake_at: float) -> None:
        if node.is_alive and self._woken_at.get(node.name) == wake_at:
            self._woken_at[node.name] = -1.0
            self._carry_out(node, node.peers.wake(self.now))

    def _can_reach(self, one: str, other: str) -> bool:
        is_alive = self.nodes[one].is_alive and self.nodes[other].is_alive
        return is_alive and (one, other) not in self.cut and (other, one) not in self.cut

    def _attempt(
        self, node: SimNode, address: str, round_trips: float, timeout_s: float, done: Callable[[str], None]
    ) -> None:
        """Call `done(peer)` when the node at an address answers, or `done("")` when none does."""
        owner = self.owners.get(address, "")
        if owner == node.name:
            self.at(0.001, lambda: done(owner))
        elif owner and self._can_reach(node.name, owner):
            self.at(round_trips * self.rtt_s(node.name, owner), lambda: done(owner))
        else:
            self.at(timeout_s, lambda: done(""))

    def _probe(self, node: SimNode, address: str) -> None:
        def done(peer: str) -> None:
            if node.in_progress.pop(address, "") != "probe":
                return
            node.outcomes["probe"] += 1
            if peer == node.name:
                self.handle(node, events.ProbeFailed(address, "own address", is_permanent=True, is_own=True))
            elif peer:
                far = self.nodes[peer]
                rtt_s = self.rtt_s(node.name, peer)
                self.handle(node, events.Probed(address=address, peer=peer, name=peer, site=far.site, rtt_s=rtt_s))
            else:
                self.handle(node, events.ProbeFailed(address, "no answer"))

        self._attempt(node, address, 2.0, PROBE_TIMEOUT_S, done)

    def _dial(self, node: SimNode, address: str) -> None:
        def done(peer: str) -> None:
            if node.in_progress.pop(address, "") != "dial":
                return
            node.outcomes["dial"] += 1
            if not peer or peer == node.name:
                self.handle(node, events.DialFailed(address, "no answer"))
                return
            was_linked = peer in node.links
            if not was_linked:
                self._link(node, self.nodes[peer], address)
            self.handle(node, events.DialSucceeded(address, peer, was_linked))

        self._attempt(node, address, 2.5, DIAL_TIMEOUT_S, done)

    def _keep(self, node: SimNode, address: str) -> None:
        """Keep a seed linked, as the tunnel does: dial it whenever it is not."""

        def again() -> None:
            self.at(self.random.uniform(0.5, 5.0), lambda: self._keep(node, address))

        def done(peer: str) -> None:
            if peer and peer != node.name:
                was_linked = peer in node.links
                if not was_linked:
                    self._link(node, self.nodes[peer], address)
                self.handle(node, events.DialSucceeded(address, peer, was_linked))
            elif not peer:
                self.handle(node, events.DialFailed(address, "no answer"))
            again()

        if not node.is_alive:
            return
        if self.owners.get(address) in node.links:
            again()
        else:
            self._attempt(node, address, 2.5, DIAL_TIMEOUT_S, done)

    def _link(self, near: SimNode, far: SimNode, address: str) -> None:
        near.links[far.name], far.links[near.name] = address, None
        near.links_made += 1
        self._links_changed()
        for one, other, dialled in ((near, far, address), (far, near, None)):
            self.handle(
                one,
                events.PeerLinked(
                    peer=other.name,
                    name=other.name,
                    site=other.site,
                    address=dialled,
                    rtt_s=self.rtt_s(near.name, far.name),
                ),
            )

    def _drop_cut_links(self) -> None:
        for node in [*self.nodes.values()]:
            for peer in [*node.links]:
                if not self._can_reach(node.name, peer):
                    self.break_link(node.name, peer)

    def _links_changed(self) -> None:
        self.at(ROUTES_S, self._observe)

    def _observe(self) -> None:
        for node in self.alive():
            seen = frozenset(self.component(node.name))
            records = tuple(
                events.NodeSeen(
                    id=name,
                    name=name,
                    site=self.nodes[name].site,
                    addresses=(f"quic://{name}:8085|tls://{name}:8085",),
                    neighbours=frozenset(self.nodes[name].links),
                    is_start=False,
                )
                for name in sorted(seen - {node.name})
            )
            self.handle(node, events.Seen(records))
            self.handle(node, events.Reachability(seen))
