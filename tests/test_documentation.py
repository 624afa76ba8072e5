"""The documentation matches the code: generated pages, links, commands and settings."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

import micro_core.contract
import micro_core.testing
from micro_core.cli.main import app
from micro_core.cli.plugin_commands import add_command

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "plugins/*/README.md", "benchmarks/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SHOWN = re.compile(r"^(?:\$ )?((?:[A-Z_]+=\S+ )*micro .*)$")


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", sorted((ROOT / "docs/reference").glob("*.md")), ids=lambda page: page.name)
def test_sections_of_docstrings_are_lists_in_generated_pages(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [line for line in lines if line.strip() in {"Args:", "Returns:", "Yields:"}] == []
    assert [below for line, below in itertools.pairwise(lines) if line == "Raises:" and below] == []


NOT_FOR_DRIVERS = {
    # Created or read by core only.
    *("ChannelListener", "DialMode", "LinkInfo", "MessageReceiver", "Session", "Sessions", "Tunnel"),
    *("DialFailed", "DialSucceeded", "LinkDown", "LinkEvent", "LinkEventHandler"),
    *("LinkMeasured", "LinkMoved", "LinkSuspect", "LinkUp"),
    # Function types, documented with the parameters that they type, and names that only core and the kits use.
    *("Interceptor", "MessageHandler", "Next", "TableEvent", "hookspec", "CAPABILITIES", "Conformance", "requires"),
}


def test_every_name_of_the_contract_and_the_kits_is_in_the_reference() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    documented = set(
        re.findall(r"(?:^#+ `(?:async )?|^\| `|`micro_core\.(?:contract|testing)\.)(\w+)", text, re.MULTILINE)
    )
    names = {*micro_core.contract.__all__, *micro_core.testing.__all__}
    assert names - documented == NOT_FOR_DRIVERS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_exist(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" in target or target.startswith("#"):
            continue
        assert (page.parent / target.partition("#")[0]).exists(), f"{page.relative_to(ROOT)} links to {target}"


def shown_commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        in_block = False
        for line in page.read_text().splitlines():
            if line.startswith("```"):
                in_block = not in_block
                continue
            match = SHOWN.match(line.strip()) if in_block else None
            if match:
                found.append((str(page.relative_to(ROOT)), match.group(1)))
    return found


@pytest.mark.parametrize(("page", "command"), shown_commands())
def test_shown_commands_and_their_options_exist(page: str, command: str) -> None:
    arguments = shlex.split(command.partition("  #")[0].partition(" | ")[0].partition(" && ")[0].rstrip(" &"))
    arguments = arguments[next(index for index, argument in enumerate(arguments) if argument == "micro") + 1 :]
    group: Any = typer.main.get_command(app)
    if arguments[:1] == ["--peer"]:
        return
    if arguments and not arguments[0].startswith("-") and arguments[0] not in group.commands:
        # A command of a plugin in this repository.
        plugin_app = typer.Typer()
        add_command(plugin_app, arguments[0])
        group = typer.main.get_command(plugin_app)
    while arguments and hasattr(group, "commands"):
        if arguments[0].startswith("-"):
            break
        assert arguments[0] in group.commands, f"{page}: {command}"
        group = group.commands[arguments.pop(0)]
    known = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1 and not re.match(r"-\d", argument):
            assert argument.partition("=")[0] in known | {"--help"}, f"{page}: {command}"


def test_every_setting_is_documented() -> None:
    from dataclasses import fields

    from micro_core.config.settings import NodeSettings

    text = (ROOT / "docs/configuration.md").read_text()
    assert [field.name for field in fields(NodeSettings) if f"`node.{field.name}`" not in text] == []
