"""A subscription's own queue and task: bounded, in order, and nobody else waits for its handler."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from micro_core.spec.broker import Message, MessageHandler
from micro_core.spec.driver import Counters

log = logging.getLogger(__name__)

MAX_WAITING = 1_024
"""Messages that wait for one handler; a slow subscriber loses the newest, and they are counted."""

CLOSE_TIMEOUT_S = 1.0


class Mailbox:
    """Implements `Subscription`: `offer` messages, the handler gets them one after the other."""

    def __init__(
        self, topic: str, queue: str, handler: MessageHandler, counters: Counters, forget: Callable[[Mailbox], None]
    ) -> None:
        self.topic = topic
        self.queue = queue
        self._handler = handler
        self._counters = counters
        self._forget = forget
        self._waiting: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False
        self._task = asyncio.get_running_loop().create_task(self._deliver())

    def offer(self, message: Message) -> None:
        """Queue a message; never waits."""
        if self._is_closed:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._counters.add("broker_messages_dropped_slow_subscriber")
            return
        self._waiting.append(message)
        self._changed.set()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._forget(self)
        self._waiting.clear()
        self._changed.set()
        done, _ = await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)
        if not done:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)

    async def _deliver(self) -> None:
        while not self._is_closed:
            await self._changed.wait()
            self._changed.clear()
            while self._waiting:
                message = self._waiting.popleft()
                try:
                    await self._handler(self.topic, message)
                except Exception:
                    # One message's handler is a task's root of its own: the next message is not to blame.
                    self._counters.add("broker_handlers_failed")
                    log.exception("a subscriber failed", extra={"topic": self.topic})
