"""Keeps a node linked, or links to it once: a shell round `ways`. Attempts are tasks; what becomes of them are events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from micro_core.contract.errors import MicroError
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.tunnel.link import LinkPeer
from micro_core.tunnel.path_selection import (
    Abandon,
    Arrived,
    Dial,
    DialLost,
    Elsewhere,
    Exhausted,
    Linked,
    LinkGone,
    Phase,
    Settled,
    Wanted,
    WayEffect,
    WayEvent,
    WayFinder,
)


class DialWay(Protocol):
    async def __call__(
        self, way: str, *, address: str, why: str, replaces: LinkPeer | None, is_forced: bool
    ) -> LinkPeer:
        """Dial one way and shake hands; the link that stands to whoever answered, which may be another's.

        A standing link other than `replaces` is left alone, unless the dial is forced. Raises Unreachable, Unauthorized.
        """
        ...


class LinkKeeper:
    """One address. `on_failed(error)` is called after each round in which every way failed.

    `find_link(peer_id)` gives the link that stands to a peer, if any does.
    """

    def __init__(
        self,
        address: str,
        finder: WayFinder,
        dial_way: DialWay,
        find_link: Callable[[str], LinkPeer | None],
        *,
        environment: Environment,
        on_failed: Callable[[MicroError], None],
        is_forced: bool = False,
    ) -> None:
        self._address = address
        self._finder = finder
        self._dial_way = dial_way
        self._find_link = find_link
        self._clock = environment.clock
        self._log = environment.logger
        self._counters = environment.counters
        self._on_failed = on_failed
        self._is_forced = is_forced
        self._events: asyncio.Queue[tuple[WayEvent, LinkPeer | None]] = asyncio.Queue()
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._link: LinkPeer | None = None
        """The link that stands to the node, whoever made it."""
        self._peer_id = ""
        """Whom the last link led to."""
        self._watch: asyncio.Task[None] | None = None
        self._tasks = BackgroundTasks(
            component="tunnel",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="tunnel_tasks_failed",
        )

    async def link_once(self) -> LinkPeer:
        """The link that stands in the end; raises what the ways have failed of."""
        failures: list[MicroError] = []
        self._on_failed = failures.append
        try:
            self._carry_out(self._finder.handle(Wanted(), self._clock.now()))
            while self._link is None and not failures:
                await self._step()
        finally:
            await self._tasks.cancel()
        if self._link is None:
            raise failures[0]
        return self._link

    async def keep(self) -> None:
        """Dial, and again whenever no link to whoever answers stands, until cancelled."""
        try:
            self._carry_out(self._finder.handle(Wanted(), self._clock.now()))
            while True:
                await self._step()
        finally:
            await self._tasks.cancel()

    def arrived(self, peer_id: str, addresses: Collection[str]) -> None:
        """Others have linked to a node that is reached at `addresses`: if it is the one that is missed here, dial it."""
        is_ours = peer_id == self._peer_id or any(way in addresses for way in self._finder.ways)
        if is_ours and self._finder.phase in (Phase.WAITING, Phase.RACING):
            self._events.put_nowait((Arrived(), None))

    # ----------------------------------------------------------------- inside

    async def _step(self) -> None:
        """Wait for the next thing to happen, and see to it."""
        wake_at = self._finder.wake_at
        timeout_s = None if wake_at is None else max(0.0, wake_at - self._clock.now())
        try:
            async with asyncio.timeout(timeout_s):
                event, link = await self._events.get()
        except TimeoutError:
            self._carry_out(self._finder.wake(self._clock.now()))
            return
        if isinstance(event, Linked | DialLost):
            self._attempts.pop(event.way, None)
        if not isinstance(event, DialLost | Arrived):
            self._link = link
            self._look_after(link)
        if link is not None:
            self._peer_id = link.peer_id
        self._carry_out(self._finder.handle(event, self._clock.now()))

    def _carry_out(self, effects: Sequence[WayEffect]) -> None:
        for effect in effects:
            match effect:
                case Dial(way, why):
                    # A probe takes the place of the link it was made for, and of no other.
                    replaces = self._link if self._finder.phase is Phase.PROBING else None
                    self._attempts[way] = self._tasks.start(self._attempt(way, why, replaces))
                case Abandon(way):
                    attempt = self._attempts.pop(way, None)
                    if attempt is not None:
                        attempt.cancel()
                case Settled(way, why):
                    self._say(way, why)
                case Exhausted(error):
                    self._on_failed(error)

    async def _attempt(self, way: int, why: str, replaces: LinkPeer | None) -> None:
        try:
            link = await self._dial_way(
                self._finder.ways[way],
                address=self._address,
                why=why,
                replaces=replaces,
                is_forced=self._is_forced,
            )
        except MicroError as error:
            self._events.put_nowait((DialLost(way, error), None))
            return
        self._report(link)

    def _report(self, link: LinkPeer) -> None:
        """A link to the node stands: by which of our ways, or by somebody else's doing?"""
        is_ours = link.dialed_address == self._address and link.way in self._finder.ways
        event = Linked(self._finder.ways.index(link.way)) if is_ours else Elsewhere()
        self._events.put_nowait((event, link))

    def _look_after(self, link: LinkPeer | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = None if link is None else self._tasks.start(self._follow(link))

    async def _follow(self, link: LinkPeer) -> None:
        """Wait until `link` is not the one that stands any more, and tell what came of it."""
        await link.wait_over()
        standing = self._find_link(link.peer_id)
        if standing is None:
            self._events.put_nowait((LinkGone(), None))
        elif standing is not link:
            self._report(standing)

    def _say(self, way: int, why: str) -> None:
        if way == 0:
            self._counters.add("tunnel_ways_restored")
        else:
            self._counters.add("tunnel_ways_fallen_back")
        level = logging.INFO if way == 0 else logging.WARNING
        self._log.log(level, "link took another way", extra={"address": self._finder.ways[way], "reason": why})
