"""`micro plugin new`: what it writes, and what it refuses. That the packages work: tests/live/test_new_plugins.py."""

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
def test_what_is_written_is_clean_whatever_the_name(micro: Any, tmp_path: Path, kind: str, name: str) -> None:
    assert micro("plugin", "new", kind, name, "--dir", "it").exit_code == 0
    for words in (["check"], ["format", "--check", "--diff"]):
        done = subprocess.run(
            [RUFF, *words, "."], cwd=tmp_path / "it", capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for path in (tmp_path / "it").rglob("*"):
        if path.suffix in (".py", ".md", ".toml", ".yml"):
            assert re.search("@[A-Za-z_]+@", path.read_text()) is None, path


def test_the_package_is_whole(micro: Any, tmp_path: Path) -> None:
    done = micro(
        "plugin", "new", "registry", "acme-store", "--author", "A. Author", "--license", "Apache-2.0", "--json"
    )
    answer = json.loads(done.stdout)
    assert (answer["schema"], answer["distribution"]) == ("micro.plugin-new/1", "micro-acme-store-registry")
    place = tmp_path / answer["directory"]
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} == set(answer["files"])
    assert {".github/workflows/tests.yml", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md"} <= set(answer["files"])
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {
        "micro.registry": {"acme-store": "micro_acme_store_registry"},
        "micro.testing": {"acme-store": "micro_acme_store_registry.conformance"},
    }
    assert (project["license"], project["authors"]) == ("Apache-2.0", [{"name": "A. Author"}])
    assert "Apache-2.0" in (place / "LICENSE").read_text()
    readme = (place / "README.md").read_text()
    assert "`micro plugin info acme-store` shows each" in readme, "a table of options would be old soon"
    assert "MICRO_ACME_STORE__OPTION" in readme


@pytest.mark.parametrize("kind", KINDS)
def test_the_workflow_runs_what_the_author_runs(micro: Any, tmp_path: Path, kind: str) -> None:
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
    ("words", "code", "sentence"),
    [
        (("regestry", "acme"), 2, "one of registry, transport"),
        (("registry", "../up"), 2, "cannot be a plugin's name"),
        (("registry", "Acme"), 2, "cannot be a plugin's name"),
        (("registry", "a" * 21), 2, "cannot be a plugin's name"),
        (("registry", "acme", "--license", 'MIT"]'), 2, "no SPDX expression"),
        (("registry", "acme", "--author", 'A" }]'), 2, "cannot be an author's name"),
    ],
)
def test_what_cannot_be_written_is_said_and_nothing_is(
    micro: Any, tmp_path: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    done = micro("plugin", "new", *words)
    assert (done.exit_code, sentence in done.stderr) == (code, True), done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "state"] == []


@pytest.mark.parametrize(
    ("kind", "name", "owner"), [("registry", "local", "micro-network"), ("broker", "nats", "micro-nats-broker")]
)
def test_a_name_that_is_taken_is_said_and_the_package_written(
    micro: Any, tmp_path: Path, kind: str, name: str, owner: str
) -> None:
    done = micro("plugin", "new", kind, name, "--dir", "it")
    assert done.exit_code == 0
    assert f"{owner} has a plugin of this name already" in done.stderr
    assert (tmp_path / "it" / "pyproject.toml").exists()


def test_what_stands_already_is_not_written_over(micro: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.py").write_text("years of it")
    done = micro("plugin", "new", "table", "acme", "--dir", "mine")
    assert (done.exit_code, "not an empty directory" in done.stderr) == (1, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["work.py"]
