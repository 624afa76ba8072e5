"""Executes docs/up.md: its files and commands, and compares the output with the page."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from micro_core.testing import free_port
from tests.live.test_quickstart import BLOCK, Step, Terminal

ROOT = Path(__file__).parents[2]


def steps() -> list[Step]:
    text = (ROOT / "docs" / "up.md").read_text()
    return [Step(match["note"] or "", match["kind"], match["text"]) for match in BLOCK.finditer(text)]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    # The page assumes that `micro` is installed.
    terminal.environment["PATH"] = f"{Path(sys.executable).parent}:{terminal.environment['PATH']}"
    yield terminal
    for child in terminal.background:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=60)


def start_up(terminal: Terminal, command: str) -> subprocess.Popen[str]:
    """Start `micro up` and wait until all its processes are ready."""
    child = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=terminal.directory,
        env=terminal.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    terminal.background.append(child)
    assert child.stdout is not None
    output = []
    for line in child.stdout:
        output.append(line)
        if "all ready" in line:
            return child
    raise AssertionError(f"{command} ended:\n{''.join(output)}")


@pytest.mark.timeout(120)
def test_example_of_the_page_starts_is_called_and_stops(terminal: Terminal) -> None:
    ports = {"8085": str(free_port()), "8086": str(free_port())}

    def with_free_ports(text: str) -> str:
        return re.sub(r"\b808[56]\b", lambda match: ports[match[0]], text)

    up: subprocess.Popen[str] | None = None
    ran = []
    for step in steps():
        if step.note.startswith("file: "):
            (terminal.directory / step.note.removeprefix("file: ")).write_text(with_free_ports(step.text))
        if step.kind != "console":
            continue
        for command, answer in step.commands():
            ran.append(command)
            if step.note == "background":
                up = start_up(terminal, with_free_ports(command))
                continue
            done = terminal.run(with_free_ports(command))
            # Routes need a moment to reach the other site, so the command is repeated.
            end = time.monotonic() + 20
            while "call" in command and done.returncode != 0 and time.monotonic() < end:
                done = terminal.run(with_free_ports(command))
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            assert done.stdout.strip() == answer, command
    assert len(ran) == 3
    assert up is not None
    up.send_signal(signal.SIGINT)
    output, _ = up.communicate(timeout=60)
    assert up.returncode == 0, output
