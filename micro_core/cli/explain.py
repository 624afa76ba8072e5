"""The body of `micro network explain`: the routes to a service, their costs, and why each is used or not."""

from __future__ import annotations

from typing import Any

import typer

from micro_core.cli.client import run_command
from micro_core.cli.network import call_node
from micro_core.cli.output import microseconds, show_json
from micro_core.contract.errors import RouteNotFound
from micro_core.contract.names import short_id

_INDENT = " " * 12


def explain_service(service: str, config: str | None, address: str | None, as_json: bool) -> None:
    """Print all route candidates of a service. Raises typer.Exit if there is no candidate, or on failure."""

    async def work() -> None:
        response = await call_node("Network.Explain", {"service": service}, config, address)
        if not response["candidates"]:
            raise RouteNotFound(
                f"no route to {service} is known", at=f"node {response['node']}", hint="micro network services"
            )
        if as_json:
            show_json("micro.explain/1", response)
            return
        for candidate in response["candidates"]:
            typer.echo(f"{candidate['status']:<11} {_route(candidate)}")
            typer.echo(f"{_INDENT}cost {_cost(candidate)}")
            if candidate["why"]:
                typer.echo(f"{_INDENT}{candidate['why']}")
            if candidate["stale_for_s"] is not None:
                typer.echo(
                    f"{_INDENT}stale: stored before the node restarted and not advertised again since; expires in "
                    f"{candidate['stale_for_s']:.0f} s"
                )

    run_command(work, as_json=as_json)


def _route(candidate: dict[str, Any]) -> str:
    origin = f"{candidate['router_name'] or short_id(candidate['router'])} ({candidate['site']})"
    if not candidate["gateway"]:
        return f"{origin}, this site: {candidate['address'] or 'neighbours'}"
    path = f", path {' < '.join(reversed(candidate['path']))}" if candidate["path"] else ""
    return f"{origin} via {candidate['gateway_name'] or short_id(candidate['gateway'])}{path}"


def _cost(candidate: dict[str, Any]) -> str:
    if not candidate["gateway"]:
        load = _load(candidate)
        return f"{microseconds(candidate['total_us'])}{load}" if load else "0: the service is on this site"
    if candidate["stale_for_s"] is not None:
        return f"{microseconds(candidate['total_us'])} before the restart"
    terms = candidate["link_terms"] or {}
    parts = [
        f"{label} {microseconds(terms[key])}"
        for key, label in (
            ("rtt_us", "round trip"),
            ("queue_delay_us", "queue"),
            ("loss_penalty_us", "loss"),
            ("configured_us", "configured"),
        )
        if terms.get(key)
    ]
    measured = f" (now: {', '.join(parts)})" if parts else ""
    return (
        f"{microseconds(candidate['total_us'])} = {microseconds(candidate['announced_us'])} advertised by the neighbour "
        f"+ {microseconds(candidate['link_us'])} link to the neighbour{measured}{_load(candidate)}"
    )


def _load(candidate: dict[str, Any]) -> str:
    """Return the share of the cost that is load: advertised by the origin, or measured by calls of this node."""
    load_us, waiting_us = candidate["load_us"], candidate["waiting_us"]
    at_instances = f"; includes {microseconds(load_us)} for load at the instances" if load_us else ""
    measured = f"; includes {microseconds(waiting_us)} waiting time measured by this node" if waiting_us else ""
    return at_instances + measured
