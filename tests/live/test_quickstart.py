"""Follows pages to the letter: a fresh environment, every file, every command, every answer that is shown."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from micro_core.testing import free_port

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
PACKAGES = (".", "plugins/quic_tunnel", "examples/third_party/share_registry")


@dataclass
class Step:
    """A block of the page: a file to write, or commands with the answers shown below them."""

    note: str
    kind: str
    text: str

    def commands(self) -> Iterator[tuple[str, str]]:
        """(command, the answer that the page shows)."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, answer = part.partition("\n")
            yield command, answer.strip()


def steps(page: str) -> list[Step]:
    text = (ROOT / "docs" / page).read_text()
    return [Step(match["note"] or "", match["kind"], match["text"]) for match in BLOCK.finditer(text)]


class Reader:
    """Somebody at a terminal: one shell whose settings last, and programs left running in others."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("MICRO_") and name not in ("VIRTUAL_ENV", "PYTHONPATH")
        }
        self.environment.update(MICRO_STATE_DIR=str(directory / "state"), PYTHONUNBUFFERED="1")
        # Most of what pip would compile is never imported here.
        self.environment.update(PIP_NO_COMPILE="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
        self.background: list[subprocess.Popen[str]] = []

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run in the shell; what it exports is there for the next command, as at a real prompt."""
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
        said, _, after = done.stdout.decode().rpartition(f"{marker}\n")
        self.environment = dict(entry.split("=", 1) for entry in after.split("\0") if "=" in entry)
        return subprocess.CompletedProcess(command, done.returncode, said, done.stderr.decode())

    def leave_running(self, command: str) -> None:
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
        said = []
        for line in child.stdout:
            said.append(line)
            if line.startswith("ready"):
                return
        raise AssertionError(f"{command} ended:\n{''.join(said)}")

    def close(self) -> None:
        for child in self.background:
            child.send_signal(signal.SIGTERM)
        for child in self.background:
            child.communicate(timeout=15)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distributions of this checkout as wheels: what the index would give."""
    place = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(place)]
    subprocess.run([*command, *(str(ROOT / package) for package in PACKAGES)], check=True, timeout=120)
    return place


def follow(reader: Reader, page: str, ports: dict[str, str]) -> None:
    """Do all that the page says; `ports` are those to use in place of the page's."""
    for step in steps(page):
        if step.kind in ("python", "toml"):
            path = reader.directory / step.note.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            continue
        for command, answer in step.commands():
            here = re.sub(r"\b808[56]\b", lambda match: ports[match[0]], command)
            if step.note == "background":
                reader.leave_running(here)
                continue
            if here.startswith("cd "):
                reader.directory /= here.removeprefix("cd ")
                continue
            expected = int(step.note.removeprefix("exit code ")) if step.note.startswith("exit code") else 0
            done = reader.run(here)
            if command.startswith("micro network") or " call" in command:
                # Routes take a moment to cross; a reader's fingers take longer.
                end = time.monotonic() + 10
                while (done.returncode != expected or answer not in done.stdout) and time.monotonic() < end:
                    done = reader.run(here)
            assert done.returncode == expected, f"{command}\n{done.stdout}{done.stderr}"
            if answer:
                assert done.stdout.strip() == answer, command


@pytest.mark.timeout(600)
def test_a_newcomer_gets_from_install_to_a_call_across_sites(reader: Reader, wheelhouse: Path) -> None:
    reader.environment.update(PIP_FIND_LINKS=str(wheelhouse), PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    follow(reader, "quickstart.md", {"8085": str(free_port()), "8086": str(free_port())})


@pytest.mark.timeout(1_200)
def test_an_author_gets_from_nothing_to_a_wheel_of_a_tested_plugin(reader: Reader, wheelhouse: Path) -> None:
    reader.environment.update(PIP_FIND_LINKS=str(wheelhouse), PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    # The page's own ports are not used; what its parts ask of the machine is the same at any time.
    follow(reader, "plugins/write-one.md", {})


@pytest.mark.timeout(600)
def test_a_plugin_by_somebody_else_is_installed_beside_core_and_used(reader: Reader, wheelhouse: Path) -> None:
    reader.environment.update(PIP_FIND_LINKS=str(wheelhouse), PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    follow(reader, "../examples/third_party/README.md", {})


def test_the_page_runs_the_commands_of_the_founding_article() -> None:
    commands = [shlex.split(command) for step in steps("quickstart.md") for command, _ in step.commands()]
    for words in (["network", "nodes"], ["network", "connections"], ["network", "services"], ["network", "routes"]):
        assert ["micro", *words] in commands
