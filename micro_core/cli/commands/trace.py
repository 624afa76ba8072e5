"""`micro trace`."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Address, Body, Config, Json, Service


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(trace)


def trace(
    service: Service,
    endpoint: Annotated[
        str,
        typer.Argument(help="Endpoint to call once at the end of the path. Choose one without side effects."),
    ] = "Debug.Health",
    body: Body = None,
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Trace the path of a call, node by node. Shows the time spent at each node."""
    from micro_core.cli.trace import trace_service

    trace_service(service, endpoint, body, config, address, json)
