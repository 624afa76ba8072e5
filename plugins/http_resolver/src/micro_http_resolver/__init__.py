"""Nodes of a network from a JSON document on the web."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Resolver, hookimpl
from micro_http_resolver.options import HttpOptions


def create(options: HttpOptions, context: DriverContext) -> Resolver:
    """Build the resolver; nothing is asked before `resolve`."""
    from micro_http_resolver.resolver import HttpResolver

    return HttpResolver(options, context)


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    return Driver(
        name="http",
        summary="Nodes of a network from a JSON document on the web.",
        options=HttpOptions,
        create=create,
        capabilities=frozenset({"priorities"}),
    )
