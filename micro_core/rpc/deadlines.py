"""When the time of calls runs out: one timer for all whose deadlines fall into the same slot, not one a call.

A call nearly always ends long before its deadline; a timer of its own would cost more than the rest of its
bookkeeping. Slots are 1/128 s wide and told at their end: never early, late by less than a slot.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

log = logging.getLogger(__name__)

SLOTS_PER_S = 128


class Expirable(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """The time has run out. Called in the event loop, at most once."""
        ...


class Deadlines:
    """The deadlines of one client, server or proxy, in the loop's clock."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[Expirable, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, deadline: float, call: Expirable) -> None:
        """`call.expire()` soon after `deadline` (loop seconds), unless it is discarded before."""
        slot = int(deadline * SLOTS_PER_S) + 1
        calls = self._slots.get(slot)
        if calls is None:
            calls = self._slots[slot] = {}
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_at(slot / SLOTS_PER_S, self._expire, slot)
        calls[call] = None

    def discard(self, deadline: float, call: Expirable) -> None:
        """Forget a call that was added with `deadline`; unknown ones are ignored."""
        calls = self._slots.get(int(deadline * SLOTS_PER_S) + 1)
        if calls is not None:
            calls.pop(call, None)

    def _expire(self, slot: int) -> None:
        # What expires may discard others of the slot, which then have no more to hear.
        calls = self._slots[slot]
        while calls:
            call = next(iter(calls))
            del calls[call]
            try:
                call.expire()
            except Exception:
                # One call's bug is not to keep the others waiting.
                log.exception("a call could not be expired")
        del self._slots[slot]
