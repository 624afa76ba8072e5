"""Run `micro` in this process or in a child process, in an empty directory and environment."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

Micro = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MICRO_"):
            monkeypatch.delenv(name)
    # Undo what --debug sets.
    monkeypatch.setenv("MICRO_DEBUG", "")
    monkeypatch.setenv("MICRO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def hidden_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide some installed plugins from `micro` in this process."""
    hidden = ("micro-nats-broker", "micro-redis-registry", "micro-sqlite-table")
    all_distributions = importlib.metadata.distributions

    def visible(**filters: Any) -> list[importlib.metadata.Distribution]:
        return [found for found in all_distributions(**filters) if found.metadata["Name"] not in hidden]

    monkeypatch.setattr(importlib.metadata, "distributions", visible)


@pytest.fixture
def micro() -> Micro:
    """Run a command line in this process."""
    from micro_core.cli.commands.run import expand_peer
    from micro_core.cli.main import app

    return lambda *arguments: CliRunner().invoke(app, expand_peer(list(arguments)), prog_name="micro")


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """Run `micro` (or Python with other options) in a child process, optionally with a site directory on its path."""

    def run(
        *arguments: str, python: tuple[str, ...] = ("-m", "micro_core"), site: Path | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        paths = {"PYTHONPATH": str(site)} if site is not None else {}
        return subprocess.run(
            [sys.executable, *python, *arguments],
            cwd=tmp_path,
            env={**os.environ, **paths, **environ},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Path]:
    """Install a distribution with one entry point and its module; return its site directory."""

    def install(distribution: str, group: str, name: str, source: str) -> Path:
        site = tmp_path / "site"
        info = site / f"{distribution.replace('-', '_')}-1.2.3.dist-info"
        info.mkdir(parents=True)
        module = f"test_{distribution}".replace("-", "_")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2.3\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        (site / f"{module}.py").write_text(source)
        return site

    return install
