"""Metrics of nodes and services for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from micro_core.contract import Driver, DriverContext, hookimpl
from micro_prometheus_hooks.options import PrometheusOptions


def create(options: PrometheusOptions, context: DriverContext) -> object:
    """Build the object whose methods are the hooks."""
    from micro_prometheus_hooks.hooks import PrometheusHooks

    return PrometheusHooks(options, context)


def make_app() -> object:
    """`micro metrics`, when somebody types it."""
    from micro_prometheus_hooks.commands import make_app

    return make_app()


@hookimpl
def micro_hooks() -> Driver[object]:
    return Driver(
        name="prometheus",
        summary="Metrics of nodes and services for Prometheus.",
        options=PrometheusOptions,
        create=create,
    )


@hookimpl
def micro_commands() -> Sequence[tuple[str, Callable[[], object]]]:
    return [("metrics", make_app)]
