"""Keeps one address linked, or links to it once: the asyncio shell of `path_selection`.

Each connection attempt is a task. Its result enters the queue of events of the path selector.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from micro_core.contract.errors import MicroError, Unreachable
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment
from micro_core.tunnel.link import NodeLink
from micro_core.tunnel.path_selection import (
    AllPathsFailed,
    AttemptFailed,
    AttemptSucceeded,
    CancelAttempt,
    LinkedElsewhere,
    LinkEnded,
    PathChanged,
    PathEffect,
    PathEvent,
    PathSelector,
    Phase,
    ReportedUp,
    Start,
    StartAttempt,
)


class DialPath(Protocol):
    """Makes one connection attempt."""

    async def __call__(
        self, path: str, *, address: str, reason: str, replaces: NodeLink | None, is_forced: bool
    ) -> NodeLink:
        """Dial `path`, complete the handshake and return the link to the node that answered.

        If the node already has a link other than `replaces`, that link is kept and returned, unless `is_forced` is
        set. Raises Unreachable, Unauthorized.
        """
        ...


class Reconnector:
    """Establishes the link to the node at one address: once, or again whenever it is lost.

    `find_link(peer_id)` returns the current link to a peer. Each race of the paths ends in exactly one call: of
    `on_success(peer_id, was_linked)`, or of `on_failure(error)` if every path failed. `was_linked` is true if the node
    was linked by other means.
    """

    def __init__(
        self,
        address: str,
        selector: PathSelector,
        dial_path: DialPath,
        find_link: Callable[[str], NodeLink | None],
        *,
        environment: Environment,
        on_success: Callable[[str, bool], None],
        on_failure: Callable[[MicroError], None],
        is_forced: bool = False,
    ) -> None:
        self._address = address
        self._selector = selector
        self._dial_path = dial_path
        self._find_link = find_link
        self._clock = environment.clock
        self._logger = environment.logger
        self._counters = environment.counters
        self._on_success = on_success
        self._on_failure = on_failure
        self._is_forced = is_forced
        self._events: asyncio.Queue[tuple[PathEvent, NodeLink | None]] = asyncio.Queue()
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._link: NodeLink | None = None
        """The current link to the node, whichever end dialled it."""
        self._peer_id = ""
        """Node id of the other end of the last link."""
        self._link_watch: asyncio.Task[None] | None = None
        self._tasks = BackgroundTasks(
            component="tunnel",
            logger=environment.logger,
            counters=environment.counters,
            failure_counter="tunnel_tasks_failed",
        )

    async def link_once(self) -> NodeLink:
        """Race the paths once and return the link. Raises the MicroError that describes why every path failed.

        When cancelled, it cancels its attempts.
        """
        failures: list[MicroError] = []
        self._on_failure = failures.append
        try:
            self._carry_out(self._selector.handle(Start(), self._clock.now()))
            while self._link is None and not failures:
                await self._process_next_event()
        finally:
            await self._tasks.cancel()
        if self._link is None:
            raise failures[0]
        return self._link

    async def run(self) -> None:
        """Keep the node linked until cancelled. Established links stay open after that."""
        try:
            self._carry_out(self._selector.handle(Start(), self._clock.now()))
            while True:
                await self._process_next_event()
        finally:
            await self._tasks.cancel()

    async def run_once(self) -> None:
        """Race the paths once, and look after the path of the link until the link ends.

        Return at once when no link was made, or when the node was linked by other means.
        """
        try:
            self._carry_out(self._selector.handle(Start(), self._clock.now()))
            while self._selector.phase not in (Phase.WAITING, Phase.LINKED_ELSEWHERE):
                await self._process_next_event()
        finally:
            await self._tasks.cancel()

    def node_reported_up(self, peer_id: str, addresses: Collection[str]) -> None:
        """Dial now if the node is not linked and is the one that other nodes report as up at `addresses`."""
        is_ours = peer_id == self._peer_id or any(path in addresses for path in self._selector.paths)
        if is_ours and self._selector.phase in (Phase.WAITING, Phase.RACING):
            self._events.put_nowait((ReportedUp(), None))

    # --------------------------------------------------------------- internals

    async def _process_next_event(self) -> None:
        wake_at = self._selector.wake_at
        timeout_s = None if wake_at is None else max(0.0, wake_at - self._clock.now())
        try:
            async with asyncio.timeout(timeout_s):
                event, link = await self._events.get()
        except TimeoutError:
            self._carry_out(self._selector.wake(self._clock.now()))
            return
        if isinstance(event, AttemptSucceeded | AttemptFailed):
            self._attempts.pop(event.path, None)
        if not isinstance(event, AttemptFailed | ReportedUp):
            self._link = link
            self._watch_link(link)
        if link is not None:
            self._peer_id = link.peer_id
        is_racing = self._selector.phase is Phase.RACING
        self._carry_out(self._selector.handle(event, self._clock.now()))
        if is_racing and isinstance(event, AttemptSucceeded | LinkedElsewhere):
            self._on_success(self._peer_id, isinstance(event, LinkedElsewhere))

    def _carry_out(self, effects: Sequence[PathEffect]) -> None:
        for effect in effects:
            match effect:
                case StartAttempt(path, reason):
                    # A probe may replace only the link that it was started for.
                    replaces = self._link if self._selector.phase is Phase.PROBING else None
                    self._attempts[path] = self._tasks.start(self._attempt(path, reason, replaces))
                case CancelAttempt(path):
                    attempt = self._attempts.pop(path, None)
                    if attempt is not None:
                        attempt.cancel()
                case PathChanged(path, reason):
                    self._report_path(path, reason)
                case AllPathsFailed(error):
                    self._on_failure(error)

    async def _attempt(self, path: int, reason: str, replaces: NodeLink | None) -> None:
        try:
            link = await self._dial_path(
                self._selector.paths[path],
                address=self._address,
                reason=reason,
                replaces=replaces,
                is_forced=self._is_forced,
            )
        except MicroError as error:
            self._events.put_nowait((AttemptFailed(path, error), None))
            return
        except Exception as error:  # drivers are plugins, and every attempt must have an outcome
            self._counters.add("tunnel_tasks_failed")
            self._logger.exception("connection attempt failed", extra={"address": self._selector.paths[path]})
            unexpected = Unreachable(f"cannot connect to {self._selector.paths[path]}: {type(error).__name__}: {error}")
            self._events.put_nowait((AttemptFailed(path, unexpected), None))
            return
        self._link_established(link)

    def _link_established(self, link: NodeLink) -> None:
        """Report to the selector which of its paths `link` uses, or that the node is linked by other means."""
        is_ours = link.dialed_address == self._address and link.path in self._selector.paths
        event = AttemptSucceeded(self._selector.paths.index(link.path)) if is_ours else LinkedElsewhere()
        self._events.put_nowait((event, link))

    def _watch_link(self, link: NodeLink | None) -> None:
        if self._link_watch is not None:
            self._link_watch.cancel()
        self._link_watch = None if link is None else self._tasks.start(self._follow(link))

    async def _follow(self, link: NodeLink) -> None:
        """Wait until `link` is not the current link to its peer, then report to the selector."""
        await link.ending.wait_until_superseded()
        current = self._find_link(link.peer_id)
        if current is None:
            self._events.put_nowait((LinkEnded(), None))
        elif current is not link:
            self._link_established(current)

    def _report_path(self, path: int, reason: str) -> None:
        if path == 0:
            self._counters.add("tunnel_paths_restored")
        else:
            self._counters.add("tunnel_paths_fallen_back")
        level = logging.INFO if path == 0 else logging.WARNING
        self._logger.log(
            level, "link uses another path", extra={"address": self._selector.paths[path], "reason": reason}
        )
