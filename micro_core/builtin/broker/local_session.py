"""The session of a node with the broker that it hosts itself. It needs no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from micro_core.builtin.broker.host import BrokerHost
from micro_core.builtin.broker.mailbox import Mailbox
from micro_core.contract.broker import Message
from micro_core.contract.clock import Clock
from micro_core.lifecycle.beat import next_beat


class LocalSession:
    """Implements `BrokerSession`. Like a session over a socket, it is lost if this process was stopped for a while."""

    def __init__(self, host: BrokerHost, clock: Clock, on_lost: Callable[[LocalSession], None]) -> None:
        self.address = host.address
        self.lost = asyncio.Event()
        self._node_id = host.node_id
        self._subscribers = host.subscribers
        self._clock = clock
        self._on_lost = on_lost
        self._mailboxes: dict[Mailbox, None] = {}

    async def wait_until_answered(self) -> None:
        """Return immediately: the host is in this process."""

    async def wait_until_writable(self) -> bool:
        """Return whether the session is open. It is always writable."""
        return not self.lost.is_set()

    async def publish(self, topic: str, message: Message) -> None:
        """Queue a message for all subscribers of the host."""
        self._subscribers.publish(topic, message)

    async def subscribe(self, mailbox: Mailbox) -> None:
        """Add a subscriber. A second call for the same mailbox has no effect."""
        if mailbox not in self._mailboxes and not self.lost.is_set():
            self._mailboxes[mailbox] = None
            self._subscribers.add(mailbox.topic, mailbox.queue, mailbox)

    def unsubscribe(self, mailbox: Mailbox) -> None:
        """Remove a subscriber. Unknown ones are ignored."""
        if mailbox in self._mailboxes:
            del self._mailboxes[mailbox]
            self._subscribers.remove(mailbox.topic, mailbox.queue, mailbox)

    async def keep_alive(self, interval_s: float, max_missed: int) -> None:
        """Return when this process did nothing for `max_missed` intervals: its clients have disconnected by then."""
        while True:
            before = self._clock.now()
            await asyncio.sleep(next_beat(before, interval_s, self._node_id) - before)
            if self._clock.now() - before > interval_s * (max_missed + 1):
                return

    async def close(self) -> None:
        """Remove all subscribers. Safe to call twice."""
        for mailbox in list(self._mailboxes):
            self.unsubscribe(mailbox)
        if not self.lost.is_set():
            self.lost.set()
            self._on_lost(self)
