"""Carries messages of a broker that stores them: a message is acknowledged once every interested site has it.

The leader of a site has one subscription per topic and interested site. The subscriptions of all nodes of the site for the
same two belong to one group, so the broker remembers for each site which messages it has. Each message is a call of
`Broker.Deliver` at the leader of that site, which answers after its broker has accepted the message. It is repeated, at
another leader if necessary, until it succeeds. If this node dies, the broker delivers the messages that it has not
acknowledged to the next leader. Targets recognize repeated messages by their ids.
"""

from __future__ import annotations

import asyncio
from functools import partial

from micro_core.contract.broker import DurableBroker, Message, Subscription
from micro_core.contract.errors import (
    BadRequest,
    Forbidden,
    InternalError,
    MicroError,
    RouteNotFound,
    TooLarge,
)
from micro_core.contract.names import interest_name
from micro_core.lifecycle.environment import Environment
from micro_core.proxy.message_headers import DELIVERED_BY
from micro_core.proxy.node_call import NodeCaller
from micro_core.proxy.routes import RouteSource
from micro_core.proxy.site_leaders import leaders_by_site
from micro_core.proxy.topic_subscriptions import close_subscription, topic_tasks
from micro_core.wire import codec

DELIVER = "Broker.Deliver"
"""Endpoint of a node that publishes a message of another site."""

DELIVER_TIMEOUT_S = 5.0
"""Timeout of one attempt. Calls over a dead link fail after 3 to 4 s."""

INITIAL_RETRY_S = 0.1
MAX_RETRY_S = 1.0
"""Bounds of the pause between two attempts."""

MAX_CONCURRENT = 128
"""Maximum number of messages per topic and site that are sent and not acknowledged."""

MAX_INTERNAL_ERRORS = 10
"""Number of attempts that may fail with an internal error of the target: a message that causes one must not be repeated for ever."""

_PERMANENT = (BadRequest, Forbidden, TooLarge)
"""Errors with which a target refuses the message itself."""


class DurableTopics:
    """The subscriptions of a node of `site` for other sites."""

    def __init__(
        self,
        *,
        site: str,
        router: RouteSource,
        caller: NodeCaller,
        broker: DurableBroker,
        environment: Environment,
    ) -> None:
        self._node_id = environment.node_id
        self._site = site
        self._router = router
        self._caller = caller
        self._broker = broker
        self._random = environment.random
        self._counters = environment.counters
        self._logger = environment.logger
        self._subscriptions: dict[str, dict[str, Subscription]] = {}
        """By topic and site."""
        self._closing = topic_tasks(environment)
        """Subscriptions that are being closed. A broker may wait for calls to an unreachable site, so nothing waits for them."""

    def topics(self) -> list[str]:
        """Return the topics that this node sends to other sites now."""
        return [topic for topic, subscriptions in self._subscriptions.items() if subscriptions]

    async def reconcile(self, topic: str, *, is_leader: bool) -> None:
        """Subscribe for the sites that are interested in a topic now, and for no others.

        Raises what `subscribe_group` of the broker raises.
        """
        sites = leaders_by_site(self._router.lookup(interest_name(topic)), own_site=self._site) if is_leader else {}
        subscriptions = self._subscriptions.setdefault(topic, {})
        try:
            for site in [site for site in subscriptions if site not in sites]:
                self._closing.start(close_subscription(subscriptions.pop(site), self._logger))
            for site in sorted(sites):
                if site not in subscriptions:
                    subscriptions[site] = await self._broker.subscribe_group(
                        topic, partial(self._deliver, site), group=f"micro-site-{site}", max_concurrent=MAX_CONCURRENT
                    )
        finally:
            if not subscriptions:
                del self._subscriptions[topic]

    async def close(self) -> None:
        """End all subscriptions. Messages that no site has acknowledged are delivered to the next leader."""
        for by_site in self._subscriptions.values():
            for subscription in by_site.values():
                self._closing.start(close_subscription(subscription, self._logger))
        self._subscriptions.clear()
        await self._closing.wait()

    async def _deliver(self, site: str, topic: str, message: Message) -> None:
        """Return once `site` has the message. Raises the error with which the site refuses it."""
        if DELIVERED_BY in message.headers:
            return
        body = codec.encode(
            {
                "topic": topic,
                "id": message.id,
                "body": message.body,
                "content_type": message.content_type,
                "headers": dict(message.headers),
                "origin": self._node_id,
            }
        )
        pause_s = INITIAL_RETRY_S
        internal_errors = 0
        while True:
            try:
                await self._call(site, topic, body)
            except MicroError as error:
                internal_errors += isinstance(error, InternalError)
                if isinstance(error, _PERMANENT) or internal_errors >= MAX_INTERNAL_ERRORS:
                    self._counters.add("topics_messages_refused")
                    self._logger.warning(
                        "message refused by another site", extra={"topic": topic, "reason": str(error)}
                    )
                    raise
                # The leader of the site, or the route to it, may change. The subscription ends if the site is gone.
                self._counters.add("topics_deliveries_retried")
            else:
                self._counters.add("topics_messages_sent")
                return
            await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, MAX_RETRY_S)

    async def _call(self, site: str, topic: str, body: bytes) -> None:
        """Deliver a message to the leader of a site. Raises MicroError."""
        route = leaders_by_site(self._router.lookup(interest_name(topic)), own_site=self._site).get(site)
        if route is None:
            raise RouteNotFound(f"no route to the interest of site {site} in {topic}")
        await self._caller.call(route, DELIVER, body, timeout_s=DELIVER_TIMEOUT_S)
