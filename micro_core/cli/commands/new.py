"""`micro new`: create a project."""

from __future__ import annotations

from typing import Annotated

import typer

new_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Create a new project.")


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(new_app, name="new")


@new_app.command("service")
def new_service(
    name: Annotated[str, typer.Argument(help="Service name, e.g. go.micro.srv.greeter.")],
    directory: Annotated[
        str, typer.Option(help="Directory to create. Default: the last component of the name, e.g. greeter.")
    ] = "",
) -> None:
    """Create a service with one endpoint and a test."""
    from micro_core.cli.new_service import write_service

    write_service(name, directory)
