"""Run a scenario by name or from a file, and return its report."""

from __future__ import annotations

import importlib.util
import inspect
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micro_core.contract.errors import ConfigError
from micro_core.lab import loop
from micro_core.lab.net import Lab, NotConverged
from micro_core.lab.options import LabOptions
from micro_core.lab.report import Observer, Report, Sample
from micro_core.lab.scenarios import SCENARIOS, Body
from micro_core.lab.scripted import scripted

DEFAULT_COUNT = 3
MAX_NODES = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of a run."""

    scenario: str
    result: dict[str, Any]
    """As `micro lab run --json` prints it."""
    report: Report
    log: list[str]

    @property
    def is_good(self) -> bool:
        """Whether all steps succeeded and no invariant was violated."""
        return not self.result["violations"] and not self.result["failure"]


def find(name: str) -> tuple[Body, int]:
    """Return the scenario with this name or in this .py or .toml file, and its default number of nodes.

    Raises ConfigError if there is no such scenario or file, or if the file is invalid.
    """
    if name in SCENARIOS:
        return SCENARIOS[name].body, SCENARIOS[name].count
    path = Path(name)
    if path.suffix == ".py" and path.exists():
        return _from_python(path)
    if path.suffix == ".toml" and path.exists():
        try:
            with path.open("rb") as file:
                return scripted(tomllib.load(file))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"invalid TOML in {path}: {error}") from error
    raise ConfigError(
        f"unknown scenario {name!r:.80}", hint=f"use a .py or .toml file, or one of {', '.join(SCENARIOS)}"
    )


def run(
    name: str,
    *,
    seed: int = 0,
    nodes: int | None = None,
    is_checking: bool = True,
    on_sample: Callable[[Sample], None] | None = None,
) -> Outcome:
    """Run a scenario on virtual time. A failure of the scenario is part of the outcome.

    Args:
        name: Name of a built-in scenario, or a .py or .toml file.
        seed: Seed of all random numbers.
        nodes: Number of nodes. None means the default of the scenario.
        is_checking: Check the invariants once per virtual second.
        on_sample: Called with each sample.

    Raises:
        ConfigError: If the scenario is unknown or invalid, or the number of nodes is out of range.
    """
    body, default_count = find(name)
    count = default_count if nodes is None else nodes
    if not 1 <= count <= MAX_NODES:
        raise ConfigError(f"cannot run a lab of {count} nodes: use 1 to {MAX_NODES} nodes")
    began = time.perf_counter()

    async def main() -> Outcome:
        cpu = SCENARIOS[name].cpu if name in SCENARIOS else None
        lab = Lab(seed, options=LabOptions(keep_log=count <= 200, cpu=cpu))
        observer = Observer(lab, is_checking=is_checking, on_sample=on_sample)
        failure = ""
        try:
            await body(lab, observer, count)
        except (NotConverged, AssertionError) as error:
            failure = str(error)
        finally:
            await observer.close()
        result = {
            "scenario": name,
            "requested_nodes": nodes,
            **observer.report.as_map(lab),
            "failure": failure,
            "real_s": round(time.perf_counter() - began, 2),
        }
        log = list(lab.log)
        await lab.close()
        return Outcome(scenario=name, result=result, report=observer.report, log=log)

    return loop.run(main())


def _from_python(path: Path) -> tuple[Body, int]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"syntax error in {path}, line {error.lineno}: {error.msg}") from error
    body = getattr(module, "scenario", None)
    if not inspect.iscoroutinefunction(body) or len(inspect.signature(body).parameters) != 3:
        raise ConfigError(f"{path} has no `async def scenario(lab, watch, count)`", hint="docs/lab.md has an example")
    return body, int(getattr(module, "NODES", DEFAULT_COUNT))
