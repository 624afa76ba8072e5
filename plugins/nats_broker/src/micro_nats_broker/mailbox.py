"""The bounded queue and the task of one subscription, which handles its messages in order, one or several at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from micro_core.contract import DriverContext, Message, MessageHandler
from micro_nats_broker.task_cancellation import cancel_and_wait

MAX_WAITING_BYTES = 16 * 1024 * 1024
"""Maximum size of the queued bodies of one handler. It may be exceeded by less than one message."""


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A received message. `reply`, `sequence` and `delivery` (the number of deliveries) are set by JetStream only."""

    topic: str
    message: Message
    reply: str = ""
    sequence: int = 0
    delivery: int = 1


class Settle(Protocol):
    """Called in order with the outcome of each message; the next message is handled after it has returned."""

    def __call__(self, arrived: ReceivedMessage, failure: Exception | None) -> Awaitable[None]:
        """Settle `arrived`. `failure` is the exception of the handler, or None."""
        ...


class Mailbox:
    """Queues messages and passes them to a handler, at most `max_concurrent` at a time."""

    def __init__(
        self,
        topic: str,
        handler: MessageHandler,
        context: DriverContext,
        *,
        max_waiting: int,
        max_concurrent: int = 1,
        settle: Settle | None = None,
        on_capacity: Callable[[], None] | None = None,
    ) -> None:
        self._topic = topic
        self._handler = handler
        self._context = context
        self._max_waiting = max_waiting
        self._max_concurrent = max_concurrent
        self._settle = settle
        self._on_capacity = on_capacity
        self._waiting: deque[ReceivedMessage] = deque()
        self._waiting_bytes = 0
        self._handling: dict[asyncio.Task[None], ReceivedMessage] = {}
        """With several messages at a time: the tasks that handle them."""
        self._is_handling = False
        self._changed = asyncio.Event()
        self._is_closed = False
        self._lost_in_burst = 0
        self._task = asyncio.get_running_loop().create_task(self._handle_all())

    @property
    def held(self) -> int:
        """Number of messages that are queued or being handled."""
        return len(self._waiting) + self._is_handling + len(self._handling)

    @property
    def is_full(self) -> bool:
        """Whether the limits of messages or bytes are reached."""
        return len(self._waiting) >= self._max_waiting or self._waiting_bytes >= MAX_WAITING_BYTES

    def waiting(self) -> Iterable[ReceivedMessage]:
        """Return the queued messages."""
        return tuple(self._waiting)

    def unsettled(self) -> Iterable[ReceivedMessage]:
        """Return the messages that are being handled by several tasks, and the queued messages."""
        return (*self._handling.values(), *self._waiting)

    def offer(self, arrived: ReceivedMessage) -> bool:
        """Queue a message and return True, or drop and count it and return False. Never waits."""
        if self._is_closed:
            self._context.counters.add("broker_messages_unwanted")
            return False
        if self.is_full:
            self.drop(1)
            return False
        self._waiting.append(arrived)
        self._waiting_bytes += len(arrived.message.body)
        self._changed.set()
        return True

    def drop(self, count: int) -> None:
        """Count messages dropped because the subscriber is too slow; log once per burst, until it has caught up."""
        self._context.counters.add("broker_messages_dropped_slow_subscriber", count)
        if self._lost_in_burst == 0:
            self._context.logger.warning("subscriber too slow, messages dropped", extra={"topic": self._topic})
        self._lost_in_burst += count

    async def close(self, timeout_s: float) -> list[ReceivedMessage]:
        """Handle queued messages for at most `timeout_s`, then stop the handler; return the unhandled messages.

        If the handler itself calls this method, it cannot wait for its own end.
        """
        self._is_closed = True
        self._changed.set()
        if asyncio.current_task() is not self._task:
            done, _ = await asyncio.wait([self._task], timeout=timeout_s)
            if not done:
                if self._is_handling:
                    self._context.counters.add("broker_handlers_cancelled")
                left = list(self.unsettled())
                self._waiting.clear()
                tasks = list(self._handling)
                self._handling.clear()
                for task in tasks:
                    task.cancel()
                if tasks:
                    await asyncio.wait(tasks, timeout=1.0)
                # Do not wait for a handler that ignores its cancellation.
                try:
                    async with asyncio.timeout(1.0):
                        await cancel_and_wait(self._task)
                except TimeoutError:
                    self._context.logger.warning("handler ignores its cancellation", extra={"topic": self._topic})
                return left
        left = list(self._waiting)
        self._waiting.clear()
        return left

    async def _handle_all(self) -> None:
        while True:
            while self._waiting and self._max_concurrent == 1:
                await self._handle(self._waiting.popleft())
            while self._waiting and len(self._handling) < self._max_concurrent:
                self._start_handling(self._waiting.popleft())
            if self._lost_in_burst:
                self._context.logger.info(
                    "subscriber has caught up", extra={"topic": self._topic, "lost": self._lost_in_burst}
                )
                self._lost_in_burst = 0
            if self._is_closed and not self._waiting and not self._handling:
                return
            self._changed.clear()
            await self._changed.wait()

    def _start_handling(self, arrived: ReceivedMessage) -> None:
        self._waiting_bytes -= len(arrived.message.body)
        task = asyncio.get_running_loop().create_task(self._handle_in_task(arrived))
        self._handling[task] = arrived
        task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._handling.pop(task, None)
        self._changed.set()
        if self._on_capacity is not None:
            self._on_capacity()

    async def _handle(self, arrived: ReceivedMessage) -> None:
        self._waiting_bytes -= len(arrived.message.body)
        self._is_handling = True
        try:
            failure = await self._call_handler(arrived)
        finally:
            self._is_handling = False
        if self._settle is not None:
            await self._settle(arrived, failure)
        if self._on_capacity is not None:
            self._on_capacity()

    async def _handle_in_task(self, arrived: ReceivedMessage) -> None:
        failure = await self._call_handler(arrived)
        if self._settle is not None:
            await self._settle(arrived, failure)

    async def _call_handler(self, arrived: ReceivedMessage) -> Exception | None:
        """Return the exception of the handler, which must not prevent the handling of other messages."""
        try:
            await self._handler(arrived.topic, arrived.message)
        except asyncio.CancelledError:
            if self._is_being_cancelled():
                raise
            self._context.counters.add("broker_handlers_failed")
            return RuntimeError("the handler raised CancelledError")
        except Exception as error:
            self._context.counters.add("broker_handlers_failed")
            self._context.logger.exception("subscriber failed", extra={"topic": arrived.topic})
            return error
        return None

    def _is_being_cancelled(self) -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
