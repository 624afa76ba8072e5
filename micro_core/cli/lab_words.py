"""The words of `micro lab`. Imports typer alone; each body imports its group when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Json

lab_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Whole networks on virtual time, from one seed."
)


@lab_app.command("list")
def list_scenarios(json: Json = False) -> None:
    """The scenarios that come with the lab."""
    from micro_core.cli.lab import show_scenarios

    show_scenarios(json)


@lab_app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="A name from `micro lab list`, or a .py or .toml file.")],
    seed: Annotated[int, typer.Option(help="All that is random comes from it.")] = 0,
    nodes: Annotated[int | None, typer.Option(help="How many nodes, where the scenario lets you say.")] = None,
    seeds: Annotated[int, typer.Option(help="Run so many seeds, one after the other, from --seed on.", min=1)] = 1,
    plot: Annotated[str, typer.Option(help="Write a picture: out.svg or out.png.")] = "",
    log: Annotated[str, typer.Option(help="Write the event log.")] = "",
    save: Annotated[str, typer.Option(help="Write the outcome, for `micro lab replay`.")] = "",
    check: Annotated[bool, typer.Option(help="Check the invariants once a virtual second.")] = True,
    json: Json = False,
) -> None:
    """Run a scenario and print what happened. Exit code 9 when something did not hold."""
    from micro_core.cli.lab import run_scenario

    run_scenario(scenario, seed, nodes, seeds, (plot, log, save), check, json)


@lab_app.command()
def replay(
    outcome: Annotated[str, typer.Argument(help="A file written by `micro lab run --save`.")], json: Json = False
) -> None:
    """Run again what was saved, and see whether the very same happens. Exit code 9 when it does not."""
    from micro_core.cli.lab import replay_outcome

    replay_outcome(outcome, json)
