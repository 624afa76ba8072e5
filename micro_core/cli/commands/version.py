"""`micro version`."""

from __future__ import annotations

import typer

from micro_core.cli.options import Json


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(version)


def version(json: Json = False) -> None:
    """Print the version of micro. Includes the versions of the plugin contract and of the wire protocol."""
    from micro_core.cli.version import show_version

    show_version(json)
