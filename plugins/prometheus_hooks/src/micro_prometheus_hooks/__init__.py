"""Export metrics of nodes and services to Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from micro_core.contract import Driver, DriverContext, hookimpl
from micro_prometheus_hooks.options import PrometheusOptions


def create(options: PrometheusOptions, context: DriverContext) -> object:
    """Build the object whose methods implement the hooks."""
    from micro_prometheus_hooks.hooks import PrometheusHooks

    return PrometheusHooks(options, context)


def make_app() -> object:
    """Return the typer app of `micro metrics`; its module is imported only when the command is used."""
    from micro_prometheus_hooks.commands import make_app

    return make_app()


@hookimpl
def micro_hooks() -> Driver[object]:
    """Describe the plugin and its options."""
    return Driver(
        name="prometheus",
        summary="Exports metrics of nodes and services to Prometheus.",
        options=PrometheusOptions,
        create=create,
    )


@hookimpl
def micro_commands() -> Sequence[tuple[str, Callable[[], object]]]:
    """Add the command group `metrics`."""
    return [("metrics", make_app)]
