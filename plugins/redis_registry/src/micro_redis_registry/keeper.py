"""One look at the server a second, and one when a lease is due: ends leases, and restores own records that were lost.

The look (`scripts.TEND`) gives up what is due, which the feed then tells everybody, and says of our own records whether
they stand. What is missing is restored at once, for the rest of its lease: the server restarted empty, a failover lost
the last writes, or a stranger deleted a key. So a loss lasts a second, not a third of a lease.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from micro_core.contract import DriverContext, MicroError
from micro_redis_registry.backoff import Backoff
from micro_redis_registry.ending import end_tasks
from micro_redis_registry.namespace import Namespace
from micro_redis_registry.own_records import Own, OwnRecords
from micro_redis_registry.scripts import TEND
from micro_redis_registry.server import Server

LOOK_S = 1.0
"""Seconds between two looks."""

LEAST_PAUSE_S = 0.02
"""Pause between two looks, however many leases end."""

SPREAD_S = 0.08
"""All who watch look when a lease ends; spread over this time, all but the first find nothing left to do."""

DUE_AT_ONCE = 100
OWN_AT_ONCE = 100
"""Records given up, and own records looked after, in one look: half a millisecond of the server's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a look found: the epoch and the number of the last change (scripts.py)."""

    epoch: int
    sequence: int


class Keeper:
    """Looks from `start` to `stop`; `after_look` is called with what each found."""

    def __init__(
        self,
        *,
        server: Server,
        namespace: Namespace,
        owner: str,
        own: OwnRecords,
        context: DriverContext,
        after_look: Callable[[State], None],
    ) -> None:
        self._server = server
        self._namespace = namespace
        self._owner = owner
        self._own = own
        self._context = context
        self._now = context.clock.now
        self._after_look = after_look
        self._backoff = Backoff(context.random)
        self._next_look_at = math.inf
        self._changed = asyncio.Event()
        self._next_own = 0
        self._is_away = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, unless it is done already."""
        if self._task is None:
            self._next_look_at = min(self._next_look_at, self._now() + LOOK_S)
            self._task = asyncio.create_task(self._keep(), name="redis keeper")

    async def stop(self) -> None:
        """Stop looking."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])

    def due_in(self, seconds: float) -> None:
        """A lease may end then."""
        due_at = self._now() + seconds + self._context.random.uniform(0.0, SPREAD_S)
        if due_at < self._next_look_at and not self._is_away:
            self._next_look_at = due_at
            self._changed.set()

    async def look(self) -> State:
        """Look once. Raises what `Server.run` does."""
        # What is said to be due while this look is under way counts, even if the look was too early to see it.
        self._next_look_at = math.inf
        pause_s = LOOK_S
        try:
            answer = await self._look_at_all()
            if answer[5]:
                left_s = max(LEAST_PAUSE_S, (answer[5] - answer[0] + 1) / 1000)
                pause_s = min(LOOK_S, left_s + self._context.random.uniform(0.0, SPREAD_S))
        finally:
            self._next_look_at = min(self._next_look_at, self._now() + pause_s)
        return State(epoch=answer[1], sequence=answer[2])

    async def _look_at_all(self) -> list[Any]:
        """As many scripts as it takes to end all leases that are due; the answer of the last."""
        skip = 0
        while True:
            own = self._choose_own()
            answer = await self._look_from(skip, own)
            found = dict(zip((one.instance.id for one in own), answer[7:], strict=True))
            for one in own:
                if found[one.instance.id] == b"taken":
                    self._own.leave(one)
            await self._restore([one for one in own if found[one.instance.id] == b"missing"])
            if answer[6]:
                self._context.counters.add("redis_keys_mended", answer[6])
            skip += answer[4]
            if answer[3] < DUE_AT_ONCE:
                return answer
            await asyncio.sleep(0)

    async def _look_from(self, skip: int, own: list[Own]) -> list[Any]:
        pairs = [word for one in own for word in (one.instance.service, one.instance.id)]
        words = (self._namespace.root, self._namespace.feed, self._owner, str(skip), str(DUE_AT_ONCE), *pairs)
        return await self._server.run(TEND, (self._namespace.index,), lambda: words)

    def _choose_own(self) -> list[Own]:
        """Whose turn it is: all of them, where they are few."""
        standing = self._own.standing()
        if len(standing) <= OWN_AT_ONCE:
            return standing
        start = self._next_own % len(standing)
        self._next_own = start + OWN_AT_ONCE
        return (standing[start:] + standing[:start])[:OWN_AT_ONCE]

    async def _restore(self, missing: list[Own]) -> None:
        if not missing:
            return
        # All that were asked about are missing: it is likely that the rest are, too.
        lost = self._own.standing() if len(missing) == OWN_AT_ONCE else missing
        outcomes = await asyncio.gather(*(self._own.restore(one) for one in lost), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, MicroError):
                # Tried again at the next look. Where the server is away, that look says so.
                self._context.counters.add("redis_restores_failed")
            elif isinstance(outcome, BaseException):
                raise outcome
        restored = outcomes.count(None)
        if restored:
            self._context.logger.info("redis had lost records of ours; they are restored", extra={"records": restored})

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            pause_s = self._next_look_at - self._now()
            if pause_s > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._changed.wait()
                continue
            try:
                state = await self.look()
            except MicroError as error:
                self._fail(error)
            except Exception:  # the task's root
                self._context.counters.add("redis_keeper_failures")
                self._context.logger.exception("redis keeper failed; it goes on")
                self._next_look_at = self._now() + self._backoff.next_s()
            else:
                self._succeed(state)

    def _fail(self, error: MicroError) -> None:
        self._context.counters.add("redis_looks_failed")
        if not self._is_away:
            self._context.logger.warning("redis is away", extra={"reason": str(error)})
        self._is_away = True
        self._next_look_at = self._now() + self._backoff.next_s()

    def _succeed(self, state: State) -> None:
        if self._is_away:
            self._context.logger.info("redis is back")
        self._is_away = False
        self._backoff.reset()
        self._after_look(state)
