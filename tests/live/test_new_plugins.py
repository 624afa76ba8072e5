"""Installs, checks, tests and uses the packages that `micro plugin new` writes, with core installed from its wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.wheel_builds import build_wheels

ROOT = Path(__file__).parents[2]
KINDS = ("registry", "transport", "broker", "tunnel", "table", "resolver", "hooks")

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an environment with core installed from its wheel. Other packages come from the current environment."""
    directory = tmp_path_factory.mktemp("author")
    venv.create(directory / "environment", symlinks=True)
    python = directory / "environment" / "bin" / "python"
    wheels = directory / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build_wheels(wheels, ROOT)
    (wheel,) = wheels.glob("micro_network-*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True, timeout=120)
    (site,) = (directory / "environment" / "lib").glob("python*/site-packages")
    # A plain path makes the packages importable, but does not run the import hooks of editable installs.
    (site / "inherited.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def author(python: Path, tmp_path: Path) -> Callable[..., Done]:
    """Return a function that runs Python in that environment, in an empty directory, and checks the exit code."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MICRO_", "PYTHON"))}
    environ |= {"MICRO_STATE_DIR": str(tmp_path / "state"), "PIP_NO_INDEX": "1"}

    def run(*arguments: str, directory: Path = tmp_path, code: int = 0) -> Done:
        done = subprocess.run(
            [python, *arguments], cwd=directory, env=environ, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == code, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def check(
    author: Callable[..., Done], python: Path, package: Path, plugin: str, site: Path, *, is_verified: bool = False
) -> None:
    """Install the package into a directory of its own, then type-check, test and inspect it.

    With `is_verified`, the kit is run a second time, by `micro plugin verify`.
    """
    pip = ("-m", "pip", "--disable-pip-version-check", "-q")
    author(*pip, "install", "--no-deps", "--no-build-isolation", "--target", str(site), str(package))
    shutil.rmtree(package / "build", ignore_errors=True)

    # All packages share one cache, because most of the checked code is core.
    mypy = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--cache-dir", str(python.parents[2])]
    typed = subprocess.run(mypy, cwd=package, capture_output=True, text=True, timeout=400, check=False)
    assert typed.returncode == 0, typed.stdout

    use = f"import site; site.addsitedir({str(site)!r}); import runpy, sys; sys.argv[:] = sys.argv[1:]; "
    module = use + "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    tested = author("-c", module, "pytest", "-p", "no:cacheprovider", directory=package)
    assert "passed" in tested.stdout
    assert "failed" not in tested.stdout

    if is_verified:
        report = json.loads(author("-c", module, "micro_core", "plugin", "verify", plugin, "--json").stdout)
        assert report["result"] == "passed"
    info = json.loads(author("-c", module, "micro_core", "plugin", "info", plugin, "--json").stdout)
    role, _, name = plugin.partition(":")
    assert info["distribution"] == f"micro-{name}-{role}"
    assert info["options"]
    assert not is_verified or info["verification"]["result"] == "passed"
    valid = author("-c", module, "micro_core", "config", "validate", "--plugins", plugin)
    assert plugin in valid.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_generated_plugin_passes_type_checks_and_its_kit(
    author: Callable[..., Done], python: Path, tmp_path: Path, kind: str
) -> None:
    author("-m", "micro_core", "plugin", "new", kind, "acme", "--dir", "acme")
    check(author, python, tmp_path / "acme", f"{kind}:acme", tmp_path / "site", is_verified=kind == "resolver")


@pytest.mark.timeout(600)
def test_third_party_plugin_passes_type_checks_and_its_kit(
    author: Callable[..., Done], python: Path, tmp_path: Path
) -> None:
    package = tmp_path / "share"
    shutil.copytree(
        ROOT / "examples/third_party/share_registry", package, ignore=shutil.ignore_patterns("build", "*.egg-info")
    )
    code = [line for line in (package / "src/micro_share_registry/store.py").read_text().splitlines() if line.strip()]
    assert len(code) < 100, "the README states this limit"
    check(author, python, package, "registry:share", tmp_path / "site", is_verified=True)
