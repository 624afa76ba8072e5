"""What all subscriptions of a node for other sites share: their background tasks, and how one is closed."""

from __future__ import annotations

import logging

from micro_core.contract.broker import Subscription
from micro_core.contract.errors import MicroError
from micro_core.lifecycle.background_tasks import BackgroundTasks
from micro_core.lifecycle.environment import Environment


def topic_tasks(environment: Environment) -> BackgroundTasks:
    """Return a set of background tasks. Failures are logged and counted as `topics_tasks_failed`."""
    return BackgroundTasks(
        component="topics",
        logger=environment.logger,
        counters=environment.counters,
        failure_counter="topics_tasks_failed",
    )


async def close_subscription(subscription: Subscription, logger: logging.Logger) -> None:
    """Close a subscription. A failure is only logged: the broker ends the subscription with the connection."""
    try:
        await subscription.close()
    except MicroError as error:
        logger.info("subscription not closed", extra={"reason": str(error)})
