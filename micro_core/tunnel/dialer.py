"""Dials the nodes at addresses: keeps one linked, links to one once, or only measures the distance.

The asyncio part around `reconnector` and `probing` that `TunnelHost` uses.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Protocol

from micro_core.contract.errors import Closed, Conflict, MicroError, Unreachable
from micro_core.contract.tunnel import DialFailed, DialSucceeded, Link, LinkDriver, LinkEvent
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.tunnel.handshake import PROBE_ERROR_ID, PROBE_REASON, Admit, Hello
from micro_core.tunnel.link import NodeLink
from micro_core.tunnel.path_selection import PathOptions, PathSelector, paths_to
from micro_core.tunnel.probing import PROBE_TIMEOUT_S, ProbeResult, race
from micro_core.tunnel.reconnector import Reconnector


class StartLink(Protocol):
    """Creates the node link over a link of a driver."""

    def __call__(self, link: Link, *, dialed: bool, address: str, admit: Admit | None = None) -> NodeLink:
        """Return the node link. Its handshake begins with `NodeLink.start`."""
        ...


class Dialer:
    """The dials of a tunnel.

    Args:
        drivers: In order of preference.
        dial_timeout_s: Timeout of a dial in seconds, without the handshake.
        paths: Times of connection attempts and retries.
        start_link: Creates a node link over a link of a driver.
        find_link: Returns the current link to a peer, or None.
        emit: Called with the outcome of each dial.
        environment: Clock, random numbers, counters.
    """

    def __init__(
        self,
        *,
        drivers: Sequence[LinkDriver],
        dial_timeout_s: float,
        paths: PathOptions,
        start_link: StartLink,
        find_link: Callable[[str], NodeLink | None],
        emit: Callable[[LinkEvent], None],
        environment: Environment,
    ) -> None:
        self._drivers = {driver.scheme: driver for driver in drivers}
        self._dial_timeout_s = dial_timeout_s
        self._paths = paths
        self._start_link = start_link
        self._find_link = find_link
        self._emit = emit
        self._environment = environment
        self._reconnectors: dict[str, tuple[Reconnector, asyncio.Task[None]]] = {}
        self._tasks = BackgroundTasks(
            component="tunnel",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="tunnel_tasks_failed",
        )
        self._is_closed = False

    async def close(self) -> None:
        """Stop all dials. Established links stay open. Safe to call twice."""
        self._is_closed = True
        self._reconnectors = {}
        await self._tasks.cancel()

    async def link_to(self, address: str, *, timeout_s: float | None) -> NodeLink:
        """Dial now, and return the link, which may be an older one. Raises Unreachable, Unauthorized."""
        return await self._reconnector(address, timeout_s=timeout_s, is_forced=True).link_once()

    def keep_linked(self, address: str) -> None:
        """See `TunnelHost.keep_linked`."""
        if address not in self._reconnectors:
            self._start(address, Reconnector.run)

    def dial_once(self, address: str) -> None:
        """See `TunnelHost.dial_once`."""
        self.stop(address)
        self._start(address, Reconnector.run_once)

    def stop(self, address: str) -> None:
        """Undo `keep_linked` or `dial_once`."""
        found = self._reconnectors.pop(address, None)
        if found is not None:
            found[1].cancel()

    def node_reported_up(self, peer: str, addresses: Collection[str]) -> None:
        """See `TunnelHost.node_reported_up`."""
        for reconnector, _ in self._reconnectors.values():
            reconnector.node_reported_up(peer, addresses)

    def _start(self, address: str, run: Callable[[Reconnector], Coroutine[None, None, None]]) -> None:
        if self._is_closed:
            return
        try:
            reconnector = self._reconnector(address, timeout_s=None, is_forced=False)
        except Unreachable as error:
            asyncio.get_running_loop().call_soon(self._dial_failed, address, error)
            return
        task = self._tasks.start(run(reconnector))
        self._reconnectors[address] = reconnector, task
        task.add_done_callback(functools.partial(self._ended, address, reconnector))

    def _ended(self, address: str, reconnector: Reconnector, _: asyncio.Task[None]) -> None:
        found = self._reconnectors.get(address)
        if found is not None and found[0] is reconnector:
            del self._reconnectors[address]

    async def dial_path(
        self,
        path: str,
        *,
        address: str,
        reason: str,
        replaces: NodeLink | None,
        is_forced: bool,
        timeout_s: float | None = None,
    ) -> NodeLink:
        """Make one connection attempt: implements `reconnector.DialPath`.

        Raises Unreachable, Unauthorized. A Conflict with an existing link is not raised: that link is returned.
        """
        existing: list[NodeLink] = []

        def admit(peer_id: str, hello: Hello) -> None:
            current = self._find_link(peer_id)
            if current is None or current is replaces or is_forced:
                return
            assert current.peer is not None
            if hello.incarnation <= current.peer.incarnation:
                # The peer has not proved its id yet, but the only consequence is that this attempt ends.
                existing.append(current)
                raise Conflict("another link to this node is established already")

        dialed = await self._dial_driver(path, timeout_s or self._dial_timeout_s)
        link = self._start_link(dialed, dialed=True, address=address, admit=admit)
        link.path, link.path_reason = path, reason
        link.start()
        try:
            # The handshake has its own timeout, and `ready` completes when it ends.
            await asyncio.shield(link.ready)
        except asyncio.CancelledError:
            if not link.has_sent_proof:
                # Once the proof is sent, the peer may use the link, so it must stay open here, too.
                link.abort(Closed("the connection attempt was cancelled"))
            raise
        except MicroError:
            current = existing[0] if existing else self._find_link(link.peer_id)
            if current is None or current.error is not None:
                raise
            # The attempt reached a peer that is linked already.
            return current
        return link

    async def probe(self, address: str) -> ProbeResult:
        """See `TunnelHost.probe`. Raises Unreachable, Unauthorized."""
        paths = paths_to(address, [*self._drivers])
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return await race(paths, self._probe_path, delay_s=self._paths.attempt_delay_s)
        except TimeoutError:
            raise Unreachable(f"no answer from {address} within {PROBE_TIMEOUT_S:g} s") from None

    async def _probe_path(self, path: str) -> ProbeResult:
        results: list[ProbeResult] = []

        def admit(peer_id: str, hello: Hello) -> None:
            measured_s = dialed.transport_rtt_s()
            rtt_s = self._environment.clock.now() - dialed_at if measured_s is None else measured_s
            results.append(ProbeResult(peer=peer_id, name=hello.name, site=hello.site, rtt_s=rtt_s))
            raise Conflict(PROBE_REASON, id=PROBE_ERROR_ID)

        dialed = await self._dial_driver(path, PROBE_TIMEOUT_S)
        dialed_at = self._environment.clock.now()
        link = self._start_link(dialed, dialed=True, address="", admit=admit)
        link.start()
        try:
            await asyncio.shield(link.ready)
        except asyncio.CancelledError:
            link.abort(Closed("the probe was cancelled"))
            raise
        except MicroError:
            if not results:
                raise
        return results[0]

    async def _dial_driver(self, path: str, timeout_s: float) -> Link:
        scheme, _, bare = path.partition("://")
        return await self._drivers[scheme].dial(bare, timeout_s=timeout_s)

    def _reconnector(self, address: str, *, timeout_s: float | None, is_forced: bool) -> Reconnector:
        """Return a reconnector. Raises Unreachable when no driver in use supports `address`."""
        paths = paths_to(address, [*self._drivers])
        return Reconnector(
            address,
            PathSelector(paths, self._paths, self._environment.random),
            functools.partial(self.dial_path, timeout_s=timeout_s),
            self._find_link,
            environment=self._environment,
            on_success=functools.partial(self._dial_succeeded, address),
            on_failure=functools.partial(self._dial_failed, address),
            is_forced=is_forced,
        )

    def _dial_succeeded(self, address: str, peer: str, was_linked: bool) -> None:
        self._emit(DialSucceeded(address, peer, was_linked))

    def _dial_failed(self, address: str, error: MicroError) -> None:
        self._emit(DialFailed(address, error))
