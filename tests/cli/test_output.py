"""What commands print, and how they end."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import warnings
from typing import Any

import pytest
import typer

from micro_core.cli import output
from micro_core.contract import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.MicroError, 1),
        (errors.InternalError, 1),
        (errors.BadRequest, 1),
        (errors.Conflict, 1),
        (errors.ConfigError, 3),
        (errors.OptionError, 3),
        (errors.PluginMissing, 3),
        (errors.PluginBroken, 3),
        (errors.PluginAmbiguous, 3),
        (errors.ServiceNotFound, 4),
        (errors.EndpointNotFound, 4),
        (errors.RouteNotFound, 4),
        (errors.DeadlineExceeded, 5),
        (errors.Unreachable, 6),
        (errors.LinkLost, 6),
        (errors.LoopDetected, 6),
        (errors.Unauthorized, 7),
        (errors.Forbidden, 7),
        (errors.Overloaded, 8),
        (errors.Draining, 8),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: type[errors.MicroError], code: int) -> None:
    assert output.exit_code(error("x")) == code


def test_an_error_of_a_service_has_exit_code_1_whatever_its_code() -> None:
    assert output.exit_code(errors.RemoteError("x", code=418, status="Teapot")) == 1


def ended(run: Any, *, as_json: bool = False) -> int:
    with pytest.raises(typer.Exit) as caught:
        output.guarded(run, as_json=as_json)
    return caught.value.exit_code


def raising(error: BaseException) -> Any:
    def run() -> None:
        raise error

    return run


def test_an_error_says_what_where_and_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(errors.RouteNotFound("no route", at="node b7f3 (eu)", hint="micro network services"))) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: no route\n   at: node b7f3 (eu)\n  try: micro network services\n"


def test_an_error_for_programs_is_on_stdout_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(errors.RouteNotFound("no route")), as_json=True) == 4
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "route-not-found"


def test_what_a_peer_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ended(raising(errors.InternalError("red \x1b[31m\r\n  try: rm -rf /", at="\x07")))
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "\n  try:" not in said


def test_an_interrupt_ends_with_130() -> None:
    assert ended(raising(KeyboardInterrupt())) == 130


def test_an_exit_code_that_a_command_chose_stands() -> None:
    assert ended(raising(typer.Exit(9))) == 9


def test_an_unforeseen_error_is_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICRO_DEBUG", raising=False)
    assert ended(raising(TypeError("of ours"))) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected TypeError: of ours\n  try: micro --debug")
    assert "Traceback" not in said


@pytest.mark.parametrize(("value", "is_traced"), [("1", True), ("0", False), ("", False)])
def test_tracebacks_are_for_those_who_ask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str, *, is_traced: bool
) -> None:
    monkeypatch.setenv("MICRO_DEBUG", value)
    assert ended(raising(errors.RouteNotFound("no route"))) == 4
    said = capsys.readouterr().err
    assert ("Traceback" in said) is is_traced
    assert "error: no route" in said


def test_a_warning_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("hooks:x is broken", stacklevel=1)

    output.guarded(run)
    assert capsys.readouterr().err == "warning: hooks:x is broken\n"


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.paint("error:", "31") == "error:"
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert output.paint("error:", "31") == "\x1b[31merror:\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("error:", "31") == "error:"


def test_a_table_is_aligned_and_an_empty_one_is_a_remark(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(["name", "sites"], [["a", ["eu", "us"]], ["longer", None]], "nothing")
    assert capsys.readouterr().out == "NAME    SITES\na       eu,us\nlonger  -\n"
    output.show_table(["name"], [], "nothing yet")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "nothing yet\n")


# ------------------------------------------------------------------------- the whole command


def test_usage_errors_end_with_2_and_configuration_errors_with_3(micro: Any) -> None:
    assert micro("nonsense").exit_code == 2
    assert micro("plugin", "list", "--nonsense").exit_code == 2
    assert micro("config", "show", "-c", "no.toml").exit_code == 3


def test_debug_before_a_command_shows_where_an_error_comes_from(process: Any) -> None:
    quiet, loud = (process(*words, "config", "show", "-c", "no.toml") for words in ([], ["--debug"]))
    assert (quiet.returncode, loud.returncode) == (3, 3)
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr
    assert "error: the settings file no.toml does not exist" in loud.stderr


def test_a_part_of_micro_that_cannot_be_imported_is_a_sentence(process: Any) -> None:
    script = "import sys; sys.modules['micro_core.cli.plugin'] = None; from micro_core.cli.main import main; main()"
    done = process("plugin", "list", python=("-c", script))
    assert done.returncode == 1
    assert done.stderr.startswith("error: unexpected ModuleNotFoundError")
    assert "Traceback" not in done.stderr
    assert "Traceback" in process("plugin", "list", python=("-c", script), MICRO_DEBUG="1").stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = (
        "import os; from micro_core.cli.output import guarded, show_table\n"
        "read, write = os.pipe(); os.dup2(write, 1); os.close(write); os.close(read)\n"
        "import typer; app = typer.Typer()\n"
        "@app.command()\n"
        "def go(): guarded(lambda: show_table(['a'], [['x' * 100_000]] * 10, ''))\n"
        "app()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_broken_hooks_stop_those_who_named_them_and_nobody_else(process: Any, install: Any) -> None:
    site = install("acme-hooks", "micro.hooks", "bad", "1 / 0")
    done = process("services", "--json", site=site)
    assert (done.returncode, done.stderr) == (0, "")
    named = process("services", site=site, MICRO_PLUGINS="bad")
    assert named.returncode == 3
    assert "error: plugin hooks:bad is broken" in named.stderr


def test_where_there_are_no_services_the_registries_that_were_asked_are_named(process: Any) -> None:
    assert (
        "no services on site local yet; asked: registry:local; MICRO_SITE names another" in process("services").stderr
    )
    assert "asked: registry:memory;" in process("services", "--plugins", "registry:memory").stderr


def test_the_script_is_declared() -> None:
    (script,) = [point for point in importlib.metadata.entry_points(group="console_scripts") if point.name == "micro"]
    assert script.value == "micro_core.cli.main:main"
