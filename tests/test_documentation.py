"""What the documentation says is so: generated pages, links, commands that are shown."""

from __future__ import annotations

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


def test_the_generated_pages_are_as_the_code_is() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


NOT_FOR_DRIVERS = {
    # What core makes of links, and reads itself.
    *("ChannelListener", "DialMode", "LinkInfo", "MessageReceiver", "Session", "Sessions", "Tunnel"),
    # Shapes of functions, told where they are given; and what only core and the kits use.
    *("Interceptor", "MessageHandler", "Next", "hookspec", "CAPABILITIES", "Conformance", "needs"),
}


def test_every_name_that_authors_of_drivers_import_is_on_a_page_of_the_reference() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    told = set(re.findall(r"(?:^#+ `(?:async )?|^\| `|`micro_core\.(?:spec|testing)\.)(\w+)", text, re.MULTILINE))
    names = {*micro_core.contract.__all__, *micro_core.testing.__all__}
    assert names - told == NOT_FOR_DRIVERS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
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
def test_commands_that_are_shown_exist_with_their_options(page: str, command: str) -> None:
    words = shlex.split(command.partition("  #")[0].partition(" | ")[0].partition(" && ")[0].rstrip(" &"))
    words = words[next(place for place, word in enumerate(words) if word == "micro") + 1 :]
    group: Any = typer.main.get_command(app)
    if words[:1] == ["--peer"]:
        return
    if words and not words[0].startswith("-") and words[0] not in group.commands:
        # A word that a plugin of this house adds.
        added = typer.Typer()
        add_command(added, words[0])
        group = typer.main.get_command(added)
    while words and hasattr(group, "commands"):
        if words[0].startswith("-"):
            break
        assert words[0] in group.commands, f"{page}: {command}"
        group = group.commands[words.pop(0)]
    known = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-") and len(word) > 1 and not re.match(r"-\d", word):
            assert word.partition("=")[0] in known | {"--help"}, f"{page}: {command}"


def test_every_setting_is_documented() -> None:
    from dataclasses import fields

    from micro_core.config.settings import NodeSettings

    text = (ROOT / "docs/configuration.md").read_text()
    assert [field.name for field in fields(NodeSettings) if f"`node.{field.name}`" not in text] == []
