"""Services of all hosts that mount one directory."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, Registry, hookimpl

from micro_share_registry.options import ShareOptions


def create(options: ShareOptions, context: DriverContext) -> Registry:
    """Build the registry; nothing is touched before `start`."""
    # Here and not above: what a registry needs is imported by those who use it, not by `micro plugin info`.
    from micro_share_registry.registry import ShareRegistry

    return ShareRegistry(options, context)


@hookimpl
def micro_registry() -> Driver[Registry]:
    return Driver(
        name="share",
        summary="Services of all hosts that mount one directory.",
        options=ShareOptions,
        create=create,
        capabilities=frozenset({"watch", "persistent"}),
        contract=((1, 0), (2, 0)),
    )
