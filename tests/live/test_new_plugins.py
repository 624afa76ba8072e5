"""What `micro plugin new` writes, as its author meets it: installed beside core's wheel, checked, tested and used."""

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

ROOT = Path(__file__).parents[2]
KINDS = ("registry", "transport", "broker", "tunnel", "table", "resolver", "hooks")

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with core from its wheel, templates and all, and what core needs from this test's own."""
    place = tmp_path_factory.mktemp("author")
    venv.create(place / "environment", symlinks=True)
    python = place / "environment" / "bin" / "python"
    wheels = place / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *options, "-w", str(wheels), str(ROOT)], check=True, timeout=120)
    (wheel,) = wheels.glob("micro_network-*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True, timeout=120)
    (site,) = (place / "environment" / "lib").glob("python*/site-packages")
    # A plain path: packages are found there, and what the editable installs of this house do at start-up is not.
    (site / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def author(python: Path, tmp_path: Path) -> Callable[..., Done]:
    """Run Python in that environment, in an empty directory; what fails is shown."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MICRO_", "PYTHON"))}
    environ |= {"MICRO_STATE_DIR": str(tmp_path / "state"), "PIP_NO_INDEX": "1"}

    def run(*words: str, directory: Path = tmp_path, code: int = 0) -> Done:
        done = subprocess.run(
            [python, *words], cwd=directory, env=environ, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == code, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def check(
    author: Callable[..., Done], python: Path, place: Path, plugin: str, site: Path, *, is_verified: bool = False
) -> None:
    """Install the package into a directory of its own, so that several do not meet; check, test and look at it.

    `is_verified`: run the kit a second time, as `micro plugin verify` does.
    """
    pip = ("-m", "pip", "--disable-pip-version-check", "-q")
    author(*pip, "install", "--no-deps", "--no-build-isolation", "--target", str(site), str(place))
    shutil.rmtree(place / "build", ignore_errors=True)

    # One cache for all: most of what is checked is core.
    mypy = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--cache-dir", str(python.parents[2])]
    typed = subprocess.run(mypy, cwd=place, capture_output=True, text=True, timeout=400, check=False)
    assert typed.returncode == 0, typed.stdout

    use = f"import site; site.addsitedir({str(site)!r}); import runpy, sys; sys.argv[:] = sys.argv[1:]; "
    module = use + "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    tested = author("-c", module, "pytest", "-p", "no:cacheprovider", directory=place)
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
def test_a_new_plugin_installs_is_typed_and_passes_its_kit_at_once(
    author: Callable[..., Done], python: Path, tmp_path: Path, kind: str
) -> None:
    author("-m", "micro_core", "plugin", "new", kind, "acme", "--dir", "acme")
    check(author, python, tmp_path / "acme", f"{kind}:acme", tmp_path / "site", is_verified=kind == "resolver")


@pytest.mark.timeout(600)
def test_the_plugin_by_somebody_else_is_typed_and_passes_its_kit(
    author: Callable[..., Done], python: Path, tmp_path: Path
) -> None:
    place = tmp_path / "share"
    shutil.copytree(
        ROOT / "examples/third_party/share_registry", place, ignore=shutil.ignore_patterns("build", "*.egg-info")
    )
    written = [line for line in (place / "src/micro_share_registry/store.py").read_text().splitlines() if line.strip()]
    assert len(written) < 100, "the page says so"
    check(author, python, place, "registry:share", tmp_path / "site", is_verified=True)
