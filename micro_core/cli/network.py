"""The bodies of `micro network nodes`, `connections`, `services`, `routes`, `graph`, `status` and `token`."""

from __future__ import annotations

from typing import Any

import typer

from micro_core.cli.client import open_client, run_command
from micro_core.cli.output import UsageError, microseconds, note, run_guarded, show_json, show_table
from micro_core.config import load_settings
from micro_core.contract.errors import ServiceNotFound, Unreachable
from micro_core.contract.names import NETWORK_SERVICE, short_id
from micro_core.contract.table import LOCAL_LINK, NETWORK_LINK

NODE_ID_CHARS = 32
MIN_ID_PREFIX_CHARS = 4
"""Minimum number of digits of a node id that select the node."""


async def call_node(endpoint: str, request: dict[str, Any], config: str | None, address: str | None) -> dict[str, Any]:
    """Call an endpoint of the site's node and return its response. Raises Unreachable if no node is running."""
    settings = load_settings(config=config)
    async with open_client(settings, needs_registry=address is None) as client:
        try:
            response: dict[str, Any] = await client.call(
                NETWORK_SERVICE, endpoint, request, address=address, timeout_s=settings.node.timeout
            )
        except ServiceNotFound as error:
            raise Unreachable(
                f"no node is running on site {settings.node.site}",
                at=error.at,
                hint="start one with `micro run`, or select another site with MICRO_SITE",
            ) from error
    return response


def show_nodes(config: str | None, address: str | None, as_json: bool) -> None:
    """Print the nodes within three hops. Raises typer.Exit on failure."""

    async def work() -> None:
        response = await call_node("Network.Nodes", {}, config, address)
        if as_json:
            show_json("micro.nodes/1", response)
            return
        rows = [[n["name"], short_id(n["id"]), n["site"], n["address"], n["hops"]] for n in response["nodes"]]
        show_table(["name", "id", "site", "address", "hops"], rows, "no nodes")

    run_command(work, as_json=as_json)


def show_connections(config: str | None, address: str | None, as_json: bool) -> None:
    """Print the links of the node, how many it wants, and why other nodes have none. Raises typer.Exit on failure."""

    async def work() -> None:
        response = await call_node("Network.Connections", {}, config, address)
        if as_json:
            show_json("micro.connections/1", response)
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
                _link_state(link),
                link["why"],
            ]
            for link in response["connections"]
        ]
        columns = ["node", "id", "site", "address", "driver", "direction", "rtt", "loss", "up", "state", "why"]
        show_table(columns, rows, "no links; join a network with `micro run --node ADDR`")
        for line in _link_notes(response):
            note(line)

    run_command(work, as_json=as_json)


def _link_state(link: dict[str, Any]) -> str:
    if link.get("is_damped"):
        return f"damped for {link['reuse_in_s'] or 0:.0f} s"
    if link.get("is_closing"):
        return "closing"
    return "suspect" if link["is_suspect"] else "used"


def _link_notes(response: dict[str, Any]) -> list[str]:
    """Return the numbers of links, and a line for each node without a link."""
    links, lines = response["links"], []
    for key, where in (("site", "inside the site"), ("remote", "to other sites")):
        lines.append(f"links {where}: {links[key]['open']}, wanted {links[key]['wanted']}")
    for candidate in response["candidates"]:
        name = f"{candidate['name']} ({candidate['site']})" if candidate["name"] else candidate["addresses"][0]
        distance = f", {microseconds(candidate['rtt_us'])} away" if candidate["rtt_us"] is not None else ""
        reason = f": {candidate['why']}" if candidate["why"] else ""
        retry = f", next attempt in {candidate['retry_s']:.0f} s" if candidate["retry_s"] is not None else ""
        unreachable = "" if candidate["is_reachable"] or not candidate["id"] else ", unreachable"
        lines.append(f"no link to {name}{distance}{unreachable}: {candidate['state']}{reason}{retry}")
    return lines


def show_services(config: str | None, address: str | None, as_json: bool) -> None:
    """Print the services that can be called from the site. Raises typer.Exit on failure."""

    async def work() -> None:
        response = await call_node("Network.Services", {}, config, address)
        if as_json:
            show_json("micro.network-services/1", response)
            return
        rows = [[e["service"], e["sites"], e["routes"], microseconds(e["metric"])] for e in response["services"]]
        show_table(["service", "sites", "routes", "cost"], rows, "no services yet")

    run_command(work, as_json=as_json)


def show_routes(query: dict[str, Any], config: str | None, address: str | None, as_json: bool) -> None:
    """Print the routes that match `query`. Raises typer.Exit on failure."""

    async def work() -> None:
        if query["link"] not in ("", LOCAL_LINK, NETWORK_LINK):
            raise UsageError(f"--link {query['link']} is unknown", hint=f"use {LOCAL_LINK} or {NETWORK_LINK}")
        # The node filters by complete ids only. Names and prefixes of ids are matched here, against its response.
        selectors = {key: query[key] for key in ("router", "gateway") if 0 < len(query[key]) < NODE_ID_CHARS}
        response = await call_node("Network.Routes", {**query, **dict.fromkeys(selectors, "")}, config, address)
        response["routes"] = [
            route
            for route in response["routes"]
            if all(_is_node(route, key, selector) for key, selector in selectors.items())
        ]
        if as_json:
            show_json("micro.routes/1", response)
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
            for route in response["routes"]
        ]
        show_table(["service", "address", "gateway", "router", "network", "metric", "link"], rows, "no routes")

    run_command(work, as_json=as_json)


def _is_node(route: dict[str, Any], key: str, selector: str) -> bool:
    """Return whether `selector` is the name, the id or a prefix of the id of the node under `key` of a route."""
    is_prefix = len(selector) >= MIN_ID_PREFIX_CHARS and route[key].startswith(selector)
    return bool(selector == route[f"{key}_name"] or is_prefix)


def show_graph(radius: int, mermaid: bool, config: str | None, address: str | None, as_json: bool) -> None:
    """Print the nodes within `radius` hops and the links between them. Raises typer.Exit on failure."""

    async def work() -> None:
        response = await call_node("Network.Graph", {"radius": radius}, config, address)
        if as_json:
            show_json("micro.graph/1", response)
            return
        names = {node["id"]: node["name"] for node in response["nodes"]}
        if mermaid:
            typer.echo("graph LR")
            for node in response["nodes"]:
                typer.echo(f'  {short_id(node["id"])}["{node["name"]} ({node["site"]})"]')
            for link in response["links"]:
                cost = microseconds(link["cost_us"])
                typer.echo(f"  {short_id(link['from'])} ---|{cost}| {short_id(link['to'])}")
            return
        for node in response["nodes"]:
            typer.echo(f"{'  ' * node['hops']}{node['name']} ({node['site']})  {short_id(node['id'])}")
        for link in response["links"]:
            typer.echo(f"{names[link['from']]} -- {names[link['to']]}  {microseconds(link['cost_us'])}")

    run_command(work, as_json=as_json)


def show_status(config: str | None, address: str | None, as_json: bool) -> None:
    """Print the identity and the counters of the node. Raises typer.Exit on failure."""

    async def work() -> None:
        response = await call_node("Network.Status", {}, config, address)
        if as_json:
            show_json("micro.status/1", response)
            return
        rows = [[key, value] for key, value in response.items() if key != "counters"]
        rows += [[f"counter {key}", value] for key, value in response["counters"].items()]
        show_table(["key", "value"], rows, "no values")

    run_command(work, as_json=as_json)


def show_token(config: str | None, sets: list[str]) -> None:
    """Print the token of the network. Raises typer.Exit on failure."""

    def body() -> None:
        from micro_core.node.assembly import network_token

        typer.echo(network_token(load_settings(config=config, sets=sets)))

    run_guarded(body)
