"""The bodies of `micro lab list`, `run` and `replay`."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from micro_core.cli.output import CHECK_FAILED, UsageError, note, run_guarded, show_json, show_table
from micro_core.contract.errors import ConfigError
from micro_core.lab.report import Sample
from micro_core.lab.running import Outcome
from micro_core.lab.running import run as run_lab

OutputFiles = tuple[str, str, str]
"""The values of --plot, --log and --save."""

MAX_VIOLATIONS_SHOWN = 5


def show_scenarios(as_json: bool) -> None:
    """Print the built-in scenarios."""

    def body() -> None:
        from micro_core.lab.scenarios import SCENARIOS

        rows = [{"name": one.name, "nodes": one.count, "summary": one.summary} for one in SCENARIOS.values()]
        if as_json:
            show_json("micro.scenarios/1", {"scenarios": rows})
        else:
            show_table(["name", "nodes", "summary"], [list(row.values()) for row in rows], "no scenarios")

    run_guarded(body, as_json=as_json)


def run_scenario(
    scenario: str, seed: int, nodes: int | None, seeds: int, files: OutputFiles, is_checking: bool, as_json: bool
) -> None:
    """Run a scenario with `seeds` consecutive seeds and print a report of each run.

    Raises typer.Exit(9) if a run failed or violated an invariant.
    """

    def body() -> None:
        has_failed = False
        for current_seed in range(seed, seed + seeds):
            with _node_logs_disabled():
                outcome = run_lab(
                    scenario, seed=current_seed, nodes=nodes, is_checking=is_checking, on_sample=_progress()
                )
            has_failed = has_failed or not outcome.is_good
            if as_json:
                show_json("micro.lab/1", outcome.result)
            else:
                _show(outcome)
            _write(outcome, files)
        if has_failed:
            raise typer.Exit(CHECK_FAILED)

    run_guarded(body, as_json=as_json)


def replay_outcome(path: str, as_json: bool) -> None:
    """Repeat a saved run and compare the event logs. Raises typer.Exit(9) if they differ."""

    def body() -> None:
        try:
            saved = json.loads(Path(path).read_text())
            scenario, seed, nodes, digest = (saved[key] for key in ("scenario", "seed", "requested_nodes", "digest"))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} was not written by `micro lab run --save`") from error
        with _node_logs_disabled():
            outcome = run_lab(str(scenario), seed=int(seed), nodes=nodes)
        is_same = outcome.result["digest"] == digest
        if as_json:
            show_json("micro.lab-replay/1", {"is_same": is_same, "before": saved, "now": outcome.result})
        else:
            _show(outcome)
            typer.echo("identical to the saved run" if is_same else f"different: the saved run has the log {digest}")
        if not is_same:
            raise typer.Exit(CHECK_FAILED)

    run_guarded(body, as_json=as_json)


@contextlib.contextmanager
def _node_logs_disabled() -> Iterator[None]:
    """Disable the loggers of the nodes: their warnings are part of the scenario. Other loggers are not changed."""
    loggers = [logging.getLogger(name) for name in ("micro", "micro_core")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _show(outcome: Outcome) -> None:
    result = outcome.result
    typer.echo(
        f"{outcome.scenario}, seed {result['seed']}: {result['nodes']} nodes, {result['virtual_s']:.0f} s of virtual "
        f"time in {result['real_s']:.1f} s, {result['events']} events, log {result['digest']}"
    )
    for settled in result["settled"]:
        typer.echo(f"  {settled['name']:<28} converged after {settled['seconds']:.2f} s")
    counts = sorted(result["messages_per_node"].values())
    typer.echo(
        f"  routing messages             {result['messages']} ({result['bytes'] / 1024:.0f} KiB); "
        f"per node {counts[0]} to {counts[-1]}, median {counts[len(counts) // 2]}"
    )
    if result["violations"]:
        typer.echo(f"  {len(result['violations'])} violations of invariants, starting with:")
        for violation in result["violations"][:MAX_VIOLATIONS_SHOWN]:
            typer.echo(f"    {violation}")
    if result["failure"]:
        typer.echo(f"  failed: {result['failure']}")
    if not outcome.is_good:
        typer.echo(
            f"  to repeat this run: micro lab run {outcome.scenario} --seed {result['seed']} --nodes {result['nodes']}"
        )


def _write(outcome: Outcome, files: OutputFiles) -> None:
    plot, log, save = files
    try:
        if log:
            Path(log).write_text("\n".join(outcome.log) + "\n")
        if save:
            Path(save).write_text(json.dumps(outcome.result, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {error.strerror}") from error
    if plot:
        from micro_core.lab.plotting import plot as draw

        draw(outcome.report.samples, f"{outcome.scenario}, seed {outcome.result['seed']}", Path(plot))
        note(f"wrote {plot}")


def _progress() -> Callable[[Sample], None] | None:
    """Return a function that updates one line on the terminal. None if standard error is not a terminal."""
    if not sys.stderr.isatty():
        return None

    def show(sample: Sample) -> None:
        line = f"\r{sample.at:8.0f} s  {sample.nodes} nodes  {sample.routes} routes  {sample.messages} messages "
        sys.stderr.write(line)
        sys.stderr.flush()

    return show
