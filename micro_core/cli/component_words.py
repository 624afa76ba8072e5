"""The words of `micro registry`, `broker`, `tunnel`, `router` and `proxy`. Imports typer alone."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Blocks, Config, Plugins, Sets

Name = Annotated[str | None, typer.Option(help="Name of the node that this is a part of (MICRO_NAME).")]
Site = Annotated[str | None, typer.Option(help="Site of the node (MICRO_SITE).")]
At = Annotated[str, typer.Option("--address", help="Where to take calls, tcp://host:port; default: any free port.")]


def add_components(app: typer.Typer) -> None:
    """Add the five commands."""
    for command in (registry, broker, tunnel, router, proxy):
        app.command()(command)


def registry(
    address: Annotated[
        str, typer.Option(help="Where to take calls; default: where registry:service looks (tcp://127.0.0.1:8000).")
    ] = "",
    plugins: Plugins = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run a registry as a service, for --plugins registry:service, until Ctrl-C."""
    from micro_core.cli.component import run_component

    flags = {"node.plugins": plugins, "node.site": site}
    run_component("registry", flags, address=address, config=config, sets=sets or [], block=block or [])


def broker(
    address: At = "",
    plugins: Plugins = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run the site's broker as a service, for --plugins broker:service, until Ctrl-C."""
    from micro_core.cli.component import run_component

    flags = {"node.plugins": plugins, "node.site": site}
    run_component("broker", flags, address=address, config=config, sets=sets or [], block=block or [])


def tunnel(
    address: At = "",
    door: Annotated[
        str, typer.Option(help="Where the node's router and proxy open sessions; default: a Unix socket of this user.")
    ] = "",
    listen: Annotated[
        str | None, typer.Option(help="host:port for links of other nodes; none only dials out (MICRO_LISTEN).")
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Node to stay linked to; may be repeated (MICRO_NODES).")
    ] = None,
    plugins: Plugins = None,
    name: Name = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run a node's links as a service, until Ctrl-C."""
    from micro_core.cli.component import run_component

    flags = {
        "node.plugins": plugins,
        "node.name": name,
        "node.site": site,
        "node.listen": listen,
        "node.nodes": tuple(node) if node else None,
    }
    run_component("tunnel", flags, address=address, door=door, config=config, sets=sets or [], block=block or [])


def router(
    address: At = "",
    plugins: Plugins = None,
    name: Name = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run a node's routing as a service, beside its `micro tunnel`, until Ctrl-C."""
    from micro_core.cli.component import run_component

    flags = {"node.plugins": plugins, "node.name": name, "node.site": site}
    run_component("router", flags, address=address, config=config, sets=sets or [], block=block or [])


def proxy(
    address: Annotated[
        str, typer.Option(help="Where to take calls, tcp://host:port; default: node.address, or any free port.")
    ] = "",
    plugins: Plugins = None,
    name: Name = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run a node's proxy as a service, beside its `micro tunnel` and `micro router`, until Ctrl-C."""
    from micro_core.cli.component import run_component

    flags = {"node.plugins": plugins, "node.name": name, "node.site": site}
    run_component("proxy", flags, address=address, config=config, sets=sets or [], block=block or [])
