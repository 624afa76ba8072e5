"""The house is as ARCHITECTURE.md and the import contracts say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "micro_core"
LONGEST_FILE_LINES = 450


def rooms() -> set[str]:
    folders = {path.name for path in CORE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    files = {path.stem for path in CORE.glob("*.py") if not path.stem.startswith("__")}
    return folders | files


def test_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert {room for room in rooms() if f"| `{room}` |" not in text} == set()


def test_imports_go_down_the_floors_and_pure_files_stay_pure() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([str(lint)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_plugin_imports_nothing_of_the_house_but_its_contract() -> None:
    strangers = []
    for path in ROOT.glob("plugins/*/src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            strangers += [
                f"{path.relative_to(ROOT)}: {name}"
                for name in names
                if name.split(".")[0] == "micro_core" and not name.startswith("micro_core.contract")
            ]
    assert strangers == []


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_no_file_has_grown_beyond_reading(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE_LINES


def test_the_pure_files_of_the_contract_exist() -> None:
    contracts = (ROOT / "pyproject.toml").read_text().partition("Pure modules use no I/O")[2]
    named = re.findall(r'"micro_core\.([a-z_.]+)"', contracts.partition("forbidden_modules")[0])
    assert named
    for name in named:
        assert (CORE / (name.replace(".", "/") + ".py")).exists() or (CORE / name.replace(".", "/")).is_dir(), name
