"""`micro new service`: what it writes runs, answers, and passes its own test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def test_a_new_service_runs_answers_and_passes_its_own_test(micro: Any, process: Any, tmp_path: Path) -> None:
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


def test_what_is_written_is_clean(micro: Any, tmp_path: Path) -> None:
    assert micro("new", "service", "go.micro.srv.greeter").exit_code == 0
    for words in (["check", "--select", "E,F,W,I,UP,B,RUF"], ["format", "--check", "--diff"]):
        command = [str(Path(sys.executable).parent / "ruff"), *words, "--isolated", "--line-length", "120", "greeter"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stdout


def test_nothing_is_written_over(micro: Any, tmp_path: Path) -> None:
    (tmp_path / "greeter").mkdir()
    (tmp_path / "greeter" / "test_service.py").write_text("mine")
    done = micro("new", "service", "go.micro.srv.greeter")
    assert (done.exit_code, "exists already" in done.stderr) == (1, True)
    assert [path.name for path in (tmp_path / "greeter").iterdir()] == ["test_service.py"]


@pytest.mark.parametrize("name", ["", "no spaces", '"quoted"', "../up/"])
def test_what_is_no_name_is_refused(micro: Any, tmp_path: Path, name: str) -> None:
    done = micro("new", "service", name)
    assert done.exit_code == 2
    assert "is not a service name" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == []
