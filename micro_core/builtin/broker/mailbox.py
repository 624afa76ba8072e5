"""The queue and the task of one subscription: bounded, in order, and independent of all other subscriptions."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from micro_core.contract.broker import Message, MessageHandler
from micro_core.contract.driver import Counters
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.wire import limits

log = logging.getLogger(__name__)

MAX_QUEUED = 1_024
"""Messages queued for one handler. Further ones are dropped and counted."""

MAX_QUEUED_BYTES = limits.MAX_CONNECTION_BUFFER_BYTES
"""From this size of the queue on, messages are dropped. The queue can exceed it by less than one message."""

CLOSE_TIMEOUT_S = 1.0


class Mailbox:
    """Calls `handler` for the offered messages, one after the other. Implements `Subscription`."""

    def __init__(
        self, topic: str, queue: str, handler: MessageHandler, counters: Counters, on_close: Callable[[Mailbox], None]
    ) -> None:
        self.topic = topic
        self.queue = queue
        self._handler = handler
        self._counters = counters
        self._on_close = on_close
        self._messages: deque[Message] = deque()
        self._queued_bytes = 0
        self._changed = asyncio.Event()
        self._is_closed = False
        tasks = BackgroundTasks(
            component="broker subscription", logger=log, counters=counters, failure_counter="broker_tasks_failed"
        )
        self._task = tasks.start(self._deliver())

    @property
    def is_full(self) -> bool:
        """Whether the next message would be dropped."""
        return len(self._messages) >= MAX_QUEUED or self._queued_bytes >= MAX_QUEUED_BYTES

    def offer(self, message: Message) -> None:
        """Queue a message, or drop and count it. Never waits."""
        if self._is_closed:
            return
        if self.is_full:
            self._counters.add("broker_messages_dropped_slow_subscriber")
            return
        self._messages.append(message)
        self._queued_bytes += len(message.body)
        self._changed.set()

    async def close(self) -> None:
        """Drop queued messages and wait for the handler. It is cancelled after one second. Safe to call twice."""
        if not self._is_closed:
            self._is_closed = True
            self._on_close(self)
            self._messages.clear()
            self._changed.set()
        if asyncio.current_task() is self._task:
            # A handler that closes its own subscription cannot wait for its own end.
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
            while self._messages:
                message = self._messages.popleft()
                self._queued_bytes -= len(message.body)
                try:
                    await self._handler(self.topic, message)
                except asyncio.CancelledError:
                    if _is_being_cancelled():
                        raise
                    # The handler awaited something that was cancelled elsewhere, which must not end the subscription.
                    self._counters.add("broker_handlers_failed")
                    log.warning("a subscriber raised CancelledError", extra={"topic": self.topic})
                except Exception:
                    # A failed handler does not prevent the delivery of the next message.
                    self._counters.add("broker_handlers_failed")
                    log.exception("a subscriber failed", extra={"topic": self.topic})


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
