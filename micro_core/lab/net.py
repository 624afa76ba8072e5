"""A simulated network: nodes and links, injected faults, and convergence."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from micro_core.builtin.broker.subscribers import Subscribers
from micro_core.contract.names import PATH_SEPARATOR
from micro_core.lab.directory import Directory
from micro_core.lab.faults import FaultLog, path_between
from micro_core.lab.invariants import Checker
from micro_core.lab.lab_node import LabNode, ResolverMaker, SiteBroker, TableMaker, memory_table
from micro_core.lab.loop import LabClock
from micro_core.lab.options import LabOptions
from micro_core.lab.simulated_links import Conditions, SimulatedLinks
from micro_core.routing.router import RouterOptions
from micro_core.tunnel.identity import NodeIdentity

CONVERGENCE_STEP_S = 0.05
"""Interval between two checks of `converged`, in virtual seconds."""

MAX_LISTED = 20
"""Maximum number of differences or violations in an error message."""


class NotConverged(AssertionError):
    """The network did not converge in time. The message lists the differences and the seed."""


class Lab:
    """A network of nodes on virtual time. The run depends only on `seed` and on the scenario.

    To be used inside `lab.loop.run`.
    """

    def __init__(
        self, seed: int = 0, *, conditions: Conditions | None = None, options: LabOptions | None = None
    ) -> None:
        self.seed = seed
        self.random = random.Random(f"{seed}/scenario")  # noqa: S311
        """Random numbers for the scenario."""
        self.options = options or LabOptions()
        self.links = SimulatedLinks(random.Random(f"{seed}/links"), conditions)  # noqa: S311
        self.nodes: dict[str, LabNode] = {}
        self.directory = Directory()
        """The addresses that the resolvers return."""
        self.faults = FaultLog(lambda: self.now)
        """The faults so far."""
        self.checker = Checker(self)
        self.log: list[str] = []
        self.events = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._numbers = itertools.count(1)
        self._shared_brokers: dict[str, Subscribers] = {}
        self._failures: list[str] = []
        """The callbacks that raised an exception, e.g. timers of a node."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._callback_failed)

    # ------------------------------------------------------------------------ nodes

    async def add(
        self,
        name: str,
        *,
        site: str = "",
        links: Iterable[LabNode | str] = (),
        skew_s: float = 0.0,
        router: RouterOptions | None = None,
        table: TableMaker = memory_table,
        resolvers: Sequence[ResolverMaker] = (),
        address: str = "",
        broker: SiteBroker = SiteBroker.OWN,
        is_behind_nat: bool = False,
    ) -> LabNode:
        """Create and start a node.

        Args:
            name: Unique name of the node.
            site: Name of its site. By default, the node has a site of its own.
            links: The nodes to which it keeps links.
            skew_s: Error of its wall clock in seconds.
            router: Options of its router. By default, those of the lab.
            table: Creates its table at each start. By default, the table is in memory and empty after each start.
            resolvers: Create its resolvers at each start. With resolvers, it chooses its links as in production.
            address: Where it listens, as `host:port`. By default, its name.
            broker: The broker of its site, the same for all nodes of the site.
            is_behind_nat: Whether nodes of other sites cannot dial it.

        Raises:
            ValueError: If a node with this name exists.
        """
        if name in self.nodes:
            raise ValueError(f"cannot add node {name}: the name is already in use")
        raw = random.Random(f"{self.seed}/{name}/key").randbytes(32)  # noqa: S311
        self.links.add_node(name, site=site or name, address=address or name, is_behind_nat=is_behind_nat)
        node = self.nodes[name] = LabNode(
            lab=self,
            name=name,
            site=site or name,
            identity=NodeIdentity.from_private_bytes(raw),
            clock=LabClock(self._loop, skew_s),
            router=router or self.options.router,
            table=table,
            seeds=[self._address(other if isinstance(other, str) else other.name) for other in links],
            resolvers=resolvers,
            address=address or name,
            broker=broker,
        )
        return await node.start()

    async def graph(self, count: int, edges: Iterable[tuple[int, int]], *, skew_s: float = 0.0) -> list[LabNode]:
        """Create `count` nodes with the links `edges` (pairs of indexes). The node with the larger index dials.

        The wall clock of each node has a random error of up to `skew_s` seconds.
        """
        names = _names(count, len(self.nodes))
        links: dict[int, list[str]] = {index: [] for index in range(count)}
        for one, other in edges:
            links[max(one, other)].append(names[min(one, other)])
        skews = [self.random.uniform(-skew_s, skew_s) if skew_s else 0.0 for _ in names]
        return [await self.add(name, links=links[index], skew_s=skews[index]) for index, name in enumerate(names)]

    async def link(self, one: LabNode, other: LabNode) -> None:
        """Let `one` keep a link to `other` from now on, including after restarts."""
        address = self._address(other.name)
        one.seeds.append(address)
        if one.is_alive:
            one.node.tunnel.keep_linked(address)

    async def line(self, count: int) -> list[LabNode]:
        """Create `count` nodes in a line."""
        return await self.graph(count, [(index, index + 1) for index in range(count - 1)])

    async def ring(self, count: int) -> list[LabNode]:
        """Create `count` nodes in a ring."""
        return await self.graph(count, [(index, (index + 1) % count) for index in range(count)])

    async def star(self, count: int) -> list[LabNode]:
        """Create `count` nodes. All others are linked to the first one."""
        return await self.graph(count, [(0, index) for index in range(1, count)])

    async def mesh(self, count: int) -> list[LabNode]:
        """Create `count` nodes that are all linked to each other."""
        return await self.graph(count, itertools.combinations(range(count), 2))

    async def random_graph(self, count: int, degree: int = 4) -> list[LabNode]:
        """Create `count` nodes in a random connected graph with about `degree` links per node."""
        return await self.graph(count, random_edges(count, degree, self.random))

    # ----------------------------------------------------------------------- faults

    def partition(self, one: LabNode | Sequence[LabNode], other: LabNode | Sequence[LabNode]) -> None:
        """Cut the links between two nodes or two groups of nodes, in both directions."""
        self._between(one, other, self.links.cut, "cut")
        for near, far in _pairs(one, other):
            self.faults.begin("cut", path_between(near.name, far.name))

    def heal(self, one: LabNode | Sequence[LabNode], other: LabNode | Sequence[LabNode]) -> None:
        """Undo `partition`."""
        self._between(one, other, self.links.heal, "heal")
        for near, far in _pairs(one, other):
            self.faults.end("cut", path_between(near.name, far.name))

    def block(self, scheme: str, one: LabNode, other: LabNode) -> None:
        """Block one driver between two nodes in both directions, like a firewall that drops UDP."""
        self._between(one, other, lambda near, far: self.links.block(scheme, near, far), f"block {scheme}")

    def unblock(self, scheme: str, one: LabNode, other: LabNode) -> None:
        """Undo `block`."""
        self._between(one, other, lambda near, far: self.links.unblock(scheme, near, far), f"unblock {scheme}")

    def cut_one_way(self, source: LabNode, target: LabNode) -> None:
        """Cut the links from `source` to `target`. The other direction still works."""
        self.note(source.name, f"cut towards {target.name}")
        self.faults.begin("cut", path_between(source.name, target.name))
        self.links.cut(source.name, target.name)

    def stall(self, one: LabNode, other: LabNode, seconds: float) -> None:
        """Delay all data between two nodes until `seconds` have passed. Nothing is lost.

        Raises ValueError if `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"invalid duration of a stall: {seconds} s is negative")
        self.partition(one, other)
        self._loop.call_later(seconds, self.heal, one, other)

    def reset(self, one: LabNode, other: LabNode) -> None:
        """Break all links between two nodes, at both ends at once."""
        self.note(one.name, f"reset {other.name}")
        self.faults.at_once("reset", path_between(one.name, other.name))
        self.links.reset(one.name, other.name)

    def shrink_path(self, one: LabNode, other: LabNode, largest_bytes: int | None) -> None:
        """Lose datagrams above this size between two nodes, see `SimulatedLinks.shrink`. None restores the path."""
        self.note(one.name, f"largest datagram to {other.name}: {largest_bytes}")
        subject = path_between(one.name, other.name)
        (self.faults.end if largest_bytes is None else self.faults.begin)("shrink", subject)
        self.links.shrink(one.name, other.name, largest_bytes)

    def change_path(self, one: LabNode, other: LabNode, conditions: Conditions) -> None:
        """Change delay, loss and bandwidth between two nodes. This is not a fault: no call may fail."""
        self.note(one.name, f"{conditions} to {other.name}")
        self.links.set(one.name, other.name, conditions)

    async def flap(self, one: LabNode, other: LabNode, period_s: float, *, times: int) -> None:
        """Cut the links between two nodes for `period_s`, repair them for `period_s`, and repeat this."""
        for _ in range(times):
            self.partition(one, other)
            await self.advance_time(period_s)
            self.heal(one, other)
            await self.advance_time(period_s)

    def _address(self, name: str) -> str:
        return PATH_SEPARATOR.join(f"{scheme}://{name}" for scheme in self.options.schemes)

    def _between(
        self,
        one: LabNode | Sequence[LabNode],
        other: LabNode | Sequence[LabNode],
        action: Callable[[str, str], None],
        description: str,
    ) -> None:
        for near, far in _pairs(one, other):
            self.note(near.name, f"{description} {far.name}")
            action(near.name, far.name)
            action(far.name, near.name)

    # ------------------------------------------------------------------------- time

    @property
    def now(self) -> float:
        """Virtual seconds since the start of the lab."""
        return self._loop.time()

    async def advance_time(self, seconds: float) -> None:
        """Let `seconds` of virtual time pass."""
        await asyncio.sleep(seconds)

    async def converged(self, timeout_s: float = 60.0) -> float:
        """Wait until the network has converged: all tables and graphs of the running nodes are correct.

        Returns the virtual seconds this took. Raises NotConverged after `timeout_s` virtual seconds.
        """
        started_at = self.now
        while found := self.checker.differences():
            if self.now - started_at >= timeout_s:
                count = f"{len(found)} difference{'s' if len(found) > 1 else ''}"
                raise NotConverged(
                    f"network did not converge within {timeout_s:.3g} s: {count} (seed {self.seed}):\n  "
                    + "\n  ".join(found[:MAX_LISTED])
                )
            await asyncio.sleep(CONVERGENCE_STEP_S)
        return self.now - started_at

    def check(self) -> None:
        """Check the invariants that hold at any time, and that no callback of the event loop has raised an exception.

        Raises AssertionError with the violations and the seed.
        """
        found = [*self._failures, *self.checker.violations()]
        if found:
            raise AssertionError(
                f"invariants violated at {self.now:.3f} s (seed {self.seed}):\n  " + "\n  ".join(found[:MAX_LISTED])
            )

    def check_callbacks(self) -> None:
        """Check that no callback of the event loop has raised an exception. Raises AssertionError with those that have."""
        if self._failures:
            raise AssertionError("\n  ".join([f"callbacks failed (seed {self.seed}):", *self._failures[:MAX_LISTED]]))

    def _callback_failed(self, event_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "handle" in context:
            # Otherwise it is an exception of a task that nothing has waited for, which may belong to the scenario.
            error = context.get("exception")
            self._failures.append(f"{context['message']} at {self.now:.3f} s: {type(error).__name__}: {error}")
        event_loop.default_exception_handler(context)

    async def close(self) -> None:
        """Kill all nodes."""
        for node in self.nodes.values():
            if node.is_alive:
                await node.kill()

    # -------------------------------------------------------------------------- log

    def note(self, source: str, text: str) -> None:
        """Add a line to the event log. `source` is the name of a node."""
        line = f"{self.now:12.6f} {source:>8} {text}"
        self.events += 1
        self._digest.update(line.encode() + b"\n")
        if self.options.keep_log:
            self.log.append(line)

    @property
    def digest(self) -> str:
        """A hash of the event log so far. Two runs with equal hashes are identical."""
        return self._digest.hexdigest()

    def next_number(self) -> int:
        """Return a number that is unique in the lab."""
        return next(self._numbers)

    def shared_broker(self, site: str) -> Subscribers:
        """Return the subscribers of the broker of a site with `SiteBroker.SHARED`."""
        return self._shared_brokers.setdefault(site, Subscribers())

    def alive(self) -> list[LabNode]:
        """Return the running nodes."""
        return [node for node in self.nodes.values() if node.is_alive]

    def counted(self, name: str) -> int:
        """Return the value of a counter, summed over all nodes."""
        return sum(node.counted(name) for node in self.nodes.values())


def _pairs(one: LabNode | Sequence[LabNode], other: LabNode | Sequence[LabNode]) -> Iterable[tuple[LabNode, LabNode]]:
    ones, others = ([group] if isinstance(group, LabNode) else group for group in (one, other))
    return itertools.product(ones, others)


def random_edges(count: int, degree: int, source: random.Random) -> list[tuple[int, int]]:
    """Return the edges of a random connected graph: a random tree, and random edges up to the mean degree."""
    edges = {(source.randrange(0, index), index) for index in range(1, count)}
    wanted = min(count * degree // 2, count * (count - 1) // 2)
    while len(edges) < wanted:
        one, other = source.randrange(0, count), source.randrange(0, count)
        if one != other:
            edges.add((min(one, other), max(one, other)))
    return sorted(edges)


def _names(count: int, used: int) -> list[str]:
    if count + used <= len(string.ascii_lowercase):
        return list(string.ascii_lowercase[used : used + count])
    return [f"n{number:03}" for number in range(used, used + count)]
