"""A broker over subscribers that stand in this process: what is published is with them in the same turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from micro_core.builtin.broker.mailbox import Mailbox
from micro_core.builtin.broker.subscribers import Subscribers
from micro_core.contract.broker import Message, MessageHandler, Subscription
from micro_core.contract.driver import Counters
from micro_core.contract.errors import Closed
from micro_core.contract.messages import check_message, check_queue
from micro_core.contract.names import check_topic


class HubBroker:
    """Implements `Broker`; those with the same hub meet. The hub is asked for when it is used, in the loop."""

    def __init__(self, hub: Callable[[], Subscribers], counters: Counters) -> None:
        self._hub = hub
        self._counters = counters
        self._own: dict[Mailbox, None] = {}
        self._is_closed = False

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.gather(*(mailbox.close() for mailbox in list(self._own)))

    async def publish(self, topic: str, message: Message) -> None:
        self._check_open()
        check_topic(topic)
        check_message(message)
        self._hub().publish(topic, message)

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        self._check_open()
        check_topic(topic)
        check_queue(queue)
        mailbox = Mailbox(topic, queue, handler, self._counters, self._forget)
        self._own[mailbox] = None
        self._hub().add(topic, queue, mailbox)
        return mailbox

    def _forget(self, mailbox: Mailbox) -> None:
        self._own.pop(mailbox, None)
        self._hub().remove(mailbox.topic, mailbox.queue, mailbox)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("this broker is closed")
