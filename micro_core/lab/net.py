"""A network in the lab: its nodes and wires, what befalls them, and how long until all agree again."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from micro_core.lab import invariants
from micro_core.lab.lab_node import LabNode, TableMaker, memory_table
from micro_core.lab.loop import LabClock
from micro_core.lab.simulated_links import SCHEME, Conditions, Wires
from micro_core.routing.router import RouterOptions
from micro_core.tunnel.identity import NodeIdentity
from micro_core.tunnel.path_selection import PATH_SEPARATOR
from micro_core.tunnel.tunnel import TunnelOptions

CONVERGENCE_STEP_S = 0.05
"""How often `converged` looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabOptions:
    """What all nodes of a lab are given; the defaults are those of `micro run`."""

    tunnel: TunnelOptions = field(default_factory=TunnelOptions)
    router: RouterOptions = field(default_factory=RouterOptions)
    registry_lease_s: float = 90.0
    schemes: tuple[str, ...] = (SCHEME,)
    """The link drivers of every node, best first: all go over the same wires, and each can be blocked alone."""
    keep_log: bool = True
    """Keep the lines of the event log, not their hash alone."""


class NotConverged(AssertionError):
    """The nodes did not agree in time; says what is missing, and the seed."""


class Lab:
    """Every run is a function of `seed` and of what the scenario does. Use within `lab.loop.run`."""

    def __init__(
        self, seed: int = 0, *, conditions: Conditions | None = None, options: LabOptions | None = None
    ) -> None:
        self.seed = seed
        self.random = random.Random(f"{seed}/scenario")  # noqa: S311
        """For the scenario's own choices."""
        self.options = options or LabOptions()
        self.wires = Wires(random.Random(f"{seed}/wires"), conditions)  # noqa: S311
        self.nodes: dict[str, LabNode] = {}
        self.log: list[str] = []
        self.events = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()

    # --------------------------------------------------------------------- building

    async def add(
        self,
        name: str,
        *,
        site: str = "",
        links: Iterable[LabNode | str] = (),
        skew_s: float = 0.0,
        router: RouterOptions | None = None,
        table: TableMaker = memory_table,
    ) -> LabNode:
        """Start a node, by default on a site of its own, that keeps links to `links`; `router` where it is special.

        `table` makes its table in each of its lives, by default one that forgets.
        """
        if name in self.nodes:
            raise ValueError(f"there is a node {name} already")
        raw = random.Random(f"{self.seed}/{name}/key").randbytes(32)  # noqa: S311
        member = self.nodes[name] = LabNode(
            lab=self,
            name=name,
            site=site or name,
            identity=NodeIdentity.from_private_bytes(raw),
            clock=LabClock(self._loop, skew_s),
            router=router or self.options.router,
            table=table,
            seeds=[self._address(other if isinstance(other, str) else other.name) for other in links],
        )
        return await member.start()

    async def graph(self, count: int, edges: Iterable[tuple[int, int]], *, skew_s: float = 0.0) -> list[LabNode]:
        """`count` nodes with these links; the later one dials. Wall clocks are off by up to `skew_s`."""
        names = _names(count, len(self.nodes))
        links: dict[int, list[str]] = {place: [] for place in range(count)}
        for one, other in edges:
            links[max(one, other)].append(names[min(one, other)])
        skews = [self.random.uniform(-skew_s, skew_s) if skew_s else 0.0 for _ in names]
        return [await self.add(name, links=links[place], skew_s=skews[place]) for place, name in enumerate(names)]

    async def link(self, one: LabNode, other: LabNode) -> None:
        """`one` keeps a link to `other`, from now on and in its later lives."""
        address = self._address(other.name)
        one.seeds.append(address)
        if one.is_alive:
            one.node.tunnel.keep_linked(address)

    async def line(self, count: int) -> list[LabNode]:
        return await self.graph(count, [(place, place + 1) for place in range(count - 1)])

    async def ring(self, count: int) -> list[LabNode]:
        return await self.graph(count, [(place, (place + 1) % count) for place in range(count)])

    async def star(self, count: int) -> list[LabNode]:
        """The first is in the middle."""
        return await self.graph(count, [(0, place) for place in range(1, count)])

    async def mesh(self, count: int) -> list[LabNode]:
        return await self.graph(count, itertools.combinations(range(count), 2))

    async def random_graph(self, count: int, degree: int = 4) -> list[LabNode]:
        """Connected, with about `degree` links a node: a random tree, and further links at random."""
        return await self.graph(count, random_edges(count, degree, self.random))

    # ----------------------------------------------------------------------- faults

    def partition(self, one: LabNode | Sequence[LabNode], other: LabNode | Sequence[LabNode]) -> None:
        """Nothing passes between the two, or the two groups, in either direction."""
        self._between(one, other, self.wires.cut, "cut")

    def heal(self, one: LabNode | Sequence[LabNode], other: LabNode | Sequence[LabNode]) -> None:
        """Undo `partition`."""
        self._between(one, other, self.wires.heal, "heal")

    def block(self, scheme: str, one: LabNode, other: LabNode) -> None:
        """Nothing of one driver passes between the two, in either direction, as where a firewall drops UDP."""
        self._between(one, other, lambda near, far: self.wires.block(scheme, near, far), f"block {scheme}")

    def unblock(self, scheme: str, one: LabNode, other: LabNode) -> None:
        """Undo `block`."""
        self._between(one, other, lambda near, far: self.wires.unblock(scheme, near, far), f"unblock {scheme}")

    def cut_one_way(self, source: LabNode, target: LabNode) -> None:
        """Nothing passes from `source` to `target`; the other direction stands."""
        self.note(source.name, f"cut towards {target.name}")
        self.wires.cut(source.name, target.name)

    def stall(self, one: LabNode, other: LabNode, seconds: float) -> None:
        """Nothing passes between the two for a time; what was on its way, and what is sent meanwhile, arrives after it."""
        if seconds < 0:
            raise ValueError("a stall lasts no less than no time")
        self.partition(one, other)
        self._loop.call_later(seconds, self.heal, one, other)

    def reset(self, one: LabNode, other: LabNode) -> None:
        """Every link between the two breaks, at both ends at once."""
        self.note(one.name, f"reset {other.name}")
        self.wires.reset(one.name, other.name)

    def _address(self, name: str) -> str:
        return PATH_SEPARATOR.join(f"{scheme}://{name}" for scheme in self.options.schemes)

    def _between(
        self,
        one: LabNode | Sequence[LabNode],
        other: LabNode | Sequence[LabNode],
        act: Callable[[str, str], None],
        word: str,
    ) -> None:
        for near in [one] if isinstance(one, LabNode) else one:
            for far in [other] if isinstance(other, LabNode) else other:
                self.note(near.name, f"{word} {far.name}")
                act(near.name, far.name)
                act(far.name, near.name)

    # ------------------------------------------------------------------------- time

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self._loop.time()

    async def pass_time(self, seconds: float) -> None:
        """Let time pass: it costs only the work that is done in it."""
        await asyncio.sleep(seconds)

    async def converged(self, timeout_s: float = 60.0) -> float:
        """Wait until every node that can reach another has exactly the right services, and its graph whom it should see.

        Returns the seconds it took.

        Raises NotConverged.
        """
        began = self.now
        while wrong := invariants.disagreements(self):
            if self.now - began >= timeout_s:
                listed = "\n  ".join(wrong[:20])
                raise NotConverged(
                    f"after {timeout_s:.3g} s {len(wrong)} things are not as they should be (seed {self.seed}):\n  {listed}"
                )
            await asyncio.sleep(CONVERGENCE_STEP_S)
        return self.now - began

    def check(self) -> None:
        """Raise AssertionError, with the seed, where an invariant does not hold at this moment."""
        wrong = invariants.violations(self)
        if wrong:
            raise AssertionError(f"at {self.now:.3f} s (seed {self.seed}):\n  " + "\n  ".join(wrong[:20]))

    async def close(self) -> None:
        """Take everything down, without ceremony."""
        for member in self.nodes.values():
            if member.is_alive:
                await member.kill()

    # -------------------------------------------------------------------------- log

    def note(self, who: str, what: str) -> None:
        """A line of the event log."""
        line = f"{self.now:12.6f} {who:>8} {what}"
        self.events += 1
        self._digest.update(line.encode() + b"\n")
        if self.options.keep_log:
            self.log.append(line)

    @property
    def digest(self) -> str:
        """A hash of the event log so far: two runs with the same one did the same."""
        return self._digest.hexdigest()

    def next_number(self) -> int:
        return next(self._numbers)

    def alive(self) -> list[LabNode]:
        return [member for member in self.nodes.values() if member.is_alive]

    def counted(self, name: str) -> int:
        """A counter, summed over all nodes."""
        return sum(member.counted(name) for member in self.nodes.values())


def random_edges(count: int, degree: int, source: random.Random) -> list[tuple[int, int]]:
    """A connected random graph: a tree first, then links until the mean degree is met."""
    edges = {(source.randrange(0, place), place) for place in range(1, count)}
    wanted = min(count * degree // 2, count * (count - 1) // 2)
    while len(edges) < wanted:
        one, other = source.randrange(0, count), source.randrange(0, count)
        if one != other:
            edges.add((min(one, other), max(one, other)))
    return sorted(edges)


def _names(count: int, already: int) -> list[str]:
    if count + already <= len(string.ascii_lowercase):
        return list(string.ascii_lowercase[already : already + count])
    return [f"n{place:03}" for place in range(already, already + count)]
