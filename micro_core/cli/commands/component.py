"""`micro registry`, `broker`, `tunnel`, `router` and `proxy`: one component of a node as a process of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Blocks, Config, Plugins, Sets

Name = Annotated[str | None, typer.Option(help="Name of the node that the component belongs to (MICRO_NAME).")]
Site = Annotated[str | None, typer.Option(help="Site of the node, e.g. eu (MICRO_SITE).")]
ListenAddress = Annotated[
    str,
    typer.Option(
        "--address", help="Address on which to accept calls, e.g. tcp://127.0.0.1:8001. Default: any free port."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the five commands to `app`."""
    for command in (registry, broker, tunnel, router, proxy):
        app.command()(command)


def registry(
    address: Annotated[
        str,
        typer.Option(
            help="Address on which to accept calls. Default: the address that registry:service connects to "
            "(tcp://127.0.0.1:8000)."
        ),
    ] = "",
    plugins: Plugins = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run a registry until Ctrl-C. Other processes use it with --plugins registry:service."""
    from micro_core.cli.component import run_component

    flags = {"node.plugins": plugins, "node.site": site}
    run_component("registry", flags, address=address, config=config, sets=sets or [], block=block or [])


def broker(
    address: ListenAddress = "",
    plugins: Plugins = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run the broker of a site until Ctrl-C. Nodes use it with --plugins broker:service."""
    from micro_core.cli.component import run_component

    flags = {"node.plugins": plugins, "node.site": site}
    run_component("broker", flags, address=address, config=config, sets=sets or [], block=block or [])


def tunnel(
    address: ListenAddress = "",
    ipc: Annotated[
        str,
        typer.Option(
            help="Address on which to accept the router and the proxy of the node, e.g. tcp://10.0.0.5:8002. "
            "Default: a Unix socket of the current user."
        ),
    ] = "",
    listen: Annotated[
        str | None,
        typer.Option(help="Address on which to accept links, e.g. :8085. Use none to accept no links (MICRO_LISTEN)."),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(help="Node to stay linked to, e.g. quic://192.0.2.7:8085. May be repeated (MICRO_NODES)."),
    ] = None,
    plugins: Plugins = None,
    name: Name = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run the links of a node until Ctrl-C."""
    from micro_core.cli.component import run_component

    flags = {
        "node.plugins": plugins,
        "node.name": name,
        "node.site": site,
        "node.listen": listen,
        "node.nodes": tuple(node) if node else None,
    }
    run_component("tunnel", flags, address=address, ipc=ipc, config=config, sets=sets or [], block=block or [])


def router(
    address: ListenAddress = "",
    plugins: Plugins = None,
    name: Name = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run the router of a node until Ctrl-C. It needs the `micro tunnel` of the same node."""
    from micro_core.cli.component import run_component

    flags = {"node.plugins": plugins, "node.name": name, "node.site": site}
    run_component("router", flags, address=address, config=config, sets=sets or [], block=block or [])


def proxy(
    address: Annotated[
        str,
        typer.Option(
            help="Address on which to accept calls, e.g. tcp://127.0.0.1:8003. Default: node.address, or any free port."
        ),
    ] = "",
    plugins: Plugins = None,
    name: Name = None,
    site: Site = None,
    config: Config = None,
    sets: Sets = None,
    block: Blocks = None,
) -> None:
    """Run the proxy of a node until Ctrl-C. It needs the `micro tunnel` and `micro router` of the same node."""
    from micro_core.cli.component import run_component

    flags = {"node.plugins": plugins, "node.name": name, "node.site": site}
    run_component("proxy", flags, address=address, config=config, sets=sets or [], block=block or [])
