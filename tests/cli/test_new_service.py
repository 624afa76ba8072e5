"""`micro new service`: the generated service runs, answers calls and passes its own test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def test_generated_service_runs_answers_and_passes_its_own_test(micro: Any, process: Any, tmp_path: Path) -> None:
    done = micro("new", "service", "go.micro.srv.greeter")
    assert done.exit_code == 0
    assert "python greeter/service.py" in done.stdout
    child = subprocess.Popen(
        [sys.executable, "greeter/service.py"], cwd=tmp_path, env=os.environ, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("ready")
        called = process("call", "go.micro.srv.greeter", "Say.Hello", "name=John")
        assert (called.returncode, called.stdout) == (0, '{"msg": "Hello John"}\n'), called.stderr
    finally:
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=20)
    tested = process("greeter", "-q", "-p", "no:cacheprovider", python=("-m", "pytest"))
    assert "1 passed" in tested.stdout, tested.stdout


def test_generated_service_passes_ruff(micro: Any, tmp_path: Path) -> None:
    assert micro("new", "service", "go.micro.srv.greeter").exit_code == 0
    for arguments in (["check", "--select", "E,F,W,I,UP,B,RUF"], ["format", "--check", "--diff"]):
        command = [
            str(Path(sys.executable).parent / "ruff"),
            *arguments,
            "--isolated",
            "--line-length",
            "120",
            "greeter",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stdout


def test_existing_file_is_not_overwritten(micro: Any, tmp_path: Path) -> None:
    (tmp_path / "greeter").mkdir()
    (tmp_path / "greeter" / "test_service.py").write_text("mine")
    done = micro("new", "service", "go.micro.srv.greeter")
    assert (done.exit_code, "already exists" in done.stderr) == (1, True)
    assert [path.name for path in (tmp_path / "greeter").iterdir()] == ["test_service.py"]


@pytest.mark.parametrize("name", ["", "no spaces", '"quoted"', "../up/"])
def test_invalid_name_is_rejected(micro: Any, tmp_path: Path, name: str) -> None:
    done = micro("new", "service", name)
    assert done.exit_code == 2
    assert "is not a service name" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == []
