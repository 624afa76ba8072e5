"""`micro config`: show and validate the settings."""

from __future__ import annotations

import typer

from micro_core.cli.options import Blocks, Config, Json, Plugins, Sets

config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show and validate the settings.")


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(config_app, name="config")


@config_app.command("show")
def config_show(
    config: Config = None, plugins: Plugins = None, sets: Sets = None, block: Blocks = None, json: Json = False
) -> None:
    """Show every setting, its value and its origin. Secrets are masked."""
    from micro_core.cli.config import show_config

    show_config((config, plugins, sets or [], block or []), json)


@config_app.command("validate")
def config_validate(
    config: Config = None, plugins: Plugins = None, sets: Sets = None, block: Blocks = None, json: Json = False
) -> None:
    """Validate all settings and plugin options."""
    from micro_core.cli.config import validate_config

    validate_config((config, plugins, sets or [], block or []), json)
