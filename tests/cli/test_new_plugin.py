"""`micro plugin new`: the files it writes and the errors. tests/live/test_new_plugins.py checks that the packages work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

KINDS = ("registry", "transport", "broker", "tunnel", "table", "resolver", "hooks")
RUFF = str(Path(sys.executable).parent / "ruff")


@pytest.mark.parametrize("name", ["ab", "a1-b2", "abcdefghij-klmnopqrs"])
@pytest.mark.parametrize("kind", KINDS)
def test_generated_package_passes_ruff_for_any_name(micro: Any, tmp_path: Path, kind: str, name: str) -> None:
    assert micro("plugin", "new", kind, name, "--dir", "it").exit_code == 0
    for arguments in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run(
            [RUFF, *arguments, "."], cwd=tmp_path / "it", capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for path in (tmp_path / "it").rglob("*"):
        if path.suffix in (".py", ".md", ".toml", ".yml"):
            assert re.search("@[A-Za-z_]+@", path.read_text()) is None, path


def test_generated_package_is_complete(micro: Any, tmp_path: Path) -> None:
    done = micro(
        "plugin", "new", "registry", "acme-store", "--author", "A. Author", "--license", "Apache-2.0", "--json"
    )
    report = json.loads(done.stdout)
    assert (report["schema"], report["distribution"]) == ("micro.plugin-new/1", "micro-acme-store-registry")
    directory = tmp_path / report["directory"]
    assert {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} == set(report["files"])
    assert {".github/workflows/tests.yml", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md"} <= set(report["files"])
    project = tomllib.loads((directory / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {
        "micro.registry": {"acme-store": "micro_acme_store_registry"},
        "micro.testing": {"acme-store": "micro_acme_store_registry.conformance"},
    }
    assert (project["license"], project["authors"]) == ("Apache-2.0", [{"name": "A. Author"}])
    assert "Apache-2.0" in (directory / "LICENSE").read_text()
    readme = (directory / "README.md").read_text()
    assert "`micro plugin info acme-store` shows each" in readme, (
        "the README has no table of options, which would become outdated"
    )
    assert "MICRO_ACME_STORE__OPTION" in readme


@pytest.mark.parametrize("kind", KINDS)
def test_workflow_runs_the_commands_of_the_author(micro: Any, tmp_path: Path, kind: str) -> None:
    assert micro("plugin", "new", kind, "acme", "--dir", "it").exit_code == 0
    workflow = yaml.safe_load((tmp_path / "it" / ".github/workflows/tests.yml").read_text())
    job = workflow["jobs"]["tests"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step] == [
        "actions/checkout",
        "actions/setup-python",
    ]
    assert [step["run"] for step in job["steps"] if "run" in step] == [
        "pip install -e '.[dev]'",
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "pytest",
        *([] if kind == "hooks" else ["micro plugin verify acme"]),
        "micro plugin info acme",
        "python -m build",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("regestry", "acme"), 2, "one of registry, transport"),
        (("registry", "../up"), 2, "is not a valid plugin name"),
        (("registry", "Acme"), 2, "is not a valid plugin name"),
        (("registry", "a" * 21), 2, "is not a valid plugin name"),
        (("registry", "acme", "--license", 'MIT"]'), 2, "is not an SPDX expression"),
        (("registry", "acme", "--author", 'A" }]'), 2, "is not a valid author"),
    ],
)
def test_invalid_arguments_are_rejected_and_nothing_is_written(
    micro: Any, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = micro("plugin", "new", *arguments)
    assert (done.exit_code, message in done.stderr) == (code, True), done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == []


@pytest.mark.parametrize(
    ("kind", "name", "owner"), [("registry", "local", "micro-network"), ("broker", "nats", "micro-nats-broker")]
)
def test_existing_name_causes_a_warning_and_the_package_is_written(
    micro: Any, tmp_path: Path, kind: str, name: str, owner: str
) -> None:
    done = micro("plugin", "new", kind, name, "--dir", "it")
    assert done.exit_code == 0
    assert f"{owner} already has a plugin with this name" in done.stderr
    assert (tmp_path / "it" / "pyproject.toml").exists()


def test_existing_files_are_not_overwritten(micro: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.py").write_text("my work")
    done = micro("plugin", "new", "table", "acme", "--dir", "mine")
    assert (done.exit_code, "not an empty directory" in done.stderr) == (1, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["work.py"]


THIRD_PARTY = Path(__file__).parents[2] / "examples" / "third_party" / "share_registry"
EDITED = {
    "LICENSE",
    "README.md",
    "src/micro_share_registry/__init__.py",
    "src/micro_share_registry/conformance.py",
    "src/micro_share_registry/options.py",
    "src/micro_share_registry/store.py",
}
"""Files of the example that its author changed after `micro plugin new`."""


def test_third_party_example_is_up_to_date_with_the_templates(micro: Any, tmp_path: Path) -> None:
    arguments = ("--author", "A Third Party", "--dir", "package", "--json")
    report = json.loads(micro("plugin", "new", "registry", "share", *arguments).stdout)
    description = tomllib.loads((THIRD_PARTY / "pyproject.toml").read_text())["project"]["description"]
    generated = tomllib.loads((tmp_path / "package" / "pyproject.toml").read_text())["project"]["description"]
    # The example has no repository of its own, so it has neither a workflow nor a .gitignore.
    for path in set(report["files"]) - EDITED - {".gitignore", ".github/workflows/tests.yml"}:
        expected = (tmp_path / "package" / path).read_text().replace(generated, description)
        assert (THIRD_PARTY / path).read_text() == expected, path
