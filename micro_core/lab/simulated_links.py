"""The simulated links of the lab, with delay, jitter, loss and limited bandwidth. They can be cut and repaired.

If a link is cut, the data in transit is kept. It arrives when the cut is repaired, like a retransmission, unless the tunnel
has closed the link before.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

from micro_core.contract.clock import Random
from micro_core.contract.errors import Conflict, LinkLost, Unreachable
from micro_core.contract.transport import Listener
from micro_core.contract.tunnel import Link
from micro_core.lab.lab_link import LabLink, LinkEnvironment
from micro_core.lab.paths import SCHEME, Conditions, Paths
from micro_core.lab.process import PROCESS

__all__ = ["SCHEME", "Conditions", "LabListener", "LabTunnel", "SimulatedLinks"]


class SimulatedLinks(Paths):
    """All links of a lab, and the paths that they use."""

    def __init__(self, random: Random, conditions: Conditions | None = None) -> None:
        super().__init__(conditions)
        self.random = random
        self._environment = LinkEnvironment(self, random, self.forget)
        self._contexts: dict[str, contextvars.Context] = {}
        self._listeners: dict[tuple[str, str], LabListener] = {}
        self._links: dict[LabLink, None] = {}

    @property
    def bytes_carried(self) -> int:
        """Number of bytes that were written to links so far."""
        return self._environment.bytes_carried

    def run_in(self, node: str, context: contextvars.Context) -> None:
        """Deliver the data for a node in the context of its process from now on."""
        self._contexts[node] = context

    # ---------------------------------------------------------------------- faults

    def cut(self, source: str, target: str) -> None:
        """Stop all data from `source` to `target`."""
        self._cut.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """Undo `cut`. The retained data arrives late."""
        self._cut.discard((source, target))
        self._resume(source, target)

    def block(self, scheme: str, source: str, target: str) -> None:
        """Stop the data of one driver from `source` to `target`."""
        self._blocked.add((scheme, source, target))

    def unblock(self, scheme: str, source: str, target: str) -> None:
        """Undo `block`. The retained data arrives late."""
        self._blocked.discard((scheme, source, target))
        self._resume(source, target)

    def shrink(self, one: str, other: str, largest_bytes: int | None) -> None:
        """Lose datagrams above this size between two nodes. None restores the path.

        Links that were dialled before use larger datagrams: one with a large message carries nothing until it falls back to
        smaller ones. A new link measures the path, and uses datagrams of this size.
        """
        for source, target in ((one, other), (other, one)):
            if largest_bytes is None:
                self._largest.pop((source, target), None)
                self._resume(source, target)
            else:
                self._largest[source, target] = largest_bytes

    def _resume(self, source: str, target: str) -> None:
        for link in [*self._links]:
            if (link.source, link.target) == (source, target) and not self.is_cut(source, target, link.driver):
                link.resume()

    def reset(self, one: str, other: str) -> None:
        """Break every link between two nodes, at both ends at once."""
        for link in [*self._links]:
            if {link.source, link.target} == {one, other}:
                link.fail_from_outside(LinkLost("the link was reset"))

    def disconnect_silently(self, node: str) -> None:
        """Disconnect a crashed node: its links send nothing any more, and data sent to it is lost."""
        for link in [*self._links]:
            if link.source == node:
                if link.other is not None:
                    link.other.other = None
                link.other = None
                self.forget(link)

    def between(self, one: str, other: str) -> bool:
        """Return whether a link between two nodes is open."""
        return any({link.source, link.target} == {one, other} for link in self._links)

    # --------------------------------------------------------------------- drivers

    def driver(self, node: str, scheme: str = SCHEME) -> LabTunnel:
        """Return a link driver for a node. Drivers with different schemes use the same conditions."""
        return LabTunnel(self, node, scheme)

    def open(self, scheme: str, node: str, address: str, accept: Callable[[Link], None]) -> LabListener:
        """Open the listener of a node. Raises Conflict if it is open already."""
        if (scheme, node) in self._listeners:
            raise Conflict(f"cannot listen at {scheme}://{address}: address already in use")
        listener = self._listeners[scheme, node] = LabListener(self, scheme, node, address, accept)
        return listener

    def close(self, scheme: str, node: str) -> None:
        """Close the listener of a node if it is open."""
        self._listeners.pop((scheme, node), None)

    def silence_s(self, scheme: str, source: str, target: str | None) -> float:
        """Return for how long a dial gets no answer: 0 if it gets one at once, infinite if none is to be expected."""
        if target is None or not self.is_dialable(source, target):
            return float("inf")
        if self.is_cut(source, target, scheme) or self.is_cut(target, source, scheme):
            return float("inf")
        context = self._contexts.get(target)
        process = context.get(PROCESS) if context is not None else None
        return process.stopped_for_s if process is not None else 0.0

    def connect(
        self, scheme: str, source: str, target: str, address: str
    ) -> tuple[LabLink, LabLink, Callable[[Link], None]]:
        """Create a link. Returns its ends at `source` and `target`, and the function that accepts the latter.

        Raises Unreachable if the target has no listener.
        """
        listener = self._listeners.get((scheme, target))
        if listener is None:
            raise Unreachable(f"cannot connect to {scheme}://{address}: no listener")
        binding = self.random.getrandbits(256).to_bytes(32, "big")
        own = self._listeners.get((scheme, source))
        near_address = own.address if own is not None else f"{scheme}://{source}"
        near = self._end(scheme, (source, target), (near_address, listener.address), binding)
        far = self._end(scheme, (target, source), (listener.address, near_address), binding)
        near.other, far.other = far, near
        self._links[near] = self._links[far] = None
        return near, far, listener.accept

    def _end(self, scheme: str, ends: tuple[str, str], addresses: tuple[str, str], binding: bytes) -> LabLink:
        context = self._contexts.get(ends[0])
        if context is None:
            context = contextvars.copy_context()
        link = LabLink(self._environment, scheme, ends, addresses, binding=binding, context=context)
        if link.process is not None:
            link.process.handshake()
        return link

    def forget(self, link: LabLink) -> None:
        """Remove one end of a link."""
        self._links.pop(link, None)


class LabTunnel:
    """Implements `LinkDriver` for one node over simulated links."""

    def __init__(self, links: SimulatedLinks, node: str, scheme: str) -> None:
        self.scheme = scheme
        self._links = links
        self._node = node

    async def start(self) -> None:
        """Do nothing: the driver has no resources."""

    async def close(self) -> None:
        """Close the listener."""
        self._links.close(self.scheme, self._node)

    async def dial(self, address: str, *, timeout_s: float) -> Link:
        """Open a link, which takes one round trip.

        Raises Unreachable: after the round trip if the target has no listener, after `timeout_s` if it does not answer
        because the path is cut, the target is behind a NAT or stopped, or no node was ever at this address.
        """
        links, scheme, source = self._links, self.scheme, self._node
        target = links.node_at(address)
        silence_s = links.silence_s(scheme, source, target)
        if target is None or silence_s >= timeout_s:
            await asyncio.sleep(timeout_s)
            raise Unreachable(f"no answer from {scheme}://{address} within {timeout_s:.3g} s")
        outbound, inbound = links.conditions(source, target), links.conditions(target, source)
        await asyncio.sleep(silence_s + outbound.delay_s + inbound.delay_s)
        near, far, accept = links.connect(scheme, source, target, address)
        asyncio.get_running_loop().call_soon(accept, far, context=far.context)
        return near

    async def listen(self, address: str, accept: Callable[[Link], None]) -> Listener:
        """Accept links to this node. Raises Conflict if it listens already."""
        return self._links.open(self.scheme, self._node, address, accept)


class LabListener:
    """Implements `Listener`."""

    def __init__(
        self, links: SimulatedLinks, scheme: str, node: str, address: str, accept: Callable[[Link], None]
    ) -> None:
        self.address = f"{scheme}://{address}"
        self.accept = accept
        self._links = links
        self._scheme = scheme
        self._node = node

    async def close(self) -> None:
        """Stop accepting links."""
        self._links.close(self._scheme, self._node)
