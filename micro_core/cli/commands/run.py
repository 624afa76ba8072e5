"""`micro run`, and the command line `micro --peer [ADDR]`, which is a short form of it."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Blocks, Config, Plugins, Sets

PEER_PLUGINS = "quic"
"""The plugins of `micro --peer` if neither an option, nor the environment, nor a file names plugins."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(run)


def run(
    plugins: Plugins = None,
    config: Config = None,
    name: Annotated[str | None, typer.Option(help="Readable name of the node, e.g. eu-1 (MICRO_NAME).")] = None,
    network: Annotated[str | None, typer.Option(help="Network to join, e.g. go.micro (MICRO_NETWORK).")] = None,
    site: Annotated[str | None, typer.Option(help="Site of the node, e.g. eu (MICRO_SITE).")] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Address on which to accept links, e.g. :8085, or quic://:8085,tls://:443 for several drivers. "
            "Use none to accept no links (MICRO_LISTEN)."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address on which to accept calls, e.g. tcp://127.0.0.1:8080 (MICRO_ADDRESS).")
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(help="Node to stay linked to, e.g. quic://192.0.2.7:8085. May be repeated (MICRO_NODES)."),
    ] = None,
    sets: Sets = None,
    block: Blocks = None,
    use_peer_plugins: Annotated[bool, typer.Option("--use-peer-plugins", hidden=True)] = False,
) -> None:
    """Run a node on this site until Ctrl-C."""
    from micro_core.cli.run import is_setting_given, run_node

    if use_peer_plugins and plugins is None and not is_setting_given("node.plugins", config, sets or []):
        plugins = PEER_PLUGINS
    flags = {
        "node.plugins": plugins,
        "node.name": name,
        "node.network": network,
        "node.site": site,
        "node.listen": listen,
        "node.address": address,
        "node.nodes": tuple(node) if node else None,
    }
    run_node(flags, config=config, sets=sets or [], block=block or [])


def expand_peer(arguments: list[str]) -> list[str]:
    """Return the `run` command line that `micro --peer [ADDR]` stands for. Other command lines are returned unchanged.

    typer cannot express an option whose value is optional, so this happens before typer sees the arguments.
    """
    index = next((index for index, argument in enumerate(arguments) if argument != "--debug"), len(arguments))
    before, rest = arguments[:index], arguments[index:]
    if not rest or rest[0].partition("=")[0] != "--peer":
        return arguments
    address = rest.pop(0).partition("=")[2]
    if not address and rest and not rest[0].startswith("-"):
        address = rest.pop(0)
    return [*before, "run", "--use-peer-plugins", *(["--node", address] if address else []), *rest]
