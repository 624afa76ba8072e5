"""Follows docs/up.md to the letter: its files, its commands, the answers that it shows."""

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
from tests.live.test_quickstart import BLOCK, Reader, Step

ROOT = Path(__file__).parents[2]


def steps() -> list[Step]:
    text = (ROOT / "docs" / "up.md").read_text()
    return [Step(match["note"] or "", match["kind"], match["text"]) for match in BLOCK.finditer(text)]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    # `micro` as a reader has it who followed the quickstart.
    reader.environment["PATH"] = f"{Path(sys.executable).parent}:{reader.environment['PATH']}"
    yield reader
    for child in reader.background:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=60)


def brought_up(reader: Reader, command: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=reader.directory,
        env=reader.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    reader.background.append(child)
    assert child.stdout is not None
    said = []
    for line in child.stdout:
        said.append(line)
        if "all ready" in line:
            return child
    raise AssertionError(f"{command} ended:\n{''.join(said)}")


@pytest.mark.timeout(120)
def test_the_example_of_the_page_comes_up_is_called_and_ends_well(reader: Reader) -> None:
    ports = {"8085": str(free_port()), "8086": str(free_port())}

    def here(text: str) -> str:
        return re.sub(r"\b808[56]\b", lambda match: ports[match[0]], text)

    up: subprocess.Popen[str] | None = None
    ran = []
    for step in steps():
        if step.note.startswith("file: "):
            (reader.directory / step.note.removeprefix("file: ")).write_text(here(step.text))
        if step.kind != "console":
            continue
        for command, answer in step.commands():
            ran.append(command)
            if step.note == "background":
                up = brought_up(reader, here(command))
                continue
            done = reader.run(here(command))
            # Routes take a moment to cross; a reader's fingers take longer.
            end = time.monotonic() + 20
            while "call" in command and done.returncode != 0 and time.monotonic() < end:
                done = reader.run(here(command))
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            assert done.stdout.strip() == answer, command
    assert len(ran) == 3
    assert up is not None
    up.send_signal(signal.SIGINT)
    said, _ = up.communicate(timeout=60)
    assert up.returncode == 0, said
