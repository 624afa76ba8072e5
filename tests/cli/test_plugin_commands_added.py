"""Commands that plugins provide: `micro NAME ...`."""

from __future__ import annotations

from typing import Any

PLUGIN = """
import typer
from micro_core.contract import hookimpl

def make():
    app = typer.Typer()

    @app.command()
    def hello(name: str) -> None:
        typer.echo(f"hello {name}")

    @app.command()
    def bye() -> None:
        typer.echo("bye")

    return app

@hookimpl
def micro_commands():
    return [("acme", make), ("call", make)]
"""


def test_plugin_provides_a_command_but_cannot_replace_a_built_in_one(process: Any, install: Any) -> None:
    site = install("acme-commands", "micro.hooks", "acme", PLUGIN)
    assert process("acme", "hello", "John", site=site).stdout == "hello John\n"
    assert "bye" in process("acme", "--help", site=site).stdout
    assert "Call an endpoint" in process("call", "--help", site=site).stdout


def test_unknown_command_is_a_usage_error(process: Any, install: Any) -> None:
    done = process("acmee", site=install("acme-commands", "micro.hooks", "acme", PLUGIN))
    assert done.returncode == 2
    assert "acmee" in done.stderr


def test_command_of_two_plugins_is_ambiguous(process: Any, install: Any) -> None:
    install("acme-one", "micro.hooks", "one", PLUGIN)
    done = process("acme", "bye", site=install("acme-two", "micro.hooks", "two", PLUGIN))
    assert done.returncode == 3
    assert "2 plugins provide the command acme" in done.stderr


def test_broken_plugin_only_causes_a_warning(process: Any, install: Any) -> None:
    install("acme-bad", "micro.hooks", "bad", "1 / 0")
    done = process("acme", "bye", site=install("acme-commands", "micro.hooks", "acme", PLUGIN))
    assert done.stdout == "bye\n"
    assert "hooks:bad is broken" in done.stderr


def test_invalid_request_is_a_usage_error(micro: Any) -> None:
    done = micro("call", "a.b", "C.D", "{nope")
    assert done.exit_code == 2
    assert "not valid JSON" in done.stderr
