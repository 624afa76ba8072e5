"""Keeps typer from analysing commands that are not run.

typer reads the signature of every command before it selects one. That takes 1 to 2 ms per command, so with forty
commands it takes longer than importing typer. A command that is not run needs only its name and its help text.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.models import CommandInfo


def strip_unused_commands(app: typer.Typer, arguments: Sequence[str]) -> typer.Typer:
    """Return a copy of `app` in which only the command selected by `arguments` has parameters. `app` is not changed.

    Names and help texts are the same as in `app`. The first arguments that are not options select the command, because
    `micro` itself has no option with a value. A selected group with options of its own, e.g. the group of a plugin, is
    not stripped.
    """
    return _stripped(app, [argument for argument in arguments if not argument.startswith("-")])


def _stripped(app: typer.Typer, arguments: list[str]) -> typer.Typer:
    selected = arguments[0] if arguments else ""
    result = copy.copy(app)
    result.registered_commands = [
        command if command_name(command) == selected else _without_parameters(command)
        for command in app.registered_commands
    ]
    result.registered_groups = []
    for group in app.registered_groups:
        group = copy.copy(group)  # noqa: PLW2901
        inner, is_selected = group.typer_instance, group.name == selected
        if inner is not None and not (is_selected and inner.registered_callback is not None):
            group.typer_instance = _stripped(inner, arguments[1:]) if is_selected else _without_commands(inner)
        result.registered_groups.append(group)
    return result


def _without_commands(app: typer.Typer) -> typer.Typer:
    """Return a copy of a group that is not selected. Only its help text is shown."""
    result = copy.copy(app)
    result.registered_commands, result.registered_groups = [], []
    return result


def command_name(command: CommandInfo) -> str:
    """Return the name under which a command is called."""
    return command.name or getattr(command.callback, "__name__", "").replace("_", "-")


def _without_parameters(command: CommandInfo) -> CommandInfo:
    result = copy.copy(command)
    result.callback = _placeholder(command.callback) if command.callback is not None else None
    return result


def _placeholder(callback: Callable[..., Any]) -> Callable[[], None]:
    def placeholder() -> None:
        """Never called: another command is selected."""

    placeholder.__name__, placeholder.__doc__ = callback.__name__, callback.__doc__
    return placeholder
