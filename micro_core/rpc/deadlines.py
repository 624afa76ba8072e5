"""Deadlines of calls. Calls whose deadlines are in the same time slot share one timer.

Nearly every call ends long before its deadline, so a timer per call would cost more than the rest of its bookkeeping. A slot
is 1/128 s long and expires at its end: a call never expires early, and at most one slot late.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

log = logging.getLogger(__name__)

SLOTS_PER_S = 128
"""Time slots per second."""


class Expirable(Protocol):
    """A call with a deadline."""

    def expire(self) -> None:
        """End the call because its deadline has passed. Called in the event loop, at most once."""
        ...


class Deadlines:
    """The deadlines of the calls of one client, server or proxy, as times of the event loop."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[Expirable, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, deadline: float, call: Expirable) -> None:
        """Call `call.expire()` shortly after `deadline` (seconds of the event loop), unless it is discarded before."""
        slot = int(deadline * SLOTS_PER_S) + 1
        calls = self._slots.get(slot)
        if calls is None:
            calls = self._slots[slot] = {}
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_at(slot / SLOTS_PER_S, self._expire, slot)
        calls[call] = None

    def discard(self, deadline: float, call: Expirable) -> None:
        """Remove a call that was added with this deadline. An unknown call is ignored."""
        calls = self._slots.get(int(deadline * SLOTS_PER_S) + 1)
        if calls is not None:
            calls.pop(call, None)

    def _expire(self, slot: int) -> None:
        # `expire` may discard other calls of the slot.
        calls = self._slots[slot]
        while calls:
            call = next(iter(calls))
            del calls[call]
            try:
                call.expire()
            except Exception:
                # A bug in one call must not prevent the expiry of the others.
                log.exception("expiring a call failed")
        del self._slots[slot]
