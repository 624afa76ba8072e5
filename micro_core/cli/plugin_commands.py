"""Commands that plugins add: found only when somebody types a word that is not one of ours."""

from __future__ import annotations

import typer

from micro_core.config import load_settings
from micro_core.contract.errors import PluginAmbiguous, PluginBroken
from micro_core.plugins import Catalog, Hooks


def add_command(app: typer.Typer, word: str) -> None:
    """Add to `app` the group of commands that `word` names, if a plugin has it; imports the cross-cutting plugins.

    Raises PluginAmbiguous, PluginBroken.
    """
    hooks = Hooks(Catalog.discover().load_hooks(blocked=load_settings().node.block))
    found = [make for name, make in hooks.commands() if name == word]
    if len(found) > 1:
        raise PluginAmbiguous(f"{len(found)} plugins add the command {word}", hint="leave one out: MICRO_BLOCK=NAME")
    for make in found:
        group = make()
        if not isinstance(group, typer.Typer):
            raise PluginBroken(f"the plugin of the command {word} gave a {type(group).__name__}, not a typer app")
        app.add_typer(group, name=word)
