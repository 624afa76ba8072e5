"""`micro network ...`: what this site's node knows."""

from __future__ import annotations

from typing import Any

import typer

from micro_core.cli.client import client_of, run_command
from micro_core.cli.output import UsageError, guarded, microseconds, note, show_json, show_table
from micro_core.config import load_settings
from micro_core.contract.errors import ServiceNotFound, Unreachable
from micro_core.contract.names import NETWORK_SERVICE, short_id
from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK

SHORTEST_ID, NODE_ID_CHARS = 4, 32
"""Characters of a node's id: how many may stand for it, and how many it has."""


async def ask(endpoint: str, request: dict[str, Any], config: str | None, address: str | None) -> dict[str, Any]:
    """Ask the site's node. Raises Unreachable when there is none."""
    settings = load_settings(config=config)
    async with client_of(settings) as client:
        try:
            answer: dict[str, Any] = await client.call(
                NETWORK_SERVICE, endpoint, request, address=address, timeout_s=settings.node.timeout
            )
        except ServiceNotFound as error:
            raise Unreachable(
                f"no node runs on site {settings.node.site}",
                at=error.at,
                hint="micro run, or MICRO_SITE for another site",
            ) from error
    return answer


def show_nodes(config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        answer = await ask("Network.Nodes", {}, config, address)
        if as_json:
            show_json("micro.nodes/1", answer)
            return
        rows = [[n["name"], short_id(n["id"]), n["site"], n["address"], n["hops"]] for n in answer["nodes"]]
        show_table(["name", "id", "site", "address", "hops"], rows, "no nodes")

    run_command(work, as_json=as_json)


def show_connections(config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        answer = await ask("Network.Connections", {}, config, address)
        if as_json:
            show_json("micro.connections/1", answer)
            return
        rows = [
            [
                link["name"],
                short_id(link["id"]),
                link["site"],
                link["address"],
                link["driver"],
                link["direction"],
                microseconds(link["rtt_us"]),
                f"{100 * (link['loss'] or 0):.1f} %",
                f"{link['up_s']:.0f} s",
                link["why"],
            ]
            for link in answer["connections"]
        ]
        columns = ["node", "id", "site", "address", "driver", "direction", "rtt", "loss", "up", "why"]
        show_table(columns, rows, "no links; join a node with --node ADDR")
        for failing in answer["failing"]:
            note(f"not linked: {failing['address']}: {failing['reason']}")

    run_command(work, as_json=as_json)


def show_services(config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        answer = await ask("Network.Services", {}, config, address)
        if as_json:
            show_json("micro.network-services/1", answer)
            return
        rows = [[e["service"], e["sites"], e["routes"], microseconds(e["metric"])] for e in answer["services"]]
        show_table(["service", "sites", "routes", "cost"], rows, "no services yet")

    run_command(work, as_json=as_json)


def show_routes(query: dict[str, Any], config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        if query["link"] not in ("", LOCAL_LINK, NETWORK_LINK):
            raise UsageError(f"--link {query['link']}: there are {LOCAL_LINK} and {NETWORK_LINK}")
        # The node knows whole ids alone; names and short ids, as all tables show them, are looked for in its answer.
        wanted = {key: query[key] for key in ("router", "gateway") if 0 < len(query[key]) < NODE_ID_CHARS}
        answer = await ask("Network.Routes", {**query, **dict.fromkeys(wanted, "")}, config, address)
        answer["routes"] = [r for r in answer["routes"] if all(_is_node(r, key, word) for key, word in wanted.items())]
        if as_json:
            show_json("micro.routes/1", answer)
            return
        rows = [
            [
                route["service"],
                route["address"],
                route["gateway_name"] or short_id(route["gateway"]),
                route["router_name"] or short_id(route["router"]),
                route["network"],
                route["metric"],
                f"{route['link']}, stale" if route["stale"] else route["link"],
            ]
            for route in answer["routes"]
        ]
        show_table(["service", "address", "gateway", "router", "network", "metric", "link"], rows, "no routes")

    run_command(work, as_json=as_json)


def _is_node(route: dict[str, Any], key: str, word: str) -> bool:
    """Whether the node that a route names under `key` is the one meant: by its id, the beginning of it, or its name."""
    return word == route[f"{key}_name"] or (len(word) >= SHORTEST_ID and route[key].startswith(word))


def show_graph(radius: int, mermaid: bool, config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        answer = await ask("Network.Graph", {"radius": radius}, config, address)
        if as_json:
            show_json("micro.graph/1", answer)
            return
        names = {node["id"]: node["name"] for node in answer["nodes"]}
        if mermaid:
            typer.echo("graph LR")
            for node in answer["nodes"]:
                typer.echo(f'  {short_id(node["id"])}["{node["name"]} ({node["site"]})"]')
            for link in answer["links"]:
                cost = microseconds(link["cost_us"])
                typer.echo(f"  {short_id(link['from'])} ---|{cost}| {short_id(link['to'])}")
            return
        for node in answer["nodes"]:
            typer.echo(f"{'  ' * node['hops']}{node['name']} ({node['site']})  {short_id(node['id'])}")
        for link in answer["links"]:
            typer.echo(f"{names[link['from']]} -- {names[link['to']]}  {microseconds(link['cost_us'])}")

    run_command(work, as_json=as_json)


def show_status(config: str | None, address: str | None, as_json: bool) -> None:
    async def work() -> None:
        answer = await ask("Network.Status", {}, config, address)
        if as_json:
            show_json("micro.status/1", answer)
            return
        rows = [[key, value] for key, value in answer.items() if key != "counters"]
        rows += [[f"counted {key}", value] for key, value in answer["counters"].items()]
        show_table(["what", "value"], rows, "nothing")

    run_command(work, as_json=as_json)


def show_token(config: str | None, sets: list[str]) -> None:
    def body() -> None:
        from micro_core.node.assembly import network_token

        typer.echo(network_token(load_settings(config=config, sets=sets)))

    guarded(body)
