"""A subscription's own queue and task: bounded, in order, and nobody else waits for its handler."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from micro_core.contract.broker import Message, MessageHandler
from micro_core.contract.driver import Counters
from micro_core.wire import limits

log = logging.getLogger(__name__)

MAX_WAITING = 1_024
"""Messages that wait for one handler; a slow subscriber loses the newest, and they are counted."""

MAX_WAITING_BYTES = limits.MAX_CONNECTION_BUFFER_BYTES
"""The same in bytes: above it nothing more is taken. It can be passed by less than one message."""

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
        self._waiting_bytes = 0
        self._changed = asyncio.Event()
        self._is_closed = False
        self._task = asyncio.get_running_loop().create_task(self._deliver())

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES

    def offer(self, message: Message) -> None:
        """Queue a message; never waits."""
        if self._is_closed:
            return
        if self.is_full:
            self._counters.add("broker_messages_dropped_slow_subscriber")
            return
        self._waiting.append(message)
        self._waiting_bytes += len(message.body)
        self._changed.set()

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._forget(self)
            self._waiting.clear()
            self._changed.set()
        if asyncio.current_task() is self._task:
            # A handler that unsubscribes itself cannot wait for its own end.
            return
        done, _ = await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)
        if not done:
            self._counters.add("broker_handlers_cancelled")
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT_S)

    async def _deliver(self) -> None:
        while not self._is_closed:
            await self._changed.wait()
            self._changed.clear()
            while self._waiting:
                message = self._waiting.popleft()
                self._waiting_bytes -= len(message.body)
                try:
                    await self._handler(self.topic, message)
                except Exception:
                    # One message's handler is a task's root of its own: the next message is not to blame.
                    self._counters.add("broker_handlers_failed")
                    log.exception("a subscriber failed", extra={"topic": self.topic})
