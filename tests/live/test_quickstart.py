"""Executes pages of the documentation: every file and every command, and compares the output with the page."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from micro_core.testing import free_port
from tests.wheel_builds import build_wheels

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
PACKAGES = (".", "plugins/quic_tunnel", "examples/third_party/share_registry")


@dataclass
class Step:
    """A code block of a page: a file to write, or commands and the output that the page shows below them."""

    note: str
    kind: str
    text: str

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield each command with the output that the page shows."""
        for section in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, answer = section.partition("\n")
            yield command, answer.strip()


def steps(page: str) -> list[Step]:
    text = (ROOT / "docs" / page).read_text()
    return [Step(match["note"] or "", match["kind"], match["text"]) for match in BLOCK.finditer(text)]


class Terminal:
    """Runs commands like a shell: exported variables are kept, and background programs continue to run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("MICRO_") and name not in ("VIRTUAL_ENV", "PYTHONPATH")
        }
        self.environment.update(MICRO_STATE_DIR=str(directory / "state"), PYTHONUNBUFFERED="1")
        # Skips the compilation of modules of which few are imported.
        self.environment.update(PIP_NO_COMPILE="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
        self.background: list[subprocess.Popen[str]] = []

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command. Variables that it exports are set for the following commands."""
        marker = "--environment--"
        script = f"{command}\ncode=$?\necho {marker}\nenv -0\nexit $code"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            timeout=240,
            check=False,
        )
        output, _, after = done.stdout.decode().rpartition(f"{marker}\n")
        self.environment = dict(entry.split("=", 1) for entry in after.split("\0") if "=" in entry)
        return subprocess.CompletedProcess(command, done.returncode, output, done.stderr.decode())

    def run_in_background(self, command: str) -> None:
        """Start a program and wait until it has printed a line that begins with `ready`."""
        child = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.background.append(child)
        assert child.stdout is not None
        output = []
        for line in child.stdout:
            output.append(line)
            if line.startswith("ready"):
                return
        raise AssertionError(f"{command} ended:\n{''.join(output)}")

    def close(self) -> None:
        for child in self.background:
            child.send_signal(signal.SIGTERM)
        for child in self.background:
            child.communicate(timeout=15)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build wheels of the packages in this repository, and return the directory. They replace a package index."""
    directory = tmp_path_factory.mktemp("wheels")
    build_wheels(directory, *(ROOT / package for package in PACKAGES))
    return directory


def follow(terminal: Terminal, page: str, ports: dict[str, str]) -> None:
    """Execute a page. `ports` maps ports on the page to the ports that are used instead."""
    for step in steps(page):
        if step.kind in ("python", "toml"):
            path = terminal.directory / step.note.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            continue
        for command, answer in step.commands():
            here = re.sub(r"\b808[56]\b", lambda match: ports[match[0]], command)
            if step.note == "background":
                terminal.run_in_background(here)
                continue
            if here.startswith("cd "):
                terminal.directory /= here.removeprefix("cd ")
                continue
            expected = int(step.note.removeprefix("exit code ")) if step.note.startswith("exit code") else 0
            done = terminal.run(here)
            if command.startswith("micro network") or " call" in command:
                # Routes need a moment to reach the other site, so the command is repeated.
                end = time.monotonic() + 10
                while (done.returncode != expected or answer not in done.stdout) and time.monotonic() < end:
                    done = terminal.run(here)
            assert done.returncode == expected, f"{command}\n{done.stdout}{done.stderr}"
            if answer:
                assert done.stdout.strip() == answer, command


@pytest.mark.timeout(600)
def test_quickstart_leads_from_installation_to_a_call_across_sites(terminal: Terminal, wheelhouse: Path) -> None:
    terminal.environment.update(PIP_FIND_LINKS=str(wheelhouse), PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    follow(terminal, "quickstart.md", {"8085": str(free_port()), "8086": str(free_port())})


@pytest.mark.timeout(1_200)
def test_plugin_tutorial_leads_to_a_wheel_of_a_tested_plugin(terminal: Terminal, wheelhouse: Path) -> None:
    terminal.environment.update(PIP_FIND_LINKS=str(wheelhouse), PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    follow(terminal, "plugins/write-one.md", {})


@pytest.mark.timeout(600)
def test_third_party_plugin_is_installed_and_used(terminal: Terminal, wheelhouse: Path) -> None:
    terminal.environment.update(PIP_FIND_LINKS=str(wheelhouse), PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    follow(terminal, "../examples/third_party/README.md", {})


def test_quickstart_shows_the_network_commands() -> None:
    commands = [shlex.split(command) for step in steps("quickstart.md") for command, _ in step.commands()]
    for arguments in (["network", "nodes"], ["network", "connections"], ["network", "services"], ["network", "routes"]):
        assert ["micro", *arguments] in commands
