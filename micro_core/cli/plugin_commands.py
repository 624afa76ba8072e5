"""Commands contributed by plugins. They are loaded only if the command line names a command that is not built in."""

from __future__ import annotations

import typer

from micro_core.config import load_settings
from micro_core.contract.errors import PluginAmbiguous, PluginBroken
from micro_core.plugins import Catalog, Hooks


def add_command(app: typer.Typer, name: str) -> None:
    """Add the group of commands called `name` to `app`, if a plugin provides it. Imports all cross-cutting plugins.

    Raises PluginAmbiguous if several plugins provide the command, PluginBroken if the plugin does not return a typer
    app, ConfigError if the settings are invalid.
    """
    hooks = Hooks(Catalog.discover().load_hooks(blocked=load_settings().node.block))
    factories = [factory for command, factory in hooks.commands() if command == name]
    if len(factories) > 1:
        raise PluginAmbiguous(
            f"{len(factories)} plugins provide the command {name}", hint="exclude all but one with MICRO_BLOCK=NAME"
        )
    for factory in factories:
        group = factory()
        if not isinstance(group, typer.Typer):
            raise PluginBroken(f"the plugin of the command {name} returned a {type(group).__name__}, not a typer app")
        app.add_typer(group, name=name)
