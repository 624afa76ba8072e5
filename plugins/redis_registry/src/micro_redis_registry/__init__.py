"""A registry in Redis: one key per instance, leases by key expiry, changes over a pub/sub channel."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Registry, hookimpl
from micro_redis_registry.options import RedisOptions


def create(options: RedisOptions, context: DriverContext) -> Registry:
    """Build the registry; `start` connects. Raises OptionError for invalid options."""
    from micro_redis_registry.registry import RedisRegistry

    return RedisRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    """Describe the Redis registry."""
    return Driver(
        name="redis",
        summary="Stores the registry in Redis: a single server, Sentinel or a cluster.",
        options=RedisOptions,
        create=create,
        capabilities=frozenset({"watch"}),
    )
