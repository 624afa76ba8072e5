"""Commands that plugins add: `micro WORD ...`."""

from __future__ import annotations

from typing import Any

ADDS = """
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


def test_a_word_of_a_plugin_is_a_command_and_the_cores_words_stay_its_own(process: Any, install: Any) -> None:
    site = install("acme-words", "micro.hooks", "acme", ADDS)
    assert process("acme", "hello", "John", site=site).stdout == "hello John\n"
    assert "bye" in process("acme", "--help", site=site).stdout
    assert "Call an endpoint" in process("call", "--help", site=site).stdout


def test_a_word_that_nobody_has_is_a_usage_error(process: Any, install: Any) -> None:
    done = process("acmee", site=install("acme-words", "micro.hooks", "acme", ADDS))
    assert done.returncode == 2
    assert "acmee" in done.stderr


def test_a_word_that_two_plugins_claim_is_said_to_be_ambiguous(process: Any, install: Any) -> None:
    install("acme-one", "micro.hooks", "one", ADDS)
    done = process("acme", "bye", site=install("acme-two", "micro.hooks", "two", ADDS))
    assert done.returncode == 3
    assert "2 plugins add the command acme" in done.stderr


def test_a_broken_plugin_is_a_warning_and_no_more(process: Any, install: Any) -> None:
    install("acme-bad", "micro.hooks", "bad", "1 / 0")
    done = process("acme", "bye", site=install("acme-words", "micro.hooks", "acme", ADDS))
    assert done.stdout == "bye\n"
    assert "hooks:bad is broken" in done.stderr


def test_a_request_that_cannot_be_read_is_a_usage_error(micro: Any) -> None:
    done = micro("call", "a.b", "C.D", "{nope")
    assert done.exit_code == 2
    assert "not JSON" in done.stderr
