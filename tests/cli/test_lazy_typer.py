"""Building only the used command does not change the output."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from micro_core.cli.lazy_typer import command_name, strip_unused_commands
from micro_core.cli.main import app


def every_command() -> list[list[str]]:
    found: list[list[str]] = [[], *([command_name(command)] for command in app.registered_commands)]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        found.append([str(group.name)])
        found += [[str(group.name), command_name(command)] for command in group.typer_instance.registered_commands]
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_help_is_unchanged(command: list[str]) -> None:
    arguments = [*command, "--help"]
    full = CliRunner().invoke(app, arguments, prog_name="micro")
    stripped = CliRunner().invoke(strip_unused_commands(app, arguments), arguments, prog_name="micro")
    assert stripped.output == full.output
    assert stripped.exit_code == full.exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["network", "nothing"], ["network"], ["call"], ["--debug", "version"]]
)
def test_usage_errors_and_leading_options_are_unchanged(arguments: list[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("MICRO_DEBUG", "")
    full = CliRunner().invoke(app, arguments, prog_name="micro")
    stripped = CliRunner().invoke(strip_unused_commands(app, arguments), arguments, prog_name="micro")
    assert (stripped.output, stripped.exit_code) == (full.output, full.exit_code)


def test_group_with_its_own_options_is_not_stripped() -> None:
    outer, inner = typer.Typer(), typer.Typer()

    @inner.callback()
    def options(colour: str = "") -> None:
        del colour

    @inner.command()
    def paint(thickness: int) -> None:
        typer.echo(thickness + 1)

    outer.add_typer(inner, name="wall")
    arguments = ["wall", "--colour", "blue", "paint", "4"]
    done = CliRunner().invoke(strip_unused_commands(outer, arguments), arguments)
    assert (done.exit_code, done.output) == (0, "5\n")


def test_app_itself_is_not_modified() -> None:
    before = [command.callback for command in app.registered_commands]
    strip_unused_commands(app, ["call"])
    assert [command.callback for command in app.registered_commands] == before
