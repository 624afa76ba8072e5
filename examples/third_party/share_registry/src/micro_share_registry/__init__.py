"""Lets all hosts that mount one directory find each other's services."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Registry, hookimpl

from micro_share_registry.options import ShareOptions


def create(options: ShareOptions, context: DriverContext) -> Registry:
    """Return the registry. It accesses nothing outside the process before `start`."""
    # Imported here, so that `micro plugin info` does not import the dependencies of the registry.
    from micro_share_registry.registry import ShareRegistry

    return ShareRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    """Describe the driver."""
    return Driver(
        name="share",
        summary="Lets all hosts that mount one directory find each other's services.",
        options=ShareOptions,
        create=create,
        capabilities=frozenset({"watch", "persistent"}),
        contract=((1, 0), (2, 0)),
    )
