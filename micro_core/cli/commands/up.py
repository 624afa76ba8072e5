"""`micro up`."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Json


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(up)


def up(
    file: Annotated[
        str, typer.Option("-f", "--file", help="File with tables [nodes.NAME] and [services.NAME].")
    ] = "micro.toml",
    check: Annotated[
        bool, typer.Option("--check", help="Check the file and show what would be started, without starting it.")
    ] = False,
    json: Json = False,
) -> None:
    """Run all nodes and services of one file. Ctrl-C stops them."""
    from micro_core.cli.up import bring_up

    bring_up(file, check=check, as_json=json)
