"""`micro network`: the network as the node of this site sees it."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Address, Config, Json, Service, Sets

network_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Inspect the network as the node of this site sees it."
)


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(network_app, name="network")


@network_app.command()
def nodes(config: Config = None, address: Address = None, json: Json = False) -> None:
    """List the nodes within three hops, nearest first."""
    from micro_core.cli.network import show_nodes

    show_nodes(config, address, json)


@network_app.command()
def connections(config: Config = None, address: Address = None, json: Json = False) -> None:
    """List the links of this site's node, how many it wants, and why there is no link to other known nodes."""
    from micro_core.cli.network import show_connections

    show_connections(config, address, json)


@network_app.command("services")
def network_services(config: Config = None, address: Address = None, json: Json = False) -> None:
    """List the services that can be called. Shows the sites of each."""
    from micro_core.cli.network import show_services

    show_services(config, address, json)


@network_app.command()
def routes(
    service: Annotated[str, typer.Option(help="Show only routes to this service.")] = "",
    router: Annotated[
        str,
        typer.Option(help="Show only routes of this origin: the name or id of a node, or the first digits of its id."),
    ] = "",
    gateway: Annotated[
        str,
        typer.Option(help="Show only routes through this neighbour: its name or id, or the first digits of its id."),
    ] = "",
    link: Annotated[
        str, typer.Option(help="Show only routes of this kind: local (this site) or network (other sites).")
    ] = "",
    topics: Annotated[bool, typer.Option(help="Show the topics that have subscribers, too.")] = False,
    at: Annotated[
        str,
        typer.Option(
            help="Show the table at an earlier time, e.g. 5m (five minutes ago) or 2026-05-01T12:00:00 (local time "
            "unless it ends in Z)."
        ),
    ] = "",
    diff: Annotated[str, typer.Option(help="Show the routes added, removed and changed since a time, e.g. 5m.")] = "",
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Show the route table of this site's node. The best route of a service comes first."""
    if at or diff:
        from micro_core.cli.route_history import show_past_table

        show_past_table(at, diff, service, config, address, json)
        return
    from micro_core.cli.network import show_routes

    query = {"service": service, "router": router, "gateway": gateway, "link": link, "topics": topics}
    show_routes(query, config, address, json)


@network_app.command()
def graph(
    radius: Annotated[int, typer.Option(help="Maximum distance in hops.", min=0, max=3)] = 3,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a mermaid diagram.")] = False,
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Show nearby nodes and the links between them."""
    from micro_core.cli.network import show_graph

    show_graph(radius, mermaid, config, address, json)


@network_app.command()
def status(config: Config = None, address: Address = None, json: Json = False) -> None:
    """Show the state of this site's node. Includes its identity, its addresses and its counters."""
    from micro_core.cli.network import show_status

    show_status(config, address, json)


@network_app.command()
def token(config: Config = None, sets: Sets = None) -> None:
    """Print the secret token of the network. Nodes on other machines need it to join."""
    from micro_core.cli.network import show_token

    show_token(config, sets or [])


@network_app.command()
def explain(service: Service, config: Config = None, address: Address = None, json: Json = False) -> None:
    """Explain the routes to a service. Shows which route is used, and why the others are not."""
    from micro_core.cli.explain import explain_service

    explain_service(service, config, address, json)


@network_app.command()
def flaps(
    release: Annotated[str, typer.Option(help="End the suppression of this service.")] = "",
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Show flapping services of this site. Shows which of them are suppressed, and for how long."""
    from micro_core.cli.flaps import show_flaps

    show_flaps(release, config, address, json)


@network_app.command()
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new changes until Ctrl-C.")] = False,
    count: Annotated[int, typer.Option(help="Number of past changes to print.", min=0, max=1000)] = 20,
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Show the last changes of the route table."""
    from micro_core.cli.route_history import show_events

    show_events(follow, count, config, address, json)
