"""Services in Redis: one key an instance, leases by key expiry, changes over a channel of our own."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Registry, hookimpl
from micro_redis_registry.options import RedisOptions


def create(options: RedisOptions, context: DriverContext) -> Registry:
    """Build the registry; nothing is connected before `start`. Raises OptionError."""
    from micro_redis_registry.registry import RedisRegistry

    return RedisRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    return Driver(
        name="redis",
        summary="Services in Redis, alone, with Sentinel or as a Cluster.",
        options=RedisOptions,
        create=create,
        capabilities=frozenset({"watch"}),
    )
