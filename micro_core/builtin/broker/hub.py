"""A broker for subscribers in the same process. A message is queued for them in the same loop iteration."""

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
    """Implements `Broker`. Brokers with the same subscribers exchange messages.

    `hub()` returns the subscribers. It is called in the event loop, whenever they are needed.
    """

    def __init__(self, hub: Callable[[], Subscribers], counters: Counters) -> None:
        self._hub = hub
        self._counters = counters
        self._mailboxes: dict[Mailbox, None] = {}
        self._is_closed = False

    async def start(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def close(self) -> None:
        """Close the subscriptions of this object. Safe to call twice."""
        self._is_closed = True
        await asyncio.gather(*(mailbox.close() for mailbox in list(self._mailboxes)))

    async def publish(self, topic: str, message: Message) -> None:
        """Queue a message for all subscribers. Raises BadRequest, TooLarge, Closed."""
        self._check_open()
        check_topic(topic)
        check_message(message)
        self._hub().publish(topic, message)

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        """Deliver the messages of `topic` to `handler`. Raises BadRequest, Closed."""
        self._check_open()
        check_topic(topic)
        check_queue(queue)
        mailbox = Mailbox(topic, queue, handler, self._counters, self._mailbox_closed)
        self._mailboxes[mailbox] = None
        self._hub().add(topic, queue, mailbox)
        return mailbox

    def _mailbox_closed(self, mailbox: Mailbox) -> None:
        self._mailboxes.pop(mailbox, None)
        self._hub().remove(mailbox.topic, mailbox.queue, mailbox)

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("the broker is closed")
