"""A subscription's own queue and task: bounded, in order, and nobody else waits for its handler."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from micro_core.contract import DriverContext, Message, MessageHandler
from micro_nats_broker.ending import end

MAX_WAITING_BYTES = 16 * 1024 * 1024
"""Bodies that wait for one handler: above it nothing more is taken. It can be passed by less than one message."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message for the handler. The rest is JetStream's: where to acknowledge it, which it is, the nth delivery."""

    topic: str
    message: Message
    reply: str = ""
    sequence: int = 0
    delivery: int = 1


class Settle(Protocol):
    """Told, in order, how each message ended; the next one is handled after it has returned."""

    def __call__(self, arrived: Arrived, failure: Exception | None) -> Awaitable[None]: ...


class Mailbox:
    """`offer` messages; the handler gets them one after the other."""

    def __init__(
        self,
        topic: str,
        handler: MessageHandler,
        context: DriverContext,
        *,
        max_waiting: int,
        settle: Settle | None = None,
        on_room: Callable[[], None] | None = None,
    ) -> None:
        self._topic = topic
        self._handler = handler
        self._context = context
        self._max_waiting = max_waiting
        self._settle = settle
        self._on_room = on_room
        self._waiting: deque[Arrived] = deque()
        self._waiting_bytes = 0
        self._is_handling = False
        self._changed = asyncio.Event()
        self._is_closed = False
        self._lost_in_burst = 0
        self._task = asyncio.get_running_loop().create_task(self._handle_all())

    @property
    def held(self) -> int:
        """Messages that wait or are being handled."""
        return len(self._waiting) + self._is_handling

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._max_waiting or self._waiting_bytes >= MAX_WAITING_BYTES

    def waiting(self) -> Iterable[Arrived]:
        """Those whose turn has not come."""
        return tuple(self._waiting)

    def offer(self, arrived: Arrived) -> bool:
        """Queue a message and return True; or lose it, counted, and return False. Never waits."""
        if self._is_closed:
            self._context.counters.add("broker_messages_unwanted")
            return False
        if self.is_full:
            self.lost(1)
            return False
        self._waiting.append(arrived)
        self._waiting_bytes += len(arrived.message.body)
        self._changed.set()
        return True

    def lost(self, count: int) -> None:
        """Messages that this subscriber was too slow for. Said once a burst, which ends when it has caught up."""
        self._context.counters.add("broker_messages_dropped_slow_subscriber", count)
        if self._lost_in_burst == 0:
            self._context.logger.warning("a subscriber is too slow; messages are lost", extra={"topic": self._topic})
        self._lost_in_burst += count

    async def close(self, timeout_s: float) -> list[Arrived]:
        """Handle what waits for at most `timeout_s`, then stop the handler; return what was not handled.

        Called by the handler itself it cannot wait for its own end.
        """
        self._is_closed = True
        self._changed.set()
        if asyncio.current_task() is not self._task:
            done, _ = await asyncio.wait([self._task], timeout=timeout_s)
            if not done:
                if self._is_handling:
                    self._context.counters.add("broker_handlers_cancelled")
                left = list(self._waiting)
                self._waiting.clear()
                # A handler that will not be cancelled is not waited for.
                try:
                    async with asyncio.timeout(1.0):
                        await end(self._task)
                except TimeoutError:
                    self._context.logger.warning("a handler does not end", extra={"topic": self._topic})
                return left
        left = list(self._waiting)
        self._waiting.clear()
        return left

    async def _handle_all(self) -> None:
        while True:
            while self._waiting:
                await self._handle(self._waiting.popleft())
            if self._lost_in_burst:
                self._context.logger.info(
                    "the subscriber has caught up", extra={"topic": self._topic, "lost": self._lost_in_burst}
                )
                self._lost_in_burst = 0
            if self._is_closed:
                return
            self._changed.clear()
            await self._changed.wait()

    async def _handle(self, arrived: Arrived) -> None:
        self._waiting_bytes -= len(arrived.message.body)
        self._is_handling = True
        failure: Exception | None = None
        try:
            await self._handler(arrived.topic, arrived.message)
        except asyncio.CancelledError:
            if self._is_being_cancelled():
                raise
            failure = RuntimeError("the handler was cancelled by itself")
            self._context.counters.add("broker_handlers_failed")
        except Exception as error:
            # One message's handler is a task's root of its own: the next message is not to blame.
            failure = error
            self._context.counters.add("broker_handlers_failed")
            self._context.logger.exception("a subscriber failed", extra={"topic": arrived.topic})
        finally:
            self._is_handling = False
        if self._settle is not None:
            await self._settle(arrived, failure)
        if self._on_room is not None:
            self._on_room()

    def _is_being_cancelled(self) -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
