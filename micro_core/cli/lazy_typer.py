"""Only the command that is typed is read in full.

typer reads the signature of every command before it knows which one is wanted, at 1 to 2 ms each: with forty of them
that costs more than typer itself. The others need no more than their name and their sentence, for `--help`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.models import CommandInfo


def trimmed(app: typer.Typer, arguments: Sequence[str]) -> typer.Typer:
    """`app` for this command line: the same words and help, and the parameters of what it names. `app` stays as it is.

    The first words that are no options are the command: `micro` itself has no option with a value. A group that has
    options of its own, as one of a plugin may, is left whole where it is typed.
    """
    return _trimmed(app, [word for word in arguments if not word.startswith("-")])


def _trimmed(app: typer.Typer, words: list[str]) -> typer.Typer:
    wanted = words[0] if words else ""
    small = copy.copy(app)
    small.registered_commands = [
        command if name_of(command) == wanted else _bare(command) for command in app.registered_commands
    ]
    small.registered_groups = []
    for group in app.registered_groups:
        group = copy.copy(group)  # noqa: PLW2901
        below, is_wanted = group.typer_instance, group.name == wanted
        if below is not None and not (is_wanted and below.registered_callback is not None):
            group.typer_instance = _trimmed(below, words[1:]) if is_wanted else _emptied(below)
        small.registered_groups.append(group)
    return small


def _emptied(app: typer.Typer) -> typer.Typer:
    """Of a group that was not typed nothing but its sentence is shown."""
    empty = copy.copy(app)
    empty.registered_commands, empty.registered_groups = [], []
    return empty


def name_of(command: CommandInfo) -> str:
    """What is typed for a command."""
    return command.name or getattr(command.callback, "__name__", "").replace("_", "-")


def _bare(command: CommandInfo) -> CommandInfo:
    bare = copy.copy(command)
    bare.callback = _without_parameters(command.callback) if command.callback is not None else None
    return bare


def _without_parameters(callback: Callable[..., Any]) -> Callable[[], None]:
    def nothing() -> None:
        """Never called: another command was typed."""

    nothing.__name__, nothing.__doc__ = callback.__name__, callback.__doc__
    return nothing
