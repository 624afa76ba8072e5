"""Tests of `micro plugin install` and `uninstall` with the real pip, which finds wheels in a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Done = subprocess.CompletedProcess[str]

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "0.3.1"
[tool.setuptools]
py-modules = ["{module}"]
"""
ENTRY = '[project.entry-points."micro.{role}"]\n{plugin} = "{module}"\n'
MODULE = """
from micro_core.contract import Driver, NoOptions, hookimpl

@hookimpl
def micro_{role}():
    return Driver(name="{plugin}", summary="A test.", options=NoOptions, create=lambda options, context: None)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheels: a known plugin, a third-party plugin, and a distribution without a plugin."""
    directory = tmp_path_factory.mktemp("wheels")
    packages = [("micro-nats-broker", "broker", "nats"), ("acme-fax-transport", "transport", "fax"), ("acme-x", "", "")]
    sources = []
    for name, role, plugin in packages:
        module = name.replace("-", "_")
        source = tmp_path_factory.mktemp(module)
        entry = ENTRY.format(role=role, plugin=plugin, module=module) if role else ""
        (source / "pyproject.toml").write_text(PROJECT.format(name=name, module=module) + entry)
        (source / f"{module}.py").write_text(MODULE.format(role=role, plugin=plugin) if role else "")
        sources.append(str(source))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(directory),
    ]
    subprocess.run([*command, *sources], check=True, timeout=120)
    return directory


@pytest.fixture
def micro_in_venv(tmp_path: Path, wheels: Path) -> Callable[..., Done]:
    """Return a function that runs `micro` in a new virtual environment, where pip finds only the wheels.

    The packages of the current environment are importable there, except the driver that one of the wheels contains.
    """
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    inherited = tmp_path / "inherited"
    inherited.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "micro_nats_broker" not in path.name:
            (inherited / path.name).symlink_to(path)
    Path(found.stdout.strip(), "inherited.pth").write_text(f"import site; site.addsitedir({str(inherited)!r})\n")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_DEPS": "1"}

    def micro(*arguments: str, python_options: tuple[str, ...] = ("-m", "micro_core"), **environ: str) -> Done:
        return subprocess.run(
            [python, *python_options, *arguments],
            env={**os.environ, **settings, **environ},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return micro


@pytest.mark.timeout(180)
def test_plugin_is_installed_used_and_uninstalled(micro_in_venv: Callable[..., Done]) -> None:
    micro = micro_in_venv

    def states() -> dict[str, tuple[str, str]]:
        rows = json.loads(micro("plugin", "list", "--json").stdout)["plugins"]
        return {row["distribution"]: (row["role"], row["version"]) for row in rows}

    done = micro("plugin", "install", "broker:nats", "acme-fax-transport==0.3.1", "acme-x")
    assert done.returncode == 0, done.stderr
    assert "pip --disable-pip-version-check install micro-nats-broker" in done.stderr
    assert "acme-x is installed, but it contains no plugin for micro" in done.stderr
    assert done.stdout.splitlines() == [
        "installed broker:nats (micro-nats-broker 0.3.1); use it with --plugins nats",
        "installed transport:fax (acme-fax-transport 0.3.1); use it with --plugins fax",
    ]
    assert states()["acme-fax-transport"] == ("transport", "0.3.1")
    assert micro("config", "validate", "--plugins", "fax").returncode == 0

    unconfirmed = micro("plugin", "uninstall", "fax")
    assert unconfirmed.returncode == 2
    assert "--yes" in unconfirmed.stderr
    done = micro("plugin", "uninstall", "fax", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plugins"] == ["transport:fax"]
    assert "acme-fax-transport" not in states()
    missing = micro("plugin", "uninstall", "fax", "--yes")
    assert missing.returncode == 3
    assert "unknown plugin 'fax'" in missing.stderr

    unknown = micro("plugin", "install", "acme-unknown-registry")
    assert unknown.returncode == 3
    assert "No matching distribution" in unknown.stderr
    assert "error: pip failed with exit code 1" in unknown.stderr


def test_missing_pip_is_reported_with_a_hint(tmp_path: Path, process: Any) -> None:
    (tmp_path / "without_pip.py").write_text(
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *args: None if name == 'pip' else real(name, *args)\n"
        "sys.argv[0] = 'micro'\n"
        "from micro_core.cli.main import main\n"
        "main()\n"
    )
    done = process("plugin", "install", "quic", python=("without_pip.py",))
    assert done.returncode == 3
    assert "this environment has no pip" in done.stderr
    assert "uv pip install micro-quic-tunnel" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("install", "tcp"), 2, "'tcp' is built in"),
        (("install", "micro-network"), 2, "micro-network is micro itself"),
        (("install", "micro-quick-tunnel"), 3, "did you mean 'micro-quic-tunnel'?"),
        (("install", "qiuc"), 3, "did you mean 'quic'?"),
        (("install", "etcd"), 3, "the full name of its distribution, e.g. acme-etcd-registry"),
        (("install", "tunnel:wire-guard"), 3, "unknown plugin 'tunnel:wire-guard'"),
        (("install", "--", "--index-url=http://x"), 2, "is not the name of a plugin"),
        (("install", "quic @ http://x/y.whl"), 2, "is not the name of a plugin"),
        (("uninstall", "tcp", "--yes"), 2, "'tcp' is built in"),
        (("uninstall", "micro_network", "--yes"), 2, "micro-network is micro itself"),
        (("uninstall", "pluggy", "--yes"), 3, "unknown plugin 'pluggy'"),
    ],
)
def test_invalid_plugin_name_is_rejected_without_running_pip(
    micro: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was run"))
    done = micro("plugin", *arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr


def test_dry_run_shows_the_command_without_running_it(micro: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was run"))
    done = micro("plugin", "install", "quic>=0.1", "--upgrade", "--dry-run", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["command"][-3:] == ["install", "--upgrade", "micro-quic-tunnel>=0.1"]
