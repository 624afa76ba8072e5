"""The body of `micro network flaps`: services that flap, and their suppression (flap damping, RFC 2439)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from micro_core.cli.client import run_command
from micro_core.cli.network import call_node
from micro_core.cli.output import note, show_json, show_table
from micro_core.contract.names import short_id

_BLOCKS = "▁▂▃▄▅▆▇█"


def show_flaps(release: str, config: str | None, address: str | None, as_json: bool) -> None:
    """Print the flapping services, after ending the suppression of `release` if it is given.

    Raises typer.Exit on failure.
    """

    async def work() -> None:
        if release:
            await call_node("Network.Release", {"service": release}, config, address)
            note(f"released {release}: it is advertised again")
        response = await call_node("Network.Flaps", {}, config, address)
        if as_json:
            show_json("micro.flaps/1", response)
            return
        policy = response["policy"]
        show_table(
            ["service", "penalty", "next 2 min", "losses", "state", "reuse"],
            [_row(flap, policy["suppress"]) for flap in response["flaps"]],
            f"no service flaps at {response['origin']}",
        )
        if response["flaps"]:
            typer.echo(
                f"suppressed above a penalty of {policy['suppress']:.0f}, reused below {policy['reuse']:.0f}; half-life "
                f"{policy['half_life_s']:.0f} s; suppressed for at most {policy['max_suppress_s']:.0f} s"
                + ("; dry run: nothing is suppressed" if policy["dry_run"] else "")
            )
        if response["elsewhere"]:
            typer.echo("\nflapping at other origins (only the origin of a service can suppress it):")
            rows = [
                [flap["router_name"] or short_id(flap["router"]), flap["service"], flap["penalty"], flap["losses"]]
                for flap in response["elsewhere"]
            ]
            show_table(["origin", "service", "penalty", "losses"], rows, "")

    run_command(work, as_json=as_json)


def _row(flap: dict[str, Any], suppress: float) -> list[Any]:
    return [
        flap["service"],
        flap["penalty"],
        _curve(flap["curve"], suppress),
        flap["losses"],
        f"suppressed for {flap['suppressed_for_s']:.0f} s" if flap["is_suppressed"] else "advertised",
        "-" if flap["reuse_in_s"] is None else f"in {max(0.0, flap['reuse_in_s']):.0f} s",
    ]


def _curve(penalties: Sequence[int], suppress: float) -> str:
    """Return the decay of a penalty as a row of blocks. A full block is a penalty that suppresses the service."""
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(penalty / suppress * len(_BLOCKS)))] for penalty in penalties)
