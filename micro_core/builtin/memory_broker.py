"""The broker role within one process: what is published is with the subscribers in the same turn."""

from __future__ import annotations

import asyncio

from micro_core.builtin.mailbox import Mailbox
from micro_core.builtin.subscribers import Subscribers
from micro_core.spec import (
    Broker,
    Closed,
    Driver,
    DriverContext,
    Message,
    MessageHandler,
    NoOptions,
    Subscription,
    TooLarge,
    hookimpl,
)
from micro_core.spec.driver import Counters
from micro_core.spec.names import check_topic
from micro_core.wire import limits

Hub = Subscribers[Mailbox]

_hubs: dict[tuple[asyncio.AbstractEventLoop, str, str], Hub] = {}


def check_size(message: Message) -> None:
    """Raise TooLarge for a body over `limits.MAX_BODY_BYTES`."""
    if len(message.body) > limits.MAX_BODY_BYTES:
        raise TooLarge(
            f"a message of {len(message.body)} bytes is over the bound of {limits.MAX_BODY_BYTES}",
            hint="publish where it can be fetched, not the thing itself",
        )


class MemoryBroker:
    """Implements `Broker`; those of one process, loop, network and site meet."""

    def __init__(self, network: str, site: str, counters: Counters) -> None:
        self._place = (network, site)
        self._counters = counters
        self._own: set[Mailbox] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        self._is_closed = True
        await asyncio.gather(*(mailbox.close() for mailbox in list(self._own)))

    async def publish(self, topic: str, message: Message) -> None:
        self._check_open()
        check_topic(topic)
        check_size(message)
        for mailbox in self._hub().receivers(topic):
            mailbox.offer(message)

    async def subscribe(self, topic: str, handler: MessageHandler, *, queue: str = "") -> Subscription:
        self._check_open()
        check_topic(topic)
        mailbox = Mailbox(topic, queue, handler, self._counters, self._forget)
        self._own.add(mailbox)
        self._hub().add(topic, queue, mailbox)
        return mailbox

    def _forget(self, mailbox: Mailbox) -> None:
        self._own.discard(mailbox)
        self._hub().remove(mailbox.topic, mailbox.queue, mailbox)

    def _hub(self) -> Hub:
        return _hubs.setdefault((asyncio.get_running_loop(), *self._place), Subscribers())

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("this broker is closed")


def create(options: NoOptions, context: DriverContext) -> Broker:  # noqa: ARG001 - the shape of a driver
    return MemoryBroker(context.network, context.site, context.counters)


@hookimpl
def micro_broker() -> Driver[Broker]:
    return Driver(name="memory", summary="Topics within one process.", options=NoOptions, create=create)
