"""A resolver that finds the nodes of a network in a JSON document fetched over HTTP."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Resolver, hookimpl
from micro_http_resolver.options import HttpOptions


def create(options: HttpOptions, context: DriverContext) -> Resolver:
    """Build the resolver; no request is sent before `resolve`. Raises OptionError for invalid options."""
    from micro_http_resolver.resolver import HttpResolver

    return HttpResolver(options, context)


@hookimpl
def micro_resolver() -> Driver[Resolver]:
    """Describe the HTTP resolver."""
    return Driver(
        name="http",
        summary="Finds nodes in a JSON document fetched over HTTP.",
        options=HttpOptions,
        create=create,
        capabilities=frozenset({"priorities"}),
    )
