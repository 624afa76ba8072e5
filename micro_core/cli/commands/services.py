"""`micro services` and `micro describe`."""

from __future__ import annotations

import typer

from micro_core.cli.options import Address, Config, Json, Plugins, Service, Sets


def register(app: typer.Typer) -> None:
    """Add the two commands to `app`."""
    for command in (services, describe):
        app.command()(command)


def services(config: Config = None, plugins: Plugins = None, sets: Sets = None, json: Json = False) -> None:
    """List the services of this site. With MICRO_PROXY, list those of the whole network."""
    from micro_core.cli.services import list_services

    list_services((config, plugins, sets), json)


def describe(
    service: Service,
    address: Address = None,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Show the endpoints of a service. Includes the types of their requests and responses."""
    from micro_core.cli.services import describe_service

    describe_service(service, address, (config, plugins, sets), json)
