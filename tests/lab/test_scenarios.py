"""Built-in and own scenarios, and the reproducibility of runs."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from micro_core.cli.main import app
from micro_core.contract.errors import ConfigError
from micro_core.lab.running import find, run
from micro_core.lab.scenarios import SCENARIOS
from micro_core.lab.scripted import scripted

SLOW = {"storm": 12, "churn": 6}


def micro(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="micro")


@pytest.mark.parametrize("name", SCENARIOS)
def test_built_in_scenario_succeeds(name: str) -> None:
    outcome = run(name, seed=3, nodes=8 if name.startswith("found-") else SLOW.get(name))
    assert outcome.result["failure"] == ""
    assert outcome.result["violations"] == []
    assert outcome.result["settled"]


@pytest.mark.parametrize("name", ["partition", "four-clouds"])
def test_same_seed_gives_the_same_log_with_any_hash_seed(name: str, tmp_path: Path) -> None:
    logs = []
    for hash_seed in ("0", "1", "4711"):
        path = tmp_path / f"{hash_seed}.log"
        subprocess.run(
            [sys.executable, "-m", "micro_core", "lab", "run", name, "--seed", "5", "--log", str(path)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        )
        logs.append(path.read_bytes())
    assert logs[0]
    assert logs[0] == logs[1] == logs[2]


def test_different_seed_gives_a_different_log() -> None:
    assert run("ring", seed=1).result["digest"] != run("ring", seed=2).result["digest"]


def test_report_is_printed_as_text_and_json_and_can_be_replayed(tmp_path: Path) -> None:
    saved = tmp_path / "run.json"
    done = micro("lab", "run", "line", "--nodes", "4", "--seed", "2", "--save", str(saved))
    assert done.exit_code == 0, done.output
    assert "a service starts" in done.stdout
    assert "routing messages" in done.stdout
    answer = json.loads(micro("lab", "run", "line", "--nodes", "4", "--seed", "2", "--json").stdout)
    assert answer["schema"] == "micro.lab/1"
    assert answer["digest"] == json.loads(saved.read_text())["digest"]
    replayed = micro("lab", "replay", str(saved))
    assert replayed.exit_code == 0
    assert "identical to the saved run" in replayed.stdout
    saved.write_text(saved.read_text().replace(answer["digest"], "0" * 32))
    assert micro("lab", "replay", str(saved)).exit_code == 9


def test_run_restores_the_log_levels_of_the_process() -> None:
    logger = logging.getLogger("micro_core")
    logger.setLevel(logging.INFO)
    try:
        assert micro("lab", "run", "line", "--nodes", "2").exit_code == 0
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(logging.NOTSET)


def test_list_contains_every_scenario() -> None:
    listed = micro("lab", "list").stdout
    assert all(name in listed for name in SCENARIOS)


PYTHON = """
NODES = 2

async def scenario(lab, watch, count):
    await lab.line(count)
    await watch.settle("start")
    assert count != 3, "three is too many"
"""


def test_python_scenario_file_runs(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(PYTHON)
    assert run(str(path)).result["nodes"] == 2
    failed = micro("lab", "run", str(path), "--nodes", "3", "--seed", "8")
    assert failed.exit_code == 9
    assert "three is too many" in failed.stdout
    assert f"micro lab run {path} --seed 8 --nodes 3" in failed.stdout, (
        "the output contains the command that repeats the run"
    )


TOML = """
nodes = 3
shape = "ring"
links = { delay_s = 0.02, loss = 0.01 }
[[step]]
do = "serve"
node = "a"
service = "greeter"
[[step]]
do = "settle"
name = "a greeter starts"
[[step]]
do = "partition"
node = "a"
other = "b"
[[step]]
do = "wait"
seconds = 10
[[step]]
do = "heal"
node = "a"
other = "b"
[[step]]
do = "stall"
node = "a"
other = "c"
seconds = 1.5
[[step]]
do = "kill"
node = "c"
[[step]]
do = "start"
node = "c"
[[step]]
do = "stop"
node = "a"
service = "greeter"
[[step]]
do = "settle"
"""


def test_toml_scenario_file_runs(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(TOML)
    outcome = run(str(path))
    assert outcome.is_good, outcome.result
    assert [settled["name"] for settled in outcome.result["settled"]] == ["a greeter starts", "step 10"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"shape": "heap"}, "shape"),
        ({"nodes": 0}, "nodes"),
        ({"nodes": True}, "nodes"),
        ({"links": {"colour": 1}}, "links"),
        ({"links": {"loss": -1}}, "links"),
        ({"step": "all"}, "step"),
        ({"step": [{"do": "dance"}]}, "step 1 has no valid key"),
        ({"step": [{"do": "serve", "node": "a"}]}, "serve requires service"),
        ({"step": [{"do": "wait", "seconds": "long"}]}, "seconds"),
    ],
)
def test_invalid_scenario_is_rejected_before_the_run(table: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        scripted(table)


def test_unknown_scenarios_and_nodes_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown scenario"):
        find("nonsense")
    path = tmp_path / "own.toml"
    path.write_text('[[step]]\ndo = "kill"\nnode = "zebra"\n')
    with pytest.raises(ConfigError, match="unknown node zebra"):
        run(str(path))
    path.write_text("nodes =")
    with pytest.raises(ConfigError, match="invalid TOML"):
        run(str(path))
    with pytest.raises(ConfigError, match="use 1 to"):
        run("line", nodes=100_000)


def test_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots require micro-network[plot]")
    path = tmp_path / "out.svg"
    done = micro("lab", "run", "partition", "--plot", str(path))
    assert done.exit_code == 0, done.output
    assert "<svg" in path.read_text()


# ------------------------------------------------------------------------------------ examples of docs/lab.md

ROOT = Path(__file__).parents[2]
PAGE = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", (ROOT / "docs/lab.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(("name", "text"), PAGE, ids=[name for name, _ in PAGE])
def test_scenarios_of_the_documentation_succeed(tmp_path: Path, name: str, text: str) -> None:
    assert len(PAGE) == 2
    path = tmp_path / name
    path.write_text(text)
    outcome = run(str(path), seed=7)
    assert outcome.is_good, outcome.result
    assert len(outcome.result["settled"]) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.toml", "", "the scenario has no"),
        ("odd.toml", 'shapes = "ring"\n', "unknown key 'shapes'"),
        ("broken.py", "async def scenario(lab, watch, count:\n", "line 1"),
    ],
)
def test_invalid_file_is_rejected_before_the_run(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        run(str(path))
