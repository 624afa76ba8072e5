"""The output and the exit codes of commands."""

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
def test_each_error_class_has_an_exit_code(error: type[errors.MicroError], code: int) -> None:
    assert output.exit_code(error("x")) == code


def test_error_of_a_service_has_exit_code_1_for_any_code() -> None:
    assert output.exit_code(errors.RemoteError("x", code=418, status="Teapot")) == 1


def exit_code_of(run: Any, *, as_json: bool = False) -> int:
    with pytest.raises(typer.Exit) as caught:
        output.run_guarded(run, as_json=as_json)
    return caught.value.exit_code


def raising(error: BaseException) -> Any:
    def run() -> None:
        raise error

    return run


def test_error_is_shown_with_location_and_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        exit_code_of(raising(errors.RouteNotFound("no route", at="node b7f3 (eu)", hint="micro network services"))) == 4
    )
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: no route\n   at: node b7f3 (eu)\n hint: micro network services\n"


def test_json_error_is_printed_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(raising(errors.RouteNotFound("no route")), as_json=True) == 4
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "route-not-found"


def test_control_characters_of_a_peer_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code_of(raising(errors.InternalError("red \x1b[31m\r\n hint: rm -rf /", at="\x07")))
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "\n  try:" not in printed


def test_interrupt_has_exit_code_130() -> None:
    assert exit_code_of(raising(KeyboardInterrupt())) == 130


def test_exit_code_of_a_command_is_kept() -> None:
    assert exit_code_of(raising(typer.Exit(9))) == 9


def test_unexpected_error_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICRO_DEBUG", raising=False)
    assert exit_code_of(raising(TypeError("a bug"))) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: unexpected TypeError: a bug\n hint: micro --debug")
    assert "Traceback" not in printed


@pytest.mark.parametrize(("value", "is_traced"), [("1", True), ("0", False), ("", False)])
def test_traceback_is_shown_only_in_debug_mode(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str, *, is_traced: bool
) -> None:
    monkeypatch.setenv("MICRO_DEBUG", value)
    assert exit_code_of(raising(errors.RouteNotFound("no route"))) == 4
    printed = capsys.readouterr().err
    assert ("Traceback" in printed) is is_traced
    assert "error: no route" in printed


def test_warning_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("hooks:x is broken", stacklevel=1)

    output.run_guarded(run)
    assert capsys.readouterr().err == "warning: hooks:x is broken\n"


def test_colour_is_used_only_on_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.paint("error:", "31") == "error:"
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert output.paint("error:", "31") == "\x1b[31merror:\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("error:", "31") == "error:"


def test_table_is_aligned_and_an_empty_table_prints_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(["name", "sites"], [["a", ["eu", "us"]], ["longer", None]], "nothing")
    assert capsys.readouterr().out == "NAME    SITES\na       eu,us\nlonger  -\n"
    output.show_table(["name"], [], "nothing yet")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "nothing yet\n")


# ------------------------------------------------------------------------- the complete command


def test_usage_error_has_exit_code_2_and_configuration_error_3(micro: Any) -> None:
    assert micro("nonsense").exit_code == 2
    assert micro("plugin", "list", "--nonsense").exit_code == 2
    assert micro("config", "show", "-c", "no.toml").exit_code == 3


def test_debug_option_shows_the_traceback(process: Any) -> None:
    quiet, loud = (process(*options, "config", "show", "-c", "no.toml") for options in ([], ["--debug"]))
    assert (quiet.returncode, loud.returncode) == (3, 3)
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr
    assert "error: the settings file no.toml does not exist" in loud.stderr


def test_import_error_is_one_sentence(process: Any) -> None:
    script = "import sys; sys.modules['micro_core.cli.plugin'] = None; from micro_core.cli.main import main; main()"
    done = process("plugin", "list", python=("-c", script))
    assert done.returncode == 1
    assert done.stderr.startswith("error: unexpected ModuleNotFoundError")
    assert "Traceback" not in done.stderr
    assert "Traceback" in process("plugin", "list", python=("-c", script), MICRO_DEBUG="1").stderr


def test_closed_output_pipe_is_not_an_error() -> None:
    script = (
        "import os; from micro_core.cli.output import run_guarded, show_table\n"
        "read, write = os.pipe(); os.dup2(write, 1); os.close(write); os.close(read)\n"
        "import typer; app = typer.Typer()\n"
        "@app.command()\n"
        "def go(): run_guarded(lambda: show_table(['a'], [['x' * 100_000]] * 10, ''))\n"
        "app()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_broken_hooks_stop_only_commands_that_name_them(process: Any, install: Any) -> None:
    site = install("acme-hooks", "micro.hooks", "bad", "1 / 0")
    done = process("services", "--json", site=site)
    assert (done.returncode, done.stderr) == (0, "")
    named = process("services", site=site, MICRO_PLUGINS="bad")
    assert named.returncode == 3
    assert "error: plugin hooks:bad is broken" in named.stderr


def test_empty_service_list_names_the_registries(process: Any) -> None:
    assert (
        "no services on site local yet; searched: registry:local; MICRO_SITE selects another site"
        in process("services").stderr
    )
    assert "searched: registry:memory;" in process("services", "--plugins", "registry:memory").stderr


def test_console_script_is_declared() -> None:
    (script,) = [point for point in importlib.metadata.entry_points(group="console_scripts") if point.name == "micro"]
    assert script.value == "micro_core.cli.main:main"
