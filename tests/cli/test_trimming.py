"""Reading only the typed command in full changes nothing that anybody sees."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from micro_core.cli.lazy_typer import name_of, trimmed
from micro_core.cli.main import app


def every_command() -> list[list[str]]:
    found: list[list[str]] = [[], *([name_of(command)] for command in app.registered_commands)]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        found.append([str(group.name)])
        found += [[str(group.name), name_of(command)] for command in group.typer_instance.registered_commands]
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_help_is_the_same(words: list[str]) -> None:
    arguments = [*words, "--help"]
    whole = CliRunner().invoke(app, arguments, prog_name="micro")
    small = CliRunner().invoke(trimmed(app, arguments), arguments, prog_name="micro")
    assert small.output == whole.output
    assert small.exit_code == whole.exit_code == 0


@pytest.mark.parametrize("words", [["nothing"], ["network", "nothing"], ["network"], ["call"], ["--debug", "version"]])
def test_what_is_typed_wrong_or_after_options_is_answered_the_same(words: list[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("MICRO_DEBUG", "")
    whole = CliRunner().invoke(app, words, prog_name="micro")
    small = CliRunner().invoke(trimmed(app, words), words, prog_name="micro")
    assert (small.output, small.exit_code) == (whole.output, whole.exit_code)


def test_a_group_with_options_of_its_own_is_left_whole() -> None:
    outer, inner = typer.Typer(), typer.Typer()

    @inner.callback()
    def options(colour: str = "") -> None:
        del colour

    @inner.command()
    def paint(thickness: int) -> None:
        typer.echo(thickness + 1)

    outer.add_typer(inner, name="wall")
    arguments = ["wall", "--colour", "blue", "paint", "4"]
    done = CliRunner().invoke(trimmed(outer, arguments), arguments)
    assert (done.exit_code, done.output) == (0, "5\n")


def test_the_app_itself_stays_as_it_is() -> None:
    before = [command.callback for command in app.registered_commands]
    trimmed(app, ["call"])
    assert [command.callback for command in app.registered_commands] == before
