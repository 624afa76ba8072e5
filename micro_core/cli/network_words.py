"""The words of `micro network`. Imports typer alone; each body imports its group when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Address, Config, Json, Service, Sets

network_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at the network from this site's node."
)


@network_app.command()
def nodes(config: Config = None, address: Address = None, json: Json = False) -> None:
    """The nodes within three hops, nearest first."""
    from micro_core.cli.network import show_nodes

    show_nodes(config, address, json)


@network_app.command()
def connections(config: Config = None, address: Address = None, json: Json = False) -> None:
    """The links of this site's node, and the addresses it cannot link to."""
    from micro_core.cli.network import show_connections

    show_connections(config, address, json)


@network_app.command("services")
def network_services(config: Config = None, address: Address = None, json: Json = False) -> None:
    """Every service that can be called from here, with its sites."""
    from micro_core.cli.network import show_services

    show_services(config, address, json)


@network_app.command()
def routes(
    service: Annotated[str, typer.Option(help="Only routes to this service.")] = "",
    router: Annotated[
        str, typer.Option(help="Only routes of this origin: a node by name or id, or the beginning of its id.")
    ] = "",
    gateway: Annotated[
        str, typer.Option(help="Only routes through this node: by name or id, or the beginning of its id.")
    ] = "",
    link: Annotated[str, typer.Option(help="local or network.")] = "",
    topics: Annotated[bool, typer.Option(help="Interests in topics, too.")] = False,
    at: Annotated[
        str, typer.Option(help="The table as it was: 5m ago, or at 2026-05-01T12:00:00 (local time unless it says Z).")
    ] = "",
    diff: Annotated[str, typer.Option(help="What has come, gone and changed since: 5m, or a time.")] = "",
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """The route table of this site's node, best first within a service."""
    from micro_core.cli.network import show_routes

    if at or diff:
        from micro_core.cli.explain import show_past

        show_past(at, diff, service, config, address, json)
        return
    query = {"service": service, "router": router, "gateway": gateway, "link": link, "topics": topics}
    show_routes(query, config, address, json)


@network_app.command()
def graph(
    radius: Annotated[int, typer.Option(help="Hops to look, at most 3.", min=0, max=3)] = 3,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a mermaid diagram.")] = False,
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """The nodes within sight and the links between them."""
    from micro_core.cli.network import show_graph

    show_graph(radius, mermaid, config, address, json)


@network_app.command()
def status(config: Config = None, address: Address = None, json: Json = False) -> None:
    """What this site's node is, and what it has counted."""
    from micro_core.cli.network import show_status

    show_status(config, address, json)


@network_app.command()
def token(config: Config = None, sets: Sets = None) -> None:
    """Print the network's token, for nodes on other machines. It is a secret."""
    from micro_core.cli.network import show_token

    show_token(config, sets or [])


@network_app.command()
def explain(service: Service, config: Config = None, address: Address = None, json: Json = False) -> None:
    """Where calls to a service go from here, every other way that is known, and why it is not taken."""
    from micro_core.cli.explain import explain_service

    explain_service(service, config, address, json)


@network_app.command()
def flaps(
    release: Annotated[str, typer.Option(help="Let out this service, which is held back.")] = "",
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """The services of this site that come and go, and which of them are held back until when."""
    from micro_core.cli.explain import show_flaps

    show_flaps(release, config, address, json)


@network_app.command()
def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    count: Annotated[int, typer.Option(help="How many of the past.", min=0, max=1000)] = 20,
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """What has happened to the routes of this site's node."""
    from micro_core.cli.explain import show_events

    show_events(follow, count, config, address, json)
