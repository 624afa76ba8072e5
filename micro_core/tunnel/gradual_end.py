"""Ends a link that no fault has ended: the sessions on it may continue for a while.

A link is *replaced* by a link over another driver, or *given up* by one of its nodes, e.g. for a link to a nearer node. The
peer is not needed for either: every wait has a limit of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from micro_core.contract.driver import Counters
from micro_core.contract.errors import MicroError
from micro_core.wire import limits

DRAIN_S = 3.0
"""Seconds from the decision to give up a link until it is retired. New calls avoid it, and routes over other links arrive."""

IDLE_CHECK_S = 2.0
"""Seconds between two checks whether a retired link still has sessions. The peer retires it up to a round trip later."""

REPLACED_S = limits.DEFAULT_TIMEOUT_S
"""Seconds for which sessions may continue on a link that was replaced: the default timeout of a call."""

GIVEN_UP_S = 25.0
"""Seconds for which sessions may continue on a link that was given up. No fault has led to it, so it can wait for long calls."""


class EndingLink(Protocol):
    """The link, as far as its end needs it."""

    error: MicroError | None

    def closing_started(self) -> None:
        """Note that the link is given up from now on."""
        ...

    def drained(self, error: MicroError) -> None:
        """Note that a link that was given up carries nothing new from now on."""
        ...

    def has_open_sessions(self) -> bool:
        """Return whether sessions are open, except those of control data."""
        ...

    def abort(self, error: MicroError) -> None:
        """End the link now."""
        ...


class GradualEnd:
    """The timers of one link. Times are those of the event loop."""

    def __init__(self, link: EndingLink, counters: Counters) -> None:
        self.is_closing = False
        """Whether one of the nodes gives up the link on purpose."""
        self._link = link
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._superseded: asyncio.Future[None] = self._loop.create_future()
        self._end_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def drain(self, error: MicroError) -> None:
        """Give up the link: report it as suspect, retire it after `DRAIN_S`, and end it with `error`. Safe to call twice."""
        if self._link.error is None and not self.is_closing:
            self.is_closing = True
            if self._end_at is None:
                self._call_later(DRAIN_S, self._drained, error)
            self._link.closing_started()

    def retire(self, error: MicroError) -> None:
        """Carry nothing new. End with `error` when all sessions have ended except those of control data.

        It ends at the latest after `REPLACED_S`, or `GIVEN_UP_S` if the link was drained. Safe to call twice.
        """
        if self._link.error is None and self._end_at is None:
            self._end_at = self._loop.time() + (GIVEN_UP_S if self.is_closing else REPLACED_S)
            self._set_superseded()
            self._call_later(IDLE_CHECK_S, self._end_if_idle, error)

    async def wait_until_superseded(self) -> None:
        """Wait until this is no longer the current link to its peer: it has ended, or is retired."""
        await asyncio.shield(self._superseded)

    def link_ended(self) -> None:
        """Stop the timer, and let `wait_until_superseded` return."""
        self._set_superseded()
        if self._timer is not None:
            self._timer.cancel()

    def _set_superseded(self) -> None:
        if not self._superseded.done():
            self._superseded.set_result(None)

    def _drained(self, error: MicroError) -> None:
        self.retire(error)
        self._link.drained(error)

    def _end_if_idle(self, error: MicroError) -> None:
        assert self._end_at is not None
        remaining_s = self._end_at - self._loop.time()
        is_used = self._link.has_open_sessions()
        if is_used and remaining_s > 0:
            self._call_later(min(IDLE_CHECK_S, remaining_s), self._end_if_idle, error)
            return
        if is_used:
            self._counters.add("tunnel_links_retired_in_use")
        self._link.abort(error)

    def _call_later(self, delay_s: float, callback: Callable[[MicroError], None], error: MicroError) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, callback, error)
