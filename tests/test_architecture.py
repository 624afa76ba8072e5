"""The packages match ARCHITECTURE.md and the import contracts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "micro_core"
MAX_FILE_LINES = 450


def packages() -> set[str]:
    folders = {path.name for path in CORE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    files = {path.stem for path in CORE.glob("*.py") if not path.stem.startswith("__")}
    return folders | files


def test_every_package_is_in_architecture_md() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert {name for name in packages() if f"| `{name}` |" not in text} == set()


def test_files_named_in_architecture_md_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = {name for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", text) if not name.startswith("tests/")}
    assert len(named) > 10
    assert {name for name in named if not (CORE / name).exists()} == set()


def test_import_contracts_are_kept() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([str(lint)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_plugins_import_only_the_contract_of_core() -> None:
    forbidden = []
    for path in ROOT.glob("plugins/*/src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            forbidden += [
                f"{path.relative_to(ROOT)}: {name}"
                for name in names
                if name.split(".")[0] == "micro_core" and not name.startswith("micro_core.contract")
            ]
    assert forbidden == []


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_file_is_at_most_450_lines_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def test_pure_modules_of_the_import_contract_exist() -> None:
    contracts = (ROOT / "pyproject.toml").read_text().partition("Pure modules use no I/O")[2]
    named = re.findall(r'"micro_core\.([a-z_.]+)"', contracts.partition("forbidden_modules")[0])
    assert named
    for name in named:
        assert (CORE / (name.replace(".", "/") + ".py")).exists() or (CORE / name.replace(".", "/")).is_dir(), name
