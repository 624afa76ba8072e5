"""A node that has just started asks another node of its site which messages the site has received before.

When the leader of another site changes, the next one sends the messages of the last seconds again, and targets drop those
that they know. A target that has just been restarted would know none of them, and its site would receive them twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from micro_core.contract.clock import Clock
from micro_core.contract.errors import BadRequest, MicroError
from micro_core.contract.table import ANY_SERVICE, NETWORK_LINK, Route
from micro_core.lifecycle.environment import Environment
from micro_core.proxy.duplicate_filter import DuplicateFilter
from micro_core.proxy.node_call import NodeCaller
from micro_core.proxy.topic_subscriptions import topic_tasks
from micro_core.wire import codec

DELIVERED = "Broker.Delivered"
"""Endpoint of a node that returns the ids of the messages of other sites that its site has received."""

MAX_IDS = 10_000
"""Maximum number of ids in an answer: the newest ones."""

MAX_ID_CHARS = 64
TIMEOUT_S = 2.0
MAX_ATTEMPTS = 3
"""A node that cannot get the ids continues without them."""


@dataclass(frozen=True, slots=True)
class DeliveredRequest:
    """A request for at most `limit` ids."""

    limit: int = MAX_IDS


class DeliveredIds:
    """The messages of other sites that were published on the broker of the own site, whichever of its nodes did so."""

    def __init__(self, *, site: str, caller: NodeCaller, duplicates: DuplicateFilter, environment: Environment) -> None:
        self._node_id = environment.node_id
        self._site = site
        self._caller = caller
        self._duplicates = duplicates
        self._clock: Clock = environment.clock
        self._logger = environment.logger
        self._counters = environment.counters
        self._attempts_left = MAX_ATTEMPTS
        self._tasks = topic_tasks(environment)

    async def close(self) -> None:
        """Cancel the request."""
        await self._tasks.cancel()

    def record(self, message_id: str) -> None:
        """Record that another node of the site has published a message."""
        self._duplicates.is_first(message_id, self._node_id, self._clock.now())

    async def answer(self, request: DeliveredRequest) -> dict[str, Any]:
        """Return the ids that this node knows, the newest ones first."""
        return {"ids": self._duplicates.known(self._node_id, max(0, min(request.limit, MAX_IDS)))}

    def nodes_changed(self, routes: Sequence[Route]) -> None:
        """Ask the node of the site with the smallest id, unless one was asked before.

        Args:
            routes: The routes of all nodes.
        """
        others = [
            route
            for route in routes
            if route.link == NETWORK_LINK and route.site == self._site and route.service != ANY_SERVICE
        ]
        if others and self._attempts_left and not len(self._tasks):
            self._attempts_left -= 1
            self._tasks.start(self._ask(min(others, key=lambda route: route.router)))

    async def _ask(self, route: Route) -> None:
        body = codec.encode({"limit": MAX_IDS})
        try:
            found = _checked(codec.decode(await self._caller.call(route, DELIVERED, body, timeout_s=TIMEOUT_S)))
        except MicroError as error:
            self._counters.add("topics_delivered_ids_missing")
            self._logger.info("cannot get the ids of received messages", extra={"reason": str(error)})
            return
        self._attempts_left = 0
        now = self._clock.now()
        # The newest ones are forgotten last.
        for message_id in reversed(found):
            self._duplicates.is_first(message_id, self._node_id, now)


def _checked(answer: object) -> list[str]:
    ids = answer.get("ids") if isinstance(answer, dict) else None
    if not isinstance(ids, list) or len(ids) > MAX_IDS:
        raise BadRequest("invalid answer: a list of message ids is missing or too long")
    if not all(isinstance(one, str) and len(one) <= MAX_ID_CHARS for one in ids):
        raise BadRequest("invalid answer: a message id is not a text, or too long")
    return ids
