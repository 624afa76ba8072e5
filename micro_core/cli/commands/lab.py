"""`micro lab`: simulated networks."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Json

lab_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Simulate whole networks on virtual time. The same seed always produces the same run.",
)


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(lab_app, name="lab")


@lab_app.command("list")
def list_scenarios(json: Json = False) -> None:
    """List the built-in scenarios."""
    from micro_core.cli.lab import show_scenarios

    show_scenarios(json)


@lab_app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="Name from `micro lab list`, or a .py or .toml file.")],
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    nodes: Annotated[
        int | None, typer.Option(help="Number of nodes, for scenarios with a variable number of nodes.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Number of seeds to run, one after the other, starting with --seed.", min=1)
    ] = 1,
    plot: Annotated[str, typer.Option(help="File for a plot of the run, e.g. out.svg or out.png.")] = "",
    log: Annotated[str, typer.Option(help="File for the event log.")] = "",
    save: Annotated[str, typer.Option(help="File for the outcome, which `micro lab replay` reads.")] = "",
    check: Annotated[bool, typer.Option(help="Check the invariants once per virtual second.")] = True,
    json: Json = False,
) -> None:
    """Run a scenario and print a report. Exits with 9 if an invariant was violated or a step failed."""
    from micro_core.cli.lab import run_scenario

    run_scenario(scenario, seed, nodes, seeds, (plot, log, save), check, json)


@lab_app.command()
def replay(
    outcome: Annotated[str, typer.Argument(help="File written by `micro lab run --save`.")], json: Json = False
) -> None:
    """Repeat a saved run and compare the two runs. Exits with 9 if they differ."""
    from micro_core.cli.lab import replay_outcome

    replay_outcome(outcome, json)
