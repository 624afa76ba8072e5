"""`micro plugin install` and `uninstall`: real pip, in an environment of its own, from wheels in a directory."""

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
ENTRY = '[project.entry-points."micro.{role}"]\n{word} = "{module}"\n'
MODULE = """
from micro_core.contract import Driver, NoOptions, hookimpl

@hookimpl
def micro_{role}():
    return Driver(name="{word}", summary="A test.", options=NoOptions, create=lambda options, context: None)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the index would have: a plugin of ours by its known name, one of somebody else, and no plugin at all."""
    place = tmp_path_factory.mktemp("wheels")
    packages = [("micro-nats-broker", "broker", "nats"), ("acme-fax-transport", "transport", "fax"), ("acme-x", "", "")]
    sources = []
    for name, role, word in packages:
        module = name.replace("-", "_")
        source = tmp_path_factory.mktemp(module)
        entry = ENTRY.format(role=role, word=word, module=module) if role else ""
        (source / "pyproject.toml").write_text(PROJECT.format(name=name, module=module) + entry)
        (source / f"{module}.py").write_text(MODULE.format(role=role, word=word) if role else "")
        sources.append(str(source))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(place)]
    subprocess.run([*command, *sources], check=True, timeout=120)
    return place


@pytest.fixture
def installing(tmp_path: Path, wheels: Path) -> Callable[..., Done]:
    """`micro` in an environment of its own, which has this one's packages below it; pip finds the wheels alone."""
    place = tmp_path / "environment"
    venv.create(place, with_pip=True, symlinks=True)
    python = place / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # All but the driver that the wheels have, which is installed here too.
    below = tmp_path / "below"
    below.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "micro_nats_broker" not in path.name:
            (below / path.name).symlink_to(path)
    Path(found.stdout.strip(), "below.pth").write_text(f"import site; site.addsitedir({str(below)!r})\n")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_NO_DEPS": "1"}

    def micro(*words: str, python_options: tuple[str, ...] = ("-m", "micro_core"), **environ: str) -> Done:
        return subprocess.run(
            [python, *python_options, *words],
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
def test_a_plugin_is_installed_where_micro_runs_used_and_uninstalled(installing: Callable[..., Done]) -> None:
    micro = installing

    def states() -> dict[str, tuple[str, str]]:
        rows = json.loads(micro("plugin", "list", "--json").stdout)["plugins"]
        return {row["distribution"]: (row["role"], row["version"]) for row in rows}

    # Both by their words and by the name of a distribution; the test's own packages stay as they are.
    done = micro("plugin", "install", "broker:nats", "acme-fax-transport==0.3.1", "acme-x")
    assert done.returncode == 0, done.stderr
    assert "pip --disable-pip-version-check install micro-nats-broker" in done.stderr
    assert "acme-x is installed, and has no plugin for micro" in done.stderr
    assert done.stdout.splitlines() == [
        "broker:nats  micro-nats-broker 0.3.1; use it: --plugins nats",
        "transport:fax  acme-fax-transport 0.3.1; use it: --plugins fax",
    ]
    assert states()["acme-fax-transport"] == ("transport", "0.3.1")
    assert micro("config", "validate", "--plugins", "fax").returncode == 0

    unasked = micro("plugin", "uninstall", "fax")
    assert unasked.returncode == 2
    assert "--yes" in unasked.stderr
    done = micro("plugin", "uninstall", "fax", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plugins"] == ["transport:fax"]
    assert "acme-fax-transport" not in states()
    gone = micro("plugin", "uninstall", "fax", "--yes")
    assert gone.returncode == 3
    assert "there is no plugin 'fax'" in gone.stderr

    nowhere = micro("plugin", "install", "acme-nowhere-registry")
    assert nowhere.returncode == 3
    assert "No matching distribution" in nowhere.stderr
    assert "error: pip ended with 1" in nowhere.stderr


def test_an_environment_without_pip_says_so_and_what_to_do(tmp_path: Path, process: Any) -> None:
    (tmp_path / "without_pip.py").write_text(
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'pip' else real(name, *more)\n"
        "sys.argv[0] = 'micro'\n"
        "from micro_core.cli.main import main\n"
        "main()\n"
    )
    done = process("plugin", "install", "quic", python=("without_pip.py",))
    assert done.returncode == 3
    assert "this environment has no pip" in done.stderr
    assert "uv pip install micro-quic-tunnel" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("install", "tcp"), 2, "'tcp' is built in"),
        (("install", "micro-network"), 2, "micro-network is what runs here"),
        (("install", "micro-quick-tunnel"), 3, "did you mean 'micro-quic-tunnel'?"),
        (("install", "qiuc"), 3, "did you mean 'quic'?"),
        (("install", "etcd"), 3, "by its distribution's name, as in acme-etcd-registry"),
        (("install", "tunnel:wire-guard"), 3, "there is no known plugin 'tunnel:wire-guard'"),
        (("install", "--", "--index-url=http://x"), 2, "is not the name of a plugin"),
        (("install", "quic @ http://x/y.whl"), 2, "is not the name of a plugin"),
        (("uninstall", "tcp", "--yes"), 2, "'tcp' is built in"),
        (("uninstall", "micro_network", "--yes"), 2, "micro-network is micro itself"),
        (("uninstall", "pluggy", "--yes"), 3, "there is no plugin 'pluggy'"),
    ],
)
def test_what_is_not_a_plugin_never_reaches_pip(
    micro: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, sentence: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was run"))
    done = micro("plugin", *words)
    assert done.exit_code == code, done.output
    assert sentence in done.stderr


def test_a_dry_run_shows_the_command_and_does_nothing(micro: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was run"))
    done = micro("plugin", "install", "quic>=0.1", "--upgrade", "--dry-run", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["command"][-3:] == ["install", "--upgrade", "micro-quic-tunnel>=0.1"]
